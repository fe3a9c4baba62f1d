/* attention_tile: attention.h for several queries at once, written once for all vector tiers.
 *
 * A query is one head of one row.  The heads that share a KV head, of as many rows as fit a tile,
 * walk the cache together, split by split: a split comes from memory once, and a key or value that
 * was loaded serves up to TILE_QUERIES queries from registers.  Each query keeps its own range of
 * visible keys: a key outside it is masked to p = 0, and its value is never added (int8: is added
 * 0 times, in integers), so neighbours in a tile leave no trace in a query's bits.
 *
 * Blocks lie anywhere, so a hardware prefetcher loses the stream at each block's end.  While a
 * split is computed, the next one is prefetched into the second-level cache, four blocks side by
 * side, a line of each in turn: one stream at a time leaves a third of the memory's bandwidth
 * unused.
 *
 * Source: register blocking as in any matrix product (Goto and van de Geijn, 2008).
 *
 * Include only from a vector tier's source; the instructions it is compiled for choose the vectors.
 */
#ifndef MOE_KERNELS_ATTENTION_TILE_H
#define MOE_KERNELS_ATTENTION_TILE_H

#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/expf.h"

#if defined(__AVX512F__)
#include "kernels/v16_avx512.h"
#else
#include "kernels/v16_avx2.h"
#endif

/* TILE_QUERIES is the most queries of a group; a group of n holds n times 1..4 vectors of sums in
 * registers, at most TILE_SUMS. */
#if defined(__AVX512F__)
#define TILE_QUERIES 8
#define TILE_SUMS 16
#else
#define TILE_QUERIES 4
#define TILE_SUMS 4
#endif
#define TILE_WIDTH(n) (TILE_SUMS / (n) < 4 ? TILE_SUMS / (n) : 4)

#define SPLIT_BLOCKS (KV_SPLIT_TOKENS / KV_BLOCK_TOKENS)
#define STREAMS 4 /* blocks prefetched side by side */

typedef struct query {
    const float *q;
    float *out;
    uint32_t first, end; /* visible keys */
    float *p;            /* [KV_SPLIT_TOKENS] scores, then p (int8: w8 as int16), of the split */
    float *part;         /* [d16] the split's sum of p * v; int8: int32, then floats */
    float *acc;          /* [d16] the merged sum */
    float *packed;       /* [d16] with the group's others: features outside, queries inside */
    uint32_t *fixed;     /* int8: [d16 / 2] pairs of q8 */
    float fixed_scale;   /* u * scale */
    float max, sum;
    float split_max, split_sum;
    float value_unit; /* x */
    int started;
} query;

/* One split of one KV head. */
typedef struct split {
    moe_dtype dtype;
    uint32_t head_dim, d16; /* d16: rounded up to 16 */
    uint32_t begin;         /* its first token's position, a multiple of KV_SPLIT_TOKENS */
    float scale;
    size_t head_bytes, keys_offset, values_offset;
    uint32_t first_block, block_count; /* of those that somebody sees; from the split's start */
    const char *heads[SPLIT_BLOCKS];   /* [block_count] this KV head's part of each */
    const char *next[SPLIT_BLOCKS];    /* the next split's, or something that is cached */
} split;

static uint32_t
min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t
max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* What is to be prefetched while one block's keys, or its values, are computed. */
typedef struct share {
    const char *const *blocks; /* [STREAMS], of the next split */
    size_t offset;             /* in each of them */
} share;

/* The keys of STREAMS blocks, or their values, are the unit in which half of STREAMS whole blocks
 * of the next split is fetched; each of the unit's blocks does a part. */
KERNEL_INLINE share
share_of(const split *s, uint32_t block, int of_values)
{
    const uint32_t unit = ((of_values ? SPLIT_BLOCKS : 0) + block) / STREAMS;
    const size_t lines = s->head_bytes / 2 / 64;
    return (share){s->next + unit / 2 * STREAMS,
                   (unit % 2 * lines + block % STREAMS * (lines / STREAMS)) * 64};
}

/* What the steps leave out: lines that STREAMS does not divide (the scales of an int8 cache). */
KERNEL_INLINE void
prefetch_rest(const split *s, uint32_t block, int of_values)
{
    const share to = share_of(s, block / STREAMS * STREAMS, of_values);
    const size_t lines = (s->head_bytes + 127) / 2 / 64;
    for (size_t line = lines / STREAMS * STREAMS; line < lines; line++)
        __builtin_prefetch(to.blocks[block % STREAMS] + to.offset + line * 64, 0, 2);
}

/* Prefetch what is due in step `step` of a block, a step of half_lines * 32 bytes. */
KERNEL_INLINE void
prefetch_step(share to, uint32_t step, uint32_t half_lines)
{
    if (half_lines == 1) {
        if (step % 2 != 0) return;
        step /= 2;
        half_lines = 2;
    }
    UNROLL for (uint32_t i = 0; i < half_lines / 2; i++)
    {
        const uint32_t line = step * (half_lines / 2) + i;
        __builtin_prefetch(to.blocks[line % STREAMS] + to.offset + line / STREAMS * 64, 0, 2);
    }
}

/* All of the split at hand, where nobody did it before. */
static void
prefetch_split(const split *s)
{
    for (uint32_t b = 0; b < s->block_count; b += STREAMS) {
        const uint32_t count = min_u32(s->block_count - b, STREAMS);
        for (size_t i = 0; i < s->head_bytes; i += 64) {
            for (uint32_t j = 0; j < count; j++)
                __builtin_prefetch(s->heads[b + j] + i, 0, 2);
        }
    }
}

/* ---- scores ---- */

KERNEL_INLINE void
score_floats(const split *s, moe_dtype dtype, query *q, uint32_t block, int n, int blocks)
{
    const share ahead = share_of(s, block, 0);
    const char *keys[4];
    v16 sum[TILE_SUMS];
    UNROLL for (int b = 0; b < blocks; b++) keys[b] =
        s->heads[block + (uint32_t)b] + s->keys_offset;
    UNROLL for (int j = 0; j < n * blocks; j++) sum[j] = v16_zero();

    const float *x = q->packed;
    const uint32_t pairs = s->head_dim / kv_pair(dtype);
    for (uint32_t i = 0; i < pairs; i++) {
        v16 low[4], high[4];
        prefetch_step(ahead, i, 2 * (uint32_t)blocks);
        UNROLL for (int b = 0; b < blocks; b++)
        {
            const char *at = keys[b] + (size_t)i * 64;
            low[b] = dtype == DTYPE_F32 ? v16_load_raw(at) : v16_bf16_low(v16_load_raw(at));
            if (dtype == DTYPE_BF16) high[b] = v16_bf16_high(v16_load_raw(at));
        }
        UNROLL for (int j = 0; j < n; j++)
        {
            const v16 first = v16_broadcast(x + j);
            UNROLL for (int b = 0; b < blocks; b++) sum[j * blocks + b] =
                v16_fma(first, low[b], sum[j * blocks + b]);
        }
        x += n;
        if (dtype == DTYPE_F32) continue;
        UNROLL for (int j = 0; j < n; j++)
        {
            const v16 second = v16_broadcast(x + j);
            UNROLL for (int b = 0; b < blocks; b++) sum[j * blocks + b] =
                v16_fma(second, high[b], sum[j * blocks + b]);
        }
        x += n;
    }
    if (dtype == DTYPE_BF16 && s->head_dim % 2) {
        UNROLL for (int b = 0; b < blocks; b++)
        {
            const v16 last = v16_bf16_low(v16_load_raw(keys[b] + (size_t)pairs * 64));
            UNROLL for (int j = 0; j < n; j++) sum[j * blocks + b] =
                v16_fma(v16_broadcast(x + j), last, sum[j * blocks + b]);
        }
    }
    const v16 scale = v16_set1(s->scale);
    float *p = q->p + (s->first_block + block) * KV_BLOCK_TOKENS;
    UNROLL for (int j = 0; j < n; j++)
    {
        UNROLL for (int b = 0; b < blocks; b++) v16_store(
            p + j * KV_SPLIT_TOKENS + b * KV_BLOCK_TOKENS, v16_mul(sum[j * blocks + b], scale));
    }
}

KERNEL_INLINE void
score_int8(const split *s, query *q, uint32_t block, int n, int blocks)
{
    const share ahead = share_of(s, block, 0);
    const char *keys[4];
    w16 sum[TILE_SUMS];
    UNROLL for (int b = 0; b < blocks; b++)
    {
        keys[b] = s->heads[block + (uint32_t)b] + s->keys_offset;
    }
    UNROLL for (int j = 0; j < n * blocks; j++) sum[j] = w16_zero();

    const float *x = q->packed; /* pairs of int16 */
    const uint32_t pairs = (s->head_dim + 1) / 2;
    for (uint32_t i = 0; i < pairs; i++, x += n) {
        w16 k[4];
        prefetch_step(ahead, i, (uint32_t)blocks);
        UNROLL for (int b = 0; b < blocks; b++)
        {
            k[b] = w16_load_widen(keys[b] + (size_t)i * 32);
        }
        UNROLL for (int j = 0; j < n; j++)
        {
            const w16 pair = w16_broadcast(x + j);
            UNROLL for (int b = 0; b < blocks; b++) sum[j * blocks + b] =
                w16_madd(sum[j * blocks + b], k[b], pair);
        }
    }
    float *p = q->p + (s->first_block + block) * KV_BLOCK_TOKENS;
    UNROLL for (int b = 0; b < blocks; b++)
    {
        const v16 key_scale = v16_load_raw(s->heads[block + (uint32_t)b]);
        UNROLL for (int j = 0; j < n; j++)
        {
            const v16 scale = v16_mul(key_scale, v16_set1(q[j].fixed_scale));
            v16_store(p + j * KV_SPLIT_TOKENS + b * KV_BLOCK_TOKENS,
                      v16_mul(w16_to_float(sum[j * blocks + b]), scale));
        }
    }
}

/* Scores of `blocks` blocks from `block` on for n queries. */
KERNEL_INLINE void
score(const split *s, moe_dtype dtype, query *q, uint32_t block, int n, int blocks)
{
    if (dtype == DTYPE_INT8)
        score_int8(s, q, block, n, blocks);
    else
        score_floats(s, dtype, q, block, n, blocks);
}

/* ---- sums of values ---- */

/* Tokens 2i and 2i+1 (f32: token i) of a block, features f .. of `vectors` vectors, the last of
 * `lanes` lanes: those of the two that `low` and `high` name. */
KERNEL_INLINE void
add_pair(const split *s, moe_dtype dtype, const char *values, const float *p, v16 *sum, uint32_t i,
         uint32_t f, uint32_t lanes, int n, int vectors, int low, int high)
{
    const char *row = values + ((size_t)i * s->head_dim + f) * 4;
    p += i * kv_pair(dtype);
    v16 first[4], second[4];
    UNROLL for (int v = 0; v < vectors; v++)
    {
        const v16 raw = lanes == 16 ? v16_load_raw(row + (size_t)v * 64)
                                    : v16_load_lanes(row + (size_t)v * 64, lanes);
        first[v] = dtype == DTYPE_F32 ? raw : v16_bf16_low(raw);
        second[v] = v16_bf16_high(raw);
    }
    UNROLL for (int j = 0; j < n; j++)
    {
        const v16 a = v16_broadcast(p + j * KV_SPLIT_TOKENS);
        if (low) {
            UNROLL for (int v = 0; v < vectors; v++) sum[j * vectors + v] =
                v16_fma(a, first[v], sum[j * vectors + v]);
        }
        if (high) {
            const v16 b = v16_broadcast(p + j * KV_SPLIT_TOKENS + 1);
            UNROLL for (int v = 0; v < vectors; v++) sum[j * vectors + v] =
                v16_fma(b, second[v], sum[j * vectors + v]);
        }
    }
}

/* part += p * v over tokens begin..end-1 of a block, for the features of add_pair. */
KERNEL_INLINE void
add_floats(const split *s, moe_dtype dtype, query *q, uint32_t block, uint32_t begin, uint32_t end,
           uint32_t f, uint32_t lanes, int n, int vectors)
{
    const char *values = s->heads[block] + s->values_offset;
    const share ahead = share_of(s, block, 1);
    const float *p = q->p + (s->first_block + block) * KV_BLOCK_TOKENS;
    v16 sum[TILE_SUMS];
    UNROLL for (int j = 0; j < n; j++)
    {
        UNROLL for (int v = 0; v < vectors; v++) sum[j * vectors + v] =
            v16_load(q[j].part + f + 16 * v);
    }
    const uint32_t pair = kv_pair(dtype), rows = KV_BLOCK_TOKENS / pair;
    uint32_t t = begin;
    if (t % pair != 0) {
        add_pair(s, dtype, values, p, sum, t / pair, f, lanes, n, vectors, 0, 1);
        t++;
    }
    for (; t + pair <= end; t += pair) {
        prefetch_step(ahead, f / (16 * (uint32_t)vectors) * rows + t / pair, 2 * (uint32_t)vectors);
        add_pair(s, dtype, values, p, sum, t / pair, f, lanes, n, vectors, 1, pair == 2);
    }
    if (t < end) add_pair(s, dtype, values, p, sum, t / pair, f, lanes, n, vectors, 1, 0);
    UNROLL for (int j = 0; j < n; j++)
    {
        UNROLL for (int v = 0; v < vectors; v++)
            v16_store(q[j].part + f + 16 * v, sum[j * vectors + v]);
    }
}

/* The same for a whole block of an int8 cache: weights are 0 where a query may not look. */
KERNEL_INLINE void
add_int8(const split *s, query *q, uint32_t block, uint32_t f, uint32_t lanes, int n, int vectors)
{
    const char *values = s->heads[block] + s->values_offset;
    const share ahead = share_of(s, block, 1);
    const float *p = q->p + (s->first_block + block) * (KV_BLOCK_TOKENS / 2); /* int16 */
    w16 sum[TILE_SUMS];
    UNROLL for (int j = 0; j < n; j++)
    {
        UNROLL for (int v = 0; v < vectors; v++) sum[j * vectors + v] =
            w16_load(q[j].part + f + 16 * v);
    }
    for (uint32_t i = 0; i < KV_BLOCK_TOKENS / 2; i++) {
        const size_t at = ((size_t)i * s->head_dim + f) * 2;
        w16 x[4];
        prefetch_step(ahead, f / (16 * (uint32_t)vectors) * (KV_BLOCK_TOKENS / 2) + i,
                      (uint32_t)vectors);
        UNROLL for (int v = 0; v < vectors; v++) x[v] =
            lanes == 16 ? w16_load_widen(values + at + (size_t)v * 32)
                        : w16_load_widen_lanes(values + at + (size_t)v * 32, lanes);
        UNROLL for (int j = 0; j < n; j++)
        {
            const w16 pair = w16_broadcast(p + j * KV_SPLIT_TOKENS + i);
            UNROLL for (int v = 0; v < vectors; v++) sum[j * vectors + v] =
                w16_madd(sum[j * vectors + v], x[v], pair);
        }
    }
    UNROLL for (int j = 0; j < n; j++)
    {
        UNROLL for (int v = 0; v < vectors; v++)
            w16_store(q[j].part + f + 16 * v, sum[j * vectors + v]);
    }
}

KERNEL_INLINE void
add_values(const split *s, moe_dtype dtype, query *q, uint32_t block, uint32_t begin, uint32_t end,
           int n)
{
    const int vectors = TILE_WIDTH(n);
    const uint32_t wide = 16 * (uint32_t)vectors;
    uint32_t f = 0;
    for (; f + wide <= s->head_dim; f += wide) {
        if (dtype == DTYPE_INT8)
            add_int8(s, q, block, f, 16, n, vectors);
        else
            add_floats(s, dtype, q, block, begin, end, f, 16, n, vectors);
    }
    for (; f < s->head_dim; f += 16) {
        const uint32_t lanes = min_u32(s->head_dim - f, 16);
        if (dtype == DTYPE_INT8)
            add_int8(s, q, block, f, lanes, n, 1);
        else
            add_floats(s, dtype, q, block, begin, end, f, lanes, n, 1);
    }
}

/* ---- softmax ---- */

/* The visible keys of q in the split, counted from its start; begin < end. */
static void
visible(const split *s, const query *q, uint32_t *begin, uint32_t *end)
{
    *begin = max_u32(q->first, s->begin) - s->begin;
    *end = min_u32(q->end - s->begin, KV_SPLIT_TOKENS);
}

/* Scores -> probabilities (int8: weights) of blocks from..to-1 of the split, which hold all that q
 * sees; split_max, split_sum and value_unit. */
KERNEL_INLINE void
softmax(const split *s, moe_dtype dtype, query *q, uint32_t from, uint32_t to)
{
    uint32_t begin, end;
    visible(s, q, &begin, &end);

    const v16 lowest = v16_set1(-INFINITY);
    v16 max = lowest;
    for (uint32_t b = from; b < to; b++) {
        const m16 mask = m16_between(b * KV_BLOCK_TOKENS, begin, end);
        max = v16_max(max, v16_select(mask, v16_load(q->p + b * KV_BLOCK_TOKENS), lowest));
    }
    q->split_max = v16_highest(max);

    const v16 m = v16_set1(q->split_max);
    v16 sum = v16_zero(), heaviest = v16_zero();
    for (uint32_t b = from; b < to; b++) {
        const m16 mask = m16_between(b * KV_BLOCK_TOKENS, begin, end);
        v16 p = v16_keep(mask, v16_exp(v16_sub(v16_load(q->p + b * KV_BLOCK_TOKENS), m)));
        sum = v16_add(sum, p);
        if (dtype == DTYPE_INT8) {
            const v16 scale = v16_load_raw(s->heads[b - s->first_block] + 64);
            p = v16_keep(mask, v16_mul(p, scale));
            heaviest = v16_max(heaviest, p);
        }
        v16_store(q->p + b * KV_BLOCK_TOKENS, p);
    }
    q->split_sum = v16_sum(sum);
    if (dtype != DTYPE_INT8) return;

    const float top = v16_highest(heaviest);
    const float inverse = top < ATTN_TINY ? 0.0f : (float)KV_VALUE_WEIGHT_MAX / top;
    q->value_unit = top < ATTN_TINY ? 0.0f : top / (float)KV_VALUE_WEIGHT_MAX;
    for (uint32_t b = from; b < to; b++) {
        /* In place: int16 b lies at or before the float it comes from. */
        const v16 w = v16_mul(v16_load(q->p + b * KV_BLOCK_TOKENS), v16_set1(inverse));
        w16_store_int16(q->p + b * (KV_BLOCK_TOKENS / 2), w16_round(w));
    }
}

static void
values_to_float(const split *s, query *q)
{
    const v16 unit = v16_set1(q->value_unit);
    for (uint32_t i = 0; i < s->d16; i += 16)
        v16_store(q->part + i, v16_mul(w16_to_float(w16_load(q->part + i)), unit));
}

static void
merge(query *q, uint32_t d16)
{
    if (!q->started) {
        q->started = 1;
        q->max = q->split_max;
        q->sum = q->split_sum;
        memcpy(q->acc, q->part, d16 * sizeof *q->acc);
        return;
    }
    const float top = q->split_max > q->max ? q->split_max : q->max;
    const float a = kernel_expf(q->max - top), b = kernel_expf(q->split_max - top);
    q->max = top;
    q->sum = fmaf(q->sum, a, q->split_sum * b);
    const v16 va = v16_set1(a), vb = v16_set1(b);
    for (uint32_t i = 0; i < d16; i += 16)
        v16_store(q->acc + i,
                  v16_fma(v16_load(q->acc + i), va, v16_mul(v16_load(q->part + i), vb)));
}

/* ---- the walk ---- */

/* Rearrange a group's queries: of each feature (int8: pair), all n side by side. */
static void
pack_group(const split *s, query *q, uint32_t n)
{
    if (s->dtype == DTYPE_INT8) {
        uint32_t *words = (uint32_t *)(void *)q->packed;
        for (uint32_t i = 0; i < (s->head_dim + 1) / 2; i++) {
            for (uint32_t j = 0; j < n; j++)
                words[i * n + j] = q[j].fixed[i];
        }
        return;
    }
    for (uint32_t i = 0; i < s->head_dim; i++) {
        for (uint32_t j = 0; j < n; j++)
            q->packed[i * n + j] = q[j].q[i];
    }
}

/* n queries (in rising order of position) through one split that each of them can see. */
KERNEL_INLINE void
walk_group(const split *s, moe_dtype dtype, query *q, int n)
{
    uint32_t begin[TILE_QUERIES], end[TILE_QUERIES];
    for (int j = 0; j < n; j++)
        visible(s, q + j, begin + j, end + j);

    const uint32_t from = begin[0] / KV_BLOCK_TOKENS;
    const uint32_t to = (end[n - 1] + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    uint32_t b = from - s->first_block;
    const int width = TILE_WIDTH(n);
    for (; b + (uint32_t)width <= to - s->first_block; b += (uint32_t)width)
        score(s, dtype, q, b, n, width);
    for (; b < to - s->first_block; b++)
        score(s, dtype, q, b, n, 1);
    for (b = from - s->first_block; b < to - s->first_block; b++)
        prefetch_rest(s, b, 0);
    for (int j = 0; j < n; j++) {
        softmax(s, dtype, q + j, from, to);
        memset(q[j].part, 0, s->d16 * sizeof *q[j].part);
    }

    /* Positions rise with j, so all of them see exactly the keys from the last one's first to the
     * first one's last; what lies before and after is done query by query. */
    const uint32_t all_from = begin[n - 1], all_to = max_u32(end[0], all_from);
    for (b = from; b < to; b++) {
        const uint32_t t0 = b * KV_BLOCK_TOKENS, t1 = t0 + KV_BLOCK_TOKENS;
        const uint32_t block = b - s->first_block;
        prefetch_rest(s, block, 1);
        if (dtype == DTYPE_INT8 || (all_from <= t0 && t1 <= all_to)) {
            add_values(s, dtype, q, block, 0, KV_BLOCK_TOKENS, n);
            continue;
        }
        const uint32_t low = min_u32(max_u32(all_from, t0), t1);
        const uint32_t high = min_u32(max_u32(all_to, low), t1);
        for (int j = 0; j < n; j++) {
            const uint32_t first = max_u32(begin[j], t0), last = min_u32(end[j], low);
            if (first < last) add_values(s, dtype, q + j, block, first - t0, last - t0, 1);
        }
        if (low < high) add_values(s, dtype, q, block, low - t0, high - t0, n);
        for (int j = 0; j < n; j++) {
            const uint32_t first = max_u32(max_u32(begin[j], high), t0);
            const uint32_t last = min_u32(end[j], t1);
            if (first < last) add_values(s, dtype, q + j, block, first - t0, last - t0, 1);
        }
    }
    for (int j = 0; j < n; j++) {
        if (dtype == DTYPE_INT8) values_to_float(s, q + j);
        merge(q + j, s->d16);
    }
}

KERNEL_INLINE void
walk_any(const split *s, moe_dtype dtype, query *q, uint32_t n)
{
    switch (n) {
    case 1: walk_group(s, dtype, q, 1); return;
    case 2: walk_group(s, dtype, q, 2); return;
#if TILE_QUERIES == 8
    case 4: walk_group(s, dtype, q, 4); return;
#endif
    default: walk_group(s, dtype, q, TILE_QUERIES); return;
    }
}

static const char *
head_of(const attn_args *a, uint32_t block, size_t head_bytes)
{
    return a->blocks + a->block_table[block] * a->block_stride + a->kv_head * head_bytes;
}

/* Where the split's blocks are, as far as keys begin..end-1 reach into it. */
static void
locate_blocks(const attn_args *a, split *s, uint32_t begin, uint32_t end)
{
    const uint32_t first = s->begin / KV_BLOCK_TOKENS;
    const uint32_t from = max_u32(begin / KV_BLOCK_TOKENS, first);
    const uint32_t all = (end + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    const uint32_t count = min_u32(all, first + SPLIT_BLOCKS) - from;
    s->first_block = from - first;
    s->block_count = count;
    for (uint32_t b = 0; b < count; b++) {
        s->heads[b] = head_of(a, from + b, s->head_bytes);
    }
    for (uint32_t b = 0; b < SPLIT_BLOCKS; b++) {
        const uint32_t block = from + count + b;
        s->next[b] = block < all ? head_of(a, block, s->head_bytes) : s->heads[0];
    }
}

static uint32_t
group_size(uint32_t left)
{
    uint32_t n = TILE_QUERIES;
    while (n > left)
        n /= 2;
    return n;
}

/* A tile of queries in rising order of position through all their splits. */
static void
walk(const attn_args *a, query *q, uint32_t count)
{
    split s = {
        .dtype = a->kv_dtype,
        .head_dim = a->head_dim,
        .d16 = round_up_u32(a->head_dim, 16),
        .begin = q[0].first / KV_SPLIT_TOKENS * KV_SPLIT_TOKENS,
        .scale = a->scale,
        .keys_offset = kv_keys_offset(a->kv_dtype),
        .values_offset = kv_values_offset(a->kv_dtype, a->head_dim),
        .head_bytes = kv_head_bytes(a->kv_dtype, a->head_dim),
    };
    uint32_t i = 0, stop = 0, packed_from = 0, packed_to = 0;
    int cold = 1;
    for (; s.begin < q[count - 1].end; s.begin += KV_SPLIT_TOKENS) {
        while (q[i].end <= s.begin)
            i++;
        while (stop < count && q[stop].first < s.begin + KV_SPLIT_TOKENS)
            stop++;
        if (i >= stop) continue;
        const int packed = packed_from == i && packed_to == stop;
        packed_from = i, packed_to = stop;
        locate_blocks(a, &s, q[i].first, q[stop - 1].end);
        if (cold) prefetch_split(&s);
        cold = 0;
        for (uint32_t j = i, n; j < stop; j += n) {
            n = group_size(stop - j);
            if (!packed) pack_group(&s, q + j, n);
            if (s.dtype == DTYPE_F32)
                walk_any(&s, DTYPE_F32, q + j, n);
            else if (s.dtype == DTYPE_BF16)
                walk_any(&s, DTYPE_BF16, q + j, n);
            else
                walk_any(&s, DTYPE_INT8, q + j, n);
        }
    }
}

/* q8 and its unit, for an int8 cache. */
static void
query_to_fixed(const attn_args *a, query *q)
{
    const uint32_t d = a->head_dim;
    const float limit = (float)attn_query_max(d);
    v16 max = v16_zero();
    for (uint32_t i = 0; i < d; i += 16)
        max = v16_max(max, v16_abs(v16_load_lanes(q->q + i, min_u32(d - i, 16))));
    const float top = v16_highest(max);
    const v16 inverse = v16_set1(top < ATTN_TINY ? 0.0f : limit / top);
    for (uint32_t i = 0; i < d; i += 16) {
        const v16 x = v16_mul(v16_load_lanes(q->q + i, min_u32(d - i, 16)), inverse);
        w16_store_int16(q->fixed + i / 2, w16_round(x));
    }
    q->fixed_scale = (top < ATTN_TINY ? 0.0f : top / limit) * a->scale;
}

/* Query `index` of the call: rows outside, the KV head's query heads inside.  It is number `slot`
 * of its tile. */
static void
query_init(query *q, const attn_args *a, uint32_t index, uint32_t slot)
{
    const uint32_t group = a->heads / a->kv_heads, d16 = round_up_u32(a->head_dim, 16);
    const uint32_t row = index / group, head = a->kv_head * group + index % group;
    const uint32_t end = a->first_pos + row + 1;
    float *rest = a->scratch + (size_t)ATTN_QUERIES * KV_SPLIT_TOKENS;
    float *packed = rest + (size_t)2 * ATTN_QUERIES * d16;
    *q = (query){
        .q = a->q + row * a->q_stride + (size_t)head * a->head_dim,
        .out = a->out + row * a->out_stride + (size_t)head * a->head_dim,
        .first = a->window != 0 && end > a->window ? end - a->window : 0,
        .end = end,
        .p = a->scratch + (size_t)slot * KV_SPLIT_TOKENS,
        .part = rest + (size_t)slot * d16,
        .acc = rest + (size_t)(ATTN_QUERIES + slot) * d16,
        .packed = packed + (size_t)slot * d16,
    };
    if (a->kv_dtype != DTYPE_INT8) return;
    q->packed = packed + (size_t)slot * (d16 / 2);
    q->fixed = (uint32_t *)(void *)(packed + (size_t)(ATTN_QUERIES + slot) * (d16 / 2));
    query_to_fixed(a, q);
}

static void
store(const query *q, uint32_t head_dim)
{
    const v16 sum = v16_set1(q->sum);
    for (uint32_t i = 0; i < head_dim; i += 16)
        v16_store_lanes(q->out + i, v16_div(v16_load(q->acc + i), sum), min_u32(head_dim - i, 16));
}

static inline void
attention_tiles(const attn_args *args)
{
    const uint32_t total = args->rows * (args->heads / args->kv_heads);
    query q[ATTN_QUERIES];
    for (uint32_t i = 0; i < total; i += ATTN_QUERIES) {
        const uint32_t count = min_u32(total - i, ATTN_QUERIES);
        for (uint32_t j = 0; j < count; j++)
            query_init(q + j, args, i + j, j);
        walk(args, q, count);
        for (uint32_t j = 0; j < count; j++)
            store(q + j, args->head_dim);
    }
}

#endif
