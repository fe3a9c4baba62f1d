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
    pthread_mutex_t lock; /* guards what follows, but for `stopping` and scratch */
    _Atomic uint32_t bell;
    _Atomic uint32_t left; /* rung when a step has ended */
    _Atomic bool stopping;
    bool started; /* all workers were there once */
    bool ready, closed, in_step;
    uint64_t steps, epoch;
    /* WIRE_EP, else NULL.  `home` never changes; `placement` is that without workers that are not
     * there, and is changed between steps, or by the step thread. */
    placement *home, *placement;
    bool members[WORKER_MAX]; /* who is in this epoch's placement */
    uint32_t *load_ids;       /* scratch of the control thread: [L * E] */
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
    err =
        placement_create(&m->home, l->num_layers, l->num_experts, c->worker_count, slot_counts, eb);
    if (!err) err = placement_set_linear(m->home, eb);
    if (err) return err;
    placement_fill_spare(m->home);
    return placement_clone(&m->placement, m->home, eb);
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
    placement_free(m->home);
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

/* ---- who is there, and what that means for the placement; all with the lock ---- */

static bool
is_ready(const membership *m, uint32_t id)
{
    return m->workers[id].state == READY;
}

static bool
all_ready(const membership *m)
{
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        if (!is_ready(m, id)) return false;
    }
    return true;
}

/* May a step send rows to it?  One that came back during a step is for the next. */
static bool
takes_rows(const membership *m, uint32_t id)
{
    return is_ready(m, id) && (!m->in_step || m->members[id]);
}

/* Is everything hosted by workers for which `there` says yes? */
static bool
is_covered(const membership *m, bool there(const membership *m, uint32_t id))
{
    if (m->home == NULL) return all_ready(m);
    for (uint32_t l = 0; l < m->home->num_layers; l++) {
        for (uint32_t e = 0; e < m->home->num_experts; e++) {
            uint32_t count, i = 0;
            const uint32_t *hosts = placement_hosts(m->home, l, e, &count);
            while (i < count && !there(m, hosts[i]))
                i++;
            if (i == count) return false;
        }
    }
    return true;
}

static void
judge(membership *m)
{
    m->ready = m->started && !m->closed && is_covered(m, is_ready);
}

/* Each worker that takes rows has its slots, others have none. */
static void
fit_placement(membership *m)
{
    if (m->home == NULL) return;
    const placement *home = m->home;
    placement *p = m->placement;
    for (uint32_t l = 0; l < home->num_layers; l++) {
        const size_t layer = (size_t)l * home->slot_count;
        for (uint32_t w = 0; w < home->worker_count; w++) {
            for (uint32_t s = home->slot_first[w]; s < home->slot_first[w + 1]; s++)
                p->slots[layer + s] = takes_rows(m, w) ? home->slots[layer + s] : PLACEMENT_EMPTY;
        }
    }
    placement_index(p);
    placement_set_even_shares(p);
}

/* Between two steps: the placement of those who are there now; if it is another, its epoch
 * begins. */
static void
renew(membership *m)
{
    bool changed = false;
    if (m->in_step || !m->started) return;
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        changed = changed || m->members[id] != is_ready(m, id);
        m->members[id] = is_ready(m, id);
    }
    if (!changed) return;
    judge(m);
    fit_placement(m);
    if (!m->ready) return;
    m->epoch++;
    LOG_INFO("membership", "all experts are hosted workers=%u epoch=%llu", m->config.worker_count,
             (unsigned long long)m->epoch);
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
        judge(m);
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

static bool check_workers(membership *m);

/* A load takes minutes: do not wait for the answer of a worker whose heartbeats have ended or that
 * was replaced, nor when this router stops. */
static bool
call_is_vain(void *arg)
{
    const bring_up_call *call = arg;
    membership *m = call->m;
    if (atomic_load(&m->stopping)) return true;
    check_workers(m); /* others serve meanwhile, and may fall silent */
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
        if (tp || placement_is_host(m->home, layer, e, id)) m->load_ids[count++] = (uint32_t)i;
    }
    pthread_mutex_lock(&m->lock);
    load.epoch = m->epoch + 1; /* it is served from a later one on */
    pthread_mutex_unlock(&m->lock);
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

/* Until no step can use the link of a worker that is not READY: one that began when it was. */
static void
wait_for_step(membership *m)
{
    pthread_mutex_lock(&m->lock);
    const uint64_t begun = m->steps;
    bool wait = m->in_step;
    pthread_mutex_unlock(&m->lock);
    while (wait) {
        const uint32_t seen = atomic_load(&m->left);
        pthread_mutex_lock(&m->lock);
        wait = m->in_step && m->steps == begun;
        pthread_mutex_unlock(&m->lock);
        if (!wait) break;
        futex_sleep_change(&m->left, seen, clock_now_ns() + CALL_POLL_MS * NS_PER_MS);
        check_workers(m); /* the step may be waiting for one that has fallen silent */
    }
}

static void
end_bring_up(membership *m, uint32_t id)
{
    bring_up_call *call = &m->calls[id];
    end_load(call);
    wait_for_step(m);
    if (call->worker.linked) router_end_drop(m->config.router_end, id);
    bool linked = false;
    if (!call->err) {
        call->err = make_link(call, &call->eb);
        linked = call->err == MOE_OK;
        if (!linked) router_end_drop(m->config.router_end, id);
    }
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

/* Mark silent workers as lost; returns true if there is something to bring up.  Before the start
 * nothing is loaded until everybody is there. */
static bool
check_workers(membership *m)
{
    const uint64_t now = clock_now_ns();
    bool any_registered = false, any_missing = false;
    pthread_mutex_lock(&m->lock);
    for (uint32_t id = 0; id < m->config.worker_count; id++) {
        worker *w = &m->workers[id];
        if ((w->state == READY || w->state == REGISTERED) && is_silent(m, w, now)) {
            LOG_WARN("membership", "worker lost: no heartbeat worker=%u pid=%u", id, w->pid);
            w->state = LOST;
            if (w->linked) router_end_give_up(m->config.router_end, id);
        }
        if (w->state == REGISTERED) any_registered = true;
        if (w->state == ABSENT || w->state == LOST) any_missing = true;
    }
    if (all_ready(m)) m->started = true;
    renew(m);
    const bool bring_up = any_registered && (m->started || !any_missing);
    pthread_mutex_unlock(&m->lock);
    return bring_up;
}

void
membership_update(membership *m, uint32_t wait_ms)
{
    const uint32_t seen = atomic_load(&m->bell);
    if (check_workers(m)) {
        bring_up_registered(m);
        check_workers(m);
    }
    if (!atomic_load(&m->stopping))
        futex_sleep_change(&m->bell, seen, clock_now_ns() + wait_ms * NS_PER_MS);
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

/* With the lock.  One that is not READY any more has registered anew: what failed was its last
 * life's link. */
static void
forget_worker(membership *m, uint32_t id)
{
    if (is_ready(m, id)) m->workers[id].state = LOST;
    judge(m);
}

/* expert_fleet_lost_fn: the same for a step that may go on, if replicas of all that is lost are
 * left. */
static bool
on_lost(void *user, uint32_t id)
{
    membership *m = user;
    if (m->home == NULL || id >= m->config.worker_count) return false;
    pthread_mutex_lock(&m->lock);
    forget_worker(m, id);
    const bool covered = !m->closed && is_covered(m, takes_rows);
    if (covered) {
        fit_placement(m);
        LOG_WARN("membership", "worker lost in a step, its replicas go on worker=%u", id);
    }
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->bell);
    return covered;
}

bool
membership_enter(membership *m, expert_fleet *out)
{
    pthread_mutex_lock(&m->lock);
    renew(m);
    const bool ready = m->ready;
    m->in_step = ready;
    *out = (expert_fleet){.exchange = m->config.router_end,
                          .mode = m->config.mode,
                          .worker_count = m->config.worker_count,
                          .placement = m->placement,
                          .epoch = m->epoch,
                          .on_lost = on_lost,
                          .user = m};
    if (ready) m->steps++;
    pthread_mutex_unlock(&m->lock);
    return ready;
}

void
membership_leave(membership *m)
{
    pthread_mutex_lock(&m->lock);
    m->in_step = false;
    renew(m);
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->left);
}

void
membership_lost(membership *m, uint32_t id)
{
    if (id >= m->config.worker_count) return;
    pthread_mutex_lock(&m->lock);
    forget_worker(m, id);
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
