/* Who has which slice of the experts, with tensor parallelism (membership.h).
 *
 * As many slices as the cell begins with workers; at first each worker has the one of its id.  When
 * a worker is lost its slices go to one that has none, or to a survivor whose memory holds one more
 * beside its own.  A worker that comes back or is new gets one of those that have several.  A slice
 * has a link of its own, so that steps and the order of sums do not depend on who has it: answers
 * stay the same, bit for bit.
 *
 * A slice changes hands in this order: the new owner loads it, a link is made to it, and between
 * two steps it takes the old one's place, whose link is dropped; the old owner forgets the slice
 * when no router uses it any more. */
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "router/fleet_share.h"
#include "router/membership_impl.h"

#define SLICE_RETRY_NS NS_PER_S /* after a worker failed to take a slice over */

static bool
is_life(const membership *m, const slice_owner *o, bool with_registered)
{
    const worker *w = &m->workers[o->worker];
    if (!o->set || w->incarnation != o->incarnation) return false;
    return w->state == READY ||
           (with_registered && (w->state == REGISTERED || w->state == LOADING));
}

static bool
is_served(const membership *m, uint32_t r)
{
    return is_life(m, &m->slices[r].home, false) && !m->slices[r].home.lost;
}

bool
slices_covered_locked(const membership *m)
{
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        if (!is_served(m, r)) return false;
    }
    return true;
}

uint32_t
slices_list_locked(const membership *m, uint32_t id, uint32_t *out)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        const slice *s = &m->slices[r];
        if ((s->home.worker == id && is_served(m, r)) ||
            (s->next.worker == id && is_life(m, &s->next, true)))
            out[count++] = r;
    }
    return count;
}

uint32_t
slices_owner_locked(const membership *m, uint32_t link)
{
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        if (m->slices[r].home.set && m->slices[r].home.link == link)
            return m->slices[r].home.worker;
    }
    return WORKER_MAX;
}

void
slices_give_up_locked(membership *m, uint32_t id)
{
    for (uint32_t r = 0; r < m->config.worker_count && m->config.mode == WIRE_TP; r++) {
        slice_owner *home = &m->slices[r].home;
        if (!home->set || home->worker != id) continue;
        home->lost = true;
        router_end_give_up(m->config.router_end, home->link);
    }
}

/* ---- links ---- */

bool
slices_take_link_locked(membership *m, uint32_t *link)
{
    for (uint32_t i = 0; i < WORKER_MAX; i++) {
        if (m->link_states[i] != LINK_FREE) continue;
        m->link_states[i] = LINK_USED;
        *link = i;
        return true;
    }
    return false;
}

void
slices_retire_link_locked(membership *m, uint32_t link)
{
    m->link_states[link] = LINK_RETIRED;
}

void
slices_clear(membership *m)
{
    for (uint32_t i = 0; i < WORKER_MAX; i++) {
        pthread_mutex_lock(&m->lock);
        const bool retired = m->link_states[i] == LINK_RETIRED;
        pthread_mutex_unlock(&m->lock);
        if (!retired) continue;
        router_end_drop(m->config.router_end, i);
        pthread_mutex_lock(&m->lock);
        m->link_states[i] = LINK_FREE;
        pthread_mutex_unlock(&m->lock);
    }
}

void
slices_fini(membership *m)
{
    for (uint32_t i = 0; i < WORKER_MAX; i++) {
        if (m->link_states[i] != LINK_FREE) router_end_drop(m->config.router_end, i);
    }
}

/* ---- who is to have what ---- */

/* What it will have when all that is planned is done. */
static uint32_t
count_slices(const membership *m, uint32_t id)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        const slice *s = &m->slices[r];
        const slice_owner *o = s->next.set ? &s->next : &s->home;
        count += o->worker == id && is_life(m, o, true) && !o->lost;
    }
    return count;
}

static bool
is_candidate(const membership *m, uint32_t id, uint64_t now)
{
    const worker *w = &m->workers[id];
    if (w->state != REGISTERED && w->state != READY) return false;
    if (is_gone_locked(m, w, now)) return false;
    uint32_t held[WORKER_MAX];
    const uint64_t want = (slices_list_locked(m, id, held) + 1ull) * m->config.slice_bytes;
    return w->memory_bytes == 0 || want <= w->memory_bytes;
}

/* The one with the fewest slices; among those the slice's own number, then the lowest.  WORKER_MAX:
 * nobody has room. */
static uint32_t
choose_owner(const membership *m, uint32_t r, uint64_t now)
{
    uint32_t best = WORKER_MAX, fewest = UINT32_MAX;
    for (uint32_t id = 0; id < m->worker_end; id++) {
        if (!is_candidate(m, id, now)) continue;
        const uint32_t count = count_slices(m, id);
        if (count > fewest || (count == fewest && id != r)) continue;
        best = id;
        fewest = count;
    }
    return best;
}

static void
drop_next(membership *m, slice *s)
{
    if (s->next_linked) slices_retire_link_locked(m, s->next.link);
    s->next = (slice_owner){0};
    s->next_linked = false;
}

static void
plan(membership *m, uint32_t r, uint32_t id)
{
    m->slices[r].next =
        (slice_owner){.set = true, .worker = id, .incarnation = m->workers[id].incarnation};
}

/* Of slices that nobody serves. */
static uint64_t
plan_lost(membership *m, uint64_t now)
{
    uint64_t missing = 0;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        slice *s = &m->slices[r];
        if (is_served(m, r) || s->next.set) continue;
        const uint32_t id = choose_owner(m, r, now);
        if (id == WORKER_MAX)
            missing += m->config.slice_bytes;
        else
            plan(m, r, id);
    }
    return missing;
}

/* From those that have several to those that have two less. */
static void
plan_even(membership *m, uint64_t now)
{
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        const slice *s = &m->slices[r];
        if (s->next.set || !is_served(m, r)) continue;
        const uint32_t id = choose_owner(m, r, now);
        if (id != WORKER_MAX && count_slices(m, id) + 2 <= count_slices(m, s->home.worker))
            plan(m, r, id);
    }
}

/* What router 0 says. */
static void
plan_told(membership *m)
{
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        slice *s = &m->slices[r];
        const uint32_t id = m->told_owners[r] - 1;
        if (m->told_owners[r] == 0 || id >= WORKER_MAX) continue;
        if (s->next.set && s->next.worker != id) drop_next(m, s);
        if (s->next.set || (is_served(m, r) && s->home.worker == id)) continue;
        if (m->workers[id].state == REGISTERED || m->workers[id].state == READY) plan(m, r, id);
    }
}

static uint32_t
count_there(const membership *m)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < m->worker_end; id++)
        count += m->workers[id].state == REGISTERED || m->workers[id].state == READY;
    return count;
}

bool
slices_plan(membership *m)
{
    const uint64_t now = clock_now_ns();
    bool any = false;
    pthread_mutex_lock(&m->lock);
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        slice *s = &m->slices[r];
        if (s->next.set && !is_life(m, &s->next, true)) drop_next(m, s);
    }
    const bool begins = m->started || m->config.follows || count_there(m) >= m->config.worker_count;
    if (m->config.follows) {
        plan_told(m);
    } else if (begins && now >= m->slices_retry_ns) {
        m->shortfall = plan_lost(m, now);
        plan_even(m, now);
    }
    for (uint32_t r = 0; r < m->config.worker_count; r++)
        any = any || (m->slices[r].next.set && !m->slices[r].next_linked);
    for (uint32_t id = 0; id < m->worker_end && begins; id++)
        any = any || m->workers[id].state == REGISTERED;
    pthread_mutex_unlock(&m->lock);
    return any;
}

bool
slices_concern_locked(const membership *m, uint32_t id)
{
    if (m->workers[id].state != READY) return m->workers[id].state == REGISTERED;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        const slice *s = &m->slices[r];
        if (s->next.set && !s->next_linked && s->next.worker == id) return true;
    }
    return false;
}

void
slices_failed_locked(membership *m, uint32_t id)
{
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        if (m->slices[r].next.set && m->slices[r].next.worker == id) drop_next(m, &m->slices[r]);
    }
    m->slices_retry_ns = clock_now_ns() + SLICE_RETRY_NS;
}

/* ---- between two steps ---- */

/* A router that follows has adopted what it was told when every slice is where it is to be. */
static bool
follow(membership *m)
{
    if (!m->config.follows || m->fleet_version == m->next_version) return false;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        const slice_owner *home = &m->slices[r].home;
        if (m->told_owners[r] != 0 && (!is_served(m, r) || home->worker != m->told_owners[r] - 1))
            return false;
    }
    m->epoch = m->next_epoch;
    m->fleet_version = m->next_version;
    return true;
}

bool
slices_renew_locked(membership *m)
{
    bool changed = false;
    for (uint32_t r = 0; r < m->config.worker_count; r++) {
        slice *s = &m->slices[r];
        if (!s->next_linked || !is_life(m, &s->next, false)) continue;
        if (s->home.set) {
            slices_retire_link_locked(m, s->home.link);
            if (s->home.worker != s->next.worker) m->surplus[s->home.worker] = true;
        }
        LOG_INFO("membership", "slice taken over slice=%u worker=%u", r, s->next.worker);
        s->home = s->next;
        m->slice_links[r] = s->home.link;
        s->next = (slice_owner){0};
        s->next_linked = false;
        changed = true;
    }
    return follow(m) || changed;
}

uint32_t
slices_surplus(membership *m)
{
    uint32_t found = WORKER_MAX;
    const bool adopted = m->config.mode == WIRE_TP && !m->config.follows && fleet_has_adopted(m);
    pthread_mutex_lock(&m->lock);
    for (uint32_t id = 0; id < m->worker_end && adopted; id++) {
        if (!m->surplus[id]) continue;
        uint32_t list[WORKER_MAX];
        if (m->workers[id].state != READY || slices_list_locked(m, id, list) == 0)
            m->surplus[id] = false; /* it is gone, or it will be told when it gets one */
        else if (found == WORKER_MAX)
            found = id;
    }
    if (found != WORKER_MAX) m->surplus[found] = false;
    pthread_mutex_unlock(&m->lock);
    return found;
}
