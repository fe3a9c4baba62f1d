/* The tables of a study's report. */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/markup.h"
#include "loadgen/study_report_impl.h"

#define BINDING_SHARE_MIN                                                                          \
    0.05 /* of the steps: a limit that keeps less waiting can't have an effect */

/* ---- numbers ---- */

void
study_put_number(double v, FILE *to)
{
    if (!isfinite(v))
        fputs("&ndash;", to);
    else if (fabs(v) >= 1000)
        fprintf(to, "%.0f", v);
    else
        fprintf(to, "%.3g", v);
}

void
study_put_share(double share, FILE *to)
{
    if (isfinite(share))
        fprintf(to, "<td>%.0f %%</td>", 100 * share);
    else
        fputs("<td>&ndash;</td>", to);
}

/* The cell's name, as an address of a file in its folder. */
void
study_put_cell_name(const study_cell *c, const char *file, FILE *to)
{
    char name[256];
    study_describe(c, name, sizeof name);
    fputs("<td class=\"l\"><a href=\"", to);
    markup_address(c->folder, to);
    fprintf(to, "/%s\">", file);
    markup_text(name, to);
    fputs("</a></td>", to);
}

/* The median, linked to the JSON of the run nearest to it, and the range of all runs. */
static void
put_metric(const study_cell *c, study_metric metric, FILE *to)
{
    double values[STUDY_RUNS_MAX];
    const size_t n = study_values(c, metric, values);
    if (n == 0) {
        fputs("<td>&ndash;</td>", to);
        return;
    }
    const double median = compare_median(values, n);
    const study_run *nearest = &c->runs[0];
    for (size_t i = 0; i < c->run_count; i++) {
        if (fabs(c->runs[i].values[metric] - median) < fabs(nearest->values[metric] - median))
            nearest = &c->runs[i];
    }
    fputs("<td><a href=\"", to);
    markup_address(c->folder, to);
    fprintf(to, "/results_json/r%u.json\">", nearest->round);
    study_put_number(median, to);
    fputs("</a> <span class=\"soft\">", to);
    study_put_number(values[0], to);
    fputs("&ndash;", to);
    study_put_number(values[n - 1], to);
    fputs("</span></td>", to);
}

static void
put_runs(const study_cell *c, FILE *to)
{
    fputs("<td class=\"l\">", to);
    for (size_t i = 0; i < c->run_count; i++) {
        fputs(i ? " <a href=\"" : "<a href=\"", to);
        markup_address(c->folder, to);
        fprintf(to, "/results_json/r%u.json\">%u</a>", c->runs[i].round, c->runs[i].round);
    }
    fputs("</td>", to);
}

/* The mean over the runs of the double at this place of a run. */
static double
mean_of(const study_cell *c, size_t offset)
{
    double sum = 0;
    for (size_t i = 0; i < c->run_count; i++) {
        sum += *(const double *)(const void *)((const char *)&c->runs[i] + offset);
    }
    return sum / (double)c->run_count;
}

/* Which of the two limits kept anything waiting. */
static void
put_binding(const study_cell *c, FILE *to)
{
    const double seqs = study_bound_share(c, study_bound_seqs);
    const double tokens = study_bound_share(c, study_bound_tokens);
    study_put_share(seqs, to);
    study_put_share(tokens, to);
    const bool by_seqs = seqs >= BINDING_SHARE_MIN, by_tokens = tokens >= BINDING_SHARE_MIN;
    fprintf(to, "<td class=\"l\">%s</td>",
            !isfinite(seqs)        ? "not known"
            : by_seqs && by_tokens ? "both"
            : by_seqs              ? "MAX_SEQS"
            : by_tokens            ? "BATCH_TOKENS"
                                   : "<span class=\"no\">neither</span>");
}

void
study_put_cells(const study *s, FILE *to)
{
    fputs("<h2 id=\"cells\">All cells</h2>\n<p>Median of the runs, with their range; each median "
          "links to the result of the run nearest to it, each name to the cell's card, each run to "
          "its result. A limit "
          "<em>binds</em> where the scheduler's counters say that it kept something waiting in at "
          "least 5 % of the steps; where it does not, changing it can't have an effect.</p>\n"
          "<div class=\"tables\"><table>\n<tr><th>cell</th><th>runs</th>",
          to);
    for (int m = 0; m < STUDY_METRICS; m++) {
        fprintf(to, "<th>%s (%s)</th>", study_metrics[m].words, study_metrics[m].unit);
    }
    fputs("<th>tokens in, out</th><th>limited by seqs</th><th>by tokens</th><th "
          "class=\"l\">binds</th></tr>\n",
          to);
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        if (c->run_count == 0) continue;
        fputs("<tr>", to);
        study_put_cell_name(c, "card.yaml", to);
        put_runs(c, to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            put_metric(c, (study_metric)m, to);
        }
        fputs("<td>", to);
        study_put_number(mean_of(c, offsetof(study_run, tokens_in)), to);
        fputs(", ", to);
        study_put_number(mean_of(c, offsetof(study_run, tokens_out)), to);
        fputs("</td>", to);
        put_binding(c, to);
        fputs("</tr>\n", to);
    }
    fputs("</table></div>\n", to);
}

/* A figure of the trace's summary; NaN without. */
static double
traced(const study_cell *c, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(c->trace, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static double
card_number(const study_cell *c, const char *path)
{
    return strtod(study_get(c, path), NULL);
}

/* What perfect balance could save of a step, and whether it can at all. */
static void
put_prospect(const study_cell *c, FILE *to)
{
    const double most = traced(c, "expert_fraction") * (1 - traced(c, "balancedness"));
    const bool share = card_number(c, "conclave.workers") * card_number(c, "conclave.threads") >
                       card_number(c, "workload.hardware.xpu_spec.total_count");
    study_put_share(most, to);
    fprintf(to, "<td class=\"l\">%s</td>",
            share                      ? "<span class=\"no\">no: workers share cores</span>"
            : !isfinite(most)          ? "not known"
            : most < BINDING_SHARE_MIN ? "<span class=\"no\">hardly: too little to win</span>"
                                       : "yes");
}

/* Did balancing act?  Of the cells that are there to show it. */
void
study_put_eplb(const study *s, FILE *to)
{
    bool open = false;
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        const bool on = strcmp(study_get(c, "Model-executor.expert_parallel.eplb"), "on") == 0;
        const char *load = study_get(c, "conclave.load");
        if (c->run_count == 0 ||
            (!on && strcmp(load, "balanced") != 0 && strcmp(load, "skewed") != 0))
            continue;
        if (!open)
            fputs(
                "<h2 id=\"eplb\">Did EPLB act?</h2>\n<p>Means over the runs, from the server's "
                "counters and its own balancedness before and after a run. Most to win: the share "
                "of a traced step in which the router waits for experts' products x (1 - "
                "balancedness). Where workers have fewer cores than threads, a full one takes "
                "nothing from an idle one, and balance can't act.</p>\n<div class=\"tables\">"
                "<table><tr><th>cell</th><th>EPLB</th><th>placements adopted</th><th>experts "
                "moved</th><th>balancedness before</th><th>after</th><th>most to win</th><th "
                "class=\"l\">can act</th></tr>\n",
                to);
        open = true;
        fputs("<tr>", to);
        study_put_cell_name(c, "server.sh", to);
        fprintf(to, "<td>%s</td>", on ? "on" : "off");
        const size_t columns[] = {offsetof(study_run, placements), offsetof(study_run, moved),
                                  offsetof(study_run, balance_before),
                                  offsetof(study_run, balance_after)};
        for (size_t k = 0; k < sizeof columns / sizeof columns[0]; k++) {
            fputs("<td>", to);
            study_put_number(mean_of(c, columns[k]), to);
            fputs("</td>", to);
        }
        put_prospect(c, to);
        fputs("</tr>\n", to);
    }
    if (open) fputs("</table></div>\n", to);
}

void
study_put_skipped(const study *s, FILE *to)
{
    bool open = false;
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        if (c->run_count > 0) continue;
        if (!open)
            fputs("<details open><summary>Cells without runs</summary><div class=\"tables\"><table>"
                  "<tr><th>cell</th><th class=\"l\">why</th></tr>\n",
                  to);
        open = true;
        fputs("<tr>", to);
        study_put_cell_name(c, "card.yaml", to);
        fputs("<td class=\"l\">", to);
        markup_text(c->skipped[0] ? c->skipped : "not measured yet", to);
        fputs("</td></tr>\n", to);
    }
    if (open) fputs("</table></div></details>\n", to);
}

void
study_put_trace_table(const study *s, FILE *to)
{
    static const struct {
        const char *key, *words;
        bool share;
    } columns[] = {{"median_step_us", "median step (us)", false},
                   {"attention_fraction", "attention", true},
                   {"moe_fraction", "MoE", true},
                   {"communication_fraction", "communication", true},
                   {"expert_fraction", "waiting for experts", true},
                   {"overlap", "overlap", true},
                   {"straggler_fraction", "straggler", true},
                   {"balancedness", "balancedness", false},
                   {"bytes_per_step", "bytes a step", false}};
    const size_t n = sizeof columns / sizeof columns[0];
    bool open = false;
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        if (c->trace == NULL) continue;
        if (!open) {
            fputs("<div class=\"tables\"><table>\n<tr><th>cell</th>", to);
            for (size_t k = 0; k < n; k++) {
                fprintf(to, "<th>%s</th>", columns[k].words);
            }
            fputs("</tr>\n", to);
        }
        open = true;
        fputs("<tr>", to);
        study_put_cell_name(c, "traces/summary.json", to);
        for (size_t k = 0; k < n; k++) {
            const double v = traced(c, columns[k].key);
            if (columns[k].share) {
                study_put_share(v, to);
            } else {
                fputs("<td>", to);
                study_put_number(v, to);
                fputs("</td>", to);
            }
        }
        fputs("</tr>\n", to);
    }
    if (open)
        fputs("</table></div>\n<p class=\"soft\">Of a run with tracing, apart from the measured "
              "ones. Communication: sending, and waiting while the last worker was not computing. "
              "Overlap: the part of that worker's computing that the router's own work hid. "
              "Straggler: the last answer behind the mean of all.</p>\n",
              to);
    else
        fputs("<p>No cell was traced.</p>\n", to);
}
