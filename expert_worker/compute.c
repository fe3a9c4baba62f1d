#include "expert_worker/compute.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "exchange/message_trace.h"
#include "expert_worker/ffn.h"

/* Dispatches looked at together: every micro-batch of every router. */
#define VIEWS_MAX 64
#define QUIESCE_POLL_NS 200000ull

struct compute {
    worker_end *exchange;
    const kernel_table *kernels;
    pool *pool;
    pthread_t thread;
    pthread_mutex_t
        lock; /* guards store, ffn, row_max, stats; held while dispatches are computed */
    expert_store *store;
    ffn *ffn;
    uint32_t row_max;
    _Atomic uint64_t epoch; /* the oldest placement that is still served */
    _Atomic uint32_t round; /* odd while dispatches are computed */
    compute_stats stats;
    phases phases; /* the compute thread's */
};

static void
serve_group(compute *c, const dispatch_view *views, uint32_t count)
{
    const uint64_t start = clock_now_ns();
    phases_set_place(&c->phases, views[0].hdr.step, views[0].hdr.layer, views[0].hdr.micro_batch,
                     0);
    const uint32_t status =
        c->store == NULL ? WIRE_STATUS_NOT_HOSTED : ffn_run(c->ffn, c->store, views, count);
    phase_enter(&c->phases, FFN_REPLY);
    const uint64_t busy = clock_now_ns() - start;
    uint64_t rows = 0;
    uint32_t reads = 0;
    for (uint32_t i = 0; i < count; i++) {
        rows += views[i].hdr.row_count;
        if (views[i].hdr.expert_count > reads) reads = views[i].hdr.expert_count;
        message_trace_served(&c->phases, &views[i], start, busy / count);
        worker_end_reply(c->exchange, &views[i], status, busy / count);
    }
    c->stats.rows += rows;
    c->stats.dispatches += count;
    c->stats.groups++;
    c->stats.reads += reads;
    c->stats.busy_ns += busy;
    phases_end_round(&c->phases, "worker", rows);
}

/* A dispatch of an old placement may count on experts that are gone; one larger than was agreed has
 * no room. */
static bool
acceptable(const compute *c, const dispatch_view *view)
{
    return c->store == NULL || (view->hdr.epoch >= c->epoch && view->hdr.row_count <= c->row_max);
}

/* Answers the others and closes the gaps; returns how many are left. */
static uint32_t
refuse_unacceptable(compute *c, dispatch_view *views, uint32_t count)
{
    uint32_t good = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (acceptable(c, &views[i]))
            views[good++] = views[i];
        else
            worker_end_reply(c->exchange, &views[i], WIRE_STATUS_REFUSED, 0);
    }
    return good;
}

void
compute_sort(dispatch_view *views, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        const dispatch_view view = views[i];
        uint32_t at = i;
        for (; at > 0 && views[at - 1].hdr.layer > view.hdr.layer; at--)
            views[at] = views[at - 1];
        views[at] = view;
    }
}

static void *
compute_main(void *arg)
{
    compute *c = arg;
    dispatch_view views[VIEWS_MAX];
    pool_bind_caller(c->pool);
    while (worker_end_wait(c->exchange, 0)) {
        const uint32_t count = worker_end_take(c->exchange, views, VIEWS_MAX);
        if (count == 0) continue;
        pthread_mutex_lock(&c->lock);
        atomic_fetch_add(&c->round, 1); /* before slots are looked up: quiesce() counts on it */
        const uint32_t good = refuse_unacceptable(c, views, count);
        compute_sort(views, good);
        for (uint32_t i = 0, n; i < good; i += n) {
            n = c->store != NULL ? ffn_group(c->ffn, views + i, good - i) : 1;
            serve_group(c, views + i, n);
        }
        atomic_fetch_add(&c->round, 1);
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

moe_err
compute_start(compute **out, worker_end *exchange, const kernel_table *kernels, pool *p,
              bool profile, trace *traced, errbuf *eb)
{
    *out = NULL;
    compute *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    c->exchange = exchange;
    c->kernels = kernels;
    c->pool = p;
    phases_init(&c->phases, ffn_phase_names, FFN_PHASES, profile, traced);
    pthread_mutex_init(&c->lock, NULL);
    if (pthread_create(&c->thread, NULL, compute_main, c) != 0) {
        pthread_mutex_destroy(&c->lock);
        free(c);
        return err_set(eb, MOE_EIO, "can't start the compute thread");
    }
    pthread_setname_np(c->thread, "compute");
    *out = c;
    return MOE_OK;
}

void
compute_stop(compute *c)
{
    if (c == NULL) return;
    worker_end_stop(c->exchange);
    pthread_join(c->thread, NULL);
    phases_report(&c->phases, "worker");
    pthread_mutex_destroy(&c->lock);
    ffn_free(c->ffn);
    expert_store_free(c->store);
    free(c);
}

moe_err
compute_load(compute *c, expert_store *store, uint64_t epoch, uint32_t num_experts,
             uint32_t row_max, errbuf *eb)
{
    ffn *f;
    const moe_err err = ffn_create(&f, c->kernels, c->pool, expert_store_layout(store), row_max,
                                   VIEWS_MAX, num_experts);
    if (err) return err_set(eb, err, "no memory for the buffers of %u rows", row_max);

    ffn_set_phases(f, &c->phases);
    pthread_mutex_lock(&c->lock);
    expert_store *old_store = c->store;
    ffn *old_ffn = c->ffn;
    c->store = store;
    c->ffn = f;
    c->row_max = row_max;
    c->epoch = epoch;
    pthread_mutex_unlock(&c->lock);

    expert_store_free(old_store);
    ffn_free(old_ffn);
    return MOE_OK;
}

bool
compute_keep(compute *c, uint64_t epoch, uint32_t row_max)
{
    pthread_mutex_lock(&c->lock);
    const bool fits = c->store != NULL && row_max <= c->row_max;
    if (fits) c->epoch = epoch;
    pthread_mutex_unlock(&c->lock);
    return fits;
}

void
compute_get_stats(compute *c, compute_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    out->epoch = atomic_load(&c->epoch);
    if (c->store != NULL) {
        out->experts_hosted = expert_store_count(c->store);
        out->bytes_hosted = expert_store_bytes(c->store);
    }
    pthread_mutex_unlock(&c->lock);
}

expert_store *
compute_store(compute *c)
{
    pthread_mutex_lock(&c->lock);
    expert_store *store = c->store;
    pthread_mutex_unlock(&c->lock);
    return store;
}

void
compute_set_epoch(compute *c, uint64_t epoch)
{
    uint64_t have = atomic_load(&c->epoch);
    while (have < epoch && !atomic_compare_exchange_weak(&c->epoch, &have, epoch)) {
    }
}

void
compute_quiesce(compute *c)
{
    const uint32_t round = atomic_load(&c->round);
    while (round % 2 == 1 && atomic_load(&c->round) == round)
        nanosleep(&(struct timespec){.tv_nsec = (long)QUIESCE_POLL_NS}, NULL);
}
