/* attention_ref: the definition of attention.h, one query at a time. */
#include "kernels/attention.h"

#include <math.h>

#include "kernels/expf.h"
#include "kernels/lanes.h"
#include "kernels/tiers.h"

/* One query head's running result; everything lives in the caller's scratch. */
typedef struct query {
    const float *q;
    int32_t *fixed;    /* [head_dim] q8, for an int8 cache */
    float fixed_scale; /* u * scale */
    float *p;          /* [KV_SPLIT_TOKENS] scores, then probabilities, of the split at hand */
    float *part;       /* [head_dim] the split's sum of p * v */
    float *acc;        /* [head_dim] the merged sum */
    float max, sum;
    int started;
} query;

/* x[i] rounded to multiples of max|x| / limit, which is returned. */
static float
to_fixed(const float *x, uint32_t n, int32_t limit, int32_t *out)
{
    float max = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    const float inverse = max < ATTN_TINY ? 0.0f : (float)limit / max;
    for (uint32_t i = 0; i < n; i++) {
        const long v = lrintf(x[i] * inverse);
        out[i] = (int32_t)(v > limit ? limit : v < -limit ? -limit : v);
    }
    return max < ATTN_TINY ? 0.0f : max / (float)limit;
}

/* Where key (or value) element i of a token is, in elements from the start of the keys (values). */
static size_t
key_index(moe_dtype dtype, uint32_t token, uint32_t i)
{
    const uint32_t pair = kv_pair(dtype);
    return (size_t)(i / pair * KV_BLOCK_TOKENS + token) * pair + i % pair;
}

static size_t
value_index(moe_dtype dtype, uint32_t head_dim, uint32_t token, uint32_t i)
{
    const uint32_t pair = kv_pair(dtype);
    return ((size_t)(token / pair) * head_dim + i) * pair + token % pair;
}

static float
kv_load(moe_dtype dtype, const char *base, size_t i)
{
    return dtype == DTYPE_F32    ? ((const float *)(const void *)base)[i]
           : dtype == DTYPE_BF16 ? bf16_to_float(((const uint16_t *)(const void *)base)[i])
                                 : (float)((const int8_t *)base)[i];
}

static void
kv_put(moe_dtype dtype, char *base, size_t i, float v, float inverse)
{
    if (dtype == DTYPE_F32)
        ((float *)(void *)base)[i] = v;
    else if (dtype == DTYPE_BF16)
        ((uint16_t *)(void *)base)[i] = bf16_from_float(v);
    else {
        const long q = lrintf(v * inverse);
        ((int8_t *)base)[i] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
    }
}

/* The int8 scale of x; *inverse turns x into q. */
static float
kv_scale(const float *x, uint32_t n, float *inverse)
{
    float max = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    *inverse = max < ATTN_TINY ? 0.0f : 127.0f / max;
    return max < ATTN_TINY ? 0.0f : max / 127.0f;
}

void
kv_store_ref(moe_dtype dtype, void *block, uint32_t offset, uint32_t kv_heads, uint32_t head_dim,
             const float *k, const float *v)
{
    for (uint32_t h = 0; h < kv_heads; h++, k += head_dim, v += head_dim) {
        char *head = (char *)block + h * kv_head_bytes(dtype, head_dim);
        char *keys = head + kv_keys_offset(dtype),
             *values = head + kv_values_offset(dtype, head_dim);
        float k_inverse = 0, v_inverse = 0;
        if (dtype == DTYPE_INT8) {
            float *scales = (float *)(void *)head;
            scales[offset] = kv_scale(k, head_dim, &k_inverse);
            scales[KV_BLOCK_TOKENS + offset] = kv_scale(v, head_dim, &v_inverse);
        }
        for (uint32_t i = 0; i < head_dim; i++) {
            kv_put(dtype, keys, key_index(dtype, offset, i), k[i], k_inverse);
            kv_put(dtype, values, value_index(dtype, head_dim, offset, i), v[i], v_inverse);
        }
        if (head_dim % kv_pair(dtype))
            kv_put(dtype, keys, key_index(dtype, offset, head_dim), 0.0f, 0.0f);
    }
}

/* This call's KV head in the block of a token. */
static const char *
head_of(const attn_args *a, uint32_t token)
{
    return a->blocks + a->block_table[token / KV_BLOCK_TOKENS] * a->block_stride +
           a->kv_head * kv_head_bytes(a->kv_dtype, a->head_dim);
}

/* The int8 scale of a token's keys, or of its values. */
static float
scale_of(const attn_args *a, uint32_t token, int of_values)
{
    const float *scales = (const float *)(const void *)head_of(a, token);
    return scales[(of_values ? KV_BLOCK_TOKENS : 0) + token % KV_BLOCK_TOKENS];
}

static float
score(const attn_args *a, const query *s, uint32_t token)
{
    const char *keys = head_of(a, token) + kv_keys_offset(a->kv_dtype);
    if (a->kv_dtype == DTYPE_INT8) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            const size_t at = key_index(a->kv_dtype, token % KV_BLOCK_TOKENS, i);
            sum += s->fixed[i] * ((const int8_t *)keys)[at];
        }
        return (float)sum * (scale_of(a, token, 0) * s->fixed_scale);
    }
    float sum = 0.0f;
    for (uint32_t i = 0; i < a->head_dim; i++) {
        const size_t at = key_index(a->kv_dtype, token % KV_BLOCK_TOKENS, i);
        sum = fmaf(s->q[i], kv_load(a->kv_dtype, keys, at), sum);
    }
    return sum * a->scale;
}

/* part = the sum of p * v over tokens begin..end-1. */
static void
sum_values(const attn_args *a, const float *p, uint32_t begin, uint32_t end, float *part)
{
    for (uint32_t i = 0; i < a->head_dim; i++)
        part[i] = 0.0f;
    for (uint32_t j = begin; j < end; j++) {
        const char *values = head_of(a, j) + kv_values_offset(a->kv_dtype, a->head_dim);
        for (uint32_t i = 0; i < a->head_dim; i++) {
            const size_t at = value_index(a->kv_dtype, a->head_dim, j % KV_BLOCK_TOKENS, i);
            part[i] = fmaf(p[j - begin], kv_load(a->kv_dtype, values, at), part[i]);
        }
    }
}

static void
sum_values_int8(const attn_args *a, const float *p, uint32_t begin, uint32_t end, float *part)
{
    float weight[KV_SPLIT_TOKENS];
    int32_t fixed[KV_SPLIT_TOKENS];
    for (uint32_t j = begin; j < end; j++)
        weight[j - begin] = p[j - begin] * scale_of(a, j, 1);
    const float unit = to_fixed(weight, end - begin, KV_VALUE_WEIGHT_MAX, fixed);
    for (uint32_t i = 0; i < a->head_dim; i++) {
        int32_t sum = 0;
        for (uint32_t j = begin; j < end; j++) {
            const char *values = head_of(a, j) + kv_values_offset(a->kv_dtype, a->head_dim);
            const size_t at = value_index(a->kv_dtype, a->head_dim, j % KV_BLOCK_TOKENS, i);
            sum += fixed[j - begin] * ((const int8_t *)values)[at];
        }
        part[i] = (float)sum * unit;
    }
}

static void
merge(query *s, uint32_t head_dim, float max, float sum)
{
    if (!s->started) {
        s->started = 1;
        s->max = max;
        s->sum = sum;
        for (uint32_t i = 0; i < head_dim; i++)
            s->acc[i] = s->part[i];
        return;
    }
    const float top = max > s->max ? max : s->max;
    const float a = kernel_expf(s->max - top), b = kernel_expf(max - top);
    s->max = top;
    s->sum = fmaf(s->sum, a, sum * b);
    for (uint32_t i = 0; i < head_dim; i++)
        s->acc[i] = fmaf(s->acc[i], a, s->part[i] * b);
}

/* Keys begin..end-1, all of one split and all visible. */
static void
walk_split(const attn_args *a, query *s, uint32_t begin, uint32_t end)
{
    float max = -INFINITY;
    for (uint32_t j = begin; j < end; j++) {
        const float x = score(a, s, j);
        s->p[j - begin] = x;
        max = x > max ? x : max;
    }
    float lane[LANES] = {0};
    for (uint32_t j = begin; j < end; j++) {
        s->p[j - begin] = kernel_expf(s->p[j - begin] - max);
        lane[j % LANES] += s->p[j - begin];
    }
    if (a->kv_dtype == DTYPE_INT8)
        sum_values_int8(a, s->p, begin, end, s->part);
    else
        sum_values(a, s->p, begin, end, s->part);
    merge(s, a->head_dim, max, lanes_sum(lane));
}

static void
attend(const attn_args *a, uint32_t row, uint32_t head)
{
    query s = {
        .q = a->q + row * a->q_stride + (size_t)head * a->head_dim,
        .p = a->scratch,
        .part = a->scratch + KV_SPLIT_TOKENS,
        .acc = a->scratch + KV_SPLIT_TOKENS + a->head_dim,
        .fixed = (int32_t *)(void *)(a->scratch + KV_SPLIT_TOKENS + 2 * (size_t)a->head_dim),
    };
    if (a->kv_dtype == DTYPE_INT8)
        s.fixed_scale = to_fixed(s.q, a->head_dim, attn_query_max(a->head_dim), s.fixed) * a->scale;
    const uint32_t end = a->first_pos + row + 1;
    const uint32_t first = a->window != 0 && end > a->window ? end - a->window : 0;
    for (uint32_t begin = first; begin < end;) {
        const uint32_t next = (begin / KV_SPLIT_TOKENS + 1) * KV_SPLIT_TOKENS;
        const uint32_t stop = next < end ? next : end;
        walk_split(a, &s, begin, stop);
        begin = stop;
    }
    float *out = a->out + row * a->out_stride + (size_t)head * a->head_dim;
    for (uint32_t i = 0; i < a->head_dim; i++)
        out[i] = s.acc[i] / s.sum;
}

void
attention_ref(const attn_args *args)
{
    const uint32_t group = args->heads / args->kv_heads;
    for (uint32_t r = 0; r < args->rows; r++) {
        for (uint32_t h = 0; h < group; h++)
            attend(args, r, args->kv_head * group + h);
    }
}
