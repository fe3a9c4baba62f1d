#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "frontend/engine_metrics.h"
#include "frontend/engine_start.h"
#include "frontend/sequence.h"
#include "frontend/step_message.h"
#include "proto/rpc.h"

#define STEP_TIMEOUT_MS (600u * 1000)
#define STEP_PATIENCE_MS 5000u /* after that a step is left if nobody wants its tokens any more */
#define CALL_POLL_MS 50        /* how soon a call is left when the engine stops */
#define HEALTH_TIMEOUT_MS 2000
#define HEALTH_POLL_MS 100  /* while not ready */
#define HEALTH_IDLE_MS 1000 /* while nothing runs */
#define STEP_MESSAGE_BYTES (64u << 20)

/* Router's methods, in the order of conclave.proto. */
enum { METHOD_HEALTH = 0, METHOD_STEP = 3 };

/* A step the router was asked for. */
typedef struct flight {
    step_plan plan;
    uint64_t start_ns;
    rpc_pending *call;
    step_message message;
} flight;

struct engine {
    engine_config config;
    uint32_t eos_ids[SEQUENCE_EOS_MAX];
    rpc_client *router;
    engine_metrics metrics;
    pthread_t thread;

    pthread_mutex_t lock; /* guards scheduler, reserved, aborts, detail */
    scheduler *scheduler; /* NULL until the router has told its limits */
    uint32_t reserved;
    seq_id *aborts; /* [abort_max] */
    uint32_t abort_count, abort_max;
    char detail[192];
    char refusal[256]; /* written once, before `refused` is set */

    _Atomic uint32_t bell;
    _Atomic bool stopping, ready, refused;
    _Atomic uint32_t max_model_len;

    /* Engine thread only. */
    scheduler_config limits; /* what the first router said; every later one must say the same */
    uint64_t router_incarnation;
    uint64_t life;                   /* rises with every start over */
    uint64_t step;                   /* of this life */
    flight flights[STEPS_IN_FLIGHT]; /* a ring */
    uint32_t first_flight, flight_count;
    uint64_t last_step_ns, last_end_ns;
    seq_outcome *outcomes;
    sequence **told; /* [max_num_seqs] scratch */
};

/* ---- a step ---- */

/* Every running sequence goes back to waiting, and the next step is a first one: the router may or
 * may not have seen those that failed, and a first step is all it takes after either. */
static void
start_over_locked(engine *e)
{
    scheduler_rollback(e->scheduler);
    e->life++;
    e->step = 0;
}

/* Leave the calls that are under way. */
static void
leave_flights(engine *e)
{
    for (; e->flight_count > 0; e->flight_count--) {
        ProtobufCMessage *response;
        rpc_pending_finish(e->flights[e->first_flight].call, &response, NULL, NULL);
        rpc_response_free(response);
        e->first_flight = (e->first_flight + 1) % STEPS_IN_FLIGHT;
    }
}

/* A plan's pointers are stale once it was committed or rolled back: keep its sequences. */
static void
keep_sequences(engine *e, const step_plan *plan)
{
    for (uint32_t i = 0; i < plan->count; i++) {
        e->told[i] = plan->work[i].user;
    }
}

/* The router refuses this step: its sequences can't go on. */
static void
end_planned(engine *e, const step_plan *plan, const char *why)
{
    const uint32_t count = plan->count;
    keep_sequences(e, plan);
    leave_flights(e);
    pthread_mutex_lock(&e->lock);
    start_over_locked(e);
    for (uint32_t i = 0; i < count; i++) {
        if (e->told[i] != NULL) scheduler_abort(e->scheduler, e->told[i]->id);
    }
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < count; i++) {
        if (e->told[i] != NULL) sequence_end(e->told[i], FINISH_ERROR, why);
    }
}

static void
lose_router(engine *e, const char *why)
{
    if (!atomic_load(&e->stopping)) LOG_WARN("engine", "the router is not serving: %s", why);
    atomic_store(&e->ready, false);
    leave_flights(e);
    pthread_mutex_lock(&e->lock);
    snprintf(e->detail, sizeof e->detail, "%.180s", why);
    start_over_locked(e);
    pthread_mutex_unlock(&e->lock);
}

/* Tell the sink what was sampled, and find out whether the sequence goes on. */
static void
tell_token(const engine *e, sequence *q, const seq_work *w, const Conclave__SeqResult *result,
           seq_outcome *outcome)
{
    const finish_reason finish = scheduler_finish_with(e->scheduler, w, result->token);
    outcome->token = result->token;
    outcome->stop = sequence_tell_token(q, w, result, finish);
}

static void
finish_step(engine *e, const step_plan *plan, const Conclave__StepReply *reply)
{
    const uint32_t count = plan->count;
    keep_sequences(e, plan);
    for (uint32_t i = 0; i < count; i++) {
        const seq_work *w = &plan->work[i];
        e->outcomes[i] = (seq_outcome){0};
        if (e->told[i] == NULL) continue; /* it ended meanwhile */
        sequence_tell_prompt_logprobs(e->told[i], w, reply->results[i]);
        if (w->sample) tell_token(e, e->told[i], w, reply->results[i], &e->outcomes[i]);
    }
    pthread_mutex_lock(&e->lock);
    scheduler_commit(e->scheduler, e->outcomes);
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < count; i++) {
        if (e->outcomes[i].finished != FINISH_NONE) free(e->told[i]);
    }
}

/* Plan a step and ask for it.  Returns false when there was nothing to run. */
static bool
launch_step(engine *e)
{
    flight *f = &e->flights[(e->first_flight + e->flight_count) % STEPS_IN_FLIGHT];
    pthread_mutex_lock(&e->lock);
    scheduler_plan(e->scheduler, &f->plan);
    pthread_mutex_unlock(&e->lock);
    if (f->plan.count == 0) return false;

    Conclave__StepRequest *request = &f->message.request;
    step_message_build(&f->message, &f->plan);
    request->step = ++e->step;
    request->life = e->life;
    request->router_incarnation = e->router_incarnation;
    f->start_ns = clock_now_ns();
    f->call = rpc_call_begin(e->router, METHOD_STEP, &request->base, STEP_TIMEOUT_MS, &e->bell);
    if (f->call == NULL)
        lose_router(e, "out of memory");
    else
        e->flight_count++;
    return true;
}

static void
note_step_time(engine *e, const flight *f, const Conclave__StepReply *reply)
{
    const uint64_t now = clock_now_ns();
    const uint64_t start = f->start_ns > e->last_end_ns ? f->start_ns : e->last_end_ns;
    e->last_step_ns = now - start;
    e->last_end_ns = now;
    engine_metrics_step(&e->metrics, f->plan.token_count, now - start, reply->step_ns,
                        reply->expert_wait_ns);
}

/* The oldest step's answer is there. */
static void
land_step(engine *e)
{
    flight *f = &e->flights[e->first_flight];
    ProtobufCMessage *response;
    rpc_status status;
    errbuf eb = {{0}};
    rpc_pending_finish(f->call, &response, &status, &eb);
    e->first_flight = (e->first_flight + 1) % STEPS_IN_FLIGHT;
    e->flight_count--;
    const Conclave__StepReply *reply = (const void *)response;
    if (status == RPC_OK &&
        !step_message_is_answered(&f->message, &f->plan, e->config.vocab_size, reply)) {
        status = RPC_INTERNAL;
        snprintf(eb.text, sizeof eb.text, "the router's answer does not fit the step");
    }
    if (status == RPC_UNAVAILABLE || status == RPC_DEADLINE_EXCEEDED || status == RPC_CANCELLED) {
        lose_router(e, eb.text);
    } else if (status != RPC_OK) {
        LOG_ERROR("engine", "step refused step=%llu: %s",
                  (unsigned long long)f->message.request.step, eb.text);
        end_planned(e, &f->plan, eb.text);
    } else {
        note_step_time(e, f, reply);
        finish_step(e, &f->plan, reply);
    }
    rpc_response_free(response);
}

/* Whether the oldest step takes suspiciously long and nobody wants its tokens any more. */
static bool
is_unwanted(const engine *e, uint64_t now)
{
    const flight *f = &e->flights[e->first_flight];
    if (now - f->start_ns < STEP_PATIENCE_MS * NS_PER_MS) return false;
    for (uint32_t i = 0; i < f->plan.count; i++) {
        if (f->plan.work[i].user != NULL) return false;
    }
    return true;
}

/* When to plan the step that runs ahead of the oldest one's answer: late, so that it takes in who
 * arrives meanwhile, but well before the router would fall idle. */
static uint64_t
ahead_due_ns(const engine *e)
{
    const uint64_t start = e->flights[e->first_flight].start_ns;
    const uint64_t begin = start > e->last_end_ns ? start : e->last_end_ns;
    return begin + e->last_step_ns / 4 * 3;
}

/* One look at the steps in flight; true if something was done, else *until_ns says when to look
 * again, unless the bell rings. */
static bool
run_steps(engine *e, uint64_t *until_ns)
{
    const uint64_t now = clock_now_ns();
    *until_ns = now + CALL_POLL_MS * NS_PER_MS;
    if (e->flight_count > 0 && rpc_pending_done(e->flights[e->first_flight].call)) {
        land_step(e);
        return true;
    }
    if (e->flight_count > 0 && is_unwanted(e, now)) {
        lose_router(e, "a step takes too long, and all its requests were given up");
        return true;
    }
    if (e->flight_count == STEPS_IN_FLIGHT || !atomic_load(&e->ready)) return false;
    if (e->flight_count > 0) {
        const uint64_t due = ahead_due_ns(e);
        if (now < due) {
            if (due < *until_ns) *until_ns = due;
            return false;
        }
    }
    return launch_step(e);
}

/* ---- the router's health ---- */

static void
free_steps(engine *e)
{
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        step_message_fini(&e->flights[i].message);
    }
    free(e->outcomes);
    free(e->told);
    e->outcomes = NULL;
    e->told = NULL;
}

static bool
make_steps(engine *e, uint32_t max_num_seqs)
{
    bool whole = true;
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        if (step_message_init(&e->flights[i].message, max_num_seqs)) whole = false;
    }
    e->outcomes = calloc(max_num_seqs, sizeof *e->outcomes);
    e->told = calloc(max_num_seqs, sizeof *e->told);
    return whole && e->outcomes && e->told;
}

static moe_err
make_scheduler(engine *e, const Conclave__HealthReply *h, errbuf *eb)
{
    const uint32_t n = h->max_num_seqs;
    /* Preempted sequences wait too: room for them, so that what was admitted is never refused. */
    scheduler_config c = {.max_num_seqs = n,
                          .max_num_batched_tokens = h->max_num_batched_tokens,
                          .max_model_len = h->max_model_len,
                          .max_waiting = e->config.max_waiting + n,
                          .kv_block_count = h->kv_block_count,
                          .kv_block_tokens = h->kv_block_tokens,
                          .prefix_caching = e->config.prefix_caching,
                          .eos_count = e->config.eos_count};
    memcpy(c.eos_ids, e->eos_ids, sizeof c.eos_ids);
    scheduler *s;
    const moe_err err = scheduler_create(&s, &c, eb);
    if (err) return err;

    const uint32_t abort_max = c.max_waiting + n;
    seq_id *aborts = calloc(abort_max, sizeof *aborts);
    if (!make_steps(e, n) || aborts == NULL) {
        free_steps(e);
        scheduler_free(s);
        free(aborts);
        return err_set(eb, MOE_ENOMEM, "no memory for %u sequences", n);
    }
    e->limits = c;
    pthread_mutex_lock(&e->lock);
    e->scheduler = s;
    e->aborts = aborts;
    e->abort_max = abort_max;
    pthread_mutex_unlock(&e->lock);
    atomic_store(&e->max_model_len, h->max_model_len);
    return MOE_OK;
}

static moe_err
check_identity(const engine *e, const Conclave__HealthReply *h, errbuf *eb)
{
    if (strcmp(h->version, CONCLAVE_VERSION) != 0)
        return err_set(eb, MOE_EMISMATCH, "the router runs version %.32s, this frontend %s",
                       h->version, CONCLAVE_VERSION);
    if (h->model == NULL ||
        (e->config.model_fingerprint != 0 && h->model->fingerprint != e->config.model_fingerprint))
        return err_set(eb, MOE_EMISMATCH, "the router serves another model than this frontend");
    return MOE_OK;
}

/* The scheduler was made for the first router's limits; its sequences may not fit others. */
static moe_err
check_limits(const engine *e, const Conclave__HealthReply *h, errbuf *eb)
{
    const scheduler_config *c = &e->limits;
    if (h->max_num_seqs == c->max_num_seqs &&
        h->max_num_batched_tokens == c->max_num_batched_tokens &&
        h->max_model_len == c->max_model_len && h->kv_block_count == c->kv_block_count &&
        h->kv_block_tokens == c->kv_block_tokens)
        return MOE_OK;
    return err_set(eb, MOE_EMISMATCH,
                   "the router came back with other limits: %u sequences, %u tokens a step, %u "
                   "tokens of context, %u KV blocks of %u; this frontend serves %u, %u, %u, %u of "
                   "%u",
                   h->max_num_seqs, h->max_num_batched_tokens, h->max_model_len, h->kv_block_count,
                   h->kv_block_tokens, c->max_num_seqs, c->max_num_batched_tokens, c->max_model_len,
                   c->kv_block_count, c->kv_block_tokens);
}

static bool
is_stopping(void *arg)
{
    engine *e = arg;
    return atomic_load(&e->stopping);
}

static void
check_health(engine *e)
{
    const Conclave__HealthRequest request = CONCLAVE__HEALTH_REQUEST__INIT;
    ProtobufCMessage *response;
    errbuf eb = {{0}};
    moe_err err = rpc_call_watched(e->router, METHOD_HEALTH, &request.base, HEALTH_TIMEOUT_MS,
                                   is_stopping, e, CALL_POLL_MS, &response, NULL, &eb);
    const Conclave__HealthReply *h = (const void *)response;
    bool ready = false, refused = false;
    if (!err) {
        err = check_identity(e, h, &eb);
        if (!err) err = e->scheduler == NULL ? make_scheduler(e, h, &eb) : check_limits(e, h, &eb);
        refused = err != MOE_OK;
    }
    if (!err) {
        ready = h->ready;
        snprintf(eb.text, sizeof eb.text, "%s", h->detail);
        if (h->incarnation != e->router_incarnation) {
            pthread_mutex_lock(&e->lock);
            start_over_locked(e); /* its KV cache is empty */
            pthread_mutex_unlock(&e->lock);
            e->router_incarnation = h->incarnation;
        }
    }
    pthread_mutex_lock(&e->lock);
    snprintf(e->detail, sizeof e->detail, "%.180s", eb.text);
    pthread_mutex_unlock(&e->lock);
    if (refused) { /* the text first: engine_refusal() reads it once it sees the flag */
        snprintf(e->refusal, sizeof e->refusal, "%.240s", eb.text);
        atomic_store(&e->refused, true);
    }
    if (ready && !atomic_load(&e->ready)) LOG_INFO("engine", "the router is ready");
    atomic_store(&e->ready, ready);
    rpc_response_free(response);
}

/* ---- the thread ---- */

static void
apply_aborts(engine *e)
{
    if (e->scheduler == NULL) return;
    for (;;) {
        pthread_mutex_lock(&e->lock);
        sequence *q = NULL;
        const bool any = e->abort_count > 0;
        if (any) q = scheduler_abort(e->scheduler, e->aborts[--e->abort_count]);
        pthread_mutex_unlock(&e->lock);
        if (!any) return;
        if (q != NULL) sequence_end(q, FINISH_ABORT, NULL);
    }
}

static void
publish_stats(engine *e)
{
    if (e->scheduler == NULL) return;
    scheduler_stats stats;
    pthread_mutex_lock(&e->lock);
    scheduler_get_stats(e->scheduler, &stats);
    pthread_mutex_unlock(&e->lock);
    engine_metrics_scheduler(&e->metrics, &stats);
}

static void
abort_all(engine *e)
{
    if (e->scheduler == NULL) return;
    pthread_mutex_lock(&e->lock);
    start_over_locked(e); /* nothing is in flight: what is aborted is gone at once */
    pthread_mutex_unlock(&e->lock);
    for (;;) {
        pthread_mutex_lock(&e->lock);
        sequence *q = scheduler_abort_any(e->scheduler);
        pthread_mutex_unlock(&e->lock);
        if (q == NULL) return;
        sequence_end(q, FINISH_ABORT, NULL);
    }
}

/* Nothing is in flight and nothing can run: ask the router how it is, then wait.  A router that was
 * just lost is not asked at once: it may be closing its socket. */
static void
idle(engine *e, uint32_t seen, bool just_lost)
{
    const bool was_ready = atomic_load(&e->ready);
    if (!just_lost && !atomic_load(&e->refused)) check_health(e);
    const bool ready = atomic_load(&e->ready);
    if ((ready && !was_ready) || atomic_load(&e->stopping)) return;
    const uint64_t wait_ms = ready ? HEALTH_IDLE_MS : HEALTH_POLL_MS;
    futex_sleep_change(&e->bell, seen, clock_now_ns() + wait_ms * NS_PER_MS);
}

static void *
engine_main(void *arg)
{
    engine *e = arg;
    while (!atomic_load(&e->stopping)) {
        const uint32_t seen = atomic_load(&e->bell);
        const bool was_ready = atomic_load(&e->ready);
        uint64_t until_ns;
        apply_aborts(e);
        const bool ran = run_steps(e, &until_ns);
        if (ran) publish_stats(e);
        if (e->flight_count > 0) {
            if (!ran) futex_wait_change(&e->bell, seen, until_ns);
            continue;
        }
        const bool just_lost = was_ready && !atomic_load(&e->ready);
        if (ran && !just_lost) continue;
        publish_stats(e);
        idle(e, seen, just_lost);
    }
    atomic_store(&e->ready, false); /* a health check may have come in between */
    leave_flights(e);
    abort_all(e);
    publish_stats(e);
    return NULL;
}

/* ---- what other threads call ---- */

moe_err
engine_start(engine **out, const engine_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->eos_count > SEQUENCE_EOS_MAX)
        return err_set(eb, MOE_ERANGE, "%u end-of-sequence tokens, at most 8", config->eos_count);
    engine *e = calloc(1, sizeof *e);
    if (e == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    e->config = *config;
    for (uint32_t i = 0; i < config->eos_count; i++) {
        e->eos_ids[i] = config->eos_ids[i];
    }
    pthread_mutex_init(&e->lock, NULL);
    snprintf(e->detail, sizeof e->detail, "waiting for the router");
    engine_metrics_init(&e->metrics, config->metrics, config->labels);
    moe_err err = rpc_client_open(&e->router,
                                  &(rpc_client_options){.url = config->router_url,
                                                        .service = &conclave__router__descriptor,
                                                        .message_bytes_max = STEP_MESSAGE_BYTES},
                                  eb);
    if (!err && pthread_create(&e->thread, NULL, engine_main, e) != 0) {
        rpc_client_close(e->router);
        err = err_set(eb, MOE_EIO, "can't start the engine's thread");
    }
    if (err) {
        pthread_mutex_destroy(&e->lock);
        free(e);
        return err;
    }
    pthread_setname_np(e->thread, "engine");
    *out = e;
    return MOE_OK;
}

void
engine_stop(engine *e)
{
    /* Under the lock, so that no submit slips in after the thread's last look. */
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->stopping, true);
    pthread_mutex_unlock(&e->lock);
    atomic_store(&e->ready, false);
    futex_bump(&e->bell);
    pthread_join(e->thread, NULL);
}

void
engine_free(engine *e)
{
    if (e == NULL) return;
    rpc_client_close(e->router);
    scheduler_free(e->scheduler);
    free_steps(e);
    free(e->aborts);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

moe_err
engine_submit(engine *e, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
              gen_sink *sink, void *user, seq_id *out, errbuf *eb)
{
    *out = 0;
    sequence *q = sequence_create(prompt_len, params, e->eos_ids, e->config.eos_count, sink, user);
    if (q == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err;
    pthread_mutex_lock(&e->lock);
    if (atomic_load(&e->stopping) || e->scheduler == NULL)
        err = err_set(eb, MOE_ECLOSED, "the server is not serving");
    else
        err = scheduler_add(e->scheduler, prompt, prompt_len, &q->params, q, &q->id, eb);
    if (!err) {
        *out = q->id;
        if (e->reserved > 0) e->reserved--;
    }
    pthread_mutex_unlock(&e->lock);
    if (err)
        free(q);
    else
        futex_bump(&e->bell);
    return err;
}

moe_err
engine_reserve(engine *e, uint32_t count)
{
    moe_err err = MOE_OK;
    pthread_mutex_lock(&e->lock);
    scheduler_stats stats = {0};
    if (e->scheduler == NULL)
        err = MOE_ECLOSED;
    else
        scheduler_get_stats(e->scheduler, &stats);
    if (!err && (uint64_t)stats.waiting + e->reserved + count > e->config.max_waiting)
        err = MOE_EBUSY;
    if (!err) e->reserved += count;
    pthread_mutex_unlock(&e->lock);
    return err;
}

void
engine_unreserve(engine *e, uint32_t count)
{
    pthread_mutex_lock(&e->lock);
    e->reserved -= count < e->reserved ? count : e->reserved;
    pthread_mutex_unlock(&e->lock);
}

void
engine_abort(engine *e, seq_id id)
{
    pthread_mutex_lock(&e->lock);
    bool known = false;
    for (uint32_t i = 0; i < e->abort_count && !known; i++) {
        known = e->aborts[i] == id;
    }
    if (!known && e->abort_count < e->abort_max) e->aborts[e->abort_count++] = id;
    pthread_mutex_unlock(&e->lock);
    futex_bump(&e->bell);
}

bool
engine_ready(engine *e, char *detail, size_t detail_size)
{
    if (detail != NULL && detail_size > 0) {
        pthread_mutex_lock(&e->lock);
        snprintf(detail, detail_size, "%s", e->detail);
        pthread_mutex_unlock(&e->lock);
    }
    return atomic_load(&e->ready);
}

uint32_t
engine_max_model_len(const engine *e)
{
    return atomic_load(&((engine *)(uintptr_t)e)->max_model_len);
}

const char *
engine_refusal(engine *e)
{
    return atomic_load(&e->refused) ? e->refusal : NULL;
}
