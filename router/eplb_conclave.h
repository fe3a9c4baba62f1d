/* eplb_conclave: the policy `conclave` (router/eplb_policy.h says what it does and why).
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_EPLB_CONCLAVE_H
#define MOE_ROUTER_EPLB_CONCLAVE_H

#include "router/eplb_policy.h"

/* in was checked; speeds [W] have the mean 1 over the workers with slots; *out is zero but for
 * next, an empty placement of the next fleet, which stays there if it is adopted, and is freed
 * otherwise.
 *   MOE_ENOMEM  */
moe_err eplb_conclave_decide(const eplb_input *in, const double *speeds, eplb_outcome *out,
                             errbuf *eb);

#endif
