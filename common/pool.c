#include "common/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/futex.h"

typedef struct pool_worker {
    pool *owner;
    pthread_t thread;
    uint32_t index;
} pool_worker;

/* `loop` holds whether a loop is open, and who works on it: a helper joins while it is open, and
 * the caller closes it when no items are left, then waits for those who joined.  A helper that
 * wakes up late finds it closed and goes back to sleep: nobody waits for it. */
#define LOOP_CLOSED (1u << 31)

struct pool {
    /* The loop being run: written by pool_run() while it is closed and nobody is in it. */
    pool_fn *fn;
    void *arg;
    uint32_t item_count;
    uint32_t thread_count;
    _Atomic bool stopping;

    _Alignas(64) _Atomic uint32_t generation; /* bumped once a loop: helpers wait for it */
    _Atomic uint32_t sleepers;                /* helpers that sleep, or are about to */
    _Alignas(64) _Atomic uint32_t loop;       /* LOOP_CLOSED + helpers in the loop */
    _Alignas(64) _Atomic uint32_t next_item;
    _Alignas(64) _Atomic uint32_t done; /* bumped by the last helper of a closed loop */
    pool_worker workers[];              /* [thread_count - 1] */
};

static void
take_items(pool *p, uint32_t thread)
{
    for (;;) {
        const uint32_t item = atomic_fetch_add_explicit(&p->next_item, 1, memory_order_relaxed);
        if (item >= p->item_count) return;
        p->fn(p->arg, item, thread);
    }
}

/* False when the loop is closed already. */
static bool
join_loop(pool *p)
{
    uint32_t loop = atomic_load_explicit(&p->loop, memory_order_relaxed);
    while (!(loop & LOOP_CLOSED)) {
        if (atomic_compare_exchange_weak_explicit(&p->loop, &loop, loop + 1, memory_order_acquire,
                                                  memory_order_relaxed))
            return true;
    }
    return false;
}

static void
wait_for_loop(pool *p, uint32_t seen)
{
    if (futex_spin_change(&p->generation, seen)) return;
    /* pool_run() bumps, then looks for sleepers; here it is the other way round. */
    atomic_fetch_add(&p->sleepers, 1);
    futex_sleep_change(&p->generation, seen, 0);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *
worker_main(void *arg)
{
    pool_worker *w = arg;
    pool *p = w->owner;
    for (;;) {
        const uint32_t seen = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (atomic_load_explicit(&p->stopping, memory_order_acquire)) return NULL;
        if (join_loop(p)) {
            take_items(p, w->index);
            if (atomic_fetch_sub_explicit(&p->loop, 1, memory_order_acq_rel) == LOOP_CLOSED + 1)
                futex_bump(&p->done);
        }
        wait_for_loop(p, seen);
    }
}

static void
announce(pool *p, uint32_t wanted)
{
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers) > 0) futex_wake(&p->generation, wanted);
}

static uint32_t
usable_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : (uint32_t)n;
}

moe_err
pool_create(pool **out, uint32_t thread_count)
{
    *out = NULL;
    if (thread_count > POOL_THREAD_MAX) return MOE_ERANGE;
    if (thread_count == 0) {
        thread_count = usable_cpus();
        if (thread_count > POOL_THREAD_MAX) thread_count = POOL_THREAD_MAX;
    }

    const size_t bytes = sizeof(pool) + (thread_count - 1) * sizeof(pool_worker);
    pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL) return MOE_ENOMEM;
    *p = (pool){.thread_count = 1, .loop = LOOP_CLOSED};
    for (uint32_t i = 0; i + 1 < thread_count; i++) {
        p->workers[i] = (pool_worker){.owner = p, .index = i + 1};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0) {
            pool_free(p);
            return MOE_EIO;
        }
        char name[16];
        snprintf(name, sizeof name, "pool-%u", (i + 1) & 0xffff);
        pthread_setname_np(p->workers[i].thread, name);
        p->thread_count++;
    }
    *out = p;
    return MOE_OK;
}

void
pool_free(pool *p)
{
    if (p == NULL) return;
    atomic_store_explicit(&p->stopping, true, memory_order_release);
    announce(p, UINT32_MAX);
    for (uint32_t i = 0; i + 1 < p->thread_count; i++) {
        pthread_join(p->workers[i].thread, NULL);
    }
    free(p);
}

uint32_t
pool_size(const pool *p)
{
    return p->thread_count;
}

void
pool_run(pool *p, pool_fn *fn, void *arg, uint32_t item_count)
{
    assert(fn != NULL);
    assert(item_count <= POOL_ITEM_MAX); /* each thread takes one number past the end */
    p->fn = fn;
    p->arg = arg;
    p->item_count = item_count;
    atomic_store_explicit(&p->next_item, 0, memory_order_relaxed);

    const uint32_t helpers = p->thread_count - 1;
    if (helpers == 0 || item_count <= 1) {
        take_items(p, 0);
        return;
    }
    atomic_store_explicit(&p->loop, 0, memory_order_release);
    announce(p, item_count - 1 < helpers ? item_count - 1 : helpers);
    take_items(p, 0);
    atomic_fetch_or_explicit(&p->loop, LOOP_CLOSED, memory_order_acq_rel);
    for (;;) {
        const uint32_t done = atomic_load_explicit(&p->done, memory_order_acquire);
        if (atomic_load_explicit(&p->loop, memory_order_acquire) == LOOP_CLOSED) return;
        futex_wait_change(&p->done, done, 0);
    }
}
