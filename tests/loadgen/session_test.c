/* Sessions: a later turn is sent after the answer before it, with that answer in its prompt. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/client.h"
#include "stub_server.h"

TestSuite(session, .timeout = 60);

#define COUNT 5

static char first[] = "\"Q1\"", second[] = "\"Q\\n2\"", third[] = "\"Q3\"", other[] = "[7,8]";

/* A session of three, a request alone, and a session whose first turn is the last of the set. */
static const prompt prompts[COUNT] = {
    {.json = first, .max_tokens = 3},
    {.json = second, .max_tokens = 3, .turn = 1, .think_ns = 5 * NS_PER_MS},
    {.json = third, .max_tokens = 3, .turn = 2},
    {.json = other, .max_tokens = 3},
    {.json = first, .max_tokens = 3},
};

static request_record *
run(stub_server *s, uint32_t concurrency_max)
{
    static char url[128];
    static const uint64_t arrivals_ns[COUNT] = {0, 0, 0, NS_PER_MS, 2 * NS_PER_MS};
    snprintf(url, sizeof url, "%s/v1/completions", stub_server_url(s));
    const client_config config = {.url = url, .model = "m", .concurrency_max = concurrency_max};
    request_record *records = record_array_create(COUNT);
    errbuf eb;
    cr_assert_eq(client_run(&config, prompts, arrivals_ns, COUNT, records, &eb), MOE_OK);
    return records;
}

static bool
was_asked(stub_server *s, const char *prompt_json)
{
    for (size_t i = 0; i < COUNT; i++) {
        const char *body = stub_server_body(s, i);
        if (body != NULL && strstr(body, prompt_json) != NULL) return true;
    }
    return false;
}

Test(session, a_turn_waits_for_the_answer_before_it_and_carries_it)
{
    const stub_answer script[] = {STUB_TOKENS};
    for (uint32_t places = 0; places < 3; places++) {
        stub_server *s = stub_server_start(script, 1);
        request_record *r = run(s, places);
        for (size_t i = 0; i < COUNT; i++) {
            cr_expect(r[i].completed, "%zu: %s", i, record_error(&r[i]));
        }
        cr_expect_eq(r[1].scheduled_ns, r[0].end_ns + 5 * NS_PER_MS);
        cr_expect_eq(r[2].scheduled_ns, r[1].end_ns);
        cr_expect_geq(r[1].send_ns, r[1].scheduled_ns);
        cr_expect(was_asked(s, "\"prompt\":\"Q1 a b cQ\\n2\","));
        cr_expect(was_asked(s, "\"prompt\":\"Q1 a b cQ\\n2 a b cQ3\","));
        cr_expect(was_asked(s, "\"prompt\":[7,8],"));
        if (places > 0) cr_expect_leq(stub_server_peak(s), places);
        record_array_free(r, COUNT);
        stub_server_stop(s);
    }
}

Test(session, after_a_failed_turn_the_rest_of_its_session_fails_unsent)
{
    const stub_answer script[] = {STUB_TOKENS, STUB_500, STUB_TOKENS, STUB_TOKENS};
    stub_server *s = stub_server_start(script, 4);
    request_record *r = run(s, 1); /* one at a time: request 3 is due before turn 1 has thought */
    size_t failed = 0, unsent = 0;
    for (size_t i = 0; i < COUNT; i++) {
        failed += !r[i].completed;
        unsent += r[i].send_ns == 0;
    }
    /* Whichever request the server refuses, only what came after it in its session is lost. */
    cr_expect_eq(failed, unsent + 1);
    cr_expect_eq(stub_server_requests(s), COUNT - unsent);
    record_array_free(r, COUNT);
    stub_server_stop(s);

    const stub_answer refuse[] = {STUB_500};
    s = stub_server_start(refuse, 1);
    r = run(s, 0);
    cr_expect_str_eq(record_error(&r[1]), "an earlier turn of its session failed");
    cr_expect_str_eq(record_error(&r[2]), "an earlier turn of its session failed");
    cr_expect_eq(r[2].send_ns, 0);
    cr_expect_eq(stub_server_requests(s), 3);
    record_array_free(r, COUNT);
    stub_server_stop(s);
}
