/* scrape: Prometheus text, as servers write it and as they should not. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "loadgen/scrape.h"

TestSuite(scrape, .timeout = 10);

static void
enter(scrape_result *r, const char *text)
{
    cr_assert_eq(scrape_parse(text, strlen(text), r->sample_count, r), MOE_OK);
    r->sample_count++;
}

static double
value(const scrape_result *r, const char *name, size_t sample)
{
    for (size_t i = 0; i < r->series_count; i++) {
        if (strcmp(r->series[i].name, name) == 0) return r->series[i].values[sample];
    }
    cr_expect(false, "no %s", name);
    return NAN;
}

Test(scrape, names_labels_and_values_are_kept_and_buckets_are_not)
{
    static scrape_result r;
    enter(&r, "# HELP a text\n# TYPE a gauge\na 1.5\n"
              "b{x=\"1 }\\\" y\",z=\"\"} 2e3 1700000000\r\n"
              "c_bucket{le=\"+Inf\"} 9\nc_sum 4\nc_count 2\n\nnonsense\nd nonsense\n{} 1\ne +Inf");
    enter(&r, "a 2\nf 3\n");
    cr_expect_eq(value(&r, "a", 0), 1.5);
    cr_expect_eq(value(&r, "a", 1), 2);
    cr_expect_eq(value(&r, "b{x=\"1 }\\\" y\",z=\"\"}", 0), 2000);
    cr_expect_eq(value(&r, "c_sum", 0), 4);
    cr_expect(isnan(value(&r, "c_sum", 1)));
    cr_expect(isnan(value(&r, "f", 0)) && value(&r, "f", 1) == 3);
    cr_expect(isinf(value(&r, "e", 0)));
    for (size_t i = 0; i < r.series_count; i++) {
        cr_expect_neq(strncmp(r.series[i].name, "c_bucket", 8), 0);
    }
    scrape_result_fini(&r);
}

Test(scrape, many_moments_are_thinned_and_many_series_cut_off)
{
    static scrape_result r;
    char text[64];
    for (int i = 0; i < 5; i++) {
        snprintf(text, sizeof text, "a %d\n", i);
        r.at_ns[r.sample_count] = (uint64_t)i;
        enter(&r, text);
    }
    scrape_halve(&r);
    cr_assert_eq(r.sample_count, 3);
    cr_expect(r.at_ns[2] == 4 && value(&r, "a", 2) == 4 && isnan(value(&r, "a", 3)));
    for (int i = 0; i < SCRAPE_SERIES_MAX + 10; i++) {
        snprintf(text, sizeof text, "s%d 1\n", i);
        cr_assert_eq(scrape_parse(text, strlen(text), 0, &r), MOE_OK);
    }
    cr_expect_eq(r.series_count, SCRAPE_SERIES_MAX);
    scrape_result_fini(&r);
}
