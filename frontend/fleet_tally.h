/* fleet_tally: figures of a fleet that have labels of their own, gathered from the routers'
 * statistics and printed for Prometheus.
 *
 * Each router counts the rows that a worker computed for it.  The tally adds up what they grew by,
 * so that it goes on rising when a router starts anew.
 *
 * Threads: one at a time.
 */
#ifndef MOE_FRONTEND_FLEET_TALLY_H
#define MOE_FRONTEND_FLEET_TALLY_H

#include "conclave.pb-c.h"

#include "common/err.h"
#include "common/strbuf.h"

#define FLEET_TALLY_LAYERS_MAX 4096u

typedef struct fleet_tally fleet_tally;

/* labels: of every sample, `model_name="demo"`, or NULL; borrowed.  MOE_ENOMEM. */
moe_err fleet_tally_create(fleet_tally **out, uint32_t router_count, const char *labels,
                           errbuf *eb);
void fleet_tally_free(fleet_tally *t); /* accepts NULL */

/* Take in a router's statistics.  Router 0's say which workers there are.  Ids that are none are
 * left out. */
void fleet_tally_take(fleet_tally *t, uint32_t router, const Conclave__RouterStats *s);

void fleet_tally_print(const fleet_tally *t, strbuf *out);

#endif
