/* measure: from the records of a run to its figures.
 *
 * The figures, in words.  Only completed requests enter them (record.h says when a request is
 * completed); failed ones are counted, and never as a time of 0.
 *
 *   TTFT         arrival of the first chunk of tokens - sending of the request
 *   E2EL         arrival of the last chunk - sending of the request
 *   TPOT         (E2EL - TTFT) / (output tokens - 1); one value per request, only of requests
 *                with more than one output token
 *   ITL          gaps between successive chunks of a request, the first being between its first
 *                and second chunk; the gaps of all requests pooled
 *   scheduled TTFT, scheduled E2EL
 *                the same two from the time when the schedule wanted the request sent.  Where they
 *                exceed TTFT and E2EL, requests queued in the client (a full --max-concurrency, a
 *                busy machine), and the plain figures alone would hide that wait
 *   duration     last end of a completed request - first sending of any (of failed requests' ends
 *                when none completed)
 *   request throughput     completed requests / duration
 *   input, output throughput
 *                input or output tokens of completed requests / duration; total is their sum
 *   goodput      completed requests that meet every given limit / duration.  A request with one
 *                output token has no TPOT and meets any limit on it
 *   peak output throughput the most output tokens within one of the whole seconds after the first
 *                sending; a request's tokens count as spread evenly over its chunks
 *   peak concurrency       the most requests in flight at one time, failed ones included
 *   rejected     failed requests that were answered 429
 *   client lag   sending - the time at which the request was due and a place for it was free; of
 *                every request that was sent.  It is the generator's own fault, and not the
 * server's window       with trimming: from first sending + warm-up to last end - cool-down.
 * Requests sent outside of it are left out of every count, distribution and rate above but the
 *                peaks; the figures are those of a run of the others alone.  Requests that were
 *                never sent can't be placed and stay
 *   steady request, output throughput
 *                completed requests that ended within the window, and output tokens that arrived
 *                within it (a request's tokens spread over its chunks), whenever they were sent,
 *                / the window's length
 *   percentile p linear interpolation between the two values around rank p/100 * (n - 1)
 *   std          of the population
 *
 * Output tokens are what the server's usage says; input tokens likewise, or the data set's count
 * where the usage is silent.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_MEASURE_H
#define MOE_LOADGEN_MEASURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "loadgen/dataset.h"
#include "loadgen/histogram.h"
#include "loadgen/record.h"

#define MEASURE_PERCENTILES_MAX 16

typedef enum metric {
    METRIC_TTFT,
    METRIC_TPOT,
    METRIC_ITL,
    METRIC_E2EL,
    METRIC_SCHED_TTFT,
    METRIC_SCHED_E2EL,
    METRIC_LAG,
    METRIC_COUNT
} metric;

/* A distribution in ms; every figure is NaN when it has no values. */
typedef struct measure_stat {
    size_t count;
    double mean, median, std, p99, min, max;
    double percentiles[MEASURE_PERCENTILES_MAX]; /* in the order asked for */
} measure_stat;

typedef struct measure_config {
    double percentiles[MEASURE_PERCENTILES_MAX]; /* each within 0..100 */
    size_t percentile_count;
    double slo_ms[METRIC_COUNT];     /* limits for goodput (TTFT, TPOT, E2EL); 0 = none */
    double trim_start_s, trim_end_s; /* warm-up and cool-down to leave out */
    double
        hold_s; /* the window ends no later than this after the first sending; 0 = no such limit */
} measure_config;

typedef struct measure {
    size_t completed, failed, rejected;
    int64_t input_tokens, output_tokens;
    double duration_s;
    double request_throughput, input_throughput, output_throughput, total_throughput;
    double goodput; /* NaN when no limit was given */
    double peak_output_throughput;
    size_t peak_concurrency;
    uint64_t first_send_ns;                  /* of all; 0 = nothing was sent */
    bool trimmed;                            /* the window is less than all */
    uint64_t window_start_ns, window_end_ns; /* sendings that count, both included */
    size_t excluded;                         /* requests outside of the window */
    double steady_request_throughput, steady_output_throughput; /* NaN unless trimmed */
    measure_stat stats[METRIC_COUNT];
} measure;

/* Linear interpolation; sorted [n], ascending; 0 <= p <= 100.  NaN when n is 0. */
double measure_percentile(const double *sorted, size_t n, double p);

/* prompts [count] and records [count] of one run, in the same order.
 *   MOE_ENOMEM  */
moe_err measure_run(const measure_config *config, const prompt *prompts,
                    const request_record *records, size_t count, measure *out, errbuf *eb);

/* Does the request count, by the window of m?  A function of measure_run()'s output. */
bool measure_is_within(const measure *m, const request_record *record);

/* Enter the values behind m.stats into out [METRIC_COUNT], which is not emptied first. */
void measure_fill_histograms(const measure *m, const request_record *records, size_t count,
                             histogram *out);

/* Does a completed request meet every limit? */
bool measure_meets(const measure_config *config, const request_record *record);

/* Of one completed request (LAG: a sent one), in ms; NaN when it has none (TPOT of a single token).
 * Not for ITL. */
double measure_request_ms(const request_record *record, metric which);

/* Input tokens of a request: the usage's count, else the data set's, else 0. */
int64_t measure_input_tokens(const prompt *p, const request_record *record);

#endif
