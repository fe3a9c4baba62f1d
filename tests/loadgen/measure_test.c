/* measure and report: figures worked by hand from three records, and the result file's keys. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "loadgen/measure.h"
#include "loadgen/report.h"

TestSuite(measure, .timeout = 10);
TestSuite(report, .timeout = 10);

/* Clock readings are large; ms(0) is some hours after the machine's start. */
static uint64_t
ms(uint64_t t)
{
    return 40000 * NS_PER_S + t * NS_PER_MS;
}

/* Four tokens in three chunks, sent 10 ms late; one token, whose stream ends long after it; and a
 * refusal. */
static request_record *
three_records(void)
{
    request_record *r = record_array_create(3);
    r[0].scheduled_ns = ms(0);
    r[0].ready_ns = ms(6); /* the first 6 ms it waited for a place */
    r[0].send_ns = ms(10);
    record_add_chunk(&r[0], ms(110));
    record_add_chunk(&r[0], ms(130));
    record_add_chunk(&r[0], ms(170));
    r[0].last_ns = ms(170);
    r[0].output_tokens = 4;
    r[0].prompt_tokens = 7;
    strbuf_puts(&r[0].text, "a \"quoted\" \xff text");

    r[1].scheduled_ns = r[1].ready_ns = r[1].send_ns = ms(20);
    record_add_chunk(&r[1], ms(320));
    r[1].last_ns = ms(320);
    r[1].output_tokens = 1;

    r[2].scheduled_ns = r[2].ready_ns = r[2].send_ns = ms(30);
    record_fail(&r[2], "HTTP 429: queue full");
    for (size_t i = 0; i < 3; i++) {
        r[i].http_status = i == 2 ? 429 : 200;
        r[i].stream_ended = i != 2;
    }
    record_finish(&r[0], ms(171));
    record_finish(&r[1], ms(1010));
    record_finish(&r[2], ms(2000));
    return r;
}

static const prompt three_prompts[3] = {{.json = NULL, .token_count = 1},
                                        {.json = NULL, .token_count = 5},
                                        {.json = NULL, .token_count = -1}};

static void
expect_stat(const measure_stat *s, size_t count, double mean, double median, double std, double p99)
{
    cr_expect_eq(s->count, count);
    cr_expect_float_eq(s->mean, mean, 1e-9);
    cr_expect_float_eq(s->median, median, 1e-9);
    cr_expect_float_eq(s->std, std, 1e-9);
    cr_expect_float_eq(s->p99, p99, 1e-9);
}

Test(measure, percentiles_interpolate_between_neighbours)
{
    const double v[] = {10, 20, 40, 80};
    const double want[][2] = {{0, 10}, {25, 17.5}, {50, 30}, {90, 68}, {100, 80}};
    for (size_t i = 0; i < 5; i++) {
        cr_expect_float_eq(measure_percentile(v, 4, want[i][0]), want[i][1], 1e-9);
    }
    cr_expect_eq(measure_percentile(v, 1, 99), 10);
    cr_expect(isnan(measure_percentile(v, 0, 50)));
}

Test(measure, three_records_give_the_figures_worked_by_hand)
{
    const measure_config config = {.percentiles = {25}, .percentile_count = 1};
    request_record *r = three_records();
    measure m;
    errbuf eb;
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, &eb), MOE_OK);
    cr_expect_eq(m.completed, 2);
    cr_expect_eq(m.failed, 1);
    cr_expect_eq(m.rejected, 1);
    cr_expect_eq(m.input_tokens, 7 + 5);
    cr_expect_eq(m.output_tokens, 5);
    cr_expect_float_eq(m.duration_s, 1, 1e-12);
    cr_expect_float_eq(m.request_throughput, 2, 1e-9);
    cr_expect_float_eq(m.input_throughput, 12, 1e-9);
    cr_expect_float_eq(m.output_throughput, 5, 1e-9);
    cr_expect_float_eq(m.total_throughput, 17, 1e-9);
    cr_expect(isnan(m.goodput));
    cr_expect_float_eq(m.peak_output_throughput, 5, 1e-9);
    cr_expect_eq(m.peak_concurrency, 3);
    expect_stat(&m.stats[METRIC_TTFT], 2, 200, 200, 100, 298);
    expect_stat(&m.stats[METRIC_TPOT], 1, 20, 20, 0, 20);
    expect_stat(&m.stats[METRIC_ITL], 2, 30, 30, 10, 39.8);
    expect_stat(&m.stats[METRIC_E2EL], 2, 230, 230, 70, 298.6);
    expect_stat(&m.stats[METRIC_SCHED_TTFT], 2, 205, 205, 95, 298.1);
    expect_stat(&m.stats[METRIC_SCHED_E2EL], 2, 235, 235, 65, 298.7);
    expect_stat(&m.stats[METRIC_LAG], 3, 4. / 3, 0, sqrt(32. / 9), 3.92);
    cr_expect_eq(m.stats[METRIC_LAG].max, 4);
    cr_expect_float_eq(m.stats[METRIC_TTFT].percentiles[0], 150, 1e-9);
    record_array_free(r, 3);
}

Test(measure, goodput_counts_requests_that_meet_every_limit)
{
    static const struct {
        double ttft, tpot, e2el, want;
    } cases[] = {{300, 0, 0, 2},  {299, 0, 0, 1},  {99, 0, 0, 0},     {0, 20, 0, 2},
                 {0, 19.9, 0, 1}, {200, 19, 0, 0}, {300, 20, 160, 1}, {0, 0, 159, 0}};
    request_record *r = three_records();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        measure_config config = {0};
        config.slo_ms[METRIC_TTFT] = cases[i].ttft;
        config.slo_ms[METRIC_TPOT] = cases[i].tpot;
        config.slo_ms[METRIC_E2EL] = cases[i].e2el;
        measure m;
        cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
        cr_expect_float_eq(m.goodput, cases[i].want, 1e-9, "case %zu: %g", i, m.goodput);
    }
    record_array_free(r, 3);
}

Test(measure, trimming_leaves_out_what_was_sent_near_the_ends)
{
    request_record *r = three_records(); /* sent at 10, 20, 30; ends at 171, 1010, 2000 */
    measure m;
    measure_config config = {.trim_start_s = 0.005};
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
    cr_expect(m.trimmed && m.excluded == 1);
    cr_expect(m.completed == 1 && m.failed == 1 && m.output_tokens == 1 && m.input_tokens == 5);
    cr_expect_float_eq(m.duration_s, 0.99, 1e-9);
    expect_stat(&m.stats[METRIC_TTFT], 1, 300, 300, 0, 300);
    cr_expect_eq(m.peak_concurrency, 3); /* of all */
    /* Within 15 .. 2000: all five tokens, and both ends. */
    cr_expect_float_eq(m.steady_output_throughput, 5 / 1.985, 1e-9);
    cr_expect_float_eq(m.steady_request_throughput, 2 / 1.985, 1e-9);

    config = (measure_config){.trim_end_s = 1.98}; /* 10 .. 20 */
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
    cr_expect(m.completed == 2 && m.failed == 0 && m.excluded == 1);
    cr_expect_eq(m.steady_output_throughput, 0);

    config = (measure_config){.hold_s = 0.015, .trim_end_s = 0.005}; /* 10 .. 20 */
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
    cr_expect(m.trimmed && m.excluded == 1, "%zu", m.excluded);
    cr_expect_eq(m.window_end_ns, ms(20));
    config = (measure_config){.hold_s = 100}; /* longer than the run */
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
    cr_expect_eq(m.window_end_ns, ms(2000));
    config = (measure_config){.trim_start_s = 9, .trim_end_s = 9}; /* nothing is left */
    cr_assert_eq(measure_run(&config, three_prompts, r, 3, &m, NULL), MOE_OK);
    cr_expect(m.completed == 0 && m.failed == 0 && m.excluded == 3 && m.duration_s == 0);
    cr_expect(isnan(m.stats[METRIC_TTFT].mean));
    record_array_free(r, 3);
}

Test(measure, without_a_completed_request_no_time_is_claimed)
{
    for (size_t count = 0; count < 3; count++) {
        const measure_config config = {.percentiles = {50}, .percentile_count = 1};
        request_record *r = record_array_create(count);
        for (size_t i = 0; i < count; i++) {
            r[i].send_ns = i == 0 ? ms(5) : 0; /* the second was never sent */
            record_fail(&r[i], "no");
            record_finish(&r[i], ms(9));
        }
        measure m;
        cr_assert_eq(measure_run(&config, three_prompts, r, count, &m, NULL), MOE_OK);
        cr_expect_eq(m.completed, 0);
        cr_expect_eq(m.failed, count);
        cr_expect_eq(m.request_throughput, 0);
        cr_expect_eq(m.peak_concurrency, count > 0);
        for (metric which = 0; which < METRIC_LAG; which++) {
            cr_expect(isnan(m.stats[which].mean) && isnan(m.stats[which].percentiles[0]));
        }
        record_array_free(r, count);
    }
}

Test(measure, requests_that_follow_one_another_are_never_two_at_a_time)
{
    request_record *r = record_array_create(4);
    for (uint64_t i = 0; i < 4; i++) {
        r[i].send_ns = ms(10 * i + 1);
        r[i].end_ns = ms(10 * i + 11);
    }
    const measure_config config = {0};
    const prompt prompts[4] = {{0}};
    measure m;
    cr_assert_eq(measure_run(&config, prompts, r, 4, &m, NULL), MOE_OK);
    cr_expect_eq(m.peak_concurrency, 1);
    r[1].end_ns = ms(22);
    cr_assert_eq(measure_run(&config, prompts, r, 4, &m, NULL), MOE_OK);
    cr_expect_eq(m.peak_concurrency, 2);
    record_array_free(r, 4);
}

/* ---- the result file ---- */

static const char *const study_keys[32] = {"date",
                                           "backend",
                                           "model_id",
                                           "tokenizer_id",
                                           "best_of",
                                           "use_beam_search",
                                           "num_prompts",
                                           "dataset_name",
                                           "dataset_path",
                                           "request_rate",
                                           "duration",
                                           "completed",
                                           "total_input_tokens",
                                           "total_output_tokens",
                                           "request_throughput",
                                           "input_throughput",
                                           "output_throughput",
                                           "mean_ttft_ms",
                                           "median_ttft_ms",
                                           "p99_ttft_ms",
                                           "mean_tpot_ms",
                                           "median_tpot_ms",
                                           "p99_tpot_ms",
                                           "mean_itl_ms",
                                           "median_itl_ms",
                                           "p99_itl_ms",
                                           "input_lens",
                                           "output_lens",
                                           "ttfts",
                                           "itls",
                                           "generated_texts",
                                           "errors"};

static const char *const vllm_keys[] = {"endpoint_type",
                                        "label",
                                        "burstiness",
                                        "max_concurrency",
                                        "failed",
                                        "request_goodput",
                                        "total_token_throughput",
                                        "std_ttft_ms",
                                        "p90_ttft_ms",
                                        "std_tpot_ms",
                                        "p90_tpot_ms",
                                        "std_itl_ms",
                                        "p90_itl_ms",
                                        "mean_e2el_ms",
                                        "median_e2el_ms",
                                        "p99_e2el_ms",
                                        "std_e2el_ms",
                                        "p90_e2el_ms",
                                        "start_times",
                                        "max_output_tokens_per_s",
                                        "max_concurrent_requests"};

static const char *const own_keys[] = {"rejected",
                                       "mean_sched_ttft_ms",
                                       "median_sched_ttft_ms",
                                       "p99_sched_ttft_ms",
                                       "std_sched_ttft_ms",
                                       "p90_sched_ttft_ms",
                                       "mean_sched_e2el_ms",
                                       "median_sched_e2el_ms",
                                       "p99_sched_e2el_ms",
                                       "std_sched_e2el_ms",
                                       "p90_sched_e2el_ms",
                                       "scheduled_times",
                                       "e2els",
                                       "http_statuses",
                                       "finish_reasons",
                                       "seed",
                                       "temperature",
                                       "ignore_eos",
                                       "num_warmups",
                                       "repeated_prompts",
                                       "loadgen_version",
                                       "server",
                                       "turns",
                                       "domains",
                                       "ramp_up_strategy",
                                       "ramp_up_start_rps",
                                       "ramp_up_end_rps",
                                       "goodput_limits",
                                       "trimmed",
                                       "client",
                                       "histograms",
                                       "time_series",
                                       "server_metrics",
                                       "chaos",
                                       "determinism",
                                       "repeat"};

typedef struct fixture {
    measure_config config;
    measure figures;
    request_record *records;
    report_pair pair;
    report_run run;
} fixture;

static void
set_up(fixture *f)
{
    *f = (fixture){.config = {.percentiles = {90, 99}, .percentile_count = 2},
                   .pair = {"tp", "4 \"x\""}};
    f->records = three_records();
    measure_run(&f->config, three_prompts, f->records, 3, &f->figures, NULL);
    f->run = (report_run){.date = "20260102-030405",
                          .backend = "conclave",
                          .endpoint_type = "openai",
                          .model_id = "m",
                          .tokenizer_id = "m",
                          .dataset_name = "random",
                          .request_rate = INFINITY,
                          .burstiness = 1,
                          .server_json = "{\"version\":\"1\"}",
                          .metadata = &f->pair,
                          .metadata_count = 1,
                          .config = &f->config,
                          .figures = &f->figures,
                          .prompts = three_prompts,
                          .records = f->records,
                          .count = 3};
}

static cJSON *
written(const report_run *run)
{
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    errbuf eb;
    cr_assert_eq(report_write_json(run, to, &eb), MOE_OK);
    fclose(to);
    cJSON *root;
    cr_assert_eq(json_parse(text, len, &root, &eb), MOE_OK, "%s", eb.text);
    free(text);
    return root;
}

static const cJSON *
expect_keys(const cJSON *item, const char *const *keys, size_t count)
{
    for (size_t i = 0; i < count; i++, item = item->next) {
        cr_assert_not_null(item, "no %s", keys[i]);
        cr_assert_str_eq(item->string, keys[i]);
        cr_expect(report_key_is_taken(keys[i]), "%s", keys[i]);
    }
    return item;
}

Test(report, the_result_has_exactly_these_keys_in_this_order)
{
    fixture f;
    set_up(&f);
    cJSON *root = written(&f.run);
    const cJSON *rest = expect_keys(root->child, study_keys, 32);
    rest = expect_keys(rest, vllm_keys, sizeof vllm_keys / sizeof *vllm_keys);
    rest = expect_keys(rest, own_keys, sizeof own_keys / sizeof *own_keys);
    cr_assert_not_null(rest);
    cr_expect_str_eq(rest->string, "tp");
    cr_expect_str_eq(rest->valuestring, "4 \"x\"");
    cr_expect_null(rest->next);
    cr_expect(!report_key_is_taken("tp"));
    cJSON_Delete(root);
    record_array_free(f.records, 3);
}

static void
expect_array(const cJSON *root, const char *name, const char *want)
{
    char *got = cJSON_PrintUnformatted(cJSON_GetObjectItem(root, name));
    cr_expect_str_eq(got, want, "%s: %s", name, got);
    cJSON_free(got);
}

Test(report, values_are_the_runs_and_a_failed_request_has_no_times)
{
    fixture f;
    set_up(&f);
    cJSON *root = written(&f.run);
    expect_array(root, "request_rate", "\"inf\"");
    expect_array(root, "dataset_path", "null");
    expect_array(root, "max_concurrency", "null");
    expect_array(root, "request_goodput", "null");
    expect_array(root, "mean_ttft_ms", "200");
    expect_array(root, "p90_ttft_ms", "280");
    expect_array(root, "input_lens", "[7,5,0]");
    expect_array(root, "output_lens", "[4,1,0]");
    expect_array(root, "ttfts", "[0.1,0.3,null]");
    expect_array(root, "itls", "[[0.02,0.04],[],[]]");
    expect_array(root, "e2els", "[0.16,0.3,null]");
    expect_array(root, "generated_texts", "[\"a \\\"quoted\\\" \xef\xbf\xbd text\",\"\",\"\"]");
    expect_array(root, "errors", "[\"\",\"\",\"HTTP 429: queue full\"]");
    expect_array(root, "start_times", "[0,0.01,0.02]");
    expect_array(root, "scheduled_times", "[-0.01,0.01,0.02]");
    expect_array(root, "http_statuses", "[200,200,429]");
    expect_array(root, "server", "{\"version\":\"1\"}");
    cJSON_Delete(root);

    f.run.request_rate = 2.5;
    f.run.concurrency_max = 8;
    f.run.server_json = NULL;
    f.config.slo_ms[METRIC_TTFT] = 300;
    measure_run(&f.config, three_prompts, f.records, 3, &f.figures, NULL);
    root = written(&f.run);
    expect_array(root, "request_rate", "2.5");
    expect_array(root, "max_concurrency", "8");
    expect_array(root, "request_goodput", "2");
    expect_array(root, "server", "null");
    cJSON_Delete(root);
    record_array_free(f.records, 3);
}

Test(report, a_late_generator_is_said_so)
{
    fixture f;
    set_up(&f);
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    client_stats stats = {.wall_ns = 1000, .cpu_ns = 100};
    f.run.client = &stats;
    report_print_warnings(&f.run, to);
    fflush(to);
    cr_expect_eq(len, 0);
    stats.cpu_ns = 900;
    report_print_warnings(&f.run, to);
    fflush(to);
    cr_expect(strstr(text, "the load generator was late (p99 lag 3.9 ms"), "%s", text);
    stats.cpu_ns = 100;
    f.records[1].ready_ns -= 50 * NS_PER_MS;
    measure_run(&f.config, three_prompts, f.records, 3, &f.figures, NULL);
    cr_expect(report_client_was_late(&f.run));
    fclose(to);
    free(text);
    record_array_free(f.records, 3);
}

Test(report, the_table_and_the_errors_name_what_happened)
{
    fixture f;
    set_up(&f);
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    report_print_table(&f.run, to);
    report_print_errors(&f.run, to);
    fclose(to);
    cr_expect(strstr(text, "Successful requests:                     2 "));
    cr_expect(strstr(text, "Mean TTFT (ms):                          200.00"));
    cr_expect(strstr(text, "P99 E2EL (ms):                           298.60"));
    cr_expect(strstr(text, "1 of 3 requests failed:\n  1 x HTTP 429: queue full\n"));
    free(text);
    record_array_free(f.records, 3);
}
