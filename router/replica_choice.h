/* replica_choice: which replica computes which rows, for one layer of one micro-batch.
 *
 * Where an expert has several hosts, its rows are split over them so that all workers finish at
 * about the same time: rows go to the hosts that have the fewest so far, up to a common level
 * ("water-filling"). Experts with one host are counted first, then the others are filled in rising
 * order, and twice taken out and filled again, which moves rows along chains of hosts that share
 * experts.
 *
 * A pure function of its arguments, in whole numbers: the same step gives the same choice, on every
 * machine.  What a row's result is does not depend on it.
 *
 *   E experts   W workers   S slots of the layer
 *
 * Threads: one owner; only create() allocates.
 */
#ifndef MOE_ROUTER_REPLICA_CHOICE_H
#define MOE_ROUTER_REPLICA_CHOICE_H

#include <stdint.h>

#include "common/err.h"
#include "exchange/dispatch_plan.h"
#include "router/placement.h"

#define REPLICA_SPEED_MAX PLACEMENT_SPEED_MAX
/* run_min of a router: reading an expert's weights once more, on another worker, takes about as
 * long as so many rows. */
#define REPLICA_ROWS_MIN 8u

typedef struct replica_choice replica_choice;

/* For placements of up to these sizes.
 *   run_min  rows below which it does not pay to touch an expert's weights on one more worker: no
 *            run is shorter, unless the expert has only that one.  1: split as evenly as possible
 *   MOE_ERANGE  a size is 0
 *   MOE_ENOMEM  */
moe_err replica_choice_create(replica_choice **out, uint32_t num_experts, uint32_t worker_max,
                              uint32_t slot_max, uint32_t run_min);
void replica_choice_free(replica_choice *c); /* accepts NULL */

/* Choose for one layer.
 *   row_counts    [E] rows of each expert
 *   speeds        [W] relative, 1 .. REPLICA_SPEED_MAX, or NULL: all equal
 *   worker_rows   [W] in: rows each worker has to compute already (0 if nothing is known), less
 *                 than 2^32; out: with what was chosen.  Their total is the work to be spread
 * Returns a split for dispatch_plan_build_split(): every expert's rows, runs only on its hosts.
 * Valid until the next call.  An expert with rows but without a host gets no run (and the plan then
 * refuses the split).
 * Work: O(S) for placements whose experts have a few hosts, O(S * W) at most. */
dispatch_split replica_choice_run(replica_choice *c, const placement *p, uint32_t layer,
                                  const uint32_t *row_counts, const uint32_t *speeds,
                                  uint64_t *worker_rows);

#endif
