#include "tests/frontend/fake_router.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "conclave.pb-c.h"

#include "common/hash.h"
#include "proto/rpc.h"

typedef struct fake_slot {
    uint32_t known;
    bool want_logprobs;
    uint32_t tokens[FAKE_MODEL_LEN];
    Conclave__TokenLogprobs sampled;
} fake_slot;

struct fake_router {
    fake_router_options options;
    Conclave__Router_Service rpc;
    rpc_server *server;
    pthread_mutex_t lock; /* guards slots */
    fake_slot slots[FAKE_SEQS];
    _Atomic uint32_t steps;
};

static fake_router *
self_of(Conclave__Router_Service *rpc)
{
    return (fake_router *)(void *)((char *)rpc - offsetof(fake_router, rpc));
}

static uint32_t
next_token(const uint32_t *tokens, uint32_t count)
{
    return 10 + (uint32_t)(hash_bytes(1, tokens, count * sizeof *tokens) % (FAKE_VOCAB - 10));
}

void
fake_router_expect(const uint32_t *prompt, uint32_t prompt_len, uint32_t count, uint32_t *out)
{
    uint32_t tokens[FAKE_MODEL_LEN];
    memcpy(tokens, prompt, prompt_len * sizeof *tokens);
    for (uint32_t i = 0; i < count; i++) {
        tokens[prompt_len + i] = out[i] = next_token(tokens, prompt_len + i);
    }
}

static void
on_health(Conclave__Router_Service *rpc, const Conclave__HealthRequest *request,
          Conclave__HealthReply_Closure closure, void *data)
{
    (void)request;
    const fake_router_options *o = &self_of(rpc)->options;
    Conclave__ModelIdentity model = CONCLAVE__MODEL_IDENTITY__INIT;
    Conclave__NumericClass numeric = CONCLAVE__NUMERIC_CLASS__INIT;
    Conclave__HealthReply reply = CONCLAVE__HEALTH_REPLY__INIT;
    model.fingerprint = o->fingerprint;
    reply.ready = !o->not_ready;
    reply.detail = (char *)(uintptr_t)(o->not_ready ? "loading" : "ready");
    reply.incarnation = o->incarnation;
    reply.version = (char *)(uintptr_t)(o->version ? o->version : CONCLAVE_VERSION);
    reply.model = &model;
    reply.numeric = &numeric;
    reply.kv_block_count = o->kv_blocks ? o->kv_blocks : FAKE_SEQS * FAKE_MODEL_LEN / 16;
    reply.kv_block_tokens = 16;
    reply.max_num_seqs = FAKE_SEQS;
    reply.max_num_batched_tokens = 32;
    reply.max_model_len = FAKE_MODEL_LEN;
    closure(&reply, data);
}

static bool
run_work(fake_router *r, const Conclave__SeqWork *w, Conclave__SeqResult *result)
{
    if (w->slot >= FAKE_SEQS) return false;
    fake_slot *slot = &r->slots[w->slot];
    if (w->init != NULL) {
        if (w->init->n_cached_tokens != w->start_pos) return false;
        slot->known = w->start_pos;
        slot->want_logprobs = w->init->sampling->num_logprobs >= 0;
        if (slot->known > 0)
            memcpy(slot->tokens, w->init->cached_tokens, slot->known * sizeof(uint32_t));
    }
    if (slot->known != w->start_pos || slot->known + w->n_tokens > FAKE_MODEL_LEN) return false;
    memcpy(slot->tokens + slot->known, w->tokens, w->n_tokens * sizeof(uint32_t));
    slot->known += (uint32_t)w->n_tokens;
    conclave__seq_result__init(result);
    result->slot = w->slot;
    result->sampled = w->sample;
    if (!w->sample) return true;
    result->token = next_token(slot->tokens, slot->known);
    conclave__token_logprobs__init(&slot->sampled);
    if (slot->want_logprobs) result->logprobs = &slot->sampled;
    return true;
}

/* One logprob entry per prompt position, whose "logprob" is minus the position. */
static void
add_prompt_logprobs(const Conclave__SeqWork *w, Conclave__SeqResult *result,
                    Conclave__TokenLogprobs *store, Conclave__TokenLogprobs **pointers)
{
    if (!w->prompt_logprobs) return;
    const size_t n = w->n_tokens - (w->has_next_token ? 0 : 1);
    for (size_t i = 0; i < n; i++) {
        conclave__token_logprobs__init(&store[i]);
        store[i].logprob = -(double)(w->start_pos + i + 1);
        pointers[i] = &store[i];
    }
    result->n_prompt_logprobs = n;
    result->prompt_logprobs = pointers;
}

static void
on_step(Conclave__Router_Service *rpc, const Conclave__StepRequest *request,
        Conclave__StepReply_Closure closure, void *data)
{
    fake_router *r = self_of(rpc);
    Conclave__SeqResult results[FAKE_SEQS], *pointers[FAKE_SEQS];
    Conclave__TokenLogprobs logprobs[FAKE_SEQS][FAKE_MODEL_LEN],
        *entries[FAKE_SEQS][FAKE_MODEL_LEN];
    Conclave__StepReply reply = CONCLAVE__STEP_REPLY__INIT;
    const uint32_t number = atomic_fetch_add(&r->steps, 1) + 1;
    if (request->router_incarnation != r->options.incarnation) {
        rpc_fail(data, RPC_UNAVAILABLE, "another router's cache");
        return;
    }
    if (r->options.refuse_after != 0 && number >= r->options.refuse_after) {
        rpc_fail(data, RPC_INVALID_ARGUMENT, "scripted refusal");
        return;
    }
    bool good = request->n_work <= FAKE_SEQS;
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < request->n_work && good; i++) {
        good = run_work(r, request->work[i], &results[i]);
        if (good) add_prompt_logprobs(request->work[i], &results[i], logprobs[i], entries[i]);
        pointers[i] = &results[i];
    }
    pthread_mutex_unlock(&r->lock);
    if (!good) {
        rpc_fail(data, RPC_INVALID_ARGUMENT, "the step breaks a rule");
        return;
    }
    reply.step = request->step;
    reply.n_results = request->n_work;
    reply.results = pointers;
    closure(&reply, data);
}

static void
on_register_worker(Conclave__Router_Service *rpc, const Conclave__RegisterRequest *request,
                   Conclave__RegisterReply_Closure closure, void *data)
{
    (void)rpc, (void)request, (void)closure;
    rpc_fail(data, RPC_UNIMPLEMENTED, "not here");
}

static void
on_heartbeat(Conclave__Router_Service *rpc, const Conclave__HeartbeatRequest *request,
             Conclave__HeartbeatReply_Closure closure, void *data)
{
    (void)rpc, (void)request, (void)closure;
    rpc_fail(data, RPC_UNIMPLEMENTED, "not here");
}

static void
on_stats(Conclave__Router_Service *rpc, const Conclave__StatsRequest *request,
         Conclave__RouterStats_Closure closure, void *data)
{
    (void)rpc, (void)request, (void)closure;
    rpc_fail(data, RPC_UNIMPLEMENTED, "not here");
}

static void
on_drain(Conclave__Router_Service *rpc, const Conclave__DrainRequest *request,
         Conclave__DrainReply_Closure closure, void *data)
{
    (void)rpc, (void)request, (void)closure;
    rpc_fail(data, RPC_UNIMPLEMENTED, "not here");
}

fake_router *
fake_router_start(const fake_router_options *options)
{
    fake_router *r = calloc(1, sizeof *r);
    cr_assert_not_null(r);
    r->options = *options;
    r->rpc = (Conclave__Router_Service)CONCLAVE__ROUTER__INIT(on_);
    pthread_mutex_init(&r->lock, NULL);
    errbuf eb = {{0}};
    cr_assert_eq(
        rpc_server_start(&r->server,
                         &(rpc_server_options){.url = options->url, .service = &r->rpc.base}, &eb),
        MOE_OK, "%s", eb.text);
    return r;
}

void
fake_router_stop(fake_router *r)
{
    rpc_server_stop(r->server);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

uint32_t
fake_router_steps(const fake_router *r)
{
    return atomic_load(&((fake_router *)(uintptr_t)r)->steps);
}
