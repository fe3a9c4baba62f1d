#include "router/membership.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "proto/rpc.h"
#include "router/eplb_policy.h"

#define ATTACH_TIMEOUT_MS 10000
#define LOAD_MESSAGE_BYTES (16u << 20)
#define CALL_POLL_MS 50 /* how soon a call is left when this router stops or the worker is lost */

/* Worker's methods, in the order of conclave.proto. */
enum { METHOD_LOAD = 0, METHOD_ATTACH = 1 };

typedef enum worker_state { ABSENT, REGISTERED, LOADING, READY, LOST } worker_state;

static const char *const state_names[] = {"absent", "registered", "loading", "ready", "lost"};

typedef struct worker {
    worker_state state;
    bool linked; /* the router end has this index in use */
    uint64_t incarnation;
    uint64_t last_seen_ns;
    uint32_t pid, experts_hosted;
    uint64_t bytes_hosted;
    exchange_backend backend;
    char control_url[RPC_URL_MAX];
} worker;

/* A worker that is being brought up. */
typedef struct bring_up_call {
    membership *m;
    uint32_t id;
    worker worker; /* what it was when this began, and what it then hosts */
    rpc_client *client;
    rpc_pending *load; /* under way */
    errbuf eb;
    moe_err err;
} bring_up_call;

struct membership {
    membership_config config;
    pthread_mutex_t lock; /* guards workers[].state .. control_url, ready, epoch */
    pthread_mutex_t
        links; /* held by a step, and by update() while it changes links; taken before `lock` */
    _Atomic uint32_t bell;
    _Atomic bool stopping;
    bool ready, closed;
    uint64_t epoch;
    placement *placement; /* WIRE_EP; else NULL */
    uint32_t *load_ids;   /* scratch of the control thread: [L * E] */
    worker workers[WORKER_MAX];
    bring_up_call calls[WORKER_MAX]; /* scratch of the control thread */
};

/* Where experts are at the start: equal runs over the workers, and replicas in what slots are left.
 * With more workers than slots some host nothing. */
static moe_err
place_experts(membership *m, errbuf *eb)
{
    const membership_config *c = &m->config;
    const exchange_limits *l = &c->limits;
    uint32_t capacities[WORKER_MAX], slot_counts[WORKER_MAX];
    for (uint32_t w = 0; w < c->worker_count; w++)
        capacities[w] = l->num_experts;
    errbuf note;
    moe_err err =
        eplb_slot_counts(EPLB_CONCLAVE, l->num_layers, l->num_experts, c->num_redundant_experts,
                         c->worker_count, capacities, 0, slot_counts, &note);
    if (err) return err_set(eb, err, "%s", note.text);
    if (note.text[0] != '\0') LOG_WARN("membership", "%s", note.text);
    err = placement_create(&m->placement, l->num_layers, l->num_experts, c->worker_count,
                           slot_counts, eb);
    if (!err) err = placement_set_linear(m->placement, eb);
    if (!err) placement_fill_spare(m->placement);
    return err;
}

moe_err
membership_create(membership **out, const membership_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->worker_count == 0 || config->worker_count > WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "a cell has 1 to %d workers, not %u", WORKER_MAX,
                       config->worker_count);
    membership *m = calloc(1, sizeof *m);
    if (m == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    m->config = *config;
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->links, NULL);
    const size_t experts = (size_t)config->limits.num_layers * config->limits.num_experts;
    m->load_ids = malloc(experts * sizeof *m->load_ids);
    moe_err err = m->load_ids == NULL ? err_set(eb, MOE_ENOMEM, "out of memory") : MOE_OK;
    if (!err && config->mode == WIRE_EP) err = place_experts(m, eb);
    if (err) {
        membership_free(m);
        return err;
    }
    *out = m;
    return MOE_OK;
}

void
membership_free(membership *m)
{
    if (m == NULL) return;
    for (uint32_t w = 0; w < m->config.worker_count; w++) {
        if (m->workers[w].linked) router_end_drop(m->config.router_end, w);
    }
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->links);
    placement_free(m->placement);
    free(m->load_ids);
    free(m);
}

/* A heartbeat may be later than now, which was read before the lock was taken. */
static bool
is_silent(const membership *m, const worker *w, uint64_t now)
{
    return now > w->last_seen_ns + m->config.worker_timeout_ms * NS_PER_MS;
}

moe_err
membership_on_register(membership *m, const Conclave__RegisterRequest *r, errbuf *eb)
{
    char peer[32];
    snprintf(peer, sizeof peer, "worker %u", r->worker_id);
    if (r->worker_id >= m->config.worker_count)
        return err_set(eb, MOE_ERANGE, "%s: this cell has workers 0 to %u", peer,
                       m->config.worker_count - 1);
    moe_err err = identity_check(m->config.identity, peer, r->version, r->model, r->numeric, eb);
    if (err) {
        LOG_WARN("membership", "refused: %s", eb->text);
        return err;
    }
    const bool same_host = strcmp(r->host_id, m->config.identity->host_id) == 0;
    if (m->config.exchange == EXCHANGE_ONLY_SHM && !same_host)
        return err_set(eb, MOE_EMISMATCH, "%s is on another host, but --exchange is shm", peer);
    if (strlen(r->control_url) >= RPC_URL_MAX)
        return err_set(eb, MOE_EINVAL, "%s: control_url is longer than %d bytes", peer,
                       RPC_URL_MAX - 1);

    const uint64_t now = clock_now_ns();
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[r->worker_id];
    const bool alive = w->state != ABSENT && w->state != LOST && w->incarnation != r->incarnation &&
                       !is_silent(m, w, now);
    if (alive) {
        err = err_set(eb, MOE_EBUSY, "%s (pid %u) is alive already", peer, w->pid);
    } else if (w->incarnation != r->incarnation || w->state == LOST || w->state == ABSENT) {
        if (w->linked) router_end_give_up(m->config.router_end, r->worker_id);
        w->state = REGISTERED;
        w->incarnation = r->incarnation;
        w->pid = r->pid;
        w->experts_hosted = 0;
        w->bytes_hosted = 0;
        w->backend =
            m->config.exchange == EXCHANGE_ONLY_NNG || !same_host ? EXCHANGE_NNG : EXCHANGE_SHM;
        snprintf(w->control_url, sizeof w->control_url, "%s", r->control_url);
        m->ready = false;
    }
    if (!err) w->last_seen_ns = now;
    pthread_mutex_unlock(&m->lock);
    if (!err) futex_bump(&m->bell);
    return err;
}

bool
membership_on_heartbeat(membership *m, uint32_t id, uint64_t incarnation)
{
    if (id >= m->config.worker_count) return false;
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[id];
    const bool known = w->incarnation == incarnation && w->state != ABSENT && w->state != LOST;
    if (known) w->last_seen_ns = clock_now_ns();
    pthread_mutex_unlock(&m->lock);
    return known;
}

/* A load takes minutes: do not wait for the answer of a worker whose heartbeats have ended or that
 * was replaced, nor when this router stops. */
static bool
call_is_vain(void *arg)
{
    const bring_up_call *call = arg;
    membership *m = call->m;
    if (atomic_load(&m->stopping)) return true;
    pthread_mutex_lock(&m->lock);
    const worker *w = &m->workers[call->id];
    const bool vain = w->incarnation != call->worker.incarnation || is_silent(m, w, clock_now_ns());
    pthread_mutex_unlock(&m->lock);
    return vain;
}

static void
begin_load(bring_up_call *call)
{
    membership *m = call->m;
    const uint32_t id = call->id;
    const exchange_limits *l = &m->config.limits;
    Conclave__LoadRequest load = CONCLAVE__LOAD_REQUEST__INIT;
    const bool tp = m->config.mode == WIRE_TP;
    size_t count = 0;
    for (size_t i = 0; i < (size_t)l->num_layers * l->num_experts; i++) {
        const uint32_t layer = (uint32_t)(i / l->num_experts), e = (uint32_t)(i % l->num_experts);
        if (tp || placement_is_host(m->placement, layer, e, id)) m->load_ids[count++] = (uint32_t)i;
    }
    load.epoch = m->epoch + 1;
    load.tp_rank = tp ? id : 0;
    load.tp_ranks = tp ? m->config.worker_count : 1;
    load.row_max = l->token_max * l->top_k;
    load.n_experts = count;
    load.experts = m->load_ids;
    call->worker.experts_hosted = (uint32_t)count;
    call->load =
        rpc_call_begin(call->client, METHOD_LOAD, &load.base, m->config.load_timeout_ms, NULL);
    if (call->load == NULL) call->err = err_set(&call->eb, MOE_ENOMEM, "out of memory");
}

static void
end_load(bring_up_call *call)
{
    if (call->load == NULL) return;
    ProtobufCMessage *response;
    while (!rpc_pending_wait(call->load, clock_now_ns() + CALL_POLL_MS * NS_PER_MS) &&
           !call_is_vain(call)) {
    }
    call->err = rpc_pending_finish(call->load, &response, NULL, &call->eb);
    call->load = NULL;
    if (call->err) return;
    call->worker.bytes_hosted = ((const Conclave__LoadReply *)(const void *)response)->bytes_hosted;
    rpc_response_free(response);
}

static moe_err
make_link(bring_up_call *call, errbuf *eb)
{
    membership *m = call->m;
    const worker *w = &call->worker;
    const uint32_t id = call->id;
    attach_offer offer;
    moe_err err =
        router_end_prepare(m->config.router_end, id, w->incarnation, w->backend, &offer, eb);
    if (err) return err;

    Conclave__AttachRequest request = CONCLAVE__ATTACH_REQUEST__INIT;
    request.router_id = offer.router_id;
    request.router_incarnation = offer.router_incarnation;
    request.backend = (char *)(uintptr_t)(offer.backend == EXCHANGE_SHM ? "shm" : "nng");
    request.rows_name = offer.rows_name;
    request.link_name = offer.link_name;
    request.key = (ProtobufCBinaryData){EXCHANGE_KEY_BYTES, offer.key};
    request.micro_batch_max = offer.limits.micro_batch_max;
    request.token_max = offer.limits.token_max;
    request.num_layers = offer.limits.num_layers;
    request.num_experts = offer.limits.num_experts;
    request.top_k = offer.limits.top_k;
    request.hidden = offer.limits.hidden;
    request.dtype = (char *)(uintptr_t)dtype_name(offer.limits.dtype);

    ProtobufCMessage *response;
    err = rpc_call_watched(call->client, METHOD_ATTACH, &request.base, ATTACH_TIMEOUT_MS,
                           call_is_vain, call, CALL_POLL_MS, &response, NULL, eb);
    if (err) return err;
    const Conclave__AttachReply *reply = (const void *)response;
    attach_answer answer = {{0}, {0}};
    if (strlen(reply->bell_name) >= sizeof answer.bell_name ||
        strlen(reply->url) >= sizeof answer.url) {
        err = err_set(eb, MOE_EINVAL, "its answer to Attach holds an overlong name");
    } else {
        memcpy(answer.bell_name, reply->bell_name, strlen(reply->bell_name) + 1);
        memcpy(answer.url, reply->url, strlen(reply->url) + 1);
        err = router_end_complete(m->config.router_end, id, &answer, ATTACH_TIMEOUT_MS, eb);
    }
    rpc_response_free(response);
    return err;
}

static void
begin_bring_up(membership *m, uint32_t id)
{
    bring_up_call *call = &m->calls[id];
    *call = (bring_up_call){.m = m, .id = id};
    pthread_mutex_lock(&m->lock);
    call->worker = m->workers[id];
    m->workers[id].state = LOADING;
    pthread_mutex_unlock(&m->lock);
    call->err = rpc_client_open(&call->client,
                                &(rpc_client_options){.url = call->worker.control_url,
                                                      .service = &conclave__worker__descriptor,
                                                      .message_bytes_max = LOAD_MESSAGE_BYTES},
                                &call->eb);
    if (!call->err) begin_load(call);
}

static void
end_bring_up(membership *m, uint32_t id)
{
    bring_up_call *call = &m->calls[id];
    end_load(call);
    pthread_mutex_lock(&m->links);
    if (call->worker.linked) router_end_drop(m->config.router_end, id);
    bool linked = false;
    if (!call->err) {
        call->err = make_link(call, &call->eb);
        linked = call->err == MOE_OK;
        if (!linked) router_end_drop(m->config.router_end, id);
    }
    pthread_mutex_unlock(&m->links);
    rpc_client_close(call->client);

    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[id];
    w->linked = linked;
    if (w->incarnation == call->worker.incarnation && w->state == LOADING) {
        w->state = call->err ? LOST : READY; /* LOST: its next heartbeat makes it register again */
        w->bytes_hosted = call->worker.bytes_hosted;
        w->experts_hosted = call->worker.experts_hosted;
    }
    pthread_mutex_unlock(&m->lock);
    if (call->err)
        LOG_ERROR("membership", "worker %u could not be brought up: %s", id, call->eb.text);
    else
        LOG_INFO("membership", "worker ready worker=%u backend=%s experts=%u", id,
                 call->worker.backend == EXCHANGE_SHM ? "shm" : "nng", call->worker.experts_hosted);
}

/* Everything that registered workers need before steps may use them; they load side by side. */
static void
bring_up_registered(membership *m)
{
    bool begun[WORKER_MAX] = {false};
    for (uint32_t id = 0; id < m->config.worker_count && !atomic_load(&m->stopping); id++) {
        pthread_mutex_lock(&m->lock);
        begun[id] = m->workers[id].state == REGISTERED;
        pthread_mutex_unlock(&m->lock);
        if (begun[id]) begin_bring_up(m, id);
    }
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        if (begun[id]) end_bring_up(m, id);
    }
}

/* Mark silent workers as lost; returns true if all are READY. */
static bool
check_workers(membership *m, bool *all_registered)
{
    const uint64_t now = clock_now_ns();
    bool all_ready = true;
    *all_registered = true;
    pthread_mutex_lock(&m->lock);
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        worker *w = &m->workers[id];
        if ((w->state == READY || w->state == REGISTERED) && is_silent(m, w, now)) {
            LOG_WARN("membership", "worker lost: no heartbeat worker=%u pid=%u", id, w->pid);
            w->state = LOST;
            if (w->linked) router_end_give_up(m->config.router_end, id);
        }
        if (w->state != READY) all_ready = false;
        if (w->state == ABSENT || w->state == LOST) *all_registered = false;
    }
    if (all_ready && !m->ready) {
        m->epoch++;
        LOG_INFO("membership", "all experts are hosted workers=%u epoch=%llu",
                 m->config.worker_count, (unsigned long long)m->epoch);
    }
    m->ready = all_ready && !m->closed;
    pthread_mutex_unlock(&m->lock);
    return all_ready;
}

void
membership_update(membership *m, uint32_t wait_ms)
{
    const uint32_t seen = atomic_load(&m->bell);
    bool all_registered;
    if (!check_workers(m, &all_registered) && all_registered) {
        bring_up_registered(m);
        check_workers(m, &all_registered);
    }
    if (!atomic_load(&m->stopping))
        futex_wait_change(&m->bell, seen, clock_now_ns() + wait_ms * NS_PER_MS);
}

void
membership_stop(membership *m)
{
    atomic_store(&m->stopping, true);
    futex_bump(&m->bell);
}

void
membership_close(membership *m)
{
    if (m == NULL) return;
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    m->ready = false;
    pthread_mutex_unlock(&m->lock);
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        router_end_give_up(m->config.router_end, id);
    }
}

bool
membership_enter(membership *m, expert_fleet *out)
{
    /* Not ready is said at once: links may be held for seconds while one is made. */
    pthread_mutex_lock(&m->lock);
    bool ready = m->ready;
    pthread_mutex_unlock(&m->lock);
    if (!ready) return false;
    pthread_mutex_lock(&m->links);
    pthread_mutex_lock(&m->lock);
    ready = m->ready;
    *out = (expert_fleet){.exchange = m->config.router_end,
                          .mode = m->config.mode,
                          .worker_count = m->config.worker_count,
                          .placement = m->placement,
                          .epoch = m->epoch};
    pthread_mutex_unlock(&m->lock);
    if (!ready) pthread_mutex_unlock(&m->links);
    return ready;
}

void
membership_leave(membership *m)
{
    pthread_mutex_unlock(&m->links);
}

void
membership_lost(membership *m, uint32_t id)
{
    if (id >= m->config.worker_count) return;
    pthread_mutex_lock(&m->lock);
    /* One that is not READY any more has registered anew: what failed was its last life's link. */
    if (m->workers[id].state == READY) m->workers[id].state = LOST;
    m->ready = false;
    pthread_mutex_unlock(&m->lock);
    router_end_give_up(m->config.router_end, id);
    futex_bump(&m->bell);
}

void
membership_get_status(membership *m, membership_status *out)
{
    pthread_mutex_lock(&m->lock);
    *out = (membership_status){.ready = m->ready, .epoch = m->epoch};
    uint32_t missing = UINT32_MAX;
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        if (m->workers[id].state == READY)
            out->workers_ready++;
        else if (missing == UINT32_MAX)
            missing = id;
    }
    if (m->ready)
        snprintf(out->detail, sizeof out->detail, "ready");
    else if (missing == UINT32_MAX)
        snprintf(out->detail, sizeof out->detail, "starting");
    else
        snprintf(out->detail, sizeof out->detail, "%u of %u workers are ready; worker %u is %s",
                 out->workers_ready, m->config.worker_count, missing,
                 state_names[m->workers[missing].state]);
    pthread_mutex_unlock(&m->lock);
}

worker_status
membership_worker(membership *m, uint32_t id)
{
    pthread_mutex_lock(&m->lock);
    const worker *w = &m->workers[id];
    const worker_status status = {.pid = w->pid,
                                  .experts_hosted = w->experts_hosted,
                                  .bytes_hosted = w->bytes_hosted,
                                  .state = state_names[w->state],
                                  .backend = w->backend == EXCHANGE_SHM ? "shm" : "nng"};
    pthread_mutex_unlock(&m->lock);
    return status;
}
