/* arrivals and rng: a seed names a schedule, and the gaps have the distribution promised. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/arrivals.h"
#include "loadgen/rng.h"

#define COUNT 20000

TestSuite(arrivals, .timeout = 20);

static uint64_t *
build(double rate, double burstiness, uint64_t seed, size_t count)
{
    const arrivals_config config = {.rate = rate, .burstiness = burstiness, .seed = seed};
    uint64_t *at_ns;
    errbuf eb;
    cr_assert_eq(arrivals_build(&config, count, &at_ns, &eb), MOE_OK);
    return at_ns;
}

Test(arrivals, gaps_have_the_mean_and_spread_of_their_shape)
{
    const double shapes[] = {0.25, 0.5, 1, 4, 50, INFINITY};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        uint64_t *at_ns = build(8, shapes[s], 3, COUNT);
        double sum = 0, squares = 0;
        for (size_t i = 1; i < COUNT; i++) {
            cr_assert_geq(at_ns[i], at_ns[i - 1]);
            const double gap = (double)(at_ns[i] - at_ns[i - 1]) / (double)NS_PER_S;
            sum += gap;
            squares += gap * gap;
        }
        const double mean = sum / (COUNT - 1), variance = squares / (COUNT - 1) - mean * mean;
        const double cv = sqrt(fmax(0, variance)) / mean, want_cv = 1 / sqrt(shapes[s]);
        /* Five standard errors of the mean; the spread within 8 %. */
        cr_expect_float_eq(mean, 0.125, 0.125 * (5 * want_cv / sqrt(COUNT) + 1e-6),
                           "shape %g: mean gap %g", shapes[s], mean);
        cr_expect_float_eq(cv, want_cv, 0.08 * want_cv + 1e-4, "shape %g: cv %g", shapes[s], cv);
        free(at_ns);
    }
}

Test(arrivals, the_same_seed_gives_the_same_schedule_and_another_seed_another)
{
    uint64_t *a = build(5, 1, 7, 100), *b = build(5, 1, 7, 100), *c = build(5, 1, 8, 100);
    cr_expect_eq(memcmp(a, b, 100 * sizeof *a), 0);
    cr_expect_neq(memcmp(a, c, 100 * sizeof *a), 0);
    cr_expect_eq(a[0], 0);
    free(a);
    free(b);
    free(c);
}

Test(arrivals, a_longer_schedule_starts_with_the_shorter_one)
{
    uint64_t *a = build(5, 1, 7, 10), *b = build(5, 1, 7, 100);
    cr_expect_eq(memcmp(a, b, 10 * sizeof *a), 0);
    free(a);
    free(b);
}

Test(arrivals, an_infinite_rate_sends_all_at_once)
{
    uint64_t *at_ns = build(INFINITY, 1, 1, 50);
    for (size_t i = 0; i < 50; i++) {
        cr_expect_eq(at_ns[i], 0);
    }
    free(at_ns);
}

Test(arrivals, a_ramp_moves_the_rate_from_its_first_to_its_last)
{
    static const struct {
        arrivals_ramp ramp;
        double first, last, middle;
    } cases[] = {{ARRIVALS_LINEAR, 2, 10, 6},
                 {ARRIVALS_LINEAR, 10, 2, 6},
                 {ARRIVALS_EXPONENTIAL, 2, 32, 8},
                 {ARRIVALS_EXPONENTIAL, 5, 5, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const arrivals_config c = {.rate = INFINITY,
                                   .burstiness = INFINITY,
                                   .ramp = cases[i].ramp,
                                   .ramp_start = cases[i].first,
                                   .ramp_end = cases[i].last};
        uint64_t *at_ns;
        errbuf eb;
        cr_assert_eq(arrivals_build(&c, 101, &at_ns, &eb), MOE_OK);
        const size_t probes[] = {1, 50, 100};
        for (size_t p = 0; p < 3; p++) {
            const double gap_s = (double)(at_ns[probes[p]] - at_ns[probes[p] - 1]) / 1e9;
            cr_expect_float_eq(gap_s, 1 / arrivals_rate_at(&c, probes[p], 101), 1e-8);
        }
        cr_expect_float_eq(arrivals_rate_at(&c, 0, 101), cases[i].first, 1e-9);
        cr_expect_float_eq(arrivals_rate_at(&c, 50, 101), cases[i].middle, 1e-9);
        cr_expect_float_eq(arrivals_rate_at(&c, 100, 101), cases[i].last, 1e-9);
        cr_expect_eq(arrivals_rate_at(&c, 0, 1), cases[i].first);
        free(at_ns);
    }
    const arrivals_config bad = {.burstiness = 1, .ramp = ARRIVALS_LINEAR, .ramp_start = 1};
    uint64_t *at_ns;
    errbuf eb;
    cr_expect_eq(arrivals_build(&bad, 3, &at_ns, &eb), MOE_ERANGE);
}

Test(arrivals, refuses_a_rate_or_shape_that_is_not_positive_and_endless_schedules)
{
    const double bad[][2] = {{0, 1}, {-1, 1}, {NAN, 1}, {1, 0}, {1, -2}, {1, NAN}, {1e-9, 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const arrivals_config config = {.rate = bad[i][0], .burstiness = bad[i][1]};
        uint64_t *at_ns;
        errbuf eb;
        cr_expect_eq(arrivals_build(&config, 1000, &at_ns, &eb), MOE_ERANGE);
        cr_expect_null(at_ns);
    }
}

Test(arrivals, the_generator_never_changes)
{
    /* Results name their load by its seed, so these words are part of the format. */
    rng r;
    rng_init(&r, 1, RNG_TOKENS);
    const uint64_t first = rng_u64(&r), second = rng_u64(&r);
    cr_expect_eq(first, 0x58495783e4fd06a9ull, "0x%llx", (unsigned long long)first);
    cr_expect_eq(second, 0xc609e6a9d3d40d3aull, "0x%llx", (unsigned long long)second);
}

Test(arrivals, small_draws_cover_their_range_evenly)
{
    rng r;
    rng_init(&r, 5, 9);
    size_t seen[7] = {0};
    for (size_t i = 0; i < 7000; i++) {
        seen[rng_below(&r, 7)]++;
    }
    for (size_t i = 0; i < 7; i++) {
        cr_expect(seen[i] > 850 && seen[i] < 1150, "%zu: %zu", i, seen[i]);
    }
}
