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

struct pool {
    /* The loop being run: written by pool_run() before `generation` is bumped, read after it was
     * seen. */
    pool_fn *fn;
    void *arg;
    uint32_t item_count;
    uint32_t thread_count;
    _Atomic bool stopping;

    _Alignas(64) _Atomic uint32_t generation; /* bumped once a loop */
    _Alignas(64) _Atomic uint32_t next_item;
    _Alignas(64) _Atomic uint32_t busy; /* helpers that have not finished this loop */
    _Alignas(64) _Atomic uint32_t done; /* bumped by the last helper of a loop */
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

static void *
worker_main(void *arg)
{
    pool_worker *w = arg;
    pool *p = w->owner;
    uint32_t seen = 0;
    for (;;) {
        futex_wait_change(&p->generation, seen, 0);
        seen++; /* pool_run() waits for every helper, so no generation is ever skipped */
        if (atomic_load_explicit(&p->stopping, memory_order_acquire)) return NULL;
        take_items(p, w->index);
        if (atomic_fetch_sub_explicit(&p->busy, 1, memory_order_acq_rel) == 1) futex_bump(&p->done);
    }
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
    *p = (pool){.thread_count = 1};
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
    futex_bump(&p->generation);
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
    const uint32_t done = atomic_load_explicit(&p->done, memory_order_relaxed);
    atomic_store_explicit(&p->busy, helpers, memory_order_relaxed);
    futex_bump(&p->generation);
    take_items(p, 0);
    while (atomic_load_explicit(&p->busy, memory_order_acquire) != 0) {
        futex_wait_change(&p->done, done, 0);
    }
    /* The last helper lowers busy before it bumps done; without this wait its bump could fall into
     * the next loop and end that one's wait early (harmless), or touch freed memory (not harmless).
     */
    futex_wait_change(&p->done, done, 0);
}
