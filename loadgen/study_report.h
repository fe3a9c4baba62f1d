/* study_report: a study's folders as one page: report.html, with pictures, figures and verdicts.
 *
 * The page needs no other file and no network.  Every figure names the JSON that it is from, as an
 * address relative to the page.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_REPORT_H
#define MOE_LOADGEN_STUDY_REPORT_H

#include <stdio.h>

#include "common/err.h"
#include "loadgen/study_compare.h"
#include "loadgen/study_read.h"

#define STUDY_PAIRS_MAX 4096

/* Two cells that differ in one thing. */
typedef enum study_axis {
    STUDY_BY_MODE, /* tp4 against ep4; ep4 against ep4r4 */
    STUDY_BY_EPLB, /* off against on */
    STUDY_BY_LOAD, /* balanced against skewed */
    STUDY_BY_SEQS, /* the smallest against the largest */
    STUDY_BY_TOKENS,
    STUDY_AXES
} study_axis;

typedef struct study_pair {
    study_axis axis;
    const study_cell *a, *b;
    comparison of[STUDY_METRICS]; /* ratio is b / a */
} study_pair;

/* Pairs of cells with runs, into out [STUDY_PAIRS_MAX]; returns how many. */
size_t study_find_pairs(const study *s, study_pair *out);

/* "EP4, 32 / 8192, skewed, EPLB on", into out [size]. */
void study_describe(const study_cell *cell, char *out, size_t size);

/* Share of steps in which a limit bound, over all runs of the cell; NaN = not known. */
double study_bound_share(const study_cell *cell, double (*count)(const study_run *run));
double study_bound_seqs(const study_run *run);
double study_bound_tokens(const study_run *run);

/*   MOE_EIO, MOE_ENOMEM */
moe_err study_write_report(const study *s, FILE *to, errbuf *eb);

/* ---- pictures (study_charts.c) ---- */

/* Each writes <figure>s, or nothing where the study has not enough for one. */
void study_draw_limits(const study *s, FILE *to);
void study_draw_curves(const study *s, FILE *to);
void study_draw_heat(const study *s, FILE *to);
void study_draw_balance(const study *s, FILE *to);
void study_draw_timelines(const study *s, FILE *to);

#endif
