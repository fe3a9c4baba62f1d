#include "router/load_feed.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "router/routing_stats.h"

/* How often the window's sums are left for others. */
#define SNAPSHOT_STEPS 16

struct load_feed {
    load_feed_config config;
    size_t cells;
    routing_stats *stats; /* the step thread's */
    uint32_t since_snapshot;
    _Atomic uint64_t steps;
    _Atomic bool due;

    pthread_mutex_t lock; /* guards the snapshot; the step thread only tries it */
    uint64_t *snapshot;   /* [cells] */
    uint64_t *parts;      /* [ROUTING_PARTS][cells] */
    uint32_t snapshot_steps, part_count;
    uint64_t steps_at_snapshot;

    /* The trace: written by the step thread at `head`, read by the writer at `tail`. */
    routing_trace_writer *trace;
    pthread_t writer;
    bool writing;
    uint32_t *ring;       /* [LOAD_FEED_RING][cells] */
    uint64_t *ring_steps; /* [LOAD_FEED_RING] */
    _Atomic uint64_t head, tail;
    _Atomic uint64_t left_out;
    _Atomic uint32_t bell;
    _Atomic bool stopping;
    uint64_t last_step;
};

static void
write_queued(load_feed *f)
{
    uint64_t tail = atomic_load(&f->tail);
    for (; tail != atomic_load(&f->head); atomic_store(&f->tail, ++tail)) {
        const size_t at = tail % LOAD_FEED_RING;
        (void)routing_trace_append(f->trace, f->ring_steps[at], f->ring + at * f->cells);
    }
}

static void *
writer_main(void *arg)
{
    load_feed *f = arg;
    while (!atomic_load(&f->stopping)) {
        const uint32_t seen = atomic_load(&f->bell);
        write_queued(f);
        if (!atomic_load(&f->stopping)) futex_sleep_change(&f->bell, seen, 0);
    }
    write_queued(f);
    return NULL;
}

static moe_err
start_trace(load_feed *f, errbuf *eb)
{
    f->ring = calloc(LOAD_FEED_RING * f->cells, sizeof *f->ring);
    f->ring_steps = calloc(LOAD_FEED_RING, sizeof *f->ring_steps);
    if (f->ring == NULL || f->ring_steps == NULL)
        return err_set(eb, MOE_ENOMEM, "no memory for the trace's queue");
    const moe_err err = routing_trace_create(&f->trace, f->config.trace_path, &f->config.shape, eb);
    if (err) return err;
    if (pthread_create(&f->writer, NULL, writer_main, f) != 0)
        return err_set(eb, MOE_EIO, "can't start the trace's thread");
    pthread_setname_np(f->writer, "trace");
    f->writing = true;
    return MOE_OK;
}

moe_err
load_feed_start(load_feed **out, const load_feed_config *config, errbuf *eb)
{
    *out = NULL;
    load_feed *f = calloc(1, sizeof *f);
    if (f == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    f->config = *config;
    f->cells = (size_t)config->shape.num_layers * config->shape.num_experts;
    pthread_mutex_init(&f->lock, NULL);
    moe_err err =
        routing_stats_create(&f->stats, config->shape.num_layers, config->shape.num_experts,
                             config->balance.window_size, config->balance.step_interval, eb);
    if (!err) {
        f->snapshot = calloc(f->cells, sizeof *f->snapshot);
        f->parts = calloc(f->cells * ROUTING_PARTS, sizeof *f->parts);
        if (f->snapshot == NULL || f->parts == NULL) err = err_set(eb, MOE_ENOMEM, "out of memory");
    }
    if (!err && config->trace_path != NULL && config->trace_path[0] != '\0')
        err = start_trace(f, eb);
    if (err)
        load_feed_stop(f);
    else
        *out = f;
    return err;
}

void
load_feed_stop(load_feed *f)
{
    if (f == NULL) return;
    if (f->writing) {
        atomic_store(&f->stopping, true);
        futex_bump(&f->bell);
        pthread_join(f->writer, NULL);
        const uint64_t left_out = atomic_load(&f->left_out);
        if (left_out != 0)
            LOG_WARN("trace", "the disk was too slow steps_left_out=%llu",
                     (unsigned long long)left_out);
    }
    if (routing_trace_close(f->trace) != MOE_OK)
        LOG_WARN("trace", "%s is not complete", f->config.trace_path);
    routing_stats_free(f->stats);
    pthread_mutex_destroy(&f->lock);
    free(f->snapshot);
    free(f->parts);
    free(f->ring);
    free(f->ring_steps);
    free(f);
}

static void
queue_for_trace(load_feed *f, uint64_t step)
{
    const uint64_t head = atomic_load(&f->head);
    /* A frontend that starts over counts steps anew; a trace's steps rise. */
    if (step <= f->last_step) step = f->last_step + 1;
    f->last_step = step;
    if (head - atomic_load(&f->tail) == LOAD_FEED_RING) {
        atomic_fetch_add(&f->left_out, 1);
        return;
    }
    const size_t at = head % LOAD_FEED_RING;
    f->ring_steps[at] = step;
    memcpy(f->ring + at * f->cells, routing_stats_last(f->stats), f->cells * sizeof *f->ring);
    atomic_store(&f->head, head + 1);
    if ((head + 1) % (LOAD_FEED_RING / 4) == 0) futex_bump(&f->bell);
}

void
load_feed_add(load_feed *f, uint64_t step, const uint64_t *totals)
{
    const bool due = routing_stats_add_totals(f->stats, totals);
    atomic_store_explicit(&f->steps, routing_stats_steps(f->stats), memory_order_relaxed);
    if (f->writing) queue_for_trace(f, step);
    f->since_snapshot++;
    if ((due || f->since_snapshot >= SNAPSHOT_STEPS) && pthread_mutex_trylock(&f->lock) == 0) {
        memcpy(f->snapshot, routing_stats_rows(f->stats), f->cells * sizeof *f->snapshot);
        f->snapshot_steps = routing_stats_window_steps(f->stats);
        f->steps_at_snapshot = routing_stats_steps(f->stats);
        if (due) f->part_count = routing_stats_parts(f->stats, f->parts);
        pthread_mutex_unlock(&f->lock);
        f->since_snapshot = 0;
    }
    if (!due) return;
    atomic_store(&f->due, true);
    if (f->config.bell != NULL) futex_bump(f->config.bell);
}

uint32_t
load_feed_take(load_feed *f, uint64_t *rows)
{
    pthread_mutex_lock(&f->lock);
    memcpy(rows, f->snapshot, f->cells * sizeof *rows);
    const uint32_t steps = f->snapshot_steps;
    pthread_mutex_unlock(&f->lock);
    return steps;
}

uint64_t
load_feed_steps(const load_feed *f)
{
    return atomic_load_explicit(&f->steps, memory_order_relaxed);
}

uint64_t
load_feed_snapshot_steps(load_feed *f)
{
    pthread_mutex_lock(&f->lock);
    const uint64_t steps = f->steps_at_snapshot;
    pthread_mutex_unlock(&f->lock);
    return steps;
}

uint32_t
load_feed_take_parts(load_feed *f, uint64_t *rows)
{
    pthread_mutex_lock(&f->lock);
    const uint32_t parts = f->part_count;
    memcpy(rows, f->parts, parts * f->cells * sizeof *rows);
    pthread_mutex_unlock(&f->lock);
    return parts;
}

bool
load_feed_is_due(load_feed *f)
{
    return atomic_exchange(&f->due, false);
}
