#include "loadgen/measure.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "common/clock.h"

#define PEAK_SECONDS_MAX (1u << 24)

/* Subtracts before it converts: clock readings have more digits than a double.  0 where a record
 * lacks order, which only a clock that steps back can cause. */
static double
ms_since(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / (double)NS_PER_MS : 0;
}

double
measure_percentile(const double *sorted, size_t n, double p)
{
    if (n == 0) return NAN;
    const double rank = p / 100 * (double)(n - 1);
    const size_t low = (size_t)floor(rank);
    if (low + 1 >= n) return sorted[n - 1];
    return sorted[low] + (rank - (double)low) * (sorted[low + 1] - sorted[low]);
}

double
measure_request_ms(const request_record *r, metric which)
{
    assert(which == METRIC_LAG || (r->completed && r->chunk_count > 0));
    switch (which) {
    case METRIC_TTFT: return ms_since(r->send_ns, r->chunk_ns[0]);
    case METRIC_E2EL: return ms_since(r->send_ns, r->last_ns);
    case METRIC_SCHED_TTFT: return ms_since(r->scheduled_ns, r->chunk_ns[0]);
    case METRIC_SCHED_E2EL: return ms_since(r->scheduled_ns, r->last_ns);
    case METRIC_LAG: return ms_since(r->ready_ns, r->send_ns);
    case METRIC_TPOT:
        if (r->output_tokens < 2) return NAN;
        return ms_since(r->chunk_ns[0], r->last_ns) / (double)(r->output_tokens - 1);
    case METRIC_ITL:
    case METRIC_COUNT: break;
    }
    assert(!"no value per request");
    return NAN;
}

int64_t
measure_input_tokens(const prompt *p, const request_record *r)
{
    if (r->prompt_tokens >= 0) return r->prompt_tokens;
    return p->token_count >= 0 ? p->token_count : 0;
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts values [n] in place. */
static void
summarize(const measure_config *config, double *values, size_t n, measure_stat *out)
{
    qsort(values, n, sizeof *values, compare_doubles);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        sum += values[i];
    }
    const double mean = n ? sum / (double)n : NAN;
    for (size_t i = 0; i < n; i++) {
        squares += (values[i] - mean) * (values[i] - mean);
    }
    out->count = n;
    out->mean = mean;
    out->std = n ? sqrt(squares / (double)n) : NAN;
    out->median = measure_percentile(values, n, 50);
    out->p99 = measure_percentile(values, n, 99);
    out->min = n ? values[0] : NAN;
    out->max = n ? values[n - 1] : NAN;
    for (size_t i = 0; i < config->percentile_count; i++) {
        out->percentiles[i] = measure_percentile(values, n, config->percentiles[i]);
    }
}

bool
measure_is_within(const measure *m, const request_record *r)
{
    return !m->trimmed || r->send_ns == 0 ||
           (r->send_ns >= m->window_start_ns && r->send_ns <= m->window_end_ns);
}

/* Hands each value of the metric to `take`. */
static void
visit(const measure *m, const request_record *records, size_t count, metric which,
      void (*take)(void *ctx, double ms), void *ctx)
{
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (!measure_is_within(m, r)) continue;
        if (which == METRIC_LAG) {
            if (r->send_ns != 0) take(ctx, measure_request_ms(r, which));
        } else if (!r->completed) {
            continue;
        } else if (which == METRIC_ITL) {
            for (size_t j = 1; j < r->chunk_count; j++) {
                take(ctx, ms_since(r->chunk_ns[j - 1], r->chunk_ns[j]));
            }
        } else if (which != METRIC_TPOT || r->output_tokens > 1) {
            take(ctx, measure_request_ms(r, which));
        }
    }
}

static void
take_count(void *ctx, double ms)
{
    (void)ms;
    ++*(size_t *)ctx;
}

static void
take_value(void *ctx, double ms)
{
    double **at = ctx;
    *(*at)++ = ms;
}

static void
take_bucket(void *ctx, double ms)
{
    histogram_add_ms(ctx, ms);
}

void
measure_fill_histograms(const measure *m, const request_record *records, size_t count,
                        histogram *out)
{
    for (metric which = 0; which < METRIC_COUNT; which++) {
        visit(m, records, count, which, take_bucket, &out[which]);
    }
}

static moe_err
fill_stats(const measure_config *config, const request_record *records, size_t count, measure *out)
{
    for (metric which = 0; which < METRIC_COUNT; which++) {
        size_t n = 0;
        visit(out, records, count, which, take_count, &n);
        double *values = malloc((n + 1) * sizeof *values), *at = values;
        if (values == NULL) return MOE_ENOMEM;
        visit(out, records, count, which, take_value, &at);
        summarize(config, values, n, &out->stats[which]);
        free(values);
    }
    return MOE_OK;
}

/* The window: everything, or what is left of it.  One that trimming leaves nothing of is empty. */
static void
place_window(const measure_config *config, const request_record *records, size_t count,
             measure *out)
{
    uint64_t first = UINT64_MAX, last = 0;
    for (size_t i = 0; i < count; i++) {
        if (records[i].send_ns == 0) continue;
        if (records[i].send_ns < first) first = records[i].send_ns;
        if (records[i].end_ns > last) last = records[i].end_ns;
    }
    if (first == UINT64_MAX) return;
    out->first_send_ns = first;
    out->window_start_ns = first + (uint64_t)(config->trim_start_s * (double)NS_PER_S);
    const uint64_t end_ns = (uint64_t)(config->trim_end_s * (double)NS_PER_S);
    const uint64_t hold_ns = (uint64_t)(config->hold_s * (double)NS_PER_S);
    if (hold_ns > 0 && first + hold_ns < last) last = first + hold_ns;
    out->window_end_ns = last > end_ns ? last - end_ns : 0;
    out->trimmed = config->trim_start_s > 0 || config->trim_end_s > 0 || config->hold_s > 0;
    for (size_t i = 0; i < count; i++) {
        out->excluded += !measure_is_within(out, &records[i]);
    }
}

static void
fill_duration(const request_record *records, size_t count, measure *out)
{
    uint64_t first = UINT64_MAX, last_completed = 0, last_any = 0;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (r->send_ns == 0 || !measure_is_within(out, r)) continue;
        if (r->send_ns < first) first = r->send_ns;
        if (r->end_ns > last_any) last_any = r->end_ns;
        if (r->completed && r->end_ns > last_completed) last_completed = r->end_ns;
    }
    if (first == UINT64_MAX) return;
    out->duration_s = ms_since(first, last_completed ? last_completed : last_any) / 1e3;
}

bool
measure_meets(const measure_config *config, const request_record *r)
{
    for (metric which = 0; which < METRIC_COUNT; which++) {
        /* A missing TPOT is NaN, which is not above any limit. */
        if (config->slo_ms[which] > 0 && measure_request_ms(r, which) > config->slo_ms[which])
            return false;
    }
    return true;
}

static double
rate(double amount, double duration_s)
{
    return duration_s > 0 ? amount / duration_s : 0;
}

static void
fill_counts(const measure_config *config, const prompt *prompts, const request_record *records,
            size_t count, measure *out)
{
    size_t good = 0;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (!measure_is_within(out, r)) continue;
        if (!r->completed) {
            out->failed++;
            if (r->http_status == 429) out->rejected++;
            continue;
        }
        out->completed++;
        out->input_tokens += measure_input_tokens(&prompts[i], r);
        out->output_tokens += r->output_tokens;
        if (measure_meets(config, r)) good++;
    }
    bool limited = false;
    for (metric which = 0; which < METRIC_COUNT; which++) {
        limited = limited || config->slo_ms[which] > 0;
    }
    const double s = out->duration_s;
    out->request_throughput = rate((double)out->completed, s);
    out->input_throughput = rate((double)out->input_tokens, s);
    out->output_throughput = rate((double)out->output_tokens, s);
    out->total_throughput = out->input_throughput + out->output_throughput;
    out->goodput = limited ? rate((double)good, s) : NAN;
}

static void
fill_steady(const request_record *records, size_t count, measure *out)
{
    out->steady_request_throughput = out->steady_output_throughput = NAN;
    if (!out->trimmed) return;
    const uint64_t from = out->window_start_ns, to = out->window_end_ns;
    double tokens = 0, ended = 0;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (!r->completed) continue;
        ended += r->end_ns >= from && r->end_ns <= to;
        size_t chunks = 0;
        for (size_t j = 0; j < r->chunk_count; j++) {
            chunks += r->chunk_ns[j] >= from && r->chunk_ns[j] <= to;
        }
        tokens += (double)r->output_tokens * (double)chunks / (double)r->chunk_count;
    }
    const double s = ms_since(from, to) / 1e3;
    out->steady_request_throughput = rate(ended, s);
    out->steady_output_throughput = rate(tokens, s);
}

/* The whole run's seconds: peaks are of all requests, also of those that trimming leaves out. */
static size_t
count_seconds(const request_record *records, size_t count, const measure *out)
{
    uint64_t last = out->first_send_ns;
    for (size_t i = 0; i < count; i++) {
        if (records[i].completed && records[i].end_ns > last) last = records[i].end_ns;
    }
    return (size_t)((last - out->first_send_ns) / NS_PER_S) + 1;
}

static moe_err
fill_peak_throughput(const request_record *records, size_t count, measure *out)
{
    const size_t seconds = count_seconds(records, count, out);
    if (seconds > PEAK_SECONDS_MAX) return MOE_OK; /* half a year */
    double *tokens = calloc(seconds, sizeof *tokens);
    if (tokens == NULL) return MOE_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        for (size_t j = 0; r->completed && j < r->chunk_count; j++) {
            const size_t at = (size_t)((r->chunk_ns[j] - out->first_send_ns) / NS_PER_S);
            if (at < seconds) tokens[at] += (double)r->output_tokens / (double)r->chunk_count;
        }
    }
    for (size_t i = 0; i < seconds; i++) {
        out->peak_output_throughput = fmax(out->peak_output_throughput, tokens[i]);
    }
    free(tokens);
    return MOE_OK;
}

static int
compare_times(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Walks starts and ends in the order of time; one that ends when another starts makes room. */
static moe_err
fill_peak_concurrency(const request_record *records, size_t count, measure *out)
{
    uint64_t *starts = malloc((2 * count + 1) * sizeof *starts);
    if (starts == NULL) return MOE_ENOMEM;
    uint64_t *ends = starts + count;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (records[i].send_ns == 0) continue;
        starts[n] = records[i].send_ns;
        ends[n++] = records[i].end_ns;
    }
    qsort(starts, n, sizeof *starts, compare_times);
    qsort(ends, n, sizeof *ends, compare_times);
    for (size_t started = 0, ended = 0; started < n;) {
        if (ends[ended] <= starts[started] && ended < started)
            ended++;
        else
            started++;
        if (started - ended > out->peak_concurrency) out->peak_concurrency = started - ended;
    }
    free(starts);
    return MOE_OK;
}

moe_err
measure_run(const measure_config *config, const prompt *prompts, const request_record *records,
            size_t count, measure *out, errbuf *eb)
{
    *out = (measure){0};
    place_window(config, records, count, out);
    fill_duration(records, count, out);
    fill_counts(config, prompts, records, count, out);
    fill_steady(records, count, out);
    moe_err err = fill_stats(config, records, count, out);
    if (!err) err = fill_peak_throughput(records, count, out);
    if (!err) err = fill_peak_concurrency(records, count, out);
    return err ? err_set(eb, err, "figures of %zu requests: out of memory", count) : MOE_OK;
}
