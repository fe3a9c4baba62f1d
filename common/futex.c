#include "common/futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"

#define SPIN_DEFAULT_NS 1000000ull
#define YIELD_AFTER_NS 3000ull
#define POLLS_PER_CLOCK_READ 16

static _Atomic uint64_t spin_limit_ns = SPIN_DEFAULT_NS;

void
futex_set_spin(uint64_t spin_ns)
{
    atomic_store_explicit(&spin_limit_ns, spin_ns, memory_order_relaxed);
}

static inline void
cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

bool
futex_spin_change(_Atomic uint32_t *word, uint32_t seen)
{
    if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
    const uint64_t limit = atomic_load_explicit(&spin_limit_ns, memory_order_relaxed);
    if (limit == 0) return false;
    const uint64_t begin = clock_now_ns();
    for (uint64_t spent = 0; spent < limit; spent = clock_now_ns() - begin) {
        if (spent >= YIELD_AFTER_NS) sched_yield();
        for (int i = 0; i < POLLS_PER_CLOCK_READ; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
            cpu_relax();
        }
    }
    return false;
}

bool
futex_sleep_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns)
{
    while (atomic_load_explicit(word, memory_order_acquire) == seen) {
        struct timespec left, *timeout = NULL;
        if (deadline_ns != 0) {
            const uint64_t now = clock_now_ns();
            if (now >= deadline_ns) return false;
            left.tv_sec = (time_t)((deadline_ns - now) / NS_PER_S);
            left.tv_nsec = (long)((deadline_ns - now) % NS_PER_S);
            timeout = &left;
        }
        /* Shared, not private: the word may live in memory of several processes. */
        syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout, NULL, 0);
    }
    return true;
}

bool
futex_wait_change(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns)
{
    return futex_spin_change(word, seen) || futex_sleep_change(word, seen, deadline_ns);
}

void
futex_wake(_Atomic uint32_t *word, uint32_t count)
{
    const int limit = count > INT_MAX ? INT_MAX : (int)count;
    syscall(SYS_futex, word, FUTEX_WAKE, limit, NULL, NULL, 0);
}

void
futex_bump(_Atomic uint32_t *word)
{
    atomic_fetch_add_explicit(word, 1, memory_order_release);
    futex_wake(word, INT_MAX);
}
