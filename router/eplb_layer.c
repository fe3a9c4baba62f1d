#include "router/eplb_layer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SETTLE_PASSES_MAX 200
#define SETTLED 1e-7 /* of the ideal time: what may still move */

eplb_layer *
eplb_layer_create(const eplb_fleet *fleet)
{
    const size_t s = fleet->slot_count, w = fleet->worker_count, e = fleet->num_experts;
    const size_t bytes = (s + w) * sizeof(double) + (3 * s + e + w) * sizeof(uint32_t);
    eplb_layer *l = calloc(1, sizeof *l + bytes);
    if (l == NULL) return NULL;
    l->fleet = fleet;
    l->bytes = bytes;
    l->parts = (double *)(l + 1);
    l->rows = l->parts + s;
    l->slots = (uint32_t *)(l->rows + w);
    l->owners = l->slots + s;
    l->nexts = l->owners + s;
    l->heads = l->nexts + s;
    l->spares = l->heads + e;
    return l;
}

void
eplb_layer_reset(eplb_layer *l, const double *loads)
{
    const eplb_fleet *f = l->fleet;
    double load = 0, speed = 0;
    memset(l->parts, 0, f->slot_count * sizeof *l->parts);
    memset(l->slots, 0xff, f->slot_count * sizeof *l->slots);
    for (uint32_t e = 0; e < f->num_experts; e++) {
        l->heads[e] = EPLB_NO_SLOT;
        load += loads[e];
    }
    for (uint32_t w = 0; w < f->worker_count; w++) {
        l->rows[w] = 0;
        l->spares[w] = f->slot_first[w + 1] - f->slot_first[w];
        if (l->spares[w] != 0) speed += f->speeds[w];
        for (uint32_t s = f->slot_first[w]; s < f->slot_first[w + 1]; s++)
            l->owners[s] = w;
    }
    l->loads = loads;
    l->ideal = speed > 0 ? load / speed : 0;
}

void
eplb_layer_copy(eplb_layer *to, const eplb_layer *from)
{
    to->loads = from->loads;
    to->ideal = from->ideal;
    memcpy(to->parts, from->parts, from->bytes);
}

uint32_t
eplb_layer_find(const eplb_layer *l, uint32_t expert, uint32_t worker)
{
    uint32_t s = l->heads[expert];
    while (s != EPLB_NO_SLOT && l->owners[s] != worker)
        s = l->nexts[s];
    return s;
}

uint32_t
eplb_layer_add(eplb_layer *l, uint32_t expert, uint32_t worker)
{
    assert(l->spares[worker] != 0 && eplb_layer_find(l, expert, worker) == EPLB_NO_SLOT);
    uint32_t s = l->fleet->slot_first[worker];
    while (l->slots[s] != PLACEMENT_EMPTY)
        s++;
    l->slots[s] = expert;
    l->parts[s] = 0;
    l->nexts[s] = l->heads[expert];
    l->heads[expert] = s;
    l->spares[worker]--;
    return s;
}

void
eplb_layer_remove(eplb_layer *l, uint32_t slot)
{
    uint32_t *link = &l->heads[l->slots[slot]];
    while (*link != slot)
        link = &l->nexts[*link];
    *link = l->nexts[slot];
    l->rows[l->owners[slot]] -= l->parts[slot];
    l->parts[slot] = 0;
    l->slots[slot] = PLACEMENT_EMPTY;
    l->spares[l->owners[slot]]++;
}

/* What the slot's worker has besides this expert. */
static double
other_rows(const eplb_layer *l, uint32_t slot)
{
    const double rows = l->rows[l->owners[slot]] - l->parts[slot];
    return rows > 0 ? rows : 0;
}

/* Time that the hosts reach together when those below it take all of the rows.  Start with all of
 * them: hosts that lie above the level drop out, which lowers it, until none does. */
static double
common_level(const eplb_layer *l, uint32_t expert)
{
    double level = 0;
    for (bool first = true;; first = false) {
        double rows = l->loads[expert], speed = 0;
        for (uint32_t s = l->heads[expert]; s != EPLB_NO_SLOT; s = l->nexts[s]) {
            const double has = other_rows(l, s), v = l->fleet->speeds[l->owners[s]];
            if (!first && has >= level * v) continue;
            rows += has;
            speed += v;
        }
        const double lower = speed > 0 ? rows / speed : level;
        if (!first && lower >= level) return level;
        level = lower;
    }
}

static double
part_below(const eplb_layer *l, uint32_t slot, double level)
{
    const double part = level * l->fleet->speeds[l->owners[slot]] - other_rows(l, slot);
    return part > 0 ? part : 0;
}

double
eplb_layer_refill(eplb_layer *l, uint32_t expert)
{
    const double level = common_level(l, expert);
    double sum = 0, moved = 0;
    for (uint32_t s = l->heads[expert]; s != EPLB_NO_SLOT; s = l->nexts[s])
        sum += part_below(l, s, level);
    /* Rounding: what is given out must be what there is. */
    const double fix = sum > 0 ? l->loads[expert] / sum : 0;
    for (uint32_t s = l->heads[expert]; s != EPLB_NO_SLOT; s = l->nexts[s]) {
        const double part = part_below(l, s, level) * fix, has = other_rows(l, s);
        moved += fabs(part - l->parts[s]);
        l->parts[s] = part;
        l->rows[l->owners[s]] = has + part;
    }
    return moved;
}

/* Sums that were updated many times have drifted. */
static void
sum_rows(eplb_layer *l)
{
    memset(l->rows, 0, l->fleet->worker_count * sizeof *l->rows);
    for (uint32_t s = 0; s < l->fleet->slot_count; s++)
        l->rows[l->owners[s]] += l->parts[s];
}

void
eplb_layer_settle(eplb_layer *l)
{
    for (uint32_t pass = 0; pass < SETTLE_PASSES_MAX; pass++) {
        double moved = 0;
        for (uint32_t e = 0; e < l->fleet->num_experts; e++) {
            const uint32_t head = l->heads[e];
            if (head == EPLB_NO_SLOT) continue;
            const bool split = l->nexts[head] != EPLB_NO_SLOT;
            if (split || pass == 0) moved += eplb_layer_refill(l, e);
        }
        if (moved <= SETTLED * l->ideal) break;
    }
    sum_rows(l);
}

double
eplb_layer_slowest(const eplb_layer *l, uint32_t *worker)
{
    double most = -1;
    for (uint32_t w = 0; w < l->fleet->worker_count; w++) {
        const double time = eplb_layer_time(l, w);
        if (time <= most) continue;
        most = time;
        *worker = w;
    }
    return most;
}

double
eplb_layer_loose(const eplb_layer *l, uint32_t worker)
{
    double loose = 0;
    for (uint32_t s = l->fleet->slot_first[worker]; s < l->fleet->slot_first[worker + 1]; s++) {
        const uint32_t e = l->slots[s];
        if (e != PLACEMENT_EMPTY && l->nexts[l->heads[e]] != EPLB_NO_SLOT) loose += l->parts[s];
    }
    return loose;
}

double
eplb_layer_unlucky(const eplb_layer *l, double reach)
{
    double most = 0;
    for (uint32_t w = 0; w < l->fleet->worker_count; w++) {
        if (l->rows[w] <= 0) continue;
        const double over = reach * sqrt(l->rows[w]) - eplb_layer_loose(l, w);
        const double time = (l->rows[w] + (over > 0 ? over : 0)) / l->fleet->speeds[w];
        if (time > most) most = time;
    }
    return most;
}

/* Keep what fits; returns whether all of it did. */
static bool
keep_hosted(eplb_layer *l, const placement *from, uint32_t layer)
{
    const uint32_t *slots = placement_layer_slots(from, layer);
    bool all = true;
    for (uint32_t w = 0; w < from->worker_count; w++) {
        for (uint32_t s = from->slot_first[w]; s < from->slot_first[w + 1]; s++) {
            const uint32_t e = slots[s];
            if (e == PLACEMENT_EMPTY) continue;
            if (w >= l->fleet->worker_count)
                all = false;
            else if (eplb_layer_find(l, e, w) != EPLB_NO_SLOT)
                continue;
            else if (l->spares[w] != 0)
                eplb_layer_add(l, e, w);
            else
                all = false;
        }
    }
    return all;
}

/* The worker with room that would have the smallest time with these rows more; W if none has. */
static uint32_t
best_room(const eplb_layer *l, double rows)
{
    uint32_t best = l->fleet->worker_count;
    double least = 0;
    for (uint32_t w = 0; w < l->fleet->worker_count; w++) {
        if (l->spares[w] == 0) continue;
        const double time = (l->rows[w] + rows) / l->fleet->speeds[w];
        if (best != l->fleet->worker_count && time >= least) continue;
        best = w;
        least = time;
    }
    return best;
}

/* Empty the slot of the replica that has the fewest rows. */
static void
drop_a_replica(eplb_layer *l)
{
    uint32_t found = EPLB_NO_SLOT;
    for (uint32_t s = 0; s < l->fleet->slot_count; s++) {
        const uint32_t e = l->slots[s];
        if (e == PLACEMENT_EMPTY || l->nexts[l->heads[e]] == EPLB_NO_SLOT) continue;
        if (found == EPLB_NO_SLOT || l->parts[s] < l->parts[found]) found = s;
    }
    assert(found != EPLB_NO_SLOT); /* S >= E, and an expert is missing */
    const uint32_t expert = l->slots[found];
    eplb_layer_remove(l, found);
    eplb_layer_refill(l, expert);
}

uint32_t
eplb_layer_place(eplb_layer *l, uint32_t expert)
{
    uint32_t w = best_room(l, l->loads[expert]);
    if (w == l->fleet->worker_count) {
        drop_a_replica(l);
        w = best_room(l, l->loads[expert]);
    }
    const uint32_t slot = eplb_layer_add(l, expert, w);
    eplb_layer_refill(l, expert);
    return slot;
}

static bool
place_missing(eplb_layer *l)
{
    bool none = true;
    for (;;) { /* heaviest first */
        uint32_t next = EPLB_NO_SLOT;
        for (uint32_t e = 0; e < l->fleet->num_experts; e++) {
            if (l->heads[e] != EPLB_NO_SLOT) continue;
            if (next == EPLB_NO_SLOT || l->loads[e] > l->loads[next]) next = e;
        }
        if (next == EPLB_NO_SLOT) return none;
        eplb_layer_place(l, next);
        none = false;
    }
}

bool
eplb_layer_start(eplb_layer *l, const double *loads, const placement *from, uint32_t layer)
{
    eplb_layer_reset(l, loads);
    const bool kept = from == NULL || keep_hosted(l, from, layer);
    for (uint32_t e = 0; e < l->fleet->num_experts; e++)
        if (l->heads[e] != EPLB_NO_SLOT) eplb_layer_refill(l, e);
    const bool complete = place_missing(l);
    eplb_layer_settle(l);
    return kept && complete;
}

uint32_t
eplb_layer_moves(const eplb_layer *l, const placement *from, uint32_t layer)
{
    uint32_t moves = 0;
    for (uint32_t s = 0; s < l->fleet->slot_count; s++) {
        if (l->slots[s] != PLACEMENT_EMPTY)
            moves += !placement_is_host(from, layer, l->slots[s], l->owners[s]);
    }
    return moves;
}

static void
store_slot(const eplb_layer *l, uint32_t slot, placement *to, size_t at)
{
    const uint32_t e = l->slots[slot];
    const bool sole = l->nexts[l->heads[e]] == EPLB_NO_SLOT;
    to->slots[at] = e;
    to->shares[at] = l->loads[e] > 0 ? (float)(l->parts[slot] / l->loads[e]) : (float)sole;
}

/* An expert without rows has no parts: all of its shares go to the first slot. */
static void
share_idle(const eplb_layer *l, placement *to, uint32_t layer)
{
    const size_t base = (size_t)layer * to->slot_count;
    for (uint32_t e = 0; e < to->num_experts; e++) {
        if (l->loads[e] > 0 || l->nexts[l->heads[e]] == EPLB_NO_SLOT) continue;
        uint32_t s = 0;
        while (to->slots[base + s] != e)
            s++;
        to->shares[base + s] = 1;
    }
}

/* Place of the expert among a worker's slots; count if it is not there. */
static uint32_t
index_of(const uint32_t *slots, uint32_t count, uint32_t expert)
{
    uint32_t i = 0;
    while (i < count && slots[i] != expert)
        i++;
    return i;
}

static void
store_worker(const eplb_layer *l, uint32_t w, const uint32_t *olds, uint32_t old_count,
             placement *to, size_t base)
{
    const uint32_t first = to->slot_first[w], count = to->slot_first[w + 1] - first;
    uint32_t *slots = to->slots + base + first;
    for (uint32_t i = 0; i < old_count && i < count; i++) { /* what stays */
        if (olds[i] == PLACEMENT_EMPTY || index_of(slots, i, olds[i]) != i) continue;
        const uint32_t s = eplb_layer_find(l, olds[i], w);
        if (s != EPLB_NO_SLOT) store_slot(l, s, to, base + first + i);
    }
    for (uint32_t s = first; s < first + count; s++) { /* what is new */
        if (l->slots[s] == PLACEMENT_EMPTY || index_of(slots, count, l->slots[s]) != count)
            continue;
        store_slot(l, s, to, base + first + index_of(slots, count, PLACEMENT_EMPTY));
    }
}

void
eplb_layer_store(const eplb_layer *l, const placement *from, placement *to, uint32_t layer)
{
    const size_t base = (size_t)layer * to->slot_count;
    memset(to->slots + base, 0xff, to->slot_count * sizeof *to->slots);
    memset(to->shares + base, 0, to->slot_count * sizeof *to->shares);
    for (uint32_t w = 0; w < to->worker_count; w++) {
        const uint32_t *olds = NULL;
        uint32_t old_count = 0;
        if (from != NULL && w < from->worker_count) {
            olds = placement_layer_slots(from, layer) + from->slot_first[w];
            old_count = from->slot_first[w + 1] - from->slot_first[w];
        }
        store_worker(l, w, olds, old_count, to, base);
    }
    share_idle(l, to, layer);
    placement_index_layer(to, layer);
}
