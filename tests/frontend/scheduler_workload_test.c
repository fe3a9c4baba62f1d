/* scheduler: random workloads against a router made of hashes.
 *
 * The router of this test keeps, for every position of every block, a hash of all tokens up to
 * there, as a real one keeps keys and values that depend on them.  Before it computes a chunk it
 * checks that every earlier position of the sequence holds the right hash, reached only through the
 * block table it was sent: a block shared wrongly, handed out twice, or not sent is found.  The
 * token it samples is a function of the same hash, so every sequence must come out as it would
 * alone.  Steps are planned ahead of their commits at random; the router carries them out in order.
 */
#include <criterion/criterion.h>

#include <string.h>

#include "common/hash.h"
#include "frontend/scheduler.h"

#define SLOTS 6
#define BLOCKS_MAX 64
#define BLOCK_TOKENS_MAX 8
#define MODEL_LEN 48
#define SEQS 40
#define VOCAB 64
#define EOS 3

typedef struct request {
    seq_id id;
    gen_params params;
    uint32_t prompt_len, total;
    uint32_t sampling; /* tokens the router has sampled and nobody has heard of */
    uint32_t tokens[MODEL_LEN];
    bool running, done;
} request;

/* A step in flight. */
typedef struct flown {
    step_plan plan;
    request *owners[SLOTS];
    uint32_t tokens[SLOTS];
} flown;

typedef struct workload {
    scheduler *s;
    scheduler_config config;
    uint64_t rng;
    request requests[SEQS]; /* in order of arrival */
    uint32_t added, done;
    uint64_t memory[BLOCKS_MAX][BLOCK_TOKENS_MAX];
    uint32_t tables[SLOTS][MODEL_LEN];
    uint32_t table_len[SLOTS];
    const request *owners[SLOTS];
    uint32_t history[SLOTS][MODEL_LEN], sampled[SLOTS]; /* what the router knows */
    flown flights[STEPS_IN_FLIGHT];
    uint32_t flight_count;
    uint64_t ahead, gone_ahead; /* tokens fed unseen; rows computed for who had ended */
} workload;

TestSuite(scheduler_workload, .timeout = 60);

static uint32_t
draw(workload *w, uint32_t below)
{
    return (uint32_t)((w->rng = hash_mix(w->rng)) % below);
}

static uint64_t
prefix_hash(uint64_t before, uint32_t token)
{
    return hash_combine(before, token);
}

static uint32_t
sampled_token(uint64_t prefix, uint64_t seed)
{
    return (uint32_t)(hash_combine(prefix, seed) % VOCAB);
}

static finish_reason
expected_end(const request *r, uint32_t token)
{
    const uint32_t sampled = r->total - r->prompt_len; /* before this token */
    if (sampled >= r->params.min_tokens && token == EOS && !r->params.ignore_eos)
        return FINISH_STOP;
    return sampled + 1 == r->params.max_tokens || r->total + 1 == MODEL_LEN ? FINISH_LENGTH
                                                                            : FINISH_NONE;
}

/* ---------------------------------------------------------------- the router */

static uint64_t *
memory_at(workload *w, uint32_t slot, uint32_t position)
{
    const uint32_t bt = w->config.kv_block_tokens;
    cr_assert_lt(position / bt, w->table_len[slot], "no block for position %u", position);
    return &w->memory[w->tables[slot][position / bt]][position % bt];
}

static void
router_take_table(workload *w, const seq_work *k, const request *r)
{
    cr_assert_lt(k->slot, w->config.max_num_seqs);
    if (k->init) {
        w->table_len[k->slot] = 0;
        w->owners[k->slot] = r;
    }
    cr_assert_eq(w->owners[k->slot], r, "the slot belongs to another sequence");
    cr_assert_eq(k->block_start, w->table_len[k->slot]);
    for (uint32_t i = 0; i < k->block_count; i++) {
        cr_assert_lt(k->blocks[i], w->config.kv_block_count);
        w->tables[k->slot][w->table_len[k->slot]++] = k->blocks[i];
    }
    const uint32_t end = k->start_pos + k->token_count, bt = w->config.kv_block_tokens;
    cr_assert_eq(w->table_len[k->slot], (end + bt - 1) / bt, "exactly the blocks of this step");
}

/* No block written in this step is in another table of this step. */
static void
router_check_writes(workload *w, const step_plan *p)
{
    uint32_t readers[BLOCKS_MAX] = {0};
    for (uint32_t i = 0; i < p->count; i++)
        for (uint32_t b = 0; b < w->table_len[p->work[i].slot]; b++)
            readers[w->tables[p->work[i].slot][b]]++;
    for (uint32_t i = 0; i < p->count; i++) {
        const uint32_t slot = p->work[i].slot;
        for (uint32_t b = p->work[i].start_pos / w->config.kv_block_tokens; b < w->table_len[slot];
             b++)
            cr_assert_eq(readers[w->tables[slot][b]], 1, "a block is written and shared");
    }
}

/* Returns what it samples. */
static uint32_t
router_compute(workload *w, const seq_work *k)
{
    const uint32_t end = k->start_pos + k->token_count;
    uint32_t *history = w->history[k->slot];
    if (k->init) memcpy(history, k->all_tokens, k->start_pos * sizeof history[0]);
    if (k->token_is_last_sampled) {
        cr_assert_eq(k->token_count, 1);
        history[k->start_pos] = w->sampled[k->slot];
        w->ahead++;
    } else {
        memcpy(history + k->start_pos, k->tokens, k->token_count * sizeof history[0]);
    }
    uint64_t hash = 0;
    for (uint32_t pos = 0; pos < end; pos++) {
        hash = prefix_hash(hash, history[pos]);
        uint64_t *at = memory_at(w, k->slot, pos);
        if (pos < k->start_pos)
            cr_assert_eq(*at, hash, "position %u of sequence %lu is stale", pos,
                         (unsigned long)k->id);
        else
            *at = hash;
    }
    return w->sampled[k->slot] = sampled_token(hash, k->params->seed);
}

static void
router_forget(workload *w)
{
    memset(w->memory, 0, sizeof w->memory);
    memset(w->table_len, 0, sizeof w->table_len);
    memset(w->owners, 0, sizeof w->owners);
}

/* ---------------------------------------------------------------- what a plan must be */

static uint32_t
count_running(const workload *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->added; i++)
        n += w->requests[i].running;
    return n;
}

/* Preempted are the youngest running ones; admitted is who waits longest. */
static void
follow_admission(workload *w, const step_plan *p)
{
    uint32_t left = p->preempted;
    for (uint32_t i = w->added; i-- > 0 && left > 0;) {
        left -= w->requests[i].running;
        w->requests[i].running = false;
    }
    cr_assert_eq(left, 0);
    for (uint32_t i = 0; i < p->count; i++) {
        request *r = p->work[i].user;
        cr_assert_eq(p->work[i].init, !r->running);
        if (r->running) continue;
        cr_assert_eq(p->preempted, 0, "admitted beside a preemption");
        r->running = true;
        for (request *older = w->requests; older < r; older++)
            cr_assert(older->running || older->done, "an older one was overtaken");
    }
}

static void
check_plan(workload *w, const step_plan *p)
{
    uint32_t tokens = 0, slots = 0;
    bool prefills = false;
    for (uint32_t i = 0; i < p->count; i++) {
        const seq_work *k = &p->work[i];
        const request *r = k->user;
        cr_assert_eq(k->id, r->id);
        cr_assert_eq(k->prompt_len, r->prompt_len);
        const uint32_t total = r->total + r->sampling;
        cr_assert_eq(k->total_tokens, total);
        cr_assert_eq(k->token_is_last_sampled, r->sampling > 0);
        cr_assert_eq(memcmp(k->all_tokens, r->tokens, r->total * sizeof r->tokens[0]), 0);
        cr_assert_eq(k->tokens, k->all_tokens + k->start_pos);
        cr_assert_eq(k->sample, k->start_pos + k->token_count == total);
        cr_assert(!k->init || !r->params.prompt_logprobs || k->start_pos == 0);
        cr_assert_gt(k->token_count, 0);
        const bool decode = !k->init && k->start_pos >= r->prompt_len && k->token_count == 1;
        cr_assert(!(decode && prefills), "a decode behind a prefill");
        prefills |= !decode;
        tokens += k->token_count;
        cr_assert_eq(slots >> k->slot & 1, 0);
        slots |= 1u << k->slot;
    }
    cr_assert_eq(tokens, p->token_count);
    cr_assert_leq(tokens, w->config.max_num_batched_tokens);
    cr_assert_leq(count_running(w), w->config.max_num_seqs);

    scheduler_stats st;
    scheduler_get_stats(w->s, &st);
    cr_assert_eq(st.running, count_running(w));
    cr_assert_eq(st.running + st.waiting, w->added - w->done);
    cr_assert_leq(st.blocks_used, st.blocks_total);
    cr_assert(p->count > 0 || w->flight_count > 0 || w->added == w->done, "nothing moves");
    cr_assert(p->preempted == 0 || w->flight_count == 0, "preempted under a step in flight");
}

/* ---------------------------------------------------------------- driving it */

static void
end(workload *w, request *r)
{
    cr_assert_not(r->done);
    r->done = true;
    r->running = false;
    w->done++;
}

static void
submit(workload *w)
{
    request *r = &w->requests[w->added];
    const uint32_t capacity = w->config.kv_block_count * w->config.kv_block_tokens;
    const uint32_t len_max = capacity + 1 < MODEL_LEN ? capacity + 1 : MODEL_LEN;
    r->prompt_len = r->total = 1 + draw(w, len_max - 1);
    r->params = (gen_params){.max_tokens = 1 + draw(w, len_max - r->prompt_len),
                             .seed = draw(w, 4),
                             .ignore_eos = draw(w, 3) == 0,
                             .min_tokens = draw(w, 4),
                             .prompt_logprobs = draw(w, 8) == 0};
    /* Few different prompts, so that prefixes are shared and then part. */
    const uint32_t family = draw(w, 3), parts_at = draw(w, MODEL_LEN);
    for (uint32_t i = 0; i < r->prompt_len; i++)
        r->tokens[i] = i < parts_at ? family * 7 + i % 5 : draw(w, VOCAB);
    errbuf eb;
    const moe_err err = scheduler_add(w->s, r->tokens, r->prompt_len, &r->params, r, &r->id, &eb);
    if (err == MOE_EBUSY) return;
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    w->added++;
}

/* The router is gone before it answers. */
static void
lose_router(workload *w)
{
    scheduler_rollback(w->s);
    router_forget(w);
    w->flight_count = 0;
    for (uint32_t i = 0; i < w->added; i++) {
        w->requests[i].running = false;
        w->requests[i].sampling = 0;
    }
}

static void
launch(workload *w)
{
    flown *f = &w->flights[w->flight_count];
    scheduler_plan(w->s, &f->plan);
    follow_admission(w, &f->plan);
    check_plan(w, &f->plan);
    for (uint32_t i = 0; i < f->plan.count; i++)
        router_take_table(w, &f->plan.work[i], f->plan.work[i].user);
    router_check_writes(w, &f->plan);
    for (uint32_t i = 0; i < f->plan.count; i++) {
        f->owners[i] = f->plan.work[i].user;
        f->tokens[i] = router_compute(w, &f->plan.work[i]);
        f->owners[i]->sampling += f->plan.work[i].sample;
    }
    if (f->plan.count > 0) w->flight_count++;
}

static void
land(workload *w)
{
    const flown f = w->flights[0];
    seq_outcome outcomes[SLOTS] = {0};
    finish_reason ends[SLOTS] = {FINISH_NONE};
    for (uint32_t i = 0; i < f.plan.count; i++) {
        request *r = f.owners[i];
        cr_assert_eq(f.plan.work[i].user, r->done ? NULL : (void *)r);
        w->gone_ahead += r->done;
        if (r->done || !f.plan.work[i].sample) continue;
        const uint32_t token = outcomes[i].token = f.tokens[i];
        outcomes[i].stop = draw(w, 50) == 0;
        ends[i] = expected_end(r, token);
        cr_assert_eq(scheduler_finish_with(w->s, &f.plan.work[i], token), ends[i]);
        if (ends[i] == FINISH_NONE && outcomes[i].stop) ends[i] = FINISH_STOP;
        r->tokens[r->total++] = token;
        r->sampling--;
    }
    scheduler_commit(w->s, outcomes);
    w->flights[0] = w->flights[1];
    w->flight_count--;
    for (uint32_t i = 0; i < f.plan.count; i++) {
        cr_assert_eq(outcomes[i].finished, ends[i]);
        if (ends[i] != FINISH_NONE) end(w, f.owners[i]);
    }
}

static void
step(workload *w)
{
    if (w->flight_count < STEPS_IN_FLIGHT && (w->flight_count == 0 || draw(w, 4) != 0)) launch(w);
    if (draw(w, 40) == 0)
        lose_router(w);
    else if (w->flight_count > 0 && draw(w, 3) != 0)
        land(w);
}

static void
abort_one(workload *w)
{
    if (w->added == 0) return;
    request *r = &w->requests[draw(w, w->added)];
    void *user = scheduler_abort(w->s, r->id);
    cr_assert_eq(user, r->done ? NULL : (void *)r);
    if (!r->done) end(w, r);
}

/* What the sequence samples when it is alone: no batch, no cache, no scheduler. */
static void
check_tokens(const request *r)
{
    uint64_t hash = 0;
    for (uint32_t pos = 0; pos < r->total; pos++) {
        if (pos >= r->prompt_len) cr_assert_eq(r->tokens[pos], sampled_token(hash, r->params.seed));
        hash = prefix_hash(hash, r->tokens[pos]);
    }
}

static workload w;

static scheduler_stats
run_workload(uint64_t seed, bool tight)
{
    w = (workload){.rng = hash_mix(seed)};
    w.config = (scheduler_config){.max_num_seqs = 1 + draw(&w, SLOTS),
                                  .max_num_batched_tokens = 1 + draw(&w, tight ? 24 : 80),
                                  .max_model_len = MODEL_LEN,
                                  .max_waiting = 1 + draw(&w, 12),
                                  .kv_block_count = tight ? 1 + draw(&w, 12) : BLOCKS_MAX,
                                  .kv_block_tokens = 1 + draw(&w, BLOCK_TOKENS_MAX),
                                  .prefix_caching = draw(&w, 4) != 0,
                                  .eos_ids = {EOS},
                                  .eos_count = 1};
    cr_assert_eq(scheduler_create(&w.s, &w.config, NULL), MOE_OK);
    for (int steps = 0; w.done < SEQS; steps++) {
        cr_assert_lt(steps, 20000, "seed %lu does not end", (unsigned long)seed);
        while (w.added < SEQS && draw(&w, 3) != 0)
            submit(&w);
        if (draw(&w, 25) == 0) abort_one(&w);
        step(&w);
    }
    while (w.flight_count > 0)
        land(&w);
    scheduler_stats st;
    scheduler_get_stats(w.s, &st);
    cr_assert_eq(st.blocks_used, 0, "blocks leaked");
    cr_assert_eq(st.running + st.waiting, 0);
    for (uint32_t i = 0; i < SEQS; i++)
        check_tokens(&w.requests[i]);
    scheduler_free(w.s);
    return st;
}

Test(scheduler_workload, every_sequence_samples_what_it_would_alone)
{
    uint64_t preemptions = 0, hits = 0, by_seqs = 0, by_tokens = 0, by_blocks = 0;
    uint64_t ahead = 0, gone_ahead = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        const scheduler_stats st = run_workload(seed, seed % 4 != 0);
        preemptions += st.preemptions;
        hits += st.prefix_hit_tokens;
        by_seqs += st.steps_limited_by_seqs;
        by_tokens += st.steps_limited_by_tokens;
        by_blocks += st.steps_limited_by_blocks;
        cr_assert_leq(st.prefix_hit_tokens, st.prefix_query_tokens);
        ahead += w.ahead;
        gone_ahead += w.gone_ahead;
    }
    /* The workloads must have met what they are for. */
    cr_expect_gt(preemptions, 200, "%lu", (unsigned long)preemptions);
    cr_expect_gt(hits, 2000, "%lu", (unsigned long)hits);
    cr_expect(ahead > 5000 && gone_ahead > 200, "%lu %lu", (unsigned long)ahead,
              (unsigned long)gone_ahead);
    cr_expect(by_seqs > 500 && by_tokens > 500 && by_blocks > 500, "%lu %lu %lu",
              (unsigned long)by_seqs, (unsigned long)by_tokens, (unsigned long)by_blocks);
}
