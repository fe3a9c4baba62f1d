/* repeats and summary: the spread of a few runs, worked by hand. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>

#include "loadgen/determinism.h"
#include "loadgen/repeats.h"
#include "loadgen/summary.h"

TestSuite(repeats, .timeout = 10);

Test(repeats, students_quantiles_are_those_of_the_tables)
{
    const double table[][2] = {{1, 12.7062},  {2, 4.3027},  {4, 2.7764},  {9, 2.2622},
                               {11, 2.2010},  {20, 2.0860}, {30, 2.0423}, {60, 2.0003},
                               {120, 1.9799}, {999, 1.9623}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        cr_expect_float_eq(repeats_student_t((size_t)table[i][0]), table[i][1], 1e-4, "df %g",
                           table[i][0]);
    }
}

Test(repeats, a_few_values_give_the_figures_worked_by_hand)
{
    const double values[] = {4, NAN, 2, 9};
    const repeats_stat s = repeats_summarize(values, 4);
    cr_expect_eq(s.count, 3);
    cr_expect_float_eq(s.mean, 5, 1e-12);
    cr_expect_eq(s.median, 4);
    cr_expect_eq(s.min, 2);
    cr_expect_eq(s.max, 9);
    cr_expect_float_eq(s.std, sqrt(13), 1e-12);
    cr_expect_float_eq(s.ci95, 4.302653 * sqrt(13) / sqrt(3), 1e-9);

    const repeats_stat one = repeats_summarize(values, 1), none = repeats_summarize(values + 1, 1);
    cr_expect(one.mean == 4 && isnan(one.ci95) && isnan(one.std));
    cr_expect(none.count == 0 && isnan(none.mean) && isnan(none.ci95));
}

Test(repeats, a_summary_finds_figures_by_name_and_pools_distributions)
{
    summary s;
    static histogram h[METRIC_COUNT];
    errbuf eb;
    cr_assert_eq(summary_init(&s, 2, &eb), MOE_OK);
    for (int i = 0; i < 2; i++) {
        measure m = {.completed = 10, .request_throughput = 4 + i, .goodput = NAN};
        m.stats[METRIC_TPOT].p99 = 20 + 2 * i;
        histogram_add_ms(&h[METRIC_TPOT], 5);
        summary_add(&s, &m, h);
    }
    repeats_stat v;
    cr_assert(summary_find(&s, "request_throughput", &v));
    cr_expect_eq(v.mean, 4.5);
    cr_assert(summary_find(&s, "p99_tpot_ms", &v));
    cr_expect_eq(v.mean, 21);
    cr_assert(summary_find(&s, "request_goodput", &v));
    cr_expect_eq(v.count, 0);
    cr_expect(!summary_find(&s, "poems", &v));
    cr_expect_eq(s.histograms[METRIC_TPOT].count, 3);
    summary_fini(&s);
}

static void
answer(request_record *r, const char *text, int64_t tokens)
{
    r->completed = true;
    r->output_tokens = tokens;
    strbuf_puts(&r->text, text);
}

Test(repeats, answers_are_equal_in_text_and_count_or_not_at_all)
{
    request_record *a = record_array_create(5), *b = record_array_create(5);
    answer(&a[0], "same", 2), answer(&b[0], "same", 2);
    answer(&a[1], "gone", 2);
    answer(&a[2], "same but one", 3), answer(&b[2], "same but two", 3);
    answer(&a[3], "", 1), answer(&b[3], "", 2);
    answer(&a[4], "", 1), answer(&b[4], "", 1);
    const determinism d = determinism_compare(a, b, 5);
    cr_expect_eq(d.skipped, 1);
    cr_expect_eq(d.compared, 4);
    cr_expect_eq(d.equal, 2);
    cr_expect_eq(d.different, 2);
    cr_expect_eq(d.first_different, 2);
    cr_expect_eq(d.first_byte, 9);
    record_array_free(a, 5);
    record_array_free(b, 5);
}
