/* histogram: buckets without gaps, narrow enough, and percentiles that the exact ones agree with.
 */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>

#include "loadgen/histogram.h"
#include "loadgen/measure.h"
#include "loadgen/rng.h"

TestSuite(histogram, .timeout = 10);

Test(histogram, buckets_follow_one_another_and_are_narrow)
{
    cr_expect_eq(histogram_bucket(0), 0);
    cr_expect_eq(histogram_upper_us(0), 0);
    for (size_t b = 1; b < HISTOGRAM_BUCKETS; b++) {
        const uint64_t low = histogram_upper_us(b - 1) + 1, high = histogram_upper_us(b);
        cr_assert_leq(low, high);
        cr_assert_eq(histogram_bucket(low), b);
        cr_assert_eq(histogram_bucket(high), b);
        cr_assert(low == high || (high - low + 1) * HISTOGRAM_HALF <= low, "bucket %zu", b);
    }
    cr_expect_eq(histogram_upper_us(HISTOGRAM_BUCKETS - 1), HISTOGRAM_US_MAX);
    cr_expect_eq(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

Test(histogram, percentiles_are_within_a_bucket_of_the_values)
{
    enum { N = 5000 };
    static double values[N];
    static histogram all, halves[2];
    rng r;
    rng_init(&r, 3, RNG_LENGTHS);
    for (size_t i = 0; i < N; i++) {
        values[i] = exp(rng_normal(&r) * 3);
        histogram_add_ms(&all, values[i]);
        histogram_add_ms(&halves[i % 2], values[i]);
    }
    qsort(values, N, sizeof *values, compare_doubles);
    histogram_merge(&halves[0], &halves[1]);
    const double shown[] = {0, 1, 50, 90, 95, 99, 99.9, 100};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        const size_t rank = (size_t)fmax(1, ceil(shown[i] / 100 * N));
        const double exact = values[rank - 1], got = histogram_percentile_ms(&all, shown[i]);
        cr_expect(got >= exact - 0.001 && got <= exact * (1 + 1. / HISTOGRAM_HALF) + 0.001,
                  "p%g: %g for %g", shown[i], got, exact);
        cr_expect_eq(histogram_percentile_ms(&halves[0], shown[i]), got);
    }
}

Test(histogram, takes_any_number_and_tells_nothing_when_empty)
{
    static histogram h;
    cr_expect(isnan(histogram_percentile_ms(&h, 50)));
    histogram_add_ms(&h, NAN);
    histogram_add_ms(&h, -5);
    histogram_add_ms(&h, INFINITY);
    cr_expect_eq(h.count, 3);
    cr_expect_eq(histogram_percentile_ms(&h, 50), 0);
    cr_expect_eq(histogram_percentile_ms(&h, 100), (double)HISTOGRAM_US_MAX / 1e3);
}
