/* compute: the thread that serves dispatches: take, feed-forward, reply.
 *
 * What a worker hosts are parts, each with a store: with tensor parallelism one for each of its
 * slices, else part 0 alone.  A dispatch says by its link which part it is for.
 *
 * It groups whatever is queued for one layer and never waits for more.  It allocates nothing and
 * makes no system call but futexes and yields.  Experts that come and go in the store never make it
 * wait.
 *
 * Threads: load and stop from the control thread, one at a time; the rest from any.
 */
#ifndef MOE_EXPERT_WORKER_COMPUTE_H
#define MOE_EXPERT_WORKER_COMPUTE_H

#include "common/pool.h"
#include "common/trace.h"
#include "exchange/worker_end.h"
#include "expert_worker/store.h"
#include "kernels/table.h"

typedef struct compute compute;

typedef struct compute_stats {
    uint64_t dispatches, rows, busy_ns;
    uint64_t groups; /* of dispatches computed together */
    uint64_t reads;  /* of an expert's weights, by groups: those of its largest dispatch */
    uint32_t experts_hosted;
    uint64_t bytes_hosted;
    uint64_t epoch; /* dispatches of older placements are refused */
} compute_stats;

/* Start the thread.  All pointers are borrowed until stop.  Until a store is loaded, dispatches are
 * answered WIRE_STATUS_NOT_HOSTED.  profile: say in the log where the time goes.  traced: where
 * spans and messages are entered; NULL = nowhere. */
moe_err compute_start(compute **out, worker_end *exchange, const kernel_table *kernels, pool *p,
                      bool profile, trace *traced, errbuf *eb);
/* Calls worker_end_stop(), joins, frees the store.  Accepts NULL. */
void compute_stop(compute *c);

#define COMPUTE_PARTS_MAX WORKER_MAX

/* Use this store for a part from the next group on; takes ownership and frees the one before.
 * row_max: rows of the largest dispatch (token_max * top_k). */
moe_err compute_load(compute *c, uint32_t part, expert_store *store, uint64_t epoch,
                     uint32_t num_experts, uint32_t row_max, errbuf *eb);
/* Host a part no more; its dispatches are answered WIRE_STATUS_NOT_HOSTED. */
void compute_drop(compute *c, uint32_t part);

/* Go on with the store that part has, for a router that starts anew.  False: there is none, or
 * row_max is larger than before. */
bool compute_keep(compute *c, uint32_t part, uint64_t epoch, uint32_t row_max);

void compute_get_stats(compute *c, compute_stats *out);

/* Put dispatches of one layer and part side by side, in the order in which they were taken: several
 * routers' rows then read each expert's weights once. */
void compute_sort(dispatch_view *views, uint32_t count);

/* What it serves of a part; NULL before its first load.  Borrowed until the next load: the caller
 * sees to it that none comes in between. */
expert_store *compute_store(compute *c, uint32_t part);
/* Refuse dispatches of older placements from now on; epochs only rise. */
void compute_set_epoch(compute *c, uint64_t epoch);
/* Wait until everything that is being computed now is done.  The compute thread does not notice. */
void compute_quiesce(compute *c);

#endif
