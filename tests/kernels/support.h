/* support: what the kernel tests share: tiers, seeded numbers, exact-sized aligned buffers. */
#ifndef MOE_TESTS_KERNELS_SUPPORT_H
#define MOE_TESTS_KERNELS_SUPPORT_H

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu.h"
#include "kernels/table.h"

#define UNIT 0x1p-24 /* rounding unit of a float */

/* The definition, AVX2, AVX-512 without VNNI and BF16, all that the machine has, fast or not. */
enum { TIER_REF, TIER_AVX2, TIER_AVX512, TIER_BEST, TIER_COUNT };

/* The kernels of a tier; false where the machine has no more than the tier below. */
static inline bool
tier_init(kernel_table *k, int tier)
{
    static const unsigned masks[TIER_COUNT] = {0, CPU_AVX2, CPU_AVX2 | CPU_AVX512, ~CPU_SLOW_BF16};
    const unsigned have = cpu_flags();
    kernel_table_init(k, have & masks[tier]);
    return tier == TIER_REF || (have & masks[tier]) != (have & masks[tier - 1]);
}

/* Tests that compare tiers begin with this. */
static inline void
skip_without_tiers(void)
{
    if (!(cpu_flags() & CPU_AVX2))
        cr_skip(
            "this machine offers no tier above ref (no AVX2 and FMA, or CONCLAVE_CPU_MASK=ref)");
}

static inline void *
buffer_alloc(size_t bytes)
{
    void *p = NULL;
    cr_assert_eq(posix_memalign(&p, 64, bytes ? bytes : 64), 0);
    memset(p, 0xa5, bytes);
    return p;
}

static inline float *
floats_alloc(size_t count)
{
    return buffer_alloc(count * sizeof(float));
}

static inline uint32_t
rng_next(uint32_t *rng)
{
    *rng = *rng * 1664525u + 1013904223u;
    return *rng >> 8;
}

/* Within -1..1. */
static inline float
rng_float(uint32_t *rng)
{
    return (float)rng_next(rng) * 0x1p-23f - 1.0f;
}

static inline float *
random_floats(size_t count, float size, uint32_t *rng)
{
    float *p = floats_alloc(count);
    for (size_t i = 0; i < count; i++)
        p[i] = rng_float(rng) * size;
    return p;
}

static inline bool
same_bits(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

#endif
