#include "router/move_stage.h"

#include <string.h>

/* Experts that the worker's memory holds beside what it hosts. */
static uint64_t
room_of(const member *m, uint64_t expert_bytes)
{
    if (m->memory_bytes == 0 || expert_bytes == 0) return UINT64_MAX;
    const uint64_t fit = m->memory_bytes / expert_bytes;
    return fit > m->experts_hosted ? fit - m->experts_hosted : 0;
}

static uint32_t
lacking_in_layer(const fleet_view *v, const placement *to, uint32_t layer, uint32_t w)
{
    uint32_t count = 0;
    const uint32_t *slots = placement_layer_slots(to, layer);
    for (uint32_t s = to->slot_first[w]; s < to->slot_first[w + 1]; s++) {
        if (slots[s] != PLACEMENT_EMPTY &&
            !fleet_view_hosts(v, w, layer * to->num_experts + slots[s]))
            count++;
    }
    return count;
}

static void
copy_layer(placement *to, const placement *from, uint32_t layer)
{
    for (uint32_t w = 0; w < from->worker_count; w++) {
        const uint32_t count = from->slot_first[w + 1] - from->slot_first[w];
        const size_t at = (size_t)layer * to->slot_count + to->slot_first[w];
        const size_t src = (size_t)layer * from->slot_count + from->slot_first[w];
        memcpy(to->slots + at, from->slots + src, count * sizeof *to->slots);
        memcpy(to->shares + at, from->shares + src, count * sizeof *to->shares);
    }
}

/* Layers that stay may count on workers that are not there. */
static void
empty_slots_of_missing(const fleet_view *v, placement *p)
{
    for (uint32_t w = 0; w < p->worker_count; w++) {
        if (w < v->worker_end && v->members[w].ready) continue;
        for (uint32_t l = 0; l < p->num_layers; l++) {
            for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++)
                p->slots[(size_t)l * p->slot_count + s] = PLACEMENT_EMPTY;
        }
    }
}

/* An empty placement with room for the slots of both. */
static moe_err
create_wide(placement **out, const placement *a, const placement *b, errbuf *eb)
{
    uint32_t slots[WORKER_MAX] = {0}, workers = a->worker_count;
    if (b->worker_count > workers) workers = b->worker_count;
    for (uint32_t w = 0; w < workers; w++) {
        const uint32_t in_a = w < a->worker_count ? a->slot_first[w + 1] - a->slot_first[w] : 0;
        const uint32_t in_b = w < b->worker_count ? b->slot_first[w + 1] - b->slot_first[w] : 0;
        slots[w] = in_a > in_b ? in_a : in_b;
    }
    const moe_err err = placement_create(out, a->num_layers, a->num_experts, workers, slots, eb);
    if (!err) memcpy((*out)->speeds, b->speeds, b->worker_count * sizeof *b->speeds);
    return err;
}

moe_err
move_stage_make(placement **out, const fleet_view *v, const placement *target,
                uint64_t expert_bytes, bool *last, errbuf *eb)
{
    uint64_t room[WORKER_MAX], short_of = 0;
    bool any = false;
    *last = true;
    moe_err err = create_wide(out, v->home, target, eb);
    if (err) return err;
    for (uint32_t w = 0; w < v->worker_end; w++)
        room[w] = room_of(&v->members[w], expert_bytes);
    for (uint32_t l = 0; l < target->num_layers; l++) {
        uint32_t lacking[WORKER_MAX] = {0}, sum = 0;
        bool fits = true;
        for (uint32_t w = 0; w < target->worker_count; w++) {
            lacking[w] = lacking_in_layer(v, target, l, w);
            sum += lacking[w];
            if (lacking[w] <= room[w]) continue;
            fits = false;
            if (lacking[w] - room[w] > short_of) short_of = lacking[w] - room[w];
        }
        for (uint32_t w = 0; w < target->worker_count && fits; w++) {
            if (room[w] != UINT64_MAX) room[w] -= lacking[w];
        }
        any = any || (fits && sum != 0);
        *last = *last && fits;
        copy_layer(*out, fits ? target : v->home, l);
    }
    if (*last) { /* with its own slots */
        placement_free(*out);
        return placement_clone(out, target, eb);
    }
    empty_slots_of_missing(v, *out);
    placement_index(*out);
    if (any) return MOE_OK;
    placement_free(*out);
    *out = NULL;
    return err_set(eb, MOE_ENOMEM, "a worker's memory is %llu bytes short of old and new experts",
                   (unsigned long long)(short_of * expert_bytes));
}
