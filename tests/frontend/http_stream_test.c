/* http: streams, and clients that leave, dawdle or come in crowds; stopping with all of it going
 * on. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/http_fixture.h"

#define BUF_BYTES (1u << 20)
#define CROWD 100

TestSuite(http_stream, .timeout = 100);

static char *
new_buffer(void)
{
    char *buf = calloc(1, BUF_BYTES);
    cr_assert_not_null(buf);
    return buf;
}

/* Start with a reply that spells `text`; the ids are the caller's to free. */
static uint32_t *
start_with_reply(fixture *f, const char *text, fake_engine_options options, http_config config)
{
    tokenizer *tok = fixture_tokenizer();
    uint32_t *ids = fixture_encode(tok, text, &options.reply_count);
    options.reply = ids;
    fixture_start(f, options, config);
    tokenizer_free(tok);
    return ids;
}

/* Replace the id and the time, which differ from run to run, by fixed ones. */
static void
mask(char *stream)
{
    for (char *p = stream; (p = strstr(p, "cmpl-")) != NULL; p += 5)
        memset(p + 5, '0', 32);
    for (char *p = stream; (p = strstr(p, "\"created\":")) != NULL; p += 10)
        for (char *d = p + 10; *d >= '0' && *d <= '9'; d++)
            *d = '0';
}

#define HEAD                                                                                       \
    "{\"id\":\"cmpl-00000000000000000000000000000000\",\"object\":\"text_completion\","            \
    "\"created\":0000000000,\"model\":\"demo\",\"choices\":["
#define CHUNK(text, finish, stop)                                                                  \
    "data: " HEAD "{\"index\":0,\"text\":\"" text "\",\"logprobs\":null,\"finish_reason\":" finish \
    ",\"stop_reason\":" stop "}]"

Test(http_stream, frames_events_exactly)
{
    const uint32_t reply[] = {3 + 0xc3, 3 + 0xb6, 3 + '"', 3 + '\n'}; /* byte tokens: ö"\n */
    fixture f;
    fixture_start(&f, (fake_engine_options){.reply = reply, .reply_count = 4}, (http_config){0});
    http_reply r = http_call(f.url, "POST", "/v1/completions",
                             "{\"prompt\":[1,400],\"stream\":true,\"max_tokens\":16,"
                             "\"stream_options\":{\"include_usage\":true}}",
                             NULL);
    mask(r.body);
    cr_expect_str_eq(r.content_type, "text/event-stream");
    cr_expect_str_eq(r.body, CHUNK("", "null", "null") ",\"usage\":null}\n\n" CHUNK("ö", "null", "null") ",\"usage\":null}\n\n" CHUNK(
                                 "\\\"", "null",
                                 "null") ",\"usage\":null}\n\n" CHUNK("\\n", "null",
                                                                      "null") ",\"usage\":null}"
                                                                              "\n\n" CHUNK(
                                                                                  "",
                                                                                  "\"stop"
                                                                                  "\"",
                                                                                  "null") ",\"usage"
                                                                                          "\":null}"
                                                                                          "\n\n"
                                                                                          "data:"
                                                                                          " " HEAD
                                                                                          "],"
                                                                                          "\"usage"
                                                                                          "\":{"
                                                                                          "\"prompt"
                                                                                          "_tokens"
                                                                                          "\":2,"
                                                                                          "\"comple"
                                                                                          "tion_"
                                                                                          "tokens\""
                                                                                          ":5,"
                                                                                          "\"total_"
                                                                                          "tokens\""
                                                                                          ":7,"
                                                                                          "\"prompt"
                                                                                          "_tokens_"
                                                                                          "details"
                                                                                          "\":{"
                                                                                          "\"cached"
                                                                                          "_tokens"
                                                                                          "\":0}}}"
                                                                                          "\n\n"
                                                                                          "data: "
                                                                                          "[DONE]"
                                                                                          "\n\n");
    http_reply_fini(&r);

    r = http_call(f.url, "POST", "/v1/completions",
                  "{\"prompt\":[1,400],\"stream\":true,\"max_tokens\":3}", NULL);
    mask(r.body);
    cr_expect_str_eq(r.body,
                     CHUNK("", "null", "null") "}\n\n" CHUNK("ö", "null", "null") "}\n\n" CHUNK(
                         "\\\"", "\"length\"", "null") "}\n\ndata: [DONE]\n\n");
    http_reply_fini(&r);
    fixture_stop(&f);
}

Test(http_stream, counts_usage_in_every_event_if_asked)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    http_reply r =
        http_call(f.url, "POST", "/v1/completions",
                  "{\"prompt\":[1,400],\"stream\":true,\"max_tokens\":2,\"stream_options\":"
                  "{\"include_usage\":true,\"continuous_usage_stats\":true}}",
                  NULL);
    cr_expect(strstr(r.body, "\"completion_tokens\":1,\"total_tokens\":3") != NULL, "%s", r.body);
    cr_expect(strstr(r.body, "\"completion_tokens\":2,\"total_tokens\":4") != NULL, "%s", r.body);
    cr_expect(strstr(r.body, "\"usage\":null") == NULL);
    http_reply_fini(&r);
    fixture_stop(&f);
}

Test(http_stream, sends_each_token_as_soon_as_it_is_there)
{
    fixture f;
    uint32_t *ids = start_with_reply(&f, "one two three", (fake_engine_options){.held = true},
                                     (http_config){0});
    char *buf = new_buffer();
    const int fd = fixture_post(&f, "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":64}");
    cr_assert(fake_engine_wait_submitted(f.engine, 1));
    /* The headers come before the first token, and each token without the next one's help. */
    cr_expect(fixture_read_until(fd, buf, BUF_BYTES, "text/event-stream"));
    cr_expect(strstr(buf, "data:") == NULL);
    unsigned events = 0;
    for (uint32_t round = 0; round < 3; round++) {
        fake_engine_allow(f.engine, 1);
        char *from = buf;
        events++;
        for (unsigned seen = 0; seen < events;) {
            from = strstr(buf, "data:");
            seen = 0;
            for (; from != NULL; from = strstr(from + 1, "data:"))
                seen++;
            if (seen >= events) break;
            const size_t len = strlen(buf);
            const ssize_t n = recv(fd, buf + len, BUF_BYTES - len - 1, 0);
            cr_assert_gt(n, 0);
            buf[len + (size_t)n] = '\0';
        }
    }
    fake_engine_unhold(f.engine);
    cr_expect(fixture_read_until(fd, buf, BUF_BYTES, "[DONE]"));
    close(fd);
    free(buf);
    fixture_stop(&f);
    free(ids);
}

/* What a stream's text is, put together, and whether all of its pieces are whole characters. */
static char *
streamed_text(const fixture *f, const char *body, char *finish, char *stop)
{
    http_reply r = http_call(f->url, "POST", "/v1/completions", body, NULL);
    cr_assert_eq(r.status, 200, "%s", r.body);
    char *text = calloc(1, r.len + 1);
    for (char *p = r.body; (p = strstr(p, "data: ")) != NULL;) {
        p += 6;
        cJSON *event = cJSON_ParseWithOpts(p, NULL, false);
        if (event == NULL) break; /* [DONE] */
        const cJSON *choice = cJSON_GetObjectItem(event, "choices")->child;
        const char *piece = cJSON_GetStringValue(cJSON_GetObjectItem(choice, "text"));
        cr_expect(piece[0] == '\0' || (piece[0] & 0xc0) != 0x80, "a piece begins in a character");
        strcat(text, piece);
        const cJSON *reason = cJSON_GetObjectItem(choice, "finish_reason"),
                    *why = cJSON_GetObjectItem(choice, "stop_reason");
        if (cJSON_IsString(reason)) strcpy(finish, reason->valuestring);
        if (cJSON_IsString(why)) strcpy(stop, why->valuestring);
        if (cJSON_IsNumber(why)) sprintf(stop, "#%d", why->valueint);
        cJSON_Delete(event);
    }
    http_reply_fini(&r);
    return text;
}

Test(http_stream, ends_at_stop_strings_wherever_tokens_are_cut)
{
    static const struct {
        const char *options, *text, *finish, *stop;
    } cases[] = {
        {"\"stop\":[\"nope\"]", " The quick brown fox 🙂 jumps.", "stop", ""},
        {"\"stop\":\"ick br\"", " The qu", "stop", "ick br"},
        {"\"stop\":[\"fox 🙂 jumps, not\",\"🙂\"]", " The quick brown fox ", "stop", "🙂"},
        {"\"stop\":[\"brown\",\"quick brown\"]", " The ", "stop", "quick brown"},
        {"\"stop\":[\"jumps. And\"]", " The quick brown fox 🙂 jumps.", "stop", ""},
        {"\"stop\":\" The\"", "", "stop", " The"},
        {"\"stop\":\"k b\",\"include_stop_str_in_output\":true", " The quick b", "stop", "k b"},
    };
    fixture f;
    uint32_t *ids = start_with_reply(&f, "The quick brown fox 🙂 jumps.",
                                     (fake_engine_options){0}, (http_config){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[512], finish[64] = "", stop[64] = "";
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":99,%s}",
                 cases[i].options);
        char *text = streamed_text(&f, body, finish, stop);
        cr_expect_str_eq(text, cases[i].text, "%s: %s", body, text);
        cr_expect_str_eq(finish, cases[i].finish, "%s", body);
        cr_expect_str_eq(stop, cases[i].stop, "%s", body);
        free(text);
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":99,%s}", cases[i].options);
        text = fixture_text(&f, body);
        cr_expect_str_eq(text, cases[i].text, "%s: %s", body, text);
        free(text);
    }
    fixture_stop(&f);
    free(ids);
}

Test(http_stream, leaves_out_a_stop_token_and_names_it)
{
    fixture f;
    uint32_t *ids = start_with_reply(&f, "a b", (fake_engine_options){0}, (http_config){0});
    char body[256], finish[64] = "", stop[64] = "", want[16];
    snprintf(body, sizeof body,
             "{\"prompt\":\"x\",\"stream\":true,\"max_tokens\":99,\"stop_token_ids\":[%u]}",
             ids[1]);
    snprintf(want, sizeof want, "#%u", ids[1]);
    char *text = streamed_text(&f, body, finish, stop);
    cr_expect_str_eq(text, " a");
    cr_expect_str_eq(finish, "stop");
    cr_expect_str_eq(stop, want);
    free(text);
    fixture_stop(&f);
    free(ids);
}

Test(http_stream, tells_of_an_error_half_way)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.fail_at = 2}, (http_config){0});
    http_reply r = http_call(f.url, "POST", "/v1/completions",
                             "{\"prompt\":\"a\",\"stream\":true,\"n\":3}", NULL);
    cr_expect_eq(r.status, 200);
    const char *error = strstr(r.body, "data: {\"error\":{\"message\":\"the fake engine");
    cr_assert_not_null(error, "%s", r.body);
    cr_expect_str_eq(strstr(error, "\n\n"), "\n\ndata: [DONE]\n\n");
    http_reply_fini(&r);
    cr_expect(fake_engine_wait_running(f.engine, 0));
    fixture_stop(&f);
}

Test(http_stream, aborts_at_once_when_the_client_leaves)
{
    /* Queued and streaming alike; the engine makes no token meanwhile, so only the socket tells. */
    static const char *const bodies[] = {
        "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"stream\":true,\"max_tokens\":999}",
        "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"max_tokens\":999}"};
    fixture f;
    fixture_start(&f, (fake_engine_options){.held = true}, (http_config){0});
    for (uint32_t round = 0; round < 4; round++) {
        const int fd = fixture_post(&f, bodies[round % 2]);
        cr_assert(fake_engine_wait_submitted(f.engine, 4 * (round + 1)));
        close(fd);
        cr_expect(fake_engine_wait_aborted(f.engine, 4 * (round + 1)));
        cr_expect(fake_engine_wait_running(f.engine, 0));
    }
    /* Half way through: sequences may also end at their next token, before the abort is there. */
    char *buf = new_buffer();
    const int fd = fixture_post(&f, bodies[0]);
    fake_engine_allow(f.engine, 1);
    cr_expect(fixture_read_until(fd, buf, BUF_BYTES, "data: "));
    close(fd);
    cr_expect(fake_engine_wait_running(f.engine, 0));
    free(buf);
    cJSON_Delete(fixture_json(&f, "/health", NULL, 200)); /* and the server goes on */
    fixture_stop(&f);
}

Test(http_stream, cuts_off_a_client_that_does_not_read)
{
    /* More tokens than can be made in the test's time, and room for one connection only.  A bound
     * of 16 MiB lets the sockets fill up first: the server is stuck sending when it is exceeded. */
    static const size_t bounds[] = {4096, 16u << 20};
    for (size_t i = 0; i < 2; i++) {
        fixture f;
        fixture_start(&f, (fake_engine_options){.max_model_len = UINT32_MAX},
                      (http_config){.stream_bytes_max = bounds[i], .connections_max = 1});
        const int fd =
            fixture_post(&f, "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":2000000000}");
        cr_expect(fake_engine_wait_submitted(f.engine, 1));
        cr_expect(fake_engine_wait_running(f.engine, 0));
        cJSON_Delete(fixture_json(&f, "/health", NULL, 200)); /* its place is free */
        close(fd);
        fixture_stop(&f);
    }
}

Test(http_stream, lets_go_of_a_client_that_left_though_the_engine_is_busy)
{
    static const char *const bodies[] = {"{\"prompt\":\"a\",\"stream\":true}",
                                         "{\"prompt\":\"a\"}"};
    fixture f;
    fixture_start(&f, (fake_engine_options){.held = true, .deaf = true},
                  (http_config){.connections_max = 1});
    for (uint32_t i = 0; i < 2; i++) {
        const int fd = fixture_post(&f, bodies[i]);
        cr_assert(fake_engine_wait_submitted(f.engine, i + 1));
        close(fd);
        cJSON_Delete(fixture_json(&f, "/health", NULL, 200));
    }
    fake_engine_heed(f.engine);
    fixture_stop(&f);
}

typedef struct member {
    pthread_t thread;
    const fixture *f;
    unsigned index;
    bool good;
} member;

/* Each has its own prompt, and must get its own text, streamed or not. */
static void *
join_crowd(void *arg)
{
    member *m = arg;
    char body[256];
    snprintf(body, sizeof body,
             "{\"prompt\":[1,%u],\"temperature\":0,\"max_tokens\":40,\"stream\":true}",
             400 + m->index);
    http_reply r = http_call(m->f->url, "POST", "/v1/completions", body, NULL);
    unsigned events = 0;
    for (const char *p = r.body; (p = strstr(p, "data: ")) != NULL; p++)
        events++;
    m->good = r.status == 200 && events == 41 && strstr(r.body, "data: [DONE]\n\n") != NULL;
    http_reply_fini(&r);
    return NULL;
}

Test(http_stream, serves_a_hundred_streams_at_once)
{
    fixture f;
    static member crowd[CROWD];
    fixture_start(&f, (fake_engine_options){.held = true}, (http_config){0});
    for (unsigned i = 0; i < CROWD; i++) {
        crowd[i] = (member){.f = &f, .index = i};
        cr_assert_eq(pthread_create(&crowd[i].thread, NULL, join_crowd, &crowd[i]), 0);
    }
    cr_expect(fake_engine_wait_running(f.engine, CROWD)); /* all of them wait together */
    fake_engine_unhold(f.engine);
    for (unsigned i = 0; i < CROWD; i++) {
        pthread_join(crowd[i].thread, NULL);
        cr_expect(crowd[i].good, "stream %u", i);
    }
    fixture_stop(&f);
}

Test(http_stream, interleaves_choices_by_index)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    http_reply r = http_call(f.url, "POST", "/v1/completions",
                             "{\"prompt\":[[1,400],[1,401]],\"n\":2,\"stream\":true,"
                             "\"max_tokens\":5,\"seed\":1}",
                             NULL);
    for (unsigned i = 0; i < 4; i++) {
        char want[32];
        snprintf(want, sizeof want, "\"index\":%u,", i);
        unsigned seen = 0;
        for (const char *p = r.body; (p = strstr(p, want)) != NULL; p++)
            seen++;
        cr_expect_eq(seen, 5, "choice %u: %u", i, seen);
    }
    http_reply_fini(&r);
    fixture_stop(&f);
}

Test(http_stream, stops_with_requests_going_on)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.held = true}, (http_config){0});
    int fds[8];
    for (int i = 0; i < 8; i++)
        fds[i] = fixture_post(&f, i % 2 ? "{\"prompt\":\"a\",\"stream\":true,\"n\":2}"
                                        : "{\"prompt\":\"a\",\"n\":2}");
    cr_assert(fake_engine_wait_submitted(f.engine, 16));
    fixture_stop(&f); /* would hang, or leak, or crash */
    for (int i = 0; i < 8; i++) {
        char buf[4096] = "";
        cr_expect_not(fixture_read_until(fds[i], buf, sizeof buf, "0\r\n\r\n"),
                      "a stream that was cut off looks whole: %s", buf);
        close(fds[i]);
    }
}

static void *
stop_server(void *arg)
{
    http_stop(arg);
    return NULL;
}

Test(http_stream, finishes_what_runs_and_refuses_what_comes_while_stopping)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.held = true}, (http_config){.stop_grace_ms = 60000});
    char *buf = new_buffer();
    pthread_t stopper;
    const int fd = fixture_post(&f, "{\"prompt\":\"a\",\"stream\":true}");
    cr_assert(fake_engine_wait_submitted(f.engine, 1));
    cr_assert_eq(pthread_create(&stopper, NULL, stop_server, f.server), 0);
    long status = 200;
    while (status == 200) {
        http_reply r = http_call(f.url, "GET", "/health", NULL, NULL);
        status = r.status;
        http_reply_fini(&r);
    }
    cr_expect_eq(status, 503);
    cJSON_Delete(fixture_json(&f, "/v1/completions", "{\"prompt\":\"a\"}", 503));
    fake_engine_unhold(f.engine);
    cr_expect(fixture_read_until(fd, buf, BUF_BYTES, "\"finish_reason\":\"length\""));
    close(fd);
    pthread_join(stopper, NULL);
    f.server = NULL;
    fixture_stop(&f);
    free(buf);
}

Test(http_stream, tells_clients_if_the_engine_stops_first)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.held = true}, (http_config){.stop_grace_ms = 20000});
    char *stream = new_buffer(), *whole = new_buffer();
    const int a = fixture_post(&f, "{\"prompt\":\"a\",\"stream\":true}"),
              b = fixture_post(&f, "{\"prompt\":\"a\"}");
    cr_assert(fake_engine_wait_submitted(f.engine, 2));
    fake_engine_stop(f.engine);
    cr_expect(fixture_read_until(a, stream, BUF_BYTES, "[DONE]"));
    cr_expect(strstr(stream, "the server is stopping") != NULL, "%s", stream);
    cr_expect(fixture_read_until(b, whole, BUF_BYTES, "}}"));
    cr_expect(strstr(whole, " 503 ") != NULL, "%s", whole);
    close(a);
    close(b);
    fixture_stop(&f);
    free(stream);
    free(whole);
}
