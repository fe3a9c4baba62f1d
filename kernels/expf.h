/* expf: the one exponential of all kernels, so that softmax and SiLU have the same bits on every
 * tier.  A vector tier repeats these operations lane by lane, in this order (kernels/avx2.h).
 *
 * exp(x) = 2^n * exp(r), n = the integer nearest x / ln 2, r = x - n * ln 2 in two steps (ln 2
 * split in two floats; the first product is exact), exp(r) = 1 + r + r^2 * q(r).  q has degree 4
 * and minimizes the largest relative error of exp(r) on |r| <= ln(2) / 2, which is 3.1e-9; with
 * roundings a result is within 1.01 units in its last place (measured at every float of
 * -104 .. 88.7 whose magnitude is at least 1e-4).
 *
 * Source: range reduction as in Cody and Waite, "Software Manual for the Elementary Functions",
 * 1980; coefficients from a Remez exchange in 40-digit arithmetic with weight r^2 / exp(r).
 *
 * Threads: pure functions.
 */
#ifndef MOE_KERNELS_EXPF_H
#define MOE_KERNELS_EXPF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPF_LOWEST (-104.0f) /* exp of it rounds to 0 */
#define EXPF_HIGHEST 89.0f    /* exp of it rounds to infinity */
#define EXPF_LOG2E 0x1.715476p+0f
#define EXPF_LN2_HIGH 0x1.62e430p-1f
#define EXPF_LN2_LOW (-0x1.05c610p-29f)
#define EXPF_Q0 0x1.fffffcp-2f
#define EXPF_Q1 0x1.555492p-3f
#define EXPF_Q2 0x1.5558f4p-5f
#define EXPF_Q3 0x1.123a20p-7f
#define EXPF_Q4 0x1.6a23c2p-10f
/* 1.5 * 2^23: adding it rounds to an integer, nearest-even, and leaves that integer in the low
 * bits of the sum. */
#define EXPF_ROUNDER 0x1.8p+23f
#define EXPF_ROUNDER_BITS 0x4b400000

/* 2^n as a float, n in -126..127. */
static inline float
kernel_exp2i(int32_t n)
{
    const uint32_t bits = (uint32_t)(n + 127) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* exp(x): 0 below -104, infinity above 88.73, subnormal results rounded once; never NaN. */
static inline float
kernel_expf(float x)
{
    x = x > EXPF_LOWEST ? x : EXPF_LOWEST;
    x = x < EXPF_HIGHEST ? x : EXPF_HIGHEST;

    const float rounded = fmaf(x, EXPF_LOG2E, EXPF_ROUNDER);
    const float n = rounded - EXPF_ROUNDER;
    float r = fmaf(n, -EXPF_LN2_HIGH, x);
    r = fmaf(n, -EXPF_LN2_LOW, r);

    float q = fmaf(EXPF_Q4, r, EXPF_Q3);
    q = fmaf(q, r, EXPF_Q2);
    q = fmaf(q, r, EXPF_Q1);
    q = fmaf(q, r, EXPF_Q0);
    const float y = fmaf(q, r * r, r) + 1.0f;

    /* Two factors, because 2^n alone may be out of a float's range while the result is not. */
    int32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    const int32_t exponent = bits - EXPF_ROUNDER_BITS;
    const int32_t half = exponent >> 1;
    return y * kernel_exp2i(half) * kernel_exp2i(exponent - half);
}

/* g / (1 + exp(-g)) */
static inline float
kernel_silu(float g)
{
    return g / (1.0f + kernel_expf(-g));
}

#endif
