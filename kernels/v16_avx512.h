/* v16_avx512: vectors of 16 lanes in one register, for sources written once for all vector tiers.
 * The same names and meanings as v16_avx2.h.  Include only from files compiled with F, BW, DQ, VL.
 *
 *   v16  16 floats
 *   w16  16 int32, or 16 pairs of int16
 *   m16  a mask of 16 lanes
 */
#ifndef MOE_KERNELS_V16_AVX512_H
#define MOE_KERNELS_V16_AVX512_H

#include <string.h>

#include "kernels/avx512.h"

typedef __m512 v16;
typedef __m512i w16;
typedef __mmask16 m16;

/* Lanes 0..count-1, count in 0..16. */
KERNEL_INLINE m16
m16_below(uint32_t count)
{
    return (m16)((1u << count) - 1);
}

/* Of lanes at .. at+15, those in begin..end-1. */
KERNEL_INLINE m16
m16_between(uint32_t at, uint32_t begin, uint32_t end)
{
    const uint32_t low = begin > at ? begin - at : 0, high = end > at ? end - at : 0;
    return (m16)(m16_below(high < 16 ? high : 16) & ~m16_below(low < 16 ? low : 16));
}

KERNEL_INLINE v16
v16_zero(void)
{
    return _mm512_setzero_ps();
}

KERNEL_INLINE v16
v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

KERNEL_INLINE v16
v16_broadcast(const float *p)
{
    return _mm512_set1_ps(*p);
}

KERNEL_INLINE v16
v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

/* 64 bytes, whatever they are. */
KERNEL_INLINE v16
v16_load_raw(const void *p)
{
    return _mm512_loadu_ps(p);
}

/* The first `lanes` lanes; the rest reads as 0. */
KERNEL_INLINE v16
v16_load_lanes(const void *p, uint32_t lanes)
{
    return _mm512_maskz_loadu_ps(m16_below(lanes), p);
}

KERNEL_INLINE void
v16_store(float *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}

KERNEL_INLINE void
v16_store_lanes(float *p, v16 x, uint32_t lanes)
{
    _mm512_mask_storeu_ps(p, m16_below(lanes), x);
}

/* The even ones of 32 bf16, as floats; and the odd ones. */
KERNEL_INLINE v16
v16_bf16_low(v16 raw)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(raw), 16));
}

KERNEL_INLINE v16
v16_bf16_high(v16 raw)
{
    return _mm512_and_ps(raw, _mm512_castsi512_ps(_mm512_set1_epi32((int)0xffff0000)));
}

KERNEL_INLINE v16
v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

KERNEL_INLINE v16
v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

KERNEL_INLINE v16
v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

KERNEL_INLINE v16
v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

KERNEL_INLINE v16
v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

KERNEL_INLINE v16
v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

KERNEL_INLINE v16
v16_abs(v16 x)
{
    return _mm512_abs_ps(x);
}

KERNEL_INLINE v16
v16_select(m16 mask, v16 yes, v16 no)
{
    return _mm512_mask_blend_ps(mask, no, yes);
}

KERNEL_INLINE v16
v16_keep(m16 mask, v16 x)
{
    return _mm512_maskz_mov_ps(mask, x);
}

KERNEL_INLINE __m256
upper_half(v16 x)
{
    return _mm512_extractf32x8_ps(x, 1);
}

KERNEL_INLINE float
v16_highest(v16 x)
{
    return lanes_max_8(_mm256_max_ps(_mm512_castps512_ps256(x), upper_half(x)));
}

KERNEL_INLINE float
v16_sum(v16 x)
{
    return lanes_sum_16(_mm512_castps512_ps256(x), upper_half(x));
}

KERNEL_INLINE v16
v16_exp(v16 x)
{
    return expf_16(x);
}

KERNEL_INLINE w16
w16_zero(void)
{
    return _mm512_setzero_si512();
}

KERNEL_INLINE w16
w16_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

KERNEL_INLINE void
w16_store(void *p, w16 x)
{
    _mm512_storeu_si512(p, x);
}

/* 32 int8 -> 16 pairs of int16. */
KERNEL_INLINE w16
w16_load_widen(const void *p)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(p));
}

/* The first `lanes` pairs; the rest reads as 0. */
KERNEL_INLINE w16
w16_load_widen_lanes(const void *p, uint32_t lanes)
{
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi16(m16_below(lanes), p));
}

KERNEL_INLINE w16
w16_broadcast(const void *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* sum + a.low * b.low + a.high * b.high, a and b pairs of int16.  The empty asm keeps the sum in
 * its register: else GCC 12 moves every sum to another one in each turn of a loop. */
KERNEL_INLINE w16
w16_madd(w16 sum, w16 a, w16 b)
{
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
    __asm__("" : "+v"(sum));
    return sum;
}

KERNEL_INLINE v16
w16_to_float(w16 x)
{
    return _mm512_cvtepi32_ps(x);
}

/* To nearest-even. */
KERNEL_INLINE w16
w16_round(v16 x)
{
    return _mm512_cvtps_epi32(x);
}

KERNEL_INLINE void
w16_store_int16(void *p, w16 x)
{
    _mm256_storeu_si256(p, _mm512_cvtsepi32_epi16(x));
}

#endif
