#include "expert_worker/service.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "expert_worker/moves.h"
#include "proto/methods.h"
#include "proto/rpc.h"

#define QUEUE_MAX 16
#define CONCURRENCY                                                                                \
    (3 * QUEUE_MAX) /* control calls, moves and fetches have queues of their own                   \
                     */
#define REGISTER_TIMEOUT_MS 2000
#define HEARTBEAT_DEFAULT_MS 250
#define LOAD_MESSAGE_BYTES (16u << 20)
#define CALL_POLL_MS 50 /* how soon a call is left when the worker stops */

typedef struct job {
    bool attach; /* else load */
    const void *request;
    rpc_call *call;
} job;

/* What a Load has come to. */
typedef struct loaded {
    uint64_t bytes;
    uint32_t *others; /* [other_count] hosted beside what was asked for; owned */
    size_t other_count;
} loaded;

struct worker_service {
    worker_service_config config;
    Conclave__Worker_Service rpc; /* first: handlers get it back as a ProtobufCService */
    rpc_server *server;
    rpc_client *router;
    moves *moves;
    exchange_limits limits; /* this worker's view; micro_batch_max and token_max are the router's */
    pthread_mutex_t lock;   /* guards queue */
    job queue[QUEUE_MAX];
    uint32_t queued;
    _Atomic uint32_t bell;      /* rung when something was queued, or to stop */
    _Atomic uint32_t stop_bell; /* rung once, so that a stop need not wait for a heartbeat */
    _Atomic bool stopping;
    bool registered; /* presence thread only */
    errbuf refusal;  /* why the router will not have us */
    moe_err refused; /* MOE_EMISMATCH or MOE_EPERM, with it */
    uint32_t heartbeat_ms;
};

static worker_service *
self_of(Conclave__Worker_Service *rpc)
{
    return (worker_service *)(void *)((char *)rpc - offsetof(worker_service, rpc));
}

static void
enqueue(worker_service *s, bool attach, const void *request, void *call)
{
    pthread_mutex_lock(&s->lock);
    const bool room = s->queued < QUEUE_MAX;
    if (room) s->queue[s->queued++] = (job){attach, request, call};
    pthread_mutex_unlock(&s->lock);
    if (room)
        futex_bump(&s->bell);
    else
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "%d control calls are queued already", QUEUE_MAX);
}

static void
on_load(Conclave__Worker_Service *rpc, const Conclave__LoadRequest *request,
        Conclave__LoadReply_Closure closure, void *data)
{
    (void)closure;
    enqueue(self_of(rpc), false, request, data);
}

static void
on_attach(Conclave__Worker_Service *rpc, const Conclave__AttachRequest *request,
          Conclave__AttachReply_Closure closure, void *data)
{
    (void)closure;
    enqueue(self_of(rpc), true, request, data);
}

static void
on_stats(Conclave__Worker_Service *rpc, const Conclave__StatsRequest *request,
         Conclave__WorkerStats_Closure closure, void *data)
{
    (void)request;
    compute_stats stats;
    compute_get_stats(self_of(rpc)->config.compute, &stats);
    Conclave__WorkerStats reply = CONCLAVE__WORKER_STATS__INIT;
    reply.dispatches = stats.dispatches;
    reply.rows = stats.rows;
    reply.groups = stats.groups;
    reply.reads = stats.reads;
    reply.busy_ns = stats.busy_ns;
    reply.experts_hosted = stats.experts_hosted;
    reply.bytes_hosted = stats.bytes_hosted;
    moves_stats moved;
    moves_get_stats(self_of(rpc)->moves, &moved);
    reply.fetched_bytes = moved.fetched_bytes;
    reply.fetch_failures = moved.fetch_failures;
    reply.served_bytes = moved.served_bytes;
    closure(&reply, data);
}

static void
on_drain(Conclave__Worker_Service *rpc, const Conclave__DrainRequest *request,
         Conclave__DrainReply_Closure closure, void *data)
{
    (void)request;
    Conclave__DrainReply reply = CONCLAVE__DRAIN_REPLY__INIT;
    closure(&reply, data);
    worker_service_stop(self_of(rpc));
}

static void
on_host(Conclave__Worker_Service *rpc, const Conclave__HostRequest *request,
        Conclave__HostReply_Closure closure, void *data)
{
    (void)closure; /* the thread of moves answers */
    moves_host(self_of(rpc)->moves, request, data);
}

static void
on_cancel_host(Conclave__Worker_Service *rpc, const Conclave__CancelHostRequest *request,
               Conclave__CancelHostReply_Closure closure, void *data)
{
    Conclave__CancelHostReply reply = CONCLAVE__CANCEL_HOST_REPLY__INIT;
    moves_cancel(self_of(rpc)->moves, request->move);
    closure(&reply, data);
}

static void
on_hash(Conclave__Worker_Service *rpc, const Conclave__HashRequest *request,
        Conclave__HostReply_Closure closure, void *data)
{
    (void)closure;
    moves_hash(self_of(rpc)->moves, request, data);
}

static void
on_release(Conclave__Worker_Service *rpc, const Conclave__ReleaseRequest *request,
           Conclave__ReleaseReply_Closure closure, void *data)
{
    (void)closure;
    moves_release(self_of(rpc)->moves, request, data);
}

static void
on_ping(Conclave__Worker_Service *rpc, const Conclave__PingRequest *request,
        Conclave__PingReply_Closure closure, void *data)
{
    (void)rpc;
    (void)request;
    const Conclave__PingReply reply = CONCLAVE__PING_REPLY__INIT;
    closure(&reply, data);
}

static void
on_fetch(Conclave__Worker_Service *rpc, const Conclave__FetchRequest *request,
         Conclave__FetchReply_Closure closure, void *data)
{
    (void)closure;
    moves_fetch(self_of(rpc)->moves, request, data);
}

static expert_layout
slice_layout(const worker_service *s, uint32_t slice, uint32_t slices)
{
    const model_config *config = checkpoint_config(s->config.checkpoint);
    uint32_t begin, end;
    expert_layout layout;
    tp_slice(config->intermediate_size, slice, slices, &begin, &end);
    expert_layout_init(&layout, s->config.dtype, config, begin, end);
    return layout;
}

static moe_err
check_load(const worker_service *s, const Conclave__LoadRequest *r, errbuf *eb)
{
    uint64_t want = 0;
    if (r->tp_ranks == 0 || r->tp_ranks > WORKER_MAX || r->n_tp_slices == 0)
        return err_set(eb, MOE_EINVAL, "%zu slices of %u", r->n_tp_slices, r->tp_ranks);
    if (r->row_max == 0 || r->row_max > EXCHANGE_TOKEN_MAX * MODEL_TOPK_MAX)
        return err_set(eb, MOE_ERANGE, "row_max %u", r->row_max);
    for (size_t i = 0; i < r->n_tp_slices; i++) {
        if (r->tp_slices[i] >= r->tp_ranks || (i > 0 && r->tp_slices[i] <= r->tp_slices[i - 1]))
            return err_set(eb, MOE_EINVAL, "slice %u of %u, or it is named twice", r->tp_slices[i],
                           r->tp_ranks);
        want += r->n_experts * slice_layout(s, r->tp_slices[i], r->tp_ranks).slot_bytes;
    }
    if (s->config.memory_bytes == 0 || want <= s->config.memory_bytes) return MOE_OK;
    return err_set(eb, MOE_ENOMEM,
                   "%zu experts of %zu bytes need %llu bytes more than "
                   "--expert-memory",
                   r->n_experts, (size_t)(want / r->n_experts),
                   (unsigned long long)(want - s->config.memory_bytes));
}

/* With tensor parallelism a slice that is there stays; whole experts may be others. */
static bool
is_loaded(const worker_service *s, const Conclave__LoadRequest *r, uint32_t slice)
{
    const expert_store *store = compute_store(s->config.compute, slice);
    if (store == NULL || r->tp_ranks == 1) return false;
    const expert_layout *have = expert_store_layout(store);
    const expert_layout want = slice_layout(s, slice, r->tp_ranks);
    return have->width_begin == want.width_begin && have->width_end == want.width_end &&
           expert_store_count(store) == r->n_experts;
}

static moe_err
load_slice(worker_service *s, const Conclave__LoadRequest *r, uint32_t slice, errbuf *eb)
{
    const uint64_t start = clock_now_ns();
    const expert_layout layout = slice_layout(s, slice, r->tp_ranks);
    const weight_cache cache = {s->config.packed_cache, s->config.identity->model.fingerprint};
    expert_store *store;
    moe_err err = expert_store_load(&store, s->config.checkpoint, cache, &layout, r->experts,
                                    (uint32_t)r->n_experts, s->config.load_pool, &s->stopping, eb);
    if (err) return err;
    const uint64_t bytes = expert_store_bytes(store);
    err = compute_load(s->config.compute, slice, store, r->epoch,
                       checkpoint_config(s->config.checkpoint)->num_experts, r->row_max, eb);
    if (err) {
        expert_store_free(store);
        return err;
    }
    LOG_INFO("store", "experts loaded epoch=%llu experts=%zu slice=%u..%u bytes=%llu load_ms=%llu",
             (unsigned long long)r->epoch, r->n_experts, layout.width_begin, layout.width_end,
             (unsigned long long)bytes, (unsigned long long)((clock_now_ns() - start) / NS_PER_MS));
    return MOE_OK;
}

/* What is not named makes room first.  Its links stay: a router that still uses one is answered
 * that the slice is not hosted. */
/* Ids that are hosted and not among these [count], rising, into others [L * E]; returns how many.
 */
static size_t
list_others(const worker_service *s, const expert_store *store, const uint32_t *experts,
            size_t count, uint32_t *others)
{
    const uint32_t num_experts = s->limits.num_experts;
    size_t found = 0, at = 0;
    for (uint32_t id = 0; id < s->limits.num_layers * num_experts; id++) {
        const bool asked = at < count && experts[at] == id;
        at += asked;
        if (!asked && expert_store_slot(store, id / num_experts, id % num_experts) != NULL)
            others[found++] = id;
    }
    return found;
}

/* Host what is lacking beside what is there.  False: all must be loaded anew. */
static bool
load_beside(worker_service *s, const Conclave__LoadRequest *r, loaded *out)
{
    errbuf eb;
    expert_store *store = r->keep && r->tp_ranks == 1 ? compute_store(s->config.compute, 0) : NULL;
    if (store == NULL) return false;
    const store_growth growth = {
        .checkpoint = s->config.checkpoint,
        .cache = {s->config.packed_cache, s->config.identity->model.fingerprint},
        .memory_bytes = s->config.memory_bytes,
        .pool = s->config.load_pool,
        .cancel = &s->stopping};
    out->others =
        calloc((size_t)s->limits.num_layers * s->limits.num_experts + 1, sizeof *out->others);
    if (out->others == NULL ||
        expert_store_host(store, &growth, r->experts, (uint32_t)r->n_experts, &eb) != MOE_OK ||
        !compute_keep(s->config.compute, 0, r->epoch, r->row_max))
        return false;
    out->bytes = expert_store_bytes(store);
    out->other_count = list_others(s, store, r->experts, r->n_experts, out->others);
    LOG_INFO("store", "experts kept epoch=%llu experts=%zu others=%zu bytes=%llu",
             (unsigned long long)r->epoch, r->n_experts, out->other_count,
             (unsigned long long)out->bytes);
    return true;
}

static moe_err
load(worker_service *s, const Conclave__LoadRequest *r, loaded *out, errbuf *eb)
{
    moe_err err = check_load(s, r, eb);
    if (!err && load_beside(s, r, out)) return MOE_OK;
    for (uint32_t part = 0, i = 0; part < COMPUTE_PARTS_MAX && !err; part++) {
        if (i < r->n_tp_slices && r->tp_slices[i] == part) {
            i++;
        } else if (compute_store(s->config.compute, part) != NULL) {
            compute_drop(s->config.compute, part);
            LOG_INFO("store", "slice dropped slice=%u", part);
        }
    }
    for (size_t i = 0; i < r->n_tp_slices && !err; i++) {
        if (is_loaded(s, r, r->tp_slices[i]))
            compute_set_epoch(s->config.compute, r->epoch);
        else
            err = load_slice(s, r, r->tp_slices[i], eb);
    }
    for (size_t i = 0; i < r->n_tp_slices && !err; i++)
        out->bytes += expert_store_bytes(compute_store(s->config.compute, r->tp_slices[i]));
    return err;
}

static moe_err
copy_name(char *dst, size_t size, const char *src, const char *what, errbuf *eb)
{
    if (strlen(src) >= size)
        return err_set(eb, MOE_EINVAL, "%s is longer than %zu bytes", what, size - 1);
    memcpy(dst, src, strlen(src) + 1);
    return MOE_OK;
}

static moe_err
attach(worker_service *s, const Conclave__AttachRequest *r, attach_answer *answer, errbuf *eb)
{
    if (strcmp(r->backend, "shm") != 0 && strcmp(r->backend, "nng") != 0)
        return err_set(eb, MOE_EINVAL, "unknown backend \"%.16s\"", r->backend);
    attach_offer offer = {.router_id = r->router_id,
                          .router_incarnation = r->router_incarnation,
                          .part = r->tp_slice,
                          .backend = strcmp(r->backend, "shm") == 0 ? EXCHANGE_SHM : EXCHANGE_NNG};
    offer.limits = (exchange_limits){.micro_batch_max = r->micro_batch_max,
                                     .token_max = r->token_max,
                                     .num_layers = r->num_layers,
                                     .num_experts = r->num_experts,
                                     .top_k = r->top_k,
                                     .hidden = r->hidden,
                                     .dtype = dtype_parse(r->dtype)};
    if (offer.part >= COMPUTE_PARTS_MAX) return err_set(eb, MOE_EINVAL, "slice %u", offer.part);
    if (offer.limits.dtype == DTYPE_COUNT)
        return err_set(eb, MOE_EINVAL, "unknown dtype \"%.16s\"", r->dtype);
    if (r->key.len != EXCHANGE_KEY_BYTES)
        return err_set(eb, MOE_EINVAL, "a link key has %d bytes, this has %zu", EXCHANGE_KEY_BYTES,
                       r->key.len);
    memcpy(offer.key, r->key.data, EXCHANGE_KEY_BYTES);
    moe_err err = copy_name(offer.rows_name, sizeof offer.rows_name, r->rows_name, "rows_name", eb);
    if (!err)
        err = copy_name(offer.link_name, sizeof offer.link_name, r->link_name, "link_name", eb);
    if (!err) err = worker_end_attach(s->config.exchange, &s->limits, &offer, answer, eb);
    if (err == MOE_EBUSY) { /* links for slices that are not here any more are in the way */
        for (uint32_t part = 0; part < COMPUTE_PARTS_MAX; part++) {
            if (compute_store(s->config.compute, part) == NULL)
                worker_end_detach_part(s->config.exchange, part);
        }
        err = worker_end_attach(s->config.exchange, &s->limits, &offer, answer, eb);
    }
    if (!err) LOG_INFO("exchange", "link made router=%u backend=%s", r->router_id, r->backend);
    return err;
}

static void
run_job(worker_service *s, const job *j)
{
    errbuf eb = {{0}};
    moe_err err;
    if (atomic_load(&s->stopping)) {
        rpc_fail(j->call, RPC_UNAVAILABLE, "this worker is stopping");
        return;
    }
    if (j->attach) {
        attach_answer answer = {{0}, {0}};
        err = attach(s, j->request, &answer, &eb);
        Conclave__AttachReply reply = CONCLAVE__ATTACH_REPLY__INIT;
        reply.bell_name = answer.bell_name;
        reply.url = answer.url;
        if (!err) rpc_reply(j->call, &reply.base);
    } else {
        loaded now = {0};
        moves_pause(s->moves); /* the store is replaced */
        err = load(s, j->request, &now, &eb);
        moves_resume(s->moves);
        Conclave__LoadReply reply = CONCLAVE__LOAD_REPLY__INIT;
        reply.bytes_hosted = now.bytes;
        reply.n_others = now.other_count;
        reply.others = now.others;
        if (!err) rpc_reply(j->call, &reply.base);
        free(now.others);
    }
    if (err) {
        LOG_ERROR("control", "%s failed: %s", j->attach ? "attach" : "load", eb.text);
        rpc_fail_err(j->call, err, &eb);
    }
}

static bool
take_job(worker_service *s, job *out)
{
    pthread_mutex_lock(&s->lock);
    const bool any = s->queued > 0;
    if (any) {
        *out = s->queue[0];
        s->queued--;
        memmove(s->queue, s->queue + 1, s->queued * sizeof s->queue[0]);
    }
    pthread_mutex_unlock(&s->lock);
    return any;
}

moe_err
worker_service_create(worker_service **out, const worker_service_config *config, errbuf *eb)
{
    *out = NULL;
    worker_service *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    const model_config *m = checkpoint_config(config->checkpoint);
    s->config = *config;
    s->heartbeat_ms = HEARTBEAT_DEFAULT_MS;
    s->limits = (exchange_limits){.num_layers = m->num_layers,
                                  .num_experts = m->num_experts,
                                  .top_k = m->top_k,
                                  .hidden = m->hidden_size,
                                  .dtype = config->dtype};
    s->rpc = (Conclave__Worker_Service)CONCLAVE__WORKER__INIT(on_);
    pthread_mutex_init(&s->lock, NULL);
    moe_err err =
        moves_start(&s->moves,
                    &(moves_config){.compute = config->compute,
                                    .growth = {.checkpoint = config->checkpoint,
                                               .cache = {config->packed_cache,
                                                         config->identity->model.fingerprint},
                                               .memory_bytes = config->memory_bytes},
                                    .source = config->source,
                                    .fingerprint = config->identity->model.fingerprint},
                    eb);
    if (err) {
        worker_service_free(s);
        return err;
    }
    err = rpc_server_start(&s->server,
                           &(rpc_server_options){.url = config->control_url,
                                                 .service = &s->rpc.base,
                                                 .message_bytes_max = LOAD_MESSAGE_BYTES,
                                                 .concurrency = CONCURRENCY},
                           eb);
    if (!err)
        err = rpc_client_open(&s->router,
                              &(rpc_client_options){.url = config->router_url,
                                                    .service = &conclave__router__descriptor},
                              eb);
    if (err) {
        worker_service_free(s);
        return err;
    }
    *out = s;
    return MOE_OK;
}

static bool
is_stopping(void *arg)
{
    worker_service *s = arg;
    return atomic_load(&s->stopping);
}

/* MOE_EMISMATCH and MOE_EPERM are final; anything else is tried again. */
static moe_err
register_worker(worker_service *s, errbuf *eb)
{
    const identity *id = s->config.identity;
    Conclave__RegisterRequest request = CONCLAVE__REGISTER_REQUEST__INIT;
    request.worker_id = s->config.worker_id;
    request.incarnation = s->config.incarnation;
    request.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    request.control_url = (char *)(uintptr_t)rpc_server_url(s->server);
    request.host_id = (char *)(uintptr_t)id->host_id;
    request.model = (Conclave__ModelIdentity *)(uintptr_t)&id->model;
    request.numeric = (Conclave__NumericClass *)(uintptr_t)&id->numeric;
    request.memory_bytes = s->config.memory_bytes;
    request.pid = (uint32_t)getpid();

    ProtobufCMessage *response;
    rpc_status status;
    const moe_err err =
        rpc_call_watched(s->router, ROUTER_REGISTER_WORKER, &request.base, REGISTER_TIMEOUT_MS,
                         is_stopping, s, CALL_POLL_MS, &response, &status, eb);
    if (err) {
        if (status == RPC_FAILED_PRECONDITION) return MOE_EMISMATCH;
        return status == RPC_PERMISSION_DENIED ? MOE_EPERM : MOE_EBUSY;
    }
    const Conclave__RegisterReply *reply = (const void *)response;
    if (reply->heartbeat_ms >= 10 && reply->heartbeat_ms <= 60000)
        s->heartbeat_ms = reply->heartbeat_ms;
    rpc_response_free(response);
    s->registered = true;
    LOG_INFO("control", "registered with the router heartbeat_ms=%u", s->heartbeat_ms);
    return MOE_OK;
}

static void
heartbeat(worker_service *s)
{
    Conclave__HeartbeatRequest request = CONCLAVE__HEARTBEAT_REQUEST__INIT;
    request.worker_id = s->config.worker_id;
    request.incarnation = s->config.incarnation;
    ProtobufCMessage *response;
    const moe_err err =
        rpc_call_watched(s->router, ROUTER_HEARTBEAT, &request.base, REGISTER_TIMEOUT_MS,
                         is_stopping, s, CALL_POLL_MS, &response, NULL, NULL);
    if (err)
        return; /* the router is away: the next heartbeat finds out whether it still knows us */
    s->registered = ((const Conclave__HeartbeatReply *)(const void *)response)->known;
    rpc_response_free(response);
}

/* Registration and heartbeats have a thread of their own, so that a long load does not look like a
 * death. */
static void *
presence_main(void *arg)
{
    worker_service *s = arg;
    errbuf *eb = &s->refusal;
    while (!atomic_load(&s->stopping)) {
        if (s->registered) {
            heartbeat(s);
        } else {
            const moe_err err = register_worker(s, eb);
            if (err == MOE_EMISMATCH || err == MOE_EPERM) {
                LOG_ERROR("control", "the router refuses this worker: %s", eb->text);
                s->refused = err;
                worker_service_stop(s);
                return NULL;
            }
        }
        if (!atomic_load(&s->stopping))
            futex_sleep_change(&s->stop_bell, 0, clock_now_ns() + s->heartbeat_ms * NS_PER_MS);
    }
    return NULL;
}

moe_err
worker_service_run(worker_service *s, errbuf *eb)
{
    pthread_t presence;
    if (pthread_create(&presence, NULL, presence_main, s) != 0)
        return err_set(eb, MOE_EIO, "can't start the heartbeat thread");
    while (!atomic_load(&s->stopping)) {
        const uint32_t seen = atomic_load(&s->bell);
        job j;
        while (take_job(s, &j)) {
            run_job(s, &j);
        }
        if (!atomic_load(&s->stopping)) futex_sleep_change(&s->bell, seen, 0);
    }
    pthread_join(presence, NULL);
    job left;
    while (take_job(s, &left)) {
        rpc_fail(left.call, RPC_UNAVAILABLE, "this worker is stopping");
    }
    return s->refused ? err_set(eb, s->refused, "%s", s->refusal.text) : MOE_OK;
}

void
worker_service_stop(worker_service *s)
{
    atomic_store(&s->stopping, true);
    futex_bump(&s->bell);
    futex_bump(&s->stop_bell);
}

void
worker_service_free(worker_service *s)
{
    if (s == NULL) return;
    rpc_server_stop(s->server);
    rpc_client_close(s->router);
    job left;
    while (take_job(s, &left)) {
        rpc_fail(left.call, RPC_UNAVAILABLE, "this worker is stopping");
    }
    moves_stop(s->moves); /* after the server: its handlers queue here */
    pthread_mutex_destroy(&s->lock);
    free(s);
}
