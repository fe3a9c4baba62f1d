/* sweep: find the highest rate that a server sustains within its limits.
 *
 * First one request at a time: the idle latency.  Then rates that grow by a factor each, from
 * rate_first (0 = as many as the idle server finishes one after another), until one breaks; then
 * rates between the last that held and the first that broke, halving the gap in proportion.
 *
 * A rate holds when at least good_share of its requests completed and met every limit, with TTFT
 * and E2EL taken from the time at which a request was due: a request that waited in the client
 * waited too.  A rate breaks when it did so twice: other work on the machine must not decide.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_SWEEP_H
#define MOE_LOADGEN_SWEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "loadgen/measure.h"

#define SWEEP_POINTS_MAX 64

typedef struct sweep_config {
    double rate_first, rate_max; /* requests/s; rate_first 0 = from the idle latency */
    double growth;               /* > 1 */
    double good_share;           /* 0..1 */
    uint32_t refine;             /* rates tried after the first that broke */
    uint32_t point_max;          /* rates tried in all, at most SWEEP_POINTS_MAX */
    double seconds;              /* how long each is held; for whoever measures */
} sweep_config;

/* What was seen at one rate.  Times in ms, NaN when nothing completed. */
typedef struct sweep_point {
    double rate; /* 0 = idle: one request at a time */
    size_t sent, completed, failed, good;
    double duration_s, request_throughput, output_throughput, goodput;
    double median_ttft, p99_ttft, median_tpot, p99_tpot, median_e2el, p99_e2el, mean_e2el;
    bool holds;
    bool client_late; /* the generator was too slow: the point says little */
} sweep_point;

typedef struct sweep_result {
    sweep_point idle;
    sweep_point points[SWEEP_POINTS_MAX]; /* [count], in the order they were tried */
    size_t count;
    double saturation; /* the highest rate that held; 0 = not even the first */
    bool bounded;      /* some higher rate broke: the saturation was found, not just a limit met */
} sweep_result;

/* Measure one rate (0 = idle) into *out, all but `holds`.  step counts the calls, from 0. */
typedef moe_err (*sweep_measure_fn)(void *ctx, double rate, uint32_t step, sweep_point *out,
                                    errbuf *eb);

/*   MOE_EINVAL  no request of the idle step completed; and what `measure` returns.  *out holds what
 * was measured until then. */
moe_err sweep_run(const sweep_config *config, sweep_measure_fn measure_at, void *ctx,
                  sweep_result *out, errbuf *eb);

/* The point that records show. */
sweep_point sweep_point_of(const measure_config *config, const measure *m,
                           const request_record *records, size_t count, double rate);

/* Points by rate, a row each. */
void sweep_print(const sweep_result *r, FILE *to);

/* What a result file says about where it comes from. */
typedef struct sweep_about {
    const char *date, *backend, *model_id, *dataset_name;
    const char *server_json; /* or NULL */
    uint64_t seed;
    const measure_config *limits;
    const sweep_config *config;
} sweep_about;

/*   MOE_EIO, MOE_ENOMEM */
moe_err sweep_write_json(const sweep_about *about, const sweep_result *r, FILE *to, errbuf *eb);
/* A picture: throughput and goodput, and latencies with their limits, against the rate. */
moe_err sweep_write_svg(const sweep_about *about, const sweep_result *r, FILE *to, errbuf *eb);

#endif
