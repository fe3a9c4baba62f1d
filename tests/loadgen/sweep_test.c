/* sweep: finds the knee of servers whose knee is known. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "loadgen/sweep.h"

TestSuite(sweep, .timeout = 10);

/* A server that holds up to `knee` requests/s, and answers in e2el_ms when idle. */
typedef struct model {
    double knee, e2el_ms;
    uint32_t steps;
    int fail_at;
    int hiccup_at; /* a step that breaks whatever its rate */
} model;

static moe_err
measure_model(void *ctx, double rate, uint32_t step, sweep_point *out, errbuf *eb)
{
    model *m = ctx;
    cr_expect_eq(step, m->steps);
    m->steps++;
    if ((int)step == m->fail_at) return err_set(eb, MOE_ECLOSED, "gone");
    const bool good = rate <= m->knee && (step == 0 || (int)step != m->hiccup_at);
    *out = (sweep_point){.rate = rate,
                         .sent = 100,
                         .completed = m->e2el_ms > 0 ? 100 : 0,
                         .good = good ? 100 : 50,
                         .mean_e2el = m->e2el_ms,
                         .median_ttft = good ? 10 : 900,
                         .p99_ttft = good ? 30 : 2000,
                         .median_tpot = 5,
                         .p99_tpot = NAN,
                         .request_throughput = fmin(rate, m->knee),
                         .goodput = good ? rate : rate / 2};
    return MOE_OK;
}

static const sweep_config config = {
    .rate_max = 1e4, .growth = 2, .good_share = 0.9, .refine = 6, .point_max = 40};

Test(sweep, the_knee_is_found_from_below_and_from_above)
{
    const double knees[] = {0.7, 1, 3, 40, 333, 7000};
    const double idle_ms[] = {100, 2000}; /* first tries of 10 and 0.5 requests/s */
    for (size_t k = 0; k < 6; k++) {
        for (size_t i = 0; i < 2; i++) {
            model m = {.knee = knees[k], .e2el_ms = idle_ms[i], .fail_at = -1};
            sweep_result r;
            cr_assert_eq(sweep_run(&config, measure_model, &m, &r, NULL), MOE_OK);
            cr_expect(r.bounded);
            cr_expect(r.saturation <= knees[k] && r.saturation > knees[k] * 0.97, "knee %g: %g",
                      knees[k], r.saturation);
            cr_expect_eq(r.count + 1, m.steps);
        }
    }
}

Test(sweep, a_server_without_a_knee_is_tried_up_to_the_highest_rate)
{
    model m = {.knee = INFINITY, .e2el_ms = 100, .fail_at = -1};
    sweep_config c = config;
    c.rate_max = 50;
    sweep_result r;
    cr_assert_eq(sweep_run(&c, measure_model, &m, &r, NULL), MOE_OK);
    cr_expect(!r.bounded && r.saturation == 50 && r.count == 4);
    c.rate_first = 30;
    c.point_max = 1;
    m.steps = 0;
    cr_assert_eq(sweep_run(&c, measure_model, &m, &r, NULL), MOE_OK);
    cr_expect(r.count == 1 && r.saturation == 30);
}

Test(sweep, a_single_hiccup_decides_nothing)
{
    for (int at = 1; at < 8; at++) {
        model m = {.knee = 40, .e2el_ms = 100, .fail_at = -1, .hiccup_at = at};
        sweep_result r;
        cr_assert_eq(sweep_run(&config, measure_model, &m, &r, NULL), MOE_OK);
        cr_expect(r.saturation <= 40 && r.saturation > 40 * 0.97, "%d: %g", at, r.saturation);
    }
}

Test(sweep, limits_that_no_rate_meets_end_it_early_and_errors_pass_through)
{
    model m = {.knee = -1, .e2el_ms = 100, .fail_at = -1};
    sweep_result r;
    errbuf eb;
    cr_assert_eq(sweep_run(&config, measure_model, &m, &r, &eb), MOE_OK);
    cr_expect(r.count == 0 && r.saturation == 0 && !r.idle.holds);
    m = (model){.knee = 0, .e2el_ms = 100, .fail_at = -1};
    cr_assert_eq(sweep_run(&config, measure_model, &m, &r, &eb), MOE_OK);
    cr_expect(r.count == 14 && r.saturation == 0 && r.idle.holds);
    m = (model){.knee = 5, .e2el_ms = 0, .fail_at = -1};
    cr_expect_eq(sweep_run(&config, measure_model, &m, &r, &eb), MOE_EINVAL);
    m = (model){.knee = 5, .e2el_ms = 1000, .fail_at = 2};
    cr_expect_eq(sweep_run(&config, measure_model, &m, &r, &eb), MOE_ECLOSED);
    cr_expect_eq(r.count, 1);
}

Test(sweep, points_are_written_by_rate_and_drawn)
{
    model m = {.knee = 3, .e2el_ms = 1000, .fail_at = -1};
    measure_config limits = {0};
    limits.slo_ms[METRIC_TTFT] = 500;
    const sweep_about about = {.date = "d",
                               .backend = "b<&>",
                               .model_id = "m",
                               .dataset_name = "random",
                               .limits = &limits,
                               .config = &config};
    sweep_result r;
    errbuf eb;
    char *text;
    size_t len;
    cr_assert_eq(sweep_run(&config, measure_model, &m, &r, &eb), MOE_OK);
    FILE *to = open_memstream(&text, &len);
    cr_assert_eq(sweep_write_json(&about, &r, to, &eb), MOE_OK);
    fclose(to);
    cJSON *root;
    cr_assert_eq(json_parse(text, len, &root, &eb), MOE_OK);
    const cJSON *point = cJSON_GetObjectItem(root, "points")->child;
    for (; point->next != NULL; point = point->next) {
        cr_expect_leq(cJSON_GetObjectItem(point, "request_rate")->valuedouble,
                      cJSON_GetObjectItem(point->next, "request_rate")->valuedouble);
    }
    cJSON_Delete(root);
    free(text);

    to = open_memstream(&text, &len);
    cr_assert_eq(sweep_write_svg(&about, &r, to, &eb), MOE_OK);
    fclose(to);
    cr_expect(strstr(text, "b&lt;&amp;&gt;, m, random") && strstr(text, "</svg>"));
    cr_expect(!strstr(text, "nan") && !strstr(text, "inf"));
    free(text);

    r = (sweep_result){.saturation = NAN}; /* nothing to draw */
    to = open_memstream(&text, &len);
    cr_assert_eq(sweep_write_svg(&about, &r, to, &eb), MOE_OK);
    fclose(to);
    cr_expect(strstr(text, "</svg>") && !strstr(text, "nan") && !strstr(text, "inf"));
    free(text);
}
