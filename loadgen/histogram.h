/* histogram: counts of times in buckets of equal relative width, in bounded memory.
 *
 * Times are whole microseconds, 0 .. HISTOGRAM_US_MAX (larger ones count as that).  Up to 256 us
 * every value has a bucket of its own; above, each doubling of the time is cut into 128 buckets, so
 * a bucket is less than 1/128 of its values wide.  Histograms of several runs add up, which
 * percentiles do not.
 *
 * Source: the log-linear layout of Gil Tene's HdrHistogram.
 *
 * Threads: one at a time for each histogram.
 */
#ifndef MOE_LOADGEN_HISTOGRAM_H
#define MOE_LOADGEN_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_HALF 128               /* buckets of a doubling */
#define HISTOGRAM_US_MAX 0xffffffffffull /* 2^40 - 1: about 12 days */
#define HISTOGRAM_BUCKETS (HISTOGRAM_HALF * (40 - 8 + 2))

typedef struct histogram {
    uint64_t count;
    uint64_t buckets[HISTOGRAM_BUCKETS];
} histogram;

/* Enter a time; what is below 0 or not a number is 0. */
void histogram_add_ms(histogram *h, double ms);
void histogram_merge(histogram *into, const histogram *from);

/* The bucket of a time, and the largest time that a bucket holds. */
size_t histogram_bucket(uint64_t us);
uint64_t histogram_upper_us(size_t bucket);

/* The largest time of the bucket that holds the value of rank ceil(p/100 * count); NaN when
 * empty.  0 <= p <= 100. */
double histogram_percentile_ms(const histogram *h, double p);

#endif
