/* rows_avx2: rows.h, 8 floats at a time; tails by masks, never by another formula. */
#include "kernels/rows.h"

#include <math.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/tiers.h"

/* Lanes of the 8 elements from i on that a row of n has. */
KERNEL_INLINE __m256i
tail_mask(uint32_t i, uint32_t n)
{
    return lanes_below(i >= n ? 0 : n - i < 8 ? (int32_t)(n - i) : 8);
}

void
rmsnorm_avx2(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    const uint32_t whole = n / 16 * 16;
    __m256 s0 = _mm256_setzero_ps(), s1 = _mm256_setzero_ps();
    for (uint32_t i = 0; i < whole; i += 16) {
        const __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
        s0 = _mm256_fmadd_ps(x0, x0, s0);
        s1 = _mm256_fmadd_ps(x1, x1, s1);
    }
    if (whole < n) {
        const __m256 x0 = _mm256_maskload_ps(x + whole, tail_mask(whole, n));
        s0 = _mm256_fmadd_ps(x0, x0, s0);
        if (n - whole > 8) {
            const __m256 x1 = _mm256_maskload_ps(x + whole + 8, tail_mask(whole + 8, n));
            s1 = _mm256_fmadd_ps(x1, x1, s1);
        }
    }
    const float rstd = 1.0f / sqrtf(lanes_sum_16(s0, s1) / (float)n + eps);
    const __m256 r = _mm256_set1_ps(rstd);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), r);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(w + i)));
    }
    if (i < n) {
        const __m256i mask = tail_mask(i, n);
        const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), r);
        _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(v, _mm256_maskload_ps(w + i, mask)));
    }
}

/* 32 floats times `inverse` -> 32 int8, nearest-even, within -127..127. */
KERNEL_INLINE __m256i
quantize_32(const float *x, __m256 inverse)
{
    __m256i v[4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    }
    /* The packs interleave their halves in pairs of 4; the permutation puts them in order. */
    const __m256i low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    return _mm256_max_epi8(q, _mm256_set1_epi8(-127));
}

/* The sum of 32 int8: as unsigned bytes 128 too high each, in 4 partial sums. */
KERNEL_INLINE int16_t
sum_32(__m256i q)
{
    const __m256i lifted = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
    const __m256i s4 = _mm256_sad_epu8(lifted, _mm256_setzero_si256());
    const __m128i s2 = _mm_add_epi32(_mm256_castsi256_si128(s4), _mm256_extracti128_si256(s4, 1));
    return (int16_t)(_mm_cvtsi128_si32(s2) + _mm_extract_epi32(s2, 2) - 32 * 128);
}

/* One whole group: q and the sums of its halves.  Returns its scale. */
static float
quantize_group(const float x[GROUP_K], int8_t q[GROUP_K], int16_t sum[2])
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 m = _mm256_setzero_ps();
    for (uint32_t i = 0; i < GROUP_K; i += 8)
        m = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)), m);
    const float max = lanes_max_8(m);
    if (max < ACT_MAX_TINY) {
        memset(q, 0, GROUP_K);
        memset(sum, 0, 2 * sizeof *sum);
        return 0.0f;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / max);
    for (uint32_t i = 0; i < GROUP_K; i += 32) {
        const __m256i v = quantize_32(x + i, inverse);
        _mm256_storeu_si256((__m256i *)(void *)(q + i), v);
        sum[i / 32] = sum_32(v);
    }
    return max / 127.0f;
}

void
act_pack_avx2(moe_dtype dtype, const float *x, uint32_t n, void *out)
{
    if (!act_is_int8(dtype)) {
        memcpy(out, x, n * sizeof *x);
        memset((float *)out + n, 0, (pad_k(n) - n) * sizeof *x);
        return;
    }
    const uint32_t k64 = pad_k(n), whole = n / GROUP_K * GROUP_K;
    int8_t *q = out;
    float *scale = (float *)(void *)(q + k64);
    int16_t *sum = (int16_t *)(void *)(scale + k64 / GROUP_K);
    for (uint32_t i = 0; i < whole; i += GROUP_K)
        scale[i / GROUP_K] = quantize_group(x + i, q + i, sum + i / GROUP_INT4);
    if (whole < n) {
        float tail[GROUP_K] = {0};
        memcpy(tail, x + whole, (n - whole) * sizeof *x);
        scale[whole / GROUP_K] = quantize_group(tail, q + whole, sum + whole / GROUP_INT4);
    }
    char *end = (char *)(sum + k64 / GROUP_INT4);
    memset(end, 0, act_row_bytes(dtype, n) - (size_t)(end - (char *)out));
}

KERNEL_INLINE void
rotate_8(float *x, uint32_t half, __m256i mask, const float *cos, const float *sin)
{
    const __m256 a = _mm256_maskload_ps(x, mask), b = _mm256_maskload_ps(x + half, mask);
    const __m256 c = _mm256_maskload_ps(cos, mask), s = _mm256_maskload_ps(sin, mask);
    _mm256_maskstore_ps(x, mask, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    _mm256_maskstore_ps(x + half, mask, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
}

void
rope_avx2(float *x, uint32_t heads, uint32_t d, const float *cos, const float *sin)
{
    const uint32_t half = d / 2;
    for (uint32_t h = 0; h < heads; h++, x += d) {
        for (uint32_t i = 0; i < half; i += 8)
            rotate_8(x + i, half, tail_mask(i, half), cos + i, sin + i);
    }
}

void
row_add_avx2(float *y, const float *x, uint32_t n)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++)
        y[i] += x[i];
}

void
combine_avx2(float *y, const float *const *rows, const float *weights, uint32_t k, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8) {
        const __m256i mask = tail_mask(i, n);
        __m256 acc =
            _mm256_mul_ps(_mm256_set1_ps(weights[0]), _mm256_maskload_ps(rows[0] + i, mask));
        for (uint32_t j = 1; j < k; j++) {
            const __m256 x = _mm256_maskload_ps(rows[j] + i, mask);
            acc = _mm256_fmadd_ps(_mm256_set1_ps(weights[j]), x, acc);
        }
        _mm256_maskstore_ps(y + i, mask, _mm256_add_ps(_mm256_maskload_ps(y + i, mask), acc));
    }
}
