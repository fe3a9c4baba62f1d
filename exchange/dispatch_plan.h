/* dispatch_plan: turn the gate's top-k choices into one list of rows per worker.
 *
 * The gate says "token t goes to experts e0..ek-1".  A worker wants the opposite view: "of the
 * experts you host, expert e owns these rows". The plan holds that inverse for all workers, and for
 * the way back where each (token, choice)'s result row will lie.
 *
 *   T tokens   K top-k   E experts   W workers
 *   a row slot is token * K + choice
 *
 * Expert parallel: a row goes to the one worker that the layer's placement names for its expert,
 * or, where an expert has replicas, to one of several: the first so many of its rows to the first
 * of them, and so on. Tensor parallel: every row goes to every worker. Rows of one expert keep
 * token order, experts rise: the lists are the same for the same choices.
 *
 * Source: counting sort by expert; same quantities as DeepEP's dispatch layout
 * (num_tokens_per_expert), computed on the host.
 *
 * Threads: a plan belongs to one thread at a time.  Only create() allocates.
 */
#ifndef MOE_EXCHANGE_DISPATCH_PLAN_H
#define MOE_EXCHANGE_DISPATCH_PLAN_H

#include <stdint.h>

#include "common/err.h"
#include "exchange/wire.h"

typedef struct dispatch_plan dispatch_plan;

/* One worker's share: borrowed from the plan, valid until the next build. */
typedef struct dispatch_list {
    const wire_expert *experts; /* [expert_count], rising */
    uint32_t expert_count;
    const uint32_t *row_slots; /* [row_count], grouped by expert */
    const float *weights;      /* [row_count] top-k weights; WIRE_TP only, else NULL */
    uint32_t row_count;
} dispatch_list;

/* The next row_count rows of an expert, in token order, go to this worker. */
typedef struct dispatch_run {
    uint32_t worker, row_count;
} dispatch_run;

/* How the rows of every expert are split over workers; borrowed. */
typedef struct dispatch_split {
    const uint32_t *run_first; /* [E + 1] expert e has runs run_first[e] .. run_first[e + 1] - 1 */
    const dispatch_run *runs;  /* workers rise within an expert; a run may be empty */
} dispatch_split;

/* On error *out is NULL.  MOE_ERANGE (limits, worker_count 0 or > WORKER_MAX), MOE_ENOMEM. */
moe_err dispatch_plan_create(dispatch_plan **out, const exchange_limits *limits,
                             uint32_t worker_max);
void dispatch_plan_free(dispatch_plan *plan); /* accepts NULL */

/* Build for one micro-batch.
 *   expert_worker  [E] worker of each expert in this layer (WIRE_EP); ignored for WIRE_TP
 *   worker_count   W; every worker gets a list, possibly empty (WIRE_TP: the same list)
 *   topk_ids       [T, K]
 *   topk_weights   [T, K]
 * On error the plan is left empty.
 *   MOE_ERANGE  T or W above the limits
 *   MOE_EINVAL  an expert id >= E, or its worker >= W  */
moe_err dispatch_plan_build(dispatch_plan *plan, enum wire_mode mode, const uint32_t *expert_worker,
                            uint32_t worker_count, const uint32_t *topk_ids,
                            const float *topk_weights, uint32_t token_count);

/* Rows of each expert, as a split needs them before it is chosen.
 *   counts  [E]
 *   MOE_ERANGE  T above the limit
 *   MOE_EINVAL  an expert id >= E  */
moe_err dispatch_plan_count(const dispatch_plan *plan, const uint32_t *topk_ids,
                            uint32_t token_count, uint32_t *counts);

/* Build for one micro-batch of WIRE_EP whose experts' rows are split over workers.  Which worker
 * computes a row does not change its result.
 * Shapes and errors as above, and
 *   MOE_EINVAL  an expert's runs don't add up to its rows, or their workers don't rise  */
moe_err dispatch_plan_build_split(dispatch_plan *plan, const dispatch_split *split,
                                  uint32_t worker_count, const uint32_t *topk_ids,
                                  uint32_t token_count);

dispatch_list dispatch_plan_list(const dispatch_plan *plan, uint32_t worker);

/* WIRE_EP: where the result of row slot s will lie: row `*row` of worker `*worker`'s result. */
void dispatch_plan_home(const dispatch_plan *plan, uint32_t row_slot, uint32_t *worker,
                        uint32_t *row);

/* [E] rows per expert of the last build: the statistics that balancing works from. */
const uint32_t *dispatch_plan_expert_counts(const dispatch_plan *plan);

#endif
