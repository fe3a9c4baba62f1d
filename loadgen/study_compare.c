#include "loadgen/study_compare.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/measure.h"
#include "loadgen/repeats.h"
#include "loadgen/rng.h"

#define VALUES_MAX 200

static int
by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double
compare_median(double *values, size_t n)
{
    if (n == 0) return NAN;
    qsort(values, n, sizeof *values, by_value);
    return measure_percentile(values, n, 50);
}

static double
median_of(const double *values, size_t n)
{
    double copy[VALUES_MAX];
    memcpy(copy, values, n * sizeof *copy);
    return compare_median(copy, n);
}

/* The number of deals, or more than the maximum. */
static double
count_deals(size_t all, size_t n)
{
    double deals = 1;
    for (size_t i = 0; i < n; i++) {
        deals = deals * (double)(all - i) / (double)(i + 1);
    }
    return deals;
}

/* |difference of means| of a deal, from the sum of the first group. */
static double
difference(double sum_a, double sum_all, size_t n, size_t m)
{
    return fabs(sum_a / (double)n - (sum_all - sum_a) / (double)m);
}

typedef struct tally {
    const double *all;
    size_t n, m;
    double sum_all, seen; /* what was measured, a little less against rounding */
    double extreme, deals;
} tally;

static void
enter_deal(tally *t, double sum_a)
{
    t->deals++;
    t->extreme += difference(sum_a, t->sum_all, t->n, t->m) >= t->seen;
}

/* Every choice of n of all values. */
static void
deal_all(tally *t)
{
    size_t chosen[VALUES_MAX];
    for (size_t i = 0; i < t->n; i++) {
        chosen[i] = i;
    }
    for (;;) {
        double sum = 0;
        for (size_t i = 0; i < t->n; i++) {
            sum += t->all[chosen[i]];
        }
        enter_deal(t, sum);
        size_t i = t->n;
        while (i > 0 && chosen[i - 1] == t->n + t->m - (t->n - (i - 1))) {
            i--;
        }
        if (i == 0) return;
        chosen[i - 1]++;
        for (; i < t->n; i++) {
            chosen[i] = chosen[i - 1] + 1;
        }
    }
}

static void
deal_some(tally *t)
{
    double values[VALUES_MAX];
    rng r;
    rng_init(&r, 1, RNG_DEALS);
    memcpy(values, t->all, (t->n + t->m) * sizeof *values);
    for (unsigned d = 0; d < COMPARE_DEALS_MAX; d++) {
        double sum = 0;
        for (size_t i = 0; i < t->n; i++) {
            const size_t j = i + (size_t)rng_below(&r, t->n + t->m - i);
            const double v = values[j];
            values[j] = values[i];
            values[i] = v;
            sum += v;
        }
        enter_deal(t, sum);
    }
}

comparison
compare_values(const double *a, size_t n, const double *b, size_t m)
{
    comparison c = {.median_a = NAN, .median_b = NAN, .ratio = NAN, .p_min = 1};
    c.effect = c.low = c.high = c.p = c.q = NAN;
    assert(n + m <= VALUES_MAX);
    if (n > 0) c.median_a = median_of(a, n);
    if (m > 0) c.median_b = median_of(b, m);
    c.ratio = c.median_b / c.median_a;
    if (n == 0 || m == 0) return c;

    double all[VALUES_MAX], sum_a = 0;
    memcpy(all, a, n * sizeof *all);
    memcpy(all + n, b, m * sizeof *all);
    tally t = {.all = all, .n = n, .m = m};
    for (size_t i = 0; i < n + m; i++) {
        t.sum_all += all[i];
        if (i < n) sum_a += all[i];
    }
    t.seen = difference(sum_a, t.sum_all, n, m) * (1 - 1e-12);
    const double deals = count_deals(n + m, n);
    /* Groups of one size: the deal and its mirror image are equally far apart. */
    c.p_min = (n == m ? 2 : 1) / deals;
    const bool every = deals <= COMPARE_DEALS_MAX;
    if (every)
        deal_all(&t);
    else
        deal_some(&t);
    c.p = every ? t.extreme / t.deals : (t.extreme + 1) / (t.deals + 1);
    return c;
}

/* ---- rounds ---- */

static double
sum_of(const double *values, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += values[i];
    }
    return sum;
}

/* Share of swaps after which the sum is at least as far from 0. */
static double
p_of_signs(const double *logs, size_t n)
{
    const double seen = fabs(sum_of(logs, n)) * (1 - 1e-12);
    const bool every = n < 31 && (1u << n) <= COMPARE_DEALS_MAX;
    const unsigned swaps = every ? 1u << n : COMPARE_DEALS_MAX;
    unsigned extreme = 0;
    rng r;
    rng_init(&r, 1, RNG_DEALS);
    for (unsigned s = 0; s < swaps; s++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            const bool swap = every ? (s >> i) & 1u : rng_below(&r, 2) == 1;
            sum += swap ? -logs[i] : logs[i];
        }
        extreme += fabs(sum) >= seen;
    }
    return every ? (double)extreme / swaps : (extreme + 1.0) / (swaps + 1.0);
}

void
compare_by_round(comparison *c, const double *logs, size_t n)
{
    assert(n <= VALUES_MAX);
    const repeats_stat stat = repeats_summarize(logs, n);
    c->rounds = n;
    c->effect = exp(stat.mean);
    c->low = exp(stat.mean - stat.ci95);
    c->high = exp(stat.mean + stat.ci95);
    c->by_round = n >= COMPARE_ROUNDS_MIN;
    if (!c->by_round) return;
    c->p = p_of_signs(logs, n);
    c->p_min = 2 / pow(2, (double)n);
}

/* ---- many ---- */

static int
by_p(const void *a, const void *b)
{
    const double x = (*(comparison *const *)a)->p, y = (*(comparison *const *)b)->p;
    return (x > y) - (x < y);
}

moe_err
compare_judge(comparison **all, size_t n)
{
    comparison **tested = malloc((n + 1) * sizeof(*tested));
    if (tested == NULL) return MOE_ENOMEM;
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        all[i]->q = NAN;
        all[i]->verdict = COMPARE_TOO_FEW;
        if (isfinite(all[i]->p) && all[i]->p_min <= COMPARE_LEVEL) tested[count++] = all[i];
    }
    qsort(tested, count, sizeof(*tested), by_p);
    double least = 1; /* of the later ones: q never falls as p rises */
    for (size_t rank = count; rank > 0; rank--) {
        comparison *c = tested[rank - 1];
        least = fmin(least, c->p * (double)count / (double)rank);
        c->q = least;
        c->verdict = least <= COMPARE_LEVEL ? COMPARE_DIFFERENT : COMPARE_NOISE;
    }
    free(tested);
    return MOE_OK;
}
