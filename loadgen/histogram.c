#include "loadgen/histogram.h"

#include <math.h>

size_t
histogram_bucket(uint64_t us)
{
    if (us > HISTOGRAM_US_MAX) us = HISTOGRAM_US_MAX;
    if (us < 2 * HISTOGRAM_HALF) return (size_t)us;
    /* Shift until it lies in HALF .. 2 * HALF - 1: the shift says which doubling it is in. */
    const unsigned shift = 56 - (unsigned)__builtin_clzll(us);
    return (size_t)HISTOGRAM_HALF * shift + (size_t)(us >> shift);
}

uint64_t
histogram_upper_us(size_t bucket)
{
    if (bucket < 2 * HISTOGRAM_HALF) return bucket;
    const unsigned shift = (unsigned)(bucket / HISTOGRAM_HALF) - 1;
    return ((uint64_t)(HISTOGRAM_HALF + bucket % HISTOGRAM_HALF + 1) << shift) - 1;
}

void
histogram_add_ms(histogram *h, double ms)
{
    const double us = ms * 1e3;
    const uint64_t whole = !(us > 0)                        ? 0
                           : us >= (double)HISTOGRAM_US_MAX ? HISTOGRAM_US_MAX
                                                            : (uint64_t)llround(us);
    h->buckets[histogram_bucket(whole)]++;
    h->count++;
}

void
histogram_merge(histogram *into, const histogram *from)
{
    into->count += from->count;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        into->buckets[i] += from->buckets[i];
    }
}

double
histogram_percentile_ms(const histogram *h, double p)
{
    if (h->count == 0) return NAN;
    const double rank = fmax(1, ceil(p / 100 * (double)h->count));
    uint64_t below = 0;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        below += h->buckets[i];
        if ((double)below >= rank) return (double)histogram_upper_us(i) / 1e3;
    }
    return (double)HISTOGRAM_US_MAX / 1e3;
}
