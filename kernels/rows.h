/* rows: operations on whole float rows: norm, quantize, RoPE, gate, combine, sums.
 *
 * Sums along a row run over 16 virtual lanes: lane j takes the elements j, j + 16, ... in order
 * (absent ones count as 0), then lanes are added pairwise, 8 apart, 4, 2, 1.  Every tier returns
 * the same bits (design contract: all f32 row operations are equal on every CPU).  exp is one
 * polynomial, kernel_expf() in kernels/expf.h, in every tier.
 *
 * Float rows need no alignment beyond that of a float.
 *
 * Threads: pure functions.
 */
#ifndef MOE_KERNELS_ROWS_H
#define MOE_KERNELS_ROWS_H

#include <stdint.h>

#include "kernels/packed.h"

/* RMSNorm (Zhang, Sennrich, 2019; as in Mixtral): y[i] = (x[i] * rstd) * w[i],
 * rstd = 1 / sqrtf(sum / n + eps), sum of x[i] * x[i] taken with fmaf in each lane.
 *   x, w  [n]
 *   y     [n], may be x  */
typedef void rmsnorm_fn(const float *x, const float *w, float eps, uint32_t n, float *y);

/* Below this a group's largest magnitude counts as 0: 127 / max would overflow. */
#define ACT_MAX_TINY 0x1p-120f

/* Float row -> activation row of `dtype` (packed.h), padding filled with zeros.
 *   f32, bf16   a copy
 *   int8, int4  per group of 64: scale = max|x| / 127 (float division), q = nearest-even of
 *               x * (127 / max|x|) (float product), clamped to -127..127; where max|x| is below
 *               ACT_MAX_TINY scale and q are 0; then the sums of q per group of 32
 *
 *   x    [n], finite
 *   out  act_row_bytes(dtype, n) bytes, 64-byte aligned; every byte is written  */
typedef void act_pack_fn(moe_dtype dtype, const float *x, uint32_t n, void *out);

/* Rotary embedding (Su et al., 2021), Hugging Face's half-split pairing: for i < d/2
 *   x[i]'       = x[i] cos[i] - x[i + d/2] sin[i]     as fmaf(x[i], cos, -(x[i + d/2] * sin))
 *   x[i + d/2]' = x[i + d/2] cos[i] + x[i] sin[i]     as fmaf(x[i + d/2], cos, x[i] * sin)
 *
 *   x         [heads][d], in place; d is even
 *   cos, sin  [d/2] of the row's position  */
typedef void rope_fn(float *x, uint32_t heads, uint32_t d, const float *cos, const float *sin);

/* Gate: softmax over the experts' logits, the top k of them (1 <= k <= E), renormalized to sum 1.
 *   logits   [E], finite
 *   ids      [k], highest probability first, lower id first among equals
 *   weights  [k], probabilities divided by their sum (added in that order)  */
typedef void gate_topk_fn(const float *logits, uint32_t experts, uint32_t k, uint32_t *ids,
                          float *weights);

/* y[i] += x[i]. */
typedef void row_add_fn(float *y, const float *x, uint32_t n);

/* Combine: y[i] += the sum over j of weights[j] * rows[j][i], as acc = weights[0] * rows[0][i],
 * then fmaf(weights[j], rows[j][i], acc), then y[i] + acc.  k >= 1. */
typedef void combine_fn(float *y, const float *const *rows, const float *weights, uint32_t k,
                        uint32_t n);

#endif
