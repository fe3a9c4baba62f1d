#include "router/stepper.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "router/sampler.h"
#include "router/step_check.h"

/* The frontend has two steps in flight, and two more may be left over from before it started over.
 */
#define QUEUE_MAX 4
/* Two calls may overtake each other on their way: how long the later step waits for its turn. */
#define OVERTAKEN_WAIT_MS 1000

static const char stopping_text[] = "this router is stopping";

/* One running sequence. */
typedef struct seq_slot {
    slot_state *state; /* in stepper.states */
    uint32_t prompt_len;
    uint32_t sampled_token; /* where state->sampled */
    uint32_t *history;      /* [max_model_len]; state->known are filled */
    uint32_t *blocks;       /* [blocks_max]; state->block_count are filled */
    sampling_params params; /* its arrays point into the fields below */
    int32_t num_logprobs;
    uint32_t stop_ids[STEP_STOP_TOKENS_MAX];
    uint32_t bias_ids[STEP_BIAS_MAX];
    double bias_values[STEP_BIAS_MAX];
} seq_slot;

/* Reply parts of one step, sized for the limits. */
typedef struct reply_store {
    Conclave__SeqResult *results;              /* [max_num_seqs] */
    Conclave__SeqResult **pointers;            /* [max_num_seqs] */
    Conclave__TokenLogprobs *logprobs;         /* [max_num_seqs + max_num_batched_tokens] */
    Conclave__TokenLogprobs **prompt_pointers; /* [max_num_batched_tokens] */
    uint32_t *top_ids;                         /* as logprobs, x SAMPLER_TOP_MAX */
    double *top_values;
    uint32_t logprob_count, prompt_count;
    uint8_t *routed; /* [max_num_batched_tokens][routed_token_bytes]; NULL: not told */
    size_t routed_bytes;
} reply_store;

typedef struct queued_step {
    const Conclave__StepRequest *request;
    rpc_call *call;
    uint64_t client; /* rpc_call_incarnation() */
    uint64_t since_ns;
} queued_step;

struct stepper {
    stepper_config config;
    uint32_t blocks_max; /* of one sequence */
    seq_slot *slots;     /* [max_num_seqs] */
    slot_state *states;  /* [max_num_seqs] */
    step_rules rules;
    uint32_t *history_memory, *block_memory;
    sampler *sampler;
    step_seq *seqs; /* [max_num_seqs] */
    bool *slot_seen;
    reply_store reply;
    const Conclave__StepRequest *request; /* the step being run */
    step_order order;

    pthread_t thread;
    pthread_mutex_t lock; /* guards queue and stats */
    queued_step queue[QUEUE_MAX];
    uint32_t queued;
    _Atomic uint32_t bell;
    _Atomic bool stopping;
    stepper_stats stats;
    uint64_t recent[STEPPER_RECENT]; /* step times, a ring; guarded by the lock */
};

/* ---- applying a request to the slots ---- */

static void
init_slot(seq_slot *slot, const Conclave__SeqInit *init)
{
    const Conclave__Sampling *p = init->sampling;
    slot->state->used = true;
    slot->prompt_len = init->prompt_len;
    slot->state->block_count = 0;
    slot->state->known = (uint32_t)init->n_cached_tokens;
    if (slot->state->known)
        memcpy(slot->history, init->cached_tokens, slot->state->known * sizeof(uint32_t));
    if (p->n_stop_token_ids)
        memcpy(slot->stop_ids, p->stop_token_ids, p->n_stop_token_ids * sizeof(uint32_t));
    if (p->n_bias_ids) {
        memcpy(slot->bias_ids, p->bias_ids, p->n_bias_ids * sizeof(uint32_t));
        memcpy(slot->bias_values, p->bias_values, p->n_bias_ids * sizeof(double));
    }
    slot->num_logprobs = p->num_logprobs;
    slot->params = sampler_default_params();
    slot->params.temperature = p->temperature;
    slot->params.top_p = p->top_p;
    slot->params.min_p = p->min_p;
    slot->params.top_k = p->top_k;
    slot->params.presence_penalty = p->presence_penalty;
    slot->params.frequency_penalty = p->frequency_penalty;
    slot->params.repetition_penalty = p->repetition_penalty;
    slot->params.min_tokens = p->min_tokens;
    slot->params.seed = init->seed;
    slot->params.choice = init->choice;
    slot->params.stop_token_count = (uint32_t)p->n_stop_token_ids;
    slot->params.stop_token_ids = slot->stop_ids;
    slot->params.bias_count = (uint32_t)p->n_bias_ids;
    slot->params.bias_ids = slot->bias_ids;
    slot->params.bias_values = slot->bias_values;
}

static void
apply_work(stepper *s, const Conclave__SeqWork *w, step_seq *out)
{
    seq_slot *slot = &s->slots[w->slot];
    const uint32_t count = step_work_tokens(w);
    if (w->init != NULL) init_slot(slot, w->init);
    if (w->n_blocks > 0) {
        memcpy(slot->blocks + w->block_start, w->blocks, w->n_blocks * sizeof(uint32_t));
        slot->state->block_count = w->block_start + (uint32_t)w->n_blocks;
    }
    uint32_t *tokens = slot->history + w->start_pos;
    memcpy(tokens, w->token_is_last_sampled ? &slot->sampled_token : w->tokens,
           count * sizeof(uint32_t));
    slot->state->known = w->start_pos + count;
    slot->state->sampled = false;
    *out = (step_seq){.start_pos = w->start_pos,
                      .token_count = count,
                      .tokens = tokens,
                      .block_table = slot->blocks,
                      .want_all = w->prompt_logprobs,
                      .want_last = w->sample};
    if (!w->routed_experts) return;
    out->routed = s->reply.routed + s->reply.routed_bytes;
    s->reply.routed_bytes += (size_t)count * s->config.routed_token_bytes;
}

/* ---- results ---- */

static Conclave__TokenLogprobs *
report(stepper *s, const float *logits, uint32_t token, int32_t top_n)
{
    const uint32_t at = s->reply.logprob_count++;
    Conclave__TokenLogprobs *out = &s->reply.logprobs[at];
    sampled_logprobs lp;
    sampler_logprobs(s->sampler, logits, token, top_n < 0 ? 0 : (uint32_t)top_n, &lp);
    conclave__token_logprobs__init(out);
    out->token = token;
    out->logprob = (double)lp.logprob;
    out->rank = lp.rank;
    out->n_top_ids = out->n_top_logprobs = lp.top_count;
    out->top_ids = s->reply.top_ids + (size_t)at * SAMPLER_TOP_MAX;
    out->top_logprobs = s->reply.top_values + (size_t)at * SAMPLER_TOP_MAX;
    for (uint32_t i = 0; i < lp.top_count; i++) {
        out->top_ids[i] = lp.top_ids[i];
        out->top_logprobs[i] = (double)lp.top_logprobs[i];
    }
    return out;
}

static void
on_logits(void *user, uint32_t seq, uint32_t token_index, const float *logits)
{
    stepper *s = user;
    const Conclave__SeqWork *w = s->request->work[seq];
    seq_slot *slot = &s->slots[w->slot];
    Conclave__SeqResult *result = &s->reply.results[seq];
    const bool last = token_index + 1 == step_work_tokens(w);

    if (w->prompt_logprobs && (!last || w->has_next_token)) {
        const uint32_t next = last ? w->next_token : w->tokens[token_index + 1];
        if (result->n_prompt_logprobs == 0)
            result->prompt_logprobs = s->reply.prompt_pointers + s->reply.prompt_count;
        s->reply.prompt_pointers[s->reply.prompt_count++] =
            report(s, logits, next, slot->num_logprobs);
        result->n_prompt_logprobs++;
    }
    if (!w->sample || !last) return;
    result->sampled = 1;
    result->token = sampler_sample(s->sampler, &slot->params, logits, slot->history,
                                   slot->prompt_len, slot->state->known, slot->state->known);
    slot->sampled_token = result->token;
    slot->state->sampled = true;
    if (slot->num_logprobs >= 0)
        result->logprobs = report(s, logits, result->token, slot->num_logprobs);
}

static void
clear_reply(stepper *s, const Conclave__StepRequest *r)
{
    s->reply.logprob_count = s->reply.prompt_count = 0;
    for (size_t i = 0; i < r->n_work; i++) {
        conclave__seq_result__init(&s->reply.results[i]);
        s->reply.results[i].slot = r->work[i]->slot;
        s->reply.results[i].routed_experts.data = s->seqs[i].routed;
        if (s->seqs[i].routed != NULL)
            s->reply.results[i].routed_experts.len =
                (size_t)s->seqs[i].token_count * s->config.routed_token_bytes;
        s->reply.pointers[i] = &s->reply.results[i];
    }
}

static moe_err
run_step(stepper *s, const Conclave__StepRequest *r, Conclave__StepReply *reply, errbuf *eb)
{
    moe_err err = step_check(&s->rules, s->states, s->slot_seen, r, eb);
    if (err) return err;
    expert_fleet fleet;
    if (!membership_enter(s->config.membership, &fleet)) {
        membership_status status;
        membership_get_status(s->config.membership, &status);
        return err_set(eb, MOE_ECLOSED, "the fleet is not ready: %s", status.detail);
    }
    fleet.timeout_ms = s->config.layer_timeout_ms;
    const uint64_t start = clock_now_ns();
    uint64_t tokens = 0;
    s->reply.routed_bytes = 0;
    for (size_t i = 0; i < r->n_work; i++) {
        apply_work(s, r->work[i], &s->seqs[i]);
        tokens += s->seqs[i].token_count;
    }
    clear_reply(s, r);
    s->request = r;
    step_times times;
    uint32_t lost;
    err = transformer_step(s->config.transformer, &fleet, r->step, s->seqs, (uint32_t)r->n_work,
                           on_logits, s, NULL, &times, &lost, eb);
    if (err == MOE_ETIMEDOUT || err == MOE_ECLOSED || err == MOE_EINTERNAL) {
        membership_lost(s->config.membership, lost);
        LOG_WARN("step", "step failed step=%llu: %s", (unsigned long long)r->step, eb->text);
        err = MOE_ECLOSED;
    }
    membership_leave(s->config.membership);
    if (err) return err;
    if (s->config.feed != NULL)
        load_feed_add(s->config.feed, r->step, transformer_expert_tokens(s->config.transformer));

    reply->step = r->step;
    reply->n_results = r->n_work;
    reply->results = s->reply.pointers;
    reply->step_ns = clock_now_ns() - start;
    reply->expert_wait_ns = times.expert_wait_ns;
    pthread_mutex_lock(&s->lock);
    s->recent[s->stats.steps % STEPPER_RECENT] = reply->step_ns;
    s->stats.steps++;
    s->stats.tokens += tokens;
    s->stats.step_ns += reply->step_ns;
    s->stats.expert_wait_ns += reply->expert_wait_ns;
    s->stats.resends += times.resends;
    pthread_mutex_unlock(&s->lock);
    return MOE_OK;
}

static void
answer(stepper *s, const queued_step *q)
{
    const Conclave__StepRequest *r = q->request;
    phases *ph = s->config.phases;
    errbuf eb = {{0}};
    Conclave__StepReply reply = CONCLAVE__STEP_REPLY__INIT;
    phases_set_place(ph, r->step, TRACE_NO_LAYER, 0, (uint32_t)r->n_work);
    phase_enter(ph, PHASE_PREPARE);
    moe_err err = step_order_check(&s->order, s->config.incarnation, q->client, r, &eb);
    if (!err) {
        err = run_step(s, r, &reply, &eb);
        s->order = (step_order){
            .client = q->client, .life = r->life, .step = r->step, .failed = err != MOE_OK};
    }
    phase_enter(ph, PHASE_REPLY);
    const uint64_t sequences = r->n_work;
    if (err)
        rpc_fail_err(q->call, err, &eb);
    else
        rpc_reply(q->call, &reply.base);
    phases_end_round(ph, "router", sequences);
}

/* ---- the queue ---- */

/* Does a come before b? */
static bool
is_before(const queued_step *a, const queued_step *b)
{
    if (a->client != b->client) return false;
    return a->request->life != b->request->life ? a->request->life < b->request->life
                                                : a->request->step < b->request->step;
}

/* The step that is due next.  False if there is none, or only one that has overtaken another:
 * *until_ns then says how long to wait for that. */
static bool
take(stepper *s, queued_step *out, uint64_t *until_ns)
{
    *until_ns = 0;
    pthread_mutex_lock(&s->lock);
    bool any = s->queued > 0;
    if (any) {
        uint32_t at = 0;
        for (uint32_t i = 1; i < s->queued; i++) {
            if (is_before(&s->queue[i], &s->queue[at])) at = i;
        }
        const queued_step *q = &s->queue[at];
        /* With another one behind it, it is left over from before the frontend started over. */
        const bool overtook = s->queued == 1 &&
                              q->request->router_incarnation == s->config.incarnation &&
                              step_order_overtook(&s->order, q->client, q->request);
        if (overtook) *until_ns = q->since_ns + OVERTAKEN_WAIT_MS * NS_PER_MS;
        if (overtook && clock_now_ns() < *until_ns) {
            any = false;
        } else {
            *out = *q;
            s->queued--;
            memmove(s->queue + at, s->queue + at + 1, (s->queued - at) * sizeof s->queue[0]);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return any;
}

static void *
step_main(void *arg)
{
    stepper *s = arg;
    transformer_bind_thread(s->config.transformer);
    while (!atomic_load(&s->stopping)) {
        const uint32_t seen = atomic_load(&s->bell);
        queued_step next;
        uint64_t until_ns = 0;
        while (!atomic_load(&s->stopping) && take(s, &next, &until_ns)) {
            answer(s, &next);
        }
        if (!atomic_load(&s->stopping)) futex_wait_change(&s->bell, seen, until_ns);
    }
    for (uint32_t i = 0; i < s->queued; i++) { /* submit() adds no more */
        rpc_fail(s->queue[i].call, RPC_UNAVAILABLE, "%s", stopping_text);
    }
    phases_report(s->config.phases, "router");
    return NULL;
}

static bool
allocate(stepper *s)
{
    const uint32_t seqs = s->config.max_num_seqs;
    const size_t logprobs = (size_t)seqs + s->config.max_num_batched_tokens;
    s->blocks_max = (s->config.max_model_len + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    s->slots = calloc(seqs, sizeof *s->slots);
    s->states = calloc(seqs, sizeof *s->states);
    s->history_memory = calloc((size_t)seqs * s->config.max_model_len, sizeof(uint32_t));
    s->block_memory = calloc((size_t)seqs * s->blocks_max, sizeof(uint32_t));
    s->seqs = calloc(seqs, sizeof *s->seqs);
    s->slot_seen = calloc(seqs, sizeof *s->slot_seen);
    reply_store *r = &s->reply;
    r->results = calloc(seqs, sizeof *r->results);
    r->pointers = calloc(seqs, sizeof *r->pointers);
    r->logprobs = calloc(logprobs, sizeof *r->logprobs);
    r->prompt_pointers = calloc(s->config.max_num_batched_tokens, sizeof *r->prompt_pointers);
    r->top_ids = calloc(logprobs * SAMPLER_TOP_MAX, sizeof *r->top_ids);
    r->top_values = calloc(logprobs * SAMPLER_TOP_MAX, sizeof *r->top_values);
    if (s->config.routed_token_bytes != 0)
        r->routed = calloc(s->config.max_num_batched_tokens, s->config.routed_token_bytes);
    if (!s->slots || !s->states || !s->history_memory || !s->block_memory || !s->seqs ||
        !s->slot_seen || !r->results || !r->pointers || !r->logprobs || !r->prompt_pointers ||
        !r->top_ids || !r->top_values || (!r->routed && s->config.routed_token_bytes != 0))
        return false;
    for (uint32_t i = 0; i < seqs; i++) {
        s->slots[i].state = &s->states[i];
        s->slots[i].history = s->history_memory + (size_t)i * s->config.max_model_len;
        s->slots[i].blocks = s->block_memory + (size_t)i * s->blocks_max;
    }
    return true;
}

static void
release(stepper *s)
{
    void *const owned[] = {s->slots,          s->states,
                           s->history_memory, s->block_memory,
                           s->seqs,           s->slot_seen,
                           s->reply.results,  s->reply.pointers,
                           s->reply.logprobs, s->reply.prompt_pointers,
                           s->reply.top_ids,  s->reply.top_values,
                           s->reply.routed};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
    sampler_free(s->sampler);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

moe_err
stepper_start(stepper **out, const stepper_config *config, errbuf *eb)
{
    *out = NULL;
    stepper *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->config = *config;
    if (s->config.phases == NULL) s->config.phases = &phases_off;
    s->rules = (step_rules){.vocab_size = config->vocab_size,
                            .max_num_seqs = config->max_num_seqs,
                            .max_num_batched_tokens = config->max_num_batched_tokens,
                            .max_model_len = config->max_model_len,
                            .kv_block_count = config->kv_block_count,
                            .routed_experts = config->routed_token_bytes != 0};
    pthread_mutex_init(&s->lock, NULL);
    moe_err err = allocate(s) ? sampler_create(&s->sampler, config->vocab_size) : MOE_ENOMEM;
    if (err) {
        release(s);
        return err_set(eb, err, "no memory for %u sequences of %u tokens", config->max_num_seqs,
                       config->max_model_len);
    }
    if (pthread_create(&s->thread, NULL, step_main, s) != 0) {
        release(s);
        return err_set(eb, MOE_EIO, "can't start the step thread");
    }
    pthread_setname_np(s->thread, "step");
    *out = s;
    return MOE_OK;
}

void
stepper_stop(stepper *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock); /* so that no submit slips in after the thread's last look */
    atomic_store(&s->stopping, true);
    pthread_mutex_unlock(&s->lock);
    futex_bump(&s->bell);
    pthread_join(s->thread, NULL);
    release(s);
}

void
stepper_submit(stepper *s, const Conclave__StepRequest *request, rpc_call *call)
{
    pthread_mutex_lock(&s->lock);
    const bool stopping = atomic_load(&s->stopping), room = s->queued < QUEUE_MAX && !stopping;
    if (room) {
        s->queue[s->queued++] = (queued_step){.request = request,
                                              .call = call,
                                              .client = rpc_call_incarnation(call),
                                              .since_ns = clock_now_ns()};
    }
    pthread_mutex_unlock(&s->lock);
    if (room)
        futex_bump(&s->bell);
    else if (stopping)
        rpc_fail(call, RPC_UNAVAILABLE, "%s", stopping_text);
    else
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "%d steps wait already", QUEUE_MAX);
}

static int
compare_ns(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void
stepper_get_stats(stepper *s, stepper_stats *out)
{
    uint64_t recent[STEPPER_RECENT];
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    memcpy(recent, s->recent, sizeof recent);
    pthread_mutex_unlock(&s->lock);
    const size_t n = out->steps < STEPPER_RECENT ? (size_t)out->steps : STEPPER_RECENT;
    if (n == 0) return;
    qsort(recent, n, sizeof recent[0], compare_ns);
    out->recent_p50_ns = recent[n / 2];
    out->recent_p99_ns = recent[n * 99 / 100];
}
