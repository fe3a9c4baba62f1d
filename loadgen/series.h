/* series: what happened in each second of a run.
 *
 * Seconds are counted from the first sending; every request counts, whatever trimming does to the
 * figures.  Longer runs than SERIES_POINTS_MAX seconds get wider intervals.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_SERIES_H
#define MOE_LOADGEN_SERIES_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "loadgen/record.h"

#define SERIES_POINTS_MAX 7200

typedef struct series_point {
    uint32_t due, sent, completed, failed; /* requests with that time in the interval */
    uint32_t in_flight;                    /* the most at one time within the interval */
    uint32_t first_tokens;                 /* first chunks that arrived */
    double output_tokens;                  /* a request's tokens count as spread over its chunks */
    /* Of the completed requests that were due in the interval, in ms; the sums of nothing are 0. */
    uint32_t measured;
    double ttft_sum, sched_ttft_sum, sched_ttft_max;
} series_point;

typedef struct series {
    series_point *points; /* [count] */
    size_t count;
    uint64_t start_ns, interval_ns;
} series;

/* An empty series when nothing was sent.  Release with series_fini().   MOE_ENOMEM */
moe_err series_build(const request_record *records, size_t count, series *out, errbuf *eb);
void series_fini(series *s);

#endif
