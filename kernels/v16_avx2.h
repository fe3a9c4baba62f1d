/* v16_avx2: vectors of 16 lanes as pairs of 8-lane registers, for sources written once for all
 * vector tiers.  The same names and meanings as v16_avx512.h.  Include only from files compiled
 * with -mavx2 -mfma.
 */
#ifndef MOE_KERNELS_V16_AVX2_H
#define MOE_KERNELS_V16_AVX2_H

#include <string.h>

#include "kernels/avx2.h"

typedef struct v16 {
    __m256 low, high;
} v16;

typedef struct w16 {
    __m256i low, high;
} w16;

typedef w16 m16;

/* Of lanes at .. at+15, those in begin..end-1. */
KERNEL_INLINE m16
m16_between(uint32_t at, uint32_t begin, uint32_t end)
{
    const int32_t from = (int32_t)begin - (int32_t)at, to = (int32_t)end - (int32_t)at;
    return (m16){_mm256_andnot_si256(lanes_below(from), lanes_below(to)),
                 _mm256_andnot_si256(lanes_below(from - 8), lanes_below(to - 8))};
}

KERNEL_INLINE v16
v16_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

KERNEL_INLINE v16
v16_zero(void)
{
    return v16_set1(0.0f);
}

KERNEL_INLINE v16
v16_broadcast(const float *p)
{
    const __m256 x = _mm256_broadcast_ss(p);
    return (v16){x, x};
}

KERNEL_INLINE v16
v16_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

/* 64 bytes, whatever they are. */
KERNEL_INLINE v16
v16_load_raw(const void *p)
{
    return v16_load(p);
}

/* The first `lanes` lanes; the rest reads as 0. */
KERNEL_INLINE v16
v16_load_lanes(const void *p, uint32_t lanes)
{
    const float *from = p;
    return (v16){_mm256_maskload_ps(from, lanes_below((int32_t)lanes)),
                 _mm256_maskload_ps(from + 8, lanes_below((int32_t)lanes - 8))};
}

KERNEL_INLINE void
v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}

KERNEL_INLINE void
v16_store_lanes(float *p, v16 x, uint32_t lanes)
{
    _mm256_maskstore_ps(p, lanes_below((int32_t)lanes), x.low);
    _mm256_maskstore_ps(p + 8, lanes_below((int32_t)lanes - 8), x.high);
}

KERNEL_INLINE __m256
bf16_low_8(__m256 raw)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(raw), 16));
}

KERNEL_INLINE __m256
bf16_high_8(__m256 raw)
{
    return _mm256_and_ps(raw, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}

/* The even ones of 32 bf16, as floats; and the odd ones. */
KERNEL_INLINE v16
v16_bf16_low(v16 raw)
{
    return (v16){bf16_low_8(raw.low), bf16_low_8(raw.high)};
}

KERNEL_INLINE v16
v16_bf16_high(v16 raw)
{
    return (v16){bf16_high_8(raw.low), bf16_high_8(raw.high)};
}

KERNEL_INLINE v16
v16_fma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

KERNEL_INLINE v16
v16_add(v16 a, v16 b)
{
    return (v16){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

KERNEL_INLINE v16
v16_sub(v16 a, v16 b)
{
    return (v16){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

KERNEL_INLINE v16
v16_mul(v16 a, v16 b)
{
    return (v16){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

KERNEL_INLINE v16
v16_div(v16 a, v16 b)
{
    return (v16){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

KERNEL_INLINE v16
v16_max(v16 a, v16 b)
{
    return (v16){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

KERNEL_INLINE v16
v16_abs(v16 x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

KERNEL_INLINE v16
v16_select(m16 mask, v16 yes, v16 no)
{
    return (v16){_mm256_blendv_ps(no.low, yes.low, _mm256_castsi256_ps(mask.low)),
                 _mm256_blendv_ps(no.high, yes.high, _mm256_castsi256_ps(mask.high))};
}

KERNEL_INLINE v16
v16_keep(m16 mask, v16 x)
{
    return (v16){_mm256_and_ps(x.low, _mm256_castsi256_ps(mask.low)),
                 _mm256_and_ps(x.high, _mm256_castsi256_ps(mask.high))};
}

KERNEL_INLINE float
v16_highest(v16 x)
{
    return lanes_max_8(_mm256_max_ps(x.low, x.high));
}

KERNEL_INLINE float
v16_sum(v16 x)
{
    return lanes_sum_16(x.low, x.high);
}

KERNEL_INLINE v16
v16_exp(v16 x)
{
    return (v16){expf_8(x.low), expf_8(x.high)};
}

KERNEL_INLINE w16
w16_zero(void)
{
    return (w16){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

KERNEL_INLINE w16
w16_load(const void *p)
{
    const __m256i *from = p;
    return (w16){_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}

KERNEL_INLINE void
w16_store(void *p, w16 x)
{
    __m256i *to = p;
    _mm256_storeu_si256(to, x.low);
    _mm256_storeu_si256(to + 1, x.high);
}

/* 32 int8 -> 16 pairs of int16. */
KERNEL_INLINE w16
w16_load_widen(const void *p)
{
    const __m128i *from = p;
    return (w16){_mm256_cvtepi8_epi16(_mm_loadu_si128(from)),
                 _mm256_cvtepi8_epi16(_mm_loadu_si128(from + 1))};
}

/* The first `lanes` pairs; the rest reads as 0. */
KERNEL_INLINE w16
w16_load_widen_lanes(const void *p, uint32_t lanes)
{
    char bytes[32] = {0};
    memcpy(bytes, p, (size_t)lanes * 2);
    return w16_load_widen(bytes);
}

KERNEL_INLINE w16
w16_broadcast(const void *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (w16){_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}

/* sum + a.low * b.low + a.high * b.high, a and b pairs of int16.  The empty asm keeps the sum in
 * its register: else GCC 12 moves every sum to another one in each turn of a loop, and spills. */
KERNEL_INLINE w16
w16_madd(w16 sum, w16 a, w16 b)
{
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low));
    __asm__("" : "+x"(sum.low));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high));
    __asm__("" : "+x"(sum.high));
    return sum;
}

KERNEL_INLINE v16
w16_to_float(w16 x)
{
    return (v16){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}

/* To nearest-even. */
KERNEL_INLINE w16
w16_round(v16 x)
{
    return (w16){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}

KERNEL_INLINE void
w16_store_int16(void *p, w16 x)
{
    const __m256i halves = _mm256_packs_epi32(x.low, x.high); /* within 128-bit halves */
    _mm256_storeu_si256(p, _mm256_permute4x64_epi64(halves, 0xd8));
}

#endif
