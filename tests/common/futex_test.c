/* futex: waits that end by a change or by their deadline, in one process and between two. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"

#define SPIN_NS 20000
#define ROUNDS 500

TestSuite(futex, .timeout = 60);

static const uint64_t spins[] = {0, SPIN_NS};

Test(futex, a_word_that_differs_is_seen_at_once_and_a_deadline_ends_a_wait)
{
    for (int i = 0; i < 2; i++) {
        futex_set_spin(spins[i]);
        _Atomic uint32_t word = 7;
        cr_expect(futex_wait_change(&word, 6, 0));
        cr_expect(futex_wait_change(&word, 8, 1)); /* changed beats late */
        cr_expect_not(futex_wait_change(&word, 7, 1));
        cr_expect_not(futex_wait_change(&word, 7, clock_now_ns()));
        const uint64_t end = clock_now_ns() + 2 * NS_PER_MS;
        cr_expect_not(futex_wait_change(&word, 7, end));
        cr_expect_geq(clock_now_ns(), end, "it came back before the deadline");
    }
    futex_set_spin(SPIN_NS);
}

Test(futex, a_bump_adds_one_and_wraps)
{
    _Atomic uint32_t word = UINT32_MAX - 1;
    futex_bump(&word);
    cr_expect_eq(word, UINT32_MAX);
    futex_bump(&word);
    cr_expect_eq(word, 0);
    cr_expect(futex_wait_change(&word, UINT32_MAX, 0));
}

static _Atomic uint32_t shared_word;

static void *
wait_once(void *arg)
{
    (void)arg;
    futex_wait_change(&shared_word, 0, 0);
    return NULL;
}

Test(futex, one_bump_wakes_every_waiter)
{
    for (int i = 0; i < 2; i++) {
        futex_set_spin(spins[i]);
        atomic_store(&shared_word, 0);
        pthread_t threads[8];
        for (int t = 0; t < 8; t++)
            cr_assert_eq(pthread_create(&threads[t], NULL, wait_once, NULL), 0);
        futex_bump(&shared_word);
        for (int t = 0; t < 8; t++)
            pthread_join(threads[t], NULL);
    }
    futex_set_spin(SPIN_NS);
}

typedef struct table {
    _Atomic uint32_t ping, pong;
    uint32_t ball; /* whoever's turn it is; ordered by the two words */
} table;

static void *
answer(void *arg)
{
    table *t = arg;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        futex_wait_change(&t->ping, i, 0);
        t->ball++;
        futex_bump(&t->pong);
    }
    return NULL;
}

static void
serve(table *t)
{
    for (uint32_t i = 0; i < ROUNDS; i++) {
        t->ball++;
        futex_bump(&t->ping);
        futex_wait_change(&t->pong, i, 0);
    }
}

Test(futex, two_threads_take_turns_without_losing_a_wake_up)
{
    for (int i = 0; i < 2; i++) {
        futex_set_spin(spins[i]);
        table t = {0};
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, answer, &t), 0);
        serve(&t);
        pthread_join(thread, NULL);
        cr_expect_eq(t.ball, 2 * ROUNDS);
    }
    futex_set_spin(SPIN_NS);
}

Test(futex, two_processes_take_turns_through_shared_memory)
{
    futex_set_spin(0);
    table *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(t, MAP_FAILED);
    const pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        answer(t);
        _exit(0);
    }
    serve(t);
    int status = -1;
    cr_expect_eq(waitpid(child, &status, 0), child);
    cr_expect_eq(status, 0);
    cr_expect_eq(t->ball, 2 * ROUNDS);
    munmap(t, sizeof *t);
    futex_set_spin(SPIN_NS);
}
