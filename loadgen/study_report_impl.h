/* What the parts of a study's page share: study_report.c, study_found.c, study_tables.c. */
#ifndef MOE_LOADGEN_STUDY_REPORT_IMPL_H
#define MOE_LOADGEN_STUDY_REPORT_IMPL_H

#include "loadgen/study_report.h"

/* The size of a picture that stands beside others. */
#define STUDY_CHART                                                                                \
    (plot_size)                                                                                    \
    {                                                                                              \
        .width = 420, .panel_height = 250, .legend_below = true                                    \
    }

/* <figure>: an anchor, a caption, and what is written until it is closed. */
void study_open_figure(const char *anchor, const char *caption, FILE *to);
void study_close_figure(FILE *to);

/* Three digits, or a dash for what is no number. */
void study_put_number(double v, FILE *to);
/* A table's cell with a percentage. */
void study_put_share(double share, FILE *to);
/* A table's cell with the name, as an address of this file in the cell's folder. */
void study_put_cell_name(const study_cell *c, const char *file, FILE *to);

/* What differs and what does not, as sentences, a picture and tables (study_found.c). */
void study_put_found(const study *s, const study_pair *pairs, size_t pair_count,
                     const study_group *groups, size_t group_count, FILE *to);

/* ---- study_tables.c ---- */

void study_put_cells(const study *s, FILE *to);
void study_put_eplb(const study *s, FILE *to);
void study_put_skipped(const study *s, FILE *to);
void study_put_trace_table(const study *s, FILE *to);

#endif
