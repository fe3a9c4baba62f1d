/* rng: a small seeded generator, so that a seed names one load for good.
 *
 * The sequence of a (seed, stream) pair is part of what a result means ("seed 7" can be run again
 * next year), hence our own generator and not the C library's.  Distinct streams of one seed are
 * independent: arrivals do not shift when a prompt gets longer.
 *
 * Source: splitmix64's counter and finalizer (common/hash.h); gamma after Marsaglia and Tsang, "A
 * Simple Method for Generating Gamma Variables", ACM TOMS 26(3), 2000.
 *
 * Threads: one at a time for each rng.
 */
#ifndef MOE_LOADGEN_RNG_H
#define MOE_LOADGEN_RNG_H

#include <stdint.h>

typedef struct rng {
    uint64_t state;
} rng;

/* What each stream is for: one place, so that no two users share one. */
enum {
    RNG_ARRIVALS = 1,
    RNG_LENGTHS = 2,
    RNG_TOKENS = 3,
    RNG_SHUFFLE = 4,
    RNG_BLOCKS = 5, /* the shared parts of prompts: prefixes, a trace's hashed blocks */
    RNG_SKEW = 6,
    RNG_RESAMPLE = 7,
    RNG_DEALS = 8
};

void rng_init(rng *r, uint64_t seed, uint64_t stream);

uint64_t rng_u64(rng *r);

/* Uniform on 0..bound-1, without bias.  bound > 0. */
uint64_t rng_below(rng *r, uint64_t bound);

/* Uniform on the open interval (0, 1). */
double rng_uniform(rng *r);

/* Mean 0, variance 1. */
double rng_normal(rng *r);

/* Gamma with this shape and scale 1 (mean = shape).  shape > 0, finite. */
double rng_gamma(rng *r, double shape);

#endif
