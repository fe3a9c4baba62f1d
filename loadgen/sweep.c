#include "loadgen/sweep.h"

#include <math.h>
#include <stdlib.h>

#include "loadgen/json_writer.h"
#include "loadgen/plot.h"

/* Good by the time from which users count. */
static bool
is_good(const measure_config *config, const request_record *r)
{
    const double *slo = config->slo_ms;
    return r->completed && measure_meets(config, r) &&
           !(slo[METRIC_TTFT] > 0 && measure_request_ms(r, METRIC_SCHED_TTFT) > slo[METRIC_TTFT]) &&
           !(slo[METRIC_E2EL] > 0 && measure_request_ms(r, METRIC_SCHED_E2EL) > slo[METRIC_E2EL]);
}

sweep_point
sweep_point_of(const measure_config *config, const measure *m, const request_record *records,
               size_t count, double rate)
{
    const measure_stat *ttft = &m->stats[METRIC_SCHED_TTFT], *e2el = &m->stats[METRIC_SCHED_E2EL];
    if (rate == 0) { /* all were due at the start, so that there would be one at a time */
        ttft = &m->stats[METRIC_TTFT];
        e2el = &m->stats[METRIC_E2EL];
    }
    sweep_point p = {
        .rate = rate,
        .sent = count,
        .completed = m->completed,
        .failed = m->failed,
        .duration_s = m->duration_s,
        .request_throughput = m->request_throughput,
        .output_throughput = m->output_throughput,
        .median_ttft = ttft->median,
        .p99_ttft = ttft->p99,
        .median_tpot = m->stats[METRIC_TPOT].median,
        .p99_tpot = m->stats[METRIC_TPOT].p99,
        .median_e2el = e2el->median,
        .p99_e2el = e2el->p99,
        .mean_e2el = e2el->mean,
    };
    for (size_t i = 0; i < count; i++) {
        p.good += rate == 0 ? records[i].completed && measure_meets(config, &records[i])
                            : is_good(config, &records[i]);
    }
    p.goodput = m->duration_s > 0 ? (double)p.good / m->duration_s : 0;
    return p;
}

static bool
may_go_on(const sweep_config *c, const sweep_result *r)
{
    return r->count < c->point_max && r->count < SWEEP_POINTS_MAX;
}

/* A rate that does not hold gets a second chance. */
static moe_err
try_rate(const sweep_config *c, sweep_measure_fn measure_at, void *ctx, double rate,
         sweep_result *out, bool *holds, errbuf *eb)
{
    *holds = false;
    for (int i = 0; i < 2 && !*holds && may_go_on(c, out); i++) {
        sweep_point *p = &out->points[out->count];
        const moe_err err = measure_at(ctx, rate, (uint32_t)out->count + 1, p, eb);
        if (err) return err;
        out->count++;
        *holds = p->holds = p->sent > 0 && (double)p->good >= c->good_share * (double)p->sent;
    }
    if (!*holds) out->bounded = true;
    return MOE_OK;
}

moe_err
sweep_run(const sweep_config *c, sweep_measure_fn measure_at, void *ctx, sweep_result *out,
          errbuf *eb)
{
    *out = (sweep_result){0};
    moe_err err = measure_at(ctx, 0, 0, &out->idle, eb);
    if (err) return err;
    if (out->idle.completed == 0)
        return err_set(eb, MOE_EINVAL, "sweep: no request of the idle server completed");
    out->idle.holds = (double)out->idle.good >= c->good_share * (double)out->idle.sent;
    if (!out->idle.holds) { /* the limits are not to be met at any rate */
        out->bounded = true;
        return MOE_OK;
    }

    double rate = c->rate_first > 0 ? c->rate_first : 1e3 / fmax(out->idle.mean_e2el, 0.01);
    rate = fmin(rate, c->rate_max);
    double good = 0, bad = INFINITY;
    bool holds = true;
    while (holds && may_go_on(c, out)) {
        err = try_rate(c, measure_at, ctx, rate, out, &holds, eb);
        if (err) return err;
        *(holds ? &good : &bad) = rate;
        if (rate >= c->rate_max) break;
        rate = fmin(rate * c->growth, c->rate_max);
    }
    /* The first rate was a guess: when it broke, the answer may lie far below. */
    for (uint32_t i = 0; good == 0 && isfinite(bad) && i < 6 && may_go_on(c, out); i++) {
        err = try_rate(c, measure_at, ctx, bad / 2, out, &holds, eb);
        if (err) return err;
        *(holds ? &good : &bad) = bad / 2;
    }
    for (uint32_t i = 0; good > 0 && isfinite(bad) && i < c->refine && may_go_on(c, out); i++) {
        const double middle = sqrt(good * bad);
        err = try_rate(c, measure_at, ctx, middle, out, &holds, eb);
        if (err) return err;
        *(holds ? &good : &bad) = middle;
    }
    out->saturation = good;
    return MOE_OK;
}

/* ---- results ---- */

static void
print_point(const sweep_point *p, FILE *to)
{
    char rate[32] = "idle";
    if (p->rate > 0) snprintf(rate, sizeof rate, "%.3f", p->rate);
    fprintf(to, "%10s %8zu %7.1f%% %10.3f %10.3f %10.1f %10.1f %10.1f %10.2f %10.2f  %s%s\n", rate,
            p->sent, p->sent ? 100 * (double)p->good / (double)p->sent : 0, p->request_throughput,
            p->goodput, p->output_throughput, p->median_ttft, p->p99_ttft, p->median_tpot,
            p->p99_tpot, p->holds ? "holds" : "breaks", p->client_late ? " (client late)" : "");
}

static int
compare_points(const void *a, const void *b)
{
    const sweep_point *x = a, *y = b;
    return (x->rate > y->rate) - (x->rate < y->rate);
}

/* A copy of the points, by rate. */
static void
sort_points(const sweep_result *r, sweep_point *out)
{
    for (size_t i = 0; i < r->count; i++) {
        out[i] = r->points[i];
    }
    qsort(out, r->count, sizeof *out, compare_points);
}

void
sweep_print(const sweep_result *r, FILE *to)
{
    sweep_point sorted[SWEEP_POINTS_MAX];
    sort_points(r, sorted);
    fprintf(to, "%10s %8s %8s %10s %10s %10s %10s %10s %10s %10s\n", "req/s", "requests", "good",
            "done/s", "good/s", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99");
    print_point(&r->idle, to);
    for (size_t i = 0; i < r->count; i++) {
        print_point(&sorted[i], to);
    }
    if (!r->idle.holds)
        fprintf(to, "The limits don't hold on the idle server.\n");
    else if (r->saturation == 0)
        fprintf(to, "No rate held.\n");
    else
        fprintf(to, "Saturation: %.3f req/s%s\n", r->saturation,
                r->bounded ? "" : " or more: no rate that was tried broke the limits");
}

static void
write_point(json_writer *w, const sweep_point *p)
{
    json_open(w, '{');
    json_key_number(w, "request_rate", p->rate);
    json_key_number(w, "num_prompts", (double)p->sent);
    json_key_number(w, "completed", (double)p->completed);
    json_key_number(w, "failed", (double)p->failed);
    json_key_number(w, "good", (double)p->good);
    json_key_number(w, "duration", p->duration_s);
    json_key_number(w, "request_throughput", p->request_throughput);
    json_key_number(w, "request_goodput", p->goodput);
    json_key_number(w, "output_throughput", p->output_throughput);
    json_key_number(w, "median_ttft_ms", p->median_ttft);
    json_key_number(w, "p99_ttft_ms", p->p99_ttft);
    json_key_number(w, "median_tpot_ms", p->median_tpot);
    json_key_number(w, "p99_tpot_ms", p->p99_tpot);
    json_key_number(w, "median_e2el_ms", p->median_e2el);
    json_key_number(w, "p99_e2el_ms", p->p99_e2el);
    json_key_bool(w, "holds", p->holds);
    json_key_bool(w, "client_late", p->client_late);
    json_close(w, '}');
}

moe_err
sweep_write_json(const sweep_about *about, const sweep_result *r, FILE *to, errbuf *eb)
{
    static const char *const limits[] = {
        [METRIC_TTFT] = "ttft", [METRIC_TPOT] = "tpot", [METRIC_E2EL] = "e2el"};
    sweep_point sorted[SWEEP_POINTS_MAX];
    sort_points(r, sorted);
    json_writer w;
    json_writer_init(&w, to);
    json_open(&w, '{');
    json_key_text(&w, "date", about->date);
    json_key_text(&w, "backend", about->backend);
    json_key_text(&w, "model_id", about->model_id);
    json_key_text(&w, "dataset_name", about->dataset_name);
    json_key_number(&w, "seed", (double)about->seed);
    json_key(&w, "limits_ms");
    json_open(&w, '{');
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (limits[i] != NULL && about->limits->slo_ms[i] > 0)
            json_key_number(&w, limits[i], about->limits->slo_ms[i]);
    }
    json_close(&w, '}');
    json_key_number(&w, "good_share", about->config->good_share);
    json_key_number(&w, "seconds_per_rate", about->config->seconds);
    json_key_number(&w, "saturation_rate", r->saturation);
    json_key_bool(&w, "saturation_found", r->bounded);
    json_key(&w, "idle");
    write_point(&w, &r->idle);
    json_key(&w, "points");
    json_open(&w, '[');
    for (size_t i = 0; i < r->count; i++) {
        write_point(&w, &sorted[i]);
    }
    json_close(&w, ']');
    json_key_text(&w, "loadgen_version", CONCLAVE_VERSION);
    json_key(&w, "server");
    json_put_json(&w, about->server_json);
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}

/* ---- the picture ---- */

typedef struct columns {
    double rate[SWEEP_POINTS_MAX], done[SWEEP_POINTS_MAX], good[SWEEP_POINTS_MAX];
    double ttft_median[SWEEP_POINTS_MAX], ttft_p99[SWEEP_POINTS_MAX];
    double tpot_median[SWEEP_POINTS_MAX], tpot_p99[SWEEP_POINTS_MAX];
} columns;

/* Of a rate that was tried twice, the try that did better; returns how many rates there are. */
static size_t
fill_columns(const sweep_result *r, columns *out)
{
    sweep_point sorted[SWEEP_POINTS_MAX];
    size_t n = 0;
    sort_points(r, sorted);
    for (size_t i = 0; i < r->count; i++) {
        const sweep_point *p = &sorted[i];
        const bool again = n > 0 && out->rate[n - 1] == p->rate;
        if (again && out->good[n - 1] >= p->goodput) continue;
        const size_t at = again ? n - 1 : n++;
        out->rate[at] = p->rate;
        out->done[at] = p->request_throughput;
        out->good[at] = p->goodput;
        out->ttft_median[at] = p->median_ttft;
        out->ttft_p99[at] = p->p99_ttft;
        out->tpot_median[at] = p->median_tpot;
        out->tpot_p99[at] = p->p99_tpot;
    }
    return n;
}

static void
add_line(plot_panel *p, const char *name, const double *x, const double *y, size_t count)
{
    p->lines[p->line_count++] = (plot_line){.name = name, .x = x, .y = y, .count = count};
}

static void
add_level(plot_panel *p, const char *name, double at, bool vertical)
{
    if (!(at > 0)) return;
    p->levels[p->level_count++] = (plot_level){.name = name, .at = at, .vertical = vertical};
}

moe_err
sweep_write_svg(const sweep_about *about, const sweep_result *r, FILE *to, errbuf *eb)
{
    static const char x_label[] = "request rate (requests/s)";
    columns c;
    const size_t count = fill_columns(r, &c);
    plot_panel panels[3] = {
        {.title = "Requests per second", .x_label = x_label, .y_label = "requests/s"},
        {.title = "Time to first token, from the scheduled time",
         .x_label = x_label,
         .y_label = "ms",
         .log_y = true},
        {.title = "Time per output token", .x_label = x_label, .y_label = "ms", .log_y = true},
    };
    add_line(&panels[0], "completed", c.rate, c.done, count);
    add_line(&panels[0], "within limits", c.rate, c.good, count);
    add_line(&panels[1], "median", c.rate, c.ttft_median, count);
    add_line(&panels[1], "p99", c.rate, c.ttft_p99, count);
    add_line(&panels[2], "median", c.rate, c.tpot_median, count);
    add_line(&panels[2], "p99", c.rate, c.tpot_p99, count);
    for (int i = 0; i < 3; i++) {
        add_level(&panels[i], "saturation", r->saturation, true);
    }
    add_level(&panels[1], "limit", about->limits->slo_ms[METRIC_TTFT], false);
    add_level(&panels[1], "idle median", r->idle.median_ttft, false);
    add_level(&panels[2], "limit", about->limits->slo_ms[METRIC_TPOT], false);
    add_level(&panels[2], "idle median", r->idle.median_tpot, false);
    char title[256];
    snprintf(title, sizeof title, "%s, %s, %s", about->backend, about->model_id,
             about->dataset_name);
    plot_write(title, panels, 3, to);
    return fflush(to) != 0 || ferror(to) ? err_set(eb, MOE_EIO, "plot: can't write") : MOE_OK;
}
