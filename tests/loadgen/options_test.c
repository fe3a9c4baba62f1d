/* options: what a command line becomes, and which ones are refused. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <string.h>

#include "loadgen/options.h"

TestSuite(options, .timeout = 10);

static options o;
static errbuf eb;

static moe_err
parse(const char *line)
{
    static char copy[1000];
    char *argv[64], *save = NULL;
    int argc = 0;
    snprintf(copy, sizeof copy, "conclave-loadgen %s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        argv[argc++] = w;
    }
    return options_parse(&o, argc, argv, &eb);
}

Test(options, a_full_command_line_is_understood)
{
    cr_assert_eq(parse("--base-url http://h:9/ --goodput ttft:500 tpot:50 --metadata a=1 b=x:y=z "
                       "--percentiles 50,99.9,50 --request-rate 2.5 --max-concurrency 8 "
                       "--num-prompts 50 --num-warmups 3 --random-vocab 10:20 --no-progress "
                       "--ignore-eos --result-filename r.json --seed 7"),
                 MOE_OK, "%s", eb.text);
    cr_expect_str_eq(o.completions_url, "http://h:9/v1/completions");
    cr_expect_eq(o.measuring.slo_ms[METRIC_TTFT], 500);
    cr_expect_eq(o.measuring.slo_ms[METRIC_TPOT], 50);
    cr_expect_eq(o.measuring.slo_ms[METRIC_E2EL], 0);
    cr_assert_eq(o.metadata_count, 2);
    cr_expect_str_eq(o.metadata[1].key, "b");
    cr_expect_str_eq(o.metadata[1].value, "x:y=z");
    cr_expect_eq(o.measuring.percentile_count, 2);
    cr_expect_eq(o.measuring.percentiles[1], 99.9);
    cr_expect_eq(o.data.count, 53);
    cr_expect_eq(o.data.vocab_first, 10);
    cr_expect_eq(o.data.vocab_end, 20);
    cr_expect(o.ignore_eos && o.save_result && !o.show_progress && !o.model && !o.api_key);
    options_fini(&o);
}

Test(options, the_defaults_are_usable)
{
    cr_assert_eq(parse(""), MOE_OK);
    cr_expect_str_eq(o.completions_url, "http://127.0.0.1:8000/v1/completions");
    cr_expect(isinf(o.arrivals.rate));
    cr_expect_eq(o.measuring.percentile_count, 5);
    cr_expect_str_eq(o.metrics_url, "http://127.0.0.1:8000/metrics");
    cr_expect(!o.sweep && o.repeats == 1 && o.chaos.count == 0);
    cr_expect_eq(o.data.vocab_first, 3);
    cr_expect(o.show_progress && !o.save_result);
    options_fini(&o);
}

Test(options, arrivals_sweeps_and_trouble_are_understood)
{
    cr_assert_eq(
        parse("sweep --slo ttft:500,tpot:50 --goodput e2el:9 --metadata a=1 --sweep-growth 2 "
              "--request-rate 3"),
        MOE_OK, "%s", eb.text);
    cr_expect(o.sweep && o.sweeping.growth == 2 && o.sweeping.rate_first == 3);
    cr_expect(o.measuring.slo_ms[METRIC_TTFT] == 500 && o.measuring.slo_ms[METRIC_TPOT] == 50);
    cr_expect(o.measuring.slo_ms[METRIC_E2EL] == 9 && o.metadata_count == 1);
    options_fini(&o);
    cr_assert_eq(parse("--ramp-up-strategy exponential --ramp-up-start-rps 1 --ramp-up-end-rps 8 "
                       "--repeats 5 --warmup-seconds 2 --cooldown-seconds 3 --metrics-interval 0 "
                       "--metrics-url http://x/m"),
                 MOE_OK, "%s", eb.text);
    cr_expect(o.arrivals.ramp == ARRIVALS_EXPONENTIAL && o.arrivals.ramp_end == 8 && !o.sweep);
    cr_expect(o.repeats == 5 && o.measuring.trim_start_s == 2 && o.measuring.trim_end_s == 3);
    cr_expect_str_eq(o.metrics_url, "http://x/m");
    options_fini(&o);
    cr_assert_eq(parse("--dataset-name prefix_repetition --prefix-repetition-prefix-len 7 "
                       "--prefix-repetition-suffix-len 8 --prefix-repetition-num-prefixes 3 "
                       "--prefix-repetition-output-len 9"),
                 MOE_OK, "%s", eb.text);
    cr_expect(o.data.kind == DATASET_PREFIX_REPETITION && o.data.prefix_len == 7);
    cr_expect(o.data.input_len == 8 && o.data.prefix_count == 3 && o.data.random_output_len == 9);
    options_fini(&o);
    cr_assert_eq(parse("--dataset-name expert-skew --skew zipf --skew-alpha 2 --skew-domains b,a"),
                 MOE_OK);
    cr_expect(o.data.kind == DATASET_EXPERT_SKEW && o.data.skew == DATASET_SKEW_ZIPF);
    cr_expect_str_eq(o.data.domains, "b,a");
    options_fini(&o);
}

Test(options, malformed_ones_are_refused_by_name)
{
    static const char *const cases[][2] = {
        {"--goodput itl:5", "--goodput"},
        {"--goodput ttft:0", "--goodput"},
        {"--goodput ttft:5 tpot", "--goodput"},
        {"--metadata a", "--metadata"},
        {"--metadata a=1 a=2", "twice"},
        {"--metadata =1", "--metadata"},
        {"--metadata duration=1", "of its own"},
        {"--metadata p75_ttft_ms=1", "of its own"},
        {"--percentiles 50,", "--percentiles"},
        {"--percentiles 101", "--percentiles"},
        {"--percentiles 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "--percentiles"},
        {"--random-vocab 5:5", "--random-vocab"},
        {"--random-vocab x", "--random-vocab"},
        {"--request-rate 0", "--request-rate"},
        {"--burstiness 0", "--burstiness"},
        {"--num-prompts 0", "--num-prompts"},
        {"--dataset-name poems", "--dataset-name"},
        {"sweep", "sweep needs --slo"},
        {"sweep --slo ttft:5 --repeats 2", "sweep sets the rate"},
        {"sweep --slo ttft:5 --dataset-name trace", "sweep sets the rate"},
        {"sweep sweep --slo ttft:5", "belongs to no option"},
        {"--slo ttft:5,", "--goodput"},
        {"--slo ttft:5x,tpot:5", "--goodput"},
        {"--chaos mayhem", "chaos"},
        {"--ramp-up-strategy linear", "--ramp-up-start-rps"},
        {"--ramp-up-strategy linear --request-rate 5", "exclude"},
        {"--ramp-up-strategy cubic", "--ramp-up-strategy"},
        {"--repeats 0", "--repeats"},
        {"--max-seconds 5 --dataset-name multi-turn --dataset-path x", "--max-seconds"},
        {"sweep --slo ttft:5 --max-seconds 5", "--max-seconds"},
        {"stray", "stray"},
        {"stray=1", "stray=1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_expect_neq(parse(cases[i][0]), MOE_OK, "%s", cases[i][0]);
        cr_expect(strstr(eb.text, cases[i][1]) != NULL, "%s: %s", cases[i][0], eb.text);
        options_fini(&o);
    }
}
