#include "tests/bench/peaks.h"

#include "common/cpu.h"

const peak peak_list[] = {
#if defined(__x86_64__)
    {PEAK_F32, "f32.avx2", "vfmadd ymm", CPU_AVX2, "AVX2", 2.0 * 8 * PEAK_CHAINS_AVX2,
     peak_f32_avx2},
    {PEAK_F32, "f32.avx512", "vfmadd zmm", CPU_AVX2 | CPU_AVX512, "AVX-512",
     2.0 * 16 * PEAK_CHAINS_AVX512, peak_f32_avx512},
    {PEAK_BF16, "bf16.avx512bf16", "vdpbf16ps zmm", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16,
     "AVX-512 BF16", 2.0 * 32 * PEAK_CHAINS_AVX512, peak_bf16_avx512bf16},
    {PEAK_INT8, "int8.avx2", "vpsignb+vpmaddubsw+vpmaddwd+vpaddd", CPU_AVX2, "AVX2",
     2.0 * 32 * PEAK_CHAINS_INT8_AVX2, peak_int8_avx2},
    {PEAK_INT8, "int8.avx512vnni", "vpdpbusd zmm", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI,
     "AVX-512 VNNI", 2.0 * 64 * PEAK_CHAINS_AVX512, peak_int8_avx512vnni},
#else
    {PEAK_F32, "f32.avx2", "vfmadd ymm", CPU_AVX2, "AVX2", 0, 0},
#endif
};
const uint32_t peak_count = sizeof peak_list / sizeof peak_list[0];

const peak *
peak_best(peak_kind kind, unsigned flags)
{
    const peak *best = NULL;
    for (uint32_t i = 0; i < peak_count; i++) {
        const peak *p = &peak_list[i];
        if (p->kind == kind && (p->flags & flags) == p->flags) best = p;
    }
    if (best == NULL && kind == PEAK_BF16) return peak_best(PEAK_F32, flags);
    return best;
}

uint64_t
read_ref(const void *from, size_t bytes)
{
    const uint64_t *p = from;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < bytes / 64; i++) {
        for (int j = 0; j < 8; j++)
            sum[j] += p[i * 8 + (size_t)j];
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

read_fn *
peak_reader(unsigned flags)
{
#if defined(__x86_64__)
    if ((flags & CPU_AVX512) && (flags & CPU_AVX2)) return read_avx512;
    if (flags & CPU_AVX2) return read_avx2;
#endif
    (void)flags;
    return read_ref;
}
