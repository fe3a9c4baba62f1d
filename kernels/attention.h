/* attention: grouped-query attention over paged keys and values.
 *
 * The cache of one layer is an array of blocks of KV_BLOCK_TOKENS tokens; a sequence's block table
 * names its blocks in order.  Within a block, per KV head (d = head_dim):
 *
 *   keys    [d][16]  tokens across lanes, so that one query meets 16 keys without a horizontal sum
 *   values  [16][d]  features across lanes
 *
 * so a block of one layer is { keys [kv_heads][d][16], values [kv_heads][16][d] } of the cache's
 * dtype (f32, or bf16 rounded to nearest-even).
 *
 * For a query at position p, keys j with max(0, p - window + 1) <= j <= p take part (window 0: all
 * j <= p).  They are walked in splits of KV_SPLIT_TOKENS at absolute positions (split s = keys
 * s*256 .. s*256+255); splits without a visible key are skipped.  Within a split, over its visible
 * keys:
 *
 *   score_j = (sum over i rising, fmaf, of q[i] * k_j[i]) * scale
 *   m       = max of score_j
 *   p_j     = expf(score_j - m)
 *   l       = sum of p_j over 16 virtual lanes (lane = j mod 16), tree 8 4 2 1
 *   o[i]    = sum over j rising, fmaf, of p_j * v_j[i]
 *
 * Splits are merged in rising order (the first is copied):
 *
 *   M' = max(M, m), a = expf(M - M'), b = expf(m - M')
 *   L  = fmaf(L, a, l * b), O[i] = fmaf(O[i], a, o[i] * b)
 *
 * The result is O[i] / L.  What invisible places of the cache hold does not matter, and blocks
 * without a visible key are not touched.  Same bits on every tier, in any batch, for any chunking.
 *
 * Source: split-and-merge softmax as in FlashAttention (Dao et al., 2022) and Flash-Decoding;
 * paging as in vLLM (Kwon et al., 2023).
 *
 * Threads: pure functions; calls for different sequences, rows or KV heads may run at once.
 */
#ifndef MOE_KERNELS_ATTENTION_H
#define MOE_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/packed.h"

#define KV_BLOCK_TOKENS 16
#define KV_SPLIT_TOKENS 256

/* dtype: DTYPE_F32 or DTYPE_BF16.  Bytes of one layer's part of a block; a multiple of 64. */
static inline size_t
kv_block_bytes(moe_dtype dtype, uint32_t kv_heads, uint32_t head_dim)
{
    const size_t elements = (size_t)2 * kv_heads * head_dim * KV_BLOCK_TOKENS;
    return (elements * (dtype == DTYPE_F32 ? 4 : 2) + 63) / 64 * 64;
}

/* Store one token's keys (after RoPE) and values.
 *   block   the block's memory in this layer
 *   offset  the token's place in the block, 0 .. KV_BLOCK_TOKENS-1
 *   k, v    [kv_heads][head_dim]  */
typedef void kv_store_fn(moe_dtype dtype, void *block, uint32_t offset, uint32_t kv_heads,
                         uint32_t head_dim, const float *k, const float *v);

typedef struct attn_args {
    moe_dtype kv_dtype;
    const char *blocks;          /* the layer's block 0; 64-byte aligned */
    size_t block_stride;         /* bytes between blocks of this layer */
    const uint32_t *block_table; /* block of token j: block_table[j / KV_BLOCK_TOKENS] */
    uint32_t heads, kv_heads, head_dim;
    uint32_t window; /* 0 = none */
    float scale;

    uint32_t first_pos; /* position of query row 0; row r has position first_pos + r */
    uint32_t rows;
    uint32_t kv_head; /* this call computes the heads / kv_heads query heads of this KV head */
    const float *q;   /* row r, head h at q + r * q_stride + h * head_dim, after RoPE */
    size_t q_stride;  /* floats */
    float *out;       /* row r, head h at out + r * out_stride + h * head_dim */
    size_t out_stride;
    float *scratch; /* [attn_scratch_floats()], one per thread; 64-byte aligned */
} attn_args;

/* A query is one head of one row.  A call keeps up to ATTN_QUERIES of them in flight, each with a
 * split's scores and two head-sized sums. */
#define ATTN_QUERIES 8

static inline size_t
attn_query_floats(uint32_t head_dim)
{
    return KV_SPLIT_TOKENS + 2 * (size_t)round_up_u32(head_dim, 16);
}

static inline size_t
attn_scratch_floats(uint32_t heads, uint32_t kv_heads, uint32_t head_dim)
{
    (void)heads, (void)kv_heads; /* a batch may cut a group of heads anywhere */
    return ATTN_QUERIES * attn_query_floats(head_dim);
}

typedef void attention_fn(const attn_args *args);

#endif
