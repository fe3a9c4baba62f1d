/* plot: line charts as one SVG file, without any other program.
 *
 * Panels stand below one another and share nothing but their width.  The picture follows the
 * reader's light or dark setting and needs no font, script or network.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_PLOT_H
#define MOE_LOADGEN_PLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define PLOT_LINES_MAX 6
#define PLOT_LEVELS_MAX 4

typedef struct plot_line {
    const char *name;
    const double *x, *y;      /* [count]; points that are not finite are left out */
    const double *low, *high; /* [count] the spread of y, drawn as a bar; NULL = none */
    size_t count;
} plot_line;

typedef struct plot_level {
    const char *name;
    double at;
    bool vertical; /* at an x, else at a y */
} plot_level;

typedef struct plot_panel {
    const char *title, *x_label, *y_label;
    bool log_y;  /* values of 0 or less are left out */
    bool log2_x; /* for 8, 16, 32, ...; values of 0 or less are left out */
    plot_line lines[PLOT_LINES_MAX];
    size_t line_count;
    plot_level levels[PLOT_LEVELS_MAX]; /* dashed lines across the panel */
    size_t level_count;
} plot_panel;

/* Pixels; text has 12 of them, so a picture for a phone is about 420 wide. */
typedef struct plot_size {
    int width, panel_height;
    bool legend_below; /* else at the right */
} plot_size;

/* title NULL = none, nor a place for it.  Errors of `to` are the caller's to see (ferror). */
void plot_write_sized(const char *title, plot_size size, const plot_panel *panels, size_t count,
                      FILE *to);
/* For a page of its own. */
void plot_write(const char *title, const plot_panel *panels, size_t count, FILE *to);

#endif
