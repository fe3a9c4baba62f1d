/* eplb_policy: whether and how to move experts, given the load of the last steps.
 *
 * `deepseek` is the published algorithm as it is: as many slots on every worker (rounded up to a
 * multiple of the workers, which the text says), even shares, and its result is adopted whenever it
 * differs from what is there.
 *
 * `conclave` never puts two replicas of an expert on one worker, knows unequal workers, and moves
 * only what pays.  For each layer it looks at proposals, the cheapest first:
 *   rearranged  experts change places one after the other, no replica is added
 *   extended    the same, and replicas may be added
 *   fresh       solved anew, workers relabelled so that most experts stay
 * (after each step of the first two there is one) and takes a later one only if what it gains
 * beyond the one before pays for itself:
 *   gain  what the slowest worker's time falls by, over the next interval, beyond what chance
 *         explains: counts of N rows vary by sqrt(N), and by more where rows follow one another
 *         (eplb_dispersion.h), so a slowest worker is partly slow by luck, and the new placement is
 *         partly fitted to that luck
 *   cost  bytes to move, at their price
 * Single steps vary more than the window's sums.  A layer that changes anyway also gets replicas
 * for that, if they pay: of experts with many rows, on workers that could not shed any else.
 *
 * A layer is adopted if its gain is at least gain_min of its ideal time, and hysteresis times its
 * cost. Layers are taken in the order of gain per byte, and what is moved later in the interval has
 * less of it left to gain from.  Experts without a host (their worker is gone, or is drained) are
 * placed whatever it costs.
 *
 *   L layers   E experts   W workers
 *   a worker's time is its rows divided by its speed
 *
 * Threads: no shared state.  A call takes milliseconds to seconds: not for the step thread.
 */
#ifndef MOE_ROUTER_EPLB_POLICY_H
#define MOE_ROUTER_EPLB_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "router/placement.h"

typedef enum eplb_policy { EPLB_CONCLAVE, EPLB_DEEPSEEK } eplb_policy;

/* "conclave" | "deepseek"; false for anything else. */
bool eplb_policy_parse(const char *name, eplb_policy *out);
const char *eplb_policy_name(eplb_policy policy);

/* Slots that a policy uses on each worker for E experts and `redundant` replicas.
 *   capacities   [W] slots that the worker's memory has in each layer; 0: it is drained
 *   slot_counts  [W] out; their sum is E + redundant, or, `deepseek`, the next multiple of the
 *                workers that have a capacity
 *   MOE_ENOMEM   the capacities don't suffice; the text names how many slots are short, and of how
 *                many bytes if bytes_per_expert is not 0  */
moe_err eplb_slot_counts(eplb_policy policy, uint32_t num_layers, uint32_t num_experts,
                         uint32_t redundant, uint32_t worker_count, const uint32_t *capacities,
                         double bytes_per_expert, uint32_t *slot_counts, errbuf *eb);

/* Slots of each layer that a worker's memory has, at most E.  Either number of bytes 0: E. */
uint32_t eplb_capacity(uint64_t memory_bytes, uint64_t expert_bytes, uint32_t num_layers,
                       uint32_t num_experts);
/* Bytes that workers of these capacities lack for one copy of every expert; 0: it fits. */
uint64_t eplb_shortfall_bytes(const uint32_t *capacities, uint32_t worker_count,
                              uint64_t expert_bytes, uint32_t num_layers, uint32_t num_experts);

/* What a step costs, and what moving costs.  Anything may be 0: not known, or no matter. */
typedef struct eplb_costs {
    double row_ns;            /* one row on a worker of speed 1 */
    double step_ns;           /* a whole step, median */
    double bytes_per_expert;  /* packed weights of one expert of one layer */
    double move_bytes_per_s;  /* what moves may use */
    double move_interference; /* part of its speed that serving loses while experts move, 0 .. 1: a
                                 byte costs move_interference / move_bytes_per_s seconds */
    uint32_t interval_steps;  /* until the next decision */
    double gain_min;          /* least gain, as a part of the layer's ideal time */
    double hysteresis;        /* least gain, in costs */
    double noise_sigmas;      /* beyond what the slowest of all workers shows by chance; negative:
                                 take counts as exact */
} eplb_costs;

/* Values that suit: 1 %, 1.5, 2.5 sigmas, 10 % interference, 100 MB/s, 1 us a row. */
eplb_costs eplb_default_costs(void);

typedef struct eplb_input {
    eplb_policy policy;
    const placement *current;    /* indexed; may have other workers and slots */
    uint32_t worker_count;       /* W of the next placement */
    const uint32_t *slot_counts; /* [W] of the next placement: eplb_slot_counts() */
    const double *speeds;        /* [W] > 0: measured rows per second, in any unit; NULL: equal */
    const uint64_t *expert_rows; /* [L][E] of the window */
    uint32_t window_steps;       /* steps that expert_rows is of */
    const uint64_t *part_rows;   /* [P][L][E] of its parts: how much of it is chance; NULL: as if
                                    every row chose by itself */
    uint32_t part_count;         /* P */
    uint32_t num_groups;         /* of experts, 1 if the model knows none */
    uint32_t num_nodes;          /* for the hierarchical solution; 1: global */
    eplb_costs costs;
} eplb_input;

typedef enum eplb_verdict {
    EPLB_ADOPTED,   /* next is better */
    EPLB_REPAIRED,  /* next is needed: an expert had no host, or hosts that it may not have */
    EPLB_NO_LOAD,   /* nothing was counted */
    EPLB_BALANCED,  /* nothing to gain beyond chance and gain_min */
    EPLB_TOO_DEAR,  /* the gain does not pay for the moves */
    EPLB_UNCHANGED, /* the policy's placement is the current one */
    EPLB_VERDICTS   /* how many there are */
} eplb_verdict;

const char *eplb_verdict_name(eplb_verdict verdict); /* "adopted", "too_dear", ... */

typedef struct eplb_outcome {
    eplb_verdict verdict;
    char text[256];                                 /* one sentence: what and why */
    placement *next;                                /* owned; NULL: stay with the current one */
    double balancedness_before, balancedness_after; /* predicted; after = before without `next` */
    double gain_ns, cost_ns; /* over the interval; of the best proposal if it was turned down */
    uint64_t move_count;     /* experts to load */
    double move_bytes;
    uint32_t layers_changed;
} eplb_outcome;

/* On MOE_OK release with eplb_outcome_fini().
 *   MOE_ERANGE  fewer slots than experts, or a size that is none
 *   MOE_EINVAL  a speed that is not positive; `deepseek` with unequal slots
 *   MOE_ENOMEM  */
moe_err eplb_decide(const eplb_input *in, eplb_outcome *out, errbuf *eb);
void eplb_outcome_fini(eplb_outcome *out);

#endif
