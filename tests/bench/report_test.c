/* report and machine: what is computed and printed about samples, by hand. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "tests/bench/machine.h"
#include "tests/bench/report.h"

TestSuite(bench_report, .timeout = 10);

Test(bench_report, median_is_the_middle_one_or_the_mean_of_the_middle_two)
{
    samples s = {.count = 0};
    cr_expect_eq(samples_median(&s), 0);
    samples_add(&s, 9);
    cr_expect_eq(samples_median(&s), 9);
    samples_add(&s, 1);
    cr_expect_eq(samples_median(&s), 5);
    samples_add(&s, 2);
    cr_expect_eq(samples_median(&s), 2);
    cr_expect_eq(samples_min(&s), 1);
    cr_expect_eq(samples_max(&s), 9);
    cr_expect_eq(s.values[0], 9, "sorting must leave the order of measuring alone");
}

Test(bench_report, samples_past_the_limit_are_dropped)
{
    samples s = {.count = 0};
    for (int i = 0; i < SAMPLES_MAX + 5; i++)
        samples_add(&s, i);
    cr_expect_eq(s.count, SAMPLES_MAX);
    cr_expect_eq(samples_max(&s), SAMPLES_MAX - 1);
}

Test(bench_report, a_result_is_one_json_line_with_its_values_and_extras)
{
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    report r = {.out = to, .bench = "hw", .json = true};
    result x = {.test = "say \"x\"", .unit = "us", .lower_is_better = true};
    samples_add(&x.values, 3);
    samples_add(&x.values, 0.5);
    samples_add(&x.values, 1);
    result_number(&x, "share", 0.25);
    result_text(&x, "how", "by hand");
    report_result(&r, &x);
    fclose(to);

    cJSON *j = NULL;
    errbuf eb;
    cr_assert_eq(json_parse(text, len, &j, &eb), MOE_OK, "%s: %s", eb.text, text);
    const char *unit = "", *better = "", *how = "", *test = "";
    double value = 0, min = 0, share = 0;
    cr_expect_eq(json_get_string(j, "test", &test, &eb), MOE_OK);
    cr_expect_eq(json_get_string(j, "unit", &unit, &eb), MOE_OK);
    cr_expect_eq(json_get_string(j, "better", &better, &eb), MOE_OK);
    cr_expect_eq(json_get_string(j, "how", &how, &eb), MOE_OK);
    cr_expect_eq(json_get_double(j, "value", 0, 10, &value, &eb), MOE_OK);
    cr_expect_eq(json_get_double(j, "min", 0, 10, &min, &eb), MOE_OK);
    cr_expect_eq(json_get_double(j, "share", 0, 10, &share, &eb), MOE_OK);
    cr_expect_str_eq(test, "say \"x\"");
    cr_expect_str_eq(unit, "us");
    cr_expect_str_eq(better, "lower");
    cr_expect_str_eq(how, "by hand");
    cr_expect_eq(value, 1);
    cr_expect_eq(min, 0.5);
    cr_expect_eq(share, 0.25);
    cr_expect_eq(strchr(text, '\n'), text + len - 1, "not one line: %s", text);
    cJSON_Delete(j);
    free(text);
}

Test(bench_report, lists_of_numbers_are_read_whole_or_refused)
{
    uint32_t out[3] = {0};
    cr_expect_eq(machine_numbers("1,8,64", 64, out, 3), 3);
    cr_expect_eq(out[2], 64);
    static const char *const bad[] = {
        "", ",", "1,", ",1", "1,,2", "x", "1x", "-1", "65", "1,2,3,4", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_expect_eq(machine_numbers(bad[i], 64, out, 3), 0, "\"%s\" was taken", bad[i]);
}
