#include "router/membership.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "router/membership_impl.h"

static const char *const state_names[] = {"absent", "registered", "loading", "ready", "lost"};

moe_err
membership_create(membership **out, const membership_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->worker_count == 0 || config->worker_count > WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "a cell has 1 to %d workers, not %u", WORKER_MAX,
                       config->worker_count);
    membership *m = calloc(1, sizeof *m);
    if (m == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    m->config = *config;
    pthread_mutex_init(&m->lock, NULL);
    m->worker_end = config->worker_count;
    for (uint32_t id = 0; id < config->worker_count; id++)
        m->workers[id].belongs = true;
    const moe_err err = adoption_init(m, eb);
    if (err) {
        membership_free(m);
        return err;
    }
    *out = m;
    return MOE_OK;
}

void
membership_free(membership *m)
{
    if (m == NULL) return;
    slices_fini(m);
    for (uint32_t w = 0; w < m->worker_end; w++) {
        if (m->workers[w].linked) router_end_drop(m->config.router_end, w);
        liveness_forget_locked(&m->workers[w]); /* nobody else is here any more */
        rpc_client_close(m->workers[w].watch);
    }
    pthread_mutex_destroy(&m->lock);
    adoption_fini(m);
    free(m);
}

moe_err
membership_on_register(membership *m, const Conclave__RegisterRequest *r, errbuf *eb)
{
    char peer[32];
    snprintf(peer, sizeof peer, "worker %u", r->worker_id);
    if (r->worker_id >= WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "%s: this cell has workers 0 to %u", peer, WORKER_MAX - 1);
    moe_err err = identity_check(m->config.identity, peer, r->version, r->model, r->numeric, eb);
    if (err) {
        LOG_WARN("membership", "refused: %s", eb->text);
        return err;
    }
    const bool same_host = strcmp(r->host_id, m->config.identity->host_id) == 0;
    if (m->config.exchange == EXCHANGE_ONLY_SHM && !same_host)
        return err_set(eb, MOE_EMISMATCH, "%s is on another host, but --exchange is shm", peer);
    if (strlen(r->control_url) >= RPC_URL_MAX || strlen(r->host_id) >= HOST_ID_MAX)
        return err_set(eb, MOE_EINVAL,
                       "%s: control_url is longer than %d bytes, or host_id than %d", peer,
                       RPC_URL_MAX - 1, HOST_ID_MAX - 1);

    const uint64_t now = clock_now_ns();
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[r->worker_id];
    const bool alive = w->state != ABSENT && w->state != LOST && w->incarnation != r->incarnation &&
                       !is_gone_locked(m, w, now);
    if (alive) {
        err = err_set(eb, MOE_EBUSY, "%s (pid %u) is alive already", peer, w->pid);
    } else if (w->incarnation != r->incarnation || w->state == LOST || w->state == ABSENT) {
        if (w->linked) router_end_give_up(m->config.router_end, r->worker_id);
        slices_give_up_locked(m, r->worker_id);
        if (m->worker_end <= r->worker_id) m->worker_end = r->worker_id + 1;
        w->state = REGISTERED;
        w->belongs = true;
        w->draining = false;
        w->memory_bytes = r->memory_bytes;
        if (m->hosted != NULL) memset(hosted_locked(m, r->worker_id), 0, m->id_count);
        w->incarnation = r->incarnation;
        w->pid = r->pid;
        w->experts_hosted = 0;
        w->bytes_hosted = 0;
        w->backend =
            m->config.exchange == EXCHANGE_ONLY_NNG || !same_host ? EXCHANGE_NNG : EXCHANGE_SHM;
        snprintf(w->control_url, sizeof w->control_url, "%s", r->control_url);
        snprintf(w->host_id, sizeof w->host_id, "%s", r->host_id);
        adoption_judge_locked(m);
    }
    if (!err) w->last_seen_ns = now;
    pthread_mutex_unlock(&m->lock);
    if (!err) futex_bump(&m->bell);
    return err;
}

bool
membership_on_heartbeat(membership *m, uint32_t id, uint64_t incarnation)
{
    if (id >= WORKER_MAX) return false;
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[id];
    const bool known = w->incarnation == incarnation && w->state != ABSENT && w->state != LOST;
    if (known) w->last_seen_ns = clock_now_ns();
    pthread_mutex_unlock(&m->lock);
    return known;
}

void
membership_wait_for_step(membership *m)
{
    pthread_mutex_lock(&m->lock);
    const uint64_t begun = m->steps;
    bool wait = m->in_step;
    pthread_mutex_unlock(&m->lock);
    while (wait) {
        const uint32_t seen = atomic_load(&m->left);
        pthread_mutex_lock(&m->lock);
        wait = m->in_step && m->steps == begun;
        pthread_mutex_unlock(&m->lock);
        if (!wait) break;
        futex_sleep_change(&m->left, seen, clock_now_ns() + CALL_POLL_MS * NS_PER_MS);
        membership_check(m); /* the step may be waiting for one that has fallen silent */
    }
}

/* Does the placement name it? */
static bool
is_counted_on(const membership *m, uint32_t id)
{
    const placement *p = m->home;
    if (p == NULL || id >= p->worker_count) return false;
    for (uint32_t l = 0; l < p->num_layers; l++) {
        for (uint32_t s = p->slot_first[id]; s < p->slot_first[id + 1]; s++) {
            if (placement_layer_slots(p, l)[s] != PLACEMENT_EMPTY) return true;
        }
    }
    return false;
}

/* With the lock. */
static void
lose(membership *m, uint32_t id, const char *why, uint64_t now)
{
    worker *w = &m->workers[id];
    const bool expected = w->draining && !is_counted_on(m, id); /* it was told to end */
    if (expected)
        LOG_INFO("membership", "worker ended, as it was told worker=%u pid=%u", id, w->pid);
    else
        LOG_WARN("membership", "worker lost: %s worker=%u pid=%u", why, id, w->pid);
    w->state = LOST;
    w->lost_ns = now;
    m->losses += !expected;
    if (w->linked) router_end_give_up(m->config.router_end, id);
    slices_give_up_locked(m, id);
    futex_bump(&m->changes);
}

static const char *
why_silent(const membership *m, const worker *w)
{
    if (!m->config.follows) return "no heartbeat";
    return w->last_seen_ns == 0 ? "router 0 gave it up" : "it does not answer";
}

bool
membership_check(membership *m)
{
    const uint64_t now = clock_now_ns();
    bool any_registered = false, any_missing = false;
    pthread_mutex_lock(&m->lock);
    for (uint32_t id = 0; id < m->worker_end; id++) {
        worker *w = &m->workers[id];
        liveness_ask_locked(m, id, now);
        if ((w->state == READY || w->state == REGISTERED) && is_silent_locked(m, w, now))
            lose(m, id, why_silent(m, w), now);
        else if (w->state == READY && is_gone_locked(m, w, now))
            lose(m, id, "its connection ended", now);
        if (w->state == REGISTERED) any_registered = true;
        if (id < m->config.worker_count && (w->state == ABSENT || w->state == LOST))
            any_missing = true;
    }
    const bool tp = m->config.mode == WIRE_TP;
    if (!m->started && !tp) {
        m->started = true;
        for (uint32_t id = 0; id < m->config.worker_count; id++)
            m->started = m->started && is_ready_locked(m, id);
    }
    adoption_renew_locked(m);
    bool bring_up = any_registered && (m->started || !any_missing || m->config.follows);
    if (bring_up && !m->config.follows) {
        errbuf eb;
        bring_up = adoption_start_locked(m, &eb) == MOE_OK;
        if (!bring_up) LOG_WARN("membership", "experts can't be placed: %s", eb.text);
    }
    pthread_mutex_unlock(&m->lock);
    return bring_up;
}

/* Links and watches of workers that are gone: they may never come back. */
static void
clear_remains(membership *m)
{
    const uint32_t trim = slices_surplus(m);
    if (trim != WORKER_MAX) bring_up_trim(m, trim);
    slices_clear(m);
    for (uint32_t id = 0; id < WORKER_MAX; id++) {
        pthread_mutex_lock(&m->lock);
        worker *w = &m->workers[id];
        const bool gone = w->state == ABSENT || w->state == LOST;
        const bool drop = gone && w->linked;
        rpc_client *watch = gone ? w->watch : NULL;
        if (watch != NULL) {
            liveness_forget_locked(w);
            w->watch = NULL;
        }
        if (drop) w->linked = false;
        pthread_mutex_unlock(&m->lock);
        rpc_client_close(watch);
        if (!drop) continue;
        membership_wait_for_step(m);
        router_end_drop(m->config.router_end, id);
    }
}

void
membership_update(membership *m, uint32_t wait_ms)
{
    const uint32_t seen = atomic_load(&m->bell);
    const bool registered = membership_check(m);
    if (m->config.mode == WIRE_TP ? slices_plan(m) : registered) {
        bring_up_registered(m);
        membership_check(m);
        futex_bump(&m->changes);
    }
    clear_remains(m);
    if (!atomic_load(&m->stopping))
        futex_sleep_change(&m->bell, seen, clock_now_ns() + wait_ms * NS_PER_MS);
}

void
membership_stop(membership *m)
{
    atomic_store(&m->stopping, true);
    futex_bump(&m->bell);
}

void
membership_close(membership *m)
{
    if (m == NULL) return;
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    m->ready = false;
    pthread_mutex_unlock(&m->lock);
    for (uint32_t id = 0; id < WORKER_MAX; id++) {
        router_end_give_up(m->config.router_end, id);
    }
}

/* With the lock.  One that is not READY any more has registered anew: what failed was its last
 * life's link. */
static void
forget_worker(membership *m, uint32_t id)
{
    if (is_ready_locked(m, id)) lose(m, id, "a step found it lost", clock_now_ns());
    adoption_judge_locked(m);
}

/* expert_fleet_lost_fn: the same for a step that may go on, if replicas of all that is lost are
 * left. */
static bool
on_lost(void *user, uint32_t id)
{
    membership *m = user;
    if (m->home == NULL || id >= WORKER_MAX) return false;
    pthread_mutex_lock(&m->lock);
    forget_worker(m, id);
    const bool covered = !m->closed && adoption_is_covered_locked(m, adoption_takes_rows_locked);
    if (covered) {
        adoption_fit_locked(m);
        LOG_WARN("membership", "worker lost in a step, its replicas go on worker=%u", id);
    }
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->bell);
    return covered;
}

bool
membership_enter(membership *m, expert_fleet *out)
{
    pthread_mutex_lock(&m->lock);
    adoption_renew_locked(m);
    const bool ready = m->ready;
    if (!ready && m->moving && m->losses == m->moving_losses && !m->closed) m->step_waits++;
    m->in_step = ready;
    *out = (expert_fleet){.exchange = m->config.router_end,
                          .mode = m->config.mode,
                          .worker_count =
                              m->home != NULL ? m->home->worker_count : m->config.worker_count,
                          .links = m->config.mode == WIRE_TP ? m->slice_links : NULL,
                          .placement = m->fitted,
                          .epoch = m->epoch,
                          .on_lost = on_lost,
                          .user = m};
    if (ready) m->steps++;
    pthread_mutex_unlock(&m->lock);
    return ready;
}

void
membership_leave(membership *m)
{
    pthread_mutex_lock(&m->lock);
    m->in_step = false;
    adoption_renew_locked(m);
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->left);
}

void
membership_lost(membership *m, uint32_t link)
{
    if (link >= WORKER_MAX) return;
    pthread_mutex_lock(&m->lock);
    const uint32_t id = m->config.mode == WIRE_TP ? slices_owner_locked(m, link) : link;
    if (id != WORKER_MAX) forget_worker(m, id);
    pthread_mutex_unlock(&m->lock);
    router_end_give_up(m->config.router_end, link);
    futex_bump(&m->bell);
}

void
membership_get_status(membership *m, membership_status *out)
{
    pthread_mutex_lock(&m->lock);
    *out = (membership_status){.ready = m->ready, .epoch = m->epoch};
    uint32_t missing = UINT32_MAX;
    for (uint32_t id = 0; id < m->worker_end; id++) {
        if (!m->workers[id].belongs) continue;
        out->workers++;
        if (is_ready_locked(m, id))
            out->workers_ready++;
        else if (missing == UINT32_MAX)
            missing = id;
    }
    int len = 0;
    if (!m->ready && m->shortfall != 0)
        len = snprintf(out->detail, sizeof out->detail,
                       "the workers' memory is %llu bytes short of holding all experts; ",
                       (unsigned long long)m->shortfall);
    char *at = out->detail + len;
    const size_t room = sizeof out->detail - (size_t)len;
    if (m->ready)
        snprintf(at, room, "ready");
    else if (missing == UINT32_MAX)
        snprintf(at, room, "starting");
    else
        snprintf(at, room, "%u of %u workers are ready; worker %u is %s", out->workers_ready,
                 out->workers, missing, state_names[m->workers[missing].state]);
    pthread_mutex_unlock(&m->lock);
}

worker_status
membership_worker(membership *m, uint32_t id)
{
    pthread_mutex_lock(&m->lock);
    const worker *w = &m->workers[id];
    const bool draining = w->draining && w->state == READY;
    worker_status status = {.known = w->state != ABSENT || w->belongs,
                            .lost = w->state == LOST,
                            .pid = w->pid,
                            .experts_hosted = w->experts_hosted,
                            .bytes_hosted = w->bytes_hosted,
                            .memory_bytes = w->memory_bytes,
                            .state = draining ? "draining" : state_names[w->state],
                            .backend = w->backend == EXCHANGE_SHM ? "shm" : "nng"};
    if (m->home != NULL && id < m->home->worker_count)
        status.slots = m->home->slot_first[id + 1] - m->home->slot_first[id];
    if (m->home != NULL && m->config.expert_bytes != 0)
        status.bytes_hosted = w->experts_hosted * m->config.expert_bytes;
    pthread_mutex_unlock(&m->lock);
    return status;
}

/* ---- for who plans ---- */

uint32_t
membership_worker_end(membership *m)
{
    pthread_mutex_lock(&m->lock);
    const uint32_t end = m->worker_end;
    pthread_mutex_unlock(&m->lock);
    return end;
}

moe_err
membership_look(membership *m, fleet_view *out, errbuf *eb)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&m->lock);
    out->started = m->started && !m->closed;
    out->epoch = m->epoch;
    out->worker_end = m->worker_end;
    out->proposed = m->next != NULL && !m->adopted;
    out->covered = adoption_is_covered_locked(m, is_ready_locked);
    moe_err err = placement_clone(&out->home, m->home, eb);
    if (!err) {
        const size_t bytes = m->worker_end * m->id_count * sizeof *out->hosted;
        out->hosted = malloc(bytes);
        if (out->hosted == NULL) err = err_set(eb, MOE_ENOMEM, "out of memory");
        if (!err) memcpy(out->hosted, m->hosted, bytes);
    }
    for (uint32_t id = 0; id < m->worker_end; id++) {
        const worker *w = &m->workers[id];
        member *to = &out->members[id];
        *to = (member){.ready = w->state == READY,
                       .draining = w->draining,
                       .missing = (w->state == LOST || w->state == ABSENT) && is_counted_on(m, id),
                       .incarnation = w->incarnation,
                       .memory_bytes = w->memory_bytes,
                       .lost_ns = w->lost_ns,
                       .experts_hosted = w->experts_hosted};
        memcpy(to->control_url, w->control_url, sizeof to->control_url);
        memcpy(to->host_id, w->host_id, sizeof to->host_id);
    }
    pthread_mutex_unlock(&m->lock);
    if (err) fleet_view_fini(out);
    return err;
}

void
fleet_view_fini(fleet_view *v)
{
    placement_free(v->home);
    free(v->hosted);
    v->home = NULL;
    v->hosted = NULL;
}

_Atomic uint32_t *
membership_changes(membership *m)
{
    return &m->changes;
}

void
membership_set_moving(membership *m, bool moving)
{
    pthread_mutex_lock(&m->lock);
    m->moving = moving;
    m->moving_losses = m->losses;
    pthread_mutex_unlock(&m->lock);
}

uint64_t
membership_step_waits(membership *m)
{
    pthread_mutex_lock(&m->lock);
    const uint64_t waits = m->step_waits;
    pthread_mutex_unlock(&m->lock);
    return waits;
}

uint64_t
membership_losses(membership *m)
{
    pthread_mutex_lock(&m->lock);
    const uint64_t losses = m->losses;
    pthread_mutex_unlock(&m->lock);
    return losses;
}

void
membership_set_shortfall(membership *m, uint64_t bytes)
{
    pthread_mutex_lock(&m->lock);
    m->shortfall = bytes;
    pthread_mutex_unlock(&m->lock);
}

void
membership_dismiss(membership *m, uint32_t id, uint64_t incarnation)
{
    pthread_mutex_lock(&m->lock);
    worker *w = &m->workers[id];
    if (w->incarnation == incarnation && w->draining) {
        w->state = ABSENT;
        w->belongs = w->draining = false;
        w->experts_hosted = 0;
        if (w->linked) router_end_give_up(m->config.router_end, id);
    }
    pthread_mutex_unlock(&m->lock);
    futex_bump(&m->bell);
}
