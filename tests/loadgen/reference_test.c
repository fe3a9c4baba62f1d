/* The figures against a second opinion: reference_metrics.py, from the same raw times. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "loadgen/measure.h"
#include "loadgen/report.h"
#include "loadgen/rng.h"
#include "tests/support/paths.h"

TestSuite(reference, .timeout = 60);

#define COUNT 300

static prompt prompts[COUNT];

/* A seeded recording with all that is awkward: single tokens, several tokens a chunk, ends without
 * tokens, failures before and after the sending, times with every digit. */
static request_record *
record_something(uint64_t seed)
{
    rng r;
    rng_init(&r, seed, RNG_LENGTHS);
    request_record *records = record_array_create(COUNT);
    uint64_t now = 123456789 * NS_PER_S;
    for (size_t i = 0; i < COUNT; i++) {
        request_record *q = &records[i];
        now += rng_below(&r, 80 * NS_PER_MS);
        q->scheduled_ns = q->ready_ns = now;
        if (i % 31 == 30) { /* never sent */
            record_fail(q, "no");
            record_finish(q, now);
            continue;
        }
        q->send_ns = now + rng_below(&r, NS_PER_MS);
        uint64_t at = q->send_ns;
        const size_t chunks = rng_below(&r, 5) == 0 ? 1 : 1 + rng_below(&r, 60);
        for (size_t c = 0; c < chunks; c++) {
            at += 1 + rng_below(&r, 1u << (10 + rng_below(&r, 18)));
            record_add_chunk(q, at);
        }
        q->last_ns = at + (rng_below(&r, 3) == 0 ? rng_below(&r, NS_PER_MS) : 0);
        q->output_tokens = (int64_t)(chunks + rng_below(&r, 3));
        q->prompt_tokens = (int64_t)rng_below(&r, 1000);
        q->http_status = i % 17 == 16 ? 429 : 200;
        q->stream_ended = i % 23 != 22;
        record_finish(q, q->last_ns + rng_below(&r, 5 * NS_PER_MS));
    }
    return records;
}

static void
write_files(const report_run *run, const char *times, const char *result)
{
    errbuf eb;
    FILE *to = fopen(times, "w");
    cr_assert_eq(report_write_times(run, to, &eb), MOE_OK, "%s", eb.text);
    fclose(to);
    to = fopen(result, "w");
    cr_assert_eq(report_write_json(run, to, &eb), MOE_OK, "%s", eb.text);
    fclose(to);
}

Test(reference, a_script_written_from_the_definitions_finds_the_same_figures)
{
    if (system("python3 -c 'import json' >/dev/null 2>&1") != 0) cr_skip("needs python3");
    char dir[] = "/tmp/loadgen_test.XXXXXX", times[64], result[64], command[512];
    cr_assert_not_null(mkdtemp(dir));
    snprintf(times, sizeof times, "%s/times.jsonl", dir);
    snprintf(result, sizeof result, "%s/result.json", dir);
    snprintf(command, sizeof command, "python3 %s/tests/loadgen/reference_metrics.py %s %s",
             test_root(), times, result);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        measure_config config = {.percentiles = {99}, .percentile_count = 1};
        if (seed % 2 == 0) {
            config.slo_ms[METRIC_TTFT] = 40;
            config.slo_ms[METRIC_TPOT] = 12;
        }
        request_record *records = record_something(seed);
        measure m;
        errbuf eb;
        cr_assert_eq(measure_run(&config, prompts, records, COUNT, &m, &eb), MOE_OK);
        const report_run run = {.date = "20260102-030405",
                                .backend = "b",
                                .endpoint_type = "openai",
                                .model_id = "m",
                                .tokenizer_id = "m",
                                .dataset_name = "random",
                                .request_rate = 1,
                                .burstiness = 1,
                                .config = &config,
                                .figures = &m,
                                .prompts = prompts,
                                .records = records,
                                .count = COUNT};
        write_files(&run, times, result);
        fflush(NULL);
        cr_expect_eq(system(command), 0, "seed %d", (int)seed);
        record_array_free(records, COUNT);
    }
    unlink(times);
    unlink(result);
    cr_expect_eq(rmdir(dir), 0);
}
