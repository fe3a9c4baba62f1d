/* admin: who is let in, what each route answers, and what becomes of a router that is away. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "exchange/wire.h"
#include "frontend/admin.h"
#include "frontend/admin_request.h"
#include "proto/rpc.h"
#include "tests/support/openai_pattern.h"

#define KEY "an-admin-key"
#define WORKERS 4

/* Router 0, as far as the admin API asks it. */
typedef struct fake_fleet {
    Conclave__Router_Service base; /* first: methods get a pointer to it */
    rpc_server *server;
    pthread_mutex_t lock; /* guards what follows */
    uint32_t rebalances, drain_calls;
    uint32_t drained[WORKER_MAX];
    size_t drained_count;
    rpc_status refuse; /* how DrainWorkers ends */
} fake_fleet;

static fake_fleet router;
static admin_server *admin;
static char dir[64], router_url[128], url[64];
static errbuf eb;

static void
on_stats(Conclave__Router_Service *base, const Conclave__StatsRequest *q,
         Conclave__RouterStats_Closure closure, void *call)
{
    static char ready[] = "ready", draining[] = "draining", none[] = "";
    (void)base, (void)q;
    Conclave__WorkerStatus w[WORKERS], *list[WORKERS];
    Conclave__RouterStats reply = CONCLAVE__ROUTER_STATS__INIT;
    for (uint32_t i = 0; i < WORKERS; i++) {
        conclave__worker_status__init(&w[i]);
        w[i].worker_id = i;
        w[i].state = i == 1 ? draining : ready;
        w[i].backend = none;
        list[i] = &w[i];
    }
    reply.epoch = 5;
    reply.n_workers = WORKERS;
    reply.workers = list;
    closure(&reply, call);
}

static void
on_drain_workers(Conclave__Router_Service *base, const Conclave__DrainWorkersRequest *q,
                 Conclave__DrainWorkersReply_Closure closure, void *call)
{
    fake_fleet *r = (fake_fleet *)base;
    Conclave__DrainWorkersReply reply = CONCLAVE__DRAIN_WORKERS_REPLY__INIT;
    pthread_mutex_lock(&r->lock);
    r->drain_calls++;
    r->drained_count = q->n_ids;
    memcpy(r->drained, q->ids, q->n_ids * sizeof *q->ids);
    const rpc_status refuse = r->refuse;
    pthread_mutex_unlock(&r->lock);
    if (refuse != RPC_OK)
        rpc_fail(call, refuse, "123 bytes short");
    else
        closure(&reply, call);
}

static void
on_rebalance(Conclave__Router_Service *base, const Conclave__RebalanceRequest *q,
             Conclave__RebalanceReply_Closure closure, void *call)
{
    fake_fleet *r = (fake_fleet *)base;
    Conclave__RebalanceReply reply = CONCLAVE__REBALANCE_REPLY__INIT;
    (void)q;
    pthread_mutex_lock(&r->lock);
    r->rebalances++;
    pthread_mutex_unlock(&r->lock);
    closure(&reply, call);
}

/* 1 layer, 2 experts; worker 0 has 2 slots, worker 2 has one, which is empty. */
static void
on_placement(Conclave__Router_Service *base, const Conclave__PlacementRequest *q,
             Conclave__PlacementReply_Closure closure, void *call)
{
    static char ep[] = "ep";
    (void)base, (void)q;
    uint32_t counts[] = {2, 0, 1}, slots[] = {2, 1, 0};
    Conclave__PlacementReply reply = CONCLAVE__PLACEMENT_REPLY__INIT;
    reply.epoch = 5;
    reply.parallelism = ep;
    reply.num_layers = 1;
    reply.num_experts = 2;
    reply.n_slot_counts = 3;
    reply.slot_counts = counts;
    reply.n_slots = 3;
    reply.slots = slots;
    closure(&reply, call);
}

/* A window whose counts don't fit its sizes. */
static void
on_routing(Conclave__Router_Service *base, const Conclave__RoutingRequest *q,
           Conclave__RoutingReply_Closure closure, void *call)
{
    (void)base, (void)q;
    uint64_t rows[] = {1, 2, 3};
    Conclave__RoutingReply reply = CONCLAVE__ROUTING_REPLY__INIT;
    reply.num_layers = reply.num_experts = 2;
    reply.n_rows = 3;
    reply.rows = rows;
    closure(&reply, call);
}

static void
start_router(void)
{
    conclave__router__init(&router.base, NULL);
    router.base.stats = on_stats;
    router.base.drain_workers = on_drain_workers;
    router.base.rebalance = on_rebalance;
    router.base.placement = on_placement;
    router.base.routing = on_routing;
    pthread_mutex_init(&router.lock, NULL);
    cr_assert_eq(rpc_server_start(
                     &router.server,
                     &(rpc_server_options){.url = router_url, .service = &router.base.base}, &eb),
                 MOE_OK, "%s", eb.text);
}

static moe_err
start_admin(admin_config c)
{
    c.router_url = router_url;
    c.run_dir = dir;
    const moe_err err = admin_start(&admin, &c, &eb);
    if (!err && admin != NULL) snprintf(url, sizeof url, "http://127.0.0.1:%u", admin_port(admin));
    return err;
}

static void
setup(void)
{
    memset(&router, 0, sizeof router);
    admin = NULL;
    snprintf(dir, sizeof dir, "/tmp/conclave-admin-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(router_url, sizeof router_url, "ipc://%s/router-0.sock", dir);
}

static void
setup_all(void)
{
    setup();
    start_router();
    cr_assert_eq(start_admin((admin_config){.has_port = true, .key = KEY}), MOE_OK, "%s", eb.text);
}

static void
teardown(void)
{
    admin_stop(admin);
    rpc_server_stop(router.server);
    cr_expect_eq(rmdir(dir), 0, "something is left in %s", dir);
}

TestSuite(admin, .fini = teardown, .timeout = 60);

/* method NULL: POST with a body, else GET.  Returns the answer; its status is checked. */
static cJSON *
ask_as(const char *key, const char *method, const char *path, const char *body, long status)
{
    if (method == NULL) method = body == NULL ? "GET" : "POST";
    http_reply r = http_call(url, method, path, body, key);
    cr_expect_eq(r.status, status, "%s %s %s: status %ld, %s", method, path, body ? body : "",
                 r.status, r.body);
    cJSON *root = cJSON_Parse(r.body);
    cr_expect_not_null(root, "%s", r.body);
    http_reply_fini(&r);
    return root;
}

static cJSON *
ask(const char *path, const char *body, long status)
{
    return ask_as(KEY, NULL, path, body, status);
}

static void
expect_printed(cJSON *root, const char *want)
{
    char *text = cJSON_PrintUnformatted(root);
    cr_expect_not_null(strstr(text, want), "no %s in %s", want, text);
    free(text);
    cJSON_Delete(root);
}

Test(admin, lets_nobody_in_without_the_key, .init = setup_all)
{
    static const char *const paths[] = {"/admin/status", "/admin/placement", "/admin/routing",
                                        "/admin/drain", "/nothing"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        expect_printed(ask_as(NULL, NULL, paths[i], NULL, 401), "invalid_api_key");
        expect_printed(ask_as("an-admin-kez", NULL, paths[i], NULL, 401), "invalid_api_key");
        expect_printed(ask_as("an-admin-key-", NULL, paths[i], NULL, 401), "admin API key");
    }
    cJSON_Delete(ask_as("", NULL, "/admin/drain", "{\"workers\":[1]}", 401));
    cr_expect_eq(router.drain_calls, 0);
    cJSON_Delete(ask("/admin/status", NULL, 200));
}

Test(admin, tells_where_experts_are, .init = setup_all)
{
    expect_printed(ask("/admin/placement", NULL, 200),
                   "{\"epoch\":5,\"parallelism\":\"ep\",\"num_layers\":1,\"num_experts\":2,"
                   "\"workers\":[{\"id\":0,\"slots\":2},{\"id\":1,\"slots\":0},{\"id\":2,\"slots\":"
                   "1}],\"layers\":[{\"layer\":0,\"experts\":["
                   "{\"expert\":0,\"hosts\":[{\"worker\":0,\"slot\":1}]},"
                   "{\"expert\":1,\"hosts\":[{\"worker\":0,\"slot\":0}]}]}]}");
    expect_printed(ask("/admin/status", NULL, 200), "\"epoch\":5");
    expect_printed(ask("/admin/routing", NULL, 500), "3 counts, not 2 layers of 2 experts");
}

Test(admin, drains_rebalances_and_says_what_is_wrong_with_a_body, .init = setup_all)
{
    expect_printed(ask("/admin/drain", "{\"workers\":[3,0]}", 202), "{\"draining\":[3,0]}");
    cr_expect_eq(router.drained_count, 2);
    cr_expect_eq(router.drained[0], 3);
    expect_printed(ask("/admin/rebalance", "{}", 202), "accepted");
    cJSON_Delete(ask("/admin/rebalance", "", 202));
    cr_expect_eq(router.rebalances, 2);
    static const struct {
        const char *path, *body, *word;
        long status;
    } bad[] = {
        {"/admin/drain", "{}", "workers is missing", 400},
        {"/admin/drain", "", "not JSON", 400},
        {"/admin/drain", "[3]", "object", 400},
        {"/admin/drain", "{\"workers\":3}", "array", 400},
        {"/admin/drain", "{\"workers\":[]}", "array", 400},
        {"/admin/drain", "{\"workers\":[3,3]}", "worker 3 twice", 400},
        {"/admin/drain", "{\"workers\":[256]}", "0 to 255", 400},
        {"/admin/drain", "{\"workers\":[1.5]}", "entry 0", 400},
        {"/admin/drain", "{\"workers\":[1],\"worker\":[2]}", "\\\"worker\\\"", 400},
        {"/admin/scale", "{\"workers\":0}", "1 to 256", 400},
        {"/admin/scale", "{\"workers\":[1]}", "integer", 400},
        {"/admin/rebalance", "{\"now\":true}", "\\\"now\\\"", 400},
        {"/admin/nothing", "{}", "/admin/nothing", 404},
        {"/admin/status", "{}", "GET", 405},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_printed(ask(bad[i].path, bad[i].body, bad[i].status), bad[i].word);
    cr_expect_eq(router.drain_calls, 1);
    char *big = malloc(ADMIN_BODY_BYTES_MAX + 2);
    memset(big, ' ', ADMIN_BODY_BYTES_MAX + 1);
    big[ADMIN_BODY_BYTES_MAX + 1] = '\0';
    expect_printed(ask("/admin/drain", big, 413), "65536");
    free(big);
}

/* Workers 0, 2 and 3 are there, 1 is going. */
Test(admin, scales_down_by_draining_the_last_ones_and_up_not_at_all, .init = setup_all)
{
    expect_printed(ask("/admin/scale", "{\"workers\":3}", 200), "{\"workers\":3,\"draining\":[]}");
    cr_expect_eq(router.drain_calls, 0);
    expect_printed(ask("/admin/scale", "{\"workers\":4}", 501), "deploy/conclave scale 4");
    expect_printed(ask("/admin/scale", "{\"workers\":1}", 202), "\"draining\":[3,2]");
    cr_expect_eq(router.drained_count, 2);
    router.refuse = RPC_RESOURCE_EXHAUSTED;
    expect_printed(ask("/admin/scale", "{\"workers\":2}", 409), "123 bytes short");
    router.refuse = RPC_NOT_FOUND;
    cJSON_Delete(ask("/admin/drain", "{\"workers\":[9]}", 404));
    router.refuse = RPC_UNIMPLEMENTED;
    cJSON_Delete(ask("/admin/drain", "{\"workers\":[0]}", 501));
}

Test(admin, marks_workers_of_deploy_that_are_to_end, .init = setup_all)
{
    char pid[96], mark[96];
    snprintf(pid, sizeof pid, "%s/worker-2.pid", dir);
    snprintf(mark, sizeof mark, "%s/worker-2.drained", dir);
    fclose(fopen(pid, "w"));
    router.refuse = RPC_RESOURCE_EXHAUSTED;
    cJSON_Delete(ask("/admin/drain", "{\"workers\":[2,3]}", 409));
    cr_expect_neq(access(mark, F_OK), 0, "it stays, and so does the mark");
    router.refuse = RPC_OK;
    cJSON_Delete(ask("/admin/drain", "{\"workers\":[2,3]}", 202));
    cr_expect_eq(unlink(mark), 0, "deploy would take its end for a failure");
    unlink(pid);
}

Test(admin, says_503_while_router_0_is_away, .init = setup)
{
    cr_assert_eq(start_admin((admin_config){.has_port = true, .key = KEY}), MOE_OK, "%s", eb.text);
    expect_printed(ask("/admin/placement", NULL, 503), "router 0");
    start_router();
    cJSON_Delete(ask("/admin/placement", NULL, 200));
}

Test(admin, serves_at_a_socket_of_this_user_alone, .init = setup)
{
    char path[96], answer[4096] = "";
    snprintf(path, sizeof path, "%s/admin.sock", dir);
    start_router();
    /* What a killed one left behind. */
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (const struct sockaddr *)&at, sizeof at), 0);
    close(fd);
    cr_assert_eq(start_admin((admin_config){.socket_path = path}), MOE_OK, "%s", eb.text);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);

    static const char request[] = "GET /admin/placement HTTP/1.0\r\n\r\n";
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(fd, (const struct sockaddr *)&at, sizeof at), 0);
    cr_assert_eq(send(fd, request, sizeof request - 1, 0), (ssize_t)sizeof request - 1);
    for (ssize_t n, len = 0; (n = recv(fd, answer + len, sizeof answer - 1 - (size_t)len, 0)) > 0;)
        len += n;
    close(fd);
    cr_expect_not_null(strstr(answer, "200 OK"), "%s", answer);
    cr_expect_not_null(strstr(answer, "\"num_experts\":2"), "%s", answer);
    admin_stop(admin);
    admin = NULL;
    cr_expect_neq(access(path, F_OK), 0, "the socket is left");
}

Test(admin, refuses_a_port_without_a_key_and_is_off_unless_asked_for, .init = setup)
{
    char longer[400], word[32];
    cr_expect_eq(start_admin((admin_config){.has_port = true}), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "key"));
    cr_expect_null(admin);
    cr_expect_eq(start_admin((admin_config){.key = KEY}), MOE_OK);
    cr_expect_null(admin);
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    cr_expect_eq(start_admin((admin_config){.has_port = true, .key = longer}), MOE_EINVAL);
    cr_expect_eq(start_admin((admin_config){.socket_path = longer}), MOE_EINVAL);
    snprintf(word, sizeof word, "%zu", strlen(longer));
    cr_expect_not_null(strstr(eb.text, word), "%s", eb.text);
    cr_expect_eq(start_admin((admin_config){.socket_path = "/no/such/folder/x"}), MOE_EIO);
    cr_expect_eq(start_admin((admin_config){.has_port = true, .key = KEY, .host = "no.such.host."}),
                 MOE_EINVAL);
    cr_expect_null(admin);
}
