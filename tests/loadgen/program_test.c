/* The whole program against a server that behaves, and against one that does not. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file.h"
#include "common/json.h"
#include "stub_server.h"
#include "tests/support/paths.h"

TestSuite(program, .timeout = 60);

#define LENGTH(a) (sizeof(a) / sizeof *(a))

/* Its exit status; standard output and error go to `log`. */
static int
run_program(const char *url, const char *dir, const char *log, const char *more)
{
    const char *bin = getenv("CONCLAVE_BIN_DIR");
    char command[2000];
    snprintf(command, sizeof command,
             "%s/conclave-loadgen --base-url %s --no-progress --random-input-len 4 "
             "--random-output-len 3 --metrics-interval 0.01 --save-result "
             "--result-dir %s/new/folder --result-filename r.json %s >%s 2>&1",
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

/* ---- more than one run ---- */

typedef struct fixture {
    char dir[40], log[80];
    char *said; /* what the last program printed */
} fixture;

static void
make_folder(fixture *f)
{
    *f = (fixture){.dir = "/tmp/loadgen_test.XXXXXX"};
    cr_assert_not_null(mkdtemp(f->dir));
    snprintf(f->log, sizeof f->log, "%s/log", f->dir);
}

static void
remove_folder(fixture *f)
{
    char command[100];
    free(f->said);
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    cr_expect_eq(system(command), 0);
}

static int
run_in(fixture *f, stub_server *s, const char *more)
{
    size_t len;
    const int status = run_program(stub_server_url(s), f->dir, f->log, more);
    free(f->said);
    cr_assert_eq(file_read(f->log, 1 << 20, &f->said, &len, NULL), MOE_OK);
    return status;
}

static cJSON *
result_of(const fixture *f, const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/new/folder/%s", f->dir, name);
    return load_json(path);
}

static const cJSON *
item(const cJSON *root, const char *a, const char *b)
{
    const cJSON *found = cJSON_GetObjectItem(cJSON_GetObjectItem(root, a), b);
    cr_assert_not_null(found, "no %s.%s", a, b);
    return found;
}

Test(program, a_real_runs_figures_are_those_of_its_raw_times)
{
    if (system("python3 -c 'import json' >/dev/null 2>&1") != 0) cr_skip("needs python3");
    const stub_answer script[] = {STUB_TOKENS, STUB_DRIBBLE, STUB_500};
    stub_server *s = stub_server_start(script, 3);
    fixture f;
    make_folder(&f);
    char more[200], command[400];
    snprintf(more, sizeof more,
             "--num-prompts 30 --request-rate 300 --goodput ttft:500 tpot:50 --save-times %s/t",
             f.dir);
    cr_expect_eq(run_in(&f, s, more), 1);
    snprintf(command, sizeof command,
             "python3 %s/tests/loadgen/reference_metrics.py %s/t %s/new/folder/r.json", test_root(),
             f.dir, f.dir);
    fflush(NULL);
    cr_expect_eq(system(command), 0);
    remove_folder(&f);
    stub_server_stop(s);
}

Test(program, the_servers_metrics_are_read_before_and_after)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    fixture f;
    make_folder(&f);
    cr_expect_eq(run_in(&f, s, "--num-prompts 6 --num-warmups 2 --warmup-seconds 0.001"), 0);
    cJSON *root = result_of(&f, "r.json");
    const cJSON *metrics = cJSON_GetObjectItem(root, "server_metrics");
    cr_expect_eq(item(metrics, "before", "stub_requests_total")->valuedouble, 2);
    cr_expect_eq(item(metrics, "after", "stub_requests_total")->valuedouble, 8);
    cr_expect_eq(item(metrics, "after", "stub_constant{a=\"b c\"}")->valuedouble, 7);
    cr_expect_null(cJSON_GetObjectItem(cJSON_GetObjectItem(metrics, "series"), "stub_constant"));
    cr_expect(cJSON_IsArray(item(metrics, "series", "stub_requests_total")));
    cr_expect_eq(item(root, "trimmed", "warmup_s")->valuedouble, 0.001);
    cr_expect(strstr(f.said, "Left out at the start (s):"), "%s", f.said);
    cJSON_Delete(root);
    remove_folder(&f);
    stub_server_stop(s);
}

Test(program, repeats_have_results_of_their_own_and_a_summary)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    fixture f;
    make_folder(&f);
    cr_expect_eq(run_in(&f, s, "--num-prompts 5 --repeats 3 --seed 11"), 0, "%s", f.said);
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "r-r%d.json", i);
        cJSON *root = result_of(&f, name);
        cr_expect_eq(number(root, "seed"), 11 + i);
        cr_expect_eq(number(root, "repeat"), i);
        cJSON_Delete(root);
    }
    cJSON *root = result_of(&f, "r-repeats.json");
    cr_expect_eq(number(root, "repeats"), 3);
    const cJSON *ttft = item(root, "figures", "mean_ttft_ms");
    cr_expect_eq(number(ttft, "n"), 3);
    cr_expect_geq(number(ttft, "max"), number(ttft, "median"));
    cr_expect_geq(number(ttft, "ci95"), 0);
    cr_expect_eq(number(item(root, "pooled", "ttft"), "count"), 15);
    cJSON_Delete(root);
    cr_expect_eq(stub_server_requests(s), 15);
    remove_folder(&f);
    stub_server_stop(s);
}

Test(program, answers_are_compared_when_asked_for)
{
    static const struct {
        stub_answer second;
        int status;
        double equal;
    } cases[] = {{STUB_TOKENS, 0, 1}, {STUB_OTHER, 1, 0}};
    for (size_t i = 0; i < LENGTH(cases); i++) {
        const stub_answer script[] = {STUB_TOKENS, cases[i].second};
        stub_server *s = stub_server_start(script, 2);
        fixture f;
        make_folder(&f);
        cr_expect_eq(run_in(&f, s, "--num-prompts 1 --check-determinism"), cases[i].status, "%s",
                     f.said);
        cJSON *root = result_of(&f, "r.json");
        cr_expect_eq(item(root, "determinism", "compared")->valuedouble, 1);
        cr_expect_eq(item(root, "determinism", "equal")->valuedouble, cases[i].equal);
        cr_expect_eq(strstr(f.said, "1 of 1 answers differ") != NULL, cases[i].status == 1);
        cJSON_Delete(root);
        remove_folder(&f);
        stub_server_stop(s);
    }
}

Test(program, chaos_happens_during_the_run_and_is_written_down)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    stub_server_set_stall(s, 0, 300000000); /* so that the run is still on when the steps are due */
    fixture f;
    make_folder(&f);
    char more[400], path[80];
    snprintf(path, sizeof path, "%s/touched", f.dir);
    snprintf(more, sizeof more,
             "--num-prompts 2 --chaos 'run touch %s at 10ms; kill worker 7 at 20ms; kill router 1 "
             "at 9000s' --chaos-status 'echo {\\\"workers\\\":[]}'",
             path);
    cr_expect_eq(run_in(&f, s, more), 0, "%s", f.said);
    cr_expect_eq(access(path, F_OK), 0);
    cJSON *root = result_of(&f, "r.json");
    const cJSON *step = cJSON_GetObjectItem(root, "chaos")->child;
    cr_expect(cJSON_IsNull(cJSON_GetObjectItem(step, "error")));
    cr_expect_geq(number(step, "done_s"), 0.01);
    cr_expect_str_eq(cJSON_GetObjectItem(step->next, "error")->valuestring,
                     "the status names no such process");
    cr_expect(cJSON_IsNull(cJSON_GetObjectItem(step->next->next, "done_s")));
    cr_expect(strstr(f.said, "the run was over before \"kill router 1\""), "%s", f.said);
    cJSON_Delete(root);
    remove_folder(&f);
    stub_server_stop(s);
}

Test(program, sweep_writes_its_rates_and_a_picture)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    fixture f;
    make_folder(&f);
    cr_expect_eq(run_in(&f, s,
                        "sweep --slo ttft:30000,tpot:30000 --request-rate 100 --sweep-seconds 0.1 "
                        "--sweep-max-rate 150"),
                 0, "%s", f.said);
    cJSON *root = result_of(&f, "r.json");
    cr_expect_eq(number(root, "saturation_rate"), 150);
    cr_expect(cJSON_IsFalse(cJSON_GetObjectItem(root, "saturation_found")));
    cr_expect_eq(cJSON_GetArraySize(cJSON_GetObjectItem(root, "points")), 2);
    cr_expect(strstr(f.said, "Saturation: 150.000 req/s or more"), "%s", f.said);
    cJSON_Delete(root);
    char path[100], *svg;
    size_t len;
    snprintf(path, sizeof path, "%s/new/folder/r.svg", f.dir);
    cr_assert_eq(file_read(path, 1 << 20, &svg, &len, NULL), MOE_OK);
    cr_expect(strncmp(svg, "<svg ", 5) == 0 && strstr(svg, "</svg>"));
    free(svg);

    cr_expect_eq(run_in(&f, s, "sweep --slo ttft:0.000001 --sweep-seconds 0.1"), 0);
    cr_expect(strstr(f.said, "don't hold on the idle server"), "%s", f.said);
    cr_expect_eq(run_in(&f, s, "sweep"), 2);
    remove_folder(&f);
    stub_server_stop(s);
}
