#include "frontend/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/seq_table.h"

/* Design notes.
 *
 * Both lists are in order of arrival, and whoever runs arrived before whoever waits: only the first
 * waiting sequence is admitted, only the last running one is preempted, and it goes to the front.
 * So the first running sequence is never preempted for another: it finishes, then the next, and a
 * sequence that fits the cache alone always gets through.
 *
 * At most one running sequence is in the middle of its prompt, the last one: a chunk that ends
 * early has used up the budget, and then nobody is admitted behind it.  So planning in the order of
 * the list is "decodes first, then running prefills", and who is preempted was not planned yet. */

#define SEQS_MAX (1u << 24)

/* A sequence is admitted only if the running ones can go on for about this many steps on the
 * blocks that are left; otherwise its prompt would be computed just to be thrown away. */
#define ADMIT_HEADROOM_STEPS 8

/* A step that was planned and not yet committed. */
typedef struct flight {
    step_plan plan;
    seq_work *work;  /* [max_num_seqs] */
    seq **work_seqs; /* [max_num_seqs] whose work it is */
} flight;

struct scheduler {
    scheduler_config config;
    kv_blocks *kv;
    seq_table *seqs;
    seq_list running, waiting;
    uint32_t table_max;   /* blocks of one sequence */
    uint32_t *tables;     /* [max_num_seqs][table_max] by slot */
    uint64_t *slots_free; /* [slot_words] bit set: free */
    uint32_t slot_words;

    flight flights[STEPS_IN_FLIGHT]; /* a ring */
    uint32_t first_flight, flight_count;
    step_plan plan; /* being made */
    uint32_t gone;  /* sequences that ended and wait for their last step in flight */
    bool backlog, backlog_for_blocks; /* scheduler_set_backlog() */
    scheduler_stats stats;            /* the counters; the rest is filled in when asked */
};

static uint32_t
min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t
blocks_for(const scheduler *s, uint32_t tokens)
{
    const uint32_t block_tokens = s->config.kv_block_tokens;
    return tokens / block_tokens + (tokens % block_tokens != 0);
}

/* ---------------------------------------------------------------- create, add */

moe_err
scheduler_check_config(const scheduler_config *c, errbuf *eb)
{
    const struct {
        const char *name;
        uint32_t value, min, max;
    } limits[] = {
        {"max_num_seqs", c->max_num_seqs, 1, SEQS_MAX},
        {"max_num_batched_tokens", c->max_num_batched_tokens, 1, UINT32_MAX},
        {"max_model_len", c->max_model_len, 2, UINT32_MAX},
        {"max_waiting", c->max_waiting, 1, SEQS_MAX},
        {"kv_block_count", c->kv_block_count, 1, UINT32_MAX},
        {"kv_block_tokens", c->kv_block_tokens, 1, UINT32_MAX},
        {"eos_count", c->eos_count, 0, sizeof c->eos_ids / sizeof c->eos_ids[0]},
    };
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (limits[i].value >= limits[i].min && limits[i].value <= limits[i].max) continue;
        return err_set(eb, MOE_ERANGE, "scheduler: %s is %u, must be %u to %u", limits[i].name,
                       limits[i].value, limits[i].min, limits[i].max);
    }
    return MOE_OK;
}

static moe_err
allocate(scheduler *s)
{
    const scheduler_config *c = &s->config;
    moe_err err =
        kv_blocks_create(&s->kv, c->kv_block_count, c->kv_block_tokens, c->prefix_caching);
    s->seqs = c->seqs;
    if (err == MOE_OK && s->seqs == NULL)
        err = seq_table_create(&s->seqs, c->max_num_seqs + c->max_waiting);
    if (err != MOE_OK) return err;
    s->table_max = min_u32(blocks_for(s, c->max_model_len), c->kv_block_count);
    s->slot_words = (c->max_num_seqs + 63) / 64;
    s->tables = calloc(c->max_num_seqs, s->table_max * sizeof s->tables[0]);
    s->slots_free = calloc(s->slot_words, sizeof s->slots_free[0]);
    if (!s->tables || !s->slots_free) return MOE_ENOMEM;
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        flight *f = &s->flights[i];
        f->work = calloc(c->max_num_seqs, sizeof f->work[0]);
        f->work_seqs = calloc(c->max_num_seqs, sizeof f->work_seqs[0]);
        if (f->work == NULL || f->work_seqs == NULL) return MOE_ENOMEM;
    }
    for (uint32_t slot = 0; slot < c->max_num_seqs; slot++)
        s->slots_free[slot / 64] |= 1ull << slot % 64;
    return MOE_OK;
}

moe_err
scheduler_create(scheduler **out, const scheduler_config *config, errbuf *eb)
{
    *out = NULL;
    moe_err err = scheduler_check_config(config, eb);
    if (err != MOE_OK) return err;
    scheduler *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "scheduler: out of memory");
    s->config = *config;
    err = allocate(s);
    if (err != MOE_OK) {
        scheduler_free(s);
        return err_set(eb, err, "scheduler: %s for %u KV blocks of %u tokens, %u sequences",
                       err == MOE_ERANGE ? "32 bits are too few" : "out of memory",
                       config->kv_block_count, config->kv_block_tokens, config->max_num_seqs);
    }
    *out = s;
    return MOE_OK;
}

void
scheduler_free(scheduler *s)
{
    if (s == NULL) return;
    kv_blocks_free(s->kv);
    if (s->config.seqs == NULL) seq_table_free(s->seqs);
    free(s->tables);
    free(s->slots_free);
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        free(s->flights[i].work);
        free(s->flights[i].work_seqs);
    }
    free(s);
}

bool
scheduler_fits(const scheduler *s, uint32_t total_max)
{
    /* The last token is only sampled, its keys and values are never needed. */
    return blocks_for(s, total_max - 1) <= s->config.kv_block_count;
}

moe_err
scheduler_check(const scheduler *s, uint32_t prompt_len, const gen_params *params,
                uint32_t *total_max, errbuf *eb)
{
    const scheduler_config *c = &s->config;
    if (prompt_len == 0) return err_set(eb, MOE_ERANGE, "the prompt is empty");
    if (params->max_tokens == 0) return err_set(eb, MOE_ERANGE, "max_tokens is 0");
    if (prompt_len >= c->max_model_len)
        return err_set(eb, MOE_ERANGE,
                       "the prompt has %u tokens: the model's context of %u tokens must have room "
                       "for one more",
                       prompt_len, c->max_model_len);
    *total_max = prompt_len + min_u32(params->max_tokens, c->max_model_len - prompt_len);
    if (!scheduler_fits(s, *total_max))
        return err_set(eb, MOE_ERANGE,
                       "%u prompt and %u output tokens need %u KV blocks of %u tokens, there are "
                       "%u",
                       prompt_len, *total_max - prompt_len, blocks_for(s, *total_max - 1),
                       c->kv_block_tokens, c->kv_block_count);
    return MOE_OK;
}

moe_err
scheduler_add(scheduler *s, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
              void *user, seq_id *out, errbuf *eb)
{
    *out = 0;
    uint32_t total_max;
    const moe_err err = scheduler_check(s, prompt_len, params, &total_max, eb);
    if (err != MOE_OK) return err;
    if (s->waiting.count >= s->config.max_waiting)
        return err_set(eb, MOE_EBUSY, "%u sequences are waiting already", s->waiting.count);
    seq *q = seq_table_add(s->seqs, prompt, prompt_len, total_max, params, user);
    if (q == NULL) return err_set(eb, MOE_ENOMEM, "out of memory for %u tokens", total_max);
    scheduler_put(s, q);
    *out = q->id;
    return MOE_OK;
}

void
scheduler_put(scheduler *s, seq *q)
{
    assert(q->owner == NULL);
    q->owner = s;
    seq_list_push_last(&s->waiting, q);
}

seq *
scheduler_take(scheduler *s)
{
    seq *q = s->waiting.first;
    if (q == NULL) return NULL;
    seq_list_remove(&s->waiting, q);
    q->owner = NULL;
    return q;
}

/* ---------------------------------------------------------------- running or not */

static uint32_t
slot_take(scheduler *s)
{
    uint32_t word = 0;
    while (word < s->slot_words && s->slots_free[word] == 0)
        word++;
    assert(word < s->slot_words);
    const uint32_t bit = (uint32_t)__builtin_ctzll(s->slots_free[word]);
    s->slots_free[word] &= ~(1ull << bit);
    return word * 64 + bit;
}

/* From waiting to running, with the first block_count entries of its table filled from the cache.
 */
static void
start(scheduler *s, seq *q, uint32_t slot, uint32_t block_count)
{
    seq_list_remove(&s->waiting, q);
    seq_list_push_last(&s->running, q);
    q->running = true;
    q->sent = false;
    q->slot = slot;
    q->block_count = q->block_registered = block_count;
    q->block_sent = 0;
    q->computed = q->confirmed = block_count * s->config.kv_block_tokens;
    q->sampling = q->planned = 0;
}

static void
release_blocks(scheduler *s, const uint32_t *table, uint32_t count)
{
    while (count > 0)
        kv_blocks_release(s->kv, table[--count]);
}

/* Give back what a sequence needs to run. */
static void
release_run(scheduler *s, seq *q)
{
    release_blocks(s, q->table, q->block_count);
    s->slots_free[q->slot / 64] |= 1ull << q->slot % 64;
    q->running = false;
    q->table = NULL;
    q->computed = q->confirmed = q->block_count = q->sampling = q->planned = 0;
}

/* From running to none of the lists. */
static void
stop(scheduler *s, seq *q)
{
    seq_list_remove(&s->running, q);
    release_run(s, q);
}

static void
preempt(scheduler *s, seq *q)
{
    assert(q->planned == 0 && q->in_flight == 0);
    s->plan.preempted++;
    s->plan.limited_by_blocks = true;
    s->stats.preemptions++;
    stop(s, q);
    seq_list_push_first(&s->waiting, q);
}

static flight *
flight_at(scheduler *s, uint32_t i)
{
    return &s->flights[(s->first_flight + i) % STEPS_IN_FLIGHT];
}

/* It ended, in the running list.  The router may still compute for it: then slot and blocks stay
 * until that is over. */
static void
end_running(scheduler *s, seq *q)
{
    if (q->in_flight == 0) {
        stop(s, q);
        seq_table_remove(s->seqs, q);
        return;
    }
    seq_list_remove(&s->running, q);
    q->gone = true;
    s->gone++;
    for (uint32_t f = 0; f < s->flight_count; f++) {
        const flight *fl = flight_at(s, f);
        for (uint32_t i = 0; i < fl->plan.count; i++) {
            if (fl->work_seqs[i] == q) fl->work[i].user = NULL;
        }
    }
}

/* Its last step in flight is over. */
static void
forget_gone(scheduler *s, seq *q)
{
    release_run(s, q);
    seq_table_remove(s->seqs, q);
    s->gone--;
}

void *
scheduler_abort(scheduler *s, seq_id id)
{
    seq *q = seq_table_find(s->seqs, id);
    if (q == NULL || q->gone) return NULL;
    void *user = q->user;
    if (q->running) {
        end_running(s, q);
    } else {
        seq_list_remove(&s->waiting, q);
        seq_table_remove(s->seqs, q);
    }
    return user;
}

void *
scheduler_abort_any(scheduler *s)
{
    const seq *q = s->running.first != NULL ? s->running.first : s->waiting.first;
    return q == NULL ? NULL : scheduler_abort(s, q->id);
}

void
scheduler_rollback(scheduler *s)
{
    for (uint32_t f = 0; f < s->flight_count; f++) {
        const flight *fl = flight_at(s, f);
        for (uint32_t i = 0; i < fl->plan.count; i++) {
            seq *q = fl->work_seqs[i];
            if (--q->in_flight == 0 && q->gone) forget_gone(s, q);
        }
    }
    s->flight_count = 0;
    while (s->running.last != NULL) {
        seq *q = s->running.last;
        stop(s, q);
        seq_list_push_first(&s->waiting, q);
    }
    kv_blocks_reset_cache(s->kv);
}

/* ---------------------------------------------------------------- planning */

static uint32_t
budget_left(const scheduler *s)
{
    return s->config.max_num_batched_tokens - s->plan.token_count;
}

/* Have blocks for the sequence's first `tokens` tokens; false when they run out, some then taken.
 */
static bool
grow_table(scheduler *s, seq *q, uint32_t tokens)
{
    for (const uint32_t want = blocks_for(s, tokens); q->block_count < want; q->block_count++) {
        const uint32_t b = kv_blocks_take(s->kv);
        if (b == KV_BLOCK_NONE) return false;
        q->table[q->block_count] = b;
    }
    return true;
}

/* Tokens it has and will have once the steps in flight are done. */
static uint32_t
total_then(const seq *q)
{
    return q->total + q->sampling;
}

/* Plan as much of a running sequence as the budget allows, preempting for its blocks.  False if it
 * was itself preempted in the end, or must not be: with steps in flight. */
static bool
plan_running(scheduler *s, seq *q)
{
    if (total_then(q) == q->total_max) return true; /* its last token is being sampled */
    const uint32_t want = total_then(q) - q->computed;
    const uint32_t count = min_u32(want, budget_left(s));
    if (count < want) s->plan.limited_by_tokens = true;
    if (count == 0) return true;
    while (!grow_table(s, q, q->computed + count)) {
        if (s->flight_count > 0) return false;
        seq *youngest = s->running.last;
        preempt(s, youngest);
        if (youngest == q) return false;
    }
    q->planned = count;
    s->plan.token_count += count;
    return true;
}

/* False when steps in flight forbid what it takes: then nothing is planned. */
static bool
plan_all_running(scheduler *s)
{
    for (seq *q = s->running.first; q != NULL; q = q->next)
        q->planned = 0;
    /* Who comes after q is asked late: planning q may preempt it. */
    for (seq *q = s->running.first; q != NULL; q = q->next) {
        assert(total_then(q) - q->computed <= 1 || q == s->running.last);
        if (!plan_running(s, q)) return s->flight_count == 0;
    }
    return true;
}

/* Give back what a plan that comes to nothing has taken. */
static void
drop_plan(scheduler *s)
{
    for (seq *q = s->running.first; q != NULL; q = q->next) {
        q->planned = 0;
        while (q->block_count > q->block_sent)
            kv_blocks_release(s->kv, q->table[--q->block_count]);
    }
    s->plan.token_count = 0;
}

static bool
uses_cache(const scheduler *s, const seq *q)
{
    return s->config.prefix_caching && !q->params.prompt_logprobs && !q->params.routed_experts;
}

/* Blocks that are left to the running sequences. */
static uint64_t
headroom(const scheduler *s)
{
    const uint64_t growth = (uint64_t)s->running.count * ADMIT_HEADROOM_STEPS;
    return (growth + s->config.kv_block_tokens - 1) / s->config.kv_block_tokens;
}

/* Start the first waiting sequence if there are blocks for all tokens it has, not just the first
 * chunk's, and some to spare for the others.  Alone it always finds them: add() saw to it. */
static bool
admit(scheduler *s)
{
    seq *q = s->waiting.first;
    const bool use_cache = uses_cache(s, q);
    const uint32_t slot = slot_take(s);
    q->table = s->tables + (size_t)slot * s->table_max;
    /* The last token is always computed: its row is what the next one is sampled from. */
    const uint32_t cached =
        use_cache ? kv_blocks_match(s->kv, q->tokens, q->total, q->total - 1, q->table) : 0;

    if (blocks_for(s, q->total) - cached + headroom(s) > kv_blocks_available(s->kv)) {
        assert(s->running.count + s->gone > 0);
        release_blocks(s, q->table, cached);
        q->table = NULL;
        s->slots_free[slot / 64] |= 1ull << slot % 64;
        s->plan.limited_by_blocks = true;
        return false;
    }
    if (use_cache) {
        s->stats.prefix_query_tokens += q->total;
        s->stats.prefix_hit_tokens += (uint64_t)cached * s->config.kv_block_tokens;
    }
    start(s, q, slot, cached);
    return true;
}

uint32_t
scheduler_cached_tokens(const scheduler *s, const seq *q)
{
    if (!uses_cache(s, q)) return 0;
    return kv_blocks_find(s->kv, q->tokens, q->total, q->total - 1) * s->config.kv_block_tokens;
}

bool
scheduler_has_blocks(const scheduler *s, const seq *q)
{
    uint64_t needed = headroom(s) + blocks_for(s, q->total) -
                      scheduler_cached_tokens(s, q) / s->config.kv_block_tokens;
    for (const seq *w = s->waiting.first; w != NULL; w = w->next)
        needed += blocks_for(s, w->total);
    return needed <= kv_blocks_available(s->kv);
}

uint32_t
scheduler_load(const scheduler *s)
{
    return s->running.count + s->waiting.count;
}

void
scheduler_set_backlog(scheduler *s, bool backlog, bool for_blocks)
{
    s->backlog = backlog;
    s->backlog_for_blocks = for_blocks;
}

static void
plan_waiting(scheduler *s)
{
    const uint32_t max_num_seqs = s->config.max_num_seqs;
    while (s->waiting.count > 0 && s->running.count + s->gone < max_num_seqs &&
           budget_left(s) > 0) {
        if (!admit(s)) return;
        const bool fits = plan_running(s, s->running.last);
        assert(fits);
        (void)fits;
    }
    if (s->waiting.count == 0 && !s->backlog) return;
    if (s->backlog_for_blocks) s->plan.limited_by_blocks = true;
    if (s->running.count + s->gone == max_num_seqs) s->plan.limited_by_seqs = true;
    if (budget_left(s) == 0) s->plan.limited_by_tokens = true;
}

/* From here on the router counts as having done it. */
static void
write_work(scheduler *s, flight *f, seq *q)
{
    const uint32_t end = q->computed + q->planned;
    f->work_seqs[s->plan.count] = q;
    f->work[s->plan.count++] = (seq_work){.id = q->id,
                                          .user = q->user,
                                          .slot = q->slot,
                                          .init = !q->sent,
                                          .params = &q->params,
                                          .prompt_len = q->prompt_len,
                                          .start_pos = q->computed,
                                          .tokens = q->tokens + q->computed,
                                          .token_count = q->planned,
                                          .token_is_last_sampled = q->computed == q->total,
                                          .all_tokens = q->tokens,
                                          .total_tokens = total_then(q),
                                          .block_start = q->block_sent,
                                          .blocks = q->table + q->block_sent,
                                          .block_count = q->block_count - q->block_sent,
                                          .sample = end == total_then(q)};
    q->sent = true;
    q->block_sent = q->block_count;
    if (end == total_then(q)) q->sampling++;
    q->computed = end;
    q->planned = 0;
    q->in_flight++;
}

void
scheduler_plan(scheduler *s, step_plan *out)
{
    assert(s->flight_count < STEPS_IN_FLIGHT);
    flight *f = flight_at(s, s->flight_count);
    s->plan = (step_plan){.work = f->work};
    if (!plan_all_running(s))
        drop_plan(s);
    else if (s->plan.preempted == 0)
        plan_waiting(s);
    for (seq *q = s->running.first; q != NULL; q = q->next) {
        if (q->planned > 0) write_work(s, f, q);
    }
    *out = f->plan = s->plan;
    if (s->plan.count > 0) s->flight_count++;
}

/* ---------------------------------------------------------------- after the step */

static bool
contains(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

finish_reason
scheduler_finish_with(const scheduler *s, const seq_work *work, uint32_t token)
{
    const gen_params *p = work->params;
    const uint32_t sampled = work->total_tokens - work->prompt_len;
    const bool eos = !p->ignore_eos && contains(s->config.eos_ids, s->config.eos_count, token);
    if (sampled >= p->min_tokens &&
        (eos || contains(p->stop_token_ids, p->stop_token_count, token)))
        return FINISH_STOP;
    if (sampled + 1 >= p->max_tokens || work->total_tokens + 1 >= s->config.max_model_len)
        return FINISH_LENGTH;
    return FINISH_NONE;
}

static void
commit_one(scheduler *s, seq *q, const seq_work *work, seq_outcome *outcome)
{
    outcome->finished = FINISH_NONE;
    q->in_flight--;
    if (q->gone) {
        if (q->in_flight == 0) forget_gone(s, q);
        return;
    }
    q->confirmed += work->token_count;
    const uint32_t full = q->confirmed / s->config.kv_block_tokens;
    for (; q->block_registered < full; q->block_registered++)
        kv_blocks_register(s->kv, q->tokens, q->table, q->block_registered);

    if (!work->sample) return;
    assert(q->sampling > 0 && q->total == work->total_tokens);
    q->sampling--;
    outcome->finished = scheduler_finish_with(s, work, outcome->token);
    if (outcome->finished == FINISH_NONE && outcome->stop) outcome->finished = FINISH_STOP;
    if (outcome->finished != FINISH_NONE) {
        end_running(s, q);
        return;
    }
    assert(q->total < q->total_max);
    q->tokens[q->total++] = outcome->token;
}

void
scheduler_commit(scheduler *s, seq_outcome *outcomes)
{
    if (s->flight_count == 0) return;
    const flight *f = flight_at(s, 0);
    for (uint32_t i = 0; i < f->plan.count; i++)
        commit_one(s, f->work_seqs[i], &f->work[i], &outcomes[i]);
    s->stats.steps++;
    s->stats.steps_limited_by_seqs += f->plan.limited_by_seqs;
    s->stats.steps_limited_by_tokens += f->plan.limited_by_tokens;
    s->stats.steps_limited_by_blocks += f->plan.limited_by_blocks;
    s->first_flight = (s->first_flight + 1) % STEPS_IN_FLIGHT;
    s->flight_count--;
}

void
scheduler_get_stats(const scheduler *s, scheduler_stats *out)
{
    *out = s->stats;
    out->running = s->running.count;
    out->waiting = s->waiting.count;
    out->blocks_total = kv_blocks_total(s->kv);
    out->blocks_used = out->blocks_total - kv_blocks_available(s->kv);
}
