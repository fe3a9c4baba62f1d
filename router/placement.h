/* placement: which worker hosts which expert, for every layer.
 *
 * Each worker has a number of slots in each layer; a slot holds one expert or nothing.  An expert
 * in several slots has replicas, and each slot has a share: the part of the expert's rows that is
 * expected there. Shares are for prediction; which rows really go where is chosen for each step
 * (router/replica_choice.h).
 *
 * Slots are the truth.  The lists of hosts are derived from them by placement_index(): without
 * duplicates, workers rising.
 *
 *   L layers   E experts   W workers   S slots of all workers in one layer
 *
 * Threads: plain data; whoever changes it is alone.
 */
#ifndef MOE_ROUTER_PLACEMENT_H
#define MOE_ROUTER_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define PLACEMENT_LAYER_MAX 4096u
#define PLACEMENT_EXPERT_MAX (1u << 16)
#define PLACEMENT_WORKER_MAX 4096u
#define PLACEMENT_SLOT_MAX (1u << 20) /* of one layer */
#define PLACEMENT_EMPTY UINT32_MAX
#define PLACEMENT_SPEED_MAX 65535u
#define PLACEMENT_SPEED_ONE 256u

/* One allocation; made by placement_create(). */
typedef struct placement {
    uint32_t num_layers, num_experts, worker_count, slot_count; /* L E W S */
    uint32_t *slot_first; /* [W + 1] worker w has slots slot_first[w] .. slot_first[w + 1] - 1 */
    uint32_t *slots;      /* [L][S] expert or PLACEMENT_EMPTY */
    float *shares;        /* [L][S] of its expert's rows; 0 in an empty slot */
    uint32_t *speeds; /* [W] relative, 1 .. PLACEMENT_SPEED_MAX, for who splits rows of replicas */
    uint32_t *host_first; /* [L][E + 1] expert e's hosts in the layer's part of hosts */
    uint32_t *hosts;      /* [L][S] workers */
} placement;

/* All slots empty, all workers equally fast.
 *   slot_counts  [W] slots of each worker in each layer; 0 is allowed
 *   MOE_ERANGE  L, E or W is 0 or above its limit, or too many slots
 *   MOE_ENOMEM  */
moe_err placement_create(placement **out, uint32_t num_layers, uint32_t num_experts,
                         uint32_t worker_count, const uint32_t *slot_counts, errbuf *eb);
void placement_free(placement *p); /* accepts NULL */
moe_err placement_clone(placement **out, const placement *p, errbuf *eb);

/* Experts 0 .. E-1 in runs over the workers, as long as their slots allow; workers with equal slots
 * get equal runs.  Slots that are left stay empty.  Indexed.
 *   MOE_ERANGE  fewer slots than experts  */
moe_err placement_set_linear(placement *p, errbuf *eb);

/* Give empty slots to replicas: each worker takes from the others in turn, beginning with the next,
 * those first that have the fewest.  Even shares, indexed.  For a start, when no load is known yet.
 */
void placement_fill_spare(placement *p);

/* Rebuild the lists of hosts after slots were changed.  Every expert in the slots must be < E. */
void placement_index(placement *p);
void placement_index_layer(placement *p, uint32_t layer);

/* speeds [W]: 1 becomes PLACEMENT_SPEED_ONE. */
void placement_set_speeds(placement *p, const double *speeds);

/* Give each slot of an expert the same share. */
void placement_set_even_shares(placement *p);

/* Is every expert placed in every layer, are all ids < E, does no worker have an expert twice (only
 * if `unique`), and do each expert's shares add up to 1?
 *   MOE_EINVAL  the text names layer, expert and worker  */
moe_err placement_check(const placement *p, bool unique, errbuf *eb);

static inline const uint32_t *
placement_layer_slots(const placement *p, uint32_t layer)
{
    return p->slots + (size_t)layer * p->slot_count;
}

/* Workers that host the expert, rising; *count of them, 0 if it is not placed. */
static inline const uint32_t *
placement_hosts(const placement *p, uint32_t layer, uint32_t expert, uint32_t *count)
{
    const uint32_t *first = p->host_first + (size_t)layer * (p->num_experts + 1) + expert;
    *count = first[1] - first[0];
    return p->hosts + (size_t)layer * p->slot_count + first[0];
}

bool placement_is_host(const placement *p, uint32_t layer, uint32_t expert, uint32_t worker);

/* Expected rows of each worker in one layer, by the slots' shares.
 *   expert_rows  [E]      out  [W]  */
void placement_worker_rows(const placement *p, uint32_t layer, const uint64_t *expert_rows,
                           double *out);

/* (sum over layers of mean rows per worker) / (sum over layers of the most rows of a worker); 1
 * without any rows.  With speeds, rows are divided by the worker's speed, and the mean is what
 * every worker would have if the rows were spread by speed; workers of speed 0 don't count.
 *   expert_rows  [L][E]
 *   speeds       [W] rows per second in any unit, or NULL: all equal
 *   scratch      [W]  */
double placement_balancedness(const placement *p, const uint64_t *expert_rows, const double *speeds,
                              double *scratch);

/* The same of one layer; expert_rows [E]. */
double placement_layer_balancedness(const placement *p, uint32_t layer, const uint64_t *expert_rows,
                                    const double *speeds, double *scratch);

/* An expert that a worker has to load, or lets go. */
typedef struct placement_change {
    uint32_t layer, expert, worker;
} placement_change;

/* By layer, then worker, then slot.  What is loaded can be copied from any host of before the
 * change, placement_hosts(from, layer, expert), or come from the weight files. */
typedef struct placement_diff {
    placement_change *moves;
    size_t move_count;
    placement_change *drops;
    size_t drop_count;
} placement_diff;

/* What leads from one placement to the other.  Both have the same layers and experts and are
 * indexed; a worker that only one of them has hosts nothing in the other.  A slot's number does not
 * matter, only what a worker hosts. On MOE_OK release with placement_diff_fini().
 *   MOE_EINVAL  other layers or experts
 *   MOE_ENOMEM  */
moe_err placement_diff_init(placement_diff *out, const placement *from, const placement *to,
                            errbuf *eb);
void placement_diff_fini(placement_diff *d);

#endif
