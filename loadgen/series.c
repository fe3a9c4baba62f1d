#include "loadgen/series.h"

#include <math.h>
#include <stdlib.h>

#include "common/clock.h"
#include "loadgen/measure.h"

void
series_fini(series *s)
{
    free(s->points);
    *s = (series){0};
}

/* The point of a time; times before the first sending (a schedule's) belong to the first. */
static series_point *
point_at(series *s, uint64_t ns)
{
    size_t i = ns > s->start_ns ? (size_t)((ns - s->start_ns) / s->interval_ns) : 0;
    if (i >= s->count) i = s->count - 1;
    return &s->points[i];
}

static bool
place(const request_record *records, size_t count, series *s)
{
    uint64_t first = UINT64_MAX, last = 0;
    for (size_t i = 0; i < count; i++) {
        if (records[i].send_ns == 0) continue;
        if (records[i].send_ns < first) first = records[i].send_ns;
        if (records[i].end_ns > last) last = records[i].end_ns;
    }
    if (first == UINT64_MAX) return false;
    const uint64_t seconds = (last > first ? last - first : 0) / NS_PER_S + 1;
    const uint64_t width = (seconds + SERIES_POINTS_MAX - 1) / SERIES_POINTS_MAX;
    s->start_ns = first;
    s->interval_ns = width * NS_PER_S;
    s->count = (size_t)((seconds + width - 1) / width);
    return true;
}

static void
enter(series *s, const request_record *r)
{
    series_point *due = point_at(s, r->scheduled_ns);
    due->due++;
    if (r->send_ns != 0) point_at(s, r->send_ns)->sent++;
    if (!r->completed) {
        point_at(s, r->end_ns)->failed++;
        return;
    }
    point_at(s, r->end_ns)->completed++;
    point_at(s, r->chunk_ns[0])->first_tokens++;
    for (size_t j = 0; j < r->chunk_count; j++) {
        point_at(s, r->chunk_ns[j])->output_tokens +=
            (double)r->output_tokens / (double)r->chunk_count;
    }
    const double sched_ttft = measure_request_ms(r, METRIC_SCHED_TTFT);
    due->measured++;
    due->ttft_sum += measure_request_ms(r, METRIC_TTFT);
    due->sched_ttft_sum += sched_ttft;
    due->sched_ttft_max = fmax(due->sched_ttft_max, sched_ttft);
}

typedef struct change {
    uint64_t at_ns;
    int by;
} change;

/* An end comes before a start at the same time: one made room for the other. */
static int
compare_changes(const void *a, const void *b)
{
    const change *x = a, *y = b;
    if (x->at_ns != y->at_ns) return x->at_ns < y->at_ns ? -1 : 1;
    return x->by - y->by;
}

static moe_err
count_in_flight(series *s, const request_record *records, size_t count)
{
    change *changes = malloc((2 * count + 1) * sizeof *changes);
    if (changes == NULL) return MOE_ENOMEM;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (records[i].send_ns == 0) continue;
        changes[n++] = (change){.at_ns = records[i].send_ns, .by = 1};
        changes[n++] = (change){.at_ns = records[i].end_ns, .by = -1};
    }
    qsort(changes, n, sizeof *changes, compare_changes);
    size_t next = 0;
    int64_t active = 0;
    for (size_t p = 0; p < s->count; p++) {
        int64_t most = active;
        while (next < n && point_at(s, changes[next].at_ns) == &s->points[p]) {
            active += changes[next++].by;
            if (active > most) most = active;
        }
        s->points[p].in_flight = (uint32_t)most;
    }
    free(changes);
    return MOE_OK;
}

moe_err
series_build(const request_record *records, size_t count, series *out, errbuf *eb)
{
    *out = (series){0};
    if (!place(records, count, out)) return MOE_OK;
    out->points = calloc(out->count, sizeof *out->points);
    moe_err err = out->points ? MOE_OK : MOE_ENOMEM;
    for (size_t i = 0; !err && i < count; i++) {
        enter(out, &records[i]);
    }
    if (!err) err = count_in_flight(out, records, count);
    if (!err) return MOE_OK;
    series_fini(out);
    return err_set(eb, err, "time series: out of memory");
}
