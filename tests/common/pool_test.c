/* pool: every item once, for any number of threads and items; built to be run under TSan too. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdatomic.h>

#include "common/futex.h"
#include "common/pool.h"

#define ITEMS_MAX 300
#define SPIN_NS 20000

TestSuite(pool, .timeout = 100);

static const uint32_t thread_counts[] = {1, 2, 3, 8};
#define COUNT_OF(a) (sizeof(a) / sizeof(a)[0])

typedef struct tally {
    /* Plain memory: pool_run() must order what its threads wrote before it returns. */
    uint32_t calls[ITEMS_MAX];
    uint64_t per_thread[POOL_THREAD_MAX];
    uint32_t thread_max;
    uint32_t factor; /* written before each loop, read by its items */
    _Atomic uint32_t strangers;
} tally;

static void
count_item(void *arg, uint32_t item, uint32_t thread)
{
    tally *t = arg;
    if (thread >= t->thread_max || item >= ITEMS_MAX) {
        t->strangers++;
        return;
    }
    t->calls[item]++;
    t->per_thread[thread] += (uint64_t)(item + 1) * t->factor;
}

/* Runs one loop and checks it against the sum worked out beforehand. */
static void
check_loop(pool *p, tally *t, uint32_t items, uint32_t factor)
{
    *t = (tally){.thread_max = pool_size(p), .factor = factor};
    pool_run(p, count_item, t, items);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < t->thread_max; i++)
        sum += t->per_thread[i];
    cr_assert_eq(t->strangers, 0);
    cr_assert_eq(sum, (uint64_t)items * (items + 1) / 2 * factor, "%u threads, %u items",
                 t->thread_max, items);
    for (uint32_t i = 0; i < ITEMS_MAX; i++)
        cr_assert_eq(t->calls[i], i < items ? 1 : 0);
}

Test(pool, calls_every_item_once_in_many_loops)
{
    static const uint32_t items[] = {0, 1, 2, 3, 7, 8, 9, 64, ITEMS_MAX};
    static tally t;
    for (size_t n = 0; n < COUNT_OF(thread_counts); n++) {
        pool *p;
        cr_assert_eq(pool_create(&p, thread_counts[n]), MOE_OK);
        cr_expect_eq(pool_size(p), thread_counts[n]);
        for (uint32_t loop = 0; loop < 400; loop++) {
            futex_set_spin(loop % 2 ? SPIN_NS : 0); /* helpers that sleep, helpers that spin */
            check_loop(p, &t, items[loop % COUNT_OF(items)], loop);
        }
        pool_free(p);
    }
    futex_set_spin(SPIN_NS);
}

typedef struct meeting {
    pthread_t caller;
    uint32_t items;
    _Atomic uint32_t others; /* items done but for number 0 */
    _Atomic uint32_t wrong;
} meeting;

static void
long_first_item(void *arg, uint32_t item, uint32_t thread)
{
    meeting *m = arg;
    if ((thread == 0) != pthread_equal(pthread_self(), m->caller)) m->wrong++;
    if (item != 0) {
        futex_bump(&m->others);
        return;
    }
    for (uint32_t seen; (seen = atomic_load(&m->others)) != m->items - 1;)
        futex_wait_change(&m->others, seen, 0);
}

/* Items dealt out beforehand would never end here: item 0 waits for all others. */
Test(pool, one_long_item_holds_up_no_other)
{
    for (size_t n = 1; n < COUNT_OF(thread_counts); n++) {
        pool *p;
        cr_assert_eq(pool_create(&p, thread_counts[n]), MOE_OK);
        for (uint32_t loop = 0; loop < 50; loop++) {
            meeting m = {.caller = pthread_self(), .items = 2 + loop};
            pool_run(p, long_first_item, &m, m.items);
            cr_expect_eq(m.wrong, 0, "thread 0 is the caller and no other");
        }
        pool_free(p);
    }
}

Test(pool, starts_and_stops_with_and_without_work)
{
    static tally t;
    pool_free(NULL);
    for (uint32_t round = 0; round < 40; round++) {
        pool *p;
        cr_assert_eq(pool_create(&p, 1 + round % 8), MOE_OK);
        if (round % 3) check_loop(p, &t, round, 1);
        pool_free(p);
    }
}

Test(pool, two_pools_run_at_one_time)
{
    static tally a, b;
    pool *p, *q;
    cr_assert_eq(pool_create(&p, 3), MOE_OK);
    cr_assert_eq(pool_create(&q, 2), MOE_OK);
    for (uint32_t loop = 0; loop < 50; loop++) {
        check_loop(p, &a, loop, 2);
        check_loop(q, &b, 50 - loop, 3);
    }
    pool_free(p);
    pool_free(q);
}

Test(pool, keeps_to_its_limits)
{
    static tally t;
    pool *p;
    cr_expect_eq(pool_create(&p, POOL_THREAD_MAX + 1), MOE_ERANGE);
    cr_expect_null(p);
    cr_expect_eq(pool_create(&p, UINT32_MAX), MOE_ERANGE);
    cr_assert_eq(pool_create(&p, POOL_THREAD_MAX), MOE_OK);
    cr_expect_eq(pool_size(p), POOL_THREAD_MAX);
    check_loop(p, &t, ITEMS_MAX, 1);
    pool_free(p);
    cr_assert_eq(pool_create(&p, 0), MOE_OK);
    cr_expect_geq(pool_size(p), 1);
    cr_expect_leq(pool_size(p), POOL_THREAD_MAX);
    check_loop(p, &t, ITEMS_MAX, 1);
    pool_free(p);
}
