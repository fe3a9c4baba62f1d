/* study_compare: do two cells differ beyond noise?
 *
 * Method: exact permutation test of the difference of means.  If mode (or EPLB, ...) made no
 * difference, every way to deal the n + m runs into groups of n and m would be as likely as the one
 * that was seen; p is the share of deals whose difference is at least as large, both ways.  It
 * assumes no distribution.  With few runs p can't be small (3 against 3: never below 0.1): then the
 * verdict is that there are too few runs, whatever they say.
 *
 * Above COMPARE_DEALS_MAX deals, as many are drawn at random (seeded).
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_COMPARE_H
#define MOE_LOADGEN_STUDY_COMPARE_H

#include <stddef.h>

#define COMPARE_LEVEL 0.05
#define COMPARE_DEALS_MAX 200000u

typedef enum compare_verdict {
    COMPARE_TOO_FEW, /* no p at or below the level was possible */
    COMPARE_NOISE,
    COMPARE_DIFFERENT
} compare_verdict;

typedef struct comparison {
    double median_a, median_b;
    double ratio; /* median_b / median_a */
    double p;     /* NaN when either has no runs */
    double p_min; /* the least p that so many runs can give */
    compare_verdict verdict;
} comparison;

/* a [n], b [m]; n + m <= 200. */
comparison compare_values(const double *a, size_t n, const double *b, size_t m);

/* NaN when n is 0.  values [n] are sorted in place. */
double compare_median(double *values, size_t n);

#endif
