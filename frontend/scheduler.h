/* scheduler: which sequences run in the next step, and with how many tokens.
 *
 * Continuous batching: every step is planned anew.  Running sequences decode first, one token each,
 * then prompts are filled in chunks with what is left of max_num_batched_tokens, first come first
 * served; at most max_num_seqs sequences run.  When KV blocks run out the youngest running sequence
 * is preempted: its blocks are freed and its tokens are computed again later (same bits, so nobody
 * notices).  Waiting is bounded by max_waiting.
 *
 * Pure bookkeeping: no threads, no clocks, no I/O.  The engine calls plan(), has the router run it,
 * and calls commit() with what was sampled.
 *
 *   scheduler_add -> waiting -> (plan) running -> (commit: finished, or scheduler_abort) -> gone
 *
 * Up to STEPS_IN_FLIGHT steps may be planned ahead of their commits: a decode then feeds a token
 * that is not known yet, the one its step before samples.  A sequence that turns out to be finished
 * keeps its slot and blocks until its last step in flight is committed; what that step computed for
 * it is discarded and never enters the prefix cache.  Planning ahead never preempts: when blocks
 * run out it plans nothing, and the next plan with nothing in flight preempts.
 *
 * Source: the policy is vLLM's V1 scheduler (unified token budget, chunked prefill, preemption by
 * recompute), with decodes ahead of chunks so that running streams never stall behind a long
 * prompt.
 *
 * Threads: one owner.
 */
#ifndef MOE_FRONTEND_SCHEDULER_H
#define MOE_FRONTEND_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "frontend/gen_params.h"
#include "frontend/kv_blocks.h"

#define STEPS_IN_FLIGHT 2

typedef struct scheduler_config {
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens; /* tokens of one step, prompts and decodes together */
    uint32_t max_model_len;          /* prompt + output, tokens */
    uint32_t max_waiting;            /* sequences that are not running yet */
    uint32_t kv_block_count;
    uint32_t kv_block_tokens;
    bool prefix_caching;
    uint32_t eos_ids[8];
    uint32_t eos_count;
    struct seq_table *seqs; /* borrowed: of several schedulers that share their sequences, with
                               scheduler_put(); NULL = one of its own, with scheduler_add() */
} scheduler_config;

typedef struct scheduler scheduler;
typedef uint64_t seq_id; /* never reused; 0 = none */

typedef enum finish_reason {
    FINISH_NONE = 0,
    FINISH_STOP,   /* an end-of-sequence or stop token; also a stop string, seen by the sink */
    FINISH_LENGTH, /* max_tokens, or the context is full */
    FINISH_ABORT,
    FINISH_ERROR
} finish_reason;

/* MOE_ERANGE, as scheduler_create(). */
moe_err scheduler_check_config(const scheduler_config *config, errbuf *eb);

/* Create with everything allocated for its limits; sequences' token arrays are allocated in add().
 *   MOE_ERANGE  a limit is 0 or too large, max_model_len < 2, eos_count > 8
 *   MOE_ENOMEM  */
moe_err scheduler_create(scheduler **out, const scheduler_config *config, errbuf *eb);
void scheduler_free(scheduler *s); /* accepts NULL */

/* Queue a sequence.
 *   prompt  [prompt_len] copied
 *   params  copied; its bias arrays are borrowed until the sequence is gone
 *   MOE_EBUSY   max_waiting sequences wait already
 *   MOE_ERANGE  the prompt is empty, does not leave room for one token in max_model_len, or needs
 *               more blocks than exist, with all of its output; max_tokens is 0
 *   MOE_ENOMEM  */
moe_err scheduler_add(scheduler *s, const uint32_t *prompt, uint32_t prompt_len,
                      const gen_params *params, void *user, seq_id *out, errbuf *eb);

/* The checks of scheduler_add() but for MOE_EBUSY and MOE_ENOMEM.  *total_max: tokens the sequence
 * can grow to. */
moe_err scheduler_check(const scheduler *s, uint32_t prompt_len, const gen_params *params,
                        uint32_t *total_max, errbuf *eb);

/* With a shared table: queue a sequence of it that no scheduler has, with the tokens it has by now;
 * it must pass scheduler_fits().  take() gives the first waiting one back, NULL when none waits. */
struct seq;
bool scheduler_fits(const scheduler *s, uint32_t total_max);
void scheduler_put(scheduler *s, struct seq *q);
struct seq *scheduler_take(scheduler *s);

/* Tokens of such a sequence that the prefix cache holds now. */
uint32_t scheduler_cached_tokens(const scheduler *s, const struct seq *q);
/* Are the blocks free that such a sequence needs to start, beside those that wait here? */
bool scheduler_has_blocks(const scheduler *s, const struct seq *q);
/* Sequences that run or wait here. */
uint32_t scheduler_load(const scheduler *s);
/* Whether more wait elsewhere, for a slot of any scheduler, and whether it is KV blocks that they
 * wait for: limited_by_seqs and limited_by_blocks tell of them too. */
void scheduler_set_backlog(scheduler *s, bool backlog, bool for_blocks);

/* Take a sequence out, wherever it is; its blocks are free when its steps in flight are committed.
 * Returns its user pointer, or NULL if it is unknown (finished meanwhile). */
void *scheduler_abort(scheduler *s, seq_id id);
/* The same for any one sequence; NULL when there is none. */
void *scheduler_abort_any(scheduler *s);

/* One sequence's part of a step.  Pointers are borrowed until commit(). */
typedef struct seq_work {
    seq_id id;
    void *user;    /* NULL: the sequence ended since, results are of no interest */
    uint32_t slot; /* of the router, 0 .. max_num_seqs-1; kept while the sequence runs */
    bool init;     /* first work in this slot (new, or resumed after preemption) */
    const gen_params *params;
    uint32_t prompt_len;
    uint32_t start_pos;     /* tokens[0]'s position; with init: also the number of cached tokens */
    const uint32_t *tokens; /* [token_count] */
    uint32_t token_count;
    bool token_is_last_sampled; /* the one token is what the step before samples; not known yet */
    const uint32_t *all_tokens; /* the sequence from position 0: history, and the next prompt token;
                                   known up to the end of what was committed */
    uint32_t total_tokens;      /* tokens before the one that is sampled: prompt and output */
    uint32_t block_start;       /* block table entries from this index on are new to the router */
    const uint32_t *blocks;     /* [block_count] */
    uint32_t block_count;
    bool sample; /* the chunk reaches the last known token: sample the next */
} seq_work;

typedef struct step_plan {
    const seq_work *work; /* [count], decodes first */
    uint32_t count;
    uint32_t token_count;
    uint32_t preempted; /* sequences preempted while planning */
    bool limited_by_seqs, limited_by_tokens,
        limited_by_blocks; /* which knob kept something from running */
} step_plan;

/* Plan the next step, at most STEPS_IN_FLIGHT at a time; count 0 when there is nothing to run (that
 * plan is not committed).  Every plan with work is followed by commit() or rollback(). */
void scheduler_plan(scheduler *s, step_plan *out);

/* What became of a sequence in the step. */
typedef struct seq_outcome {
    uint32_t token;         /* sampled; only where work.sample */
    bool stop;              /* the sink wants the sequence ended after this token (stop string) */
    finish_reason finished; /* out: FINISH_NONE while it goes on */
} seq_outcome;

/* Whether the sequence would end with this token; the engine asks before it tells the sink.
 * FINISH_STOP for an end-of-sequence (unless ignore_eos) or stop token, but not while fewer than
 * min_tokens were sampled before it; else FINISH_LENGTH when it is the last that fits. */
finish_reason scheduler_finish_with(const scheduler *s, const seq_work *work, uint32_t token);

/* Apply the oldest step in flight.  outcomes [plan.count], in the plan's order; `finished` of each
 * is set: what scheduler_finish_with() says, else FINISH_STOP where `stop` is set; FINISH_NONE
 * where work.user is NULL.  Finished sequences are gone afterwards: their blocks are released (at
 * once, or with their last step in flight), full ones stay findable by prefix. */
void scheduler_commit(scheduler *s, seq_outcome *outcomes);

/* The steps in flight failed (the router is gone): every running sequence goes back to waiting, in
 * order, with its tokens; cached blocks are forgotten.  Nothing is lost. */
void scheduler_rollback(scheduler *s);

typedef struct scheduler_stats {
    uint32_t running, waiting;
    uint32_t blocks_used, blocks_total;
    uint64_t preemptions; /* since start */
    uint64_t prefix_query_tokens, prefix_hit_tokens;
    uint64_t steps, steps_limited_by_seqs, steps_limited_by_tokens, steps_limited_by_blocks;
} scheduler_stats;

void scheduler_get_stats(const scheduler *s, scheduler_stats *out);

#endif
