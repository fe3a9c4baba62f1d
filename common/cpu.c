#include "common/cpu.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"

/* __builtin_cpu_supports() reads CPUID and XGETBV, so a flag implies that the OS saves the
 * registers. */
static unsigned
probe(void)
{
    unsigned flags = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) flags |= CPU_AVX2;
    if ((flags & CPU_AVX2) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        flags |= CPU_AVX512;
        if (__builtin_cpu_supports("avx512vnni")) flags |= CPU_AVX512_VNNI;
        if (__builtin_cpu_supports("avx512bf16")) flags |= CPU_AVX512_BF16;
        if ((flags & CPU_AVX512_BF16) && __builtin_cpu_is("intel")) flags |= CPU_SLOW_BF16;
    }
#endif
    return flags;
}

unsigned
cpu_flags(void)
{
    const unsigned flags = probe();
    const char *mask = getenv("CONCLAVE_CPU_MASK");
    if (mask == NULL || strcmp(mask, "") == 0 || strcmp(mask, "all") == 0) return flags;
    if (strcmp(mask, "ref") == 0) return 0;
    if (strcmp(mask, "avx2") == 0) return flags & CPU_AVX2;
    if (strcmp(mask, "avx512") == 0) return flags & (CPU_AVX2 | CPU_AVX512);
    LOG_WARN("cpu", "CONCLAVE_CPU_MASK is none of ref, avx2, avx512, all: ignored value=%s", mask);
    return flags;
}
