/* futex: wait for a 32-bit word to change, in this process or in shared memory.
 *
 * futex_wait_change() spins for a bounded time first and only while the machine has idle cores to
 * spin on (futex_set_spin), then sleeps in the kernel.  A woken waiter must re-check its own
 * condition: wake-ups may be spurious.
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
 * 0 = sleep at once.  Default: 20 microseconds.  */
void futex_set_spin(uint64_t spin_ns);

/* Return true once *word != seen, or false when deadline_ns (clock_now_ns() time; 0 = never) has
 * passed. */
bool futex_wait_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns);

/* The two halves of futex_wait_change(), for owners of a word who count who sleeps on it: poll
 * only, and sleep only. */
bool futex_spin_change(_Atomic uint32_t *word, uint32_t seen);
bool futex_sleep_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns);

/* Add one to *word with release order and wake every waiter. */
void futex_bump(_Atomic uint32_t *word);
/* Wake at most `count` sleepers of a word that was changed already. */
void futex_wake(_Atomic uint32_t *word, uint32_t count);

#endif
