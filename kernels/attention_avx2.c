/* attention_avx2: attention.h for several queries at once.
 *
 * A query is one head of one row.  The heads that share a KV head, of as many rows as fit a batch,
 * walk the cache together, so that a key or value loaded once serves up to 4 of them from
 * registers.  Each query keeps its own range of visible keys: a key outside it is masked to p = 0,
 * and its value is never added, so neighbours in a batch leave no trace in a query's bits.
 */
#include "kernels/attention.h"

#include <math.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/tiers.h"

#define TOGETHER 4 /* queries in registers: 8 accumulators */
#define SPLIT_BLOCKS (KV_SPLIT_TOKENS / KV_BLOCK_TOKENS)

typedef struct query {
    const float *q;
    float *out;
    uint32_t first, end; /* visible keys */
    float *p;            /* [KV_SPLIT_TOKENS] scores, then probabilities, of the split at hand */
    float *part;         /* [d16] the split's sum of p * v */
    float *acc;          /* [d16] the merged sum */
    float max, sum;
    float split_max, split_sum;
    int started;
} query;

/* One split of one KV head. */
typedef struct split {
    moe_dtype dtype;
    uint32_t head_dim, d16; /* d16: rounded up to 16 */
    uint32_t begin;         /* its first token's position, a multiple of KV_SPLIT_TOKENS */
    float scale;
    const char *keys[SPLIT_BLOCKS]; /* this head's part of each block; NULL where nobody looks */
    const char *values[SPLIT_BLOCKS];
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

/* Elements i..i+7 of an array of keys or values. */
KERNEL_INLINE __m256
kv_load_8(moe_dtype dtype, const char *base, size_t i)
{
    if (dtype == DTYPE_F32) return _mm256_loadu_ps((const float *)(const void *)base + i);
    return bf16_widen_8(
        _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)(const void *)base + i)));
}

/* The same where only n < 8 elements are left: the rest reads as 0. */
static __m256
kv_load_tail(moe_dtype dtype, const char *base, size_t i, uint32_t n)
{
    const size_t size = dtype == DTYPE_F32 ? 4 : 2;
    char bytes[32] = {0};
    memcpy(bytes, base + i * size, n * size);
    return kv_load_8(dtype, bytes, 0);
}

/* Scores of one block's 16 keys for n queries. */
KERNEL_INLINE void
score_block(const split *s, moe_dtype dtype, query *q, uint32_t block, int n)
{
    const char *keys = s->keys[block];
    __m256 sum[2 * TOGETHER];
    UNROLL for (int j = 0; j < 2 * n; j++) sum[j] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < s->head_dim; i++) {
        const __m256 k0 = kv_load_8(dtype, keys, (size_t)i * KV_BLOCK_TOKENS);
        const __m256 k1 = kv_load_8(dtype, keys, (size_t)i * KV_BLOCK_TOKENS + 8);
        UNROLL for (int j = 0; j < n; j++)
        {
            const __m256 x = _mm256_broadcast_ss(q[j].q + i);
            sum[2 * j] = _mm256_fmadd_ps(x, k0, sum[2 * j]);
            sum[2 * j + 1] = _mm256_fmadd_ps(x, k1, sum[2 * j + 1]);
        }
    }
    const __m256 scale = _mm256_set1_ps(s->scale);
    UNROLL for (int j = 0; j < n; j++)
    {
        float *p = q[j].p + block * KV_BLOCK_TOKENS;
        _mm256_storeu_ps(p, _mm256_mul_ps(sum[2 * j], scale));
        _mm256_storeu_ps(p + 8, _mm256_mul_ps(sum[2 * j + 1], scale));
    }
}

/* part += p * v over tokens begin..end-1 (counted from the split's start) of features f..f+15, of
 * which `left` exist. */
KERNEL_INLINE void
add_values(const split *s, moe_dtype dtype, query *q, uint32_t begin, uint32_t end, uint32_t f,
           uint32_t left, int n)
{
    __m256 sum[2 * TOGETHER];
    UNROLL for (int j = 0; j < n; j++)
    {
        sum[2 * j] = _mm256_loadu_ps(q[j].part + f);
        sum[2 * j + 1] = _mm256_loadu_ps(q[j].part + f + 8);
    }
    for (uint32_t t = begin; t < end; t++) {
        const char *values = s->values[t / KV_BLOCK_TOKENS];
        const size_t at = (size_t)(t % KV_BLOCK_TOKENS) * s->head_dim + f;
        __m256 v0, v1;
        if (left >= 16) {
            v0 = kv_load_8(dtype, values, at);
            v1 = kv_load_8(dtype, values, at + 8);
        } else {
            v0 = kv_load_tail(dtype, values, at, min_u32(left, 8));
            v1 = kv_load_tail(dtype, values, at + 8, left > 8 ? left - 8 : 0);
        }
        UNROLL for (int j = 0; j < n; j++)
        {
            const __m256 p = _mm256_broadcast_ss(q[j].p + t);
            sum[2 * j] = _mm256_fmadd_ps(p, v0, sum[2 * j]);
            sum[2 * j + 1] = _mm256_fmadd_ps(p, v1, sum[2 * j + 1]);
        }
    }
    UNROLL for (int j = 0; j < n; j++)
    {
        _mm256_storeu_ps(q[j].part + f, sum[2 * j]);
        _mm256_storeu_ps(q[j].part + f + 8, sum[2 * j + 1]);
    }
}

KERNEL_INLINE void
add_values_all(const split *s, moe_dtype dtype, query *q, uint32_t begin, uint32_t end, int n)
{
    for (uint32_t f = 0; f < s->head_dim; f += 16) {
        const uint32_t left = s->head_dim - f;
        if (left >= 16)
            add_values(s, dtype, q, begin, end, f, 16, n);
        else
            add_values(s, dtype, q, begin, end, f, left, n);
    }
}

/* The visible keys of q in the split, counted from its start; begin < end. */
static void
visible(const split *s, const query *q, uint32_t *begin, uint32_t *end)
{
    *begin = max_u32(q->first, s->begin) - s->begin;
    *end = min_u32(q->end - s->begin, KV_SPLIT_TOKENS);
}

KERNEL_INLINE __m256i
lanes_between(uint32_t at, uint32_t begin, uint32_t end)
{
    const __m256i low = lanes_below((int32_t)begin - (int32_t)at);
    return _mm256_andnot_si256(low, lanes_below((int32_t)end - (int32_t)at));
}

/* Scores -> probabilities; the query's split_max and split_sum. */
static void
softmax(const split *s, query *q)
{
    uint32_t begin, end;
    visible(s, q, &begin, &end);
    const uint32_t first = begin / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;

    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    __m256 max = lowest;
    for (uint32_t t = first; t < end; t += 8) {
        const __m256 mask = _mm256_castsi256_ps(lanes_between(t, begin, end));
        max = _mm256_max_ps(max, _mm256_blendv_ps(lowest, _mm256_loadu_ps(q->p + t), mask));
    }
    q->split_max = lanes_max_8(max);

    const __m256 m = _mm256_set1_ps(q->split_max);
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t t = first; t < end; t += KV_BLOCK_TOKENS) {
        UNROLL for (uint32_t i = 0; i < 2; i++)
        {
            const __m256 mask = _mm256_castsi256_ps(lanes_between(t + 8 * i, begin, end));
            const __m256 x = _mm256_sub_ps(_mm256_loadu_ps(q->p + t + 8 * i), m);
            const __m256 p = _mm256_and_ps(expf_8(x), mask);
            sum[i] = _mm256_add_ps(sum[i], p);
            _mm256_storeu_ps(q->p + t + 8 * i, p);
        }
    }
    q->split_sum = lanes_sum_16(sum[0], sum[1]);
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
    const __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b);
    for (uint32_t i = 0; i < d16; i += 8) {
        const __m256 part = _mm256_mul_ps(_mm256_loadu_ps(q->part + i), vb);
        _mm256_storeu_ps(q->acc + i, _mm256_fmadd_ps(_mm256_loadu_ps(q->acc + i), va, part));
    }
}

/* n queries (in rising order of position) through one split that each of them can see. */
KERNEL_INLINE void
walk_split(const split *s, moe_dtype dtype, query *q, int n)
{
    uint32_t begin[TOGETHER], end[TOGETHER];
    for (int j = 0; j < n; j++)
        visible(s, q + j, begin + j, end + j);

    /* Positions rise with j, so all of them see exactly the keys from the last one's first to the
     * first one's last; what lies before and after is done query by query. */
    const uint32_t last = (end[n - 1] + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    for (uint32_t block = begin[0] / KV_BLOCK_TOKENS; block < last; block++)
        score_block(s, dtype, q, block, n);
    for (int j = 0; j < n; j++) {
        softmax(s, q + j);
        memset(q[j].part, 0, s->d16 * sizeof *q[j].part);
    }

    const uint32_t from = begin[n - 1], to = max_u32(end[0], from);
    for (int j = 0; j < n - 1; j++)
        add_values_all(s, dtype, q + j, begin[j], min_u32(from, end[j]), 1);
    add_values_all(s, dtype, q, from, end[0], n);
    for (int j = 0; j < n; j++) {
        add_values_all(s, dtype, q + j, to, end[j], 1);
        merge(q + j, s->d16);
    }
}

KERNEL_INLINE void
walk_any(const split *s, moe_dtype dtype, query *q, uint32_t n)
{
    switch (n) {
    case 1: walk_split(s, dtype, q, 1); return;
    case 2: walk_split(s, dtype, q, 2); return;
    case 3: walk_split(s, dtype, q, 3); return;
    default: walk_split(s, dtype, q, TOGETHER); return;
    }
}

/* Where the split's blocks are, as far as keys begin..end-1 reach into it. */
static void
locate_blocks(const attn_args *a, split *s, uint32_t begin, uint32_t end)
{
    const size_t element = s->dtype == DTYPE_F32 ? 4 : 2;
    const size_t head_bytes = (size_t)a->head_dim * KV_BLOCK_TOKENS * element;
    const uint32_t first = s->begin / KV_BLOCK_TOKENS;
    const uint32_t from = max_u32(begin / KV_BLOCK_TOKENS, first);
    const uint32_t to =
        min_u32((end + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS, first + SPLIT_BLOCKS);
    for (uint32_t b = from; b < to; b++) {
        const char *block = a->blocks + a->block_table[b] * a->block_stride;
        s->keys[b - first] = block + a->kv_head * head_bytes;
        s->values[b - first] = block + (a->kv_heads + a->kv_head) * head_bytes;
    }
}

/* A batch of queries in rising order of position through all their splits. */
static void
walk(const attn_args *a, query *q, uint32_t count)
{
    split s = {
        .dtype = a->kv_dtype,
        .head_dim = a->head_dim,
        .d16 = round_up_u32(a->head_dim, 16),
        .begin = q[0].first / KV_SPLIT_TOKENS * KV_SPLIT_TOKENS,
        .scale = a->scale,
    };
    for (; s.begin < q[count - 1].end; s.begin += KV_SPLIT_TOKENS) {
        uint32_t i = 0, stop = count;
        while (q[i].end <= s.begin)
            i++;
        while (q[stop - 1].first >= s.begin + KV_SPLIT_TOKENS)
            stop--;
        if (i >= stop) continue;
        locate_blocks(a, &s, q[i].first, q[stop - 1].end);
        for (uint32_t n; i < stop; i += n) {
            n = stop - i <= TOGETHER      ? stop - i
                : stop - i < 2 * TOGETHER ? (stop - i + 1) / 2
                                          : TOGETHER;
            if (s.dtype == DTYPE_F32)
                walk_any(&s, DTYPE_F32, q + i, n);
            else
                walk_any(&s, DTYPE_BF16, q + i, n);
        }
    }
}

static void
store(const query *q, uint32_t head_dim)
{
    const __m256 sum = _mm256_set1_ps(q->sum);
    for (uint32_t i = 0; i < head_dim; i += 8) {
        const __m256i mask = lanes_below((int32_t)(head_dim - i));
        _mm256_maskstore_ps(q->out + i, mask, _mm256_div_ps(_mm256_loadu_ps(q->acc + i), sum));
    }
}

/* Query `index` of the call: rows outside, the KV head's query heads inside. */
static void
query_init(query *q, const attn_args *a, uint32_t index, float *scratch)
{
    const uint32_t group = a->heads / a->kv_heads;
    const uint32_t row = index / group, head = a->kv_head * group + index % group;
    const uint32_t end = a->first_pos + row + 1;
    *q = (query){
        .q = a->q + row * a->q_stride + (size_t)head * a->head_dim,
        .out = a->out + row * a->out_stride + (size_t)head * a->head_dim,
        .first = a->window != 0 && end > a->window ? end - a->window : 0,
        .end = end,
        .p = scratch,
        .part = scratch + KV_SPLIT_TOKENS,
        .acc = scratch + KV_SPLIT_TOKENS + round_up_u32(a->head_dim, 16),
    };
}

void
attention_avx2(const attn_args *args)
{
    const uint32_t total = args->rows * (args->heads / args->kv_heads);
    const size_t each = attn_query_floats(args->head_dim);
    query q[ATTN_QUERIES];
    for (uint32_t i = 0; i < total; i += ATTN_QUERIES) {
        const uint32_t count = min_u32(total - i, ATTN_QUERIES);
        for (uint32_t j = 0; j < count; j++)
            query_init(q + j, args, i + j, args->scratch + j * each);
        walk(args, q, count);
        for (uint32_t j = 0; j < count; j++)
            store(q + j, args->head_dim);
    }
}
