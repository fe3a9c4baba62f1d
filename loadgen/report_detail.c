#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/report_impl.h"

#define LATE_MS 10
#define BUSY_SHARE 0.8

const char *
report_metric_key(metric which)
{
    static const char *const keys[METRIC_COUNT] = {"ttft",       "tpot",       "itl",       "e2el",
                                                   "sched_ttft", "sched_e2el", "client_lag"};
    return keys[which];
}

double
report_cpu_share(const report_run *run)
{
    if (run->client == NULL || run->client->wall_ns == 0) return NAN;
    return (double)run->client->cpu_ns / (double)run->client->wall_ns;
}

bool
report_client_was_late(const report_run *run)
{
    const measure_stat *lag = &run->figures->stats[METRIC_LAG];
    return lag->p99 > LATE_MS || report_cpu_share(run) > BUSY_SHARE;
}

static void
write_load(json_writer *w, const report_run *run)
{
    bool turns = false;
    for (size_t i = 0; i < run->count; i++) {
        turns = turns || run->prompts[i].turn > 0;
    }
    json_key(w, "turns");
    if (turns) {
        json_open(w, '[');
        for (size_t i = 0; i < run->count; i++) {
            json_put_number(w, run->prompts[i].turn);
        }
        json_close(w, ']');
    } else {
        json_put_json(w, NULL);
    }
    json_key(w, "domains");
    if (run->domain_count > 0) {
        json_open(w, '[');
        for (size_t i = 0; i < run->count; i++) {
            json_put_text(w, run->domains[run->prompts[i].domain]);
        }
        json_close(w, ']');
    } else {
        json_put_json(w, NULL);
    }
    const bool ramp = run->ramp != NULL;
    json_key_text(w, "ramp_up_strategy", run->ramp);
    json_key_number(w, "ramp_up_start_rps", ramp ? run->ramp_start : NAN);
    json_key_number(w, "ramp_up_end_rps", ramp ? run->ramp_end : NAN);
    json_key(w, "goodput_limits");
    json_open(w, '{');
    for (metric which = 0; which < METRIC_COUNT; which++) {
        if (run->config->slo_ms[which] > 0)
            json_key_number(w, report_metric_key(which), run->config->slo_ms[which]);
    }
    json_close(w, '}');
}

static double
offset_s(const report_run *run, uint64_t at_ns)
{
    const uint64_t zero = run->figures->first_send_ns;
    return (at_ns >= zero ? (double)(at_ns - zero) : -(double)(zero - at_ns)) / (double)NS_PER_S;
}

static void
write_trimmed(json_writer *w, const report_run *run)
{
    const measure *m = run->figures;
    json_key(w, "trimmed");
    if (!m->trimmed) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '{');
    json_key_number(w, "warmup_s", run->config->trim_start_s);
    json_key_number(w, "cooldown_s", run->config->trim_end_s);
    json_key_number(w, "held_s", run->config->hold_s > 0 ? run->config->hold_s : NAN);
    json_key_number(w, "window_start_s", offset_s(run, m->window_start_ns));
    json_key_number(w, "window_end_s", offset_s(run, m->window_end_ns));
    json_key_number(w, "excluded", (double)m->excluded);
    json_key_number(w, "steady_request_throughput", m->steady_request_throughput);
    json_key_number(w, "steady_output_throughput", m->steady_output_throughput);
    json_close(w, '}');
}

static void
write_client(json_writer *w, const report_run *run)
{
    const measure_stat *lag = &run->figures->stats[METRIC_LAG];
    json_key(w, "client");
    json_open(w, '{');
    json_key_number(w, "mean_lag_ms", lag->mean);
    json_key_number(w, "p99_lag_ms", lag->p99);
    json_key_number(w, "max_lag_ms", lag->max);
    json_key_number(w, "cpu_share", report_cpu_share(run));
    json_key_number(w, "longest_round_ms",
                    run->client ? (double)run->client->round_max_ns / (double)NS_PER_MS : NAN);
    json_key_bool(w, "late", report_client_was_late(run));
    json_close(w, '}');
}

/* Buckets that are not empty: their largest time in ms, and their count. */
static void
write_histogram(json_writer *w, const histogram *h)
{
    static const double shown[] = {50, 90, 95, 99, 99.9};
    json_open(w, '{');
    json_key_number(w, "count", (double)h->count);
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%g_ms", shown[i]);
        json_key_number(w, name, histogram_percentile_ms(h, shown[i]));
    }
    json_key(w, "buckets");
    json_open(w, '[');
    for (size_t b = 0; b < HISTOGRAM_BUCKETS; b++) {
        if (h->buckets[b] == 0) continue;
        json_open(w, '[');
        json_put_number(w, (double)histogram_upper_us(b) / 1e3);
        json_put_number(w, (double)h->buckets[b]);
        json_close(w, ']');
    }
    json_close(w, ']');
    json_close(w, '}');
}

static void
write_histograms(json_writer *w, const report_run *run)
{
    json_key(w, "histograms");
    if (run->histograms == NULL) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '{');
    for (metric which = 0; which < METRIC_COUNT; which++) {
        json_key(w, report_metric_key(which));
        write_histogram(w, &run->histograms[which]);
    }
    json_close(w, '}');
}

/* One array for each column: what plots take, and shorter. */
static void
write_column(json_writer *w, const series *s, const char *name,
             double (*read)(const series_point *p))
{
    json_key(w, name);
    json_open(w, '[');
    for (size_t i = 0; i < s->count; i++) {
        json_put_number(w, read(&s->points[i]));
    }
    json_close(w, ']');
}

#define COLUMN(name, expression)                                                                   \
    static double column_##name(const series_point *p)                                             \
    {                                                                                              \
        return expression;                                                                         \
    }
COLUMN(due, p->due)
COLUMN(sent, p->sent)
COLUMN(completed, p->completed)
COLUMN(failed, p->failed)
COLUMN(in_flight, p->in_flight)
COLUMN(output_tokens, p->output_tokens)
COLUMN(ttft, p->measured ? p->ttft_sum / p->measured : (double)NAN)
COLUMN(sched_ttft, p->measured ? p->sched_ttft_sum / p->measured : (double)NAN)
COLUMN(sched_ttft_max, p->measured ? p->sched_ttft_max : (double)NAN)

static void
write_series(json_writer *w, const report_run *run)
{
    const series *s = run->over_time;
    json_key(w, "time_series");
    if (s == NULL || s->count == 0) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '{');
    json_key_number(w, "interval_s", (double)s->interval_ns / (double)NS_PER_S);
    write_column(w, s, "due", column_due);
    write_column(w, s, "sent", column_sent);
    write_column(w, s, "completed", column_completed);
    write_column(w, s, "failed", column_failed);
    write_column(w, s, "max_in_flight", column_in_flight);
    write_column(w, s, "output_tokens", column_output_tokens);
    write_column(w, s, "mean_ttft_ms", column_ttft);
    write_column(w, s, "mean_sched_ttft_ms", column_sched_ttft);
    write_column(w, s, "max_sched_ttft_ms", column_sched_ttft_max);
    json_close(w, '}');
}

static bool
is_constant(const scrape_series *s, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        if (s->values[i] != s->values[0]) return false;
    }
    return true;
}

static void
write_moment(json_writer *w, const scrape_result *r, const char *name, size_t at)
{
    json_key(w, name);
    json_open(w, '{');
    for (size_t i = 0; i < r->series_count; i++) {
        if (!isnan(r->series[i].values[at]))
            json_key_number(w, r->series[i].name, r->series[i].values[at]);
    }
    json_close(w, '}');
}

static void
write_metrics(json_writer *w, const report_run *run)
{
    const scrape_result *r = run->scraped;
    json_key(w, "server_metrics");
    if (r == NULL || r->sample_count == 0) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '{');
    write_moment(w, r, "before", 0);
    write_moment(w, r, "after", r->sample_count - 1);
    json_key_number(w, "failed_scrapes", (double)r->failed);
    json_key(w, "times");
    json_open(w, '[');
    for (size_t i = 0; i < r->sample_count; i++) {
        json_put_number(w, offset_s(run, r->at_ns[i]));
    }
    json_close(w, ']');
    json_key(w, "series");
    json_open(w, '{');
    for (size_t i = 0; i < r->series_count; i++) {
        const scrape_series *s = &r->series[i];
        if (is_constant(s, r->sample_count)) continue; /* "before" says it */
        json_key(w, s->name);
        json_open(w, '[');
        for (size_t j = 0; j < r->sample_count; j++) {
            json_put_number(w, s->values[j]);
        }
        json_close(w, ']');
    }
    json_close(w, '}');
    json_close(w, '}');
}

static void
write_chaos(json_writer *w, const report_run *run)
{
    json_key(w, "chaos");
    if (run->chaos == NULL || run->chaos->count == 0) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '[');
    for (size_t i = 0; i < run->chaos->count; i++) {
        const chaos_step *s = &run->chaos->steps[i];
        json_open(w, '{');
        json_key_text(w, "step", s->text);
        json_key_number(w, "at_s", (double)s->at_ns / (double)NS_PER_S);
        json_key_number(w, "done_s", s->done_ns ? (double)s->done_ns / (double)NS_PER_S : NAN);
        json_key_number(w, "pid", s->pid ? (double)s->pid : NAN);
        json_key_text(w, "error", *s->outcome ? s->outcome : NULL);
        json_close(w, '}');
    }
    json_close(w, ']');
}

static void
write_determinism(json_writer *w, const report_run *run)
{
    const determinism *d = run->determinism;
    json_key(w, "determinism");
    if (d == NULL) {
        json_put_json(w, NULL);
        return;
    }
    json_open(w, '{');
    json_key_number(w, "compared", (double)d->compared);
    json_key_number(w, "equal", (double)d->equal);
    json_key_number(w, "not_comparable", (double)d->skipped);
    json_key_number(w, "first_different", d->different ? (double)d->first_different : NAN);
    json_key_number(w, "first_different_byte", d->different ? (double)d->first_byte : NAN);
    json_close(w, '}');
}

void
report_write_details(json_writer *w, const report_run *run)
{
    write_load(w, run);
    write_trimmed(w, run);
    write_client(w, run);
    write_histograms(w, run);
    write_series(w, run);
    write_metrics(w, run);
    write_chaos(w, run);
    write_determinism(w, run);
    json_key_number(w, "repeat", run->repeat);
}
