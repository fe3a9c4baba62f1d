/* Tensor parallelism adds partial sums in another order than expert parallelism, so both agree
 * within rounding; by itself it is as repeatable. */
#include <cjson/cJSON.h>
#include <criterion/criterion.h>
#include <criterion/logging.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 8u : 24u)
#define LOGPROB_TOLERANCE 1e-3
#define PROMPTS_MAX 6

static fleet f;

TestSuite(tp, .timeout = 200, .fini = fleet_clean_up);

static void
make_greedy_requests(request_set *out)
{
    static const char *const prompts[PROMPTS_MAX] = {"It is a truth universally acknowledged, that",
                                                     "And it came to pass in those days, that",
                                                     "HAMLET.",
                                                     "import os\\nimport sys\\n\\ndef ",
                                                     "The following example shows how to",
                                                     "x"};
    *out = (request_set){0};
    for (uint32_t i = 0; i < REQUEST_COUNT; i++) {
        char body[256];
        snprintf(body, sizeof body,
                 "{\"prompt\":\"%s%.*s\",\"temperature\":0,\"logprobs\":5,\"max_tokens\":48}",
                 prompts[i % PROMPTS_MAX], (int)(i / PROMPTS_MAX), " of");
        requests_add(out, body);
    }
}

static const cJSON *
logprobs_of(const cJSON *root, const char *list)
{
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(root, "choices");
    return cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(choices->child, "logprobs"), list);
}

static cJSON *
parse(const char *choices)
{
    char *text = NULL;
    cr_assert_not_null(choices);
    cr_assert(asprintf(&text, "{%s}", choices) > 0);
    cJSON *root = cJSON_Parse(text);
    free(text);
    return root;
}

/* Tokens must agree until two candidates are as good as equal.  Returns whether they do to the
 * end. */
static bool
compare(const char *ep_choices, const char *tp_choices, uint32_t workers, uint32_t i)
{
    cJSON *ep = parse(ep_choices), *tp = parse(tp_choices);
    const cJSON *a = logprobs_of(ep, "tokens")->child, *b = logprobs_of(tp, "tokens")->child,
                *x = logprobs_of(ep, "token_logprobs")->child,
                *y = logprobs_of(tp, "token_logprobs")->child,
                *top = logprobs_of(ep, "top_logprobs")->child;
    while (a != NULL && b != NULL && strcmp(a->valuestring, b->valuestring) == 0) {
        cr_expect_lt(fabs(x->valuedouble - y->valuedouble), LOGPROB_TOLERANCE,
                     "%u workers, request %u: logprob %.9g, ep has %.9g", workers, i,
                     y->valuedouble, x->valuedouble);
        a = a->next, b = b->next, x = x->next, y = y->next, top = top->next;
    }
    const bool same = a == NULL && b == NULL;
    if (!same) {
        const cJSON *other =
            b == NULL ? NULL : cJSON_GetObjectItemCaseSensitive(top, b->valuestring);
        cr_expect(other != NULL &&
                      fabs(other->valuedouble - x->valuedouble) < 2 * LOGPROB_TOLERANCE,
                  "%u workers, request %u: tokens differ without a tie", workers, i);
    }
    cJSON_Delete(ep);
    cJSON_Delete(tp);
    return same;
}

Test(tp, agrees_with_ep_within_rounding)
{
    static const uint32_t counts[] = {1, 2, 3, 5};
    request_set requests;
    answer_set ep, tp;
    make_greedy_requests(&requests);
    fleet_start(&f, &(fleet_options){.cell_flags = "--dtype=f32"});
    requests_ask_together(&requests, f.url, &ep);
    fleet_stop(&f);
    for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++) {
        if (FLEET_QUICK && counts[k] != 3) continue;
        fleet_start(&f, &(fleet_options){.workers = counts[k],
                                         .cell_flags = "--dtype=f32",
                                         .router_flags = "--parallelism=tp"});
        requests_ask_together(&requests, f.url, &tp);
        fleet_stop(&f);
        uint32_t same = 0;
        for (uint32_t i = 0; i < requests.count; i++)
            same += compare(ep.choices[i], tp.choices[i], counts[k], i);
        cr_log_info("%u workers: %u of %u answers have the same tokens to the end", counts[k], same,
                    requests.count);
        answers_free(&tp);
    }
    answers_free(&ep);
    requests_free(&requests);
}

Test(tp, answers_are_the_same_bits_for_any_batching_and_exchange)
{
    static const struct {
        const char *cell, *router;
    } fleets[] = {
        {"--dtype=f32", ""},
        {"--dtype=f32", "--max-num-batched-tokens=16 --exchange=nng"},
        {"--dtype=int8", ""},
        {"--dtype=int8", "--max-num-batched-tokens=16 --exchange=nng --micro-batches=2"},
        {"--dtype=bf16", ""},
        {"--dtype=bf16", "--max-num-batched-tokens=100 --micro-batches=2"},
    };
    request_set requests;
    answer_set want = {0}, got;
    char flags[128];
    requests_make(&requests, REQUEST_COUNT, 9);
    for (size_t k = 0; k < (FLEET_QUICK ? 2 : sizeof fleets / sizeof fleets[0]); k++) {
        snprintf(flags, sizeof flags, "--parallelism=tp %s", fleets[k].router);
        fleet_start(&f, &(fleet_options){
                            .workers = 3, .cell_flags = fleets[k].cell, .router_flags = flags});
        if (k % 2 == 0) {
            requests_ask_alone(&requests, f.url, &want);
        } else {
            requests_ask_together(&requests, f.url, &got);
            answers_expect_equal(&got, &want, flags);
            answers_free(&got);
            answers_free(&want);
        }
        fleet_stop(&f);
    }
    requests_free(&requests);
}

/* ---- workers that die and come ---- */

/* Whose process ends is noticed at once; on a machine that is busy nobody else is to be given up.
 */
#define PATIENT "--parallelism=tp --worker-timeout-ms=20000"

#define DEATH_REQUESTS (FLEET_QUICK ? 24u : 40u)

static request_set mixed;
static answer_set undisturbed;

static uint32_t
count_lines(const char *name, const char *text)
{
    return fleet_count_log(&f, name, text);
}

static void
wait_line(const char *name, const char *text, uint32_t more_than)
{
    for (uint64_t since = 0; count_lines(name, text) <= more_than;)
        fleet_pause(&since, text);
}

static void
kill_worker(const char *name)
{
    const uint32_t taken = count_lines("router-0", "slice taken over");
    fleet_process *p = fleet_find(&f, name);
    kill(p->pid, SIGKILL);
    cr_expect_eq(fleet_wait_exit(p), 128 + SIGKILL);
    wait_line("router-0", "slice taken over", taken);
}

/* A slice is handed back, and whoever had it forgets it. */
static void
start_worker_that_gets_a_slice(uint32_t id)
{
    const uint32_t taken = count_lines("router-0", "slice taken over");
    fleet_start_worker(&f, id);
    wait_line("router-0", "slice taken over", taken);
}

/* Answers are the bits of a fleet that nothing happened to: sums are added in the order of slices,
 * whoever has them. */
static void
during_requests(const char *what, void happens(void))
{
    answer_set got;
    requests_ask_begin(&mixed, f.url);
    happens();
    requests_ask_end(&mixed, &got);
    answers_expect_equal(&got, &undisturbed, what);
    answers_free(&got);
}

static void
start_spare(uint32_t id)
{
    char line[32];
    snprintf(line, sizeof line, "worker ready worker=%u ", id);
    const uint32_t before = count_lines("router-0", line);
    fleet_start_worker(&f, id);
    wait_line("router-0", line, before);
}

static void
one_dies(void)
{
    kill_worker("worker-1");
}

static void
another_dies(void)
{
    kill_worker("worker-2");
}

static void
one_comes(void)
{
    start_worker_that_gets_a_slice(1);
}

static void
another_comes(void)
{
    start_worker_that_gets_a_slice(5);
}

static void
a_spare_takes_over(void)
{
    const uint32_t loads = count_lines("worker-3", "experts loaded");
    kill_worker("worker-0");
    cr_expect_gt(count_lines("worker-3", "experts loaded"), loads, "another one has the slice");
}

static void
go_through_deaths(const char *router_flags, uint32_t routers)
{
    fleet_start(&f, &(fleet_options){.workers = 3,
                                     .routers = routers,
                                     .cell_flags = "--dtype=int8",
                                     .router_flags = router_flags});
    during_requests("a survivor takes the slice over", one_dies);
    during_requests("one has all slices", another_dies);
    const uint32_t failed = count_lines("router-0", "step failed");
    during_requests("one comes back", one_comes);
    during_requests("another one comes, with an id of its own", another_comes);
    cr_expect_eq(count_lines("router-0", "step failed"), failed, "a step noticed");
    wait_line("worker-0", "slice dropped", 1);
    start_spare(3);
    during_requests("a spare takes the slice over", a_spare_takes_over);
    start_spare(0); /* they clear up behind their earlier lives */
    start_spare(2);
    fleet_stop(&f);
}

Test(tp, a_lost_slice_is_taken_over_and_no_answer_changes)
{
    requests_make(&mixed, DEATH_REQUESTS, 31);
    fleet_start(&f, &(fleet_options){.workers = 3,
                                     .cell_flags = "--dtype=int8",
                                     .router_flags = "--parallelism=tp"});
    requests_ask_together(&mixed, f.url, &undisturbed);
    fleet_stop(&f);
    go_through_deaths(PATIENT, 1);
    if (!FLEET_QUICK) go_through_deaths(PATIENT " --exchange=nng", 1);
    go_through_deaths(PATIENT, 2);
    answers_free(&undisturbed);
    requests_free(&mixed);
}
