/* weights: everything of a model but its experts, packed for the kernels.
 *
 * Q, K and V of a layer are one matrix of tiles (q tiles, then k, then v, each padded to whole
 * tiles), so that one product feeds all three. The gate stays exact (f32 of what is stored), norms
 * are f32, embeddings are read from the mapped checkpoint.
 *
 * Threads: immutable after load.
 */
#ifndef MOE_ROUTER_WEIGHTS_H
#define MOE_ROUTER_WEIGHTS_H

#include "common/pool.h"
#include "common/region.h"
#include "model/weight_load.h"

typedef struct layer_weights {
    const float *attn_norm, *ffn_norm; /* [H] */
    const void *qkv;                   /* [qkv_width, H] */
    const void *o;                     /* [H, heads * head_dim] */
    const void *gate;                  /* [E, H], f32 */
} layer_weights;

typedef struct router_weights {
    moe_dtype dtype;             /* of qkv, o and head */
    uint32_t k_column, v_column; /* where keys and values begin in a qkv row; queries at 0 */
    uint32_t qkv_width;          /* columns of a qkv row, a multiple of TILE_N */
    layer_weights *layers;       /* [L] */
    const float *final_norm;     /* [H] */
    const void *head;            /* [V, H] */
    const tensor_view *embed;    /* [V, H] as stored */
    region memory;               /* behind all of the above */
    packed_fill *fill;           /* writes the memory to the cache; or NULL */
} router_weights;

/* Pack them with the pool's threads, or read them from the cache (cache.dir may be NULL).
 *   MOE_ENOMEM, or MOE_EINVAL for a weight that can't be quantized (not finite)  */
moe_err router_weights_load(router_weights *out, const checkpoint *c, moe_dtype dtype,
                            weight_cache cache, pool *p, errbuf *eb);
void router_weights_unload(router_weights *w); /* accepts a zeroed struct */

#endif
