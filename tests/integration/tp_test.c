/* Tensor parallelism adds partial sums in another order than expert parallelism, so both agree
 * within rounding; by itself it is as repeatable. */
#include <cjson/cJSON.h>
#include <criterion/criterion.h>
#include <criterion/logging.h>
#include <math.h>
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
