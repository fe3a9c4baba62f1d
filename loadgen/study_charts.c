/* The pictures of a study's cells: a metric against limits and workers, throughput against latency.
 */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/markup.h"
#include "loadgen/plot.h"
#include "loadgen/study_report_impl.h"

#define POINTS_MAX 16
#define SERIES_MAX 32 /* modes; those with one point are not drawn */

static bool
is_plain(const study_cell *c, const char *load)
{
    return c->run_count > 0 && strcmp(study_get(c, "conclave.load"), load) == 0 &&
           strcmp(study_get(c, "Model-executor.expert_parallel.eplb"), "off") == 0 &&
           strcmp(study_get(c, "conclave.options"), "none") == 0;
}

void
study_open_figure(const char *anchor, const char *caption, FILE *to)
{
    fprintf(to, "<figure id=\"%s\">\n<figcaption>", anchor);
    markup_text(caption, to);
    fputs("</figcaption>\n", to);
}

void
study_close_figure(FILE *to)
{
    fputs("</figure>\n", to);
}

/* ---- lines of cells, one a mode ---- */

typedef struct series {
    const char *mode;
    char name[32];
    double x[POINTS_MAX], y[POINTS_MAX], low[POINTS_MAX], high[POINTS_MAX];
    size_t count;
} series;

typedef struct series_set {
    series lines[SERIES_MAX];
    size_t count;
} series_set;

static series *
series_named(series_set *set, const char *mode, const char *name)
{
    for (size_t i = 0; i < set->count; i++) {
        if (strcmp(set->lines[i].mode, mode) == 0) return &set->lines[i];
    }
    if (set->count == SERIES_MAX) return NULL;
    series *line = &set->lines[set->count++];
    *line = (series){.mode = mode};
    snprintf(line->name, sizeof line->name, "%s", name);
    return line;
}

static series *
series_of(series_set *set, const study_cell *c)
{
    return series_named(set, study_get(c, "conclave.mode"), study_mode_name(c).text);
}

/* In the order of x. */
static void
add_point(series *line, double x, double y, double low, double high)
{
    if (line == NULL || line->count == POINTS_MAX || !isfinite(y)) return;
    size_t at = line->count++;
    for (; at > 0 && line->x[at - 1] > x; at--) {
        line->x[at] = line->x[at - 1], line->y[at] = line->y[at - 1];
        line->low[at] = line->low[at - 1], line->high[at] = line->high[at - 1];
    }
    line->x[at] = x, line->y[at] = y, line->low[at] = low, line->high[at] = high;
}

static void
add_cell(series_set *set, const study_cell *c, double x, study_metric metric)
{
    double values[STUDY_RUNS_MAX];
    const size_t n = study_values(c, metric, values);
    if (n == 0) return;
    const double median = compare_median(values, n); /* sorts them */
    add_point(series_of(set, c), x, median, values[0], values[n - 1]);
}

static size_t
longest(const series_set *set)
{
    size_t most = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (set->lines[i].count > most) most = set->lines[i].count;
    }
    return most;
}

/* A mode with a single point is no line: it would only crowd the legend. */
static void
drop_points(series_set *set)
{
    size_t kept = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (set->lines[i].count > 1) set->lines[kept++] = set->lines[i];
    }
    set->count = kept;
}

static void
draw_set(const series_set *set, plot_panel panel, bool spread, FILE *to)
{
    for (size_t i = 0; i < set->count && i < PLOT_LINES_MAX; i++) {
        const series *line = &set->lines[i];
        panel.lines[panel.line_count++] = (plot_line){.name = line->name,
                                                      .x = line->x,
                                                      .y = line->y,
                                                      .low = spread ? line->low : NULL,
                                                      .high = spread ? line->high : NULL,
                                                      .count = line->count};
    }
    fputs("<div class=\"chart\">", to);
    plot_write_sized(NULL, STUDY_CHART, &panel, 1, to);
    fputs("</div>\n", to);
}

/* The value that most cells have of the limit that is held. */
static unsigned
usual(const study *s, const char *load, bool seqs)
{
    unsigned best = 0;
    size_t most = 0;
    for (size_t i = 0; i < s->count; i++) {
        if (!is_plain(&s->cells[i], load)) continue;
        const unsigned v = seqs ? s->cells[i].seqs : s->cells[i].tokens;
        size_t n = 0;
        for (size_t j = 0; j < s->count; j++) {
            n +=
                is_plain(&s->cells[j], load) && (seqs ? s->cells[j].seqs : s->cells[j].tokens) == v;
        }
        if (n > most) most = n, best = v;
    }
    return best;
}

static void
draw_limit(const study *s, const char *load, bool over_seqs, FILE *to)
{
    const unsigned held = usual(s, load, !over_seqs);
    char caption[160];
    bool open = false;
    snprintf(caption, sizeof caption,
             over_seqs ? "Against MAX_SEQS, at BATCH_TOKENS %u, load %s"
                       : "Against BATCH_TOKENS, at MAX_SEQS %u, load %s",
             held, load);
    for (int m = 0; m < STUDY_METRICS; m++) {
        series_set set = {.count = 0};
        for (size_t i = 0; i < s->count; i++) {
            const study_cell *c = &s->cells[i];
            if (!is_plain(c, load) || (over_seqs ? c->tokens : c->seqs) != held) continue;
            add_cell(&set, c, over_seqs ? c->seqs : c->tokens, (study_metric)m);
        }
        drop_points(&set);
        if (longest(&set) < 2) continue;
        char title[96];
        snprintf(title, sizeof title, "%s (%s)", study_metrics[m].words, study_metrics[m].unit);
        if (!open) study_open_figure(over_seqs ? "max-seqs" : "batch-tokens", caption, to);
        if (!open) fputs("<div class=\"charts\">\n", to);
        open = true;
        draw_set(&set,
                 (plot_panel){.title = title,
                              .x_label = over_seqs ? "MAX_SEQS (sequences of the cell)"
                                                   : "BATCH_TOKENS (tokens of a step)",
                              .y_label = study_metrics[m].unit,
                              .log2_x = true},
                 true, to);
    }
    if (!open) return;
    fputs("</div>\n", to);
    study_close_figure(to);
}

void
study_draw_limits(const study *s, FILE *to)
{
    draw_limit(s, "mixed", true, to);
    draw_limit(s, "mixed", false, to);
    draw_limit(s, "prefill", false, to);
}

void
study_draw_curves(const study *s, FILE *to)
{
    static const study_metric latencies[] = {STUDY_TPOT, STUDY_TTFT};
    const unsigned held = usual(s, "mixed", false);
    bool open = false;
    for (size_t l = 0; l < 2; l++) {
        series_set set = {.count = 0};
        for (size_t i = 0; i < s->count; i++) {
            const study_cell *c = &s->cells[i];
            double values[STUDY_RUNS_MAX];
            if (!is_plain(c, "mixed") || c->tokens != held) continue;
            const double throughput = compare_median(values, study_values(c, STUDY_OUTPUT, values));
            if (isfinite(throughput)) add_cell(&set, c, throughput, latencies[l]);
        }
        drop_points(&set);
        if (longest(&set) < 2) continue;
        if (!open)
            study_open_figure("curves", "Throughput against latency; along a line MAX_SEQS grows",
                              to);
        if (!open) fputs("<div class=\"charts\">\n", to);
        open = true;
        char title[96];
        snprintf(title, sizeof title, "%s (ms)", study_metrics[latencies[l]].words);
        draw_set(&set,
                 (plot_panel){
                     .title = title, .x_label = "output throughput (tokens/s)", .y_label = "ms"},
                 true, to);
    }
    if (!open) return;
    fputs("</div>\n", to);
    study_close_figure(to);
}

/* At the point where several worker counts were measured. */
void
study_draw_workers(const study *s, FILE *to)
{
    static const study_metric metrics[] = {STUDY_TPOT, STUDY_OUTPUT};
    const unsigned seqs = usual(s, "mixed", true), tokens = usual(s, "mixed", false);
    bool open = false;
    for (size_t k = 0; k < 2; k++) {
        series_set set = {.count = 0};
        for (size_t i = 0; i < s->count; i++) {
            const study_cell *c = &s->cells[i];
            const bool tp = strcmp(study_get(c, "Model-executor.expert_parallel.mode"), "tp") == 0;
            double values[STUDY_RUNS_MAX];
            const size_t n = study_values(c, metrics[k], values);
            if (!is_plain(c, "mixed") || c->seqs != seqs || c->tokens != tokens || n == 0 ||
                strcmp(study_get(c, "conclave.routers"), "1") != 0)
                continue;
            const double median = compare_median(values, n); /* sorts them */
            add_point(series_named(&set, tp ? "tp" : "ep", tp ? "TP" : "EP"),
                      strtod(study_get(c, "conclave.workers"), NULL), median, values[0],
                      values[n - 1]);
        }
        if (longest(&set) < 3) continue;
        char title[96], caption[96];
        snprintf(title, sizeof title, "%s (%s)", study_metrics[metrics[k]].words,
                 study_metrics[metrics[k]].unit);
        snprintf(caption, sizeof caption, "Against the number of workers, at %u / %u, load mixed",
                 seqs, tokens);
        if (!open) study_open_figure("workers", caption, to);
        if (!open) fputs("<div class=\"charts\">\n", to);
        open = true;
        draw_set(&set,
                 (plot_panel){.title = title,
                              .x_label = "workers",
                              .y_label = study_metrics[metrics[k]].unit},
                 true, to);
    }
    if (!open) return;
    fputs("</div>\n", to);
    study_close_figure(to);
}
