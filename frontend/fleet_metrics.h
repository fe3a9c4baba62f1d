/* fleet_metrics: what the routers say of the workers and of experts that move, for /metrics.
 *
 * A thread asks every router once a second (Router.Stats).  While router 0 is away, gauges keep
 * what they were, and conclave:workers_ready is 0.  Counters of several routers are added up, and
 * go on rising when a router starts anew.
 *
 * Labels: worker (at most WORKER_MAX that are known now), layer, verdict.
 *
 * Threads: start and stop from one; the metrics' set must be shared with others only after start;
 * print from any.
 */
#ifndef MOE_FRONTEND_FLEET_METRICS_H
#define MOE_FRONTEND_FLEET_METRICS_H

#include "common/err.h"
#include "common/metrics.h"

typedef struct fleet_metrics fleet_metrics;

/* router_urls [router_count]; labels as metrics.h. */
moe_err fleet_metrics_start(fleet_metrics **out, const char *const *router_urls,
                            uint32_t router_count, metrics *m, const char *labels, errbuf *eb);
void fleet_metrics_stop(fleet_metrics *f); /* accepts NULL */

/* Append what has labels of its own: each worker's, each layer's, each verdict's. */
void fleet_metrics_print(fleet_metrics *f, strbuf *out);

#endif
