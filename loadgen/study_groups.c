/* What the cells of a grid say together: one difference over all settings, and the noise that is
 * left between cells that ran the same schedule. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/study_report.h"

/* The values between which a pair moves along its axis. */
static void
name_ends(const study_pair *pair, char from[64], char to[64])
{
    switch (pair->axis) {
    case STUDY_BY_SEQS:
        snprintf(from, 64, "%u", pair->a->seqs);
        snprintf(to, 64, "%u", pair->b->seqs);
        return;
    case STUDY_BY_TOKENS:
        snprintf(from, 64, "%u", pair->a->tokens);
        snprintf(to, 64, "%u", pair->b->tokens);
        return;
    default:
        snprintf(from, 64, "%s", study_mode_name(pair->a).text);
        snprintf(to, 64, "%s", study_mode_name(pair->b).text);
    }
}

/* Only plain cells: the others are one or two of a kind. */
static bool
may_join(const study_pair *pair)
{
    return (pair->axis == STUDY_BY_MODE || pair->axis == STUDY_BY_SEQS ||
            pair->axis == STUDY_BY_TOKENS) &&
           strcmp(study_get(pair->a, "conclave.options"), "none") == 0 &&
           strcmp(study_get(pair->a, "Model-executor.expert_parallel.eplb"), "off") == 0;
}

static bool
belongs(const study_group *g, const study_pair *pair)
{
    char from[64], to[64];
    if (!may_join(pair) || g->axis != pair->axis) return false;
    name_ends(pair, from, to);
    return strcmp(g->load, study_get(pair->a, "conclave.load")) == 0 &&
           strcmp(g->from, from) == 0 && strcmp(g->to, to) == 0;
}

static void
fill_group(study_group *g, const study_pair *pairs, size_t count)
{
    for (int m = 0; m < STUDY_METRICS; m++) {
        double logs[STUDY_GROUP_PAIRS_MAX];
        size_t n = 0;
        g->least[m] = g->most[m] = NAN;
        for (size_t i = 0; i < count && n < STUDY_GROUP_PAIRS_MAX; i++) {
            const double effect = pairs[i].of[m].effect;
            if (!belongs(g, &pairs[i]) || !isfinite(effect)) continue;
            logs[n++] = log(effect);
            g->least[m] = fmin(g->least[m], effect); /* NaN gives way */
            g->most[m] = fmax(g->most[m], effect);
        }
        g->of[m] =
            (comparison){.median_a = NAN, .median_b = NAN, .ratio = NAN, .p = NAN, .p_min = 1};
        compare_by_round(&g->of[m], logs, n);
        if (n > g->pairs) g->pairs = n;
    }
}

size_t
study_find_groups(const study_pair *pairs, size_t count, study_group *out)
{
    size_t n = 0;
    for (size_t i = 0; i < count && n < STUDY_GROUPS_MAX; i++) {
        bool known = !may_join(&pairs[i]);
        for (size_t g = 0; g < n && !known; g++) {
            known = belongs(&out[g], &pairs[i]);
        }
        if (known) continue;
        out[n] =
            (study_group){.axis = pairs[i].axis, .load = study_get(pairs[i].a, "conclave.load")};
        name_ends(&pairs[i], out[n].from, out[n].to);
        fill_group(&out[n], pairs + i, count - i);
        if (out[n].pairs >= 2) n++;
    }
    return n;
}

moe_err
study_judge(study_pair *pairs, size_t pair_count, study_group *groups, size_t group_count,
            errbuf *eb)
{
    const size_t most = pair_count > group_count ? pair_count : group_count;
    comparison **all = malloc((most * STUDY_METRICS + 1) * sizeof(*all));
    if (all == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (size_t i = 0; i < pair_count * STUDY_METRICS; i++) {
        all[i] = &pairs[i / STUDY_METRICS].of[i % STUDY_METRICS];
    }
    moe_err err = compare_judge(all, pair_count * STUDY_METRICS);
    for (size_t i = 0; i < group_count * STUDY_METRICS; i++) {
        all[i] = &groups[i / STUDY_METRICS].of[i % STUDY_METRICS];
    }
    if (!err) err = compare_judge(all, group_count * STUDY_METRICS);
    free(all);
    return err ? err_set(eb, err, "out of memory") : MOE_OK;
}

/* ---- noise ---- */

static bool
ran_alike(const study_cell *a, const study_cell *b)
{
    return a->tokens < b->tokens && a->run_count > 0 && b->run_count > 0 &&
           study_differ_by_tokens(a, b) && study_bound_share(a, study_bound_tokens) == 0 &&
           study_bound_share(b, study_bound_tokens) == 0;
}

static double
median_of(const study_cell *c, study_metric metric)
{
    double values[STUDY_RUNS_MAX];
    return compare_median(values, study_values(c, metric, values));
}

study_floor
study_noise_floor(const study *s, study_metric metric)
{
    double apart[STUDY_GROUP_PAIRS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < s->count * s->count && n < STUDY_GROUP_PAIRS_MAX; i++) {
        const study_cell *a = &s->cells[i / s->count], *b = &s->cells[i % s->count];
        if (!ran_alike(a, b)) continue;
        const double distance = fabs(log(median_of(b, metric) / median_of(a, metric)));
        if (isfinite(distance)) apart[n++] = distance;
    }
    const double median = exp(compare_median(apart, n)); /* sorts them */
    return (study_floor){.pairs = n, .median = median, .most = n ? exp(apart[n - 1]) : NAN};
}
