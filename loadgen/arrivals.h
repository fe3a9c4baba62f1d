/* arrivals: when each request is to be sent.
 *
 * The schedule is drawn before the run and does not depend on how fast answers come back (an open
 * loop): a slow server gets the same load as a fast one, and the delay between a request's
 * scheduled time and its answer shows the queue that it met.
 *
 * The first request is due at 0.  The gaps that follow are gamma distributed with mean 1/rate and
 * shape `burstiness`: 1 is a Poisson process, below 1 comes in bursts, above 1 is steadier, inf is
 * a metronome.  A ramp moves the rate from ramp_start to ramp_end over the requests of the run:
 * the gap before request i of n has the rate of progress p = i / (n - 1), which is
 *   linear       start + (end - start) * p
 *   exponential  start * (end / start)^p
 * A closed loop is a rate of inf with a limit on the requests in flight (client.h).
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_ARRIVALS_H
#define MOE_LOADGEN_ARRIVALS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef enum arrivals_ramp { ARRIVALS_STEADY, ARRIVALS_LINEAR, ARRIVALS_EXPONENTIAL } arrivals_ramp;

typedef struct arrivals_config {
    double rate;       /* requests per second, > 0; INFINITY = all are due at 0; steady only */
    double burstiness; /* > 0; INFINITY = equal gaps */
    uint64_t seed;
    arrivals_ramp ramp;
    double ramp_start, ramp_end; /* requests per second, > 0 and finite; with a ramp */
} arrivals_config;

/* On MOE_OK *out is [count], ns since the start of the run, never decreasing; free() it.
 *   MOE_ERANGE  a rate or burstiness is not above 0, or the schedule is longer than 30 years
 *   MOE_ENOMEM  */
moe_err arrivals_build(const arrivals_config *config, size_t count, uint64_t **out, errbuf *eb);

/* The rate that the gap before request i of count has. */
double arrivals_rate_at(const arrivals_config *config, size_t i, size_t count);

#endif
