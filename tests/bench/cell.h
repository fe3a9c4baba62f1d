/* cell: a router with its workers, as the engine benchmark drives them: steps in, tokens out.
 *
 * Two implementations of these functions, one for each program:
 *   cell_fleet.c   starts conclave-router and conclave-worker, and calls the router's Step RPC, as
 *                  a frontend does; in conclave-bench
 *   cell_local.c   the same transformer and the same experts in this one process, on one set of
 *                  threads, with a function call in place of the exchange; in
 *                  conclave-bench-colocated.  What the split costs is the difference.
 *
 * Threads: one at a time.
 */
#ifndef MOE_TESTS_BENCH_CELL_H
#define MOE_TESTS_BENCH_CELL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

typedef struct cell cell;

typedef struct cell_options {
    const char *model, *dtype, *attn_dtype, *kv_dtype;
    const char *parallelism, *exchange, *bin_dir; /* cell_fleet only, as are the flags */
    const char *router_flags, *worker_flags;
    uint32_t workers;
    uint32_t threads; /* of each process; 0 = as many as CPUs */
    uint32_t seq_max, token_max, model_len, blocks_per_seq;
} cell_options;

/* One sequence's part of a step. */
typedef struct cell_work {
    uint32_t slot; /* below seq_max; its KV blocks are those of the slot */
    bool first;    /* a new sequence takes the slot */
    uint32_t prompt_len;
    uint32_t start_pos;
    const uint32_t *tokens; /* [count] */
    uint32_t count;
    bool
        last_sampled; /* the one token is what the slot sampled in the step before; not in tokens */
    bool sample;      /* the next token, greedily */
} cell_work;

#define CELL_STEPS 2 /* in flight, as the frontend has them */

typedef struct cell_times {
    uint64_t step_ns;        /* in the router */
    uint64_t expert_wait_ns; /* of it, waiting for workers, or computing experts where they are one
                                process */
} cell_times;

/* Which of the two this program has. */
extern const bool cell_is_local;

/* Start and load.  bin_dir, options' texts: borrowed until cell_close(). */
moe_err cell_open(cell **out, const cell_options *options, errbuf *eb);
void cell_close(cell *c); /* accepts NULL */

/* Ask for a step, at most CELL_STEPS ahead of their ends; work is read before this returns. */
moe_err cell_begin(cell *c, const cell_work *work, uint32_t count, errbuf *eb);
/* Wait for the oldest one.  sampled [count]: the token of each work that asked for one. */
moe_err cell_end(cell *c, uint32_t *sampled, cell_times *times, errbuf *eb);

#endif
