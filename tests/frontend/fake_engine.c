#include "tests/frontend/fake_engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"

#define WAIT_S 20
#define FIRST_TOKEN 300u /* past the special and byte tokens of the demo vocabulary */
#define PROMPT_KEPT 4096

typedef struct sequence {
    seq_id id;
    uint32_t *prompt;
    uint32_t prompt_len, produced;
    const gen_params *params;
    gen_sink *sink;
    void *user;
    bool aborted;
} sequence;

struct engine {
    fake_engine_options options;
    pthread_t thread;
    bool joined;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool stopping, held, ready, deaf;
    uint64_t allowed; /* rounds */
    seq_id next_id;
    uint32_t reserved, count, submitted, aborted;
    sequence *all[FAKE_SEQUENCES_MAX];
    gen_params last_params;
    uint32_t last_prompt[PROMPT_KEPT], last_prompt_len;
};

uint8_t
fake_engine_expert(uint32_t position, uint32_t i)
{
    return (uint8_t)(position * 31 + i * 7);
}

/* ---- one sequence, on the engine's thread, without the lock ---- */

static uint32_t
made_up_token(const engine *e, const sequence *s)
{
    uint64_t h = hash_bytes(1, s->prompt, s->prompt_len * sizeof s->prompt[0]);
    if (s->params->temperature > 0)
        h = hash_combine(hash_combine(h, s->params->seed), s->params->choice);
    h = hash_combine(h, s->produced);
    return FIRST_TOKEN + (uint32_t)(h % (e->options.vocab_size - FIRST_TOKEN));
}

static void
make_logprobs(const engine *e, const sequence *s, uint32_t token, token_logprobs *out)
{
    *out = (token_logprobs){.logprob = -0.25f, .rank = 1};
    out->top_count = (uint32_t)s->params->num_logprobs;
    for (uint32_t i = 0; i < out->top_count; i++) {
        out->top_ids[i] = (token + i) % e->options.vocab_size;
        out->top_logprobs[i] = -0.25f * (float)(i + 1);
    }
}

static void
send_prompt_logprobs(engine *e, const sequence *s)
{
    token_logprobs lp;
    for (uint32_t i = 1; i < s->prompt_len; i++) {
        make_logprobs(e, s, s->prompt[i], &lp);
        const gen_event event = {
            .kind = GEN_PROMPT_LOGPROBS, .position = i, .token = s->prompt[i], .logprobs = &lp};
        s->sink(s->user, &event);
    }
}

/* The prompt at first, then one token at a time: fake_engine_expert() says what. */
static void
send_routed(engine *e, const sequence *s)
{
    const routing_shape *shape = &e->options.routing;
    const uint32_t count = s->produced == 0 ? s->prompt_len : 1;
    const uint32_t position = s->produced == 0 ? 0 : s->prompt_len + s->produced - 1;
    uint8_t *ids = calloc(count, routing_token_bytes(shape)), *at = ids;
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t i = 0; i < shape->num_layers * shape->top_k; i++, at += shape->id_bytes)
            at[0] = fake_engine_expert(position + t, i);
    const gen_event event = {
        .kind = GEN_ROUTED, .position = position, .routed = ids, .routed_count = count};
    s->sink(s->user, &event);
    free(ids);
}

static finish_reason
finish_with(const engine *e, const sequence *s, uint32_t token)
{
    if (token == e->options.eos && !s->params->ignore_eos) return FINISH_STOP;
    for (uint32_t i = 0; i < s->params->stop_token_count; i++)
        if (s->params->stop_token_ids[i] == token) return FINISH_STOP;
    return s->produced >= s->params->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

/* True: it has ended. */
static bool
advance(engine *e, sequence *s, bool abort)
{
    const fake_engine_options *o = &e->options;
    gen_event event = {.kind = GEN_FINISH, .cached_tokens = o->cached_tokens};
    if (abort || s->produced + 1 == o->fail_at) {
        event.finish = abort ? FINISH_ABORT : FINISH_ERROR;
        event.error = abort ? NULL : "the fake engine was told to fail";
        s->sink(s->user, &event);
        return true;
    }
    if (s->produced == 0 && s->params->prompt_logprobs) send_prompt_logprobs(e, s);
    if (s->params->routed_experts) send_routed(e, s);
    uint32_t token = made_up_token(e, s);
    if (o->reply != NULL) token = s->produced < o->reply_count ? o->reply[s->produced] : o->eos;
    s->produced++;
    token_logprobs lp;
    event.kind = GEN_TOKEN;
    event.position = s->prompt_len + s->produced - 1;
    event.token = token;
    event.finish = finish_with(e, s, token);
    if (s->params->num_logprobs >= 0) {
        make_logprobs(e, s, token, &lp);
        event.logprobs = &lp;
    }
    return s->sink(s->user, &event) || event.finish != FINISH_NONE;
}

/* ---- the thread ---- */

static void
remove_locked(engine *e, uint32_t i)
{
    free(e->all[i]->prompt);
    free(e->all[i]);
    e->all[i] = e->all[--e->count];
    pthread_cond_broadcast(&e->changed);
}

static bool
any_aborted_locked(const engine *e)
{
    for (uint32_t i = 0; i < e->count; i++)
        if (e->all[i]->aborted && !e->deaf) return true;
    return false;
}

static void
round_locked(engine *e, bool tokens)
{
    for (uint32_t i = 0; i < e->count;) {
        sequence *s = e->all[i];
        const bool abort = (s->aborted && !e->deaf) || e->stopping;
        if (!abort && !tokens) {
            i++;
            continue;
        }
        pthread_mutex_unlock(&e->lock);
        const bool ended = advance(e, s, abort);
        pthread_mutex_lock(&e->lock);
        if (ended)
            remove_locked(e, i);
        else
            i++;
    }
}

static void *
run(void *arg)
{
    engine *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->stopping || e->count != 0) {
        const bool tokens = !e->held || e->allowed > 0;
        if (e->count == 0 || (!tokens && !e->stopping && !any_aborted_locked(e))) {
            pthread_cond_wait(&e->changed, &e->lock);
            continue;
        }
        if (e->held && e->allowed > 0) e->allowed--;
        round_locked(e, tokens);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

engine *
fake_engine_start(const fake_engine_options *options)
{
    engine *e = calloc(1, sizeof *e);
    if (e == NULL) abort();
    e->options = *options;
    if (e->options.queue_max == 0) e->options.queue_max = FAKE_SEQUENCES_MAX;
    e->held = options->held;
    e->deaf = options->deaf;
    e->ready = options->unready == NULL;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    if (pthread_create(&e->thread, NULL, run, e) != 0) abort();
    return e;
}

static void
set(engine *e, void (*change)(engine *e, uint32_t value), uint32_t value)
{
    pthread_mutex_lock(&e->lock);
    change(e, value);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

static void
stop_locked(engine *e, uint32_t value)
{
    e->stopping = value != 0;
}

static void
hold_locked(engine *e, uint32_t value)
{
    e->held = value != 0;
    e->allowed = 0;
}

static void
allow_locked(engine *e, uint32_t value)
{
    e->allowed += value;
}

static void
deaf_locked(engine *e, uint32_t value)
{
    e->deaf = value != 0;
}

static void
ready_locked(engine *e, uint32_t value)
{
    e->ready = value != 0;
}

void
fake_engine_stop(engine *e)
{
    if (e->joined) return;
    set(e, stop_locked, 1);
    pthread_join(e->thread, NULL);
    e->joined = true;
}

void
fake_engine_free(engine *e)
{
    fake_engine_stop(e);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void
fake_engine_hold(engine *e)
{
    set(e, hold_locked, 1);
}

void
fake_engine_unhold(engine *e)
{
    set(e, hold_locked, 0);
}

void
fake_engine_allow(engine *e, uint32_t rounds)
{
    set(e, allow_locked, rounds);
}

void
fake_engine_heed(engine *e)
{
    set(e, deaf_locked, 0);
}

void
fake_engine_set_ready(engine *e, bool ready)
{
    set(e, ready_locked, ready);
}

/* Wait until *figure reaches count (exactly: equals it). */
static bool
wait_for(engine *e, const uint32_t *figure, uint32_t count, bool exactly)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    int late = 0;
    pthread_mutex_lock(&e->lock);
    while (late == 0 && (exactly ? *figure != count : *figure < count))
        late = pthread_cond_timedwait(&e->changed, &e->lock, &until);
    pthread_mutex_unlock(&e->lock);
    return late == 0;
}

bool
fake_engine_wait_submitted(engine *e, uint32_t count)
{
    return wait_for(e, &e->submitted, count, false);
}

bool
fake_engine_wait_aborted(engine *e, uint32_t count)
{
    return wait_for(e, &e->aborted, count, false);
}

bool
fake_engine_wait_running(engine *e, uint32_t count)
{
    return wait_for(e, &e->count, count, true);
}

uint32_t
fake_engine_reserved(engine *e)
{
    pthread_mutex_lock(&e->lock);
    const uint32_t reserved = e->reserved;
    pthread_mutex_unlock(&e->lock);
    return reserved;
}

gen_params
fake_engine_last_params(engine *e)
{
    pthread_mutex_lock(&e->lock);
    const gen_params params = e->last_params;
    pthread_mutex_unlock(&e->lock);
    return params;
}

uint32_t
fake_engine_last_prompt(engine *e, uint32_t *ids, uint32_t max)
{
    pthread_mutex_lock(&e->lock);
    const uint32_t n = e->last_prompt_len < max ? e->last_prompt_len : max;
    memcpy(ids, e->last_prompt, n * sizeof ids[0]);
    pthread_mutex_unlock(&e->lock);
    return n;
}

/* ---- engine.h ---- */

moe_err
engine_reserve(engine *e, uint32_t count)
{
    pthread_mutex_lock(&e->lock);
    const bool room = e->count + e->reserved + count <= e->options.queue_max;
    if (room) e->reserved += count;
    pthread_mutex_unlock(&e->lock);
    return room ? MOE_OK : MOE_EBUSY;
}

void
engine_unreserve(engine *e, uint32_t count)
{
    pthread_mutex_lock(&e->lock);
    e->reserved -= count;
    pthread_mutex_unlock(&e->lock);
}

moe_err
engine_submit(engine *e, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
              gen_sink *sink, void *user, seq_id *out, errbuf *eb)
{
    if (prompt_len == 0 || prompt_len >= e->options.max_model_len)
        return err_set(eb, MOE_ERANGE, "%u tokens do not fit", prompt_len);
    sequence *s = calloc(1, sizeof *s);
    uint32_t *copy = malloc(prompt_len * sizeof copy[0]);
    if (s == NULL || copy == NULL) abort();
    memcpy(copy, prompt, prompt_len * sizeof copy[0]);
    *s = (sequence){
        .prompt = copy, .prompt_len = prompt_len, .params = params, .sink = sink, .user = user};
    pthread_mutex_lock(&e->lock);
    const bool refuse = e->options.refuse_from != 0 && e->submitted + 1 >= e->options.refuse_from;
    const bool stopping = e->stopping || refuse;
    if (!stopping) {
        s->id = *out = ++e->next_id;
        e->all[e->count++] = s;
        e->reserved--;
        e->submitted++;
        e->last_params = *params;
        e->last_prompt_len = prompt_len < PROMPT_KEPT ? prompt_len : PROMPT_KEPT;
        memcpy(e->last_prompt, prompt, e->last_prompt_len * sizeof prompt[0]);
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    if (!stopping) return MOE_OK;
    free(copy);
    free(s);
    return err_set(eb, MOE_ECLOSED, "the engine is stopping");
}

void
engine_abort(engine *e, seq_id id)
{
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < e->count; i++) {
        if (e->all[i]->id != id || e->all[i]->aborted) continue;
        e->all[i]->aborted = true;
        e->aborted++;
    }
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

bool
engine_ready(engine *e, char *detail, size_t detail_size)
{
    pthread_mutex_lock(&e->lock);
    const bool ready = e->ready;
    pthread_mutex_unlock(&e->lock);
    if (detail != NULL && detail_size != 0)
        snprintf(detail, detail_size, "%s", ready || !e->options.unready ? "" : e->options.unready);
    return ready;
}

bool
engine_takes(engine *e, char *detail, size_t detail_size)
{
    return engine_ready(e, detail, detail_size);
}

routing_shape
engine_routing(const engine *e)
{
    return e->options.routing;
}

uint32_t
engine_max_model_len(const engine *e)
{
    return e->options.max_model_len;
}
