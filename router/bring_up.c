/* What a worker needs before steps may use it: its experts, and a link (membership.h). */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/methods.h"
#include "router/membership_impl.h"

#define ATTACH_TIMEOUT_MS 10000
#define LOAD_MESSAGE_BYTES (16u << 20)
/* A router that follows is told of workers that router 0 uses: one that can't be reached has died
 * since, and the next answer will say so.  Others must not wait for it. */
#define REACH_NS (500 * NS_PER_MS)

/* A load takes minutes: do not wait for the answer of a worker whose heartbeats have ended or that
 * was replaced, nor when this router stops. */
static bool
call_is_vain(void *arg)
{
    const bring_up_call *call = arg;
    membership *m = call->m;
    if (atomic_load(&m->stopping)) return true;
    membership_check(m); /* others serve meanwhile, and may fall silent */
    pthread_mutex_lock(&m->lock);
    const worker *w = &m->workers[call->id];
    const uint64_t now = clock_now_ns();
    const bool vain = w->incarnation != call->worker.incarnation || is_gone_locked(m, w, now);
    pthread_mutex_unlock(&m->lock);
    const bool late = m->config.follows && now > call->begun_ns + REACH_NS;
    return vain || (late && !rpc_client_connected(call->client));
}

/* With tensor parallelism all of them, if the worker is to have a slice at all. */
static size_t
list_experts(bring_up_call *call, bool any_slice)
{
    const membership *m = call->m;
    const uint32_t experts = m->config.limits.num_experts;
    size_t count = 0;
    for (uint32_t i = 0; i < m->id_count; i++) {
        const bool has = m->config.mode == WIRE_TP
                             ? any_slice
                             : placement_is_host(m->home, i / experts, i % experts, call->id);
        if (has) call->experts[count++] = i;
    }
    return count;
}

static void
begin_load(bring_up_call *call)
{
    membership *m = call->m;
    const exchange_limits *l = &m->config.limits;
    Conclave__LoadRequest load = CONCLAVE__LOAD_REQUEST__INIT;
    const bool tp = m->config.mode == WIRE_TP;
    uint32_t slices[WORKER_MAX] = {0}, slice_count = 1;
    call->experts = malloc((m->id_count + 1) * sizeof *call->experts);
    if (call->experts == NULL) {
        call->err = err_set(&call->eb, MOE_ENOMEM, "out of memory");
        return;
    }
    pthread_mutex_lock(&m->lock);
    if (tp) slice_count = slices_list_locked(m, call->id, slices);
    const size_t count = list_experts(call, slice_count != 0);
    /* It is served from a later one on; but other routers may still use what an earlier life of
     * this one has placed. */
    load.epoch = m->config.shared ? 1 : m->epoch + !call->serving;
    pthread_mutex_unlock(&m->lock);
    call->worker.experts_hosted = (uint32_t)count;
    call->worker.bytes_hosted = 0;
    if (slice_count == 0) return; /* a spare */
    load.n_tp_slices = slice_count;
    load.tp_slices = slices;
    load.tp_ranks = tp ? m->config.worker_count : 1;
    load.row_max = l->token_max * l->top_k;
    load.keep = !tp;
    load.n_experts = count;
    load.experts = call->experts;
    call->load =
        rpc_call_begin(call->client, WORKER_LOAD, &load.base, m->config.load_timeout_ms, NULL);
    if (call->load == NULL) call->err = err_set(&call->eb, MOE_ENOMEM, "out of memory");
}

/* What it hosts beside: it is released as surplus, once no router uses it. */
static void
note_others(bring_up_call *call, const Conclave__LoadReply *reply)
{
    const size_t ids = call->m->id_count;
    uint32_t *count = &call->worker.experts_hosted;
    for (size_t i = 0; i < reply->n_others && *count < ids; i++) {
        if (reply->others[i] < ids) call->experts[(*count)++] = reply->others[i];
    }
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
    const Conclave__LoadReply *reply = (const void *)response;
    call->worker.bytes_hosted = reply->bytes_hosted;
    note_others(call, reply);
    rpc_response_free(response);
}

/* A link with this index of the router end, for this slice. */
static moe_err
make_link(bring_up_call *call, uint32_t id, uint32_t part, errbuf *eb)
{
    membership *m = call->m;
    const worker *w = &call->worker;
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
    request.tp_slice = part;

    ProtobufCMessage *response;
    /* A follower finds out by itself who is out of reach; others wait meanwhile. */
    const uint32_t timeout_ms = m->config.follows ? m->config.worker_timeout_ms : ATTACH_TIMEOUT_MS;
    err = rpc_call_watched(call->client, WORKER_ATTACH, &request.base, timeout_ms, call_is_vain,
                           call, CALL_POLL_MS, &response, NULL, eb);
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

/* Links for the slices that it is to take over.  No step uses them yet. */
static moe_err
link_slices(bring_up_call *call, errbuf *eb)
{
    membership *m = call->m;
    moe_err err = MOE_OK;
    for (uint32_t r = 0; r < m->config.worker_count && !err; r++) {
        slice *s = &m->slices[r];
        uint32_t link;
        pthread_mutex_lock(&m->lock);
        const bool wanted = s->next.set && !s->next_linked && s->next.worker == call->id &&
                            s->next.incarnation == call->worker.incarnation;
        const bool room = wanted && slices_take_link_locked(m, &link);
        pthread_mutex_unlock(&m->lock);
        if (!wanted) continue;
        err = room ? make_link(call, link, r, eb)
                   : err_set(eb, MOE_EBUSY, "all %d links are in use", WORKER_MAX);
        pthread_mutex_lock(&m->lock);
        s->next.link = link;
        s->next_linked = !err;
        if (err && room) slices_retire_link_locked(m, link);
        pthread_mutex_unlock(&m->lock);
    }
    return err;
}

static void
begin_bring_up(membership *m, uint32_t id)
{
    bring_up_call *call = &m->calls[id];
    *call = (bring_up_call){.m = m, .id = id, .begun_ns = clock_now_ns()};
    pthread_mutex_lock(&m->lock);
    call->worker = m->workers[id];
    call->serving = call->worker.state == READY;
    if (!call->serving) m->workers[id].state = LOADING;
    pthread_mutex_unlock(&m->lock);
    call->err = rpc_client_open(&call->client,
                                &(rpc_client_options){.url = call->worker.control_url,
                                                      .service = &conclave__worker__descriptor,
                                                      .message_bytes_max = LOAD_MESSAGE_BYTES,
                                                      .lost_bell = &m->bell},
                                &call->eb);
    if (!call->err && !m->config.follows) begin_load(call);
}

static void
link_worker(bring_up_call *call)
{
    membership *m = call->m;
    const uint32_t id = call->id;
    membership_wait_for_step(m);
    if (call->worker.linked) router_end_drop(m->config.router_end, id);
    call->worker.linked = false;
    if (call->err) return;
    call->err = make_link(call, id, 0, &call->eb);
    call->worker.linked = call->err == MOE_OK;
    if (call->err) router_end_drop(m->config.router_end, id);
}

/* What it hosts now; or it is lost: its next heartbeat makes it register again.  One that serves
 * stays, without what it could not take over. */
static void
note_outcome_locked(bring_up_call *call, worker *w)
{
    membership *m = call->m;
    if (call->err) {
        if (m->config.mode == WIRE_TP) slices_failed_locked(m, call->id);
        if (!call->serving) w->state = LOST;
        return;
    }
    w->state = READY;
    w->bytes_hosted = call->worker.bytes_hosted;
    w->experts_hosted = call->worker.experts_hosted;
    for (uint32_t i = 0; i < w->experts_hosted && call->experts != NULL && m->hosted != NULL; i++)
        hosted_locked(m, call->id)[call->experts[i]] = true;
}

static void
end_bring_up(membership *m, uint32_t id)
{
    bring_up_call *call = &m->calls[id];
    end_load(call);
    if (m->config.mode != WIRE_TP)
        link_worker(call);
    else if (!call->err)
        call->err = link_slices(call, &call->eb);

    rpc_client *unused = call->client;
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[id];
    w->linked = call->worker.linked;
    if (w->incarnation == call->worker.incarnation &&
        w->state == (call->serving ? READY : LOADING)) {
        note_outcome_locked(call, w);
        if (!call->err && !call->serving) {
            liveness_forget_locked(w);
            unused = w->watch;
            w->watch = call->client;
        }
    }
    pthread_mutex_unlock(&m->lock);
    rpc_client_close(unused);
    free(call->experts);
    call->experts = NULL;
    if (call->err && m->config.follows)
        LOG_WARN("membership", "worker %u can't be used yet: %s", id, call->eb.text);
    else if (call->err)
        LOG_ERROR("membership", "worker %u could not be brought up: %s", id, call->eb.text);
    else
        LOG_INFO("membership", "worker ready worker=%u backend=%s experts=%u bytes=%llu", id,
                 call->worker.backend == EXCHANGE_SHM ? "shm" : "nng", call->worker.experts_hosted,
                 (unsigned long long)call->worker.bytes_hosted);
}

void
bring_up_trim(membership *m, uint32_t id)
{
    begin_bring_up(m, id);
    end_bring_up(m, id);
}

/* Everything that registered workers need before steps may use them, and what those are to take
 * over that serve; they load side by side. */
void
bring_up_registered(membership *m)
{
    bool begun[WORKER_MAX] = {false};
    for (uint32_t id = 0; id < WORKER_MAX && !atomic_load(&m->stopping); id++) {
        pthread_mutex_lock(&m->lock);
        begun[id] = m->config.mode == WIRE_TP ? slices_concern_locked(m, id)
                                              : m->workers[id].state == REGISTERED;
        pthread_mutex_unlock(&m->lock);
        if (begun[id]) begin_bring_up(m, id);
    }
    for (uint32_t id = 0; id < WORKER_MAX; id++) {
        if (begun[id]) end_bring_up(m, id);
    }
}
