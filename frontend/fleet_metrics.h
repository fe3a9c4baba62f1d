/* fleet_metrics: what the router says of its workers and of experts that move, for /metrics.
 *
 * A thread asks the router once a second (Router.Stats).  While the router is away, gauges keep
 * what they were, and conclave:workers_ready is 0.
 *
 * Threads: start and stop from one; the metrics' set must be shared with others only after start.
 */
#ifndef MOE_FRONTEND_FLEET_METRICS_H
#define MOE_FRONTEND_FLEET_METRICS_H

#include "common/err.h"
#include "common/metrics.h"

typedef struct fleet_metrics fleet_metrics;

/* labels as metrics.h. */
moe_err fleet_metrics_start(fleet_metrics **out, const char *router_url, metrics *m,
                            const char *labels, errbuf *eb);
void fleet_metrics_stop(fleet_metrics *f); /* accepts NULL */

#endif
