/* expf: accuracy of the one exponential, and that it never produces a NaN. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/expf.h"

TestSuite(expf, .timeout = 60);

static float
from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Distance from the true value in units of the float's last place there. */
static double
error_ulp(float x)
{
    const double want = exp((double)x);
    int exponent;
    frexp(want, &exponent);
    const double ulp = ldexp(1.0, exponent < -125 ? -149 : exponent - 24);
    return fabs((double)kernel_expf(x) - want) / ulp;
}

Test(expf, stays_within_about_one_ulp_over_the_whole_range)
{
    double worst = 0;
    float at = 0;
    for (uint32_t i = 0; i < 2000000; i++) {
        const float x = -104.0f + (float)i * (192.0f / 2000000);
        const double error = error_ulp(x);
        if (error > worst) {
            worst = error;
            at = x;
        }
    }
    cr_expect_lt(worst, 1.01, "%g ulp at %a", worst, (double)at);
}

Test(expf, is_exact_at_zero_and_close_for_tiny_arguments)
{
    cr_expect_eq(kernel_expf(0.0f), 1.0f);
    cr_expect_eq(kernel_expf(-0.0f), 1.0f);
    for (uint32_t e = 0; e < 127; e++) {
        cr_expect_lt(error_ulp(from_bits(e << 23 | 0x2aaaaa)), 1.5);
        cr_expect_lt(error_ulp(-from_bits(e << 23 | 0x2aaaaa)), 1.5);
    }
}

Test(expf, underflows_to_zero_and_overflows_to_infinity)
{
    const float zero[] = {-104.0f, -104.5f, -1e3f, -FLT_MAX, -INFINITY};
    const float huge[] = {88.75f, 89.0f, 1e3f, FLT_MAX, INFINITY};
    for (size_t i = 0; i < 5; i++) {
        cr_expect_eq(kernel_expf(zero[i]), 0.0f);
        cr_expect(!signbit(kernel_expf(zero[i])));
        cr_expect_eq(kernel_expf(huge[i]), INFINITY);
    }
    cr_expect_gt(kernel_expf(-103.0f), 0.0f);
    cr_expect_lt(kernel_expf(88.7f), INFINITY);
}

Test(expf, never_gives_a_nan_for_a_finite_argument)
{
    for (uint64_t bits = 0; bits < 0x100000000; bits += 4099) {
        const float x = from_bits((uint32_t)bits);
        if (isfinite(x)) cr_assert(!isnan(kernel_expf(x)), "%a", (double)x);
    }
}

Test(expf, silu_saturates_without_a_nan)
{
    cr_expect_eq(kernel_silu(0.0f), 0.0f);
    cr_expect_eq(kernel_silu(200.0f), 200.0f);
    cr_expect_eq(kernel_silu(-200.0f), 0.0f);
    cr_expect_eq(kernel_silu(FLT_MAX), FLT_MAX);
    cr_expect_eq(kernel_silu(-FLT_MAX), 0.0f);
    cr_expect_float_eq(kernel_silu(1.0f), 0.731058579, 1e-7);
}
