/* roundtrip: how long it takes to hand something over and get an answer.
 *
 * Each returns nanoseconds a round trip, the mean of `trips`, or below 0 with a reason in eb.
 *
 * Threads: the calling process has one thread (roundtrip_exchange forks).
 */
#ifndef MOE_TESTS_BENCH_ROUNDTRIP_H
#define MOE_TESTS_BENCH_ROUNDTRIP_H

#include <stdint.h>

#include "common/err.h"

/* Two threads that wake each other by common/futex: polling first, or asleep at once. */
double roundtrip_futex_spin(uint32_t trips, errbuf *eb);
double roundtrip_futex_sleep(uint32_t trips, errbuf *eb);

/* Two processes over the exchange's shared memory: one row of 1024 bf16-model floats posted, taken,
 * answered with two rows, nothing computed. */
double roundtrip_exchange(uint32_t trips, errbuf *eb);

#endif
