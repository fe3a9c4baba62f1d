/* Processes that come late, do not belong, or die: clear refusals, pauses instead of errors, the
 * same tokens afterwards. */
#include <criterion/criterion.h>

#include <curl/curl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/integration/stream.h"
#include "tests/support/paths.h"

static fleet f, other;

TestSuite(failure, .timeout = 120, .fini = fleet_clean_up);

Test(failure, processes_may_start_in_any_order)
{
    fleet_open(&f, &(fleet_options){0});
    fleet_start_frontend(&f);
    http_reply r = http_call(f.url, "GET", "/health", NULL, NULL);
    cr_expect_eq(r.status, 503, "%ld without a router", r.status);
    http_reply_fini(&r);
    r = http_call(f.url, "POST", "/v1/completions", "{\"prompt\":\"x\"}", NULL);
    cr_expect_eq(r.status, 503, "%ld without a router", r.status);
    http_reply_fini(&r);
    fleet_start_worker(&f, 1);
    fleet_start_router(&f);
    uint64_t since = 0;
    for (bool said = false; !said;) {
        r = http_call(f.url, "GET", "/health", NULL, NULL);
        cr_expect_eq(r.status, 503, "one worker is missing");
        said = strstr(r.body, "worker 0 is absent") != NULL;
        http_reply_fini(&r);
        if (!said) fleet_pause(&since, "/health to name the missing worker");
    }
    fleet_start_worker(&f, 0);
    fleet_wait_ready(&f);
    fleet_stop(&f);
}

Test(failure, a_worker_that_does_not_fit_is_refused_with_the_reason)
{
    char model[512];
    fleet_open(&f, &(fleet_options){.router_flags = "--dtype=f32",
                                    .worker_flags = "--dtype=int8",
                                    .errors_expected = true});
    fleet_start_router(&f);
    fleet_process *worker = fleet_start_worker(&f, 0);
    cr_expect_eq(fleet_wait_exit(worker), 1);
    char *log = fleet_log(&f, "worker-0");
    cr_expect_not_null(strstr(log, "has experts in int8, this cell uses f32"), "%s", log);
    free(log);
    fleet_stop(&f);

    fleet_open(&f, &(fleet_options){.errors_expected = true});
    fleet_start_router(&f);
    snprintf(f.model, sizeof f.model, "%s", golden_path(model, sizeof model, "models/base"));
    worker = fleet_start_worker(&f, 0);
    cr_expect_eq(fleet_wait_exit(worker), 1);
    log = fleet_log(&f, "worker-0");
    cr_expect_not_null(strstr(log, "serves another model"), "%s", log);
    free(log);
    fleet_stop(&f);
}

Test(failure, bad_options_are_named)
{
    static const struct {
        const char *program, *flags, *want;
    } cases[] = {
        {"router", "--model=/nowhere", "/nowhere"},
        {"worker", "--model=/nowhere", "/nowhere"},
        {"frontend", "--model=/nowhere", "/nowhere"},
        {"router", "--max-num-seqs=0", "--max-num-seqs"},
        {"router", "--dtype=int3", "int3"},
        {"frontend", "--no-such-flag", "--no-such-flag"},
        {"worker", "", "--model is missing"},
    };
    char out[4096];
    fleet_open(&f, &(fleet_options){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int rc = fleet_run(&f, cases[i].program, cases[i].flags, out, sizeof out);
        cr_expect(rc == 1 || rc == 2, "%s %s: exit status %d", cases[i].program, cases[i].flags,
                  rc);
        cr_expect_not_null(strstr(out, cases[i].want), "%s %s: %s", cases[i].program,
                           cases[i].flags, out);
    }
    fleet_stop(&f);
}

Test(failure, two_fleets_live_side_by_side)
{
    fleet_start(&f, &(fleet_options){0});
    fleet_start(&other, &(fleet_options){.workers = 1, .cell_flags = "--dtype=int8"});
    cr_expect_str_neq(f.url, other.url);
    fleet_stop(&f);
    http_reply r =
        http_call(other.url, "POST", "/v1/completions", "{\"prompt\":\"In the beginning\"}", NULL);
    cr_expect_eq(r.status, 200, "the end of one fleet must not touch the other");
    http_reply_fini(&r);
    fleet_stop(&other);
}

/* ---- deaths ---- */

static const char body[] =
    "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":400,\"temperature\":0.9,\"seed\":3,"
    "\"prompt\":\"And it came to pass in those days, that\"}";

static void
start_stream(stream *s, const fleet *fl)
{
    *s = (stream){0};
    snprintf(s->url, sizeof s->url, "%s", fl->url);
    snprintf(s->body, sizeof s->body, "%s", body);
    stream_start(s);
}

static char *
undisturbed(void)
{
    stream s;
    start_stream(&s, &f);
    stream_join(&s);
    cr_assert(s.done, "%s", s.error);
    char *text = strdup(strbuf_text(&s.text));
    stream_fini(&s);
    return text;
}

static void
kill_hard(fleet_process *p)
{
    kill(p->pid, SIGKILL);
    cr_expect_eq(fleet_wait_exit(p), 128 + SIGKILL);
}

/* Kill a process in the middle of a stream and start it again: the stream pauses, then goes on with
 * the same tokens. */
static void
kill_in_a_stream(const char *name)
{
    char *want = undisturbed();
    stream s;
    start_stream(&s, &f);
    uint64_t since = 0;
    while (atomic_load(&s.events) < 20)
        fleet_pause(&since, "the first tokens");
    kill_hard(fleet_find(&f, name));
    if (strcmp(name, "router-0") == 0)
        fleet_start_router(&f);
    else
        fleet_start_worker(&f, (uint32_t)(name[strlen(name) - 1] - '0'));
    stream_join(&s);
    cr_expect(s.done, "the stream did not end well: %s", s.error);
    cr_expect_str_eq(s.error, "");
    cr_expect_str_eq(strbuf_text(&s.text), want, "other tokens than undisturbed");
    stream_fini(&s);
    free(want);
}

Test(failure, a_worker_that_dies_and_returns_changes_no_token)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    fleet_start(
        &f, &(fleet_options){.router_flags = "--worker-timeout-ms=1000", .errors_expected = true});
    kill_in_a_stream("worker-1");
    fleet_wait_metric(&f, "conclave:kv_blocks_used", 0);
    fleet_stop(&f);
    curl_global_cleanup();
}

Test(failure, a_router_that_dies_and_returns_changes_no_token)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    fleet_start(&f, &(fleet_options){.errors_expected = true});
    kill_in_a_stream("router-0");
    fleet_wait_metric(&f, "conclave:kv_blocks_used", 0);
    fleet_stop(&f);
    curl_global_cleanup();
}
