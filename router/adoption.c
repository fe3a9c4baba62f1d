/* Which placement steps use (membership.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/futex.h"
#include "common/log.h"
#include "router/capacity.h"
#include "router/eplb_policy.h"
#include "router/membership_impl.h"

/* ---- the first placement ---- */

static moe_err
place_linear(membership *m, const uint32_t *capacities, uint32_t worker_count, placement **out,
             errbuf *eb)
{
    const membership_config *c = &m->config;
    const exchange_limits *l = &c->limits;
    uint32_t slot_counts[WORKER_MAX];
    errbuf note;
    *out = NULL;
    moe_err err =
        eplb_slot_counts(EPLB_CONCLAVE, l->num_layers, l->num_experts, c->num_redundant_experts,
                         worker_count, capacities, (double)c->expert_bytes, slot_counts, &note);
    if (err) return err_set(eb, err, "%s", note.text);
    if (note.text[0] != '\0') LOG_WARN("membership", "%s", note.text);
    err = placement_create(out, l->num_layers, l->num_experts, worker_count, slot_counts, eb);
    if (!err) err = placement_set_linear(*out, eb);
    if (err) {
        placement_free(*out);
        *out = NULL;
        return err;
    }
    placement_fill_spare(*out);
    return MOE_OK;
}

static moe_err
set_home(membership *m, placement *home, errbuf *eb)
{
    placement *fitted;
    const moe_err err = placement_clone(&fitted, home, eb);
    if (err) {
        placement_free(home);
        return err;
    }
    placement_free(m->home);
    placement_free(m->fitted);
    m->home = home;
    m->fitted = fitted;
    return MOE_OK;
}

moe_err
adoption_init(membership *m, errbuf *eb)
{
    uint32_t capacities[WORKER_MAX];
    placement *home;
    m->id_count = (size_t)m->config.limits.num_layers * m->config.limits.num_experts;
    if (m->config.mode != WIRE_EP) return MOE_OK;
    m->hosted = calloc(WORKER_MAX * m->id_count, sizeof *m->hosted);
    if (m->hosted == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t w = 0; w < m->config.worker_count; w++)
        capacities[w] = m->config.limits.num_experts;
    const moe_err err = place_linear(m, capacities, m->config.worker_count, &home, eb);
    return err ? err : set_home(m, home, eb);
}

void
adoption_fini(membership *m)
{
    placement_free(m->home);
    placement_free(m->fitted);
    placement_free(m->next);
    placement_free(m->next_fitted);
    free(m->hosted);
}

/* Slots of those workers that are usable; returns the bytes that are missing for one
 * copy of every expert. */
static uint64_t
count_capacities(const membership *m, const bool *usable, uint32_t *capacities)
{
    uint64_t memory[WORKER_MAX];
    for (uint32_t w = 0; w < m->worker_end; w++)
        memory[w] = m->workers[w].memory_bytes;
    const capacity_rule rule = {.expert_bytes = m->config.expert_bytes,
                                .num_layers = m->config.limits.num_layers,
                                .num_experts = m->config.limits.num_experts,
                                .spare_slots = m->config.spare_slots};
    return capacity_fill(&rule, m->worker_end, memory, usable, capacities);
}

moe_err
adoption_start_locked(membership *m, errbuf *eb)
{
    uint32_t capacities[WORKER_MAX];
    placement *home;
    if (m->placed || m->config.mode != WIRE_EP) return MOE_OK;
    bool usable[WORKER_MAX];
    for (uint32_t w = 0; w < m->worker_end; w++)
        usable[w] = m->workers[w].state == REGISTERED;
    m->shortfall = count_capacities(m, usable, capacities);
    moe_err err = place_linear(m, capacities, m->worker_end, &home, eb);
    if (!err) err = set_home(m, home, eb);
    m->placed = err == MOE_OK;
    return err;
}

/* ---- who takes part ---- */

bool
adoption_takes_rows_locked(const membership *m, uint32_t id)
{
    return is_ready_locked(m, id) && (!m->in_step || m->members[id]);
}

static bool
serves(const membership *m, uint32_t w, uint32_t layer, uint32_t expert)
{
    const size_t id = (size_t)layer * m->config.limits.num_experts + expert;
    return m->hosted[w * m->id_count + id];
}

bool
adoption_is_covered_locked(const membership *m, there_fn *there)
{
    if (m->home == NULL) return slices_covered_locked(m);
    for (uint32_t l = 0; l < m->home->num_layers; l++) {
        for (uint32_t e = 0; e < m->home->num_experts; e++) {
            uint32_t count, i = 0;
            const uint32_t *hosts = placement_hosts(m->home, l, e, &count);
            while (i < count && !(there(m, hosts[i]) && serves(m, hosts[i], l, e)))
                i++;
            if (i == count) return false;
        }
    }
    return true;
}

void
adoption_judge_locked(membership *m)
{
    m->ready = m->started && !m->closed && adoption_is_covered_locked(m, is_ready_locked);
}

void
adoption_fit_locked(membership *m)
{
    if (m->home == NULL) return;
    const placement *home = m->home;
    placement *p = m->fitted;
    for (uint32_t w = 0; w < home->worker_count; w++) {
        const bool takes = adoption_takes_rows_locked(m, w);
        for (uint32_t s = home->slot_first[w]; s < home->slot_first[w + 1]; s++) {
            for (uint32_t l = 0; l < home->num_layers; l++) {
                const size_t at = (size_t)l * home->slot_count + s;
                const uint32_t e = home->slots[at];
                const bool here = takes && e != PLACEMENT_EMPTY && serves(m, w, l, e);
                p->slots[at] = here ? e : PLACEMENT_EMPTY;
            }
        }
    }
    placement_index(p);
    placement_set_even_shares(p);
}

/* ---- a new placement ---- */

/* Is all that it names there? */
static bool
is_there(const membership *m, const placement *p)
{
    for (uint32_t w = 0; w < p->worker_count; w++) {
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            for (uint32_t l = 0; l < p->num_layers; l++) {
                const uint32_t e = p->slots[(size_t)l * p->slot_count + s];
                if (e == PLACEMENT_EMPTY) continue;
                if (!is_ready_locked(m, w) || !serves(m, w, l, e)) return false;
            }
        }
    }
    return true;
}

static void
swap(placement **a, placement **b)
{
    placement *old = *a;
    *a = *b;
    *b = old;
}

void
adoption_renew_locked(membership *m)
{
    if (m->in_step) return;
    bool changed = m->config.mode == WIRE_TP && slices_renew_locked(m);
    if (m->config.mode == WIRE_TP && !m->started) m->started = slices_covered_locked(m);
    if (!m->started) return;
    if (m->next != NULL && !m->adopted && is_there(m, m->next)) {
        swap(&m->home, &m->next);
        swap(&m->fitted, &m->next_fitted);
        m->adopted = true; /* who proposed it frees the old ones */
        changed = true;
        if (m->config.follows) {
            m->epoch = m->next_epoch;
            m->fleet_version = m->next_version;
        }
    }
    for (uint32_t id = 0; id < m->worker_end; id++) {
        changed = changed || m->members[id] != is_ready_locked(m, id);
        m->members[id] = is_ready_locked(m, id);
    }
    if (!changed) return;
    adoption_judge_locked(m);
    adoption_fit_locked(m);
    if (!m->ready) return;
    if (!m->config.follows) m->epoch++;
    LOG_INFO("membership", "all experts are hosted workers=%u epoch=%llu", m->worker_end,
             (unsigned long long)m->epoch);
}

moe_err
membership_propose(membership *m, placement *next, errbuf *eb)
{
    placement *fitted;
    moe_err err = placement_clone(&fitted, next, eb);
    if (err) {
        placement_free(next);
        return err;
    }
    pthread_mutex_lock(&m->lock);
    m->next = next;
    m->next_fitted = fitted;
    m->adopted = false;
    adoption_renew_locked(m);
    pthread_mutex_unlock(&m->lock);
    membership_wait_for_step(m); /* one that was under way has ended with another renew */
    pthread_mutex_lock(&m->lock);
    const bool adopted = m->adopted;
    next = m->next; /* or the old one */
    fitted = m->next_fitted;
    m->next = m->next_fitted = NULL;
    pthread_mutex_unlock(&m->lock);
    placement_free(next);
    placement_free(fitted);
    if (adopted) return MOE_OK;
    return err_set(eb, MOE_ECLOSED, "a worker was lost before its new experts could be used");
}

/* ---- following router 0 ---- */

void
membership_forsake(membership *m, const bool *forsaken, uint32_t worker_end)
{
    pthread_mutex_lock(&m->lock);
    for (uint32_t w = 0; w < worker_end; w++) {
        if (forsaken[w]) m->workers[w].last_seen_ns = 0;
    }
    pthread_mutex_unlock(&m->lock);
}

/* Before it is proposed: a step that ends meanwhile may adopt it. */
static void
host_what_it_names(membership *m, const placement *p)
{
    for (uint32_t w = 0; w < p->worker_count; w++) {
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            for (uint32_t l = 0; l < p->num_layers; l++) {
                const uint32_t e = placement_layer_slots(p, l)[s];
                if (e == PLACEMENT_EMPTY) continue;
                bool *has = &hosted_locked(m, w)[(size_t)l * p->num_experts + e];
                m->workers[w].experts_hosted += !*has;
                *has = true;
            }
        }
    }
}

moe_err
membership_follow(membership *m, uint64_t epoch, uint64_t fleet_version, placement *next,
                  errbuf *eb)
{
    placement *fitted = NULL;
    const moe_err err = placement_clone(&fitted, next, eb);
    if (err) {
        placement_free(next);
        return err;
    }
    pthread_mutex_lock(&m->lock);
    host_what_it_names(m, next);
    m->started = m->started || is_there(m, next);
    swap(&m->next, &next); /* what was there is not used by any step, adopted or not */
    swap(&m->next_fitted, &fitted);
    m->next_epoch = epoch;
    m->next_version = fleet_version;
    m->adopted = false;
    adoption_renew_locked(m);
    pthread_mutex_unlock(&m->lock);
    placement_free(next);
    placement_free(fitted);
    return MOE_OK;
}

moe_err
membership_follow_slices(membership *m, uint64_t epoch, uint64_t fleet_version,
                         const uint32_t *owners, size_t count, errbuf *eb)
{
    if (count != m->config.worker_count)
        return err_set(eb, MOE_EINVAL, "%zu slices, not %u", count, m->config.worker_count);
    for (size_t r = 0; r < count; r++) {
        if (owners[r] > WORKER_MAX)
            return err_set(eb, MOE_EINVAL, "slice %zu is with worker %u", r, owners[r] - 1);
    }
    pthread_mutex_lock(&m->lock);
    memcpy(m->told_owners, owners, count * sizeof *owners);
    m->next_epoch = epoch;
    m->next_version = fleet_version;
    adoption_renew_locked(m);
    pthread_mutex_unlock(&m->lock);
    return MOE_OK;
}

void
membership_followed(membership *m, uint64_t *epoch, uint64_t *fleet_version)
{
    pthread_mutex_lock(&m->lock);
    *epoch = m->epoch;
    *fleet_version = m->fleet_version;
    pthread_mutex_unlock(&m->lock);
}

/* ---- what workers host ---- */

static bool
is_life(const membership *m, uint32_t w, uint64_t incarnation)
{
    return w < m->worker_end && m->workers[w].incarnation == incarnation;
}

void
membership_set_hosted(membership *m, uint32_t w, uint64_t incarnation, const uint32_t *ids,
                      size_t count, bool hosted)
{
    pthread_mutex_lock(&m->lock);
    if (is_life(m, w, incarnation)) {
        bool *has = hosted_locked(m, w);
        for (size_t i = 0; i < count; i++) {
            m->workers[w].experts_hosted += (uint32_t)hosted - (uint32_t)has[ids[i]];
            has[ids[i]] = hosted;
        }
        if (!hosted) adoption_judge_locked(m);
    }
    pthread_mutex_unlock(&m->lock);
}

size_t
membership_surplus(membership *m, uint32_t w, uint32_t *out)
{
    const uint32_t experts = m->config.limits.num_experts;
    size_t count = 0;
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < m->id_count && is_ready_locked(m, w); i++) {
        if (hosted_locked(m, w)[i] && !placement_is_host(m->home, i / experts, i % experts, w))
            out[count++] = i;
    }
    pthread_mutex_unlock(&m->lock);
    return count;
}

/* ---- workers that are to go ---- */

moe_err
membership_drain(membership *m, const uint32_t *ids, size_t count, errbuf *eb)
{
    uint32_t capacities[WORKER_MAX] = {0};
    bool usable[WORKER_MAX];
    moe_err err = MOE_OK;
    if (m->config.mode != WIRE_EP)
        return err_set(eb, MOE_EUNSUPPORTED,
                       "with --parallelism tp every worker has a slice of all experts");
    pthread_mutex_lock(&m->lock);
    for (uint32_t w = 0; w < m->worker_end; w++)
        usable[w] = is_ready_locked(m, w) && !m->workers[w].draining;
    for (size_t i = 0; i < count && !err; i++) {
        if (ids[i] >= m->worker_end || m->workers[ids[i]].state == ABSENT)
            err = err_set(eb, MOE_ENOTFOUND, "there is no worker %u", ids[i]);
        else
            usable[ids[i]] = false;
    }
    const uint64_t missing = err ? 0 : count_capacities(m, usable, capacities);
    bool any = false;
    for (uint32_t w = 0; w < m->worker_end; w++)
        any = any || capacities[w] != 0;
    if (!err && (missing != 0 || !any))
        err = err_set(eb, MOE_ENOMEM,
                      "the other workers' memory is %llu bytes short of holding all experts",
                      (unsigned long long)missing);
    for (size_t i = 0; i < count && !err; i++)
        m->workers[ids[i]].draining = true;
    pthread_mutex_unlock(&m->lock);
    if (!err) futex_bump(&m->changes);
    return err;
}
