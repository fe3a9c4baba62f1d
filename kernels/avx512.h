/* avx512: what the AVX-512 sources share.  Include only from files compiled with F, BW, DQ, VL. */
#ifndef MOE_KERNELS_AVX512_H
#define MOE_KERNELS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "kernels/avx2.h"
#include "kernels/expf.h"

/* kernel_expf() in 16 lanes, operation by operation. */
KERNEL_INLINE __m512
expf_16(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(EXPF_LOWEST));
    x = _mm512_min_ps(x, _mm512_set1_ps(EXPF_HIGHEST));

    const __m512 rounder = _mm512_set1_ps(EXPF_ROUNDER);
    const __m512 rounded = _mm512_fmadd_ps(x, _mm512_set1_ps(EXPF_LOG2E), rounder);
    const __m512 n = _mm512_sub_ps(rounded, rounder);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXPF_LN2_HIGH), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXPF_LN2_LOW), r);

    __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(EXPF_Q4), r, _mm512_set1_ps(EXPF_Q3));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(EXPF_Q2));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(EXPF_Q1));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(EXPF_Q0));
    const __m512 y =
        _mm512_add_ps(_mm512_fmadd_ps(q, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));

    const __m512i exponent =
        _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(EXPF_ROUNDER_BITS));
    const __m512i half = _mm512_srai_epi32(exponent, 1);
    const __m512i rest = _mm512_sub_epi32(exponent, half);
    const __m512i bias = _mm512_set1_epi32(127);
    const __m512i f1 = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    const __m512i f2 = _mm512_slli_epi32(_mm512_add_epi32(rest, bias), 23);
    return _mm512_mul_ps(_mm512_mul_ps(y, _mm512_castsi512_ps(f1)), _mm512_castsi512_ps(f2));
}

/* kernel_silu() in 16 lanes. */
KERNEL_INLINE __m512
silu_16(__m512 g)
{
    const __m512 e = expf_16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
    return _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

#endif
