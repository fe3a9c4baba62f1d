/* Load that is uneven: texts of one kind, then, at once, of another.  Experts are moved after each
 * within two intervals, counted in steps, and balancedness before and after is printed. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cJSON.h>

#include "common/file.h"
#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"
#include "tests/support/paths.h"

#define TOKENS 500 /* step_interval below is 200 */
#define SEQUENCES 32u
#define DOMAINS_BYTES_MAX ((size_t)4 << 20)
#define PROMPT_CHARS 200
#define OUT_BYTES 16384
#define DECISIONS_MAX 32

static fleet f;

TestSuite(balance, .timeout = 280, .fini = fleet_clean_up);

static cJSON *
read_domains(void)
{
    char path[512], *text = NULL;
    size_t len;
    errbuf eb;
    test_path(path, sizeof path, "loadgen/data/domains.json");
    cr_assert_eq(file_read(path, DOMAINS_BYTES_MAX, &text, &len, &eb), MOE_OK, "%s", eb.text);
    cJSON *root = cJSON_ParseWithLength(text, len);
    cr_assert_not_null(root);
    free(text);
    return root;
}

/* Completions of texts of one domain: all run together, for two intervals and a half. */
static void
make_requests(request_set *out, const cJSON *texts, const char *domain)
{
    *out = (request_set){0};
    for (const cJSON *t = texts->child; t != NULL && out->count < SEQUENCES;
         t = t->next ? t->next : texts->child) {
        if (strcmp(cJSON_GetObjectItem(t, "domain")->valuestring, domain) != 0) continue;
        const cJSON *turn = cJSON_GetObjectItem(t, "conversations")->child;
        char prompt[PROMPT_CHARS + 1];
        /* Another part of the text in the second round. */
        const char *value = cJSON_GetObjectItem(turn, "value")->valuestring;
        const size_t at = out->count * 7, len = strlen(value);
        snprintf(prompt, sizeof prompt, "%s", value + (at < len ? at : 0));
        cJSON *body = cJSON_CreateObject();
        cJSON_AddStringToObject(body, "model", FLEET_MODEL);
        cJSON_AddStringToObject(body, "prompt", prompt);
        cJSON_AddNumberToObject(body, "max_tokens", TOKENS);
        cJSON_AddNumberToObject(body, "temperature", 1);
        cJSON_AddNumberToObject(body, "seed", out->count);
        cJSON_AddBoolToObject(body, "ignore_eos", true);
        char *printed = cJSON_PrintUnformatted(body);
        requests_add(out, printed);
        cJSON_free(printed);
        cJSON_Delete(body);
    }
}

/* One look at the load, as router 0's log tells it. */
typedef struct decision {
    bool adopted;
    double before, after; /* balancedness, predicted by the rows of the window */
} decision;

static uint32_t
read_decisions(decision *out)
{
    char *log = fleet_log(&f, "router-0");
    uint32_t count = 0;
    for (const char *at = log; (at = strstr(at, "decision verdict=")) != NULL; at++) {
        cr_assert_lt(count, DECISIONS_MAX);
        decision *d = &out[count++];
        *d = (decision){.adopted = strncmp(at, "decision verdict=adopted", 24) == 0};
        if (!d->adopted) continue;
        const char *told = strstr(at, "move: balancedness ");
        cr_assert_not_null(told);
        cr_assert_eq(sscanf(told, "move: balancedness %lf to %lf", &d->before, &d->after), 2);
    }
    free(log);
    return count;
}

static double
balancedness(void)
{
    char out[OUT_BYTES];
    cr_assert_eq(fleet_run(&f, "ctl", "--json", out, sizeof out), 0, "%s", out);
    const char *at = strstr(out, "\"balancedness\":");
    cr_assert_not_null(at, "%s", out);
    cr_expect_not_null(strstr(out, "\"step_waits\":0,"), "a step waited for a move: %s", out);
    return strtod(at + 15, NULL);
}

static void
ask(const cJSON *texts, const char *domain)
{
    request_set requests;
    answer_set answers;
    make_requests(&requests, texts, domain);
    cr_assert_eq(requests.count, SEQUENCES);
    requests_ask_together(&requests, f.url, &answers);
    for (uint32_t i = 0; i < answers.count; i++)
        cr_assert_not_null(answers.choices[i], "%s: request %u", domain, i);
    answers_free(&answers);
    requests_free(&requests);
}

/* What the fleet made of texts of one domain: one more placement by the second look, and rows as
 * even as that promised. */
static void
expect_recovery(const char *domain, const decision *looks, uint32_t count)
{
    const double now = balancedness();
    cr_assert_geq(count, 2, "%s: %u looks", domain, count);
    const decision *last = looks[1].adopted ? &looks[1] : &looks[0];
    cr_assert(last->adopted, "%s: nothing was adopted in two intervals", domain);
    printf("%s: balancedness %.3f, after two intervals %.3f\n", domain,
           looks[0].adopted ? looks[0].before : last->before, now);
    cr_expect_gt(last->after, last->before + 0.02);
    cr_expect_gt(now, last->after - 0.05, "%s: %g", domain, now);
}

Test(balance, experts_follow_the_load_within_two_intervals)
{
    cJSON *texts = read_domains();
    decision looks[DECISIONS_MAX];
    /* Moves are cheap, so that counts alone decide, not how long a step takes on this machine. */
    fleet_start(&f, &(fleet_options){.workers = 4,
                                     .router_flags = "--max-model-len=1024 --eplb=on "
                                                     "--eplb-move-mbps=1000000 "
                                                     "--eplb-config={\"window_size\":200,"
                                                     "\"step_interval\":200}"});
    ask(texts, "python");
    const uint32_t before = read_decisions(looks);
    expect_recovery("python", looks, before);
    ask(texts, "austen");
    const uint32_t after = read_decisions(looks);
    expect_recovery("then austen", looks + before, after - before);
    fleet_stop(&f);
    cJSON_Delete(texts);
}
