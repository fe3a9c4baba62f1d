/* study_report: a study's folders as one page: report.html, with pictures, figures and verdicts.
 *
 * The page needs no other file and no network.  Every figure names the JSON that it is from, as an
 * address relative to the page.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_REPORT_H
#define MOE_LOADGEN_STUDY_REPORT_H

#include <stdbool.h>
#include <stdio.h>

#include "common/err.h"
#include "loadgen/study_compare.h"
#include "loadgen/study_read.h"

#define STUDY_PAIRS_MAX 4096

/* Two cells that differ in one thing. */
typedef enum study_axis {
    STUDY_BY_MODE, /* tp4 against ep4; ep4 against ep4r4; colocated against ep1, ep2, ... */
    STUDY_BY_EPLB, /* off against on */
    STUDY_BY_LOAD, /* balanced against skewed */
    STUDY_BY_SEQS, /* the smallest against the largest */
    STUDY_BY_TOKENS,
    STUDY_BY_WORKERS, /* the fewest against each other number */
    STUDY_BY_OPTIONS, /* none against one: micro-batches, dtype, threads */
    STUDY_AXES
} study_axis;

typedef struct study_pair {
    study_axis axis;
    const study_cell *a, *b;
    comparison of[STUDY_METRICS]; /* ratio is b / a */
} study_pair;

/* Pairs of cells with runs, into out [STUDY_PAIRS_MAX], axis by axis; returns how many. */
size_t study_find_pairs(const study *s, study_pair *out);

/* One difference over the whole grid: all pairs of an axis and a load (and of the same two modes,
 * where the axis is the mode).  A unit is a pair: its mean log ratio over the rounds.  `rounds` of
 * a comparison counts these units, and `by_round` says that there are enough for a verdict. */
typedef struct study_group {
    study_axis axis;
    const char *load;
    char from[64], to[64]; /* "TP4", "EP4"; "8", "64" */
    size_t pairs;
    comparison of[STUDY_METRICS];
    double least[STUDY_METRICS], most[STUDY_METRICS]; /* effect of a pair */
} study_group;

#define STUDY_GROUPS_MAX 64
#define STUDY_GROUP_PAIRS_MAX 200 /* the first of so many count */

/* Groups of two pairs or more, into out [STUDY_GROUPS_MAX]; returns how many. */
size_t study_find_groups(const study_pair *pairs, size_t count, study_group *out);

/* Give each comparison its q and its verdict: the pairs' among themselves, the groups' likewise.
 *   MOE_ENOMEM  */
moe_err study_judge(study_pair *pairs, size_t pair_count, study_group *groups, size_t group_count,
                    errbuf *eb);

/* How far apart cells are that ran the same schedule: pairs that differ in BATCH_TOKENS alone,
 * which never bound in either.  |log ratio| of their medians. */
typedef struct study_floor {
    size_t pairs;
    double median, most; /* as factors, >= 1; NaN without pairs */
} study_floor;
study_floor study_noise_floor(const study *s, study_metric metric);

/* Are the two equal in all but BATCH_TOKENS? */
bool study_differ_by_tokens(const study_cell *a, const study_cell *b);

/* "EP4R4", "TP4", "Colocated". */
typedef struct study_name {
    char text[32];
} study_name;
study_name study_mode_name(const study_cell *cell);

/* "EP4, 32 / 8192, skewed, EPLB on", into out [size]. */
void study_describe(const study_cell *cell, char *out, size_t size);

/* Share of steps in which a limit bound, over all runs of the cell; NaN = not known. */
double study_bound_share(const study_cell *cell, double (*count)(const study_run *run));
double study_bound_seqs(const study_run *run);
double study_bound_tokens(const study_run *run);

/*   MOE_EIO, MOE_ENOMEM */
moe_err study_write_report(const study *s, FILE *to, errbuf *eb);

/* ---- pictures (study_charts.c, study_trace_charts.c) ---- */

/* Each writes <figure>s, or nothing where the study has not enough for one. */
void study_draw_limits(const study *s, FILE *to);
void study_draw_curves(const study *s, FILE *to);
void study_draw_workers(const study *s, FILE *to);
void study_draw_heat(const study *s, FILE *to);
void study_draw_balance(const study *s, FILE *to);
void study_draw_timelines(const study *s, FILE *to);

#endif
