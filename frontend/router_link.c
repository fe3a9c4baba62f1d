#include "frontend/router_link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "frontend/sequence.h"
#include "frontend/step_message.h"
#include "proto/methods.h"
#include "proto/rpc.h"

#define STEP_TIMEOUT_MS (600u * 1000)
#define STEP_PATIENCE_MS 5000u /* after that a step is left if nobody wants its tokens any more */
#define HEALTH_POLL_MS 100     /* while not ready */
#define HEALTH_SOON_MS 10      /* after a loss, then twice as long each time */
#define HEALTH_IDLE_MS 1000    /* while ready */
#define STEP_MESSAGE_BYTES (64u << 20)

/* A step the router was asked for. */
typedef struct flight {
    step_plan plan;
    uint64_t start_ns;
    rpc_pending *call;
    step_message message;
} flight;

struct router_link {
    router_link_shared shared;
    uint32_t id;
    char name[24]; /* for texts */
    rpc_client *client;
    scheduler *scheduler; /* NULL until the router has told its limits */

    routing_shape routing; /* what it tells of tokens' experts */
    uint64_t incarnation;
    uint64_t life; /* rises with every start over */
    uint64_t step; /* of this life */
    bool ready;
    uint64_t lost_ns;

    rpc_pending *health; /* under way */
    uint64_t health_due_ns;
    uint64_t poll_ms; /* from an answer to the next question, while not ready */

    flight flights[STEPS_IN_FLIGHT]; /* a ring */
    uint32_t first_flight, flight_count;
    uint64_t last_step_ns, last_end_ns;
    seq_outcome *outcomes; /* [max_num_seqs] scratch */
    sequence **told;       /* [max_num_seqs] scratch */

    char detail[192];  /* guarded by the lock */
    char refusal[256]; /* written once, before `refused` is set */
    _Atomic bool refused;
};

/* ---- create, free ---- */

moe_err
router_link_open(router_link **out, uint32_t router, const char *url,
                 const router_link_shared *shared, errbuf *eb)
{
    *out = NULL;
    router_link *l = calloc(1, sizeof *l);
    if (l == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    l->shared = *shared;
    l->id = router;
    l->poll_ms = HEALTH_POLL_MS;
    if (shared->config->router_count > 1)
        snprintf(l->name, sizeof l->name, "router %u", router);
    else
        snprintf(l->name, sizeof l->name, "the router");
    snprintf(l->detail, sizeof l->detail, "waiting for %s", l->name);
    const moe_err err =
        rpc_client_open(&l->client,
                        &(rpc_client_options){.url = url,
                                              .service = &conclave__router__descriptor,
                                              .message_bytes_max = STEP_MESSAGE_BYTES},
                        eb);
    if (err) {
        free(l);
        return err;
    }
    *out = l;
    return MOE_OK;
}

static void
free_steps(router_link *l)
{
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        step_message_fini(&l->flights[i].message);
    }
    free(l->outcomes);
    free(l->told);
    l->outcomes = NULL;
    l->told = NULL;
}

void
router_link_free(router_link *l)
{
    if (l == NULL) return;
    router_link_leave(l);
    rpc_client_close(l->client);
    free_steps(l);
    free(l);
}

/* ---- what became of it ---- */

bool
router_link_ready(const router_link *l)
{
    return l->ready;
}

bool
router_link_stepping(const router_link *l)
{
    return l->flight_count > 0;
}

uint64_t
router_link_lost_ns(const router_link *l)
{
    return l->lost_ns;
}

const char *
router_link_detail(const router_link *l)
{
    return l->detail;
}

const char *
router_link_refusal(const router_link *l)
{
    return atomic_load(&l->refused) ? l->refusal : NULL;
}

static void
set_ready(router_link *l, bool ready)
{
    if (ready && !l->ready) LOG_INFO("engine", "%s is ready", l->name);
    if (l->ready && !ready) l->lost_ns = clock_now_ns();
    if (ready) l->lost_ns = 0;
    l->ready = ready;
    engine_metrics_ready(l->shared.metrics, l->id, ready);
}

static void
set_detail(router_link *l, const char *why)
{
    pthread_mutex_lock(l->shared.lock);
    if (l->shared.config->router_count > 1)
        snprintf(l->detail, sizeof l->detail, "%s: %.160s", l->name, why);
    else
        snprintf(l->detail, sizeof l->detail, "%.180s", why);
    pthread_mutex_unlock(l->shared.lock);
}

/* ---- losing steps ---- */

/* Every running sequence goes back to waiting, and the next step is a first one: the router may or
 * may not have seen those that failed, and a first step is all it takes after either. */
static void
start_over(router_link *l)
{
    pthread_mutex_lock(l->shared.lock);
    if (l->scheduler != NULL) scheduler_rollback(l->scheduler);
    pthread_mutex_unlock(l->shared.lock);
    l->life++;
    l->step = 0;
}

/* Leave the calls that are under way. */
static void
leave_flights(router_link *l)
{
    for (; l->flight_count > 0; l->flight_count--) {
        ProtobufCMessage *response;
        rpc_pending_finish(l->flights[l->first_flight].call, &response, NULL, NULL);
        rpc_response_free(response);
        l->first_flight = (l->first_flight + 1) % STEPS_IN_FLIGHT;
    }
}

static void
leave_health(router_link *l)
{
    if (l->health == NULL) return;
    ProtobufCMessage *response;
    rpc_pending_finish(l->health, &response, NULL, NULL);
    rpc_response_free(response);
    l->health = NULL;
}

void
router_link_leave(router_link *l)
{
    leave_health(l);
    leave_flights(l);
    set_ready(l, false);
    start_over(l);
}

/* A router that was just lost is not asked at once how it is: it may be closing its socket.  But
 * soon: it may only have lost a worker, whose experts others load in no time. */
static void
lose(router_link *l, const char *why)
{
    if (!atomic_load(l->shared.stopping)) LOG_WARN("engine", "%s is not serving: %s", l->name, why);
    router_link_leave(l);
    set_detail(l, why);
    engine_metrics_lost(l->shared.metrics, l->id);
    l->poll_ms = HEALTH_SOON_MS;
    l->health_due_ns = clock_now_ns() + l->poll_ms * NS_PER_MS;
}

/* A plan's pointers are stale once it was committed or rolled back: keep its sequences. */
static void
keep_sequences(router_link *l, const step_plan *plan)
{
    for (uint32_t i = 0; i < plan->count; i++) {
        l->told[i] = plan->work[i].user;
    }
}

/* The router refuses this step: its sequences can't go on. */
static void
end_planned(router_link *l, const step_plan *plan, const char *why)
{
    const uint32_t count = plan->count;
    keep_sequences(l, plan);
    leave_flights(l);
    start_over(l);
    pthread_mutex_lock(l->shared.lock);
    for (uint32_t i = 0; i < count; i++) {
        if (l->told[i] != NULL) scheduler_abort(l->scheduler, l->told[i]->id);
    }
    pthread_mutex_unlock(l->shared.lock);
    for (uint32_t i = 0; i < count; i++) {
        if (l->told[i] != NULL) sequence_end(l->told[i], FINISH_ERROR, why);
    }
}

/* ---- a step ---- */

/* Tell the sink what was sampled, and find out whether the sequence goes on. */
static void
tell_token(const router_link *l, sequence *q, const seq_work *w, const Conclave__SeqResult *result,
           seq_outcome *outcome)
{
    const finish_reason finish = scheduler_finish_with(l->scheduler, w, result->token);
    outcome->token = result->token;
    outcome->stop = sequence_tell_token(q, w, result, finish);
}

static void
finish_step(router_link *l, const step_plan *plan, const Conclave__StepReply *reply)
{
    const uint32_t count = plan->count;
    keep_sequences(l, plan);
    for (uint32_t i = 0; i < count; i++) {
        const seq_work *w = &plan->work[i];
        l->outcomes[i] = (seq_outcome){0};
        if (l->told[i] == NULL) continue; /* it ended meanwhile */
        sequence_tell_routed(l->told[i], w, reply->results[i]);
        sequence_tell_prompt_logprobs(l->told[i], w, reply->results[i]);
        if (w->sample) tell_token(l, l->told[i], w, reply->results[i], &l->outcomes[i]);
    }
    pthread_mutex_lock(l->shared.lock);
    scheduler_commit(l->scheduler, l->outcomes);
    pthread_mutex_unlock(l->shared.lock);
    for (uint32_t i = 0; i < count; i++) {
        if (l->outcomes[i].finished != FINISH_NONE) free(l->told[i]);
    }
}

/* Plan a step and ask for it.  Returns false when there was nothing to run. */
static bool
launch(router_link *l)
{
    flight *f = &l->flights[(l->first_flight + l->flight_count) % STEPS_IN_FLIGHT];
    pthread_mutex_lock(l->shared.lock);
    scheduler_plan(l->scheduler, &f->plan);
    pthread_mutex_unlock(l->shared.lock);
    if (f->plan.count == 0) return false;

    Conclave__StepRequest *request = &f->message.request;
    step_message_build(&f->message, &f->plan);
    request->step = ++l->step;
    request->life = l->life;
    request->router_incarnation = l->incarnation;
    f->start_ns = clock_now_ns();
    f->call =
        rpc_call_begin(l->client, ROUTER_STEP, &request->base, STEP_TIMEOUT_MS, l->shared.bell);
    if (f->call == NULL)
        lose(l, "out of memory");
    else
        l->flight_count++;
    return true;
}

static void
note_step_time(router_link *l, const flight *f, const Conclave__StepReply *reply)
{
    const uint64_t now = clock_now_ns();
    const uint64_t start = f->start_ns > l->last_end_ns ? f->start_ns : l->last_end_ns;
    l->last_step_ns = now - start;
    l->last_end_ns = now;
    engine_metrics_step(l->shared.metrics, l->id, f->plan.token_count, now - start, reply->step_ns,
                        reply->expert_wait_ns);
}

/* The oldest step's answer is there. */
static void
land(router_link *l)
{
    flight *f = &l->flights[l->first_flight];
    ProtobufCMessage *response;
    rpc_status status;
    errbuf eb = {{0}};
    rpc_pending_finish(f->call, &response, &status, &eb);
    l->first_flight = (l->first_flight + 1) % STEPS_IN_FLIGHT;
    l->flight_count--;
    const Conclave__StepReply *reply = (const void *)response;
    if (status == RPC_OK &&
        !step_message_is_answered(&f->message, &f->plan, l->shared.config->vocab_size, reply)) {
        status = RPC_INTERNAL;
        snprintf(eb.text, sizeof eb.text, "the router's answer does not fit the step");
    }
    if (status == RPC_UNAVAILABLE || status == RPC_DEADLINE_EXCEEDED || status == RPC_CANCELLED) {
        lose(l, eb.text);
    } else if (status != RPC_OK) {
        LOG_ERROR("engine", "%s refused a step step=%llu: %s", l->name,
                  (unsigned long long)f->message.request.step, eb.text);
        end_planned(l, &f->plan, eb.text);
    } else {
        note_step_time(l, f, reply);
        finish_step(l, &f->plan, reply);
    }
    rpc_response_free(response);
}

/* Whether the oldest step takes suspiciously long and nobody wants its tokens any more. */
static bool
is_unwanted(const router_link *l, uint64_t now)
{
    const flight *f = &l->flights[l->first_flight];
    if (now - f->start_ns < STEP_PATIENCE_MS * NS_PER_MS) return false;
    for (uint32_t i = 0; i < f->plan.count; i++) {
        if (f->plan.work[i].user != NULL) return false;
    }
    return true;
}

/* When to plan the step that runs ahead of the oldest one's answer: late, so that it takes in who
 * arrives meanwhile, but well before the router would fall idle. */
static uint64_t
ahead_due_ns(const router_link *l)
{
    const uint64_t start = l->flights[l->first_flight].start_ns;
    const uint64_t begin = start > l->last_end_ns ? start : l->last_end_ns;
    return begin + l->last_step_ns / 4 * 3;
}

static void
lower(uint64_t *until_ns, uint64_t due_ns)
{
    if (due_ns < *until_ns) *until_ns = due_ns;
}

bool
router_link_launch(router_link *l, uint64_t *until_ns)
{
    if (l->flight_count == STEPS_IN_FLIGHT || !l->ready) return false;
    if (l->flight_count > 0) {
        const uint64_t due = ahead_due_ns(l);
        if (clock_now_ns() < due) {
            lower(until_ns, due);
            return false;
        }
    }
    return launch(l);
}

/* ---- the router's health ---- */

static moe_err
make_steps(router_link *l, uint32_t max_num_seqs, errbuf *eb)
{
    moe_err err = MOE_OK;
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT && err == MOE_OK; i++) {
        err = step_message_init(&l->flights[i].message, max_num_seqs,
                                routing_token_bytes(&l->routing));
    }
    l->outcomes = calloc(max_num_seqs, sizeof *l->outcomes);
    l->told = calloc(max_num_seqs, sizeof *l->told);
    if (err == MOE_OK && l->outcomes != NULL && l->told != NULL) return MOE_OK;
    free_steps(l);
    return err_set(eb, MOE_ENOMEM, "no memory for %u sequences", max_num_seqs);
}

static moe_err
check_identity(const router_link *l, const Conclave__HealthReply *h, errbuf *eb)
{
    const engine_config *c = l->shared.config;
    if (strcmp(h->version, CONCLAVE_VERSION) != 0)
        return err_set(eb, MOE_EMISMATCH, "the router runs version %.32s, this frontend %s",
                       h->version, CONCLAVE_VERSION);
    if (h->model == NULL ||
        (c->model_fingerprint != 0 && h->model->fingerprint != c->model_fingerprint))
        return err_set(eb, MOE_EMISMATCH, "the router serves another model than this frontend");
    return MOE_OK;
}

/* What it tells of tokens' experts is the model's, and its word for whether it tells. */
static moe_err
take_routing(router_link *l, const Conclave__HealthReply *h, errbuf *eb)
{
    const routing_shape shape = {.num_layers = h->model->num_layers,
                                 .top_k = h->model->top_k,
                                 .id_bytes = h->routed_id_bytes};
    if (shape.num_layers > UINT16_MAX || shape.top_k > UINT8_MAX || shape.id_bytes > 2)
        return err_set(eb, MOE_EMISMATCH, "the router tells %u layers of %u experts",
                       shape.num_layers, shape.top_k);
    if (l->scheduler == NULL) l->routing = shape;
    atomic_store(l->shared.routing, routing_pack(&l->routing));
    return MOE_OK;
}

/* Its scheduler is made for the first limits it tells; sequences may not fit others. */
static moe_err
take_limits(router_link *l, const Conclave__HealthReply *h, errbuf *eb)
{
    const router_limits limits = {.max_num_seqs = h->max_num_seqs,
                                  .max_num_batched_tokens = h->max_num_batched_tokens,
                                  .max_model_len = h->max_model_len,
                                  .kv_block_count = h->kv_block_count,
                                  .kv_block_tokens = h->kv_block_tokens};
    pthread_mutex_lock(l->shared.lock);
    moe_err err = cell_set_router(l->shared.cell, l->id, &limits, eb);
    pthread_mutex_unlock(l->shared.lock);
    if (!err && l->scheduler == NULL) {
        err = make_steps(l, limits.max_num_seqs, eb);
        if (!err) l->scheduler = cell_scheduler(l->shared.cell, l->id);
    }
    return err;
}

/* Its KV cache is empty, and steps in flight were for the one before it. */
static void
meet(router_link *l, uint64_t incarnation)
{
    if (incarnation == l->incarnation) return;
    leave_flights(l);
    start_over(l);
    l->incarnation = incarnation;
}

static void
refuse(router_link *l, const char *why)
{
    snprintf(l->refusal, sizeof l->refusal, "%.240s", why);
    atomic_store(&l->refused, true); /* after the text: who sees the flag reads it */
}

static void
take_health(router_link *l)
{
    ProtobufCMessage *response;
    errbuf eb = {{0}};
    moe_err err = rpc_pending_finish(l->health, &response, NULL, &eb);
    l->health = NULL;
    const Conclave__HealthReply *h = (const void *)response;
    bool ready = false;
    if (!err) {
        err = check_identity(l, h, &eb);
        if (!err) err = take_routing(l, h, &eb);
        if (!err) err = take_limits(l, h, &eb);
        if (err && l->shared.config->router_count > 1) err_wrap(&eb, err, "%s", l->name);
        if (err) refuse(l, eb.text);
    }
    if (!err) {
        meet(l, h->incarnation);
        ready = h->ready || l->flight_count > 0; /* a step under way tells by itself */
        snprintf(eb.text, sizeof eb.text, "%s", h->detail);
    }
    if (l->ready && !ready) {
        lose(l, eb.text);
    } else {
        set_detail(l, eb.text);
        set_ready(l, ready);
        l->poll_ms = 2 * l->poll_ms < HEALTH_POLL_MS ? 2 * l->poll_ms : HEALTH_POLL_MS;
    }
    l->health_due_ns = clock_now_ns() + (ready ? HEALTH_IDLE_MS : l->poll_ms) * NS_PER_MS;
    rpc_response_free(response);
}

/* True if an answer was taken. */
static bool
poll_health(router_link *l, uint64_t now, uint64_t *until_ns)
{
    if (l->health != NULL) {
        if (!rpc_pending_done(l->health)) return false;
        take_health(l);
        return true;
    }
    if (atomic_load(&l->refused)) return false;
    if (now < l->health_due_ns) {
        lower(until_ns, l->health_due_ns);
        return false;
    }
    const Conclave__HealthRequest request = CONCLAVE__HEALTH_REQUEST__INIT;
    l->health = rpc_call_begin(l->client, ROUTER_HEALTH, &request.base,
                               l->shared.config->router_timeout_ms, l->shared.bell);
    if (l->health == NULL) l->health_due_ns = now + HEALTH_POLL_MS * NS_PER_MS; /* no memory */
    return false;
}

bool
router_link_poll(router_link *l, uint64_t *until_ns)
{
    const uint64_t now = clock_now_ns();
    const bool heard = poll_health(l, now, until_ns);
    if (l->flight_count > 0 && rpc_pending_done(l->flights[l->first_flight].call)) {
        land(l);
        return true;
    }
    if (l->flight_count > 0 && is_unwanted(l, now)) {
        lose(l, "a step takes too long, and all its requests were given up");
        return true;
    }
    if (l->flight_count > 0) {
        const uint64_t patience =
            l->flights[l->first_flight].start_ns + STEP_PATIENCE_MS * NS_PER_MS;
        if (now < patience) lower(until_ns, patience);
    }
    return heard;
}
