#include "tests/router/fake_worker.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#define VIEWS_MAX 8

static char overlong[400]; /* longer than any name of the exchange */

const exchange_limits fake_limits = {.micro_batch_max = 1,
                                     .token_max = 8,
                                     .num_layers = 2,
                                     .num_experts = 4,
                                     .top_k = 2,
                                     .hidden = 16,
                                     .dtype = DTYPE_F32};

/* ---- the Worker service ---- */

static moe_err
load_experts(fake_worker *w, const Conclave__LoadRequest *r, errbuf *eb)
{
    const fake_worker_config *c = &w->config;
    if (c->checkpoint == NULL) return MOE_OK;
    const model_config *m = checkpoint_config(c->checkpoint);
    uint32_t begin, end;
    expert_layout layout;
    tp_slice(m->intermediate_size, r->tp_slices[0], r->tp_ranks, &begin, &end);
    expert_layout_init(&layout, c->dtype, m, begin, end);
    ffn_free(w->ffn);
    expert_store_free(w->store);
    w->ffn = NULL;
    const moe_err err = expert_store_create(&w->store, c->checkpoint, &layout, r->experts,
                                            (uint32_t)r->n_experts, w->pool, NULL, eb);
    if (err) return err;
    return ffn_create(&w->ffn, c->kernels, w->pool, &layout, r->row_max, VIEWS_MAX, m->num_experts);
}

/* With the lock. */
static void
note_hosted(fake_worker *w, const uint32_t *ids, size_t count, bool hosted)
{
    for (size_t i = 0; i < count; i++) {
        if (ids[i] >= FAKE_EXPERTS_MAX) continue;
        w->hosted_count += (uint32_t)hosted - (uint32_t)w->hosted[ids[i]];
        w->hosted[ids[i]] = hosted;
    }
    if (w->hosted_count > w->hosted_most) w->hosted_most = w->hosted_count;
}

static void
on_load(Conclave__Worker_Service *base, const Conclave__LoadRequest *r,
        Conclave__LoadReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    errbuf eb = {{0}};
    pthread_mutex_lock(&w->lock);
    w->loads++;
    w->experts_asked = (uint32_t)r->n_experts;
    w->epoch_asked = r->epoch;
    w->tp_slices = 0;
    for (size_t i = 0; i < r->n_tp_slices; i++)
        w->tp_slices |= 1u << r->tp_slices[i];
    w->tp_ranks = r->tp_ranks;
    const fake_load how = w->on_load;
    moe_err err = how == LOAD_FAILS ? err_set(&eb, MOE_ENOMEM, "told to fail") : MOE_OK;
    if (!err) err = load_experts(w, r, &eb);
    if (!err) {
        memset(w->hosted, 0, sizeof w->hosted);
        w->hosted_count = 0;
        note_hosted(w, r->experts, r->n_experts, true);
    }
    if (how == LOAD_HANGS) {
        w->hung_load = call;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    if (how == LOAD_HANGS) return;
    Conclave__LoadReply reply = CONCLAVE__LOAD_REPLY__INIT;
    reply.bytes_hosted = 1000 + r->n_experts;
    if (err)
        rpc_fail_err(call, err, &eb);
    else
        closure(&reply, call);
}

static void
on_attach(Conclave__Worker_Service *base, const Conclave__AttachRequest *r,
          Conclave__AttachReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    errbuf eb = {{0}};
    attach_answer answer = {{0}, {0}};
    attach_offer offer = {.router_id = r->router_id,
                          .router_incarnation = r->router_incarnation,
                          .part = r->tp_slice,
                          .backend = strcmp(r->backend, "shm") == 0 ? EXCHANGE_SHM : EXCHANGE_NNG,
                          .limits = w->config.limits};
    snprintf(offer.rows_name, sizeof offer.rows_name, "%s", r->rows_name);
    snprintf(offer.link_name, sizeof offer.link_name, "%s", r->link_name);
    memcpy(offer.key, r->key.data, EXCHANGE_KEY_BYTES);
    const moe_err err = worker_end_attach(w->exchange, &w->config.limits, &offer, &answer, &eb);
    pthread_mutex_lock(&w->lock);
    w->attaches++;
    const bool spoil = w->overlong_answer;
    pthread_mutex_unlock(&w->lock);
    Conclave__AttachReply reply = CONCLAVE__ATTACH_REPLY__INIT;
    reply.bell_name = spoil ? overlong : answer.bell_name;
    reply.url = answer.url;
    if (err)
        rpc_fail_err(call, err, &eb);
    else
        closure(&reply, call);
}

/* What stands for the hash of an expert's weights. */
static void
reply_hashes(const fake_worker *w, const uint32_t *ids, size_t count,
             Conclave__HostReply_Closure closure, void *call)
{
    uint64_t hashes[FAKE_EXPERTS_MAX];
    Conclave__HostReply reply = CONCLAVE__HOST_REPLY__INIT;
    for (size_t i = 0; i < count && i < FAKE_EXPERTS_MAX; i++)
        hashes[i] = ids[i] + (w->spoil_hashes ? 1000u : 0);
    reply.n_hashes = count;
    reply.hashes = hashes;
    closure(&reply, call);
}

static void
on_host(Conclave__Worker_Service *base, const Conclave__HostRequest *r,
        Conclave__HostReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    errbuf eb = {{0}};
    moe_err err = MOE_OK;
    pthread_mutex_lock(&w->lock);
    w->hosts++;
    if (w->store != NULL) {
        const store_growth growth = {.checkpoint = w->config.checkpoint, .pool = w->pool};
        err = expert_store_host(w->store, &growth, r->experts, (uint32_t)r->n_experts, &eb);
    }
    if (!err) note_hosted(w, r->experts, r->n_experts, true);
    pthread_mutex_unlock(&w->lock);
    if (err)
        rpc_fail_err(call, err, &eb);
    else
        reply_hashes(w, r->experts, r->n_experts, closure, call);
}

static void
on_cancel_host(Conclave__Worker_Service *base, const Conclave__CancelHostRequest *r,
               Conclave__CancelHostReply_Closure closure, void *call)
{
    (void)base;
    (void)r;
    const Conclave__CancelHostReply reply = CONCLAVE__CANCEL_HOST_REPLY__INIT;
    closure(&reply, call);
}

static void
on_hash(Conclave__Worker_Service *base, const Conclave__HashRequest *r,
        Conclave__HostReply_Closure closure, void *call)
{
    reply_hashes((fake_worker *)base, r->experts, r->n_experts, closure, call);
}

static void
nothing_to_wait_for(void *arg)
{
    (void)arg;
}

static void
on_release(Conclave__Worker_Service *base, const Conclave__ReleaseRequest *r,
           Conclave__ReleaseReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    const Conclave__ReleaseReply reply = CONCLAVE__RELEASE_REPLY__INIT;
    pthread_mutex_lock(&w->lock);
    w->releases++;
    note_hosted(w, r->experts, r->n_experts, false);
    if (w->store != NULL) /* nothing computes while the lock is held */
        expert_store_release(w->store, r->experts, (uint32_t)r->n_experts, nothing_to_wait_for,
                             NULL);
    pthread_mutex_unlock(&w->lock);
    closure(&reply, call);
}

static void
on_stats(Conclave__Worker_Service *base, const Conclave__StatsRequest *r,
         Conclave__WorkerStats_Closure closure, void *call)
{
    (void)base;
    (void)r;
    Conclave__WorkerStats reply = CONCLAVE__WORKER_STATS__INIT;
    reply.rows = 100;
    reply.busy_ns = 100000;
    closure(&reply, call);
}

static void
on_ping(Conclave__Worker_Service *base, const Conclave__PingRequest *r,
        Conclave__PingReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    (void)r;
    const Conclave__PingReply reply = CONCLAVE__PING_REPLY__INIT;
    pthread_mutex_lock(&w->lock);
    const bool deaf = w->deaf != 0;
    w->deaf -= deaf;
    w->pings++;
    pthread_mutex_unlock(&w->lock);
    if (deaf)
        rpc_fail(call, RPC_UNAVAILABLE, "told not to answer");
    else
        closure(&reply, call);
}

static void
on_drain(Conclave__Worker_Service *base, const Conclave__DrainRequest *r,
         Conclave__DrainReply_Closure closure, void *call)
{
    fake_worker *w = (fake_worker *)base;
    (void)r;
    const Conclave__DrainReply reply = CONCLAVE__DRAIN_REPLY__INIT;
    pthread_mutex_lock(&w->lock);
    w->drains++;
    pthread_mutex_unlock(&w->lock);
    closure(&reply, call);
}

/* ---- the compute thread ---- */

/* Hold a dispatch while the test wants it so; false if it is never to be answered. */
static bool
may_answer(fake_worker *w)
{
    while (w->hold && !w->mute) {
        w->holding = true;
        pthread_cond_broadcast(&w->changed);
        pthread_cond_wait(&w->changed, &w->lock);
    }
    w->holding = false;
    return !w->mute;
}

static void *
compute_main(void *arg)
{
    fake_worker *w = arg;
    dispatch_view views[VIEWS_MAX];
    while (worker_end_wait(w->exchange, 0)) {
        const uint32_t count = worker_end_take(w->exchange, views, VIEWS_MAX);
        pthread_mutex_lock(&w->lock);
        for (uint32_t i = 0; i < count; i++) {
            if (!may_answer(w)) continue;
            const uint32_t status = w->ffn == NULL ? (uint32_t)WIRE_STATUS_NOT_HOSTED
                                                   : ffn_run(w->ffn, w->store, &views[i], 1);
            worker_end_reply(w->exchange, &views[i], status, 1);
            w->answered++;
            pthread_cond_broadcast(&w->changed);
        }
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

/* ---- what the test calls ---- */

void
fake_worker_start(fake_worker *w, const fake_worker_config *config)
{
    errbuf eb = {{0}};
    char listen[128];
    memset(overlong, 'x', sizeof overlong - 1);
    *w = (fake_worker){.config = *config};
    conclave__worker__init(&w->base, NULL);
    w->base.load = on_load;
    w->base.attach = on_attach;
    w->base.host = on_host;
    w->base.cancel_host = on_cancel_host;
    w->base.hash = on_hash;
    w->base.release = on_release;
    w->base.stats = on_stats;
    w->base.drain = on_drain;
    w->base.ping = on_ping;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    snprintf(w->url, sizeof w->url, "ipc://%s/c%u-%llu", config->dir, config->id,
             (unsigned long long)config->incarnation);
    snprintf(listen, sizeof listen, "ipc://%s/l%u-%llu", config->dir, config->id,
             (unsigned long long)config->incarnation);
    cr_assert_eq(pool_create(&w->pool, 1), MOE_OK);
    moe_err err =
        worker_end_create(&w->exchange, config->run, config->id, config->incarnation, listen, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    cr_assert_eq(pthread_create(&w->thread, NULL, compute_main, w), 0);
    const rpc_server_options options = {
        .url = w->url, .service = &w->base.base, .message_bytes_max = 1u << 20};
    err = rpc_server_start(&w->server, &options, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
}

void
fake_worker_kill(fake_worker *w)
{
    if (w->exchange == NULL) return;
    pthread_mutex_lock(&w->lock);
    w->mute = true;
    rpc_call *hung = w->hung_load;
    w->hung_load = NULL;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    rpc_server_stop(w->server);
    if (hung != NULL) rpc_fail(hung, RPC_UNAVAILABLE, "killed");
    worker_end_stop(w->exchange);
    pthread_join(w->thread, NULL);
    worker_end_free(w->exchange);
    ffn_free(w->ffn);
    expert_store_free(w->store);
    pool_free(w->pool);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    *w = (fake_worker){0};
}

Conclave__RegisterRequest
fake_worker_request(fake_worker *w)
{
    const identity *id = w->config.identity;
    Conclave__RegisterRequest r = CONCLAVE__REGISTER_REQUEST__INIT;
    r.worker_id = w->config.id;
    r.incarnation = w->config.incarnation;
    r.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    r.control_url = w->url;
    r.host_id = (char *)(uintptr_t)id->host_id;
    r.model = (Conclave__ModelIdentity *)(uintptr_t)&id->model;
    r.numeric = (Conclave__NumericClass *)(uintptr_t)&id->numeric;
    r.pid = 1000 + w->config.id;
    r.memory_bytes = w->memory_bytes;
    return r;
}

void
fake_worker_forget(fake_worker *w)
{
    pthread_mutex_lock(&w->lock);
    ffn_free(w->ffn);
    w->ffn = NULL;
    pthread_mutex_unlock(&w->lock);
}

void
fake_worker_hold(fake_worker *w, bool hold)
{
    pthread_mutex_lock(&w->lock);
    w->hold = hold;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void
fake_worker_wait_holding(fake_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->holding)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

uint32_t
fake_worker_answered(fake_worker *w)
{
    pthread_mutex_lock(&w->lock);
    const uint32_t answered = w->answered;
    pthread_mutex_unlock(&w->lock);
    return answered;
}

void
fake_worker_wait_answered(fake_worker *w, uint32_t count)
{
    pthread_mutex_lock(&w->lock);
    while (w->answered < count)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

void
fake_worker_wait_loading(fake_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->hung_load == NULL)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}
