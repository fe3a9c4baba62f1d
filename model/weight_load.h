/* weight_load: fill memory with packed weights from where they come fastest.
 *
 * From the packed-weights cache if there is one; what it does not have, from another source if the
 * caller has one; the rest from the checkpoint, packed by all threads.  What did not come from the
 * cache is written to it in the background.  The log says how much came from where, and how fast.
 *
 * Threads: one at a time; run() uses the pool.
 */
#ifndef MOE_MODEL_WEIGHT_LOAD_H
#define MOE_MODEL_WEIGHT_LOAD_H

#include "model/pack_plan.h"
#include "model/packed_cache.h"

/* The folder of the cache (NULL or "": none) and the model's fingerprint, which is only read with a
 * folder.  Borrowed strings. */
typedef struct weight_cache {
    const char *dir;
    uint64_t fingerprint;
} weight_cache;

/* Another place where packed slots are, such as a worker that hosts them. */
typedef struct weight_source {
    /* Fill those of slots [count] that are not done, as far as it can, and set done for them; the
     * bytes of the others are zero afterwards.  It knows by itself when to give up. */
    void (*fill)(void *arg, const packed_slot *slots, uint32_t count, bool *done);
    void *arg;
    bool first; /* ask it before the cache, not after it */
} weight_source;

/* Add what the slots that are not done need to a new plan.  done [count], NULL = nothing is done.
 */
typedef moe_err weight_plan_fn(void *arg, pack_plan **out, const bool *done, errbuf *eb);

typedef struct weight_load {
    const char *what; /* for the log: "experts" */
    const checkpoint *checkpoint;
    weight_cache cache;
    packed_key key; /* fingerprint and stamp are filled in by run() */
    const packed_slot *slots;
    uint32_t count;
    /* The slots are pieces of one whole, which is packed at once: unless the cache has them all,
     * all are packed.  Bytes that packing does not write must be zero before run(). */
    bool whole;
    weight_source source; /* without fill: none.  Not with `whole` */
    weight_plan_fn *plan;
    void *arg;
    pool *pool;
    const _Atomic bool *cancel; /* or NULL */
} weight_load;

/* On MOE_OK all slots hold their weights, and *fill, which may be NULL, is still writing them to
 * the cache: packed_fill_stop() it before their memory changes.  A cache that can't be used is a
 * warning, no error.
 *   MOE_EINVAL, MOE_ECLOSED, MOE_ENOMEM  as pack_plan_run()  */
moe_err weight_load_run(const weight_load *load, packed_fill **fill, errbuf *eb);

#endif
