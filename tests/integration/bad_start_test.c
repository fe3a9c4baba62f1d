/* What happens when a fleet is started in another order, wrongly, twice, or loses a worker. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"
#include "tests/support/paths.h"

static fleet f, g;

TestSuite(bad_start, .timeout = 100, .fini = fleet_clean_up);

static void
expect_in_log(const fleet *fl, const char *name, const char *text)
{
    char *log = fleet_log(fl, name);
    cr_expect_not_null(strstr(log, text), "%s does not say \"%s\": %s", name, text, log);
    free(log);
}

/* The worker ends with an error, the router goes on waiting for a better one. */
static void
expect_worker_refused(const char *why)
{
    fleet_process *worker = fleet_start_worker(&f, 0);
    cr_expect_eq(fleet_wait_exit(worker), 1);
    expect_in_log(&f, "worker-0", "the router refuses this worker");
    expect_in_log(&f, "worker-0", why);
    expect_in_log(&f, "router-0", why);
}

Test(bad_start, a_worker_with_other_weights_is_refused_and_a_right_one_then_taken)
{
    fleet_open(&f, &(fleet_options){.workers = 1, .errors_expected = true});
    fleet_start_router(&f);
    f.options.worker_flags = "--dtype=int8";
    expect_worker_refused("has experts in int8, this cell uses bf16 (--dtype)");
    f.options.worker_flags = NULL;

    char demo[sizeof f.model];
    memcpy(demo, f.model, sizeof demo);
    golden_path(f.model, sizeof f.model, "models/base");
    expect_worker_refused("serves another model");
    memcpy(f.model, demo, sizeof demo);

    fleet_start_worker(&f, 0);
    fleet_start_frontend(&f);
    fleet_wait_ready(&f);
    fleet_stop(&f);
}

/* A folder like models/demo but for one number in its config.json. */
static void
make_other_model(char *dir, size_t size)
{
    static const char *const files[] = {"model.safetensors", "tokenizer.json", "tokenizer.model",
                                        "tokenizer_config.json"};
    char demo[512], from[600], to[600], text[4096] = "";
    test_path(from, sizeof from, "models/" FLEET_MODEL);
    cr_assert_not_null(realpath(from, demo));
    snprintf(dir, size, "/tmp/conclave-test-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(from, sizeof from, "%s/%s", demo, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        cr_assert_eq(symlink(from, to), 0);
    }
    snprintf(from, sizeof from, "%s/config.json", demo);
    snprintf(to, sizeof to, "%s/config.json", dir);
    FILE *in = fopen(from, "r"), *out = fopen(to, "w");
    cr_assert(in != NULL && out != NULL);
    const size_t n = fread(text, 1, sizeof text - 1, in);
    char *at = strstr(text, "\"rope_theta\": 10000.0");
    cr_assert_not_null(at);
    at[sizeof "\"rope_theta\": " - 1] = '2';
    cr_assert_eq(fwrite(text, 1, n, out), n);
    fclose(in);
    fclose(out);
}

static void
remove_other_model(const char *dir)
{
    static const char *const files[] = {"model.safetensors", "tokenizer.json", "tokenizer.model",
                                        "tokenizer_config.json", "config.json"};
    char path[600];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
}

Test(bad_start, a_frontend_of_another_model_ends_and_says_why)
{
    char demo[sizeof f.model];
    fleet_open(&f, &(fleet_options){.workers = 1, .errors_expected = true});
    memcpy(demo, f.model, sizeof demo);
    fleet_start_router(&f);
    fleet_start_worker(&f, 0);
    make_other_model(f.model, sizeof f.model);
    fleet_process *frontend = fleet_start_frontend(&f);
    cr_expect_eq(fleet_wait_exit(frontend), 1);
    expect_in_log(&f, "frontend", "the router serves another model");
    remove_other_model(f.model);
    memcpy(f.model, demo, sizeof demo);
    fleet_stop(&f);
}

static void
expect_health(const fleet *fl, long status, const char *text)
{
    http_reply r = http_call(fl->url, "GET", "/health", NULL, NULL);
    cr_expect_eq(r.status, status, "%ld: %s", r.status, r.body);
    cr_expect_not_null(strstr(r.body, text), "no \"%s\" in %s", text, r.body);
    http_reply_fini(&r);
}

/* /health says text at last. */
static void
wait_health(const fleet *fl, long status, const char *text)
{
    uint64_t since = 0;
    for (bool found = false; !found;) {
        http_reply r = http_call(fl->url, "GET", "/health", NULL, NULL);
        found = r.status == status && strstr(r.body, text) != NULL;
        if (!found) fleet_pause(&since, r.body);
        http_reply_fini(&r);
    }
}

Test(bad_start, processes_wait_for_each_other_in_any_order)
{
    fleet_open(&f, &(fleet_options){.workers = 2});
    fleet_start_frontend(&f);
    expect_health(&f, 503, "router");
    fleet_start_worker(&f, 1);
    fleet_wait_log(&f, "worker-1", "started");
    fleet_start_router(&f);
    wait_health(&f, 503, "0 of 2 workers are ready; worker 0 is absent");
    http_reply r = http_call(f.url, "POST", "/v1/completions", "{\"prompt\":\"a\"}", NULL);
    cr_expect_eq(r.status, 503, "%ld %s", r.status, r.body);
    http_reply_fini(&r);
    fleet_start_worker(&f, 0);
    wait_health(&f, 200, "ok");
    fleet_stop(&f);
}

Test(bad_start, every_process_ends_when_asked_while_it_waits)
{
    fleet_open(&f, &(fleet_options){.workers = 2});
    fleet_start_frontend(&f);
    fleet_start_worker(&f, 1);
    fleet_wait_log(&f, "worker-1", "started");
    fleet_stop(&f);
    fleet_open(&f, &(fleet_options){.workers = 2});
    fleet_start_router(&f);
    fleet_wait_log(&f, "router-0", "started");
    fleet_stop(&f);
}

Test(bad_start, a_bad_option_is_named_and_the_exit_status_is_2)
{
    static const struct {
        const char *program, *flags, *text;
    } cases[] = {
        {"router", "--model=models/demo --no-such-thing=1", "--no-such-thing"},
        {"router", "--model=models/demo --workers=0", "--workers"},
        {"router", "--model=models/demo --workers=two", "--workers"},
        {"router", "--model=models/demo --dtype=int3", "--dtype"},
        {"router", "--model=models/demo --micro-batches=99", "--micro-batches"},
        {"router", "--model=models/demo --eplb-policy=best", "--eplb-policy"},
        {"worker", "--model=models/demo --expert-memory=-1", "--expert-memory"},
        {"ctl", "--drain", "--drain"},
        {"router", "--model=/no/such/folder", "--model"},
        {"router", "", "--model"},
        {"router", "--model=models/demo stray", "stray"},
        {"worker", "--model=models/demo --worker-id=-1", "--worker-id"},
        {"worker", "--model=models/demo --dtype", "--dtype"},
        {"worker", "--model=/no/such/folder", "--model"},
        {"worker", "", "--model"},
        {"frontend", "--model=models/demo --port=65536", "--port"},
        {"frontend", "--model=models/demo --max-waiting-seqs=0", "--max-waiting-seqs"},
        {"frontend", "--model=/no/such/folder", "--model"},
        {"frontend", "--model=/dev/null", "--model"},
        {"frontend", "", "--model"},
    };
    char out[4096];
    cr_assert_eq(chdir(test_root()), 0);
    fleet_open(&f, &(fleet_options){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int status = fleet_run(&f, cases[i].program, cases[i].flags, out, sizeof out);
        cr_expect_eq(status, 2, "%s %s: %d, %s", cases[i].program, cases[i].flags, status, out);
        cr_expect_not_null(strstr(out, cases[i].text), "%s %s: %s", cases[i].program,
                           cases[i].flags, out);
    }
    fleet_stop(&f);
}

Test(bad_start, a_checkpoint_or_address_that_is_no_good_is_named_and_the_exit_status_is_1)
{
    static const struct {
        const char *program, *flags, *text;
    } cases[] = {
        {"router", "--model=deploy", "config.json"},
        {"worker", "--model=deploy", "config.json"},
        {"frontend", "--model=deploy", "config.json"},
        {"frontend", "--model=tests/golden/models/base", "tokenizer"},
        {"frontend", "--model=models/demo --host=192.0.2.1", "192.0.2.1"},
        {"router", "--model=models/demo --max-model-len=5000", "--max-model-len"},
        {"router", "--model=models/demo --parallelism=tp --enable-eplb",
         "--eplb: with --parallelism tp"},
        {"router", "--model=models/demo --eplb-config={\"window\":1}", "window"},
        {"router", "--model=models/demo --routing-trace=/no/such/folder/f", "/no/such/folder/f"},
        {"ctl", "--drain=1,x", "is no list of worker ids"},
        {"ctl", "--json", "router-0.sock"},
    };
    char out[4096];
    cr_assert_eq(chdir(test_root()), 0);
    fleet_open(&f, &(fleet_options){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int status = fleet_run(&f, cases[i].program, cases[i].flags, out, sizeof out);
        cr_expect_eq(status, 1, "%s %s: %d, %s", cases[i].program, cases[i].flags, status, out);
        cr_expect_not_null(strstr(out, cases[i].text), "%s %s: %s", cases[i].program,
                           cases[i].flags, out);
    }
    fleet_stop(&f);
}

Test(bad_start, two_fleets_side_by_side_do_not_touch_each_other)
{
    request_set requests;
    answer_set a, b;
    requests_make(&requests, 6, 3);
    fleet_start(&f, &(fleet_options){0});
    fleet_start(&g, &(fleet_options){.workers = 3});
    requests_ask_begin(&requests, f.url);
    requests_ask_alone(&requests, g.url, &b);
    requests_ask_end(&requests, &a);
    answers_expect_equal(&b, &a, "the second fleet");
    answers_free(&b);
    fleet_stop(&f);
    requests_ask_together(&requests, g.url, &b);
    answers_expect_equal(&b, &a, "the second fleet without the first");
    fleet_stop(&g);
    answers_free(&a);
    answers_free(&b);
    requests_free(&requests);
}

/* Requests of which some stream, long enough to be in the middle when something is killed. */
static void
make_long_requests(request_set *out)
{
    *out = (request_set){0};
    for (int i = 0; i < 6; i++) {
        char body[256];
        snprintf(body, sizeof body,
                 "{\"prompt\":[%d,400,500],\"seed\":%d,\"temperature\":%s,\"logprobs\":2,"
                 "\"ignore_eos\":true,\"max_tokens\":%d,\"stream\":%s}",
                 300 + i, i, i % 2 ? "0.9" : "0", FLEET_QUICK ? 100 : 300,
                 i % 3 ? "true" : "false");
        requests_add(out, body);
    }
}

static double
unfinished(fleet *fl)
{
    return fleet_metric(fl, "vllm:num_requests_running") +
           fleet_metric(fl, "vllm:num_requests_waiting");
}

/* Half of the experts: nobody can host what a lost worker did. */
#define HALF_OF_MEMORY "--expert-memory=9437184"
#define SHORT_OF_MEMORY "the workers' memory is 9437184 bytes short of holding all experts"

/* Requests run, `name` is ended by a signal, /health says `lost`, another process takes its place:
 * every answer is what it would have been. */
static void
survive_a_loss(const char *name, const char *lost, const char *router_flags, int sig)
{
    request_set requests;
    answer_set want, got;
    make_long_requests(&requests);
    fleet_start(&f, &(fleet_options){.router_flags = router_flags,
                                     .worker_flags = HALF_OF_MEMORY,
                                     .errors_expected = true});
    requests_ask_together(&requests, f.url, &want);
    const double before = fleet_metric(&f, "vllm:generation_tokens_total");
    requests_ask_begin(&requests, f.url);
    for (uint64_t since = 0; fleet_metric(&f, "vllm:generation_tokens_total") < before + 60;)
        fleet_pause(&since, "tokens");
    for (uint64_t since = 0; unfinished(&f) < requests.count;)
        fleet_pause(&since, "all requests");
    fleet_process *process = fleet_find(&f, name);
    kill(process->pid, sig);
    fleet_wait_exit(process);
    wait_health(&f, 503, lost);
    cr_expect_eq(unfinished(&f), requests.count, "requests wait for %s", name);
    if (strcmp(name, "router-0") == 0)
        fleet_start_router(&f);
    else
        fleet_start_worker(&f, 1);
    requests_ask_end(&requests, &got);
    answers_expect_equal(&got, &want, router_flags);
    wait_health(&f, 200, "ok");
    answers_free(&want);
    answers_free(&got);
    requests_free(&requests);
    fleet_stop(&f);
}

Test(bad_start, requests_pause_while_a_killed_worker_is_away_and_get_the_same_tokens)
{
    survive_a_loss("worker-1", SHORT_OF_MEMORY, "--worker-timeout-ms=1000", SIGKILL);
}

Test(bad_start, requests_pause_while_a_killed_worker_is_away_over_nng)
{
    survive_a_loss("worker-1", SHORT_OF_MEMORY, "--worker-timeout-ms=1000 --exchange=nng", SIGKILL);
}

Test(bad_start, requests_pause_while_a_stopped_worker_is_away)
{
    survive_a_loss("worker-1", SHORT_OF_MEMORY, "--worker-timeout-ms=1000", SIGTERM);
}

Test(bad_start, requests_pause_while_a_killed_router_is_away_and_get_the_same_tokens)
{
    survive_a_loss("router-0", "not ready", "--worker-timeout-ms=1000", SIGKILL);
}

Test(bad_start, requests_pause_while_a_stopped_router_is_away)
{
    survive_a_loss("router-0", "not ready", "--worker-timeout-ms=1000", SIGTERM);
}
