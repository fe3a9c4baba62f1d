/* attention_ref: the definition of attention.h, one query at a time. */
#include "kernels/attention.h"

#include <math.h>

#include "kernels/expf.h"
#include "kernels/lanes.h"
#include "kernels/tiers.h"

/* One query head's running result; everything lives in the caller's scratch. */
typedef struct query {
    const float *q;
    float *p;    /* [KV_SPLIT_TOKENS] scores, then probabilities, of the split at hand */
    float *part; /* [head_dim] the split's sum of p * v */
    float *acc;  /* [head_dim] the merged sum */
    float max, sum;
    int started;
} query;

static float
kv_load(moe_dtype dtype, const void *base, size_t i)
{
    return dtype == DTYPE_F32 ? ((const float *)base)[i]
                              : bf16_to_float(((const uint16_t *)base)[i]);
}

static void
kv_put(moe_dtype dtype, void *base, size_t i, float v)
{
    if (dtype == DTYPE_F32)
        ((float *)base)[i] = v;
    else
        ((uint16_t *)base)[i] = bf16_from_float(v);
}

void
kv_store_ref(moe_dtype dtype, void *block, uint32_t offset, uint32_t kv_heads, uint32_t head_dim,
             const float *k, const float *v)
{
    const size_t head = (size_t)head_dim * KV_BLOCK_TOKENS;
    const size_t values = kv_heads * head;
    for (uint32_t h = 0; h < kv_heads; h++) {
        for (uint32_t i = 0; i < head_dim; i++) {
            const size_t from = (size_t)h * head_dim + i;
            kv_put(dtype, block, h * head + (size_t)i * KV_BLOCK_TOKENS + offset, k[from]);
            kv_put(dtype, block, values + h * head + (size_t)offset * head_dim + i, v[from]);
        }
    }
}

static const char *
block_of(const attn_args *a, uint32_t token)
{
    return a->blocks + a->block_table[token / KV_BLOCK_TOKENS] * a->block_stride;
}

static float
score(const attn_args *a, const float *q, uint32_t token)
{
    const char *block = block_of(a, token);
    const size_t keys =
        (size_t)a->kv_head * a->head_dim * KV_BLOCK_TOKENS + token % KV_BLOCK_TOKENS;
    float sum = 0.0f;
    for (uint32_t i = 0; i < a->head_dim; i++)
        sum = fmaf(q[i], kv_load(a->kv_dtype, block, keys + (size_t)i * KV_BLOCK_TOKENS), sum);
    return sum * a->scale;
}

static void
add_value(const attn_args *a, float *part, float p, uint32_t token)
{
    const char *block = block_of(a, token);
    const size_t head = (size_t)a->head_dim * KV_BLOCK_TOKENS;
    const size_t values =
        (a->kv_heads + a->kv_head) * head + (size_t)(token % KV_BLOCK_TOKENS) * a->head_dim;
    for (uint32_t i = 0; i < a->head_dim; i++)
        part[i] = fmaf(p, kv_load(a->kv_dtype, block, values + i), part[i]);
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
        const float x = score(a, s->q, j);
        s->p[j - begin] = x;
        max = x > max ? x : max;
    }
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < a->head_dim; i++)
        s->part[i] = 0.0f;
    for (uint32_t j = begin; j < end; j++) {
        const float p = kernel_expf(s->p[j - begin] - max);
        lane[j % LANES] += p;
        add_value(a, s->part, p, j);
    }
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
    };
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
