/* 16 registers hold 12 chains and two operands: more chains than latency times width asks for (4 or
 * 5 cycles, 2 a cycle).  Loops over the chains must be unrolled, or the array is in memory.
 * Instructions are written out: a compiler may put moves between intrinsics. */
#include <immintrin.h>

#include "tests/bench/peaks.h"

#define CHAINS PEAK_CHAINS_AVX2
uint64_t
peak_f32_avx2(uint64_t rounds)
{
    __m256 acc[CHAINS], a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-9f);
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm256_set1_ps((float)c);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; c++)
            __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(acc[c]) : "x"(a), "x"(b));
    }
#pragma GCC unroll 16
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm256_add_ps(acc[0], acc[c]);
    return (uint64_t)_mm256_cvtss_f32(acc[0]);
}

/* What a product of two signed bytes takes without VNNI: the sign of one operand moved to the
 * other, pairs to 16 bits, pairs of pairs to 32, added. */
uint64_t
peak_int8_avx2(uint64_t rounds)
{
    __m256i acc[PEAK_CHAINS_INT8_AVX2], a = _mm256_set1_epi8(-3), w = _mm256_set1_epi8(5);
    const __m256i one = _mm256_set1_epi16(1), a_abs = _mm256_abs_epi8(a);
#pragma GCC unroll 16
    for (int c = 0; c < PEAK_CHAINS_INT8_AVX2; c++)
        acc[c] = _mm256_set1_epi32(c);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int c = 0; c < PEAK_CHAINS_INT8_AVX2; c++) {
            __m256i t;
            __asm__ volatile("vpsignb %3, %2, %1\n\tvpmaddubsw %1, %4, %1\n\t"
                             "vpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
                             : "+x"(acc[c]), "=&x"(t)
                             : "x"(w), "x"(a), "x"(a_abs), "x"(one));
        }
    }
#pragma GCC unroll 16
    for (int c = 1; c < PEAK_CHAINS_INT8_AVX2; c++)
        acc[0] = _mm256_add_epi32(acc[0], acc[c]);
    return (uint32_t)_mm256_extract_epi32(acc[0], 0);
}

uint64_t
read_avx2(const void *from, size_t bytes)
{
    const __m256i *p = from;
    __m256i sum[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes / 256; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(p + i * 8 + (size_t)j));
    }
#pragma GCC unroll 8
    for (int j = 1; j < 8; j++)
        sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    return (uint64_t)_mm256_extract_epi64(sum[0], 0);
}
