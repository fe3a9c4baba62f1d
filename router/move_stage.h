/* move_stage: how far a change of placement can go at once.
 *
 * Until a new placement is adopted, workers host what the old one and the new one name.  Where
 * their memory does not hold both, the change is made in stages: some layers are those of the
 * target, the others stay, and after each stage what it freed gives room to the next.
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_MOVE_STAGE_H
#define MOE_ROUTER_MOVE_STAGE_H

#include "router/membership.h"

/* The most layers of the target, lowest first, that memory holds beside what is hosted now.  Layers
 * that stay have no slots on workers that are not ready.  *last: it is the whole target.
 *   expert_bytes  of one expert; 0: memory is not looked at
 *   *out          owned, indexed; NULL on an error
 *   MOE_ENOMEM    memory does not hold one more layer; the text names the bytes  */
moe_err move_stage_make(placement **out, const fleet_view *v, const placement *target,
                        uint64_t expert_bytes, bool *last, errbuf *eb);

#endif
