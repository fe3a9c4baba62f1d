/* futex: wait for a 32-bit word to change, in this process or in shared memory.
 *
 * futex_wait_change() polls for a bounded time first (futex_set_spin), then sleeps in the kernel.
 * But for the first few microseconds it yields its core between polls, so that another thread that
 * wants the core, such as the one that is waited for, has it at once; if there is none, the core
 * does not fall asleep, which would cost more than the wait (15 to 60 microseconds to wake on
 * virtual machines).  A woken waiter must re-check its own condition: wake-ups may be spurious.
 *
 * Threads: any.  The word is read with acquire order; the waker must have stored it with release
 * order.
 */
#ifndef MOE_COMMON_FUTEX_H
#define MOE_COMMON_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* How long futex_wait_change() polls before it sleeps, in nanoseconds, for this process.
 * 0 = sleep at once.  Default: 1 millisecond.  */
void futex_set_spin(uint64_t spin_ns);

/* Return true once *word != seen, or false when deadline_ns (clock_now_ns() time; 0 = never) has
 * passed (by up to the time that it polls). */
bool futex_wait_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns);

/* The two halves of futex_wait_change(): poll only, and sleep only.  Who waits for seconds, or in
 * no hurry, sleeps at once; owners of a word who count who sleeps on it need both. */
bool futex_spin_change(_Atomic uint32_t *word, uint32_t seen);
bool futex_sleep_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns);

/* Add one to *word with release order and wake every waiter. */
void futex_bump(_Atomic uint32_t *word);
/* Wake at most `count` sleepers of a word that was changed already. */
void futex_wake(_Atomic uint32_t *word, uint32_t count);

#endif
