/* load_pool: the load of the routers that follow, beside router 0's own (load_feed.h).
 *
 * Each follower keeps a window of its own steps and tells its sums with Router.Fleet.  Placement is
 * decided by the sum over all routers: of each the last window_size steps of its own.  Who has not
 * asked for FOLLOWER_TIMEOUT_MS does not count; nor does what was told in an earlier life.
 *
 *   L layers   E experts
 *
 * Threads: any.
 */
#ifndef MOE_ROUTER_LOAD_POOL_H
#define MOE_ROUTER_LOAD_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "conclave.pb-c.h"

#include "common/err.h"

typedef struct load_pool load_pool;

typedef struct load_pool_config {
    uint32_t num_layers, num_experts;
    uint32_t step_interval;
    _Atomic uint32_t *bell; /* bumped when it is time to look; NULL: none */
} load_pool_config;

/*   MOE_ERANGE  L * E is 0 or above ROUTING_CELLS_MAX
 *   MOE_ENOMEM  */
moe_err load_pool_create(load_pool **out, const load_pool_config *config, errbuf *eb);
void load_pool_free(load_pool *p); /* accepts NULL */

/* What a follower says of its load; it may say nothing new.  router_id: 1 .. ROUTER_MAX - 1.
 *   MOE_EINVAL  other than L * E counts, a window above ROUTING_WINDOW_MAX, or a count that none
 *               can have; nothing is kept of it
 *   MOE_ENOMEM  */
moe_err load_pool_note(load_pool *p, const Conclave__FleetRequest *request, errbuf *eb);

/* Add the windows of all followers that are there to rows [L * E].  Returns the steps of the
 * longest one, or window_steps, of what is in rows already, if that is longer. */
uint32_t load_pool_add(load_pool *p, uint64_t *rows, uint32_t window_steps);

/* Has a follower made twice step_interval steps since somebody last looked (looked())?  Router 0's
 * own steps set the pace; this is for when it has none. */
bool load_pool_is_due(load_pool *p);
void load_pool_looked(load_pool *p);

#endif
