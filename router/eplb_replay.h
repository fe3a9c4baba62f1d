/* eplb_replay: what a policy would have done on a recorded load.
 *
 * The experts start in a linear placement, slots to spare filled with replicas.  The trace's steps
 * go through the statistics; at every interval the policy decides, and what it adopts is in force
 * from the next step on.  Meanwhile the rows of every record go through the replica choice, so that
 * the balancedness that users would have had can be told, beside that of the linear placement
 * without replicas.
 *
 * And the time that experts would have taken, on a machine that is not there: each worker has cores
 * and memory of its own.  In each layer a worker reads the weights of every expert it gets rows of
 * once, and multiplies its rows; the longer of the two counts, and of the workers the slowest.  It
 * is a model: no transfers, no attention, no grouping of several routers' rows.  A record counts as
 * one step.
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_EPLB_REPLAY_H
#define MOE_ROUTER_EPLB_REPLAY_H

#include "router/eplb_policy.h"
#include "router/routing_trace.h"

typedef struct replay_config {
    eplb_policy policy;
    uint32_t worker_count, redundant;
    uint32_t window_size, step_interval; /* steps */
    uint32_t num_groups, num_nodes;
    eplb_costs costs; /* interval_steps is set by the replay; row_ns is of the simulation, too */
    double read_bytes_per_s; /* of one worker's memory; 0: reading takes no time */
} replay_config;

/* One interval that ended. */
typedef struct replay_interval {
    uint64_t step;           /* its last */
    double balancedness;     /* of its steps, under the placement in force */
    double balancedness_off; /* under the linear one */
    eplb_outcome outcome;    /* what was decided at its end; next is NULL */
    bool adopted;
} replay_interval;

typedef void replay_fn(void *user, const replay_interval *interval);

typedef struct replay_summary {
    uint64_t steps;
    uint32_t intervals, adopted;
    uint64_t move_count;
    double move_bytes;
    double balancedness, balancedness_off; /* of all steps */
    double experts_ns, experts_ns_off;     /* simulated, of a record: mean */
    double seconds;                        /* that decisions took, the longest */
    bool cut_off;                          /* the trace ended inside a record */
    char slots_note[MOE_ERR_TEXT_MAX];     /* from eplb_slot_counts(); may be empty */
} replay_summary;

/* Read the trace from where it is to its end.
 *   MOE_ERANGE, MOE_EINVAL, MOE_ENOMEM  as eplb_slot_counts(), eplb_decide(), routing_trace_next()
 */
moe_err eplb_replay(routing_trace *t, const replay_config *config, replay_fn *on_interval,
                    void *user, replay_summary *out, errbuf *eb);

#endif
