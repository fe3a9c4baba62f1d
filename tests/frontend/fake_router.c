#include "tests/frontend/fake_router.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"

#define BLOCK_TOKENS 4u

uint32_t
fake_router_next(const uint32_t *history, uint32_t count)
{
    uint64_t h = 17;
    for (uint32_t i = 0; i < count; i++) {
        h = hash_combine(h, history[i]);
    }
    return (uint32_t)(h >> 20) % FAKE_VOCAB;
}

static bool
refuse(fake_router *r, const char *why)
{
    r->refused++;
    snprintf(r->refusal, sizeof r->refusal, "%s", why);
    return false;
}

/* The rules of a step, in short: see router/stepper.c. */
static bool
apply(fake_router *r, const Conclave__SeqWork *w)
{
    const uint32_t count = step_work_tokens(w);
    if (w->slot >= r->max_num_seqs || count == 0) return refuse(r, "slot or tokens");
    fake_slot *slot = &r->slots[w->slot];
    if (w->token_is_last_sampled && (w->init != NULL || w->n_tokens > 0 || !slot->sampled))
        return refuse(r, "no sampled token to feed");
    if (w->init != NULL) {
        if (w->init->n_cached_tokens != w->start_pos) return refuse(r, "cached tokens");
        *slot = (fake_slot){
            .used = true, .known = w->start_pos, .num_logprobs = w->init->sampling->num_logprobs};
        for (uint32_t i = 0; i < w->start_pos; i++) {
            slot->history[i] = w->init->cached_tokens[i];
        }
    }
    if (!slot->used || slot->known != w->start_pos) return refuse(r, "start position");
    if (w->n_blocks > 0) {
        if (w->block_start > slot->block_count) return refuse(r, "block_start");
        slot->block_count = w->block_start + (uint32_t)w->n_blocks;
    }
    if (slot->known + count > slot->block_count * BLOCK_TOKENS ||
        slot->known + count > r->max_model_len)
        return refuse(r, "blocks");
    memcpy(slot->history + slot->known, w->token_is_last_sampled ? &slot->last_sampled : w->tokens,
           count * sizeof(uint32_t));
    slot->known += count;
    slot->sampled = false;
    return true;
}

typedef struct answer {
    Conclave__StepReply reply;
    Conclave__SeqResult results[FAKE_SEQS_MAX + 1];
    Conclave__SeqResult *pointers[FAKE_SEQS_MAX + 1];
    Conclave__TokenLogprobs logprobs[FAKE_SEQS_MAX + FAKE_TOKENS_MAX];
    Conclave__TokenLogprobs *prompt[FAKE_TOKENS_MAX];
    uint32_t top[2];
    double top_logprobs[2];
    uint32_t logprob_count, prompt_count;
    uint8_t routed[FAKE_TOKENS_MAX * FAKE_LAYERS * FAKE_TOP_K];
    size_t routed_bytes;
} answer;

uint8_t
fake_router_expert(const uint32_t *history, uint32_t count)
{
    return (uint8_t)fake_router_next(history, count);
}

/* Of the tokens that this work fed. */
static void
tell_routed(const fake_slot *slot, const Conclave__SeqWork *w, answer *a, Conclave__SeqResult *out)
{
    out->routed_experts.data = a->routed + a->routed_bytes;
    for (uint32_t p = w->start_pos; p < slot->known; p++) {
        for (uint32_t i = 0; i < FAKE_LAYERS * FAKE_TOP_K; i++)
            a->routed[a->routed_bytes++] = fake_router_expert(slot->history, p + 1);
    }
    out->routed_experts.len = (slot->known - w->start_pos) * FAKE_LAYERS * FAKE_TOP_K;
}

static Conclave__TokenLogprobs *
logprobs_of(answer *a, uint32_t token, uint32_t position, int32_t top)
{
    Conclave__TokenLogprobs *l = &a->logprobs[a->logprob_count++];
    conclave__token_logprobs__init(l);
    l->token = token;
    l->rank = 1;
    l->logprob = -(double)position;
    if (top > 0) {
        l->n_top_ids = l->n_top_logprobs = 2;
        l->top_ids = a->top;
        l->top_logprobs = a->top_logprobs;
    }
    return l;
}

static void
compute(fake_router *r, const Conclave__SeqWork *w, answer *a, Conclave__SeqResult *out)
{
    fake_slot *slot = &r->slots[w->slot];
    conclave__seq_result__init(out);
    out->slot = w->slot;
    for (uint32_t i = 0; w->prompt_logprobs && i < w->n_tokens; i++) {
        if (i + 1 == w->n_tokens && !w->has_next_token) break;
        const uint32_t next = i + 1 < w->n_tokens ? w->tokens[i + 1] : w->next_token;
        if (out->n_prompt_logprobs++ == 0) out->prompt_logprobs = a->prompt + a->prompt_count;
        a->prompt[a->prompt_count++] =
            logprobs_of(a, next, w->start_pos + i + 1, slot->num_logprobs);
    }
    if (w->routed_experts) tell_routed(slot, w, a, out);
    if (!w->sample) return;
    out->sampled = true;
    out->token = slot->last_sampled = fake_router_next(slot->history, slot->known);
    slot->sampled = true;
    if (slot->num_logprobs >= 0)
        out->logprobs = logprobs_of(a, out->token, slot->known, slot->num_logprobs);
}

static void
spoil(answer *a, fake_spoil how)
{
    Conclave__SeqResult *first = &a->results[0];
    switch (how) {
    case SPOIL_SLOT: first->slot++; break;
    case SPOIL_COUNT: a->reply.n_results--; break;
    case SPOIL_TOKEN: first->token = FAKE_VOCAB; break;
    case SPOIL_NOT_SAMPLED: first->sampled = false; break;
    case SPOIL_NO_LOGPROBS: first->logprobs = NULL; break;
    case SPOIL_TOP_ID: a->top[1] = FAKE_VOCAB; break;
    case SPOIL_STEP: a->reply.step++; break;
    case SPOIL_PROMPT_LOGPROBS: first->n_prompt_logprobs--; break;
    case SPOIL_ROUTED: first->routed_experts.len--; break;
    default: break;
    }
}

/* Answer one step; with the lock held. */
static void
run(fake_router *r, fake_step step)
{
    static _Thread_local answer a; /* large; routers of one test run on several threads */
    const Conclave__StepRequest *q = step.request;
    a = (answer){.reply = CONCLAVE__STEP_REPLY__INIT, .top = {1, 2}};
    errbuf eb = {{0}};
    moe_err turn =
        step_order_check(&r->order, r->incarnation, rpc_call_incarnation(step.call), q, &eb);
    if (turn == MOE_ECLOSED) {
        rpc_fail(step.call, RPC_UNAVAILABLE, "%s", eb.text);
        return;
    }
    bool good = turn == MOE_OK || refuse(r, eb.text);
    uint32_t tokens = 0;
    for (size_t i = 0; i < q->n_work && good; i++) {
        good = apply(r, q->work[i]);
        tokens += step_work_tokens(q->work[i]);
    }
    if (good && tokens > r->max_num_batched_tokens) good = refuse(r, "too many tokens");
    for (size_t i = 0; i < q->n_work && good; i++) {
        compute(r, q->work[i], &a, &a.results[i]);
        a.pointers[i] = &a.results[i];
    }
    const bool lost = r->lose_every != 0 && ++r->steps % r->lose_every == 0;
    r->order = (step_order){.client = rpc_call_incarnation(step.call),
                            .life = q->life,
                            .step = q->step,
                            .failed = lost || !good};
    a.reply.step = q->step;
    a.reply.n_results = q->n_work;
    a.reply.results = a.pointers;
    spoil(&a, r->spoil);
    r->spoil = SPOIL_NOTHING;
    if (!good)
        rpc_fail(step.call, RPC_INVALID_ARGUMENT, "broken rule: %s", r->refusal);
    else if (lost)
        rpc_fail(step.call, RPC_UNAVAILABLE, "a worker was lost");
    else
        rpc_reply(step.call, &a.reply.base), r->computed++;
}

static fake_step
take_oldest(fake_router *r)
{
    const fake_step oldest = r->held[0];
    r->held_count--;
    memmove(r->held, r->held + 1, r->held_count * sizeof r->held[0]);
    return oldest;
}

static bool
overtook(const fake_router *r)
{
    return r->held_count == 1 && r->held[0].request->router_incarnation == r->incarnation &&
           step_order_overtook(&r->order, rpc_call_incarnation(r->held[0].call),
                               r->held[0].request);
}

static void
run_held(fake_router *r, uint32_t at_most)
{
    while (at_most-- > 0 && r->held_count > 0 && !overtook(r)) {
        run(r, take_oldest(r));
    }
}

static void
keep(fake_router *r, fake_step step)
{
    cr_assert_lt(r->held_count, FAKE_STEPS_MAX, "more steps in flight than agreed");
    uint32_t at = r->held_count++;
    for (; at > 0 && r->held[at - 1].request->life == step.request->life &&
           r->held[at - 1].request->step > step.request->step;
         at--) {
        r->held[at] = r->held[at - 1];
    }
    r->held[at] = step;
    pthread_cond_broadcast(&r->changed);
}

static void
router_step(Conclave__Router_Service *base, const Conclave__StepRequest *q,
            Conclave__StepReply_Closure closure, void *call)
{
    (void)closure;
    fake_router *r = (fake_router *)base;
    pthread_mutex_lock(&r->lock);
    if (r->fail != RPC_OK) {
        rpc_fail(call, r->fail, "told to fail");
        r->order = (step_order){rpc_call_incarnation(call), q->life, q->step, true};
        r->fail = RPC_OK;
    } else {
        keep(r, (fake_step){call, q});
        if (!r->hold) run_held(r, FAKE_STEPS_MAX);
    }
    pthread_mutex_unlock(&r->lock);
}

static void
router_health(Conclave__Router_Service *base, const Conclave__HealthRequest *q,
              Conclave__HealthReply_Closure closure, void *call)
{
    (void)q;
    fake_router *r = (fake_router *)base;
    Conclave__HealthReply reply = CONCLAVE__HEALTH_REPLY__INIT;
    Conclave__ModelIdentity model = CONCLAVE__MODEL_IDENTITY__INIT;
    pthread_mutex_lock(&r->lock);
    model.fingerprint = r->fingerprint;
    model.num_layers = FAKE_LAYERS;
    model.top_k = FAKE_TOP_K;
    reply.routed_id_bytes = 1;
    reply.model = &model;
    reply.ready = r->ready;
    reply.detail = (char *)(uintptr_t)(r->ready ? "ready" : "1 of 2 workers are ready");
    reply.incarnation = r->incarnation;
    reply.version = (char *)(uintptr_t)r->version;
    reply.kv_block_count = r->kv_block_count;
    reply.kv_block_tokens = BLOCK_TOKENS;
    reply.max_num_seqs = r->max_num_seqs;
    reply.max_num_batched_tokens = r->max_num_batched_tokens;
    reply.max_model_len = r->max_model_len;
    pthread_mutex_unlock(&r->lock);
    closure(&reply, call);
}

void
fake_router_init(fake_router *r)
{
    static uint32_t serial;
    *r = (fake_router){.incarnation = 100,
                       .fingerprint = 7,
                       .version = CONCLAVE_VERSION,
                       .ready = true,
                       .max_num_seqs = 4,
                       .max_num_batched_tokens = 16,
                       .max_model_len = 64,
                       .kv_block_count = 64};
    conclave__router__init(&r->base, NULL);
    r->base.health = router_health;
    r->base.step = router_step;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    const char *dir = getenv("TMPDIR");
    snprintf(r->url, sizeof r->url, "ipc://%s/conclave-fake-router-%d-%u.sock",
             dir != NULL ? dir : "/tmp", (int)getpid(), serial++);
}

void
fake_router_serve(fake_router *r)
{
    errbuf eb = {{0}};
    const rpc_server_options options = {.url = r->url, .service = &r->base.base};
    cr_assert_eq(rpc_server_start(&r->server, &options, &eb), MOE_OK, "%s", eb.text);
}

void
fake_router_kill(fake_router *r)
{
    rpc_server_stop(r->server);
    r->server = NULL;
    pthread_mutex_lock(&r->lock);
    r->hold = false;
    while (r->held_count > 0) {
        rpc_fail(take_oldest(r).call, RPC_UNAVAILABLE, "killed");
    }
    pthread_mutex_unlock(&r->lock);
}

void
fake_router_forget(fake_router *r)
{
    pthread_mutex_lock(&r->lock);
    r->incarnation++;
    r->order = (step_order){0};
    memset(r->slots, 0, sizeof r->slots);
    pthread_mutex_unlock(&r->lock);
}

void
fake_router_restart(fake_router *r)
{
    fake_router_forget(r);
    fake_router_serve(r);
}

void
fake_router_hold(fake_router *r)
{
    pthread_mutex_lock(&r->lock);
    r->hold = true;
    pthread_mutex_unlock(&r->lock);
}

void
fake_router_wait_held(fake_router *r)
{
    pthread_mutex_lock(&r->lock);
    while (r->held_count == 0)
        pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

void
fake_router_pass(fake_router *r)
{
    pthread_mutex_lock(&r->lock);
    run_held(r, 1);
    pthread_mutex_unlock(&r->lock);
}

void
fake_router_release(fake_router *r)
{
    pthread_mutex_lock(&r->lock);
    r->hold = false;
    run_held(r, FAKE_STEPS_MAX);
    pthread_mutex_unlock(&r->lock);
}
