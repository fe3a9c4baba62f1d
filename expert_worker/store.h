/* store: the packed weights of the experts this worker hosts, in equal slots.
 *
 * A worker hosts what the router tells it: whole experts (EP), or its slice of every expert (TP).
 * Slots are packed straight from the mapped checkpoint, so that only the hosted experts' bytes are
 * read and no second copy exists; or they are read, packed, from a cache of an earlier start
 * (model/weight_load.h).
 *
 * A store grows and shrinks while it is used: host() fills slots that nobody sees yet and then
 * publishes them, each by one store to memory; release() hides slots, waits until nobody uses them,
 * and takes them back.  Whoever looks up a slot is never blocked by either.
 *
 * Threads: expert_store_slot() and expert_store_read() from any thread at any time; everything else
 * from one at a time.
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

/* How a store grows. */
typedef struct store_growth {
    const checkpoint *checkpoint;
    weight_cache cache;
    uint64_t memory_bytes; /* of all slots; 0 = unlimited */
    uint64_t bytes_per_s;  /* of weights; 0 = unlimited */
    pool *pool;
    weight_source source;       /* beside cache and checkpoint, or {0} */
    const _Atomic bool *cancel; /* or NULL */
} store_growth;

/* Host experts [count] beside what is there; those that are hosted already stay as they are.  All
 * appear at once, when all are loaded; on an error none does.
 *   MOE_EINVAL   an id is out of range, or a weight is not finite
 *   MOE_ENOMEM   they don't fit; the text names the bytes that are missing
 *   MOE_ECLOSED  cancelled  */
moe_err expert_store_host(expert_store *s, const store_growth *growth, const uint32_t *experts,
                          uint32_t count, errbuf *eb);

/* Hide experts [count] (those that are not hosted are passed over), call quiesce(arg), which
 * returns when nobody uses a slot looked up before, then take their memory back.  What of theirs
 * the cache still lacks is not written. */
void expert_store_release(expert_store *s, const uint32_t *experts, uint32_t count,
                          void (*quiesce)(void *arg), void *arg);

/* Of an expert's packed weights, equal on all workers that host it in the same numeric class; false
 * if it is not hosted. */
bool expert_store_hash(const expert_store *s, uint32_t id, uint64_t *hash);

/* Copy a part of an expert's packed weights for another worker; false if it is not hosted, or there
 * is no such part.  Never waits for the compute thread, nor it for this. */
bool expert_store_read(expert_store *s, uint32_t id, uint64_t offset, size_t bytes, void *out);

/* The slot of an expert, 64-byte aligned (expert_layout); NULL if it is not hosted. */
const char *expert_store_slot(const expert_store *s, uint32_t layer, uint32_t expert);
const expert_layout *expert_store_layout(const expert_store *s);
uint32_t expert_store_count(const expert_store *s);
uint64_t expert_store_bytes(const expert_store *s); /* of hosted experts */

/* Until the cache has everything, or the attempt has failed. */
void expert_store_wait_cached(expert_store *s);

#endif
