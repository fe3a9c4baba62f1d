/* rows_avx512: rows.h, 16 floats at a time: a register is the 16 virtual lanes.  Tails by masks. */
#include <math.h>
#include <string.h>

#include "kernels/avx512.h"
#include "kernels/rows.h"
#include "kernels/tiers.h"

/* Lanes of the 16 elements from i on that a row of n has; i < n. */
KERNEL_INLINE __mmask16
tail_mask(uint32_t i, uint32_t n)
{
    return n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
}

void
rmsnorm_avx512(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    __m512 s = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        const __m512 v = _mm512_maskz_loadu_ps(tail_mask(i, n), x + i);
        s = _mm512_fmadd_ps(v, v, s);
    }
    const float sum = lanes_sum_16(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    const __m512 rstd = _mm512_set1_ps(1.0f / sqrtf(sum / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(i, n);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), rstd);
        _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + i)));
    }
}

/* 16 floats times `inverse` -> 16 int8, nearest-even, within -127..127. */
KERNEL_INLINE __m128i
quantize_16(__m512 x, __m512 inverse)
{
    const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    return _mm_max_epi8(_mm512_cvtsepi32_epi8(v), _mm_set1_epi8(-127));
}

/* The sum of 16 int8: as unsigned bytes 128 too high each, in 2 partial sums. */
KERNEL_INLINE int32_t
sum_16(__m128i q)
{
    const __m128i s = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128;
}

/* The largest magnitude of a group's values.  As in rows_ref.c, what is NaN does not count: the
 * comparison's second operand is what comes out then. */
KERNEL_INLINE float
largest_magnitude(const __m512 *x)
{
    __m512 m = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++)
        m = _mm512_max_ps(_mm512_abs_ps(x[i]), m);
    return lanes_max_8(_mm256_max_ps(_mm512_castps512_ps256(m), _mm512_extractf32x8_ps(m, 1)));
}

/* Up to GROUP_K values from x + i on: q, the sums of its halves, and the scale. */
KERNEL_INLINE float
quantize_group(const float *x, uint32_t i, uint32_t n, int8_t *q, int16_t *sum)
{
    __m512 v[4];
    for (uint32_t j = 0; j < 4; j++)
        v[j] = i + 16 * j < n ? _mm512_maskz_loadu_ps(tail_mask(i + 16 * j, n), x + i + 16 * j)
                              : _mm512_setzero_ps();
    const float max = largest_magnitude(v);
    if (max < ACT_MAX_TINY) {
        memset(q, 0, GROUP_K);
        memset(sum, 0, 2 * sizeof *sum);
        return 0.0f;
    }
    const __m512 inverse = _mm512_set1_ps(127.0f / max);
    int32_t sums[4];
    for (int j = 0; j < 4; j++) {
        const __m128i bytes = quantize_16(v[j], inverse);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * j), bytes);
        sums[j] = sum_16(bytes);
    }
    sum[0] = (int16_t)(sums[0] + sums[1]);
    sum[1] = (int16_t)(sums[2] + sums[3]);
    return max / 127.0f;
}

void
act_pack_avx512(moe_dtype dtype, const float *x, uint32_t n, void *out)
{
    if (!act_is_int8(dtype)) {
        memcpy(out, x, n * sizeof *x);
        memset((float *)out + n, 0, (pad_k(n) - n) * sizeof *x);
        return;
    }
    const uint32_t k64 = pad_k(n);
    int8_t *q = out;
    float *scale = (float *)(void *)(q + k64);
    int16_t *sum = (int16_t *)(void *)(scale + k64 / GROUP_K);
    for (uint32_t i = 0; i < n; i += GROUP_K)
        scale[i / GROUP_K] = quantize_group(x, i, n, q + i, sum + i / GROUP_INT4);
    char *end = (char *)(sum + k64 / GROUP_INT4);
    memset(end, 0, act_row_bytes(dtype, n) - (size_t)(end - (char *)out));
}

void
row_add_avx512(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(i, n);
        const __m512 sum =
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i), _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

void
combine_avx512(float *y, const float *const *rows, const float *weights, uint32_t k, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(i, n);
        __m512 acc =
            _mm512_mul_ps(_mm512_set1_ps(weights[0]), _mm512_maskz_loadu_ps(mask, rows[0] + i));
        for (uint32_t j = 1; j < k; j++) {
            const __m512 x = _mm512_maskz_loadu_ps(mask, rows[j] + i);
            acc = _mm512_fmadd_ps(_mm512_set1_ps(weights[j]), x, acc);
        }
        _mm512_mask_storeu_ps(y + i, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i), acc));
    }
}
