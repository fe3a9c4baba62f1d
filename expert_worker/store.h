/* store: the packed weights of the experts this worker hosts, in equal slots.
 *
 * A worker hosts what the router tells it: whole experts (EP), or its slice of every expert (TP).
 * Slots are packed straight from the mapped checkpoint, so that only the hosted experts' bytes are
 * read and no second copy exists; or they are read, packed, from a cache of an earlier start
 * (model/weight_load.h).
 *
 * Threads: create in one thread; afterwards immutable and readable from any.
 */
#ifndef MOE_EXPERT_WORKER_STORE_H
#define MOE_EXPERT_WORKER_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/pool.h"
#include "model/weight_load.h"

typedef struct expert_store expert_store;

/* Pack experts [count] (layer * E + expert, rising) with the pool's threads.  A load of minutes is
 * given up once *cancel is true; cancel may be NULL.
 *   MOE_EINVAL   an id is out of range or repeated, or a weight is not finite
 *   MOE_ENOMEM   the slots don't fit; the text names the bytes
 *   MOE_ECLOSED  cancelled  */
moe_err expert_store_create(expert_store **out, const checkpoint *c, const expert_layout *layout,
                            const uint32_t *experts, uint32_t count, pool *p,
                            const _Atomic bool *cancel, errbuf *eb);

/* The same, with a cache of packed weights.  What it lacks is written to it by a thread of the
 * store, until all of it is there or the store is freed. */
moe_err expert_store_load(expert_store **out, const checkpoint *c, weight_cache cache,
                          const expert_layout *layout, const uint32_t *experts, uint32_t count,
                          pool *p, const _Atomic bool *cancel, errbuf *eb);
void expert_store_free(expert_store *s); /* accepts NULL */

/* The slot of an expert, 64-byte aligned (expert_layout); NULL if it is not hosted. */
const char *expert_store_slot(const expert_store *s, uint32_t layer, uint32_t expert);
const expert_layout *expert_store_layout(const expert_store *s);
uint32_t expert_store_count(const expert_store *s);
uint64_t expert_store_bytes(const expert_store *s);

/* Until the cache has everything, or the attempt has failed. */
void expert_store_wait_cached(expert_store *s);

#endif
