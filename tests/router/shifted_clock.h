/* shifted_clock: the monotonic clock of a test program, moved by hand.
 *
 * A program that links it with -Wl,--wrap=clock_gettime reads the real clock plus the shift, in
 * every thread; waits that are under way keep the length they had.  So a test of what happens after
 * a minute of silence need not last a minute, nor depend on how busy the machine is.
 *
 * Threads: any.
 */
#ifndef MOE_TESTS_ROUTER_SHIFTED_CLOCK_H
#define MOE_TESTS_ROUTER_SHIFTED_CLOCK_H

#include <stdint.h>

/* Move the clock by so much from where it is; backwards is allowed. */
void shifted_clock_advance_ms(int64_t ms);

#endif
