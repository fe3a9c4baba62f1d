#include "router/fleet_share.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/hash.h"
#include "common/log.h"
#include "router/membership_impl.h"

/* Slot s of layer l as followers may use it: expert + 1, or 0.  Not `fitted`: that is without
 * workers that came back during a step. */
static uint32_t
shared_slot_locked(const membership *m, uint32_t w, uint32_t l, uint32_t s)
{
    const uint32_t e = placement_layer_slots(m->home, l)[s];
    if (e == PLACEMENT_EMPTY || !is_ready_locked(m, w)) return 0;
    const size_t id = (size_t)l * m->home->num_experts + e;
    return m->hosted[w * m->id_count + id] ? e + 1 : 0;
}

/* Who serves a slice: worker + 1, or 0. */
static uint32_t
shared_owner_locked(const membership *m, uint32_t r)
{
    const slice_owner *home = &m->slices[r].home;
    const worker *w = &m->workers[home->worker];
    const bool serves =
        home->set && !home->lost && w->state == READY && w->incarnation == home->incarnation;
    return serves ? home->worker + 1 : 0;
}

/* One number for epoch and placement; never 0. */
static uint64_t
fleet_version_locked(const membership *m)
{
    uint64_t h = hash_combine(m->config.router_incarnation, m->epoch);
    const placement *p = m->home;
    for (uint32_t w = 0; p != NULL && w < p->worker_count; w++) {
        h = hash_combine(h, p->slot_first[w]);
        h = hash_combine(h, p->speeds[w]);
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            for (uint32_t l = 0; l < p->num_layers; l++)
                h = hash_combine(h, shared_slot_locked(m, w, l, s));
        }
    }
    for (uint32_t r = 0; r < m->config.worker_count && m->config.mode == WIRE_TP; r++)
        h = hash_combine(h, shared_owner_locked(m, r));
    return h | 1;
}

/*   slot_counts  [WORKER_MAX] of each worker
 *   *slots       [*count] owned  */
static moe_err
copy_placement_locked(const membership *m, uint32_t *slot_counts, uint32_t **slots, size_t *count,
                      errbuf *eb)
{
    const placement *p = m->home;
    *count = (size_t)p->num_layers * p->slot_count;
    *slots = malloc((*count + 1) * sizeof **slots);
    if (*slots == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t w = 0; w < p->worker_count; w++) {
        slot_counts[w] = p->slot_first[w + 1] - p->slot_first[w];
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            for (uint32_t l = 0; l < p->num_layers; l++)
                (*slots)[(size_t)l * p->slot_count + s] = shared_slot_locked(m, w, l, s);
        }
    }
    return MOE_OK;
}

static moe_err
fill_placement_locked(const membership *m, fleet_answer *a, errbuf *eb)
{
    const placement *p = m->home;
    const moe_err err = copy_placement_locked(m, a->slot_counts, &a->slots, &a->reply.n_slots, eb);
    if (err) return err;
    for (uint32_t w = 0; w < p->worker_count; w++)
        a->speeds[w] = p->speeds[w];
    a->reply.has_placement = true;
    a->reply.n_slot_counts = m->home->worker_count;
    a->reply.slot_counts = a->slot_counts;
    a->reply.n_speeds = p->worker_count;
    a->reply.speeds = a->speeds;
    a->reply.slots = a->slots;
    return MOE_OK;
}

static void
fill_workers_locked(const membership *m, fleet_answer *a)
{
    for (uint32_t id = 0; id < m->worker_end; id++) {
        const worker *w = &m->workers[id];
        if (!is_ready_locked(m, id)) continue;
        member *texts = &a->members[id];
        memcpy(texts->control_url, w->control_url, sizeof texts->control_url);
        memcpy(texts->host_id, w->host_id, sizeof texts->host_id);
        Conclave__FleetWorker *out = &a->workers[a->reply.n_workers];
        conclave__fleet_worker__init(out);
        out->worker_id = id;
        out->incarnation = w->incarnation;
        out->control_url = texts->control_url;
        out->host_id = texts->host_id;
        out->pid = w->pid;
        a->pointers[a->reply.n_workers++] = out;
    }
    a->reply.workers = a->pointers;
}

/* With the lock. */
static void
note_follower(membership *m, const Conclave__FleetRequest *q)
{
    follower_seen *f = &m->followers[q->router_id];
    if (f->incarnation != q->incarnation)
        LOG_INFO("membership", "router %u follows epoch=%llu", q->router_id,
                 (unsigned long long)q->epoch);
    *f = (follower_seen){q->incarnation, q->fleet_version, clock_now_ns()};
    if (q->epoch > m->epoch) m->epoch = q->epoch; /* of an earlier life of this router */
}

moe_err
fleet_on_request(membership *m, const Conclave__FleetRequest *q, fleet_answer **out, errbuf *eb)
{
    char peer[32];
    *out = NULL;
    if (q->router_id == 0 || q->router_id >= ROUTER_MAX)
        return err_set(eb, MOE_ERANGE, "router %u does not follow: ids are 1 to %d", q->router_id,
                       ROUTER_MAX - 1);
    snprintf(peer, sizeof peer, "router %u", q->router_id);
    moe_err err = identity_check(m->config.identity, peer, q->version, q->model, q->numeric, eb);
    if (err) return err;
    fleet_answer *a = calloc(1, sizeof *a);
    if (a == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    conclave__fleet_reply__init(&a->reply);
    a->reply.parallelism = (char *)(uintptr_t)(m->config.mode == WIRE_TP ? "tp" : "ep");
    pthread_mutex_lock(&m->lock);
    note_follower(m, q);
    a->reply.fleet_version = fleet_version_locked(m);
    a->reply.epoch = m->epoch;
    fill_workers_locked(m, a);
    if (m->config.mode == WIRE_TP) {
        a->reply.n_slice_workers = m->config.worker_count;
        a->reply.slice_workers = a->slice_workers;
        for (uint32_t r = 0; r < m->config.worker_count; r++)
            a->slice_workers[r] = shared_owner_locked(m, r);
    }
    if (m->home != NULL && m->started && a->reply.fleet_version != q->fleet_version)
        err = fill_placement_locked(m, a, eb);
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->left); /* for who waits below */
    if (err) {
        fleet_answer_free(a);
        return err;
    }
    *out = a;
    return MOE_OK;
}

void
fleet_answer_free(fleet_answer *a)
{
    if (a == NULL) return;
    free(a->slots);
    free(a);
}

moe_err
fleet_tell_placement(membership *m, placement_answer **out, errbuf *eb)
{
    *out = NULL;
    placement_answer *a = calloc(1, sizeof *a);
    if (a == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    conclave__placement_reply__init(&a->reply);
    a->reply.parallelism = (char *)(uintptr_t)(m->config.mode == WIRE_TP ? "tp" : "ep");
    a->reply.num_layers = m->config.limits.num_layers;
    a->reply.num_experts = m->config.limits.num_experts;
    moe_err err = MOE_OK;
    pthread_mutex_lock(&m->lock);
    a->reply.epoch = m->epoch;
    if (m->home != NULL && m->started) {
        err = copy_placement_locked(m, a->slot_counts, &a->slots, &a->reply.n_slots, eb);
        a->reply.n_slot_counts = err ? 0 : m->home->worker_count;
    }
    pthread_mutex_unlock(&m->lock);
    a->reply.slot_counts = a->slot_counts;
    a->reply.slots = a->slots;
    if (err)
        placement_answer_free(a);
    else
        *out = a;
    return err;
}

void
placement_answer_free(placement_answer *a)
{
    if (a == NULL) return;
    free(a->slots);
    free(a);
}

bool
fleet_has_adopted(membership *m)
{
    bool all = true;
    pthread_mutex_lock(&m->lock);
    const uint64_t now = clock_now_ns(), version = fleet_version_locked(m);
    for (uint32_t r = 0; r < ROUTER_MAX; r++) {
        const follower_seen *f = &m->followers[r];
        const bool alive =
            f->incarnation != 0 && now < f->seen_ns + FOLLOWER_TIMEOUT_MS * NS_PER_MS;
        all = all && (!alive || f->fleet_version == version);
    }
    pthread_mutex_unlock(&m->lock);
    return all;
}

bool
fleet_wait_for_followers(membership *m, uint32_t timeout_ms)
{
    const uint64_t until = clock_now_ns() + timeout_ms * NS_PER_MS;
    for (;;) {
        const uint32_t seen = atomic_load(&m->left);
        if (fleet_has_adopted(m)) return true;
        if (atomic_load(&m->stopping) || clock_now_ns() >= until) return false;
        futex_sleep_change(&m->left, seen, clock_now_ns() + CALL_POLL_MS * NS_PER_MS);
    }
}
