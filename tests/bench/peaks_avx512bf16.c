#include <immintrin.h>

#include "tests/bench/peaks.h"

#define CHAINS PEAK_CHAINS_AVX512

/* The instruction is written out: a compiler may put moves between intrinsics. */
uint64_t
peak_bf16_avx512bf16(uint64_t rounds)
{
    __m512 acc[CHAINS];
    __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x3080); /* 1, and about 1e-9 */
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm512_set1_ps((float)c);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(acc[c]) : "v"(a), "v"(b));
    }
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm512_add_ps(acc[0], acc[c]);
    return (uint64_t)_mm512_cvtss_f32(acc[0]);
}
