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

/* One store, and the scratch to compute with it. */
typedef struct part {
    expert_store *store;
    ffn *ffn;
    uint32_t row_max;
} part;

struct compute {
    worker_end *exchange;
    const kernel_table *kernels;
    pool *pool;
    pthread_t thread;
    pthread_mutex_t lock; /* guards parts and stats; held while dispatches are computed */
    part parts[COMPUTE_PARTS_MAX];
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
    const part *p = &c->parts[views[0].part];
    const uint32_t status =
        p->store == NULL ? WIRE_STATUS_NOT_HOSTED : ffn_run(p->ffn, p->store, views, count);
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
    const part *p = &c->parts[view->part];
    return p->store == NULL || (view->hdr.epoch >= c->epoch && view->hdr.row_count <= p->row_max);
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

static bool
comes_before(const dispatch_view *a, const dispatch_view *b)
{
    return a->hdr.layer != b->hdr.layer ? a->hdr.layer < b->hdr.layer : a->part < b->part;
}

void
compute_sort(dispatch_view *views, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        const dispatch_view view = views[i];
        uint32_t at = i;
        for (; at > 0 && comes_before(&view, &views[at - 1]); at--)
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
            const part *p = &c->parts[views[i].part];
            n = p->store != NULL ? ffn_group(p->ffn, views + i, good - i) : 1;
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

static void
part_fini(part *p)
{
    ffn_free(p->ffn);
    expert_store_free(p->store);
}

void
compute_stop(compute *c)
{
    if (c == NULL) return;
    worker_end_stop(c->exchange);
    pthread_join(c->thread, NULL);
    phases_report(&c->phases, "worker");
    pthread_mutex_destroy(&c->lock);
    for (uint32_t i = 0; i < COMPUTE_PARTS_MAX; i++)
        part_fini(&c->parts[i]);
    free(c);
}

/* The compute thread uses the new one from its next group on. */
static void
swap_part(compute *c, uint32_t index, part next)
{
    pthread_mutex_lock(&c->lock);
    part old = c->parts[index];
    c->parts[index] = next;
    pthread_mutex_unlock(&c->lock);
    part_fini(&old);
}

moe_err
compute_load(compute *c, uint32_t index, expert_store *store, uint64_t epoch, uint32_t num_experts,
             uint32_t row_max, errbuf *eb)
{
    part next = {.store = store, .row_max = row_max};
    const moe_err err = ffn_create(&next.ffn, c->kernels, c->pool, expert_store_layout(store),
                                   row_max, VIEWS_MAX, num_experts);
    if (err) return err_set(eb, err, "no memory for the buffers of %u rows", row_max);

    ffn_set_phases(next.ffn, &c->phases);
    atomic_store(&c->epoch, epoch);
    swap_part(c, index, next);
    return MOE_OK;
}

bool
compute_keep(compute *c, uint32_t index, uint64_t epoch, uint32_t row_max)
{
    pthread_mutex_lock(&c->lock);
    const part *p = &c->parts[index];
    const bool fits = p->store != NULL && row_max <= p->row_max;
    if (fits) atomic_store(&c->epoch, epoch);
    pthread_mutex_unlock(&c->lock);
    return fits;
}

void
compute_drop(compute *c, uint32_t index)
{
    swap_part(c, index, (part){0});
}

void
compute_get_stats(compute *c, compute_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    out->epoch = atomic_load(&c->epoch);
    for (uint32_t i = 0; i < COMPUTE_PARTS_MAX; i++) {
        const expert_store *store = c->parts[i].store;
        if (store == NULL) continue;
        out->experts_hosted += expert_store_count(store);
        out->bytes_hosted += expert_store_bytes(store);
    }
    pthread_mutex_unlock(&c->lock);
}

expert_store *
compute_store(compute *c, uint32_t index)
{
    pthread_mutex_lock(&c->lock);
    expert_store *store = c->parts[index].store;
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
