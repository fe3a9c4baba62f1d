/* openai and record: what counts as a chunk, what as a failure. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <string.h>

#include "common/json.h"
#include "loadgen/openai.h"

TestSuite(openai, .timeout = 10);

#define TOKEN(text) "{\"choices\":[{\"index\":0,\"text\":\"" text "\",\"finish_reason\":null}]}"
#define END(text, why) "{\"choices\":[{\"text\":\"" text "\",\"finish_reason\":\"" why "\"}]}"
#define USAGE(n) "{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":" n "}}"

/* Feeds the events at times 1, 2, ... and finishes with HTTP 200. */
static void
play(request_record *r, const char *const *events)
{
    record_init(r);
    uint64_t now = 1;
    for (; *events != NULL; events++, now++) {
        openai_event_read(*events, strlen(*events), now, r);
    }
    r->http_status = 200;
    record_finish(r, now);
}

Test(openai, a_whole_stream_completes_the_request)
{
    const char *const events[] = {
        TOKEN("a"), TOKEN(""), END("b", "length"), USAGE("3"), "[DONE]", TOKEN("late"), NULL};
    request_record r;
    play(&r, events);
    cr_expect(r.completed, "%s", record_error(&r));
    cr_expect_eq(r.chunk_count, 3);
    cr_expect_eq(r.chunk_ns[0], 1);
    cr_expect_eq(r.last_ns, 3);
    cr_expect_eq(r.output_tokens, 3);
    cr_expect_eq(r.prompt_tokens, 3);
    cr_expect_str_eq(strbuf_text(&r.text), "ab");
    cr_expect_str_eq(r.finish_reason, "length");
    cr_expect_str_eq(record_error(&r), "");
    record_fini(&r);
}

Test(openai, a_bare_end_mark_is_the_last_event_but_no_chunk)
{
    const char *const events[] = {TOKEN("a"), TOKEN("b"), END("", "stop"),
                                  USAGE("3"), "[DONE]",   NULL};
    request_record r;
    play(&r, events);
    cr_expect(r.completed);
    cr_expect_eq(r.chunk_count, 2);
    cr_expect_eq(r.last_ns, 3);
    record_fini(&r);
}

Test(openai, usage_on_every_chunk_is_the_last_one_that_counts)
{
    const char *const events[] = {
        "{\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1}}",
        "{\"choices\":[{\"text\":\"b\"}],\"usage\":null}",
        "{\"choices\":[],\"error\":null,\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}",
        "[DONE]", NULL};
    request_record r;
    play(&r, events);
    cr_expect(r.completed, "%s", record_error(&r));
    cr_expect_eq(r.output_tokens, 2);
    record_fini(&r);
}

Test(openai, anything_less_is_a_failure_with_its_reason)
{
    static const struct {
        const char *events[6];
        const char *reason;
    } cases[] = {
        {{TOKEN("a"), USAGE("1")}, "without [DONE] after 1 chunks"},
        {{TOKEN("a"), "[DONE]"}, "no usage"},
        {{USAGE("0"), "[DONE]"}, "empty answer"},
        {{END("", "stop"), USAGE("0"), "[DONE]"}, "empty answer"},
        {{USAGE("4"), "[DONE]"}, "empty answer: 4 tokens in 0 chunks"},
        {{TOKEN("a"), "{\"error\":{\"message\":\"worker lost\"}}", USAGE("1"), "[DONE]"},
         "stream: worker lost"},
        {{TOKEN("a"), "{\"error\":\"oops\"}", "[DONE]"}, "stream: oops"},
        {{"{", "[DONE]"}, "stream: not JSON"},
        {{"[1]", "[DONE]"}, "no JSON object"},
        {{"{\"choices\":[{\"text\":7}]}", "[DONE]"}, "text must be a string"},
        {{TOKEN("a"), USAGE("-1"), "[DONE]"}, "completion_tokens must be"},
        {{TOKEN("a"), USAGE("1.5"), "[DONE]"}, "completion_tokens must be"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        request_record r;
        play(&r, cases[i].events);
        cr_expect(!r.completed && strstr(record_error(&r), cases[i].reason) != NULL,
                  "case %zu: \"%s\"", i, record_error(&r));
        record_fini(&r);
    }
}

Test(openai, the_body_is_json_with_what_was_asked)
{
    strbuf body;
    strbuf_init(&body, 10000);
    openai_request request = {.model = "a \"model\"", .prompt_json = "[1,2]", .max_tokens = 5};
    openai_request_write(&request, &body);
    cJSON *root;
    cr_assert_eq(json_parse(body.text, body.len, &root, NULL), MOE_OK, "%s", body.text);
    cr_expect_str_eq(cJSON_GetObjectItem(root, "model")->valuestring, "a \"model\"");
    cr_expect_eq(cJSON_GetArraySize(cJSON_GetObjectItem(root, "prompt")), 2);
    cr_expect_eq(cJSON_GetObjectItem(root, "max_tokens")->valuedouble, 5);
    cr_expect(cJSON_IsTrue(cJSON_GetObjectItem(root, "stream")));
    cr_expect(cJSON_IsTrue(
        cJSON_GetObjectItem(cJSON_GetObjectItem(root, "stream_options"), "include_usage")));
    cr_expect_null(cJSON_GetObjectItem(root, "ignore_eos"));
    cr_expect_null(cJSON_GetObjectItem(root, "seed"));
    cJSON_Delete(root);

    strbuf_reset(&body);
    request.temperature = 0.5;
    request.seed = 11;
    request.ignore_eos = true;
    openai_request_write(&request, &body);
    cr_expect(strstr(body.text, "\"temperature\":0.5"));
    cr_expect(strstr(body.text, "\"seed\":11"));
    cr_expect(strstr(body.text, "\"ignore_eos\":true"));
    strbuf_fini(&body);
}

Test(openai, an_error_answer_is_told_in_one_line)
{
    static const char *const cases[][2] = {
        {"{\"error\":{\"message\":\"queue full\",\"code\":429}}", "queue full"},
        {"{\"message\":\"no such model\"}", "no such model"},
        {"{\"error\":\"text\"}", "text"},
        {"<html>\nbad gateway", "<html> bad gateway"},
        {"", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64];
        openai_error_text(cases[i][0], strlen(cases[i][0]), text, sizeof text);
        cr_expect_str_eq(text, cases[i][1]);
    }
}
