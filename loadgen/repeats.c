#include "loadgen/repeats.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "loadgen/measure.h"

/* Exact values for few degrees of freedom; beyond them the expansion about the normal quantile is
 * good to 1e-5 (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5). */
double
repeats_student_t(size_t df)
{
    static const double exact[] = {12.706205, 4.302653, 3.182446, 2.776445, 2.570582,
                                   2.446912,  2.364624, 2.306004, 2.262157, 2.228139};
    assert(df >= 1);
    if (df <= sizeof exact / sizeof *exact) return exact[df - 1];
    const double z = 1.959963985, n = (double)df, q = z * z;
    const double g1 = z * (q + 1) / 4;
    const double g2 = z * ((5 * q + 16) * q + 3) / 96;
    const double g3 = z * (((3 * q + 19) * q + 17) * q - 15) / 384;
    const double g4 = z * ((((79 * q + 776) * q + 1482) * q - 1920) * q - 945) / 92160;
    return z + (g1 + (g2 + (g3 + g4 / n) / n) / n) / n;
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

repeats_stat
repeats_summarize(const double *values, size_t count)
{
    assert(count <= REPEATS_MAX);
    double sorted[REPEATS_MAX], sum = 0, squares = 0;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i])) continue;
        sorted[n++] = values[i];
        sum += values[i];
    }
    repeats_stat s = {.count = n, .mean = NAN, .median = NAN, .std = NAN};
    s.min = s.max = s.ci95 = NAN;
    if (n == 0) return s;
    qsort(sorted, n, sizeof *sorted, compare_doubles);
    s.mean = sum / (double)n;
    s.median = measure_percentile(sorted, n, 50);
    s.min = sorted[0];
    s.max = sorted[n - 1];
    if (n == 1) return s;
    for (size_t i = 0; i < n; i++) {
        squares += (sorted[i] - s.mean) * (sorted[i] - s.mean);
    }
    s.std = sqrt(squares / (double)(n - 1));
    s.ci95 = repeats_student_t(n - 1) * s.std / sqrt((double)n);
    return s;
}
