/* client and the whole program against a server that behaves, and against one that does not. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file.h"
#include "common/json.h"
#include "loadgen/client.h"
#include "loadgen/server.h"
#include "stub_server.h"

TestSuite(client, .timeout = 60);
TestSuite(program, .timeout = 60);

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

/* ---- the program ---- */

/* Its exit status; standard output and error go to `log`. */
static int
run_program(const char *url, const char *dir, const char *log, const char *more)
{
    const char *bin = getenv("CONCLAVE_BIN_DIR");
    char command[2000];
    snprintf(command, sizeof command,
             "%s/conclave-loadgen --base-url %s --no-progress --random-input-len 4 "
             "--random-output-len 3 --save-result --result-dir %s/new/folder "
             "--result-filename r.json %s >%s 2>&1",
             bin ? bin : "build/bin", url, dir, more, log);
    const int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static cJSON *
load_json(const char *path)
{
    char *text;
    size_t len;
    errbuf eb;
    cJSON *root;
    cr_assert_eq(file_read(path, 1 << 20, &text, &len, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(json_parse(text, len, &root, &eb), MOE_OK, "%s", eb.text);
    free(text);
    return root;
}

static double
number(const cJSON *root, const char *key)
{
    return cJSON_GetObjectItem(root, key)->valuedouble;
}

Test(program, writes_a_result_and_its_status_says_whether_all_completed)
{
    static const struct {
        stub_answer script[2];
        const char *more;
        int status, completed, requests;
        const char *said;
    } cases[] = {
        {{STUB_TOKENS, STUB_TOKENS}, "--num-prompts 4 --num-warmups 2", 0, 4, 6, "requests:"},
        {{STUB_TOKENS, STUB_500},
         "--num-prompts 4 --max-concurrency 1",
         1,
         2,
         4,
         "2 of 4 requests failed:\n  2 x HTTP 500: it broke"},
        {{STUB_429, STUB_429}, "--num-prompts 2 --request-rate 500", 1, 0, 2, "Rejected (429)"},
    };
    char dir[] = "/tmp/loadgen_test.XXXXXX", path[100], log[100];
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/new/folder/r.json", dir);
    snprintf(log, sizeof log, "%s/log", dir);
    for (size_t i = 0; i < LENGTH(cases); i++) {
        stub_server *s = stub_server_start(cases[i].script, 2);
        const int status = run_program(stub_server_url(s), dir, log, cases[i].more);
        char *said;
        size_t len;
        cr_assert_eq(file_read(log, 1 << 20, &said, &len, NULL), MOE_OK);
        cr_expect_eq(status, cases[i].status, "case %zu: %d\n%s", i, status, said);
        cr_expect(strstr(said, cases[i].said) != NULL, "case %zu: %s", i, said);
        free(said);
        cJSON *root = load_json(path);
        cr_expect_eq(number(root, "completed"), cases[i].completed);
        cr_expect_str_eq(cJSON_GetObjectItem(root, "model_id")->valuestring, "stub");
        cr_expect_eq(cJSON_IsNull(cJSON_GetObjectItem(root, "mean_ttft_ms")),
                     cases[i].completed == 0);
        cJSON_Delete(root);
        unlink(path);
        cr_expect_eq(stub_server_requests(s), (size_t)cases[i].requests);
        stub_server_stop(s);
    }
    unlink(log);
    snprintf(path, sizeof path, "%s/new/folder", dir);
    rmdir(path);
    snprintf(path, sizeof path, "%s/new", dir);
    rmdir(path);
    cr_expect_eq(rmdir(dir), 0); /* no half-written file was left */
}

Test(program, an_unusable_server_or_option_is_status_two)
{
    const stub_answer script[] = {STUB_500};
    stub_server *s = stub_server_start(script, 1);
    char url[64];
    snprintf(url, sizeof url, "%s", stub_server_url(s));
    cr_expect_eq(run_program(url, "/tmp", "/dev/null", "--num-warmups 1"), 2);
    cr_expect_eq(run_program(url, "/tmp", "/dev/null", "--num-prompts none"), 2);
    stub_server_stop(s);
    cr_expect_eq(run_program(url, "/tmp", "/dev/null", ""), 2);
}

Test(program, a_sharegpt_file_is_measured_by_the_servers_tokenizer)
{
    char dir[] = "/tmp/loadgen_test.XXXXXX", path[100], more[300];
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/set.json", dir);
    FILE *to = fopen(path, "w");
    fputs("[{\"conversations\":[{\"value\":\"too short\"},{\"value\":\"one two three four\"}]},"
          "{\"conversations\":[{\"value\":\"tell me a story\"},"
          "{\"value\":\"once upon a time there\"}]}]",
          to);
    fclose(to);
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    snprintf(more, sizeof more, "--num-prompts 1 --dataset-name sharegpt --dataset-path %s", path);
    cr_expect_eq(run_program(stub_server_url(s), dir, "/dev/null", more), 0);
    const char *body = stub_server_body(s, 0);
    cr_assert_not_null(body);
    cr_expect(strstr(body, "\"prompt\":\"tell me a story\",\"max_tokens\":5"), "%s", body);
    stub_server_stop(s);
    char command[200];
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_expect_eq(system(command), 0);
}
