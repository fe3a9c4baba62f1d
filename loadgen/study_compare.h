/* study_compare: do two cells differ beyond noise?
 *
 * Two exact tests, neither of which assumes a distribution:
 *
 *   deals  (compare_values) of the difference of means.  If mode (or EPLB, ...) made no difference,
 *          every way to deal the n + m runs into groups of n and m would be as likely as the one
 *          that was seen; p is the share of deals whose difference is at least as large, both ways.
 *   signs  (compare_by_round) of the mean of log(b / a) over the rounds that both have.  If it made
 *          no difference, a and b of a round could be swapped; p is the share of swaps whose mean
 * is at least as far from 0.  Drift from round to round can't hide a difference from it.  It takes
 * the place of the first from COMPARE_ROUNDS_MIN rounds on: with fewer, its p can't be 0.05.
 *
 * With few runs p can't be small (3 against 3: never below 0.1): then the verdict is that there are
 * too few, whatever they say.  Above COMPARE_DEALS_MAX deals or swaps, as many are drawn at random
 * (seeded).
 *
 * Of many comparisons some have a small p by chance.  compare_judge() gives each its q (Benjamini
 * and Hochberg's adjusted p): of all that are called different at q <= 0.05, one in twenty is
 * expected to be wrong.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_COMPARE_H
#define MOE_LOADGEN_STUDY_COMPARE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define COMPARE_LEVEL 0.05
#define COMPARE_DEALS_MAX 200000u
#define COMPARE_ROUNDS_MIN 6

typedef enum compare_verdict {
    COMPARE_TOO_FEW, /* no p at or below the level was possible */
    COMPARE_NOISE,
    COMPARE_DIFFERENT
} compare_verdict;

typedef struct comparison {
    double median_a, median_b;
    double ratio;             /* median_b / median_a */
    size_t rounds;            /* that both have */
    double effect, low, high; /* b / a by round: geometric mean and Student's 95 % interval of it;
                                 NaN without rounds, with fewer than two */
    bool by_round;            /* p is of the signs */
    double p;                 /* NaN when either has no runs */
    double p_min;             /* the least p that so many runs can give */
    double q;                 /* p, adjusted for all that were judged with it; NaN = not judged */
    compare_verdict verdict;
} comparison;

/* a [n], b [m]; n + m <= 200.  The verdict is compare_judge()'s. */
comparison compare_values(const double *a, size_t n, const double *b, size_t m);

/* Enter what the rounds say: logs [n] of b / a, one a round (or any other unit of which a and b
 * could be swapped); n <= 200. */
void compare_by_round(comparison *c, const double *logs, size_t n);

/* Give each of these [n] its q and its verdict.  Those that can't be tested take no part.
 *   MOE_ENOMEM  */
moe_err compare_judge(comparison **all, size_t n);

/* NaN when n is 0.  values [n] are sorted in place. */
double compare_median(double *values, size_t n);

#endif
