/* move_stage: how far a change of placement can go at once.
 *
 * Until a new placement is adopted, workers host what the old one and the new one name.  Where
 * their memory does not hold both, the change is made in stages: each loads as many of the target's
 * experts as there is room for, lowest first, and what becomes free gives room to the next.  An
 * expert keeps its old hosts until all its new ones have it.
 *
 * Full workers that are to exchange experts wait for each other.  Then one of them gives up a copy
 * that has others, or, if there is none, hands an expert to any worker that has room, from where it
 * goes on to its new host later: one free slot in the whole fleet is enough, whoever has it.  Every
 * expert has a host at any time.
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_MOVE_STAGE_H
#define MOE_ROUTER_MOVE_STAGE_H

#include "router/membership.h"

/* The next stage on the way to the target, with what is hosted now.  Repeated with what is hosted
 * then, it ends with the target.  Workers that are not ready have no slots in what is not the
 * target.  *last: it is the target itself.
 *   expert_bytes  of one expert; 0: memory is not looked at
 *   *out          owned, indexed; NULL on an error
 *   MOE_ENOMEM    workers are full and none has room for one expert more; the text names the bytes,
 *                 or no memory here  */
moe_err move_stage_make(placement **out, const fleet_view *v, const placement *target,
                        uint64_t expert_bytes, bool *last, errbuf *eb);

#endif
