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
    assert(r->completed && r->chunk_count > 0);
    switch (which) {
    case METRIC_TTFT: return ms_since(r->send_ns, r->chunk_ns[0]);
    case METRIC_E2EL: return ms_since(r->send_ns, r->last_ns);
    case METRIC_SCHED_TTFT: return ms_since(r->scheduled_ns, r->chunk_ns[0]);
    case METRIC_SCHED_E2EL: return ms_since(r->scheduled_ns, r->last_ns);
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
    for (size_t i = 0; i < config->percentile_count; i++) {
        out->percentiles[i] = measure_percentile(values, n, config->percentiles[i]);
    }
}

/* Writes the metric's values to values and returns how many; with values NULL it only counts. */
static size_t
gather(const request_record *records, size_t count, metric which, double *values)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (!r->completed) continue;
        if (which == METRIC_ITL) {
            for (size_t j = 1; j < r->chunk_count; j++, n++) {
                if (values) values[n] = ms_since(r->chunk_ns[j - 1], r->chunk_ns[j]);
            }
        } else if (which != METRIC_TPOT || r->output_tokens > 1) {
            if (values) values[n] = measure_request_ms(r, which);
            n++;
        }
    }
    return n;
}

static moe_err
fill_stats(const measure_config *config, const request_record *records, size_t count, measure *out)
{
    for (metric which = 0; which < METRIC_COUNT; which++) {
        const size_t n = gather(records, count, which, NULL);
        double *values = malloc((n + 1) * sizeof *values);
        if (values == NULL) return MOE_ENOMEM;
        gather(records, count, which, values);
        summarize(config, values, n, &out->stats[which]);
        free(values);
    }
    return MOE_OK;
}

static void
fill_duration(const request_record *records, size_t count, measure *out)
{
    uint64_t first = UINT64_MAX, last_completed = 0, last_any = 0;
    for (size_t i = 0; i < count; i++) {
        const request_record *r = &records[i];
        if (r->send_ns == 0) continue;
        if (r->send_ns < first) first = r->send_ns;
        if (r->end_ns > last_any) last_any = r->end_ns;
        if (r->completed && r->end_ns > last_completed) last_completed = r->end_ns;
    }
    if (first == UINT64_MAX) return;
    out->first_send_ns = first;
    out->duration_s = ms_since(first, last_completed ? last_completed : last_any) / 1e3;
}

static bool
meets(const measure_config *config, const request_record *r)
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
        if (!r->completed) {
            out->failed++;
            if (r->http_status == 429) out->rejected++;
            continue;
        }
        out->completed++;
        out->input_tokens += measure_input_tokens(&prompts[i], r);
        out->output_tokens += r->output_tokens;
        if (meets(config, r)) good++;
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

static moe_err
fill_peak_throughput(const request_record *records, size_t count, measure *out)
{
    if (!(out->duration_s < PEAK_SECONDS_MAX)) return MOE_OK; /* no run; half a year */
    const size_t seconds = (size_t)out->duration_s + 1;
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
    fill_duration(records, count, out);
    fill_counts(config, prompts, records, count, out);
    moe_err err = fill_stats(config, records, count, out);
    if (!err) err = fill_peak_throughput(records, count, out);
    if (!err) err = fill_peak_concurrency(records, count, out);
    return err ? err_set(eb, err, "figures of %zu requests: out of memory", count) : MOE_OK;
}
