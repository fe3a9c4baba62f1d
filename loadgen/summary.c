#include "loadgen/summary.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/json_writer.h"
#include "loadgen/report_impl.h"

moe_err
summary_init(summary *s, size_t run_max, errbuf *eb)
{
    assert(run_max >= 1 && run_max <= REPEATS_MAX);
    *s = (summary){.run_max = run_max};
    s->values = malloc(SUMMARY_FIGURES_MAX * run_max * sizeof *s->values);
    s->histograms = calloc(METRIC_COUNT, sizeof *s->histograms);
    return s->values && s->histograms ? MOE_OK : err_set(eb, MOE_ENOMEM, "summary: out of memory");
}

void
summary_fini(summary *s)
{
    free(s->values);
    free(s->histograms);
    *s = (summary){0};
}

/* Figures come in the same order for each run, so the first run names them. */
static void
enter(summary *s, size_t *at, const char *name, double value)
{
    const size_t i = (*at)++;
    assert(i < SUMMARY_FIGURES_MAX);
    if (i == s->figure_count) snprintf(s->names[s->figure_count++], sizeof s->names[0], "%s", name);
    s->values[i * s->run_max + s->count] = value;
}

static void
enter_stat(summary *s, size_t *at, metric which, const measure_stat *stat)
{
    const struct {
        const char *name;
        double value;
    } parts[] = {{"mean", stat->mean}, {"median", stat->median}, {"p99", stat->p99}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[40];
        snprintf(name, sizeof name, "%s_%s_ms", parts[i].name, report_metric_key(which));
        enter(s, at, name, parts[i].value);
    }
}

void
summary_add(summary *s, const measure *m, const histogram *histograms)
{
    assert(s->count < s->run_max);
    size_t at = 0;
    enter(s, &at, "completed", (double)m->completed);
    enter(s, &at, "failed", (double)m->failed);
    enter(s, &at, "duration", m->duration_s);
    enter(s, &at, "request_throughput", m->request_throughput);
    enter(s, &at, "request_goodput", m->goodput);
    enter(s, &at, "output_throughput", m->output_throughput);
    enter(s, &at, "total_token_throughput", m->total_throughput);
    enter(s, &at, "steady_request_throughput", m->steady_request_throughput);
    enter(s, &at, "steady_output_throughput", m->steady_output_throughput);
    for (metric which = 0; which < METRIC_COUNT; which++) {
        enter_stat(s, &at, which, &m->stats[which]);
        histogram_merge(&s->histograms[which], &histograms[which]);
    }
    s->count++;
}

static repeats_stat
stat_of(const summary *s, size_t figure)
{
    return repeats_summarize(s->values + figure * s->run_max, s->count);
}

bool
summary_find(const summary *s, const char *name, repeats_stat *out)
{
    for (size_t i = 0; i < s->figure_count; i++) {
        if (strcmp(s->names[i], name) != 0) continue;
        *out = stat_of(s, i);
        return true;
    }
    return false;
}

void
summary_print(const summary *s, FILE *to)
{
    fprintf(to, "%-28s %12s %12s %12s %12s %12s   (%zu runs)\n", "", "mean", "+- 95 %", "median",
            "min", "max", s->count);
    for (size_t i = 0; i < s->figure_count; i++) {
        const repeats_stat v = stat_of(s, i);
        if (v.count == 0) continue;
        fprintf(to, "%-28s %12.3f %12.3f %12.3f %12.3f %12.3f\n", s->names[i], v.mean, v.ci95,
                v.median, v.min, v.max);
    }
}

moe_err
summary_write_json(const summary *s, FILE *to, errbuf *eb)
{
    static const double shown[] = {50, 90, 95, 99, 99.9};
    json_writer w;
    json_writer_init(&w, to);
    json_open(&w, '{');
    json_key_number(&w, "repeats", (double)s->count);
    json_key(&w, "figures");
    json_open(&w, '{');
    for (size_t i = 0; i < s->figure_count; i++) {
        const repeats_stat v = stat_of(s, i);
        json_key(&w, s->names[i]);
        json_open(&w, '{');
        json_key_number(&w, "n", (double)v.count);
        json_key_number(&w, "mean", v.mean);
        json_key_number(&w, "ci95", v.ci95);
        json_key_number(&w, "median", v.median);
        json_key_number(&w, "std", v.std);
        json_key_number(&w, "min", v.min);
        json_key_number(&w, "max", v.max);
        json_key(&w, "values");
        json_open(&w, '[');
        for (size_t j = 0; j < s->count; j++) {
            json_put_number(&w, s->values[i * s->run_max + j]);
        }
        json_close(&w, ']');
        json_close(&w, '}');
    }
    json_close(&w, '}');
    json_key(&w, "pooled");
    json_open(&w, '{');
    for (metric which = 0; which < METRIC_COUNT; which++) {
        json_key(&w, report_metric_key(which));
        json_open(&w, '{');
        json_key_number(&w, "count", (double)s->histograms[which].count);
        for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
            char name[16];
            snprintf(name, sizeof name, "p%g_ms", shown[i]);
            json_key_number(&w, name, histogram_percentile_ms(&s->histograms[which], shown[i]));
        }
        json_close(&w, '}');
    }
    json_close(&w, '}');
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}
