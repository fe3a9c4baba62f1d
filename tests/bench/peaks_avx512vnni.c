#include <immintrin.h>

#include "tests/bench/peaks.h"

#define CHAINS PEAK_CHAINS_AVX512

/* The instruction is written out: a compiler may put moves between intrinsics. */
uint64_t
peak_int8_avx512vnni(uint64_t rounds)
{
    __m512i acc[CHAINS], a = _mm512_set1_epi8(3), w = _mm512_set1_epi8(-5);
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm512_set1_epi32(c);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc[c]) : "v"(a), "v"(w));
    }
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm512_add_epi32(acc[0], acc[c]);
    return (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0]));
}
