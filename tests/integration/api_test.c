/* The API of a real fleet: every golden case of a route built here, the faults of the chat cases on
 * /v1/completions, and overload. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/support/paths.h"

static fleet f;
static unsigned failures;

TestSuite(api, .timeout = 120, .fini = fleet_clean_up);

static void
report(const char *what, const char *why)
{
    failures++;
    cr_expect(false, "%s: %s", what, why);
}

static openai_target
target(void)
{
    return (openai_target){
        .base_url = f.url, .model = FLEET_MODEL, .max_model_len = 4096, .report = report};
}

static openai_counts
run(openai_target t, const char *what)
{
    char path[512];
    const openai_counts c =
        openai_run_cases(golden_path(path, sizeof path, "openai/cases.json"), &t);
    printf("%s: %u cases passed, %u failed, %u left out (chat, or about another set-up)\n", what,
           c.passed, c.failed, c.left_out);
    fflush(stdout);
    cr_expect_eq(c.failed, 0);
    cr_expect_gt(c.passed, 0);
    return c;
}

Test(api, answers_as_the_golden_cases_say)
{
    fleet_start(&f, &(fleet_options){0});
    openai_target t = target();
    run(t, "as they stand");
    t.transpose = true;
    run(t, "chat faults on /v1/completions");
    fleet_stop(&f);
}

Test(api, wants_its_key_everywhere_but_for_health)
{
    fleet_start(&f, &(fleet_options){.frontend_flags = "--api-key=sesame"});
    openai_target t = target();
    t.api_key = "sesame";
    run(t, "with a key");
    t.transpose = true;
    run(t, "chat faults with a key");
    http_reply r = http_call(f.url, "GET", "/health", NULL, NULL);
    cr_expect_eq(r.status, 200);
    http_reply_fini(&r);
    r = http_call(f.url, "GET", "/metrics", NULL, NULL);
    cr_expect_eq(r.status, 401);
    http_reply_fini(&r);
    fleet_stop(&f);
}

Test(api, a_full_queue_is_said_so)
{
    /* One sequence waits at most, and a request of two prompts can never be queued whole. */
    fleet_start(&f, &(fleet_options){.frontend_flags = "--max-waiting-seqs=1"});
    http_reply r = http_call(f.url, "POST", "/v1/completions",
                             "{\"prompt\":[[1,5],[1,6]],\"max_tokens\":2}", NULL);
    cr_expect_eq(r.status, 429, "%ld", r.status);
    cr_expect_neq(r.retry_after[0], '\0', "no Retry-After");
    http_reply_fini(&r);
    fleet_stop(&f);
}

/* The same seed gives the same text; --seed makes requests without one repeat. */
Test(api, a_seed_of_the_server_makes_answers_repeat)
{
    static const char body[] = "{\"prompt\":\"HAMLET.\",\"max_tokens\":24,\"temperature\":1.3}";
    char *texts[2];
    fleet_start(&f, &(fleet_options){.frontend_flags = "--seed=11"});
    for (int i = 0; i < 2; i++) {
        http_reply r = http_call(f.url, "POST", "/v1/completions", body, NULL);
        cr_assert_eq(r.status, 200);
        cJSON *root = cJSON_Parse(r.body);
        const cJSON *choice = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "choices"), 0);
        texts[i] = strdup(cJSON_GetObjectItem(choice, "text")->valuestring);
        cJSON_Delete(root);
        http_reply_fini(&r);
    }
    cr_expect_str_eq(texts[0], texts[1]);
    free(texts[0]);
    free(texts[1]);
    fleet_stop(&f);
}
