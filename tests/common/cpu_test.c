/* cpu: the mask lowers the tier and never raises it. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/cpu.h"
#include "tests/common/capture.h"

static char *outer_mask;

static void
setup(void)
{
    const char *mask = getenv("CONCLAVE_CPU_MASK");
    outer_mask = mask == NULL ? NULL : strdup(mask);
    unsetenv("CONCLAVE_CPU_MASK");
}

static void
teardown(void)
{
    if (outer_mask != NULL)
        setenv("CONCLAVE_CPU_MASK", outer_mask, 1);
    else
        unsetenv("CONCLAVE_CPU_MASK");
    free(outer_mask);
    outer_mask = NULL;
}

TestSuite(cpu, .init = setup, .fini = teardown, .timeout = 10);

static unsigned
flags_under(const char *mask)
{
    setenv("CONCLAVE_CPU_MASK", mask, 1);
    return cpu_flags();
}

Test(cpu, a_mask_keeps_the_tiers_up_to_its_own)
{
    const unsigned all = cpu_flags();
    cr_expect_eq(flags_under("all"), all);
    cr_expect_eq(flags_under(""), all);
    cr_expect_eq(flags_under("ref"), 0);
    cr_expect_eq(flags_under("avx2"), all & CPU_AVX2);
    cr_expect_eq(flags_under("avx512"), all & (CPU_AVX2 | CPU_AVX512));
}

Test(cpu, a_tier_implies_those_below_it)
{
    const unsigned all = cpu_flags();
    if (all & (CPU_AVX512_VNNI | CPU_AVX512_BF16)) cr_expect(all & CPU_AVX512);
    if (all & CPU_SLOW_BF16) cr_expect(all & CPU_AVX512_BF16);
    if (all & CPU_AVX512) cr_expect(all & CPU_AVX2);
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cr_expect_eq((all & CPU_AVX2) != 0, avx2);
#else
    cr_expect_eq(all, 0);
#endif
}

Test(cpu, an_unknown_mask_is_reported_and_ignored)
{
    char text[512];
    const unsigned all = cpu_flags();
    const capture c = capture_start();
    cr_expect_eq(flags_under("avx3"), all);
    capture_stop(c, text, sizeof text);
    cr_expect_not_null(strstr(text, "CONCLAVE_CPU_MASK"));
    cr_expect_not_null(strstr(text, "avx3"));
}
