/* Tensor parallel fleets against an expert parallel one, in f32: the same greedy tokens with
 * logprobs within 1e-3, up to where rounding may decide. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"

#define PROMPTS 8
#define TOKENS 40
#define TOLERANCE 1e-3
/* Two tokens closer than this may swap: then the texts part, and what follows says nothing. */
#define GAP_MIN 2e-3

static fleet f;

TestSuite(tensor_parallel, .timeout = 120, .fini = fleet_clean_up);

static const char *const prompts[PROMPTS] = {
    "It is a truth universally acknowledged, that",
    "And it came to pass in those days, that",
    "HAMLET.",
    "import os\\nimport sys\\n\\ndef ",
    "The following example shows how to",
    "In the beginning",
    "class Reader:\\n    def __init__(self",
    "To be, or not to be",
};

typedef struct answer {
    char tokens[TOKENS][32];
    double logprobs[TOKENS], gaps[TOKENS]; /* gap: best minus second */
    char *raw;
} answer;

static void
ask(const char *prompt, answer *out)
{
    char body[512];
    snprintf(body, sizeof body,
             "{\"prompt\":\"%s\",\"max_tokens\":%d,\"temperature\":0,\"logprobs\":2,\"ignore_eos\":"
             "true}",
             prompt, TOKENS);
    http_reply r = http_call(f.url, "POST", "/v1/completions", body, NULL);
    cr_assert_eq(r.status, 200, "%s", r.body);
    cJSON *root = cJSON_Parse(r.body);
    const cJSON *choice = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "choices"), 0);
    const cJSON *logprobs = cJSON_GetObjectItem(choice, "logprobs");
    for (int i = 0; i < TOKENS; i++) {
        const cJSON *token = cJSON_GetArrayItem(cJSON_GetObjectItem(logprobs, "tokens"), i);
        snprintf(out->tokens[i], sizeof out->tokens[i], "%s", token->valuestring);
        out->logprobs[i] =
            cJSON_GetArrayItem(cJSON_GetObjectItem(logprobs, "token_logprobs"), i)->valuedouble;
        const cJSON *top = cJSON_GetArrayItem(cJSON_GetObjectItem(logprobs, "top_logprobs"), i);
        double best = -INFINITY, second = -INFINITY;
        const cJSON *one;
        cJSON_ArrayForEach(one, top)
        {
            if (one->valuedouble > best)
                second = best, best = one->valuedouble;
            else if (one->valuedouble > second)
                second = one->valuedouble;
        }
        out->gaps[i] = best - second;
    }
    out->raw = cJSON_PrintUnformatted(choice);
    cJSON_Delete(root);
    http_reply_fini(&r);
}

static void
ask_all(answer *answers)
{
    for (int i = 0; i < PROMPTS; i++) {
        ask(prompts[i], &answers[i]);
    }
}

static void
free_all(answer *answers)
{
    for (int i = 0; i < PROMPTS; i++) {
        free(answers[i].raw);
    }
}

Test(tensor_parallel, agrees_with_expert_parallel_and_with_itself)
{
    static answer ep[PROMPTS], tp[PROMPTS], again[PROMPTS];
    fleet_start(&f, &(fleet_options){.cell_flags = "--dtype=f32"});
    ask_all(ep);
    fleet_stop(&f);

    static const uint32_t workers[] = {1, 2, 3, 5};
    for (size_t w = 0; w < sizeof workers / sizeof workers[0]; w++) {
        fleet_start(&f, &(fleet_options){.workers = workers[w],
                                         .cell_flags = "--dtype=f32",
                                         .router_flags = "--parallelism=tp"});
        unsigned compared = 0;
        double worst = 0;
        ask_all(tp);
        ask_all(again);
        for (int i = 0; i < PROMPTS; i++) {
            cr_expect_str_eq(tp[i].raw, again[i].raw, "tp of %u workers does not repeat",
                             workers[w]);
            for (int t = 0; t < TOKENS && ep[i].gaps[t] > GAP_MIN; t++) {
                cr_assert_str_eq(tp[i].tokens[t], ep[i].tokens[t], "prompt %d, token %d", i, t);
                const double diff = fabs(tp[i].logprobs[t] - ep[i].logprobs[t]);
                if (diff > worst) worst = diff;
                compared++;
            }
        }
        printf("tp of %u workers: %u of %d tokens compared, largest logprob difference %.2g\n",
               workers[w], compared, PROMPTS * TOKENS, worst);
        fflush(stdout);
        cr_expect_leq(worst, TOLERANCE);
        cr_expect_gt(compared, PROMPTS * TOKENS / 2);
        free_all(tp);
        free_all(again);
        fleet_stop(&f);
    }
    free_all(ep);
}
