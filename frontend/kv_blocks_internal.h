/* kv_blocks_internal: a way into the prefix cache for its tests.
 *
 * Threads: as kv_blocks.h.
 */
#ifndef MOE_FRONTEND_KV_BLOCKS_INTERNAL_H
#define MOE_FRONTEND_KV_BLOCKS_INTERNAL_H

#include <stdint.h>

#include "frontend/kv_blocks.h"

/* The hash of a block: the identity of the block before it, and tokens [count]. */
typedef uint64_t kv_block_hash(uint64_t parent, const uint32_t *tokens, uint32_t count);

/* Use another hash, e.g. one that always collides.  Only before the first kv_blocks_register(). */
void kv_blocks_set_hash(kv_blocks *kv, kv_block_hash *hash);

#endif
