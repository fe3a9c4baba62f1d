#include "router/load_pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "exchange/wire.h"
#include "router/fleet_share.h"
#include "router/routing_stats.h"

#define ROWS_MAX (1ull << 48) /* of one expert in a window: sums over all routers stay exact */

typedef struct teller {
    uint64_t incarnation, seen_ns;
    uint64_t steps, looked_steps; /* now, and when somebody last looked */
    uint32_t window_steps;
    uint64_t *rows; /* [cells]; NULL: it never told any */
} teller;

struct load_pool {
    load_pool_config config;
    size_t cells;
    pthread_mutex_t lock; /* guards tellers */
    teller tellers[ROUTER_MAX];
};

moe_err
load_pool_create(load_pool **out, const load_pool_config *config, errbuf *eb)
{
    *out = NULL;
    const uint64_t cells = (uint64_t)config->num_layers * config->num_experts;
    if (cells == 0 || cells > ROUTING_CELLS_MAX)
        return err_set(eb, MOE_ERANGE, "the load of %u layers with %u experts", config->num_layers,
                       config->num_experts);
    load_pool *p = calloc(1, sizeof *p);
    if (p == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    p->config = *config;
    p->cells = cells;
    pthread_mutex_init(&p->lock, NULL);
    *out = p;
    return MOE_OK;
}

void
load_pool_free(load_pool *p)
{
    if (p == NULL) return;
    for (uint32_t r = 0; r < ROUTER_MAX; r++)
        free(p->tellers[r].rows);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static moe_err
check(const load_pool *p, const Conclave__FleetRequest *q, errbuf *eb)
{
    if (q->n_window_rows == 0) return MOE_OK;
    if (q->n_window_rows != p->cells || q->window_steps > ROUTING_WINDOW_MAX)
        return err_set(eb, MOE_EINVAL, "router %u tells the load of %zu experts over %u steps",
                       q->router_id, q->n_window_rows, q->window_steps);
    for (size_t i = 0; i < q->n_window_rows; i++) {
        if (q->window_rows[i] >= ROWS_MAX)
            return err_set(eb, MOE_EINVAL, "router %u tells %llu rows of one expert", q->router_id,
                           (unsigned long long)q->window_rows[i]);
    }
    return MOE_OK;
}

static bool
is_due(const load_pool *p, const teller *t)
{
    return t->steps - t->looked_steps >= 2ull * p->config.step_interval;
}

static moe_err
note_locked(load_pool *p, teller *t, const Conclave__FleetRequest *q, errbuf *eb)
{
    if (t->incarnation != q->incarnation) {
        free(t->rows);
        *t = (teller){.incarnation = q->incarnation};
    }
    t->seen_ns = clock_now_ns();
    if (q->n_window_rows == 0) return MOE_OK;
    if (t->rows == NULL) t->rows = malloc(p->cells * sizeof *t->rows);
    if (t->rows == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    memcpy(t->rows, q->window_rows, p->cells * sizeof *t->rows);
    t->window_steps = q->window_steps;
    t->steps = q->steps > t->steps ? q->steps : t->steps; /* an old message comes late */
    return MOE_OK;
}

moe_err
load_pool_note(load_pool *p, const Conclave__FleetRequest *q, errbuf *eb)
{
    moe_err err = check(p, q, eb);
    if (err) return err;
    teller *t = &p->tellers[q->router_id];
    pthread_mutex_lock(&p->lock);
    const bool before = is_due(p, t);
    err = note_locked(p, t, q, eb);
    const bool ring = is_due(p, t) && !before;
    pthread_mutex_unlock(&p->lock);
    if (ring && p->config.bell != NULL) futex_bump(p->config.bell);
    return err;
}

uint32_t
load_pool_add(load_pool *p, uint64_t *rows, uint32_t window_steps)
{
    pthread_mutex_lock(&p->lock);
    const uint64_t now = clock_now_ns();
    for (uint32_t r = 0; r < ROUTER_MAX; r++) {
        const teller *t = &p->tellers[r];
        if (t->rows == NULL || now > t->seen_ns + FOLLOWER_TIMEOUT_MS * NS_PER_MS) continue;
        for (size_t i = 0; i < p->cells; i++)
            rows[i] += t->rows[i];
        if (t->window_steps > window_steps) window_steps = t->window_steps;
    }
    pthread_mutex_unlock(&p->lock);
    return window_steps;
}

bool
load_pool_is_due(load_pool *p)
{
    bool due = false;
    pthread_mutex_lock(&p->lock);
    for (uint32_t r = 0; r < ROUTER_MAX; r++)
        due = due || is_due(p, &p->tellers[r]);
    pthread_mutex_unlock(&p->lock);
    return due;
}

void
load_pool_looked(load_pool *p)
{
    pthread_mutex_lock(&p->lock);
    for (uint32_t r = 0; r < ROUTER_MAX; r++)
        p->tellers[r].looked_steps = p->tellers[r].steps;
    pthread_mutex_unlock(&p->lock);
}
