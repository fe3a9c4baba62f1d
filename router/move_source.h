/* move_source: whom a worker is to copy each expert from that it is to host.
 *
 * Of the workers that host an expert, one of the same host comes first: its bytes travel through
 * memory.  Among equals the one that has been chosen least goes next, so that no worker has to give
 * everything.  Whether a worker is asked at all is the target's decision (expert_worker/moves.h).
 *
 * Threads: plain data; one owner.
 */
#ifndef MOE_ROUTER_MOVE_SOURCE_H
#define MOE_ROUTER_MOVE_SOURCE_H

#include "router/membership.h"

/* What HostRequest says of peers; URLs are borrowed from the view. */
typedef struct move_offer {
    char *urls[WORKER_MAX];
    size_t url_count;
    uint32_t *peer_of; /* [count] index into urls + 1; 0: nobody has it */
} move_offer;

/* For experts ids [count] that `worker` is to load.
 *   chosen  [WORKER_MAX] how often each worker was chosen so far; counted up
 *   MOE_ENOMEM  */
moe_err move_offer_init(move_offer *out, const fleet_view *v, uint32_t worker, const uint32_t *ids,
                        size_t count, uint32_t *chosen, errbuf *eb);
void move_offer_fini(move_offer *o);

#endif
