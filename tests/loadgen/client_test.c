/* client against a server that behaves, and against one that does not. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loadgen/client.h"
#include "loadgen/server.h"
#include "stub_server.h"

TestSuite(client, .timeout = 60);

#define LENGTH(a) (sizeof(a) / sizeof *(a))
#define PROMPTS 24

static char ids[] = "[1,2,3]";

typedef struct load {
    client_config config;
    char url[128];
    prompt prompts[PROMPTS];
    uint64_t arrivals_ns[PROMPTS];
    request_record *records;
    client_progress last;
} load;

static void
keep_progress(void *ctx, const client_progress *progress)
{
    ((load *)ctx)->last = *progress;
}

static void
run(load *l, stub_server *s, size_t count)
{
    snprintf(l->url, sizeof l->url, "%s/v1/completions", stub_server_url(s));
    for (size_t i = 0; i < count; i++) {
        l->prompts[i] = (prompt){.json = ids, .token_count = 3, .max_tokens = 3};
    }
    l->config.url = l->url;
    l->config.model = "stub";
    l->config.on_progress = keep_progress;
    l->config.progress_ctx = l;
    l->records = record_array_create(count);
    errbuf eb;
    cr_assert_eq(client_run(&l->config, l->prompts, l->arrivals_ns, count, l->records, &eb),
                 MOE_OK);
    cr_expect_eq(l->last.completed + l->last.failed, count);
    cr_expect_eq(l->last.active, 0);
}

Test(client, every_answer_of_a_good_server_is_recorded_whole)
{
    const stub_answer script[] = {STUB_TOKENS, STUB_DRIBBLE};
    stub_server *s = stub_server_start(script, LENGTH(script));
    load l = {.config = {.api_key = "secret"}};
    for (size_t i = 0; i < 6; i++) {
        l.arrivals_ns[i] = i * 2000000;
    }
    run(&l, s, 6);
    for (size_t i = 0; i < 6; i++) {
        const request_record *r = &l.records[i];
        cr_expect(r->completed, "%s", record_error(r));
        cr_expect_str_eq(strbuf_text(&r->text), " a b c");
        cr_expect_eq(r->chunk_count, 3);
        cr_expect_eq(r->output_tokens, 3);
        cr_expect_eq(r->prompt_tokens, 5);
        cr_expect_eq(r->http_status, 200);
        cr_expect_eq(r->scheduled_ns - l.records[0].scheduled_ns, l.arrivals_ns[i]);
        cr_expect(r->scheduled_ns <= r->send_ns && r->send_ns <= r->chunk_ns[0]);
        cr_expect(r->chunk_ns[0] <= r->chunk_ns[1] && r->chunk_ns[2] == r->last_ns);
        cr_expect(r->last_ns <= r->end_ns);
    }
    cr_expect(strstr(stub_server_body(s, 0), "\"prompt\":[1,2,3],\"max_tokens\":3"));
    record_array_free(l.records, 6);
    stub_server_stop(s);
}

Test(client, each_kind_of_bad_answer_is_a_failure_with_its_reason)
{
    static const struct {
        stub_answer answer;
        int status;
        const char *reason;
    } cases[] = {
        {STUB_500, 500, "HTTP 500: it broke"},
        {STUB_429, 429, "HTTP 429: queue full"},
        {STUB_CUT, 200, ""}, /* libcurl's words */
        {STUB_NO_ANSWER, 0, ""},
        {STUB_NO_DONE, 200, "without [DONE] after 3 chunks"},
        {STUB_EMPTY, 200, "empty answer"},
        {STUB_ERROR_EVENT, 200, "stream: worker lost"},
        {STUB_FLOOD, 200, "longer than"},
    };
    stub_answer script[LENGTH(cases) + 1];
    for (size_t i = 0; i < LENGTH(cases); i++) {
        script[i] = cases[i].answer;
    }
    script[LENGTH(cases)] = STUB_TOKENS;
    stub_server *s = stub_server_start(script, LENGTH(script));
    load l = {.config = {.concurrency_max = 1}}; /* so that the script keeps its order */
    run(&l, s, LENGTH(script));
    for (size_t i = 0; i < LENGTH(cases); i++) {
        const request_record *r = &l.records[i];
        cr_expect(!r->completed, "case %zu", i);
        cr_expect_eq(r->http_status, cases[i].status, "case %zu: %d", i, r->http_status);
        cr_expect(strstr(record_error(r), cases[i].reason) && *record_error(r), "case %zu: \"%s\"",
                  i, record_error(r));
    }
    cr_expect(l.records[LENGTH(cases)].completed);
    cr_expect_eq(l.last.failed, LENGTH(cases));
    cr_expect_eq(stub_server_requests(s), LENGTH(script)); /* nothing was sent twice */
    record_array_free(l.records, LENGTH(script));
    stub_server_stop(s);
}

Test(client, no_more_requests_are_open_than_allowed)
{
    const stub_answer script[] = {STUB_DRIBBLE};
    for (uint32_t limit = 1; limit <= 4; limit += 3) {
        stub_server *s = stub_server_start(script, 1);
        load l = {.config = {.concurrency_max = limit}};
        run(&l, s, PROMPTS);
        cr_expect_eq(l.last.completed, PROMPTS);
        cr_expect_leq(stub_server_peak(s), limit);
        record_array_free(l.records, PROMPTS);
        stub_server_stop(s);
    }
}

Test(client, a_request_that_hangs_ends_at_its_timeout)
{
    const stub_answer script[] = {STUB_HANG};
    stub_server *s = stub_server_start(script, 1);
    load l = {.config = {.timeout_ms = 200}};
    run(&l, s, 2);
    for (size_t i = 0; i < 2; i++) {
        cr_expect(!l.records[i].completed);
    }
    record_array_free(l.records, 2);
    stub_server_stop(s);
}

static volatile sig_atomic_t stop_now;

static void
stop_after_first_chunk(void *ctx, const client_progress *progress)
{
    keep_progress(ctx, progress);
    stop_now = 1;
}

Test(client, an_interrupted_run_marks_what_is_unfinished)
{
    const stub_answer script[] = {STUB_HANG};
    stub_server *s = stub_server_start(script, 1);
    load l = {.config = {.concurrency_max = 2, .stop = &stop_now}};
    l.records = record_array_create(4);
    for (size_t i = 0; i < 4; i++) {
        l.prompts[i] = (prompt){.json = ids, .token_count = 3, .max_tokens = 3};
    }
    snprintf(l.url, sizeof l.url, "%s/v1/completions", stub_server_url(s));
    l.config.url = l.url;
    l.config.model = "stub";
    l.config.on_progress = stop_after_first_chunk;
    l.config.progress_ctx = &l;
    cr_assert_eq(client_run(&l.config, l.prompts, l.arrivals_ns, 4, l.records, NULL), MOE_OK);
    cr_expect_eq(l.last.failed, 4);
    cr_expect_str_eq(record_error(&l.records[0]), "interrupted");
    cr_expect_str_eq(record_error(&l.records[3]), "interrupted before it was sent");
    cr_expect_eq(l.records[3].send_ns, 0);
    record_array_free(l.records, 4);
    stub_server_stop(s);
}

Test(client, a_load_that_is_held_for_a_time_ends_with_what_is_under_way)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    client_stats stats;
    load l = {.config = {.hold_ns = 20000000, .stats = &stats}};
    l.records = record_array_create(3);
    for (size_t i = 0; i < 3; i++) {
        l.prompts[i] = (prompt){.json = ids, .token_count = 3, .max_tokens = 3};
        l.arrivals_ns[i] = i == 0 ? 0 : 3600000000000; /* an hour: never sent */
    }
    snprintf(l.url, sizeof l.url, "%s/v1/completions", stub_server_url(s));
    l.config.url = l.url;
    l.config.model = "stub";
    cr_assert_eq(client_run(&l.config, l.prompts, l.arrivals_ns, 3, l.records, NULL), MOE_OK);
    cr_expect_eq(stats.sent, 1);
    cr_expect(l.records[0].completed, "%s", record_error(&l.records[0]));
    cr_expect(!l.records[1].failed && l.records[1].send_ns == 0 && l.records[1].scheduled_ns == 0);
    cr_expect_eq(stub_server_requests(s), 1);
    record_array_free(l.records, 3);
    stub_server_stop(s);
}

Test(client, asks_the_server_for_its_model_and_for_token_counts)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    char base[128], *model = NULL, *version = NULL;
    snprintf(base, sizeof base, "%s/", stub_server_url(s));
    server *srv;
    errbuf eb;
    int64_t count = 0;
    cr_assert_eq(server_open(&srv, base, "key", &eb), MOE_OK);
    cr_expect_eq(server_get_model(srv, &model, &eb), MOE_OK, "%s", eb.text);
    cr_expect_str_eq(model, "stub");
    cr_expect_eq(server_count_tokens(srv, model, "three \"quoted\" words", &count, &eb), MOE_OK);
    cr_expect_eq(count, 3);
    cr_expect_eq(server_get_version(srv, &version, &eb), MOE_EINVAL);
    cr_expect(strstr(eb.text, "/version: HTTP 404"));
    stub_server_stop(s);
    cr_expect_eq(server_count_tokens(srv, model, "x", &count, &eb), MOE_ECLOSED);
    cr_expect(strstr(eb.text, base + 7));
    server_close(srv);
    free(model);
}
