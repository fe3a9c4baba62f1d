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

struct scheduler {
    scheduler_config config;
    kv_blocks *kv;
    seq_table *seqs;
    seq_list running, waiting;
    uint32_t table_max;   /* blocks of one sequence */
    uint32_t *tables;     /* [max_num_seqs][table_max] by slot */
    uint64_t *slots_free; /* [slot_words] bit set: free */
    uint32_t slot_words;

    bool in_step; /* planned and not yet committed */
    step_plan plan;
    seq_work *work;        /* [max_num_seqs] */
    seq **work_seqs;       /* [max_num_seqs] whose work it is */
    scheduler_stats stats; /* the counters; the rest is filled in when asked */
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

static moe_err
check_config(const scheduler_config *c, errbuf *eb)
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
    if (err == MOE_OK) err = seq_table_create(&s->seqs, c->max_num_seqs + c->max_waiting);
    if (err != MOE_OK) return err;
    s->table_max = min_u32(blocks_for(s, c->max_model_len), c->kv_block_count);
    s->slot_words = (c->max_num_seqs + 63) / 64;
    s->tables = calloc(c->max_num_seqs, s->table_max * sizeof s->tables[0]);
    s->slots_free = calloc(s->slot_words, sizeof s->slots_free[0]);
    s->work = calloc(c->max_num_seqs, sizeof s->work[0]);
    s->work_seqs = calloc(c->max_num_seqs, sizeof s->work_seqs[0]);
    if (!s->tables || !s->slots_free || !s->work || !s->work_seqs) return MOE_ENOMEM;
    for (uint32_t slot = 0; slot < c->max_num_seqs; slot++)
        s->slots_free[slot / 64] |= 1ull << slot % 64;
    return MOE_OK;
}

moe_err
scheduler_create(scheduler **out, const scheduler_config *config, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_config(config, eb);
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
    seq_table_free(s->seqs);
    free(s->tables);
    free(s->slots_free);
    free(s->work);
    free(s->work_seqs);
    free(s);
}

moe_err
scheduler_add(scheduler *s, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
              void *user, seq_id *out, errbuf *eb)
{
    *out = 0;
    const scheduler_config *c = &s->config;
    if (prompt_len == 0) return err_set(eb, MOE_ERANGE, "the prompt is empty");
    if (params->max_tokens == 0) return err_set(eb, MOE_ERANGE, "max_tokens is 0");
    if (prompt_len >= c->max_model_len)
        return err_set(eb, MOE_ERANGE,
                       "the prompt has %u tokens: the model's context of %u tokens must have room "
                       "for one more",
                       prompt_len, c->max_model_len);
    const uint32_t total_max =
        prompt_len + min_u32(params->max_tokens, c->max_model_len - prompt_len);
    /* The last token is only sampled, its keys and values are never needed. */
    if (blocks_for(s, total_max - 1) > c->kv_block_count)
        return err_set(eb, MOE_ERANGE,
                       "%u prompt and %u output tokens need %u KV blocks of %u tokens, there are "
                       "%u",
                       prompt_len, total_max - prompt_len, blocks_for(s, total_max - 1),
                       c->kv_block_tokens, c->kv_block_count);
    if (s->waiting.count >= c->max_waiting)
        return err_set(eb, MOE_EBUSY, "%u sequences are waiting already", s->waiting.count);

    seq *q = seq_table_add(s->seqs, total_max);
    if (q == NULL) return err_set(eb, MOE_ENOMEM, "out of memory for %u tokens", total_max);
    q->user = user;
    q->params = *params;
    q->prompt_len = q->total = prompt_len;
    memcpy(q->tokens, prompt, (size_t)prompt_len * sizeof prompt[0]);
    seq_list_push_last(&s->waiting, q);
    *out = q->id;
    return MOE_OK;
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
    q->computed = block_count * s->config.kv_block_tokens;
    q->planned = 0;
}

static void
release_blocks(scheduler *s, const uint32_t *table, uint32_t count)
{
    while (count > 0)
        kv_blocks_release(s->kv, table[--count]);
}

/* Out of the running list, which leaves it in none. */
static void
stop(scheduler *s, seq *q)
{
    release_blocks(s, q->table, q->block_count);
    s->slots_free[q->slot / 64] |= 1ull << q->slot % 64;
    seq_list_remove(&s->running, q);
    q->running = false;
    q->table = NULL;
    q->computed = q->block_count = q->planned = 0;
}

static void
preempt(scheduler *s, seq *q)
{
    assert(q->planned == 0);
    s->plan.preempted++;
    s->plan.limited_by_blocks = true;
    s->stats.preemptions++;
    stop(s, q);
    seq_list_push_first(&s->waiting, q);
}

void *
scheduler_abort(scheduler *s, seq_id id)
{
    assert(!s->in_step);
    seq *q = seq_table_find(s->seqs, id);
    if (q == NULL) return NULL;
    void *user = q->user;
    if (q->running)
        stop(s, q);
    else
        seq_list_remove(&s->waiting, q);
    seq_table_remove(s->seqs, q);
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
    while (s->running.last != NULL) {
        seq *q = s->running.last;
        stop(s, q);
        seq_list_push_first(&s->waiting, q);
    }
    kv_blocks_reset_cache(s->kv);
    s->in_step = false;
    s->plan = (step_plan){0};
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

/* Plan as much of a running sequence as the budget allows, preempting for its blocks.  False if it
 * was itself preempted in the end. */
static bool
plan_running(scheduler *s, seq *q)
{
    const uint32_t want = q->total - q->computed;
    const uint32_t count = min_u32(want, budget_left(s));
    if (count < want) s->plan.limited_by_tokens = true;
    if (count == 0) return true;
    while (!grow_table(s, q, q->computed + count)) {
        seq *youngest = s->running.last;
        preempt(s, youngest);
        if (youngest == q) return false;
    }
    q->planned = count;
    s->plan.token_count += count;
    return true;
}

static void
plan_all_running(scheduler *s)
{
    for (seq *q = s->running.first; q != NULL; q = q->next)
        q->planned = 0;
    /* Who comes after q is asked late: planning q may preempt it. */
    for (seq *q = s->running.first; q != NULL; q = q->next) {
        assert(q->total - q->computed == 1 || q == s->running.last);
        if (!plan_running(s, q)) break;
    }
}

/* Start the first waiting sequence if there are blocks for all tokens it has, not just the first
 * chunk's, and some to spare for the others.  Alone it always finds them: add() saw to it. */
static bool
admit(scheduler *s)
{
    seq *q = s->waiting.first;
    const bool use_cache = s->config.prefix_caching && !q->params.prompt_logprobs;
    const uint32_t slot = slot_take(s);
    q->table = s->tables + (size_t)slot * s->table_max;
    /* The last token is always computed: its row is what the next one is sampled from. */
    const uint32_t cached =
        use_cache ? kv_blocks_match(s->kv, q->tokens, q->total, q->total - 1, q->table) : 0;

    const uint64_t growth = (uint64_t)s->running.count * ADMIT_HEADROOM_STEPS;
    const uint64_t headroom = (growth + s->config.kv_block_tokens - 1) / s->config.kv_block_tokens;
    if (blocks_for(s, q->total) - cached + headroom > kv_blocks_available(s->kv)) {
        assert(s->running.count > 0);
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

static void
plan_waiting(scheduler *s)
{
    const uint32_t max_num_seqs = s->config.max_num_seqs;
    while (s->waiting.count > 0 && s->running.count < max_num_seqs && budget_left(s) > 0) {
        if (!admit(s)) return;
        const bool fits = plan_running(s, s->running.last);
        assert(fits);
        (void)fits;
    }
    if (s->waiting.count == 0) return;
    if (s->running.count == max_num_seqs) s->plan.limited_by_seqs = true;
    if (budget_left(s) == 0) s->plan.limited_by_tokens = true;
}

static void
write_work(scheduler *s, seq *q)
{
    const uint32_t end = q->computed + q->planned;
    s->work_seqs[s->plan.count] = q;
    s->work[s->plan.count++] = (seq_work){.id = q->id,
                                          .user = q->user,
                                          .slot = q->slot,
                                          .init = !q->sent,
                                          .params = &q->params,
                                          .prompt_len = q->prompt_len,
                                          .start_pos = q->computed,
                                          .tokens = q->tokens + q->computed,
                                          .token_count = q->planned,
                                          .all_tokens = q->tokens,
                                          .total_tokens = q->total,
                                          .block_start = q->block_sent,
                                          .blocks = q->table + q->block_sent,
                                          .block_count = q->block_count - q->block_sent,
                                          .sample = end == q->total};
}

void
scheduler_plan(scheduler *s, step_plan *out)
{
    assert(!s->in_step);
    s->plan = (step_plan){.work = s->work};
    plan_all_running(s);
    if (s->plan.preempted == 0) plan_waiting(s);
    for (seq *q = s->running.first; q != NULL; q = q->next) {
        if (q->planned > 0) write_work(s, q);
    }
    s->in_step = s->plan.count > 0;
    *out = s->plan;
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
    q->sent = true;
    q->block_sent = q->block_count;
    q->computed += work->token_count;
    q->planned = 0;
    const uint32_t full = q->computed / s->config.kv_block_tokens;
    for (; q->block_registered < full; q->block_registered++)
        kv_blocks_register(s->kv, q->tokens, q->table, q->block_registered);

    outcome->finished = FINISH_NONE;
    if (!work->sample) return;
    outcome->finished = scheduler_finish_with(s, work, outcome->token);
    if (outcome->finished == FINISH_NONE && outcome->stop) outcome->finished = FINISH_STOP;
    if (outcome->finished == FINISH_NONE) {
        assert(q->total < q->total_max);
        q->tokens[q->total++] = outcome->token;
        return;
    }
    stop(s, q);
    seq_table_remove(s->seqs, q);
}

void
scheduler_commit(scheduler *s, seq_outcome *outcomes)
{
    if (!s->in_step) return;
    for (uint32_t i = 0; i < s->plan.count; i++)
        commit_one(s, s->work_seqs[i], &s->work[i], &outcomes[i]);
    s->in_step = false;
    s->stats.steps++;
    s->stats.steps_limited_by_seqs += s->plan.limited_by_seqs;
    s->stats.steps_limited_by_tokens += s->plan.limited_by_tokens;
    s->stats.steps_limited_by_blocks += s->plan.limited_by_blocks;
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
