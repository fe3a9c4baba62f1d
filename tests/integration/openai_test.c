/* The OpenAI API of a whole fleet: every golden case, with and without an API key, and when the
 * queue is full. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/integration/fleet.h"
#include "tests/integration/stream.h"
#include "tests/support/paths.h"

#define KEY "sk-of-the-test"
#define LONG_STREAM "{\"prompt\":\"a\",\"max_tokens\":4000,\"ignore_eos\":true,\"stream\":true}"

static fleet f;

static void
report(const char *what, const char *why)
{
    cr_expect(false, "%s: %s", what, why);
}

static openai_counts
run_golden(openai_target target)
{
    char path[512];
    target.base_url = f.url;
    target.model = FLEET_MODEL;
    target.max_model_len = 4096;
    target.report = report;
    return openai_run_cases(golden_path(path, sizeof path, "openai/cases.json"), &target);
}

TestSuite(openai, .timeout = 110, .fini = fleet_clean_up);

Test(openai, answers_every_golden_case)
{
    fleet_start(&f, &(fleet_options){0});
    const openai_counts plain = run_golden((openai_target){0});
    const openai_counts transposed = run_golden((openai_target){.transpose = true});
    cr_expect_eq(plain.failed + transposed.failed, 0);
    cr_expect_geq(plain.passed, 12, "%u", plain.passed);
    cr_expect_geq(transposed.passed, 25, "%u", transposed.passed);
    fleet_stop(&f);
}

Test(openai, answers_every_golden_case_to_those_who_have_the_key)
{
    fleet_start(&f, &(fleet_options){.frontend_flags = "--api-key=" KEY});
    const openai_counts c = run_golden((openai_target){.transpose = true, .api_key = KEY});
    cr_expect_eq(c.failed, 0);
    cr_expect_geq(c.passed, 26, "%u", c.passed);
    static const char *const closed[] = {"/metrics", "/v1/models", "/version"};
    for (size_t i = 0; i < sizeof closed / sizeof closed[0]; i++) {
        http_reply r = http_call(f.url, "GET", closed[i], NULL, NULL);
        cr_expect_eq(r.status, 401, "%s: %ld", closed[i], r.status);
        http_reply_fini(&r);
    }
    fleet_stop(&f);
}

Test(openai, says_429_when_the_queue_is_full)
{
    fleet_start(&f, &(fleet_options){.router_flags = "--max-num-seqs=1",
                                     .frontend_flags = "--max-waiting-seqs=1"});
    const int runs = stream_open(f.url, LONG_STREAM);
    fleet_wait_metric(&f, "vllm:num_requests_running", 1);
    const int waits = stream_open(f.url, LONG_STREAM);
    fleet_wait_metric(&f, "vllm:num_requests_waiting", 1);
    const openai_counts c = run_golden((openai_target){.transpose = true, .overloaded = true});
    cr_expect_eq(c.passed, 1);
    cr_expect_eq(c.failed, 0);
    close(runs);
    close(waits);
    fleet_wait_metric(&f, "vllm:num_requests_running", 0);
    fleet_stop(&f);
}
