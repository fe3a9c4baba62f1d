/* rows_ref: the definition of rows.h. */
#include "kernels/rows.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/expf.h"
#include "kernels/lanes.h"
#include "kernels/tiers.h"

void
rmsnorm_ref(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);

    const float rstd = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * rstd * w[i];
}

/* Quantize up to GROUP_K values; q past n is already 0.  Returns the group's scale. */
static float
quantize_group(const float *x, uint32_t n, int8_t *q)
{
    float max = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    if (max < ACT_MAX_TINY) return 0.0f;

    const float inverse = 127.0f / max;
    for (uint32_t i = 0; i < n; i++) {
        const long v = lrintf(x[i] * inverse);
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return max / 127.0f;
}

void
act_pack_ref(moe_dtype dtype, const float *x, uint32_t n, void *out)
{
    memset(out, 0, act_row_bytes(dtype, n));
    if (!act_is_int8(dtype)) {
        memcpy(out, x, n * sizeof *x);
        return;
    }
    int8_t *q = out;
    float *scale = (float *)(void *)(q + pad_k(n));
    int16_t *sum = (int16_t *)(void *)(scale + pad_k(n) / GROUP_K);
    for (uint32_t i = 0; i < n; i += GROUP_K) {
        const uint32_t count = n - i < GROUP_K ? n - i : GROUP_K;
        scale[i / GROUP_K] = quantize_group(x + i, count, q + i);
    }
    for (uint32_t i = 0; i < n; i++)
        sum[i / GROUP_INT4] = (int16_t)(sum[i / GROUP_INT4] + q[i]);
}

void
rope_ref(float *x, uint32_t heads, uint32_t d, const float *cos, const float *sin)
{
    const uint32_t half = d / 2;
    for (uint32_t h = 0; h < heads; h++, x += d) {
        for (uint32_t i = 0; i < half; i++) {
            const float a = x[i], b = x[i + half];
            x[i] = fmaf(a, cos[i], -(b * sin[i]));
            x[i + half] = fmaf(b, cos[i], a * sin[i]);
        }
    }
}

/* Put probability p of expert id into the first `count` places, which are sorted; the lowest of k
 * falls out.  Strictly greater moves forward, so the earlier (lower) id stays first among equals.
 */
static void
topk_insert(uint32_t *ids, float *weights, uint32_t count, uint32_t k, uint32_t id, float p)
{
    if (count == k && !(p > weights[k - 1])) return;
    uint32_t i = count < k ? count : k - 1;
    for (; i > 0 && p > weights[i - 1]; i--) {
        ids[i] = ids[i - 1];
        weights[i] = weights[i - 1];
    }
    ids[i] = id;
    weights[i] = p;
}

void
gate_topk_ref(const float *logits, uint32_t experts, uint32_t k, uint32_t *ids, float *weights)
{
    assert(k >= 1 && k <= experts);
    float max = logits[0];
    for (uint32_t e = 1; e < experts; e++)
        max = logits[e] > max ? logits[e] : max;

    float lane[LANES] = {0};
    for (uint32_t e = 0; e < experts; e++)
        lane[e % LANES] += kernel_expf(logits[e] - max);
    const float sum = lanes_sum(lane);

    for (uint32_t e = 0; e < experts; e++) {
        const float p = kernel_expf(logits[e] - max) / sum;
        topk_insert(ids, weights, e < k ? e : k, k, e, p);
    }

    float top = 0.0f;
    for (uint32_t i = 0; i < k; i++)
        top += weights[i];
    for (uint32_t i = 0; i < k; i++)
        weights[i] /= top;
}

void
row_add_ref(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

void
combine_ref(float *y, const float *const *rows, const float *weights, uint32_t k, uint32_t n)
{
    assert(k >= 1);
    for (uint32_t i = 0; i < n; i++) {
        float acc = weights[0] * rows[0][i];
        for (uint32_t j = 1; j < k; j++)
            acc = fmaf(weights[j], rows[j][i], acc);
        y[i] += acc;
    }
}
