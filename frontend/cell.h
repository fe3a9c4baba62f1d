/* cell: the sequences of all routers of a cell: a queue in front, and for each router a scheduler
 * with slots, KV blocks and a prefix cache of its own.
 *
 *   cell_submit -> queue -> (place) a router's scheduler -> gone
 *                    ^--------------- (recall) -----'
 *
 * A sequence waits in the queue until a router has a place for it (router_choice.h), so that no
 * slot stays empty while somebody waits.  It then belongs to that router until it ends, or until
 * the router is given up: recall() takes its sequences back, in order of arrival, with the tokens
 * they have, and another router computes their keys and values again.
 *
 * Limits.  Each router says its own (its share of the cell's --max-num-seqs and
 * --max-num-batched-tokens).  Waiting is bounded for the cell as a whole.
 *
 * Pure bookkeeping: no threads, no clocks, no I/O.
 *
 * Threads: one owner.
 */
#ifndef MOE_FRONTEND_CELL_H
#define MOE_FRONTEND_CELL_H

#include "frontend/scheduler.h"

#define CELL_ROUTERS_MAX 64

typedef struct cell cell;

typedef struct cell_config {
    uint32_t router_count; /* 1 .. CELL_ROUTERS_MAX */
    uint32_t max_waiting;  /* sequences that are not running yet, in the cell */
    bool prefix_caching;
    uint32_t eos_ids[8];
    uint32_t eos_count;
} cell_config;

/* What a router says of itself. */
typedef struct router_limits {
    uint32_t max_num_seqs, max_num_batched_tokens, max_model_len, kv_block_count, kv_block_tokens;
} router_limits;

/*   MOE_ERANGE  router_count, eos_count
 *   MOE_ENOMEM  */
moe_err cell_create(cell **out, const cell_config *config, errbuf *eb);
void cell_free(cell *c); /* accepts NULL */

/* A router is there, for the first time or again.  The first one of all opens the cell: until then
 * submits are refused.
 *   MOE_ERANGE     a limit is 0 or too large
 *   MOE_EMISMATCH  it has other limits than when it was there before, or another context or block
 *                  size than the other routers, or more than one sequence more than the first one:
 *                  shares of one total are not further apart
 *   MOE_ENOMEM  */
moe_err cell_set_router(cell *c, uint32_t router, const router_limits *limits, errbuf *eb);
bool cell_is_open(const cell *c);
uint32_t cell_max_model_len(const cell *c); /* 0 before it is open */
/* Sequences at most in the table, running or not; 0 before the cell is open. */
uint32_t cell_capacity(const cell *c);

/* Of a router that was there, to plan its steps and commit them; else NULL. */
scheduler *cell_scheduler(const cell *c, uint32_t router);

/* Queue a sequence.  prompt and params as scheduler_add().
 *   MOE_ECLOSED  the cell is not open
 *   MOE_EBUSY    max_waiting sequences, and as many as can run at a time, wait already
 *   MOE_ERANGE   as scheduler_add(), of the router with the most room
 *   MOE_ENOMEM  */
moe_err cell_submit(cell *c, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
                    void *user, seq_id *out, errbuf *eb);

/* Take a sequence out, or any one; see scheduler_abort(). */
void *cell_abort(cell *c, seq_id id);
void *cell_abort_any(cell *c);

/* Give sequences of the queue, first come first served, to routers that are up and have a place.
 *   up  [router_count]  */
void cell_place(cell *c, const bool *up);

/* Take back everything a router has; nothing of it may be in flight (scheduler_rollback()).
 * Returns how many. */
uint32_t cell_recall(cell *c, uint32_t router);

typedef struct cell_stats {
    scheduler_stats sum;                         /* of all routers; waiting: in the queue too */
    uint32_t queued;                             /* in the queue */
    uint64_t placed, placed_by_prefix, recalled; /* sequences, since create */
} cell_stats;

void cell_get_stats(const cell *c, cell_stats *out);

#endif
