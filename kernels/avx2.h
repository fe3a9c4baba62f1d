/* avx2: what the AVX2 sources share.  Include only from files compiled with -mavx2 -mfma. */
#ifndef MOE_KERNELS_AVX2_H
#define MOE_KERNELS_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#include "kernels/expf.h"

/* Kernels take their row and tile counts as compile-time constants: their bodies must be inlined
 * and their short loops unrolled, or the accumulators would live in memory. */
#define KERNEL_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Repeats a statement for r = 0 .. rows - 1 (at most 12), t = 0 .. tiles - 1 (at most 4).  Unlike
 * an unrolled loop this has constant indices from the start, so that compilers split an array of
 * sums into registers before anything else: GCC 12 spills most of 24 sums otherwise. */
#define EACH_STEP(i, name, count, ...)                                                             \
    {                                                                                              \
        enum { name = i };                                                                         \
        if (name < (count)) {                                                                      \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define EACH_ROW(r, ...)                                                                           \
    EACH_STEP(0, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(1, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(2, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(3, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(4, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(5, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(6, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(7, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(8, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(9, r, rows, __VA_ARGS__)                                                             \
    EACH_STEP(10, r, rows, __VA_ARGS__)                                                            \
    EACH_STEP(11, r, rows, __VA_ARGS__)
#define EACH_TILE_STEP(i, name, count, ...)                                                        \
    {                                                                                              \
        enum { name = i };                                                                         \
        if (name < (count)) {                                                                      \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define EACH_TILE(t, ...)                                                                          \
    EACH_TILE_STEP(0, t, tiles, __VA_ARGS__)                                                       \
    EACH_TILE_STEP(1, t, tiles, __VA_ARGS__)                                                       \
    EACH_TILE_STEP(2, t, tiles, __VA_ARGS__)                                                       \
    EACH_TILE_STEP(3, t, tiles, __VA_ARGS__)
/* Keeps compilers from holding in registers, across iterations, what a loop updates in memory. */
#define KEEP_IN_MEMORY __asm__ volatile("" ::: "memory")
/* Ends a sum here: compilers otherwise regroup integer additions across steps and run out of
 * registers. */
#define KEEP_SUM(sum) __asm__("" : "+x"(sum))

/* kernel_expf() in 8 lanes, operation by operation. */
KERNEL_INLINE __m256
expf_8(__m256 x)
{
    x = _mm256_max_ps(x, _mm256_set1_ps(EXPF_LOWEST));
    x = _mm256_min_ps(x, _mm256_set1_ps(EXPF_HIGHEST));

    const __m256 rounder = _mm256_set1_ps(EXPF_ROUNDER);
    const __m256 rounded = _mm256_fmadd_ps(x, _mm256_set1_ps(EXPF_LOG2E), rounder);
    const __m256 n = _mm256_sub_ps(rounded, rounder);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXPF_LN2_HIGH), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXPF_LN2_LOW), r);

    __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(EXPF_Q4), r, _mm256_set1_ps(EXPF_Q3));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(EXPF_Q2));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(EXPF_Q1));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(EXPF_Q0));
    const __m256 y =
        _mm256_add_ps(_mm256_fmadd_ps(q, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));

    const __m256i exponent =
        _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(EXPF_ROUNDER_BITS));
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    const __m256i rest = _mm256_sub_epi32(exponent, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i f1 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i f2 = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(f1)), _mm256_castsi256_ps(f2));
}

/* kernel_silu() in 8 lanes. */
KERNEL_INLINE __m256
silu_8(__m256 g)
{
    const __m256 e = expf_8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

/* lanes_sum() of lanes 0..7 and 8..15. */
KERNEL_INLINE float
lanes_sum_16(__m256 low, __m256 high)
{
    const __m256 s8 = _mm256_add_ps(low, high);
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

KERNEL_INLINE float
lanes_max_8(__m256 v)
{
    const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}

/* Lanes 0..count-1 set; count may be below 0 or above 8. */
KERNEL_INLINE __m256i
lanes_below(int32_t count)
{
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
}

/* 8 bfloat16 -> 8 floats. */
KERNEL_INLINE __m256
bf16_widen_8(__m128i v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* 8 IEEE halves -> 8 floats, exactly, as half_to_float(); with integer operations, because F16C is
 * a feature of its own.  A half's bits moved to a float's place are 2^112 too small; the sign,
 * spread by the extension, stays in bit 31.  Infinities and NaNs do not occur as scales. */
KERNEL_INLINE __m256
half_widen_8(const uint16_t *h)
{
    const __m256i v = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)h));
    const __m256i bits =
        _mm256_and_si256(_mm256_slli_epi32(v, 13), _mm256_set1_epi32((int32_t)0x8fffe000));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p112f));
}

#endif
