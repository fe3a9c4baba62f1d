/* repeats: the spread of a figure over several runs, and how well its mean is known.
 *
 * The confidence interval is Student's, for the mean of n runs whose figures are taken as
 * independent and about normal: mean +- t(0.975, n - 1) * s / sqrt(n), s being the sample's
 * standard deviation.  With one run there is none.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_REPEATS_H
#define MOE_LOADGEN_REPEATS_H

#include <stddef.h>

#define REPEATS_MAX 1000

typedef struct repeats_stat {
    size_t count; /* of the values that are numbers */
    double mean, median, std, min, max;
    double ci95; /* half the width of the interval */
} repeats_stat;

/* values [count], NaN = the run has no such figure; every figure is NaN where it can't be told. */
repeats_stat repeats_summarize(const double *values, size_t count);

/* t(0.975, df), df >= 1. */
double repeats_student_t(size_t df);

#endif
