/* eplb: DeepSeek's expert placement: which experts get replicas, and which device holds what.
 *
 * Three steps, per layer: groups of experts are packed onto nodes, the heaviest experts of each
 * node are replicated until the node's slots are used up, and the replicas are packed onto the
 * node's devices. Packing is greedy: heaviest first, to the lightest pack with room.  When the
 * groups can't be spread evenly over the nodes, everything counts as one group on one node
 * (global).
 *
 * Equal to the reference bit for bit: float32 arithmetic, equal weights in index order, the first
 * maximum, the lowest pack.
 *
 *   L layers   E logical experts   P physical experts (slots)   D devices
 *   device d of a layer holds slots d * P/D .. (d + 1) * P/D - 1
 *
 * Source: DeepSeek's EPLB (eplb.py), and section 3.4 of the DeepSeek-V3 technical report.
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_EPLB_H
#define MOE_ROUTER_EPLB_H

#include <stdint.h>

#include "common/err.h"

#define EPLB_LAYER_MAX 4096u
#define EPLB_SLOT_MAX (1u << 16) /* of one layer; experts too */
#define EPLB_NONE UINT32_MAX

typedef struct eplb_shape {
    uint32_t num_layers;
    uint32_t num_experts;
    uint32_t num_replicas; /* P */
    uint32_t num_groups;   /* of experts; 1 if the model knows none */
    uint32_t num_nodes;
    uint32_t num_gpus; /* D */
} eplb_shape;

/* Put n items into num_packs packs of n / num_packs items each, the packs' weights nearly equal.
 *   weights                  [n]
 *   pack_index, rank_in_pack [n] each item's pack, and its place there
 *   order [n], sums, items [num_packs]  scratch
 * num_packs divides n. */
void eplb_balanced_packing(const float *weights, uint32_t n, uint32_t num_packs,
                           uint32_t *pack_index, uint32_t *rank_in_pack, uint32_t *order,
                           float *sums, uint32_t *items);

/* Give num_phy - num_log replicas, one by one, to the expert with the largest load per replica.
 *   weights  [num_log]
 *   phy2log, rank  [num_phy] expert of each replica, and its number among that expert's
 *   logcnt   [num_log] replicas of each expert
 *   ratios   [num_log] scratch  */
void eplb_replicate_experts(const float *weights, uint32_t num_log, uint32_t num_phy,
                            uint32_t *phy2log, uint32_t *rank, uint32_t *logcnt, float *ratios);

/* The whole placement.
 *   weights  [L][E] tokens per expert
 *   phy2log  [L][P] expert in each slot
 *   phyrank  [L][P] which of its expert's replicas it is
 *   logcnt   [L][E] replicas of each expert
 * On error the outputs are undefined.
 *   MOE_ERANGE  a size is 0 or above its limit, or P < E
 *   MOE_EINVAL  D does not divide P; nodes that can be used hierarchically don't divide D; groups
 *               don't divide E; a weight is negative or not finite
 *   MOE_ENOMEM  */
moe_err eplb_rebalance_experts(const eplb_shape *shape, const float *weights, uint32_t *phy2log,
                               uint32_t *phyrank, uint32_t *logcnt, errbuf *eb);

/* Slots of each expert of one layer.
 *   phy2log, phyrank  [P] of that layer
 *   log2phy  [E][stride] by replica number, EPLB_NONE behind the last; stride >= every count  */
void eplb_log2phy(const eplb_shape *shape, const uint32_t *phy2log, const uint32_t *phyrank,
                  uint32_t stride, uint32_t *log2phy);

#endif
