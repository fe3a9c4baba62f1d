#include "router/move_stage.h"

#include <stdlib.h>
#include <string.h>

/* What is being decided.
 *
 * Of the target's hosts of an expert one is its main host: one that has it, if there is one.  Main
 * hosts come first, and copies for them are never given up again.  Once all main hosts have what
 * they are to have, a worker hosts nothing that the target does not name there, so that the rest
 * fits.  While they have not, somebody is full of experts that wait for room elsewhere, and one
 * free slot is enough to go on: with all copies single, as many slots are free as ever. */
typedef struct stage {
    const fleet_view *view;
    const placement *target;
    uint32_t workers, experts; /* of both placements; of a layer */
    size_t ids;
    bool *next;                   /* [workers][ids] who hosts what in this stage */
    uint32_t *mains;              /* [ids] */
    uint64_t room[WORKER_MAX];    /* experts more that memory holds */
    uint32_t lacking[WORKER_MAX]; /* experts that it is to load in this stage or later */
    uint32_t waiting[WORKER_MAX]; /* of those whose turn it is, how many find no room */
    uint32_t freed[WORKER_MAX];   /* copies that it gives up before their time */
    size_t loads, left, mains_left;
} stage;

/* Experts that the worker's memory holds beside what it hosts. */
static uint64_t
room_of(const member *m, uint64_t expert_bytes)
{
    if (m->memory_bytes == 0 || expert_bytes == 0) return UINT64_MAX;
    const uint64_t fit = m->memory_bytes / expert_bytes;
    return fit > m->experts_hosted ? fit - m->experts_hosted : 0;
}

static bool
names(const placement *p, uint32_t w, size_t id)
{
    return w < p->worker_count && placement_is_host(p, (uint32_t)(id / p->num_experts),
                                                    (uint32_t)(id % p->num_experts), w);
}

/* Do steps use this copy now? */
static bool
is_used(const stage *s, uint32_t w, size_t id)
{
    return w < s->view->worker_end && s->view->members[w].ready && names(s->view->home, w, id) &&
           fleet_view_hosts(s->view, w, (uint32_t)id);
}

/* A copy that steps use and that the target does not name. */
static bool
is_leaving(const stage *s, uint32_t w, size_t id)
{
    return is_used(s, w, id) && !names(s->target, w, id);
}

static bool *
next_at(const stage *s, uint32_t w, size_t id)
{
    return &s->next[w * s->ids + id];
}

static const uint32_t *
target_hosts(const stage *s, size_t id, uint32_t *count)
{
    return placement_hosts(s->target, (uint32_t)(id / s->experts), (uint32_t)(id % s->experts),
                           count);
}

/* What is there already; who is the main host; what everybody lacks. */
static void
look_at_target(stage *s)
{
    for (size_t id = 0; id < s->ids; id++) {
        uint32_t count;
        const uint32_t *hosts = target_hosts(s, id, &count);
        s->mains[id] = count == 0 ? 0 : hosts[0];
        for (uint32_t h = count; h-- > 0;) {
            if (fleet_view_hosts(s->view, hosts[h], (uint32_t)id)) {
                *next_at(s, hosts[h], id) = true;
                s->mains[id] = hosts[h];
            } else {
                s->lacking[hosts[h]]++;
            }
        }
    }
}

static bool
load(stage *s, uint32_t w, size_t id)
{
    if (s->room[w] == 0) return false;
    if (s->room[w] != UINT64_MAX) s->room[w]--;
    s->lacking[w]--;
    s->loads++;
    *next_at(s, w, id) = true;
    return true;
}

/* As many of the target's experts as there is room for: main hosts first.  Others wait for all of
 * these, unless their worker has room to spare. */
static void
take_loads(stage *s)
{
    for (size_t id = 0; id < s->ids; id++) {
        uint32_t count;
        (void)target_hosts(s, id, &count);
        const uint32_t w = s->mains[id];
        if (count == 0 || *next_at(s, w, id) || load(s, w, id)) continue;
        s->waiting[w]++;
        s->mains_left++;
    }
    s->left = s->mains_left;
    for (size_t id = 0; id < s->ids; id++) {
        uint32_t count;
        const uint32_t *hosts = target_hosts(s, id, &count);
        for (uint32_t h = 0; h < count; h++) {
            const uint32_t w = hosts[h];
            if (w == s->mains[id] || *next_at(s, w, id)) continue;
            const bool may = s->mains_left == 0 || s->room[w] > s->lacking[w];
            if (may && load(s, w, id)) continue;
            s->left++;
            s->waiting[w] += s->mains_left == 0;
        }
    }
}

static bool
has_all_its_hosts(const stage *s, size_t id)
{
    uint32_t count;
    const uint32_t *hosts = target_hosts(s, id, &count);
    for (uint32_t h = 0; h < count; h++) {
        if (!*next_at(s, hosts[h], id)) return false;
    }
    return count != 0;
}

/* Returns whether others go. */
static bool
keep_leaving(stage *s)
{
    bool any_goes = false;
    for (size_t id = 0; id < s->ids; id++) {
        const bool goes = has_all_its_hosts(s, id);
        for (uint32_t w = 0; w < s->workers; w++) {
            if (!is_leaving(s, w, id)) continue;
            *next_at(s, w, id) = !goes;
            any_goes = any_goes || goes;
        }
    }
    return any_goes;
}

static uint32_t
count_hosts(const stage *s, size_t id)
{
    uint32_t count = 0;
    for (uint32_t w = 0; w < s->workers; w++)
        count += *next_at(s, w, id);
    return count;
}

/* Full, and it waits for room that this stage does not make yet. */
static bool
is_stuck(const stage *s, uint32_t w)
{
    return s->freed[w] < s->waiting[w];
}

/* Copies that are not the only one, nor a main host's: of stuck workers, or of all. */
static bool
give_up_copies(stage *s, bool leaving, bool stuck)
{
    bool any = false;
    for (size_t id = 0; id < s->ids; id++) {
        uint32_t count = count_hosts(s, id);
        for (uint32_t w = 0; w < s->workers && count > 1; w++) {
            if (!*next_at(s, w, id) || (stuck && !is_stuck(s, w))) continue;
            if (leaving ? !is_leaving(s, w, id) : w == s->mains[id]) continue;
            *next_at(s, w, id) = false;
            s->freed[w]++;
            count--;
            any = true;
        }
    }
    return any;
}

/* The worker with the most room that does not host it, or WORKER_MAX. */
static uint32_t
find_room(const stage *s, size_t id)
{
    uint32_t best = WORKER_MAX;
    for (uint32_t w = 0; w < s->view->worker_end && w < s->workers; w++) {
        const member *m = &s->view->members[w];
        if (!m->ready || m->draining || s->room[w] == 0) continue;
        if (fleet_view_hosts(s->view, w, (uint32_t)id)) continue;
        if (best == WORKER_MAX || s->room[w] > s->room[best]) best = w;
    }
    return best;
}

/* One expert of each full worker to one that has room. */
static bool
hand_over(stage *s)
{
    bool any = false;
    for (size_t id = 0; id < s->ids; id++) {
        for (uint32_t w = 0; w < s->workers; w++) {
            if (!is_stuck(s, w) || s->freed[w] != 0 || !is_leaving(s, w, id)) continue;
            const uint32_t to = find_room(s, id);
            if (to == WORKER_MAX || *next_at(s, to, id)) continue;
            if (s->room[to] != UINT64_MAX) s->room[to]--;
            *next_at(s, to, id) = true;
            *next_at(s, w, id) = false;
            s->freed[w]++;
            any = true;
        }
    }
    return any;
}

/* Nobody can load what it is to have: make room. */
static bool
make_room(stage *s)
{
    if (give_up_copies(s, true, true)) return true;
    return s->mains_left != 0 &&
           (give_up_copies(s, false, true) || hand_over(s) || give_up_copies(s, false, false));
}

/* With as many slots as each worker needs. */
static moe_err
write_placement(const stage *s, placement **out, errbuf *eb)
{
    uint32_t slots[WORKER_MAX] = {0};
    const uint32_t layers = s->target->num_layers;
    for (uint32_t w = 0; w < s->workers; w++) {
        for (uint32_t l = 0; l < layers; l++) {
            uint32_t count = 0;
            for (uint32_t e = 0; e < s->experts; e++)
                count += *next_at(s, w, (size_t)l * s->experts + e);
            if (count > slots[w]) slots[w] = count;
        }
    }
    const moe_err err = placement_create(out, layers, s->experts, s->workers, slots, eb);
    if (err) return err;
    placement *p = *out;
    memcpy(p->speeds, s->target->speeds, s->target->worker_count * sizeof *p->speeds);
    for (uint32_t w = 0; w < s->workers; w++) {
        for (uint32_t l = 0; l < layers; l++) {
            uint32_t *to = p->slots + (size_t)l * p->slot_count + p->slot_first[w];
            for (uint32_t e = 0; e < s->experts; e++) {
                if (*next_at(s, w, (size_t)l * s->experts + e)) *to++ = e;
            }
        }
    }
    placement_index(p);
    placement_set_even_shares(p);
    return MOE_OK;
}

moe_err
move_stage_make(placement **out, const fleet_view *v, const placement *target,
                uint64_t expert_bytes, bool *last, errbuf *eb)
{
    *out = NULL;
    stage s = {.view = v,
               .target = target,
               .workers = v->home->worker_count > target->worker_count ? v->home->worker_count
                                                                       : target->worker_count,
               .experts = target->num_experts,
               .ids = (size_t)target->num_layers * target->num_experts};
    s.next = calloc(s.workers * s.ids, sizeof *s.next);
    s.mains = calloc(s.ids, sizeof *s.mains);
    moe_err err =
        s.next == NULL || s.mains == NULL ? err_set(eb, MOE_ENOMEM, "out of memory") : MOE_OK;
    for (uint32_t w = 0; w < s.workers; w++)
        s.room[w] = room_of(&v->members[w], expert_bytes);
    if (!err) look_at_target(&s);
    if (!err) take_loads(&s);
    *last = s.left == 0;
    if (err) {
        /* nothing was decided */
    } else if (*last) { /* with its own slots */
        err = placement_clone(out, target, eb);
    } else {
        const bool goes_on = keep_leaving(&s) || s.loads != 0;
        if (!goes_on && !make_room(&s))
            err = err_set(eb, MOE_ENOMEM,
                          "full workers are to exchange experts, and no worker has the %llu bytes "
                          "for one more (--spare-slots)",
                          (unsigned long long)expert_bytes);
        else
            err = write_placement(&s, out, eb);
    }
    free(s.next);
    free(s.mains);
    return err;
}
