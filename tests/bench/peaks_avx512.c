#include <immintrin.h>

#include "tests/bench/peaks.h"

#define CHAINS PEAK_CHAINS_AVX512

/* The instruction is written out: a compiler may put moves between intrinsics. */
uint64_t
peak_f32_avx512(uint64_t rounds)
{
    __m512 acc[CHAINS], a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-9f);
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm512_set1_ps((float)c);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(acc[c]) : "v"(a), "v"(b));
    }
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm512_add_ps(acc[0], acc[c]);
    return (uint64_t)_mm512_cvtss_f32(acc[0]);
}

uint64_t
read_avx512(const void *from, size_t bytes)
{
    const __m512i *p = from;
    __m512i sum[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        sum[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < bytes / 512; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(p + i * 8 + (size_t)j));
    }
#pragma GCC unroll 8
    for (int j = 1; j < 8; j++)
        sum[0] = _mm512_xor_si512(sum[0], sum[j]);
    return (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(sum[0]));
}
