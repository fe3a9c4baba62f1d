/* The admin API of a whole fleet, and the experts that its requests say they used: what one says is
 * what the others say. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"
#include "tests/support/npy.h"

#define KEY "for-operators"
#define ADMIN "--admin-port=0 --admin-api-key=" KEY
#define OUT_BYTES 65536
#define PROMPT 5u
/* Each token is a step; the window is left for others every 16 steps. */
#define OUTPUT 32u
#define LAYERS_MAX 16
#define EXPERTS_MAX 16

static fleet f;
static char admin_url[64];

TestSuite(admin_fleet, .timeout = 280, .fini = fleet_clean_up);

static void
start(const fleet_options *options)
{
    fleet_start(&f, options);
    char *log = fleet_log(&f, "frontend");
    unsigned port = 0;
    const char *at = strstr(log, "admin API port=");
    cr_assert_not_null(at, "%s", log);
    cr_assert_eq(sscanf(at, "admin API port=%u", &port), 1);
    snprintf(admin_url, sizeof admin_url, "http://127.0.0.1:%u", port);
    free(log);
}

/* Body NULL: GET.  The answer, owned. */
static cJSON *
admin(const char *path, const char *body, long status)
{
    http_reply r = http_call(admin_url, body == NULL ? "GET" : "POST", path, body, KEY);
    cr_assert_eq(r.status, status, "%s: status %ld, %s", path, r.status, r.body);
    cJSON *root = cJSON_Parse(r.body);
    cr_assert_not_null(root, "%s", r.body);
    http_reply_fini(&r);
    return root;
}

static double
number(const cJSON *o, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(o, name);
    cr_assert(cJSON_IsNumber(item), "no number %s", name);
    return item->valuedouble;
}

/* ---- who is let in ---- */

static void
expect_status(const char *url, const char *path, const char *key, long status)
{
    http_reply r = http_call(url, "GET", path, NULL, key);
    cr_expect_eq(r.status, status, "%s with the key %s: %ld", path, key ? key : "none", r.status);
    http_reply_fini(&r);
}

static void
expect_doors(void)
{
    expect_status(admin_url, "/admin/placement", NULL, 401);
    expect_status(admin_url, "/admin/placement", "wrong", 401);
    expect_status(admin_url, "/admin/placement", KEY, 200);
    expect_status(admin_url, "/v1/models", KEY, 404);
    expect_status(f.url, "/admin/placement", KEY, 404);
}

/* ---- placement ---- */

/* Experts of all layers that the placement gives each worker. */
static void
count_placed(const cJSON *placement, uint32_t *counts)
{
    memset(counts, 0, FLEET_WORKERS_MAX * sizeof *counts);
    const cJSON *layer, *expert, *host;
    cJSON_ArrayForEach(layer, cJSON_GetObjectItem(placement, "layers"))
    {
        cJSON_ArrayForEach(expert, cJSON_GetObjectItem(layer, "experts"))
        {
            const cJSON *hosts = cJSON_GetObjectItem(expert, "hosts");
            cr_expect_geq(cJSON_GetArraySize(hosts), 1, "an expert has no host");
            cJSON_ArrayForEach(host, hosts)
            {
                counts[(uint32_t)number(host, "worker")]++;
            }
        }
    }
}

/* One look at all three; false while an epoch begins between two of them. */
static bool
placement_is_what_status_says(void)
{
    static char ctl[OUT_BYTES];
    uint32_t placed[FLEET_WORKERS_MAX];
    cJSON *placement = admin("/admin/placement", NULL, 200);
    char *text = cJSON_PrintUnformatted(placement);
    cr_assert_eq(fleet_run(&f, "ctl", "--placement", ctl, sizeof ctl), 0, "%s", ctl);
    ctl[strcspn(ctl, "\n")] = '\0';
    count_placed(placement, placed);
    cJSON *status = admin("/admin/status", NULL, 200);
    bool same = strcmp(text, ctl) == 0 && number(status, "epoch") == number(placement, "epoch");
    const cJSON *worker;
    cJSON_ArrayForEach(worker, cJSON_GetObjectItem(status, "workers"))
    {
        same = same && number(worker, "experts_hosted") == placed[(uint32_t)number(worker, "id")];
    }
    free(text);
    cJSON_Delete(status);
    cJSON_Delete(placement);
    return same;
}

static void
expect_placement_is_what_status_says(void)
{
    for (uint64_t since = 0; !placement_is_what_status_says();)
        fleet_pause(&since, "placement and status to agree");
}

/* Until nothing is left over from a move. */
static void
wait_settled(uint32_t workers)
{
    for (uint64_t since = 0;; fleet_pause(&since, "the fleet to settle")) {
        uint32_t placed[FLEET_WORKERS_MAX], there = 0;
        bool equal = true;
        cJSON *placement = admin("/admin/placement", NULL, 200);
        cJSON *status = admin("/admin/status", NULL, 200);
        count_placed(placement, placed);
        const cJSON *worker;
        cJSON_ArrayForEach(worker, cJSON_GetObjectItem(status, "workers"))
        {
            there++;
            equal =
                equal && number(worker, "experts_hosted") == placed[(uint32_t)number(worker, "id")];
        }
        cJSON_Delete(status);
        cJSON_Delete(placement);
        if (equal && there == workers) return;
    }
}

/* ---- one request, and what is told of its experts ---- */

static cJSON *
complete(const char *more)
{
    char body[512];
    snprintf(body, sizeof body,
             "{\"prompt\":[300,301,302,303,304],\"max_tokens\":%u,\"ignore_eos\":true,"
             "\"temperature\":0%s}",
             OUTPUT, more);
    http_reply r = http_call(f.url, "POST", "/v1/completions", body, NULL);
    cr_assert_eq(r.status, 200, "%s", r.body);
    cJSON *root = cJSON_Parse(r.body);
    http_reply_fini(&r);
    return root;
}

static const cJSON *
first_choice(const cJSON *root)
{
    return cJSON_GetObjectItem(root, "choices")->child;
}

static void
expect_routing(const npy *told)
{
    uint32_t counts[LAYERS_MAX][EXPERTS_MAX] = {{0}};
    cr_assert_leq(told->layers, LAYERS_MAX);
    for (uint32_t t = 0; t < told->tokens; t++)
        for (uint32_t i = 0; i < told->layers * told->top_k; i++)
            counts[i / told->top_k][npy_id(told, t, i)]++;
    cJSON *routing = NULL;
    for (uint64_t since = 0;; fleet_pause(&since, "the window of all steps")) {
        routing = admin("/admin/routing", NULL, 200);
        if (number(routing, "window_steps") == OUTPUT) break;
        cJSON_Delete(routing);
    }
    cr_expect_eq(number(routing, "top_k"), told->top_k);
    const cJSON *layer;
    cJSON_ArrayForEach(layer, cJSON_GetObjectItem(routing, "layers"))
    {
        const uint32_t l = (uint32_t)number(layer, "layer");
        const cJSON *tokens = cJSON_GetObjectItem(layer, "tokens"), *n;
        uint32_t e = 0;
        cJSON_ArrayForEach(n, tokens)
        {
            cr_expect_eq(n->valuedouble, counts[l][e], "layer %u, expert %u: %g, not %u", l, e,
                         n->valuedouble, counts[l][e]);
            e++;
        }
        cr_expect_eq(number(layer, "total"), told->tokens * told->top_k);
        const double balancedness = number(layer, "balancedness");
        cr_expect(balancedness > 0 && balancedness <= 1);
    }
    cJSON_Delete(routing);
}

static double
sum_of_metric(const char *name)
{
    double sum = 0;
    http_reply r = http_call(f.url, "GET", "/metrics", NULL, NULL);
    for (const char *at = r.body; (at = strstr(at, name)) != NULL; at++)
        if (at[strlen(name)] == '{') sum += strtod(strchr(at, '}') + 1, NULL);
    http_reply_fini(&r);
    return sum;
}

static void
expect_metrics(const npy *told)
{
    const double rows = told->tokens * told->layers * told->top_k;
    for (uint64_t since = 0; sum_of_metric("conclave:worker_rows_total") != rows;)
        fleet_pause(&since, "the workers' rows in /metrics");
    cr_expect_gt(sum_of_metric("conclave:worker_busy_seconds_total"), 0);
    cr_expect_gt(sum_of_metric("conclave:worker_hosted_bytes"), 0);
    cr_expect_gt(sum_of_metric("conclave:layer_balancedness"), 0);
    cr_expect_eq(sum_of_metric("conclave:rebalancer_overdue"), 0);
}

/* ---- what it changes ---- */

static void
expect_same_answer(const cJSON *want)
{
    cJSON *got = complete("");
    const char *a = cJSON_GetStringValue(cJSON_GetObjectItem(first_choice(got), "text"));
    cr_expect_str_eq(a, cJSON_GetStringValue(cJSON_GetObjectItem(first_choice(want), "text")));
    cr_expect_null(cJSON_GetObjectItem(first_choice(got), "routed_experts"));
    cJSON_Delete(got);
}

static void
rebalance(void)
{
    cJSON *before = admin("/admin/status", NULL, 200);
    const double decisions = number(cJSON_GetObjectItem(before, "eplb"), "decisions");
    cJSON_Delete(before);
    cJSON_Delete(admin("/admin/rebalance", "", 202));
    for (uint64_t since = 0;; fleet_pause(&since, "a rebalance")) {
        cJSON *now = admin("/admin/status", NULL, 200);
        const double done = number(cJSON_GetObjectItem(now, "eplb"), "decisions");
        cJSON_Delete(now);
        if (done > decisions) return;
    }
}

Test(admin_fleet, shows_and_changes_a_fleet_while_it_serves)
{
    start(&(fleet_options){
        .workers = 4, .router_flags = "--eplb-move-mbps=0", .frontend_flags = ADMIN});
    expect_doors();
    expect_placement_is_what_status_says();
    cJSON *first = complete(",\"return_routed_experts\":true");
    npy told =
        npy_read(cJSON_GetStringValue(cJSON_GetObjectItem(first_choice(first), "routed_experts")));
    cr_expect_eq(told.tokens, PROMPT + OUTPUT - 1);
    expect_routing(&told);
    expect_metrics(&told);
    free(told.file);
    expect_same_answer(first);
    rebalance();
    expect_same_answer(first);

    cJSON_Delete(admin("/admin/drain", "{\"workers\":[1]}", 202));
    expect_same_answer(first);
    cr_expect_eq(fleet_wait_exit(fleet_find(&f, "worker-1")), 0);
    wait_settled(3);
    expect_placement_is_what_status_says();
    cJSON_Delete(admin("/admin/drain", "{\"workers\":[1]}", 404));

    cJSON_Delete(admin("/admin/scale", "{\"workers\":4}", 501));
    cJSON_Delete(admin("/admin/scale", "{\"workers\":3}", 200));
    cJSON_Delete(admin("/admin/scale", "{\"workers\":2}", 202));
    expect_same_answer(first);
    cr_expect_eq(fleet_wait_exit(fleet_find(&f, "worker-3")), 0);
    wait_settled(2);
    expect_placement_is_what_status_says();
    expect_same_answer(first);
    cJSON_Delete(first);
    fleet_stop(&f);
}

Test(admin_fleet, has_no_placement_to_show_with_tensor_parallelism)
{
    start(&(fleet_options){.router_flags = "--parallelism=tp", .frontend_flags = ADMIN});
    cJSON *placement = admin("/admin/placement", NULL, 200);
    cr_expect_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(placement, "parallelism")), "tp");
    cr_expect_eq(cJSON_GetArraySize(cJSON_GetObjectItem(placement, "layers")), 0);
    cJSON_Delete(placement);
    cJSON_Delete(admin("/admin/routing", NULL, 200));
    cJSON_Delete(admin("/admin/rebalance", "", 501));
    cJSON_Delete(admin("/admin/drain", "{\"workers\":[0]}", 501));
    cJSON *with = complete(",\"return_routed_experts\":true");
    npy told =
        npy_read(cJSON_GetStringValue(cJSON_GetObjectItem(first_choice(with), "routed_experts")));
    cr_expect_eq(told.tokens, PROMPT + OUTPUT - 1);
    free(told.file);
    expect_same_answer(with);
    cJSON_Delete(with);
    fleet_stop(&f);
}

/* ---- tokens' experts, whatever the fleet ---- */

#define ROOM "--max-model-len=672 --max-num-batched-tokens=128 "
#define REQUEST_COUNT 16u

static void
ask_for_experts(const request_set *plain, request_set *out)
{
    *out = (request_set){0};
    for (uint32_t i = 0; i < plain->count; i++) {
        char *body;
        cr_assert(asprintf(&body, "{\"return_routed_experts\":true,%s%s",
                           i % 4 == 3 ? "\"stream\":true," : "", plain->bodies[i] + 1) > 0);
        requests_add(out, body);
        free(body);
    }
}

/* Cut the experts out of every choice. */
static void
strip_experts(answer_set *answers)
{
    static const char begin[] = ",\"routed_experts\":\"";
    for (uint32_t i = 0; i < answers->count; i++) {
        char *at = answers->choices[i];
        uint32_t cut = 0;
        while (at != NULL && (at = strstr(at, begin)) != NULL) {
            const char *end = strchr(at + sizeof begin - 1, '"') + 1;
            memmove(at, end, strlen(end) + 1);
            cut++;
        }
        cr_expect_eq(cut, 1, "request %u tells its experts %u times", i, cut);
    }
}

static void
compare_with(const fleet_options *options, const request_set *set, const answer_set *want,
             const char *what)
{
    answer_set got;
    fleet_start(&f, options);
    requests_ask_together(set, f.url, &got);
    answers_expect_equal(&got, want, what);
    answers_free(&got);
    fleet_stop(&f);
}

Test(admin_fleet, tokens_and_their_experts_are_the_same_in_every_fleet)
{
    request_set plain, asking, streamed = {0};
    answer_set without, want;
    requests_make(&plain, REQUEST_COUNT, 29);
    ask_for_experts(&plain, &asking);
    for (uint32_t i = 0; i < plain.count; i++) { /* the same without asking */
        char *body;
        cr_assert(asprintf(&body, "{%s%s", i % 4 == 3 ? "\"stream\":true," : "",
                           plain.bodies[i] + 1) > 0);
        requests_add(&streamed, body);
        free(body);
    }
    fleet_start(&f, &(fleet_options){.router_flags = ROOM});
    requests_ask_together(&streamed, f.url, &without);
    requests_ask_together(&asking, f.url, &want);
    fleet_stop(&f);

    compare_with(&(fleet_options){.routers = 2, .workers = 3, .router_flags = ROOM}, &asking, &want,
                 "2 routers, 3 workers");
    compare_with(&(fleet_options){.workers = 3,
                                  .router_flags = ROOM "--exchange=nng --micro-batches=3 "
                                                       "--num-redundant-experts=4 "
                                                       "--num-kv-blocks=90"},
                 &asking, &want, "nng, micro-batches, replicas, few blocks");

    /* Its sequences run anew on the other one, or there again. */
    answer_set got;
    fleet_start(&f, &(fleet_options){.routers = 2, .router_flags = ROOM});
    requests_ask_begin(&asking, f.url);
    for (uint64_t since = 0; fleet_router_metric(&f, "conclave:router_steps_total", 1) < 5;)
        fleet_pause(&since, "router 1 to compute");
    fleet_process *p = fleet_find(&f, "router-1");
    kill(p->pid, SIGKILL);
    cr_expect_eq(fleet_wait_exit(p), 128 + SIGKILL);
    requests_ask_end(&asking, &got);
    answers_expect_equal(&got, &want, "a router killed");
    answers_free(&got);
    fleet_start_router_id(&f, 1);
    fleet_wait_router(&f, 1);
    fleet_stop(&f);

    strip_experts(&want);
    answers_expect_equal(&want, &without, "asking for experts");
    answers_free(&want);
    answers_free(&without);
    requests_free(&plain);
    requests_free(&asking);
    requests_free(&streamed);
}
