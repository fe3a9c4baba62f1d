#include <immintrin.h>

#include "tests/bench/peaks.h"

#define CHAINS PEAK_CHAINS_AVX512
#define HIDE(v) __asm__ volatile("" : "+v"(v))

uint64_t
peak_bf16_avx512bf16(uint64_t rounds)
{
    __m512 acc[CHAINS];
    __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x3080); /* 1, and about 1e-9 */
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm512_set1_ps((float)c);
    for (uint64_t r = 0; r < rounds; r++) {
        HIDE(a);
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++)
            acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)a, (__m512bh)b);
    }
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm512_add_ps(acc[0], acc[c]);
    return (uint64_t)_mm512_cvtss_f32(acc[0]);
}
