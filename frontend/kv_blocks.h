/* kv_blocks: which block of the router's KV cache belongs to whom, and which full blocks can be
 * shared.
 *
 * The frontend decides, the router's memory obeys: a block here is a number.  Blocks are
 * reference-counted.  A block that is full and whose tokens were confirmed by a finished step may
 * be registered under its token ids and the identity of the block before it, so in the end under
 * all token ids up to its end; a later sequence with the same prefix takes it instead of computing
 * it (automatic prefix caching).  A hash only finds a candidate: the token ids themselves are
 * compared, along the chain.  A registered block nobody uses stays findable until its memory is
 * needed: blocks that hold nothing are reused first, then cached ones, least recently used first.
 *
 * Source: paging and prefix caching as in vLLM (Kwon et al., 2023).
 *
 * Threads: one owner, the scheduler's.
 */
#ifndef MOE_FRONTEND_KV_BLOCKS_H
#define MOE_FRONTEND_KV_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define KV_BLOCK_NONE UINT32_MAX

typedef struct kv_blocks kv_blocks;

/*   MOE_ERANGE  block_count or block_tokens is 0, or their product does not fit 32 bits
 *   MOE_ENOMEM  */
moe_err kv_blocks_create(kv_blocks **out, uint32_t block_count, uint32_t block_tokens,
                         bool prefix_caching);
void kv_blocks_free(kv_blocks *kv); /* accepts NULL */

uint32_t kv_blocks_total(const kv_blocks *kv);
uint32_t kv_blocks_available(const kv_blocks *kv); /* free, cached-but-unused ones included */
uint32_t kv_blocks_tokens(const kv_blocks *kv);

/* Take a fresh block (reference count 1), evicting the least recently used cached one if need be;
 * KV_BLOCK_NONE if all are in use. */
uint32_t kv_blocks_take(kv_blocks *kv);
/* Drop one reference.  Release a sequence's blocks last to first: then the end of a cached prefix
 * is evicted before its beginning, without which it can't be found. */
void kv_blocks_release(kv_blocks *kv, uint32_t block);

/* Find the longest chain of registered blocks that covers a prefix of tokens[0 .. count-1] in whole
 * blocks, at most max_tokens long; takes a reference to each. out [count / block_tokens]; returns
 * how many blocks were found. */
uint32_t kv_blocks_match(kv_blocks *kv, const uint32_t *tokens, uint32_t count, uint32_t max_tokens,
                         uint32_t *out);

/* How many blocks kv_blocks_match() would find; takes no reference. */
uint32_t kv_blocks_find(const kv_blocks *kv, const uint32_t *tokens, uint32_t count,
                        uint32_t max_tokens);

/* Register block `index` of a sequence (tokens index * block_tokens .. of `tokens`), all of whose
 * earlier blocks are `table[0 .. index-1]`, registered or matched before.  Nothing happens if the
 * earlier ones are not (the cache was reset meanwhile), or if the block is registered already.
 * If another block holds the same, both are findable until one of them is unused. */
void kv_blocks_register(kv_blocks *kv, const uint32_t *tokens, const uint32_t *table,
                        uint32_t index);

/* Forget every registered block that nobody uses, and make those in use unfindable (after the
 * router lost its memory). */
void kv_blocks_reset_cache(kv_blocks *kv);

#endif
