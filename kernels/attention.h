/* attention: grouped-query attention over paged keys and values.
 *
 * The cache of one layer is an array of blocks of KV_BLOCK_TOKENS tokens; a sequence's block table
 * names its blocks in order.  A block of one layer has a part for each KV head, one after the
 * other (d = head_dim, P = 1 for f32, 2 for bf16 and int8):
 *
 *   scales  [2][16] float       int8 only: of the keys, of the values
 *   keys    [ceil(d / P)][16][P] tokens across lanes, so that one query meets 16 keys without a
 *                               horizontal sum; the last pair of an odd d is padded with 0
 *   values  [16 / P][d][P]      features across lanes, P tokens side by side
 *
 * A part's size is rounded up to 64 bytes.  bf16 is rounded to nearest-even.  int8 is symmetric,
 * with one scale for the keys and one for the values of a token and KV head: q = x * (127 / max|x|)
 * to nearest-even, within -127..127, scale = max|x| / 127 (q = scale = 0 where max|x| is below
 * ATTN_TINY).
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
 * With an int8 cache both sums are exact, in int32, whatever their order: the query and the weights
 * are rounded to fixed point, fine enough to add nothing visible to the cache's own rounding.
 *
 *   A       = attn_query_max(d), about 14 bits
 *   q8[i]   = q[i] * (A / max|q|) to nearest-even, u = max|q| / A (0 as above)
 *   score_j = (float)(sum of q8[i] * k8_j[i]) * (key_scale_j * (u * scale))
 *   w_j     = p_j * value_scale_j, W = max of w_j
 *   w8_j    = w_j * (32767 / W) to nearest-even, x = W / 32767 (0 as above)
 *   o[i]    = (float)(sum of w8_j * v8_j[i]) * x
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

#define ATTN_TINY 0x1p-100f       /* what is smaller rounds to 0: its inverse would overflow */
#define KV_VALUE_WEIGHT_MAX 32767 /* 256 tokens * 32767 * 127 < 2^31 */

static inline size_t
kv_element_bytes(moe_dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

/* P above. */
static inline uint32_t
kv_pair(moe_dtype dtype)
{
    return dtype == DTYPE_F32 ? 1 : 2;
}

/* Where in a KV head's part of a block the keys, then the values begin, and the part's size. */
static inline size_t
kv_keys_offset(moe_dtype dtype)
{
    return dtype == DTYPE_INT8 ? 2 * KV_BLOCK_TOKENS * sizeof(float) : 0;
}

static inline size_t
kv_values_offset(moe_dtype dtype, uint32_t head_dim)
{
    return kv_keys_offset(dtype) +
           round_up_u32(head_dim, kv_pair(dtype)) * KV_BLOCK_TOKENS * kv_element_bytes(dtype);
}

static inline size_t
kv_head_bytes(moe_dtype dtype, uint32_t head_dim)
{
    const size_t bytes = kv_values_offset(dtype, head_dim) +
                         (size_t)head_dim * KV_BLOCK_TOKENS * kv_element_bytes(dtype);
    return (bytes + 63) / 64 * 64;
}

/* Bytes of one layer's part of a block; a multiple of 64. */
static inline size_t
kv_block_bytes(moe_dtype dtype, uint32_t kv_heads, uint32_t head_dim)
{
    return kv_heads * kv_head_bytes(dtype, head_dim);
}

/* Largest |q8|: head_dim * 127 * it stays below 2^31. */
static inline int32_t
attn_query_max(uint32_t head_dim)
{
    const uint32_t limit = INT32_MAX / 127 / head_dim;
    return limit < 16383 ? (int32_t)limit : 16383;
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

/* A query is one head of one row.  A call keeps up to ATTN_QUERIES of them in flight, so that a
 * split of the cache is fetched once for all of them. */
#define ATTN_QUERIES 64

/* Per query: a split's scores, its sum of values, the merged sum, and the query rearranged. */
static inline size_t
attn_scratch_floats(uint32_t head_dim)
{
    return ATTN_QUERIES * (KV_SPLIT_TOKENS + 3 * (size_t)round_up_u32(head_dim, 16));
}

typedef void attention_fn(const attn_args *args);

#endif
