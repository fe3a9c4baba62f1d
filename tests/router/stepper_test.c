/* stepper: a Step through the router's service, over RPC, on a tiny model with two workers: what it
 * answers, what it refuses, and what is left when a worker is lost in the middle. */
#include <criterion/criterion.h>

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cpu.h"
#include "common/hash.h"
#include "common/run_dir.h"
#include "proto/methods.h"
#include "router/sampler.h"
#include "router/service.h"
#include "tests/router/fake_worker.h"
#include "tests/router/shifted_clock.h"
#include "tests/support/mini_fleet.h"
#include "tests/support/paths.h"

#define WORKERS 2
#define INCARNATION 7
#define SEQS 3
#define MODEL_LEN 64
#define BLOCKS_PER_SEQ (MODEL_LEN / KV_BLOCK_TOKENS)
#define STEP_TOKENS 32
#define SILENT_MS 60000 /* of real time no test lasts so long */
#define CALLS_MAX 6
#define CROWD 5 /* calls behind a running step: one more than may wait */
#define SPARE 9 /* an index of the exchange that is no worker's */

/* A call of Step on its way, or answered. */
typedef struct step_call {
    bool done;
    rpc_status status;
    Conclave__StepReply *reply; /* NULL after an error */
    char error[MOE_ERR_TEXT_MAX];
} step_call;

static char model_dir[512];
static run_dir run;
static checkpoint *ckpt;
static const model_config *model;
static kernel_table kernels;
static pool *threads;
static transformer *tf;
static router_end *exchange;
static identity id;
static membership *members;
static stepper *steps;
static router_service *service;
static rpc_client *client;
static fake_worker workers[WORKERS];
static step_call calls[CALLS_MAX];
static uint32_t call_count;
static uint32_t routed_token_bytes;                      /* that the stepper tells of */
static uint64_t life;                                    /* of the frontend */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards calls[].done */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static errbuf eb;

/* ---- the cell ---- */

static void
nothing(void)
{
}

static void
start_router_with(exchange_choice choice, uint32_t redundant)
{
    const transformer_config sizes = {.attn_dtype = DTYPE_F32,
                                      .expert_dtype = DTYPE_F32,
                                      .kv_dtype = DTYPE_F32,
                                      .token_max = STEP_TOKENS,
                                      .seq_max = SEQS,
                                      .max_model_len = MODEL_LEN,
                                      .kv_block_count = SEQS * BLOCKS_PER_SEQ,
                                      .micro_batches = 2};
    moe_err err = transformer_create(&tf, ckpt, &kernels, threads, &sizes, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    const exchange_limits limits = transformer_exchange_limits(tf);
    err = router_end_create(&exchange, &limits, run.id, 0, INCARNATION, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = membership_create(&members,
                            &(membership_config){.worker_count = WORKERS,
                                                 .mode = WIRE_EP,
                                                 .num_redundant_experts = redundant,
                                                 .exchange = choice,
                                                 .worker_timeout_ms = SILENT_MS,
                                                 .load_timeout_ms = SILENT_MS,
                                                 .identity = &id,
                                                 .limits = limits,
                                                 .router_end = exchange,
                                                 .router_incarnation = INCARNATION},
                            &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = stepper_start(&steps,
                        &(stepper_config){.transformer = tf,
                                          .membership = members,
                                          .vocab_size = model->vocab_size,
                                          .max_num_seqs = SEQS,
                                          .max_num_batched_tokens = STEP_TOKENS,
                                          .max_model_len = MODEL_LEN,
                                          .kv_block_count = SEQS * BLOCKS_PER_SEQ,
                                          .layer_timeout_ms = SILENT_MS,
                                          .incarnation = INCARNATION,
                                          .routed_token_bytes = routed_token_bytes},
                        &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    char url[RUN_URL_MAX];
    run_dir_url(&run, "router", 0, url);
    err = router_service_start(&service,
                               &(router_service_config){.control_url = url,
                                                        .incarnation = INCARNATION,
                                                        .identity = &id,
                                                        .transformer = tf,
                                                        .membership = members,
                                                        .stepper = steps,
                                                        .on_drain = nothing},
                               &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = rpc_client_open(
        &client, &(rpc_client_options){.url = url, .service = &conclave__router__descriptor}, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
}

static void
start_router(exchange_choice choice)
{
    start_router_with(choice, 0);
}

static void
join(uint32_t w)
{
    const Conclave__RegisterRequest r = fake_worker_request(&workers[w]);
    cr_assert_eq(membership_on_register(members, &r, &eb), MOE_OK, "%s", eb.text);
}

static void
start_worker(uint32_t w, uint64_t incarnation)
{
    fake_worker_start(&workers[w], &(fake_worker_config){.id = w,
                                                         .incarnation = incarnation,
                                                         .run = run.id,
                                                         .dir = run.path,
                                                         .identity = &id,
                                                         .limits = transformer_exchange_limits(tf),
                                                         .checkpoint = ckpt,
                                                         .kernels = &kernels,
                                                         .dtype = DTYPE_F32});
    join(w);
}

static void
make_ready(void)
{
    membership_update(members, 0);
    membership_status s;
    membership_get_status(members, &s);
    cr_assert(s.ready, "%s", s.detail);
}

static void
start_workers(void)
{
    for (uint32_t w = 0; w < WORKERS; w++) {
        start_worker(w, 100 + w);
    }
    make_ready();
}

static void
setup(void)
{
    char dir[64] = "/tmp/conclave-steps-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    golden_path(model_dir, sizeof model_dir, "models/base");
    cr_assert_eq(checkpoint_open(&ckpt, model_dir, &eb), MOE_OK, "%s", eb.text);
    model = checkpoint_config(ckpt);
    kernel_table_init(&kernels, cpu_flags());
    identity_init(&id, ckpt, &kernels, DTYPE_F32, DTYPE_F32, DTYPE_F32);
    cr_assert_eq(pool_create(&threads, 1), MOE_OK);
    memset(workers, 0, sizeof workers);
    memset(calls, 0, sizeof calls);
    call_count = 0;
}

static void
teardown(void)
{
    rpc_client_close(client);
    router_service_stop(service);
    membership_close(members);
    stepper_stop(steps);
    membership_free(members);
    for (uint32_t w = 0; w < WORKERS; w++) {
        fake_worker_kill(&workers[w]);
    }
    router_end_free(exchange);
    transformer_free(tf);
    pool_free(threads);
    checkpoint_close(ckpt);
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        if (calls[i].reply != NULL) rpc_response_free(&calls[i].reply->base);
        calls[i].reply = NULL;
    }
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(stepper, .init = setup, .fini = teardown, .timeout = 60);

/* ---- sequences and requests ---- */

/* A sequence as the frontend knows it. */
typedef struct test_seq {
    uint32_t slot, prompt_len, count; /* tokens known */
    uint32_t tokens[MODEL_LEN];
    sampling_params params;
} test_seq;

static test_seq
draw_seq(uint32_t slot, uint32_t prompt_len, double temperature)
{
    test_seq q = {.slot = slot, .prompt_len = prompt_len, .count = prompt_len};
    for (uint32_t i = 0; i < prompt_len; i++) {
        q.tokens[i] = (uint32_t)(hash_combine(slot, i) % model->vocab_size);
    }
    q.params = sampler_default_params();
    q.params.temperature = temperature;
    q.params.repetition_penalty = 1.1;
    q.params.seed = 1000 + slot;
    return q;
}

/* A request under construction: everything it points to. */
typedef struct step_plan {
    Conclave__StepRequest request;
    Conclave__SeqWork work[SEQS + 1], *pointers[SEQS + 1];
    Conclave__SeqInit init[SEQS + 1];
    Conclave__Sampling sampling[SEQS + 1];
    uint32_t blocks[SEQS + 1][BLOCKS_PER_SEQ];
} step_plan;

static void
plan_begin(step_plan *p, uint64_t step)
{
    memset(p, 0, sizeof *p);
    conclave__step_request__init(&p->request);
    p->request.step = step;
    p->request.life = life;
    p->request.router_incarnation = INCARNATION;
    p->request.work = p->pointers;
}

/* Tokens [start, start + count) of a sequence; the first work of a slot also takes its blocks. */
static Conclave__SeqWork *
plan_add(step_plan *p, test_seq *q, uint32_t start, uint32_t count)
{
    const size_t i = p->request.n_work++;
    Conclave__SeqWork *w = p->pointers[i] = &p->work[i];
    conclave__seq_work__init(w);
    w->slot = q->slot;
    w->start_pos = start;
    w->tokens = q->tokens + start;
    w->n_tokens = count;
    w->sample = start + count == q->count;
    if (start > 0) return w;
    conclave__seq_init__init(&p->init[i]);
    conclave__sampling__init(&p->sampling[i]);
    w->init = &p->init[i];
    w->init->seed = q->params.seed;
    w->init->choice = q->params.choice;
    w->init->prompt_len = q->prompt_len;
    w->init->sampling = &p->sampling[i];
    p->sampling[i].temperature = q->params.temperature;
    p->sampling[i].top_p = q->params.top_p;
    p->sampling[i].repetition_penalty = q->params.repetition_penalty;
    p->sampling[i].num_logprobs = 2;
    for (uint32_t b = 0; b < BLOCKS_PER_SEQ; b++) {
        p->blocks[i][b] = b * SEQS + q->slot;
    }
    w->blocks = p->blocks[i];
    w->n_blocks = BLOCKS_PER_SEQ;
    return w;
}

/* ---- calls ---- */

static void
on_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    step_call *call = arg;
    pthread_mutex_lock(&lock);
    call->status = status;
    call->reply = (Conclave__StepReply *)(void *)response;
    snprintf(call->error, sizeof call->error, "%s", error);
    call->done = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static step_call *
begin(const step_plan *p)
{
    cr_assert_lt(call_count, CALLS_MAX);
    step_call *call = &calls[call_count++];
    rpc_call_async(client, ROUTER_STEP, &p->request.base, SILENT_MS * 10, on_done, call);
    return call;
}

static step_call *
finish(step_call *call)
{
    pthread_mutex_lock(&lock);
    while (!call->done)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return call;
}

static bool
is_done(const step_call *call)
{
    pthread_mutex_lock(&lock);
    const bool done = call->done;
    pthread_mutex_unlock(&lock);
    return done;
}

static rpc_status
run_step(const step_plan *p, Conclave__StepReply **reply)
{
    rpc_status status;
    ProtobufCMessage *response;
    rpc_call_sync(client, ROUTER_STEP, &p->request.base, SILENT_MS, &response, &status, &eb);
    if (reply != NULL)
        *reply = (Conclave__StepReply *)(void *)response;
    else
        rpc_response_free(response);
    return status;
}

/* A step whose work is all `seqs`, whole or one token each; appends what was sampled. */
static void
step_all(uint64_t step, test_seq *seqs, uint32_t count, bool whole)
{
    step_plan p;
    plan_begin(&p, step);
    for (uint32_t i = 0; i < count; i++) {
        plan_add(&p, &seqs[i], whole ? 0 : seqs[i].count - 1, whole ? seqs[i].count : 1);
    }
    Conclave__StepReply *reply;
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "step %llu: %s", (unsigned long long)step, eb.text);
    cr_assert_eq(reply->step, step);
    cr_assert_eq(reply->n_results, count);
    for (uint32_t i = 0; i < count; i++) {
        cr_assert_eq(reply->results[i]->slot, seqs[i].slot);
        cr_assert(reply->results[i]->sampled);
        seqs[i].tokens[seqs[i].count++] = reply->results[i]->token;
    }
    rpc_response_free(&reply->base);
}

/* ---- what is right ---- */

/* The reference: another transformer, with one worker, called without a stepper, and a sampler. */
static void
expect_right(const test_seq *seqs, uint32_t count)
{
    mini_fleet m;
    mini_fleet_start(&m, &(mini_options){.model_dir = model_dir,
                                         .expert_dtype = DTYPE_F32,
                                         .attn_dtype = DTYPE_F32,
                                         .kv_dtype = DTYPE_F32,
                                         .max_model_len = MODEL_LEN,
                                         .cpu_flags = UINT_MAX});
    const uint32_t vocab = m.config->vocab_size;
    float *logits = malloc((size_t)MODEL_LEN * vocab * sizeof *logits);
    sampler *s;
    cr_assert_eq(sampler_create(&s, vocab), MOE_OK);
    for (uint32_t i = 0; i < count; i++) {
        const test_seq *q = &seqs[i];
        mini_logits(&m, 0, q->tokens, q->count, 0, logits);
        cr_expect_gt(q->count, q->prompt_len, "nothing was sampled");
        for (uint32_t at = q->prompt_len; at < q->count; at++) {
            const uint32_t want = sampler_sample(s, &q->params, logits + (size_t)(at - 1) * vocab,
                                                 q->tokens, q->prompt_len, at, at);
            cr_expect_eq(q->tokens[at], want, "slot %u, position %u: %u, not %u", q->slot, at,
                         q->tokens[at], want);
        }
    }
    sampler_free(s);
    free(logits);
    mini_fleet_stop(&m);
}

Test(stepper, samples_what_the_transformer_and_the_sampler_give_in_the_order_of_the_work)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[] = {draw_seq(2, 5, 0.9), draw_seq(0, 9, 0)};
    step_all(1, seqs, 2, true);
    for (uint64_t step = 2; step <= 5; step++) {
        step_all(step, seqs, 2, false);
    }
    expect_right(seqs, 2);
    stepper_stats stats;
    stepper_get_stats(steps, &stats);
    cr_expect_eq(stats.steps, 5);
    cr_expect_eq(stats.tokens, 14 + 4 * 2);
}

Test(stepper, samples_the_same_after_a_prefill_in_chunks_beside_other_work)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[] = {draw_seq(1, 30, 0.8), draw_seq(0, 4, 0.8)};
    step_plan p;
    Conclave__StepReply *reply;
    plan_begin(&p, 1);
    plan_add(&p, &seqs[0], 0, 7);
    plan_add(&p, &seqs[1], 0, 4);
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    cr_expect_not(reply->results[0]->sampled);
    cr_expect_null(reply->results[0]->logprobs);
    cr_assert(reply->results[1]->sampled);
    seqs[1].tokens[seqs[1].count++] = reply->results[1]->token;
    rpc_response_free(&reply->base);

    plan_begin(&p, 2);
    plan_add(&p, &seqs[1], 4, 1);
    plan_add(&p, &seqs[0], 7, 15);
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    seqs[1].tokens[seqs[1].count++] = reply->results[0]->token;
    rpc_response_free(&reply->base);

    plan_begin(&p, 3);
    plan_add(&p, &seqs[0], 22, 8);
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    seqs[0].tokens[seqs[0].count++] = reply->results[0]->token;
    rpc_response_free(&reply->base);
    expect_right(seqs, 2);
}

Test(stepper, tells_the_experts_of_the_tokens_whose_sequences_ask)
{
    const size_t token_bytes = routed_token_bytes = model->num_layers * model->top_k;
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[] = {draw_seq(0, 6, 0), draw_seq(1, 4, 0), draw_seq(2, 3, 0)};
    step_plan p;
    Conclave__StepReply *reply;
    plan_begin(&p, 1);
    plan_add(&p, &seqs[0], 0, 6)->routed_experts = true;
    plan_add(&p, &seqs[1], 0, 4);
    plan_add(&p, &seqs[2], 0, 2)->routed_experts = true;
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    cr_expect_eq(reply->results[0]->routed_experts.len, 6 * token_bytes);
    cr_expect_eq(reply->results[1]->routed_experts.len, 0);
    cr_expect_eq(reply->results[2]->routed_experts.len, 2 * token_bytes);
    for (size_t i = 0; i < 6 * token_bytes; i += model->top_k) {
        const uint8_t *ids = reply->results[0]->routed_experts.data + i;
        for (uint32_t j = 0; j < model->top_k; j++) {
            cr_expect_lt(ids[j], model->num_experts);
            cr_expect(j == 0 || ids[j] != ids[0], "an expert twice");
        }
    }
    for (uint32_t i = 0; i < 2; i++)
        seqs[i].tokens[seqs[i].count++] = reply->results[i]->token;
    rpc_response_free(&reply->base);
    plan_begin(&p, 2);
    plan_add(&p, &seqs[0], 6, 1);
    plan_add(&p, &seqs[1], 4, 1)->routed_experts = true;
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    cr_expect_eq(reply->results[0]->routed_experts.len, 0);
    cr_expect_eq(reply->results[1]->routed_experts.len, token_bytes);
    for (uint32_t i = 0; i < 2; i++)
        seqs[i].tokens[seqs[i].count++] = reply->results[i]->token;
    rpc_response_free(&reply->base);
    expect_right(seqs, 2);
    const worker_load a = transformer_worker_load(tf, 0), b = transformer_worker_load(tf, 1);
    cr_expect_gt(a.rows, 0);
    uint64_t rows = 0;
    for (uint32_t i = 0; i < model->num_layers * model->num_experts; i++)
        rows += transformer_expert_tokens(tf)[i];
    cr_expect_eq(a.rows + b.rows, rows, "each row is counted with one worker");
    cr_expect_gt(a.busy_ns + b.busy_ns, 0);
}

Test(stepper, refuses_to_tell_experts_when_that_is_not_offered)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 6, 0);
    step_plan p;
    plan_begin(&p, 1);
    plan_add(&p, &q, 0, 6)->routed_experts = true;
    cr_expect_eq(run_step(&p, NULL), RPC_INVALID_ARGUMENT);
    cr_expect_not_null(strstr(eb.text, "routed_experts"), "%s", eb.text);
}

Test(stepper, reports_logprobs_of_the_sampled_token_and_of_the_prompt)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 6, 0);
    step_plan p;
    plan_begin(&p, 1);
    Conclave__SeqWork *w = plan_add(&p, &q, 0, 6);
    w->prompt_logprobs = true;
    Conclave__StepReply *reply;
    cr_assert_eq(run_step(&p, &reply), RPC_OK, "%s", eb.text);
    const Conclave__SeqResult *r = reply->results[0];
    cr_assert_eq(r->n_prompt_logprobs, 5, "one for each token but the first");
    for (uint32_t i = 0; i < 5; i++) {
        cr_expect_eq(r->prompt_logprobs[i]->token, q.tokens[i + 1]);
        cr_expect_eq(r->prompt_logprobs[i]->n_top_ids, 2);
        cr_expect_lt(r->prompt_logprobs[i]->logprob, 0);
    }
    cr_assert_not_null(r->logprobs);
    cr_expect_eq(r->logprobs->token, r->token);
    cr_expect_geq(r->logprobs->top_logprobs[0], r->logprobs->top_logprobs[1]);
    rpc_response_free(&reply->base);
}

Test(stepper, refuses_what_does_not_follow_and_changes_nothing)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[] = {draw_seq(0, 5, 0.9), draw_seq(1, 3, 0.9)};
    step_all(1, seqs, 2, true);
    step_all(2, seqs, 2, false);

    enum {
        GAP,
        REPEAT,
        OTHER_ROUTER,
        SLOT_OUTSIDE,
        SLOT_UNUSED,
        BEHIND,
        AHEAD,
        TWICE,
        TOKEN,
        KINDS
    };
    static const struct {
        rpc_status status;
        const char *text;
    } want[KINDS] = {[GAP] = {RPC_INVALID_ARGUMENT, "step 5 came where step 3 is due"},
                     [REPEAT] = {RPC_INVALID_ARGUMENT, "step 2 came where step 3 is due"},
                     [OTHER_ROUTER] = {RPC_UNAVAILABLE, "another router's KV cache"},
                     [SLOT_OUTSIDE] = {RPC_INVALID_ARGUMENT, "slot 3 is not below 3"},
                     [SLOT_UNUSED] = {RPC_INVALID_ARGUMENT, "slot 2"},
                     [BEHIND] = {RPC_INVALID_ARGUMENT, "slot 1: work at position 3"},
                     [AHEAD] = {RPC_INVALID_ARGUMENT, "slot 1: work at position 5"},
                     [TWICE] = {RPC_INVALID_ARGUMENT, "slot 0 is named twice"},
                     [TOKEN] = {RPC_INVALID_ARGUMENT, "slot 1: token id"}};
    for (int kind = 0; kind < KINDS; kind++) {
        step_plan p;
        if (kind > REPEAT) life++;
        plan_begin(&p, kind == GAP ? 5 : kind == REPEAT ? 2 : 1);
        plan_add(&p, &seqs[0], seqs[0].count - 1, 1); /* good: it must not be carried out */
        test_seq q = seqs[1];
        if (kind == TOKEN) q.tokens[q.count - 1] = model->vocab_size;
        if (kind == AHEAD) q.count++;
        Conclave__SeqWork *w = plan_add(&p, &q, q.count - (kind == BEHIND ? 2 : 1), 1);
        if (kind == OTHER_ROUTER) p.request.router_incarnation = INCARNATION + 1;
        if (kind == SLOT_OUTSIDE) w->slot = SEQS;
        if (kind == SLOT_UNUSED) w->slot = 2;
        if (kind == TWICE) w->slot = 0;
        eb.text[0] = '\0';
        cr_expect_eq(run_step(&p, NULL), want[kind].status, "%s: %s", want[kind].text, eb.text);
        cr_expect_not_null(strstr(eb.text, want[kind].text), "\"%s\" is not said: %s",
                           want[kind].text, eb.text);
    }
    life++;
    step_all(1, seqs, 2, false);
    expect_right(seqs, 2);
}

Test(stepper, refuses_more_than_a_step_may_hold)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, STEP_TOKENS + 1, 0);
    step_plan p;
    plan_begin(&p, 1);
    plan_add(&p, &q, 0, STEP_TOKENS + 1);
    cr_expect_neq(run_step(&p, NULL), RPC_OK);
    cr_expect_not_null(strstr(eb.text, "33 tokens in a step, at most 32"), "%s", eb.text);
    life++;
    plan_begin(&p, 1);
    plan_add(&p, &q, 0, STEP_TOKENS);
    cr_expect_eq(run_step(&p, NULL), RPC_OK, "%s", eb.text);
}

Test(stepper, is_unavailable_until_the_fleet_is_ready_and_says_who_is_missing)
{
    start_router(EXCHANGE_AUTO);
    test_seq q = draw_seq(0, 4, 0.9);
    step_plan p;
    plan_begin(&p, 1);
    plan_add(&p, &q, 0, 4);
    cr_expect_eq(run_step(&p, NULL), RPC_UNAVAILABLE);
    cr_expect_not_null(strstr(eb.text, "worker 0 is absent"), "%s", eb.text);
    start_workers();
    life++;
    step_all(1, &q, 1, true);
    step_all(2, &q, 1, false);
    expect_right(&q, 1);
}

/* ---- several steps at a time ---- */

/* The second of two steps in flight feeds what the first samples. */
Test(stepper, feeds_the_token_that_the_step_before_sampled)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 8, 0.9);
    static step_plan first, second;
    for (int swapped = 0; swapped < 2; swapped++) { /* whichever arrives first */
        const uint32_t known = q.count;
        life++;
        plan_begin(&first, 1);
        plan_add(&first, &q, 0, known);
        plan_begin(&second, 2);
        Conclave__SeqWork *w = plan_add(&second, &q, known, 1);
        w->n_tokens = 0;
        w->token_is_last_sampled = w->sample = true;
        step_call *a, *b;
        if (swapped) {
            b = begin(&second);
            a = begin(&first);
        } else {
            a = begin(&first);
            b = begin(&second);
        }
        cr_assert_eq(finish(a)->status, RPC_OK, "%s", a->error);
        cr_assert_eq(finish(b)->status, RPC_OK, "%s", b->error);
        q.tokens[q.count++] = a->reply->results[0]->token;
        q.tokens[q.count++] = b->reply->results[0]->token;
    }
    expect_right(&q, 1);
}

/* A step that waits for worker 0, and five behind it, of which one has been refused. */
static void
crowd(test_seq *q)
{
    static step_plan running, empty[CROWD];
    fake_worker_hold(&workers[0], true);
    plan_begin(&running, 1);
    plan_add(&running, q, 0, q->count);
    begin(&running);
    fake_worker_wait_holding(&workers[0]);
    for (int i = 0; i < CROWD; i++) {
        life++;
        plan_begin(&empty[i], 1);
        begin(&empty[i]);
    }
    pthread_mutex_lock(&lock);
    while (calls[1].done + calls[2].done + calls[3].done + calls[4].done + calls[5].done == 0)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

/* How many of those behind ended so; waits for all. */
static uint32_t
count_ends(rpc_status status, const char *text)
{
    uint32_t count = 0;
    for (uint32_t i = 1; i < CALLS_MAX; i++) {
        const step_call *call = finish(&calls[i]);
        count += call->status == status && strstr(call->error, text) != NULL;
    }
    return count;
}

Test(stepper, lets_four_steps_wait_and_refuses_the_fifth)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 8, 0.9);
    crowd(&q);
    fake_worker_hold(&workers[0], false);
    cr_assert_eq(finish(&calls[0])->status, RPC_OK, "%s", calls[0].error);
    cr_expect_eq(count_ends(RPC_RESOURCE_EXHAUSTED, "4 steps wait already"), 1);
    cr_expect_eq(count_ends(RPC_OK, ""), 4, "in the order of their lives");
    q.tokens[q.count++] = calls[0].reply->results[0]->token;
    life++;
    step_all(1, &q, 1, false);
    expect_right(&q, 1);
}

static void *
stop_main(void *arg)
{
    stepper_stop(arg);
    return NULL;
}

/* stepper_stop() on a thread of its own; returns once it has begun. */
static void
begin_stop(pthread_t *thread)
{
    static step_plan empty;
    life++;
    plan_begin(&empty, 1);
    cr_assert_eq(pthread_create(thread, NULL, stop_main, steps), 0);
    rpc_status status;
    while ((status = run_step(&empty, NULL)) == RPC_RESOURCE_EXHAUSTED) {
    }
    cr_expect_eq(status, RPC_UNAVAILABLE, "%s", eb.text);
    cr_expect_not_null(strstr(eb.text, "stopping"), "%s", eb.text);
}

Test(stepper, stop_answers_the_steps_that_wait_after_the_running_one)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 8, 0.9);
    crowd(&q);
    pthread_t thread;
    begin_stop(&thread);
    fake_worker_hold(&workers[0], false);
    cr_expect_eq(finish(&calls[0])->status, RPC_OK, "%s", calls[0].error);
    cr_expect_eq(count_ends(RPC_UNAVAILABLE, "stopping"), 4);
    pthread_join(thread, NULL);
    steps = NULL;
}

Test(stepper, stop_does_not_wait_for_a_worker_once_the_membership_is_closed)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq q = draw_seq(0, 8, 0.9);
    crowd(&q);
    membership_close(members);
    stepper_stop(steps);
    steps = NULL;
    cr_expect_eq(finish(&calls[0])->status, RPC_UNAVAILABLE, "%s", calls[0].error);
    cr_expect_eq(count_ends(RPC_UNAVAILABLE, ""), 4);
}

/* ---- a worker is lost in the middle of a step ---- */

/* Two sequences after two good steps; the third is under way, worker 1 holds its rows and worker 0
 * has answered. */
static step_call *
start_third(test_seq seqs[2])
{
    static step_plan p;
    seqs[0] = draw_seq(0, 7, 0.9);
    seqs[1] = draw_seq(2, 6, 0.9);
    step_all(1, seqs, 2, true);
    step_all(2, seqs, 2, false);
    fake_worker_hold(&workers[1], true);
    plan_begin(&p, 3);
    for (uint32_t i = 0; i < 2; i++) { /* replayed whole: rows for every expert */
        plan_add(&p, &seqs[i], 0, seqs[i].count);
    }
    const uint32_t before = fake_worker_answered(&workers[0]);
    step_call *call = begin(&p);
    fake_worker_wait_holding(&workers[1]);
    fake_worker_wait_answered(&workers[0], before + 2); /* both micro-batches of layer 0 */
    return call;
}

static void
expect_unavailable(step_call *call)
{
    cr_assert_eq(finish(call)->status, RPC_UNAVAILABLE, "%s", call->error);
    cr_expect_not_null(strstr(call->error, "worker 1"), "%s", call->error);
    membership_status s;
    membership_get_status(members, &s);
    cr_expect_not(s.ready);
    cr_expect_not(membership_on_heartbeat(members, 1, 101), "it would not register again");
    cr_expect(membership_on_heartbeat(members, 0, 100));
    stepper_stats stats;
    stepper_get_stats(steps, &stats);
    cr_expect_eq(stats.steps, 2);
}

/* What the frontend does once the fleet is ready again: it feeds everything anew. */
static void
expect_recovered(test_seq seqs[2])
{
    make_ready();
    life++;
    step_all(1, seqs, 2, true);
    step_all(2, seqs, 2, false);
    expect_right(seqs, 2);
}

Test(stepper, works_again_after_a_worker_fell_silent_in_a_step_and_was_replaced)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    cr_expect(membership_on_heartbeat(members, 0, 100));
    membership_update(members, 0);
    expect_unavailable(call);
    fake_worker_kill(&workers[1]);
    start_worker(1, 201);
    expect_recovered(seqs);
}

Test(stepper, works_again_after_a_connection_broke_in_a_step_and_the_worker_was_replaced)
{
    start_router(EXCHANGE_ONLY_NNG);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    fake_worker_kill(&workers[1]);
    expect_unavailable(call); /* without waiting for silence */
    start_worker(1, 201);
    expect_recovered(seqs);
}

/* ---- with replicas of everything, a step survives it ---- */

static void
expect_step_went_on(step_call *call, test_seq seqs[2])
{
    cr_assert_eq(finish(call)->status, RPC_OK, "%s", call->error);
    for (uint32_t i = 0; i < 2; i++) {
        cr_assert(call->reply->results[i]->sampled);
        seqs[i].tokens[seqs[i].count++] = call->reply->results[i]->token;
    }
    stepper_stats stats;
    stepper_get_stats(steps, &stats);
    cr_expect_eq(stats.steps, 3);
    cr_expect_eq(stats.resends, 1);
    membership_status s;
    membership_get_status(members, &s);
    cr_expect(s.ready, "%s", s.detail);
    cr_expect_eq(s.workers_ready, 1);
    cr_expect_eq(s.epoch, 2);
    step_all(4, seqs, 2, false); /* and the next do without it */
}

/* The new one takes its slots between two steps, and rows. */
static void
expect_taken_back(uint64_t incarnation, test_seq seqs[2])
{
    start_worker(1, incarnation);
    make_ready();
    membership_status s;
    membership_get_status(members, &s);
    cr_expect_eq(s.workers_ready, 2);
    cr_expect_eq(s.epoch, 3);
    step_all(5, seqs, 2, false);
    life++;
    step_all(1, seqs, 2, true); /* many rows: each expert's are split */
    cr_expect_gt(fake_worker_answered(&workers[1]), 0, "the new worker gets no rows");
    expect_right(seqs, 2);
}

Test(stepper, goes_on_with_replicas_when_a_worker_falls_silent_in_a_step)
{
    start_router_with(EXCHANGE_AUTO, model->num_experts);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    cr_expect(membership_on_heartbeat(members, 0, 100));
    membership_update(members, 0);
    expect_step_went_on(call, seqs);
    fake_worker_kill(&workers[1]);
    expect_taken_back(201, seqs);
}

Test(stepper, goes_on_with_replicas_when_a_connection_breaks_in_a_step)
{
    start_router_with(EXCHANGE_ONLY_NNG, model->num_experts);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    fake_worker_kill(&workers[1]);
    expect_step_went_on(call, seqs);
    expect_taken_back(201, seqs);
}

Test(stepper, goes_on_with_replicas_when_a_worker_has_lost_its_experts)
{
    start_router_with(EXCHANGE_AUTO, model->num_experts);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    fake_worker_forget(&workers[1]);
    fake_worker_hold(&workers[1], false);
    expect_step_went_on(call, seqs);
    fake_worker_kill(&workers[1]);
    expect_taken_back(201, seqs);
}

Test(stepper, fails_a_step_when_the_last_replica_is_lost_too)
{
    start_router_with(EXCHANGE_ONLY_NNG, model->num_experts);
    start_workers();
    test_seq seqs[2];
    fake_worker_hold(&workers[0], true);
    seqs[0] = draw_seq(0, 7, 0.9);
    static step_plan p;
    plan_begin(&p, 1);
    plan_add(&p, &seqs[0], 0, seqs[0].count);
    step_call *call = begin(&p);
    fake_worker_wait_holding(&workers[0]);
    fake_worker_kill(&workers[1]);
    fake_worker_kill(&workers[0]);
    cr_assert_eq(finish(call)->status, RPC_UNAVAILABLE, "%s", call->error);
    membership_status s;
    membership_get_status(members, &s);
    cr_expect_not(s.ready);
    cr_expect_eq(s.workers_ready, 0);
}

/* A link that no step uses: giving it up rings the router's bell, so that a wait looks at the
 * clock. */
static void
make_spare_link(worker_end **spare)
{
    const exchange_limits limits = transformer_exchange_limits(tf);
    attach_offer offer;
    attach_answer answer;
    cr_assert_eq(worker_end_create(spare, run.id, SPARE, 300, NULL, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_prepare(exchange, SPARE, 300, EXCHANGE_SHM, &offer, &eb), MOE_OK, "%s",
                 eb.text);
    cr_assert_eq(worker_end_attach(*spare, &limits, &offer, &answer, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_complete(exchange, SPARE, &answer, 0, &eb), MOE_OK, "%s", eb.text);
}

Test(stepper, works_again_with_a_worker_that_was_too_late_in_a_step)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    worker_end *spare;
    make_spare_link(&spare);
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    while (!is_done(call)) {
        shifted_clock_advance_ms(SILENT_MS + 1000);
        router_end_give_up(exchange, SPARE);
        sched_yield();
    }
    expect_unavailable(call);
    fake_worker_hold(&workers[1], false); /* its answer is late, and goes nowhere */
    join(1);
    expect_recovered(seqs);
    router_end_drop(exchange, SPARE);
    worker_end_free(spare);
}

Test(stepper, works_again_with_a_worker_that_had_lost_its_experts)
{
    start_router(EXCHANGE_AUTO);
    start_workers();
    test_seq seqs[2];
    step_call *call = start_third(seqs);
    fake_worker_forget(&workers[1]);
    fake_worker_hold(&workers[1], false);
    expect_unavailable(call);
    cr_expect_not_null(strstr(call->error, "does not host"), "%s", call->error);
    join(1);
    expect_recovered(seqs);
}
