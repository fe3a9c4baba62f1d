#include "router/eplb_search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "router/eplb.h"

#define GAIN_MIN 1e-9       /* of the slowest time: what a step must gain */
#define EQUALLY_SLOW 1e-6   /* more than what settling leaves */
#define ROOM_WORKERS_MAX 3  /* where make_room() looks: the fastest workers, */
#define ROOM_SLOTS_MAX 3    /* and their smallest parts, */
#define ROOM_REPLICAS_MAX 4 /* and the smallest replicas of all */
#define RELABEL_WORKERS_MAX 512u

/* One allocation besides the layers. */
struct eplb_search {
    const eplb_fleet *fleet;
    eplb_layer *saved, *trial, *best;
    uint32_t num_groups, num_nodes;
    uint32_t usable_count;                /* workers that have slots */
    bool equal_slots;                     /* all of them the same number */
    float *weights;                       /* [E] */
    uint32_t *usable;                     /* [W] */
    uint32_t *phy2log, *phyrank, *logcnt; /* [S] [S] [E] of DeepSeek's solution */
    uint32_t *labels;                     /* [W] new number of each worker while relabelling */
    uint16_t *overlaps;                   /* [W][W] experts of one that another hosts already */
    unsigned char *taken;                 /* [W] is this number given away, this worker given up? */
    unsigned char *on_slowest;            /* [E] is it on the slowest worker? */
    unsigned char *is_host;               /* [W] of the expert that is looked at */
};

/* Expert in slot `from` of the slowest worker goes to worker `to`, in exchange for slot `back`
 * there, or in its place, unless that is EPLB_NO_SLOT. */
typedef struct search_step {
    uint32_t from, to, back;
    bool keep;    /* `from` keeps the expert too */
    bool drop;    /* `back` is a replica that goes */
    double score; /* what the slower of the two workers gains, for each expert moved */
} search_step;

/* What find_step() looks for. */
typedef struct search_wish {
    bool add_replicas;
    double slowest; /* time now */
    double price;   /* least gain in time, for each expert moved */
} search_wish;

moe_err
eplb_search_create(eplb_search **out, const eplb_fleet *fleet, uint32_t num_groups,
                   uint32_t num_nodes)
{
    *out = NULL;
    const size_t e = fleet->num_experts, w = fleet->worker_count, n = fleet->slot_count;
    const size_t pairs = w <= RELABEL_WORKERS_MAX ? w * w : 0;
    eplb_search *s = calloc(1, sizeof *s + (2 * e + 2 * w + 2 * n) * 4 + pairs * 2 + e + 2 * w);
    if (s == NULL) return MOE_ENOMEM;
    s->fleet = fleet;
    s->num_groups = num_groups;
    s->num_nodes = num_nodes;
    s->weights = (float *)(s + 1);
    s->usable = (uint32_t *)(s->weights + e);
    s->phy2log = s->usable + w;
    s->phyrank = s->phy2log + n;
    s->logcnt = s->phyrank + n;
    s->labels = s->logcnt + e;
    s->overlaps = (uint16_t *)(s->labels + w);
    s->on_slowest = (unsigned char *)(s->overlaps + pairs);
    s->is_host = s->on_slowest + e;
    s->taken = s->is_host + w;
    s->equal_slots = true;
    for (uint32_t i = 0; i < w; i++) {
        const uint32_t count = fleet->slot_first[i + 1] - fleet->slot_first[i];
        if (count == 0) continue;
        s->usable[s->usable_count++] = i;
        if (count * s->usable_count != fleet->slot_first[i + 1]) s->equal_slots = false;
    }
    s->saved = eplb_layer_create(fleet);
    s->trial = eplb_layer_create(fleet);
    s->best = eplb_layer_create(fleet);
    if (s->saved == NULL || s->trial == NULL || s->best == NULL) {
        eplb_search_free(s);
        return MOE_ENOMEM;
    }
    *out = s;
    return MOE_OK;
}

void
eplb_search_free(eplb_search *s)
{
    if (s == NULL) return;
    free(s->saved);
    free(s->trial);
    free(s->best);
    free(s);
}

/* Time of the slower of two workers when rows go from a to b. */
static double
pair_time(const eplb_layer *l, uint32_t a, uint32_t b, double rows)
{
    const double ta = (l->rows[a] - rows) / l->fleet->speeds[a];
    const double tb = (l->rows[b] + rows) / l->fleet->speeds[b];
    return ta > tb ? ta : tb;
}

static void
offer(const search_wish *wish, search_step *best, search_step step, double time, uint32_t moves)
{
    const double gain = wish->slowest - time;
    step.score = gain / moves;
    if (gain > GAIN_MIN * wish->slowest && step.score > wish->price && step.score > best->score)
        *best = step;
}

/* Into an empty slot of b, which has `rows` then: all of the slot's rows, or as many as make both
 * workers equally slow.  time: of a third worker that the step slows down. */
static void
offer_slot(const eplb_layer *l, const search_wish *wish, search_step step, double rows, double time,
           search_step *best)
{
    const uint32_t a = l->owners[step.from];
    const double va = l->fleet->speeds[a], vb = l->fleet->speeds[step.to];
    const double level = (l->rows[a] * vb - rows * va) / (va + vb);
    if (level <= 0) return;
    step.keep = wish->add_replicas && level < l->parts[step.from];
    const double gone = step.keep ? level : l->parts[step.from];
    const double ta = (l->rows[a] - gone) / va, tb = (rows + gone) / vb;
    const double pair = ta > tb ? ta : tb;
    offer(wish, best, step, pair > time ? pair : time, 1);
}

/* Time of the fastest other host that takes over what this replica has; negative if only the
 * slowest worker could. */
static double
time_without(const eplb_layer *l, uint32_t replica, uint32_t slowest)
{
    double least = -1;
    for (uint32_t h = l->heads[l->slots[replica]]; h != EPLB_NO_SLOT; h = l->nexts[h]) {
        const uint32_t w = l->owners[h];
        if (h == replica || w == slowest) continue;
        const double time = (l->rows[w] + l->parts[replica]) / l->fleet->speeds[w];
        if (least < 0 || time < least) least = time;
    }
    return least < 0 && l->parts[replica] <= 0 ? 0 : least;
}

static void
offer_worker(const eplb_search *s, const eplb_layer *l, const search_wish *wish, uint32_t slot,
             uint32_t b, search_step *best)
{
    const uint32_t a = l->owners[slot];
    search_step step = {.from = slot, .to = b, .back = EPLB_NO_SLOT};
    if (l->spares[b] != 0) offer_slot(l, wish, step, l->rows[b], 0, best);
    for (uint32_t back = l->fleet->slot_first[b]; back < l->fleet->slot_first[b + 1]; back++) {
        const uint32_t f = l->slots[back];
        if (f == PLACEMENT_EMPTY) continue;
        step.back = back;
        if (l->nexts[l->heads[f]] != EPLB_NO_SLOT) {
            const double time = time_without(l, back, a);
            step.drop = true;
            if (time >= 0) offer_slot(l, wish, step, l->rows[b] - l->parts[back], time, best);
        }
        const double rows = l->parts[slot] - l->parts[back];
        step.drop = step.keep = false;
        if (rows > 0 && !s->on_slowest[f]) offer(wish, best, step, pair_time(l, a, b, rows), 2);
    }
}

/* The best step that relieves worker a. */
static void
find_steps_of(eplb_search *s, const eplb_layer *l, const search_wish *wish, uint32_t a,
              search_step *best)
{
    const eplb_fleet *f = l->fleet;
    memset(s->on_slowest, 0, f->num_experts);
    for (uint32_t i = f->slot_first[a]; i < f->slot_first[a + 1]; i++)
        if (l->slots[i] != PLACEMENT_EMPTY) s->on_slowest[l->slots[i]] = 1;

    for (uint32_t i = f->slot_first[a]; i < f->slot_first[a + 1]; i++) {
        if (l->slots[i] == PLACEMENT_EMPTY || l->parts[i] <= 0) continue;
        memset(s->is_host, 0, f->worker_count);
        for (uint32_t h = l->heads[l->slots[i]]; h != EPLB_NO_SLOT; h = l->nexts[h])
            s->is_host[l->owners[h]] = 1;
        for (uint32_t u = 0; u < s->usable_count; u++) {
            const uint32_t b = s->usable[u];
            if (!s->is_host[b]) offer_worker(s, l, wish, i, b, best);
        }
    }
}

/* The step that gains most for each expert moved.  Workers that share experts are often equally
 * slow, and what relieves one of them relieves all: each is looked at. */
static search_step
find_step(eplb_search *s, const eplb_layer *l, bool add_replicas, double price)
{
    search_step best = {.from = EPLB_NO_SLOT};
    uint32_t w;
    const search_wish wish = {add_replicas, eplb_layer_slowest(l, &w), price};
    for (uint32_t u = 0; u < s->usable_count; u++) {
        if (eplb_layer_time(l, s->usable[u]) >= wish.slowest * (1 - EQUALLY_SLOW))
            find_steps_of(s, l, &wish, s->usable[u], &best);
    }
    return best;
}

static void
take_step(eplb_layer *l, const search_step *step)
{
    const uint32_t e = l->slots[step->from], a = l->owners[step->from];
    if (!step->keep) eplb_layer_remove(l, step->from);
    if (step->back != EPLB_NO_SLOT) {
        const uint32_t f = l->slots[step->back];
        eplb_layer_remove(l, step->back);
        if (!step->drop) eplb_layer_add(l, f, a);
        eplb_layer_refill(l, f);
    }
    eplb_layer_add(l, e, step->to);
    eplb_layer_refill(l, e);
    eplb_layer_settle(l);
}

/* The n-th smallest part of the worker's slots, in the order (part, slot); EPLB_NO_SLOT past the
 * last. `after` is the one before it, or EPLB_NO_SLOT. */
static uint32_t
next_smallest(const eplb_layer *l, uint32_t worker, uint32_t after)
{
    uint32_t best = EPLB_NO_SLOT;
    for (uint32_t i = l->fleet->slot_first[worker]; i < l->fleet->slot_first[worker + 1]; i++) {
        if (l->slots[i] == PLACEMENT_EMPTY) continue;
        if (after != EPLB_NO_SLOT &&
            (l->parts[i] < l->parts[after] || (l->parts[i] == l->parts[after] && i <= after)))
            continue;
        if (best == EPLB_NO_SLOT || l->parts[i] < l->parts[best]) best = i;
    }
    return best;
}

static uint32_t
next_fastest(const eplb_search *s, const eplb_layer *l, uint32_t after)
{
    uint32_t best = EPLB_NO_SLOT;
    for (uint32_t u = 0; u < s->usable_count; u++) {
        const uint32_t w = s->usable[u];
        const double time = eplb_layer_time(l, w);
        if (after != EPLB_NO_SLOT) {
            const double last = eplb_layer_time(l, after);
            if (time < last || (time == last && w <= after)) continue;
        }
        if (best == EPLB_NO_SLOT || time < eplb_layer_time(l, best)) best = w;
    }
    return best;
}

static bool
is_replica(const eplb_layer *l, uint32_t slot)
{
    const uint32_t e = l->slots[slot];
    return e != PLACEMENT_EMPTY && l->nexts[l->heads[e]] != EPLB_NO_SLOT;
}

/* The replica with the smallest part in the order (part, slot), not on that worker, after the slot
 * `after` (EPLB_NO_SLOT: the first); EPLB_NO_SLOT past the last. */
static uint32_t
next_replica(const eplb_layer *l, uint32_t not_on, uint32_t after)
{
    uint32_t best = EPLB_NO_SLOT;
    for (uint32_t i = 0; i < l->fleet->slot_count; i++) {
        if (l->owners[i] == not_on || !is_replica(l, i)) continue;
        if (after != EPLB_NO_SLOT &&
            (l->parts[i] < l->parts[after] || (l->parts[i] == l->parts[after] && i <= after)))
            continue;
        if (best == EPLB_NO_SLOT || l->parts[i] < l->parts[best]) best = i;
    }
    return best;
}

static void
drop_replica(eplb_layer *l, uint32_t slot)
{
    const uint32_t e = l->slots[slot];
    eplb_layer_remove(l, slot);
    eplb_layer_refill(l, e);
}

/* Empty the slot: its expert is elsewhere too, or goes to the fastest other worker with room; if
 * there is no room, the smallest replica leaves some. */
static bool
clear_slot(const eplb_search *s, eplb_layer *l, uint32_t slot)
{
    const uint32_t f = l->slots[slot], b = l->owners[slot];
    if (!is_replica(l, slot)) {
        uint32_t c = next_fastest(s, l, EPLB_NO_SLOT);
        while (c != EPLB_NO_SLOT && (c == b || l->spares[c] == 0))
            c = next_fastest(s, l, c);
        if (c == EPLB_NO_SLOT) {
            const uint32_t replica = next_replica(l, b, EPLB_NO_SLOT);
            if (replica == EPLB_NO_SLOT) return false;
            c = l->owners[replica];
            drop_replica(l, replica);
        }
        eplb_layer_add(l, f, c);
    }
    drop_replica(l, slot);
    eplb_layer_settle(l);
    return true;
}

/* Empty a slot, take the best step then, and keep the outcome in s->saved if it is the fastest so
 * far. */
static void
try_without(eplb_search *s, const eplb_layer *l, uint32_t slot, double price, double *least)
{
    uint32_t w;
    eplb_layer_copy(s->trial, l);
    if (!clear_slot(s, s->trial, slot)) return;
    const search_step step = find_step(s, s->trial, true, price);
    if (step.from != EPLB_NO_SLOT) take_step(s->trial, &step);
    const double slowest = eplb_layer_slowest(s->trial, &w);
    if (slowest >= *least) return;
    *least = slowest;
    eplb_layer_copy(s->saved, s->trial);
}

/* When no single step helps: empty a slot, of a fast worker or of a small replica, so that a
 * replica of what is slow fits in.  l changes only if that pays. */
static bool
make_room(eplb_search *s, eplb_layer *l, double price)
{
    uint32_t a;
    const double bar = eplb_layer_slowest(l, &a) * (1 - GAIN_MIN) - 2 * price;
    double least = bar;
    uint32_t slot = EPLB_NO_SLOT, b = EPLB_NO_SLOT;
    for (uint32_t i = 0; i < ROOM_REPLICAS_MAX; i++) {
        slot = next_replica(l, a, slot);
        if (slot == EPLB_NO_SLOT) break;
        try_without(s, l, slot, price, &least);
    }
    for (uint32_t i = 0; i < ROOM_WORKERS_MAX; i++) {
        b = next_fastest(s, l, b);
        if (b == EPLB_NO_SLOT || b == a) break;
        slot = EPLB_NO_SLOT;
        for (uint32_t j = 0; j < ROOM_SLOTS_MAX; j++) {
            slot = next_smallest(l, b, slot);
            if (slot == EPLB_NO_SLOT) break;
            try_without(s, l, slot, price, &least);
        }
    }
    if (least >= bar) return false;
    eplb_layer_copy(l, s->saved);
    return true;
}

bool
eplb_search_step(eplb_search *s, eplb_layer *l, bool add_replicas, double tolerance, double price)
{
    uint32_t w;
    const double slowest = eplb_layer_slowest(l, &w);
    if (slowest <= l->ideal * (1 + tolerance)) return false;
    const search_step step = find_step(s, l, add_replicas, price);
    if (step.from == EPLB_NO_SLOT) return add_replicas && make_room(s, l, price);
    eplb_layer_copy(s->saved, l);
    take_step(l, &step);
    if (eplb_layer_slowest(l, &w) <= slowest) return true;
    eplb_layer_copy(l, s->saved); /* by rounding only */
    return false;
}

/* The best there is from here on, whatever it moves. */
static void
improve(eplb_search *s, eplb_layer *l, double tolerance)
{
    uint32_t steps = 0;
    while (steps < eplb_search_steps_max(l->fleet) && eplb_search_step(s, l, true, tolerance, 0))
        steps++;
}

/* The worker that lacks most to shed, and its largest part that can't be shed; false: none lacks
 * anything, or what it has can't be helped (`taken` marks workers given up). */
static bool
find_stiff(const eplb_search *s, const eplb_layer *l, double reach, uint32_t *slot)
{
    double most = 0;
    uint32_t worker = EPLB_NO_SLOT;
    for (uint32_t u = 0; u < s->usable_count; u++) {
        const uint32_t w = s->usable[u];
        const double lack = reach * sqrt(l->rows[w] > 0 ? l->rows[w] : 0) - eplb_layer_loose(l, w);
        if (s->taken[w] || lack <= most) continue;
        most = lack;
        worker = w;
    }
    if (worker == EPLB_NO_SLOT) return false;
    *slot = EPLB_NO_SLOT;
    for (uint32_t i = l->fleet->slot_first[worker]; i < l->fleet->slot_first[worker + 1]; i++) {
        if (l->slots[i] == PLACEMENT_EMPTY || is_replica(l, i)) continue;
        if (*slot == EPLB_NO_SLOT || l->parts[i] > l->parts[*slot]) *slot = i;
    }
    return *slot != EPLB_NO_SLOT;
}

/* Where a replica of this slot's expert does most good: a spare slot on the fastest worker, else
 * the slot of the replica with the fewest rows, if its expert has less than half as many. */
static bool
add_replica_of(const eplb_search *s, eplb_layer *l, uint32_t slot)
{
    const uint32_t e = l->slots[slot], a = l->owners[slot];
    uint32_t b = next_fastest(s, l, EPLB_NO_SLOT);
    while (b != EPLB_NO_SLOT && (b == a || l->spares[b] == 0))
        b = next_fastest(s, l, b);
    if (b == EPLB_NO_SLOT) {
        uint32_t coldest = EPLB_NO_SLOT;
        for (uint32_t i = 0; i < l->fleet->slot_count; i++) {
            if (l->owners[i] == a || !is_replica(l, i)) continue;
            if (coldest == EPLB_NO_SLOT || l->loads[l->slots[i]] < l->loads[l->slots[coldest]])
                coldest = i;
        }
        if (coldest == EPLB_NO_SLOT || l->loads[l->slots[coldest]] > l->loads[e] / 2) return false;
        b = l->owners[coldest];
        drop_replica(l, coldest);
    }
    eplb_layer_add(l, e, b);
    eplb_layer_refill(l, e);
    eplb_layer_settle(l);
    return true;
}

void
eplb_search_loosen(eplb_search *s, eplb_layer *l, double reach)
{
    uint32_t slot, w;
    memset(s->taken, 0, l->fleet->worker_count);
    for (uint32_t i = 0; i < l->fleet->slot_count && find_stiff(s, l, reach, &slot); i++) {
        const double before = eplb_layer_slowest(l, &w);
        eplb_layer_copy(s->trial, l);
        if (add_replica_of(s, s->trial, slot) &&
            eplb_layer_slowest(s->trial, &w) <= before * (1 + GAIN_MIN))
            eplb_layer_copy(l, s->trial);
        else
            s->taken[l->owners[slot]] = 1;
    }
}

/* DeepSeek's solution for as many slots on each worker; replicas that meet on one worker become
 * one. */
static bool
start_deepseek(eplb_search *s, eplb_layer *l, uint32_t num_groups, uint32_t num_nodes)
{
    const eplb_fleet *f = l->fleet;
    const eplb_shape shape = {1,          f->num_experts, f->slot_count,
                              num_groups, num_nodes,      s->usable_count};
    for (uint32_t e = 0; e < f->num_experts; e++)
        s->weights[e] = (float)l->loads[e];
    if (eplb_rebalance_experts(&shape, s->weights, s->phy2log, s->phyrank, s->logcnt, NULL))
        return false;
    eplb_layer_reset(l, l->loads);
    const uint32_t per_worker = f->slot_count / s->usable_count;
    for (uint32_t p = 0; p < f->slot_count; p++) {
        const uint32_t e = s->phy2log[p], w = s->usable[p / per_worker];
        const double rows = l->loads[e] / s->logcnt[e];
        uint32_t slot = eplb_layer_find(l, e, w);
        if (slot == EPLB_NO_SLOT) slot = eplb_layer_add(l, e, w);
        l->parts[slot] += rows;
        l->rows[w] += rows;
    }
    eplb_layer_settle(l);
    return true;
}

static void
keep_better(eplb_layer *best, const eplb_layer *l, double *least)
{
    uint32_t w;
    const double slowest = eplb_layer_slowest(l, &w);
    if (*least >= 0 && slowest >= *least) return;
    *least = slowest;
    eplb_layer_copy(best, l);
}

void
eplb_search_fresh(eplb_search *s, eplb_layer *l, double tolerance)
{
    double least = -1;
    for (uint32_t nodes = 1;; nodes = s->num_nodes) {
        if (s->equal_slots && start_deepseek(s, l, nodes == 1 ? 1 : s->num_groups, nodes)) {
            improve(s, l, tolerance);
            keep_better(s->best, l, &least);
        }
        if (nodes == s->num_nodes) break;
    }
    if (least < 0 || least > l->ideal * (1 + tolerance)) {
        eplb_layer_start(l, l->loads, NULL, 0);
        improve(s, l, tolerance);
        keep_better(s->best, l, &least);
    }
    eplb_layer_copy(l, s->best);
}

static bool
is_like(const eplb_fleet *f, uint32_t a, uint32_t b)
{
    return f->speeds[a] == f->speeds[b] &&
           f->slot_first[a + 1] - f->slot_first[a] == f->slot_first[b + 1] - f->slot_first[b];
}

/* Returns the largest overlap. */
static uint32_t
count_overlaps(eplb_search *s, const eplb_layer *l, const placement *from, uint32_t layer)
{
    const uint32_t workers = l->fleet->worker_count;
    uint32_t most = 0;
    memset(s->overlaps, 0, (size_t)workers * workers * sizeof *s->overlaps);
    for (uint32_t i = 0; i < l->fleet->slot_count; i++) {
        if (l->slots[i] == PLACEMENT_EMPTY) continue;
        uint32_t count;
        const uint32_t *hosts = placement_hosts(from, layer, l->slots[i], &count);
        for (uint32_t h = 0; h < count && hosts[h] < workers; h++) {
            uint16_t *overlap = &s->overlaps[(size_t)l->owners[i] * workers + hosts[h]];
            if (*overlap < UINT16_MAX) ++*overlap;
            if (*overlap > most) most = *overlap;
        }
    }
    return most;
}

/* Numbers go to the workers that have most in common with their old bearers, largest first. */
static void
choose_labels(eplb_search *s, const eplb_fleet *f, uint32_t most)
{
    const uint32_t workers = f->worker_count;
    memset(s->labels, 0xff, workers * sizeof *s->labels);
    memset(s->taken, 0, workers);
    for (uint32_t overlap = most + 1; overlap-- > 0;) {
        for (uint32_t a = 0; a < workers; a++) {
            for (uint32_t b = 0; b < workers && s->labels[a] == UINT32_MAX; b++) {
                if (s->overlaps[(size_t)a * workers + b] != overlap) continue;
                if (s->taken[b] || !is_like(f, a, b)) continue;
                s->labels[a] = b;
                s->taken[b] = 1;
            }
        }
    }
}

void
eplb_search_relabel(eplb_search *s, eplb_layer *l, const placement *from, uint32_t layer)
{
    const eplb_fleet *f = l->fleet;
    if (f->worker_count > RELABEL_WORKERS_MAX) return;
    choose_labels(s, f, count_overlaps(s, l, from, layer));
    eplb_layer *to = s->trial;
    eplb_layer_reset(to, l->loads);
    for (uint32_t i = 0; i < f->slot_count; i++) {
        if (l->slots[i] == PLACEMENT_EMPTY) continue;
        const uint32_t w = s->labels[l->owners[i]];
        to->parts[eplb_layer_add(to, l->slots[i], w)] = l->parts[i];
        to->rows[w] += l->parts[i];
    }
    eplb_layer_copy(l, to);
}
