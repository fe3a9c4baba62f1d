/* summary: several runs of one load, as figures with their spread.
 *
 * Threads: one at a time for each summary.
 */
#ifndef MOE_LOADGEN_SUMMARY_H
#define MOE_LOADGEN_SUMMARY_H

#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "loadgen/measure.h"
#include "loadgen/repeats.h"

#define SUMMARY_FIGURES_MAX 64

typedef struct summary {
    size_t count, run_max;
    size_t figure_count;
    char names[SUMMARY_FIGURES_MAX][40];
    double *values;        /* [SUMMARY_FIGURES_MAX][run_max], owned */
    histogram *histograms; /* [METRIC_COUNT], of all runs together; owned */
} summary;

/* Room for run_max runs, at most REPEATS_MAX.  Release with summary_fini().   MOE_ENOMEM */
moe_err summary_init(summary *s, size_t run_max, errbuf *eb);
void summary_fini(summary *s);

/* Enter a run; at most run_max. */
void summary_add(summary *s, const measure *m, const histogram *histograms);

/* The figure of this name ("mean_ttft_ms"); false when there is none. */
bool summary_find(const summary *s, const char *name, repeats_stat *out);

void summary_print(const summary *s, FILE *to);
/*   MOE_EIO, MOE_ENOMEM */
moe_err summary_write_json(const summary *s, FILE *to, errbuf *eb);

#endif
