#include "router/eplb.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

/* Scratch of one layer; "mlog" are experts in the order of the nodes they were packed to.  One
 * allocation. */
typedef struct scratch {
    uint32_t *log2mlog, *mlog2log; /* [E] */
    float *mlog_weights;           /* [E] */
    uint32_t *mlog_counts;         /* [E] */
    float *ratios;                 /* [E] */
    uint32_t *phy2mlog, *phy_rank; /* [P] of one node */
    float *phy_weights;            /* [P] */
    uint32_t *pack, *rank, *order; /* [P] */
    float *sums;                   /* [P] */
    uint32_t *items;               /* [P] */
    float *group_weights;          /* [E] */
} scratch;

/* Heaviest first, equal weights in index order: `a` and `b` are items. */
static bool
comes_before(const float *weights, uint32_t a, uint32_t b)
{
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}

static void
sift_down(const float *weights, uint32_t *heap, uint32_t root, uint32_t n)
{
    for (;;) {
        uint32_t child = 2 * root + 1;
        if (child >= n) return;
        if (child + 1 < n && comes_before(weights, heap[child], heap[child + 1])) child++;
        if (!comes_before(weights, heap[root], heap[child])) return;
        const uint32_t t = heap[root];
        heap[root] = heap[child];
        heap[child] = t;
        root = child;
    }
}

/* A heap sort is enough: with the index as the second key no two items are equal, so there is only
 * one order, the stable one.  It needs no memory and has no bad case. */
static void
sort_descending(const float *weights, uint32_t *order, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(weights, order, i, n);
    for (uint32_t end = n; end > 1; end--) {
        const uint32_t last = order[0];
        order[0] = order[end - 1];
        order[end - 1] = last;
        sift_down(weights, order, 0, end - 1);
    }
}

static uint32_t
lightest_with_room(const float *sums, const uint32_t *items, uint32_t num_packs, uint32_t room)
{
    uint32_t best = num_packs;
    for (uint32_t p = 0; p < num_packs; p++) {
        if (items[p] < room && (best == num_packs || sums[p] < sums[best])) best = p;
    }
    return best;
}

void
eplb_balanced_packing(const float *weights, uint32_t n, uint32_t num_packs, uint32_t *pack_index,
                      uint32_t *rank_in_pack, uint32_t *order, float *sums, uint32_t *items)
{
    const uint32_t room = n / num_packs;
    if (room == 1) { /* the reference keeps the order then */
        for (uint32_t i = 0; i < n; i++) {
            pack_index[i] = i;
            rank_in_pack[i] = 0;
        }
        return;
    }
    for (uint32_t p = 0; p < num_packs; p++) {
        sums[p] = 0;
        items[p] = 0;
    }
    sort_descending(weights, order, n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t item = order[i];
        const uint32_t pack = lightest_with_room(sums, items, num_packs, room);
        pack_index[item] = pack;
        rank_in_pack[item] = items[pack]++;
        sums[pack] += weights[item];
    }
}

void
eplb_replicate_experts(const float *weights, uint32_t num_log, uint32_t num_phy, uint32_t *phy2log,
                       uint32_t *rank, uint32_t *logcnt, float *ratios)
{
    for (uint32_t e = 0; e < num_log; e++) {
        phy2log[e] = e;
        rank[e] = 0;
        logcnt[e] = 1;
        ratios[e] = weights[e];
    }
    for (uint32_t p = num_log; p < num_phy; p++) {
        uint32_t heaviest = 0;
        for (uint32_t e = 1; e < num_log; e++) {
            if (ratios[e] > ratios[heaviest]) heaviest = e;
        }
        phy2log[p] = heaviest;
        rank[p] = logcnt[heaviest]++;
        ratios[heaviest] = weights[heaviest] / (float)logcnt[heaviest];
    }
}

/* Which place each expert has when the groups of one node lie side by side. */
static void
pack_groups(const eplb_shape *s, const float *weights, scratch *x)
{
    const uint32_t group_size = s->num_experts / s->num_groups;
    const uint32_t groups_per_node = s->num_groups / s->num_nodes;
    for (uint32_t g = 0; g < s->num_groups; g++) {
        float sum = 0;
        for (uint32_t i = 0; i < group_size; i++)
            sum += weights[g * group_size + i];
        x->group_weights[g] = sum;
    }
    eplb_balanced_packing(x->group_weights, s->num_groups, s->num_nodes, x->pack, x->rank, x->order,
                          x->sums, x->items);
    for (uint32_t e = 0; e < s->num_experts; e++) {
        const uint32_t g = e / group_size;
        const uint32_t m =
            (x->pack[g] * groups_per_node + x->rank[g]) * group_size + e % group_size;
        x->log2mlog[e] = m;
        x->mlog2log[m] = e;
    }
}

/* Replicate within one node, and pack onto its devices: fills the node's part of the outputs. */
static void
solve_node(const eplb_shape *s, uint32_t node, scratch *x, uint32_t *phy2log, uint32_t *phyrank)
{
    const uint32_t experts = s->num_experts / s->num_nodes;
    const uint32_t slots = s->num_replicas / s->num_nodes;
    const uint32_t per_gpu = s->num_replicas / s->num_gpus;
    const float *weights = x->mlog_weights + (size_t)node * experts;
    uint32_t *counts = x->mlog_counts + (size_t)node * experts;

    eplb_replicate_experts(weights, experts, slots, x->phy2mlog, x->phy_rank, counts, x->ratios);
    for (uint32_t p = 0; p < slots; p++) {
        const uint32_t m = x->phy2mlog[p];
        x->phy_weights[p] = weights[m] / (float)counts[m];
    }
    eplb_balanced_packing(x->phy_weights, slots, s->num_gpus / s->num_nodes, x->pack, x->rank,
                          x->order, x->sums, x->items);
    for (uint32_t p = 0; p < slots; p++) {
        const size_t to = (size_t)node * slots + x->pack[p] * per_gpu + x->rank[p];
        phy2log[to] = x->mlog2log[node * experts + x->phy2mlog[p]];
        phyrank[to] = x->phy_rank[p];
    }
}

static moe_err
check_shape(const eplb_shape *s, errbuf *eb)
{
    const uint32_t sizes[] = {s->num_layers, s->num_experts, s->num_replicas,
                              s->num_groups, s->num_nodes,   s->num_gpus};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i] == 0 || sizes[i] > (i == 0 ? EPLB_LAYER_MAX : EPLB_SLOT_MAX))
            return err_set(eb, MOE_ERANGE, "expert placement: %u is no size", sizes[i]);
    }
    if (s->num_replicas < s->num_experts)
        return err_set(eb, MOE_ERANGE, "%u slots can't hold %u experts", s->num_replicas,
                       s->num_experts);
    if (s->num_replicas % s->num_gpus != 0)
        return err_set(eb, MOE_EINVAL, "%u slots are no multiple of %u devices", s->num_replicas,
                       s->num_gpus);
    if (s->num_gpus % s->num_nodes != 0)
        return err_set(eb, MOE_EINVAL, "%u devices are no multiple of %u nodes", s->num_gpus,
                       s->num_nodes);
    if (s->num_experts % s->num_groups != 0)
        return err_set(eb, MOE_EINVAL, "%u experts are no multiple of %u groups", s->num_experts,
                       s->num_groups);
    return MOE_OK;
}

static moe_err
check_weights(const eplb_shape *s, const float *weights, errbuf *eb)
{
    for (uint32_t l = 0; l < s->num_layers; l++) {
        for (uint32_t e = 0; e < s->num_experts; e++) {
            const float w = weights[(size_t)l * s->num_experts + e];
            if (!(w >= 0) || !isfinite(w))
                return err_set(eb, MOE_EINVAL, "layer %u expert %u: %g is no load", l, e,
                               (double)w);
        }
    }
    return MOE_OK;
}

static void *
scratch_init(scratch *x, const eplb_shape *s)
{
    const size_t e = s->num_experts, p = s->num_replicas;
    uint32_t *words = malloc((6 * e + 8 * p) * sizeof *words);
    if (words == NULL) return NULL;
    *x = (scratch){
        .log2mlog = words,
        .mlog2log = words + e,
        .mlog_weights = (float *)(words + 2 * e),
        .mlog_counts = words + 3 * e,
        .ratios = (float *)(words + 4 * e),
        .group_weights = (float *)(words + 5 * e),
        .phy2mlog = words + 6 * e,
        .phy_rank = words + 6 * e + p,
        .phy_weights = (float *)(words + 6 * e + 2 * p),
        .pack = words + 6 * e + 3 * p,
        .rank = words + 6 * e + 4 * p,
        .order = words + 6 * e + 5 * p,
        .sums = (float *)(words + 6 * e + 6 * p),
        .items = words + 6 * e + 7 * p,
    };
    return words;
}

static void
solve_layer(const eplb_shape *s, const float *weights, scratch *x, uint32_t *phy2log,
            uint32_t *phyrank, uint32_t *logcnt)
{
    pack_groups(s, weights, x);
    for (uint32_t m = 0; m < s->num_experts; m++)
        x->mlog_weights[m] = weights[x->mlog2log[m]];
    for (uint32_t node = 0; node < s->num_nodes; node++)
        solve_node(s, node, x, phy2log, phyrank);
    for (uint32_t e = 0; e < s->num_experts; e++)
        logcnt[e] = x->mlog_counts[x->log2mlog[e]];
}

moe_err
eplb_rebalance_experts(const eplb_shape *shape, const float *weights, uint32_t *phy2log,
                       uint32_t *phyrank, uint32_t *logcnt, errbuf *eb)
{
    eplb_shape s = *shape;
    if (s.num_groups != 0 && s.num_nodes != 0 && s.num_groups % s.num_nodes != 0)
        s.num_groups = s.num_nodes = 1;
    moe_err err = check_shape(&s, eb);
    if (!err) err = check_weights(&s, weights, eb);
    if (err) return err;

    scratch x;
    void *memory = scratch_init(&x, &s);
    if (memory == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t l = 0; l < s.num_layers; l++) {
        const size_t slot = (size_t)l * s.num_replicas, expert = (size_t)l * s.num_experts;
        solve_layer(&s, weights + expert, &x, phy2log + slot, phyrank + slot, logcnt + expert);
    }
    free(memory);
    return MOE_OK;
}

void
eplb_log2phy(const eplb_shape *shape, const uint32_t *phy2log, const uint32_t *phyrank,
             uint32_t stride, uint32_t *log2phy)
{
    for (size_t i = 0; i < (size_t)shape->num_experts * stride; i++)
        log2phy[i] = EPLB_NONE;
    for (uint32_t p = 0; p < shape->num_replicas; p++)
        log2phy[(size_t)phy2log[p] * stride + phyrank[p]] = p;
}
