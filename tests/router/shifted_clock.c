#include "tests/router/shifted_clock.h"

#include <stdatomic.h>
#include <time.h>

#include "common/clock.h"

int __real_clock_gettime(clockid_t id, struct timespec *out);
int __wrap_clock_gettime(clockid_t id, struct timespec *out);

static _Atomic int64_t shift_ns;

int
__wrap_clock_gettime(clockid_t id, struct timespec *out)
{
    const int rc = __real_clock_gettime(id, out);
    if (rc != 0 || id != CLOCK_MONOTONIC) return rc;
    const int64_t ns = (int64_t)out->tv_sec * (int64_t)NS_PER_S + out->tv_nsec + shift_ns;
    out->tv_sec = (time_t)(ns / (int64_t)NS_PER_S);
    out->tv_nsec = (long)(ns % (int64_t)NS_PER_S);
    return 0;
}

void
shifted_clock_advance_ms(int64_t ms)
{
    atomic_fetch_add(&shift_ns, ms * (int64_t)NS_PER_MS);
}
