#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "frontend/engine_metrics.h"
#include "frontend/engine_start.h"
#include "frontend/router_link.h"
#include "frontend/sequence.h"

#define LOOK_AGAIN_MS 1000 /* when nothing rings the bell and nothing is due */

struct engine {
    engine_config config;
    uint32_t eos_ids[SEQUENCE_EOS_MAX];
    engine_metrics metrics;
    pthread_t thread;

    pthread_mutex_t lock; /* guards cell, reserved, aborts, and the links' details */
    cell *cell;
    uint32_t reserved;
    seq_id *aborts; /* [abort_max]; NULL until the cell is open */
    uint32_t abort_count, abort_max;

    _Atomic uint32_t bell;
    _Atomic bool stopping, ready, takes;
    _Atomic uint32_t max_model_len;
    _Atomic uint64_t routing; /* router_link_shared.routing */

    router_link *links[CELL_ROUTERS_MAX]; /* the engine's thread; refusals: any */

    /* Engine thread only. */
    bool up[CELL_ROUTERS_MAX]; /* which links are ready */
    uint64_t down_ns;          /* since when none is; 0 = one is */
};

/* ---- the thread: sequences that end without a token ---- */

static bool
apply_aborts(engine *e)
{
    for (bool any = false;; any = true) {
        pthread_mutex_lock(&e->lock);
        sequence *q = NULL;
        const bool more = e->abort_count > 0;
        if (more) q = cell_abort(e->cell, e->aborts[--e->abort_count]);
        pthread_mutex_unlock(&e->lock);
        if (!more) return any;
        if (q != NULL) sequence_end(q, FINISH_ABORT, NULL);
    }
}

/* Nothing may be in flight, so that what is aborted is gone at once.  unserved: why; NULL: they are
 * aborted. */
static void
end_all(engine *e, const char *unserved)
{
    for (;;) {
        pthread_mutex_lock(&e->lock);
        sequence *q = cell_abort_any(e->cell);
        pthread_mutex_unlock(&e->lock);
        if (q == NULL) return;
        if (unserved != NULL)
            sequence_end_unserved(q, unserved);
        else
            sequence_end(q, FINISH_ABORT, NULL);
    }
}

/* ---- the thread: routers that are gone ---- */

/* What a lost router had goes to the others, if it stays away and there is another. */
static void
recall_from(engine *e, uint32_t router, uint64_t now, uint64_t *until_ns)
{
    const uint64_t lost_ns = router_link_lost_ns(e->links[router]);
    if (e->up[router] || lost_ns == 0 || e->down_ns != 0) return;
    const uint64_t due = lost_ns + e->config.move_after_ms * NS_PER_MS;
    if (now < due) {
        if (due < *until_ns) *until_ns = due;
        return;
    }
    pthread_mutex_lock(&e->lock);
    const uint32_t count = cell_recall(e->cell, router);
    pthread_mutex_unlock(&e->lock);
    if (count > 0)
        LOG_WARN("engine", "router %u stays away: its sequences go to the others sequences=%u",
                 router, count);
}

/* Without any router sequences wait, but not for ever. */
static void
give_up(engine *e, uint64_t now, uint64_t *until_ns)
{
    const uint64_t due = e->down_ns + e->config.give_up_after_ms * NS_PER_MS;
    if (now < due) {
        if (due < *until_ns) *until_ns = due;
        return;
    }
    char why[256], detail[192];
    engine_ready(e, detail, sizeof detail);
    snprintf(why, sizeof why, "no router has served for %u s: %s",
             e->config.give_up_after_ms / 1000, detail);
    end_all(e, why);
}

static void
look_at_routers(engine *e, uint64_t *until_ns)
{
    const uint64_t now = clock_now_ns();
    bool any = false;
    for (uint32_t r = 0; r < e->config.router_count; r++) {
        e->up[r] = router_link_ready(e->links[r]);
        any = any || e->up[r];
    }
    if (any)
        e->down_ns = 0;
    else if (e->down_ns == 0)
        e->down_ns = now;
    const bool lasts =
        e->down_ns != 0 && now - e->down_ns >= e->config.give_up_after_ms * NS_PER_MS;
    if (!atomic_load(&e->stopping)) {
        atomic_store(&e->takes, any || (atomic_load(&e->takes) && !lasts));
        atomic_store(&e->ready, any);
    }
    for (uint32_t r = 0; r < e->config.router_count; r++) {
        recall_from(e, r, now, until_ns);
    }
    if (!any) give_up(e, now, until_ns);
}

/* The first router has told its limits: from now on there is a queue. */
static void
open_queue(engine *e)
{
    if (e->aborts != NULL || !cell_is_open(e->cell)) return;
    const uint32_t max = cell_capacity(e->cell);
    seq_id *aborts = calloc(max, sizeof *aborts);
    if (aborts == NULL) return; /* tried again at the next look */
    pthread_mutex_lock(&e->lock);
    e->aborts = aborts;
    e->abort_max = max;
    pthread_mutex_unlock(&e->lock);
    atomic_store(&e->max_model_len, cell_max_model_len(e->cell));
}

/* ---- the thread ---- */

static void
publish_stats(engine *e)
{
    cell_stats stats;
    pthread_mutex_lock(&e->lock);
    cell_get_stats(e->cell, &stats);
    for (uint32_t r = 0; r < e->config.router_count; r++) {
        const scheduler *s = cell_scheduler(e->cell, r);
        scheduler_stats one;
        if (s == NULL) continue;
        scheduler_get_stats(s, &one);
        engine_metrics_router(&e->metrics, r, &one);
    }
    pthread_mutex_unlock(&e->lock);
    engine_metrics_cell(&e->metrics, &stats);
}

/* One look at everything; true if something was done, else *until_ns says when to look again. */
static bool
run_once(engine *e, uint64_t *until_ns)
{
    const uint32_t count = e->config.router_count;
    bool did = apply_aborts(e);
    for (uint32_t r = 0; r < count; r++) {
        did |= router_link_poll(e->links[r], until_ns);
    }
    open_queue(e);
    look_at_routers(e, until_ns);
    pthread_mutex_lock(&e->lock);
    cell_place(e->cell, e->up);
    pthread_mutex_unlock(&e->lock);
    for (uint32_t r = 0; r < count; r++) {
        did |= router_link_launch(e->links[r], until_ns);
    }
    return did;
}

/* Only an answer to a step is awaited in a hurry. */
static void
wait_for_bell(engine *e, uint32_t seen, uint64_t until_ns)
{
    bool stepping = false;
    for (uint32_t r = 0; r < e->config.router_count; r++) {
        stepping = stepping || router_link_stepping(e->links[r]);
    }
    if (stepping)
        futex_wait_change(&e->bell, seen, until_ns);
    else
        futex_sleep_change(&e->bell, seen, until_ns);
}

static void *
engine_main(void *arg)
{
    engine *e = arg;
    while (!atomic_load(&e->stopping)) {
        const uint32_t seen = atomic_load(&e->bell);
        uint64_t until_ns = clock_now_ns() + LOOK_AGAIN_MS * NS_PER_MS;
        const bool did = run_once(e, &until_ns);
        publish_stats(e);
        if (!did && !atomic_load(&e->stopping)) wait_for_bell(e, seen, until_ns);
    }
    for (uint32_t r = 0; r < e->config.router_count; r++) {
        router_link_leave(e->links[r]);
    }
    end_all(e, NULL);
    publish_stats(e);
    return NULL;
}

/* ---- what other threads call ---- */

static moe_err
make_cell(engine *e, errbuf *eb)
{
    cell_config c = {.router_count = e->config.router_count,
                     .max_waiting = e->config.max_waiting,
                     .prefix_caching = e->config.prefix_caching,
                     .eos_count = e->config.eos_count};
    memcpy(c.eos_ids, e->eos_ids, sizeof c.eos_ids);
    return cell_create(&e->cell, &c, eb);
}

static moe_err
open_links(engine *e, errbuf *eb)
{
    const router_link_shared shared = {.config = &e->config,
                                       .cell = e->cell,
                                       .lock = &e->lock,
                                       .bell = &e->bell,
                                       .stopping = &e->stopping,
                                       .routing = &e->routing,
                                       .metrics = &e->metrics};
    moe_err err = MOE_OK;
    for (uint32_t r = 0; r < e->config.router_count && err == MOE_OK; r++) {
        err = router_link_open(&e->links[r], r, e->config.router_urls[r], &shared, eb);
    }
    return err;
}

moe_err
engine_start(engine **out, const engine_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->eos_count > SEQUENCE_EOS_MAX)
        return err_set(eb, MOE_ERANGE, "%u end-of-sequence tokens, at most %d", config->eos_count,
                       SEQUENCE_EOS_MAX);
    engine *e = calloc(1, sizeof *e);
    if (e == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    e->config = *config;
    for (uint32_t i = 0; i < config->eos_count; i++) {
        e->eos_ids[i] = config->eos_ids[i];
    }
    pthread_mutex_init(&e->lock, NULL);
    moe_err err = make_cell(e, eb);
    if (!err) {
        engine_metrics_init(&e->metrics, config->metrics, config->labels, config->router_count);
        err = open_links(e, eb);
    }
    if (!err && pthread_create(&e->thread, NULL, engine_main, e) != 0)
        err = err_set(eb, MOE_EIO, "can't start the engine's thread");
    if (err) {
        engine_free(e);
        return err;
    }
    pthread_setname_np(e->thread, "engine");
    *out = e;
    return MOE_OK;
}

void
engine_stop(engine *e)
{
    /* Under the lock, so that no submit slips in after the thread's last look. */
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->stopping, true);
    pthread_mutex_unlock(&e->lock);
    futex_bump(&e->bell);
    pthread_join(e->thread, NULL);
    atomic_store(&e->ready, false);
    atomic_store(&e->takes, false);
}

void
engine_free(engine *e)
{
    if (e == NULL) return;
    for (uint32_t r = 0; r < CELL_ROUTERS_MAX; r++) {
        router_link_free(e->links[r]);
    }
    cell_free(e->cell);
    free(e->aborts);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

moe_err
engine_submit(engine *e, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
              gen_sink *sink, void *user, seq_id *out, errbuf *eb)
{
    *out = 0;
    sequence *q = sequence_create(prompt_len, params, e->eos_ids, e->config.eos_count, sink, user);
    if (q == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err;
    pthread_mutex_lock(&e->lock);
    if (atomic_load(&e->stopping) || e->aborts == NULL)
        err = err_set(eb, MOE_ECLOSED, "the server is not serving");
    else
        err = cell_submit(e->cell, prompt, prompt_len, &q->params, q, &q->id, eb);
    if (!err) {
        *out = q->id;
        if (e->reserved > 0) e->reserved--;
    }
    pthread_mutex_unlock(&e->lock);
    if (err)
        free(q);
    else
        futex_bump(&e->bell);
    return err;
}

moe_err
engine_reserve(engine *e, uint32_t count)
{
    moe_err err = MOE_OK;
    pthread_mutex_lock(&e->lock);
    cell_stats stats;
    cell_get_stats(e->cell, &stats);
    if (e->aborts == NULL)
        err = MOE_ECLOSED;
    else if ((uint64_t)stats.sum.waiting + e->reserved + count > e->config.max_waiting)
        err = MOE_EBUSY;
    if (!err) e->reserved += count;
    pthread_mutex_unlock(&e->lock);
    return err;
}

void
engine_unreserve(engine *e, uint32_t count)
{
    pthread_mutex_lock(&e->lock);
    e->reserved -= count < e->reserved ? count : e->reserved;
    pthread_mutex_unlock(&e->lock);
}

void
engine_abort(engine *e, seq_id id)
{
    pthread_mutex_lock(&e->lock);
    bool known = false;
    for (uint32_t i = 0; i < e->abort_count && !known; i++) {
        known = e->aborts[i] == id;
    }
    if (!known && e->abort_count < e->abort_max) e->aborts[e->abort_count++] = id;
    pthread_mutex_unlock(&e->lock);
    futex_bump(&e->bell);
}

/* When none is ready, the first one tells why. */
static void
get_detail(engine *e, char *detail, size_t detail_size)
{
    if (detail != NULL && detail_size > 0) {
        pthread_mutex_lock(&e->lock);
        snprintf(detail, detail_size, "%s", router_link_detail(e->links[0]));
        pthread_mutex_unlock(&e->lock);
    }
}

bool
engine_ready(engine *e, char *detail, size_t detail_size)
{
    get_detail(e, detail, detail_size);
    return atomic_load(&e->ready);
}

bool
engine_takes(engine *e, char *detail, size_t detail_size)
{
    get_detail(e, detail, detail_size);
    return atomic_load(&e->takes);
}

uint32_t
engine_max_model_len(const engine *e)
{
    return atomic_load(&((engine *)(uintptr_t)e)->max_model_len);
}

routing_shape
engine_routing(const engine *e)
{
    return routing_unpack(atomic_load(&((engine *)(uintptr_t)e)->routing));
}

const char *
engine_refusal(engine *e)
{
    const char *refusal = NULL;
    for (uint32_t r = 0; r < e->config.router_count && refusal == NULL; r++) {
        refusal = router_link_refusal(e->links[r]);
    }
    return refusal;
}
