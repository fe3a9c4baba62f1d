/* service: a worker's control plane against a scripted router: it registers, obeys and refuses what
 * the router asks over RPC, and stops at any moment. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cpu.h"
#include "exchange/router_end.h"
#include "expert_worker/service.h"
#include "proto/methods.h"
#include "proto/rpc.h"
#include "tests/support/paths.h"

#define LONG_MS 60000

/* The router: answers as told, and counts. */
typedef struct script {
    Conclave__Router_Service base; /* first */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    rpc_status refusal; /* of registrations; RPC_OK: accept */
    bool known;         /* what heartbeats are told */
    bool hold;          /* do not answer anything */
    rpc_call *held[4];
    uint32_t held_count, registrations, heartbeats;
    uint32_t worker_id, pid;
    uint64_t incarnation;
    char control_url[RPC_URL_MAX];
} script;

static script router;
static rpc_server *router_server;
static checkpoint *ckpt;
static const model_config *model;
static kernel_table kernels;
static pool *threads, *load_threads;
static worker_end *exchange;
static compute *comp;
static identity id;
static worker_service *service;
static rpc_client *client;
static run_dir run;
static char control_url[RUN_URL_MAX], router_url[RUN_URL_MAX];
static pthread_t thread;
static bool running;
static moe_err run_result;
static errbuf run_error, eb;

/* ---- the router ---- */

static bool
hold_call(void *call)
{
    if (router.hold && router.held_count < 4) router.held[router.held_count++] = call;
    pthread_cond_broadcast(&router.changed);
    return router.hold;
}

static void
on_register(Conclave__Router_Service *base, const Conclave__RegisterRequest *r,
            Conclave__RegisterReply_Closure closure, void *call)
{
    (void)base;
    pthread_mutex_lock(&router.lock);
    router.registrations++;
    router.worker_id = r->worker_id;
    router.incarnation = r->incarnation;
    router.pid = r->pid;
    snprintf(router.control_url, sizeof router.control_url, "%s", r->control_url);
    const bool held = hold_call(call);
    const rpc_status refusal = router.refusal;
    pthread_mutex_unlock(&router.lock);
    if (held) return;
    Conclave__RegisterReply reply = CONCLAVE__REGISTER_REPLY__INIT;
    reply.heartbeat_ms = 10;
    if (refusal != RPC_OK)
        rpc_fail(call, refusal, "worker 3 is not wanted");
    else
        closure(&reply, call);
}

static void
on_heartbeat(Conclave__Router_Service *base, const Conclave__HeartbeatRequest *r,
             Conclave__HeartbeatReply_Closure closure, void *call)
{
    (void)base;
    (void)r;
    Conclave__HeartbeatReply reply = CONCLAVE__HEARTBEAT_REPLY__INIT;
    pthread_mutex_lock(&router.lock);
    router.heartbeats++;
    reply.known = router.known;
    const bool held = hold_call(call);
    pthread_mutex_unlock(&router.lock);
    if (!held) closure(&reply, call);
}

static void
serve_router(void)
{
    const rpc_server_options options = {.url = router_url, .service = &router.base.base};
    cr_assert_eq(rpc_server_start(&router_server, &options, &eb), MOE_OK, "%s", eb.text);
}

static void
wait_for(const uint32_t *count, uint32_t at_least)
{
    pthread_mutex_lock(&router.lock);
    while (*count < at_least)
        pthread_cond_wait(&router.changed, &router.lock);
    pthread_mutex_unlock(&router.lock);
}

/* ---- the worker ---- */

static void *
run_main(void *arg)
{
    run_result = worker_service_run(arg, &run_error);
    return NULL;
}

static void
start_running(void)
{
    running = true;
    cr_assert_eq(pthread_create(&thread, NULL, run_main, service), 0);
}

static void
join_running(void)
{
    if (running) pthread_join(thread, NULL); /* else the test's time runs out */
    running = false;
}

static void
setup(void)
{
    char path[512], dir[64] = "/tmp/conclave-service-XXXXXX", listen[RUN_URL_MAX];
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    run_dir_url(&run, "worker", 3, control_url);
    run_dir_url(&run, "router", 0, router_url);
    run_dir_url(&run, "link", 3, listen);
    golden_path(path, sizeof path, "models/base");
    cr_assert_eq(checkpoint_open(&ckpt, path, &eb), MOE_OK, "%s", eb.text);
    model = checkpoint_config(ckpt);
    kernel_table_init(&kernels, cpu_flags());
    identity_init(&id, ckpt, &kernels, DTYPE_F32, DTYPE_F32, DTYPE_F32);
    cr_assert_eq(pool_create(&threads, 1), MOE_OK);
    cr_assert_eq(pool_create(&load_threads, 1), MOE_OK);
    cr_assert_eq(worker_end_create(&exchange, run.id, 3, 100, listen, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(compute_start(&comp, exchange, &kernels, threads, false, NULL, &eb), MOE_OK, "%s",
                 eb.text);
    memset(&router, 0, sizeof router);
    conclave__router__init(&router.base, NULL);
    router.base.register_worker = on_register;
    router.base.heartbeat = on_heartbeat;
    router.known = true;
    pthread_mutex_init(&router.lock, NULL);
    pthread_cond_init(&router.changed, NULL);
    const moe_err err = worker_service_create(&service,
                                              &(worker_service_config){.control_url = control_url,
                                                                       .router_url = router_url,
                                                                       .worker_id = 3,
                                                                       .incarnation = 100,
                                                                       .dtype = DTYPE_F32,
                                                                       .checkpoint = ckpt,
                                                                       .identity = &id,
                                                                       .exchange = exchange,
                                                                       .compute = comp,
                                                                       .load_pool = load_threads},
                                              &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    cr_assert_eq(rpc_client_open(&client,
                                 &(rpc_client_options){.url = control_url,
                                                       .service = &conclave__worker__descriptor},
                                 &eb),
                 MOE_OK, "%s", eb.text);
}

static void
teardown(void)
{
    if (running) worker_service_stop(service);
    join_running();
    rpc_client_close(client);
    worker_service_free(service);
    compute_stop(comp);
    worker_end_free(exchange);
    rpc_server_stop(router_server);
    for (uint32_t i = 0; i < router.held_count; i++) {
        rpc_fail(router.held[i], RPC_UNAVAILABLE, "the test is over");
    }
    router_server = NULL;
    pool_free(load_threads);
    pool_free(threads);
    checkpoint_close(ckpt);
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(service, .init = setup, .fini = teardown, .timeout = 30);

/* ---- presence ---- */

Test(service, registers_and_registers_again_when_the_router_does_not_know_it)
{
    serve_router();
    start_running();
    wait_for(&router.heartbeats, 2);
    pthread_mutex_lock(&router.lock);
    cr_expect_eq(router.registrations, 1);
    cr_expect_eq(router.worker_id, 3);
    cr_expect_eq(router.incarnation, 100);
    cr_expect_eq(router.pid, (uint32_t)getpid());
    cr_expect_str_eq(router.control_url, control_url);
    router.known = false;
    pthread_mutex_unlock(&router.lock);
    wait_for(&router.registrations, 2);
}

static void
expect_refused_for_good(rpc_status status, moe_err err)
{
    router.refusal = status;
    serve_router();
    start_running();
    join_running();
    cr_expect_eq(run_result, err);
    cr_expect_not_null(strstr(run_error.text, "worker 3 is not wanted"), "%s", run_error.text);
}

Test(service, ends_with_the_routers_words_when_it_does_not_fit)
{
    expect_refused_for_good(RPC_FAILED_PRECONDITION, MOE_EMISMATCH);
}

Test(service, ends_with_the_routers_words_when_it_is_not_allowed)
{
    expect_refused_for_good(RPC_PERMISSION_DENIED, MOE_EPERM);
}

Test(service, tries_again_when_it_is_refused_for_now)
{
    router.refusal = RPC_RESOURCE_EXHAUSTED;
    serve_router();
    start_running();
    wait_for(&router.registrations, 2);
    pthread_mutex_lock(&router.lock);
    router.refusal = RPC_OK;
    pthread_mutex_unlock(&router.lock);
    wait_for(&router.heartbeats, 1);
}

/* ---- stopping ---- */

static void
expect_stops(void)
{
    worker_service_stop(service);
    join_running();
    cr_expect_eq(run_result, MOE_OK, "%s", run_error.text);
}

Test(service, stops_before_it_runs)
{
    worker_service_stop(service);
    start_running();
    expect_stops();
}

Test(service, stops_while_no_router_is_there)
{
    start_running();
    expect_stops();
}

Test(service, stops_while_the_router_does_not_answer_its_registration)
{
    router.hold = true;
    serve_router();
    start_running();
    wait_for(&router.held_count, 1);
    expect_stops();
}

Test(service, stops_while_the_router_does_not_answer_its_heartbeat)
{
    serve_router();
    start_running();
    wait_for(&router.heartbeats, 1);
    pthread_mutex_lock(&router.lock);
    router.hold = true;
    pthread_mutex_unlock(&router.lock);
    wait_for(&router.held_count, 1);
    expect_stops();
}

/* ---- what the router asks ---- */

static rpc_status
call(unsigned method, const ProtobufCMessage *request, ProtobufCMessage **response)
{
    rpc_status status;
    eb.text[0] = '\0';
    rpc_call_sync(client, method, request, LONG_MS, response, &status, &eb);
    return status;
}

static void
expect_call_refused(unsigned method, const ProtobufCMessage *request, rpc_status status,
                    const char *text)
{
    ProtobufCMessage *response;
    cr_expect_eq(call(method, request, &response), status, "%s: %s", text, eb.text);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" is not said: %s", text, eb.text);
    rpc_response_free(response);
}

static Conclave__LoadRequest
good_load(void)
{
    static uint32_t experts[] = {0, 3}, whole[] = {0};
    Conclave__LoadRequest r = CONCLAVE__LOAD_REQUEST__INIT;
    r.epoch = 1;
    r.n_tp_slices = 1;
    r.tp_slices = whole;
    r.tp_ranks = 1;
    r.row_max = 16;
    r.n_experts = 2;
    r.experts = experts;
    return r;
}

Test(service, loads_what_it_is_told_and_reports_it)
{
    start_running();
    Conclave__LoadRequest r = good_load();
    ProtobufCMessage *response;
    cr_assert_eq(call(WORKER_LOAD, &r.base, &response), RPC_OK, "%s", eb.text);
    const uint64_t bytes = ((Conclave__LoadReply *)(void *)response)->bytes_hosted;
    cr_expect_gt(bytes, 0);
    rpc_response_free(response);
    const Conclave__StatsRequest ask = CONCLAVE__STATS_REQUEST__INIT;
    cr_assert_eq(call(WORKER_STATS, &ask.base, &response), RPC_OK, "%s", eb.text);
    const Conclave__WorkerStats *stats = (const void *)response;
    cr_expect_eq(stats->experts_hosted, 2);
    cr_expect_eq(stats->bytes_hosted, bytes);
    rpc_response_free(response);
}

static void
expect_loaded(const Conclave__LoadRequest *r, size_t others, uint32_t first_other, uint32_t hosted)
{
    ProtobufCMessage *response;
    cr_assert_eq(call(WORKER_LOAD, &r->base, &response), RPC_OK, "%s", eb.text);
    const Conclave__LoadReply *reply = (const void *)response;
    cr_expect_eq(reply->n_others, others);
    if (others != 0 && reply->n_others == others) cr_expect_eq(reply->others[0], first_other);
    rpc_response_free(response);
    const Conclave__StatsRequest ask = CONCLAVE__STATS_REQUEST__INIT;
    cr_assert_eq(call(WORKER_STATS, &ask.base, &response), RPC_OK, "%s", eb.text);
    cr_expect_eq(((const Conclave__WorkerStats *)(const void *)response)->experts_hosted, hosted);
    rpc_response_free(response);
}

Test(service, keeps_what_it_hosts_when_a_router_that_starts_again_lets_it)
{
    static uint32_t other_experts[] = {1, 3};
    start_running();
    Conclave__LoadRequest r = good_load();
    expect_loaded(&r, 0, 0, 2);
    r.keep = true;
    expect_loaded(&r, 0, 0, 2);
    r.experts = other_experts;
    expect_loaded(&r, 1, 0, 3); /* 1 and 3, and 0 is still there */
    r.keep = false;
    expect_loaded(&r, 0, 0, 2);
    r.keep = true;
    r.row_max *= 2; /* its buffers are too small: all is loaded anew */
    r.experts = good_load().experts;
    expect_loaded(&r, 0, 0, 2);
}

Test(service, refuses_a_load_that_makes_no_sense_and_keeps_what_it_has)
{
    start_running();
    ProtobufCMessage *response;
    const Conclave__LoadRequest good = good_load();
    cr_assert_eq(call(WORKER_LOAD, &good.base, &response), RPC_OK, "%s", eb.text);
    rpc_response_free(response);

    Conclave__LoadRequest r = good;
    r.tp_ranks = 0;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "1 slices of 0");
    uint32_t beyond[] = {0, 2}, falling[] = {1, 0};
    r.tp_ranks = 2;
    r.n_tp_slices = 2;
    r.tp_slices = beyond;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "slice 2 of 2");
    r.tp_slices = falling;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "slice 0 of 2");
    r.n_tp_slices = 0;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "0 slices of 2");
    r.tp_ranks = UINT32_MAX;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "of 4294967295");
    r = good;
    r.row_max = 0;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "row_max 0");
    r.row_max = UINT32_MAX;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "row_max 4294967295");
    uint32_t outside[] = {0, model->num_layers * model->num_experts}, twice[] = {1, 1};
    r = good;
    r.experts = outside;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "expert 8 (entry 1)");
    r.experts = twice;
    expect_call_refused(WORKER_LOAD, &r.base, RPC_INVALID_ARGUMENT, "expert 1 (entry 1)");

    compute_stats stats;
    compute_get_stats(comp, &stats);
    cr_expect_eq(stats.experts_hosted, 2);
}

static void
load_good(void)
{
    ProtobufCMessage *response;
    const Conclave__LoadRequest r = good_load();
    cr_assert_eq(call(WORKER_LOAD, &r.base, &response), RPC_OK, "%s", eb.text);
    rpc_response_free(response);
}

static Conclave__HostRequest
host_request(uint32_t *experts, size_t count)
{
    Conclave__HostRequest r = CONCLAVE__HOST_REQUEST__INIT;
    r.move = 1;
    r.n_experts = count;
    r.experts = experts;
    return r;
}

static uint32_t
count_hosted(void)
{
    compute_stats stats;
    compute_get_stats(comp, &stats);
    return stats.experts_hosted;
}

Test(service, hosts_more_tells_their_hashes_and_releases_them)
{
    uint32_t more[] = {1, 2, 3}, released[] = {0, 2};
    ProtobufCMessage *response;
    start_running();
    Conclave__HostRequest r = host_request(more, 3);
    expect_call_refused(WORKER_HOST, &r.base, RPC_FAILED_PRECONDITION, "nothing was loaded");
    load_good();
    cr_assert_eq(call(WORKER_HOST, &r.base, &response), RPC_OK, "%s", eb.text);
    const Conclave__HostReply *hosted = (const void *)response;
    cr_expect_eq(count_hosted(), 4);
    cr_assert_eq(hosted->n_hashes, 3);
    cr_expect_neq(hosted->hashes[0], hosted->hashes[1]);

    Conclave__HashRequest ask = CONCLAVE__HASH_REQUEST__INIT;
    ask.n_experts = 3;
    ask.experts = more;
    ProtobufCMessage *again;
    cr_assert_eq(call(WORKER_HASH, &ask.base, &again), RPC_OK, "%s", eb.text);
    cr_expect_arr_eq(((Conclave__HostReply *)(void *)again)->hashes, hosted->hashes,
                     3 * sizeof hosted->hashes[0]);
    rpc_response_free(again);
    rpc_response_free(response);

    Conclave__ReleaseRequest release = CONCLAVE__RELEASE_REQUEST__INIT;
    release.epoch = 2;
    release.n_experts = 2;
    release.experts = released;
    cr_assert_eq(call(WORKER_RELEASE, &release.base, &response), RPC_OK, "%s", eb.text);
    rpc_response_free(response);
    cr_expect_eq(count_hosted(), 2);
    compute_stats stats;
    compute_get_stats(comp, &stats);
    cr_expect_eq(stats.epoch, 2);
    expect_call_refused(WORKER_HASH, &ask.base, RPC_NOT_FOUND, "expert 2 is not hosted");
}

Test(service, gives_packed_weights_of_what_it_hosts)
{
    ProtobufCMessage *response;
    Conclave__FetchRequest r;
    expert_layout layout;
    expert_layout_init(&layout, DTYPE_F32, model, 0, model->intermediate_size);
    fetch_describe(&r, &layout, id.model.fingerprint);
    r.expert = 3;
    r.offset = 64;
    r.bytes = 128;
    start_running();
    expect_call_refused(WORKER_FETCH, &r.base, RPC_FAILED_PRECONDITION, "nothing was loaded");
    load_good();
    cr_assert_eq(call(WORKER_FETCH, &r.base, &response), RPC_OK, "%s", eb.text);
    const Conclave__FetchReply *block = (const void *)response;
    char want[128];
    cr_assert(expert_store_read(compute_store(comp, 0), 3, 64, sizeof want, want));
    cr_assert_eq(block->data.len, sizeof want);
    cr_expect_arr_eq(block->data.data, want, sizeof want);
    rpc_response_free(response);
    r.expert = 1;
    expect_call_refused(WORKER_FETCH, &r.base, RPC_NOT_FOUND, "expert 1 is not hosted");
    r.fingerprint++;
    expect_call_refused(WORKER_FETCH, &r.base, RPC_FAILED_PRECONDITION, "model");

    const Conclave__StatsRequest ask = CONCLAVE__STATS_REQUEST__INIT;
    cr_assert_eq(call(WORKER_STATS, &ask.base, &response), RPC_OK, "%s", eb.text);
    cr_expect_eq(((Conclave__WorkerStats *)(void *)response)->served_bytes, 128);
    rpc_response_free(response);
}

typedef struct slow_host {
    pthread_t thread;
    rpc_status status;
} slow_host;

static void *
slow_host_main(void *arg)
{
    slow_host *h = arg;
    uint32_t more[] = {1, 2, 4, 5, 6, 7};
    ProtobufCMessage *response;
    errbuf text;
    Conclave__HostRequest r = host_request(more, 6);
    r.move = 7;
    r.bytes_per_s = 1;
    rpc_call_sync(client, WORKER_HOST, &r.base, LONG_MS, &response, &h->status, &text);
    rpc_response_free(response);
    return NULL;
}

/* A Host that would take for ever; whether it has begun makes no difference. */
static void
start_slow_host(slow_host *h)
{
    load_good();
    cr_assert_eq(pthread_create(&h->thread, NULL, slow_host_main, h), 0);
}

static void
expect_slow_host_ended(slow_host *h)
{
    pthread_join(h->thread, NULL); /* else the test's time runs out */
    cr_expect_neq(h->status, RPC_OK);
    cr_expect_neq(h->status, RPC_DEADLINE_EXCEEDED);
    cr_expect_eq(count_hosted(), 2);
}

Test(service, gives_up_hosting_when_told)
{
    slow_host h;
    start_running();
    start_slow_host(&h);
    Conclave__CancelHostRequest cancel = CONCLAVE__CANCEL_HOST_REQUEST__INIT;
    struct timespec tick = {.tv_nsec = 1000000};
    ProtobufCMessage *response;
    cancel.move = 7;
    /* It may come before the call it is for. */
    for (int i = 0; i < 50; i++) {
        cr_assert_eq(call(WORKER_CANCEL_HOST, &cancel.base, &response), RPC_OK, "%s", eb.text);
        rpc_response_free(response);
        nanosleep(&tick, NULL);
    }
    expect_slow_host_ended(&h);
}

Test(service, gives_up_hosting_for_a_load_and_when_it_stops)
{
    slow_host h;
    start_running();
    start_slow_host(&h);
    struct timespec tick = {.tv_nsec = 20000000};
    nanosleep(&tick, NULL);
    load_good();
    /* It may have come after the load after all. */
    worker_service_stop(service);
    join_running();
    worker_service_free(service);
    service = NULL;
    expect_slow_host_ended(&h);
}

/* A router's end whose offers are good. */
static router_end *
make_router_end(exchange_backend backend, attach_offer *offer)
{
    const exchange_limits limits = {.micro_batch_max = 1,
                                    .token_max = 8,
                                    .num_layers = model->num_layers,
                                    .num_experts = model->num_experts,
                                    .top_k = model->top_k,
                                    .hidden = model->hidden_size,
                                    .dtype = DTYPE_F32};
    router_end *re;
    cr_assert_eq(router_end_create(&re, &limits, run.id, 0, 7, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_prepare(re, 3, 100, backend, offer, &eb), MOE_OK, "%s", eb.text);
    return re;
}

static Conclave__AttachRequest
attach_request(attach_offer *offer)
{
    Conclave__AttachRequest r = CONCLAVE__ATTACH_REQUEST__INIT;
    r.router_id = offer->router_id;
    r.router_incarnation = offer->router_incarnation;
    r.backend = (char *)(uintptr_t)(offer->backend == EXCHANGE_SHM ? "shm" : "nng");
    r.rows_name = offer->rows_name;
    r.link_name = offer->link_name;
    r.key = (ProtobufCBinaryData){EXCHANGE_KEY_BYTES, offer->key};
    r.micro_batch_max = offer->limits.micro_batch_max;
    r.token_max = offer->limits.token_max;
    r.num_layers = offer->limits.num_layers;
    r.num_experts = offer->limits.num_experts;
    r.top_k = offer->limits.top_k;
    r.hidden = offer->limits.hidden;
    r.dtype = (char *)(uintptr_t) "f32";
    return r;
}

Test(service, attaches_over_both_backends)
{
    start_running();
    for (int backend = EXCHANGE_SHM; backend <= EXCHANGE_NNG; backend++) {
        attach_offer offer;
        attach_answer answer = {{0}, {0}};
        router_end *re = make_router_end((exchange_backend)backend, &offer);
        const Conclave__AttachRequest r = attach_request(&offer);
        ProtobufCMessage *response;
        cr_assert_eq(call(WORKER_ATTACH, &r.base, &response), RPC_OK, "%s", eb.text);
        const Conclave__AttachReply *reply = (const void *)response;
        snprintf(answer.bell_name, sizeof answer.bell_name, "%s", reply->bell_name);
        snprintf(answer.url, sizeof answer.url, "%s", reply->url);
        rpc_response_free(response);
        cr_expect_eq(router_end_complete(re, 3, &answer, LONG_MS, &eb), MOE_OK, "%s", eb.text);
        router_end_free(re);
    }
}

Test(service, refuses_an_attach_that_does_not_fit_and_names_the_fault)
{
    start_running();
    static char overlong[EXCHANGE_NAME_MAX + 1];
    memset(overlong, 'x', EXCHANGE_NAME_MAX);
    attach_offer offer;
    router_end *re = make_router_end(EXCHANGE_SHM, &offer);
    const Conclave__AttachRequest good = attach_request(&offer);

    Conclave__AttachRequest r = good;
    r.backend = (char *)(uintptr_t) "carrier pigeon";
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "backend \"carrier pigeon\"");
    r.backend = overlong;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "unknown backend \"xxx");
    r = good;
    r.rows_name = overlong;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "rows_name is longer than");
    r = good;
    r.link_name = overlong;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "link_name is longer than");
    r = good;
    r.link_name = (char *)(uintptr_t) "/another-program";
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, run.id);
    r = good;
    r.dtype = (char *)(uintptr_t) "f64";
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "unknown dtype \"f64\"");
    r.dtype = (char *)(uintptr_t) "int8";
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_FAILED_PRECONDITION, "dtype");
    r = good;
    r.key.len = EXCHANGE_KEY_BYTES - 1;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "this has 15");
    r = good;
    r.router_id = ROUTER_MAX;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "router");

    const struct {
        const char *name;
        uint32_t *value;
    } fields[] = {{"layers", &r.num_layers},
                  {"experts", &r.num_experts},
                  {"top", &r.top_k},
                  {"hidden", &r.hidden}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        r = good;
        *fields[i].value -= 1;
        expect_call_refused(WORKER_ATTACH, &r.base, RPC_FAILED_PRECONDITION, fields[i].name);
    }
    r = good;
    r.token_max = 0;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "token_max");
    r = good;
    r.micro_batch_max = MICRO_BATCH_MAX + 1;
    expect_call_refused(WORKER_ATTACH, &r.base, RPC_INVALID_ARGUMENT, "micro_batch_max");

    ProtobufCMessage *response;
    cr_expect_eq(call(WORKER_ATTACH, &good.base, &response), RPC_OK, "%s", eb.text);
    rpc_response_free(response);
    router_end_free(re);
}

Test(service, ends_when_it_is_drained)
{
    start_running();
    const Conclave__DrainRequest r = CONCLAVE__DRAIN_REQUEST__INIT;
    ProtobufCMessage *response;
    cr_expect_eq(call(WORKER_DRAIN, &r.base, &response), RPC_OK, "%s", eb.text);
    rpc_response_free(response);
    join_running();
    cr_expect_eq(run_result, MOE_OK);
}

/* ---- calls under way at a stop ---- */

typedef struct tally {
    _Atomic uint32_t done, unavailable, good;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} tally;

static void
on_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    (void)error;
    tally *t = arg;
    rpc_response_free(response);
    pthread_mutex_lock(&t->lock);
    t->done++;
    t->unavailable += status == RPC_UNAVAILABLE;
    t->good += status == RPC_OK;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

Test(service, answers_every_load_when_it_stops_among_them)
{
    enum { LOADS = 12 };
    static uint32_t all[64];
    static tally t = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    Conclave__LoadRequest r = good_load();
    r.n_experts = model->num_layers * model->num_experts;
    r.experts = all;
    for (uint32_t i = 0; i < r.n_experts; i++) {
        all[i] = i;
    }
    start_running();
    for (int i = 0; i < LOADS; i++) {
        rpc_call_async(client, WORKER_LOAD, &r.base, LONG_MS, on_done, &t);
    }
    pthread_mutex_lock(&t.lock);
    while (t.good == 0)
        pthread_cond_wait(&t.changed, &t.lock);
    pthread_mutex_unlock(&t.lock);
    expect_stops();
    worker_service_free(service); /* answers what came after the last look at the queue */
    service = NULL;
    pthread_mutex_lock(&t.lock);
    while (t.done < LOADS)
        pthread_cond_wait(&t.changed, &t.lock);
    pthread_mutex_unlock(&t.lock);
    cr_expect_eq(t.good + t.unavailable, LOADS);
}
