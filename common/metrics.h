/* metrics: counters, gauges and histograms, printed as Prometheus text.
 *
 * A program registers its metrics once, at start; adding to one later is lock-free.  Names are
 * vLLM's where vLLM has the figure ("vllm:num_requests_running"), "conclave:..." otherwise.
 *
 * Threads: register from one thread, before others use the set; everything else from any thread.
 */
#ifndef MOE_COMMON_METRICS_H
#define MOE_COMMON_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/strbuf.h"

#define METRICS_MAX 1024
#define METRIC_BUCKETS_MAX 32

typedef struct metrics metrics;
typedef struct metric metric;

moe_err metrics_create(metrics **out);
void metrics_free(metrics *m);

/* name, help and labels (`model="demo"`, or NULL) are borrowed for the set's life.  One name may be
 * registered several times with different labels, one after the other.  NULL when METRICS_MAX are
 * registered. */
metric *metrics_counter(metrics *m, const char *name, const char *labels, const char *help);
metric *metrics_gauge(metrics *m, const char *name, const char *labels, const char *help);
/* bounds [count]: rising upper bounds, without +Inf; count <= METRIC_BUCKETS_MAX; borrowed. */
metric *metrics_histogram(metrics *m, const char *name, const char *labels, const char *help,
                          const double *bounds, size_t count);

/* m == NULL is allowed and does nothing, so that modules work without metrics. */
void metric_add(metric *m, double value);     /* counter, gauge */
void metric_set(metric *m, double value);     /* gauge */
void metric_observe(metric *m, double value); /* histogram */
double metric_value(const metric *m);         /* counter, gauge; histogram: its count */

/* Append the whole set in Prometheus' text format. */
void metrics_print(const metrics *m, strbuf *out);

#endif
