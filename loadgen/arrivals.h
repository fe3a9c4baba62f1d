/* arrivals: when each request is to be sent.
 *
 * The schedule is drawn before the run and does not depend on how fast answers come back (an open
 * loop): a slow server gets the same load as a fast one, and the delay between a request's
 * scheduled time and its answer shows the queue that it met.
 *
 * The first request is due at 0.  The gaps that follow are gamma distributed with mean 1/rate and
 * shape `burstiness`: 1 is a Poisson process, below 1 comes in bursts, above 1 is steadier, inf is
 * a metronome.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_ARRIVALS_H
#define MOE_LOADGEN_ARRIVALS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef struct arrivals_config {
    double rate;       /* requests per second, > 0; INFINITY = all are due at 0 */
    double burstiness; /* > 0; INFINITY = equal gaps */
    uint64_t seed;
} arrivals_config;

/* On MOE_OK *out is [count], ns since the start of the run, never decreasing; free() it.
 *   MOE_ERANGE  rate or burstiness is not above 0, or the schedule is longer than 30 years
 *   MOE_ENOMEM  */
moe_err arrivals_build(const arrivals_config *config, size_t count, uint64_t **out, errbuf *eb);

#endif
