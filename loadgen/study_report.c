#include "loadgen/study_report.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/markup.h"

static const char style[] =
    ":root{color-scheme:light dark;--fg:#1d2126;--bg:#fff;--soft:#5c6570;--line:#d8dde3;"
    "--card:#f6f8fa;--good:#00703c;--link:#0b5cad}\n"
    "@media(prefers-color-scheme:dark){:root{--fg:#e4e7eb;--bg:#16181c;--soft:#9aa4af;"
    "--line:#343a42;--card:#1e2228;--good:#56c596;--link:#7ab8ff}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:16px;background:var(--bg);"
    "color:var(--fg);font:16px/1.5 system-ui,sans-serif}\n"
    "h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .4em;"
    "border-bottom:1px solid var(--line);padding-bottom:.2em}\n"
    "p,li{max-width:75ch}.soft,figcaption,.sub{color:var(--soft)}.sub{margin:.6em 0 .2em;"
    "font-size:.875rem}a{color:var(--link)}\n"
    "figure{margin:1.2em 0}figcaption{font-size:.9rem;margin-bottom:.4em}\n"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));"
    "gap:16px}.chart svg{width:100%;height:auto;max-width:520px;display:block}\n"
    ".wide{overflow-x:auto}.wide svg{min-width:720px;width:100%;height:auto}\n"
    ".tables{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;"
    "font-variant-numeric:tabular-nums;white-space:nowrap}\n"
    "th,td{padding:.3em .7em;border-bottom:1px solid var(--line);text-align:right}"
    "th:first-child,td:first-child,.l{text-align:left}th{color:var(--soft);font-weight:600}\n"
    ".different{color:var(--good);font-weight:600}.no{color:var(--soft)}\n"
    ".legend span{white-space:nowrap;margin-right:.9em;font-size:.875rem}"
    ".legend svg{background:none;vertical-align:-1px}\n"
    "nav{display:flex;flex-wrap:wrap;gap:.2em 1em}details{margin:.6em 0}summary{cursor:pointer}\n"
    ".heat{fill:#d55e00;stroke:var(--line);stroke-width:.5}.cell{font-size:11px}\n"
    ".t-attention{fill:#0072b2}.t-gate{fill:#cc79a7}.t-dispatch{fill:#e69f00}"
    ".t-wait{fill:#b9c0c8}.t-combine{fill:#56b4e9}.t-experts{fill:#009e73}.t-other{fill:#7d6b5d}\n";

static const char *const axis_words[STUDY_AXES] = {
    "Mode", "EPLB: off against on",
    "Load: balanced against skewed (other prompts: see tokens in and out)",
    "MAX_SEQS: smallest against largest", "BATCH_TOKENS: smallest against largest"};

/* ---- numbers ---- */

static void
put_number(double v, FILE *to)
{
    if (!isfinite(v))
        fputs("&ndash;", to);
    else if (fabs(v) >= 1000)
        fprintf(to, "%.0f", v);
    else
        fprintf(to, "%.3g", v);
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
    put_number(median, to);
    fputs("</a> <span class=\"soft\">", to);
    put_number(values[0], to);
    fputs("&ndash;", to);
    put_number(values[n - 1], to);
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

static void
put_share(double share, FILE *to)
{
    if (isfinite(share))
        fprintf(to, "<td>%.0f %%</td>", 100 * share);
    else
        fputs("<td>&ndash;</td>", to);
}

/* ---- parts of the page ---- */

/* The cell's name, as an address of a file in its folder. */
static void
put_cell_name(const study_cell *c, const char *file, FILE *to)
{
    char name[256];
    study_describe(c, name, sizeof name);
    fputs("<td class=\"l\"><a href=\"", to);
    markup_address(c->folder, to);
    fprintf(to, "/%s\">", file);
    markup_text(name, to);
    fputs("</a></td>", to);
}

static size_t
total_runs(const study *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++) {
        n += s->cells[i].run_count;
    }
    return n;
}

static void
put_head(const study *s, FILE *to)
{
    const study_card *card = &s->cells[0].card;
    size_t late = 0, bad = 0, skipped = 0;
    for (size_t i = 0; i < s->count; i++) {
        bad += s->cells[i].bad_runs;
        skipped += s->cells[i].run_count == 0 && s->cells[i].skipped[0] != '\0';
        for (size_t r = 0; r < s->cells[i].run_count; r++) {
            late += s->cells[i].runs[r].client_late;
        }
    }
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
          "<link rel=\"icon\" href=\"data:,\">\n<title>Study: ",
          to);
    markup_text(card_get(card, "workload.model.model_family"), to);
    fprintf(to, "</title>\n<style>%s</style></head>\n<body>\n<h1>Parallelism study: ", style);
    markup_text(card_get(card, "workload.model.model_family"), to);
    fputs("</h1>\n<p class=\"soft\">", to);
    markup_text(card_get(card, "workload.hardware.xpu_spec.model"), to);
    fprintf(to, ", %s CPUs, kernels %s; conclave ",
            card_get(card, "workload.hardware.xpu_spec.total_count"),
            card_get(card, "conclave.kernel_tier"));
    markup_text(card_get(card, "conclave.build"), to);
    fprintf(to, ". %zu cells, %zu runs, %zu cells skipped.</p>\n", s->count, total_runs(s),
            skipped);
    if (bad > 0)
        fprintf(to, "<p><strong>%zu runs had failed requests and are not counted.</strong></p>\n",
                bad);
    if (late > 0)
        fprintf(to,
                "<p>In %zu runs the load generator was late (its p99 lag was above 10 ms): it "
                "shares the machine with the fleet. Latencies count from the sending, so they are "
                "understated by up to that lag; throughputs are not touched.</p>\n",
                late);
    fputs("<nav><a href=\"#found\">Found</a><a href=\"#pictures\">Pictures</a><a "
          "href=\"#traces\">Inside a step</a><a href=\"#cells\">All cells</a><a "
          "href=\"#method\">Method</a></nav>\n",
          to);
}

static void
put_sentence(const study_pair *pair, int m, FILE *to)
{
    char a[256], b[256];
    const comparison *c = &pair->of[m];
    study_describe(pair->a, a, sizeof a);
    study_describe(pair->b, b, sizeof b);
    fprintf(to, "<li>%s: <strong>", study_metrics[m].words);
    markup_text(b, to);
    fputs("</strong> ", to);
    put_number(c->median_b, to);
    fprintf(to, " %s, ", study_metrics[m].unit);
    markup_text(a, to);
    fputs(" ", to);
    put_number(c->median_a, to);
    fprintf(to, " %s: %.2f times (p = %.2g), %s.</li>\n", study_metrics[m].unit, c->ratio, c->p,
            (c->ratio < 1) == study_metrics[m].lower_is_better ? "better" : "worse");
}

static void
put_found(const study_pair *pairs, size_t count, FILE *to)
{
    size_t by[3] = {0};
    for (size_t i = 0; i < count * STUDY_METRICS; i++) {
        const comparison *c = &pairs[i / STUDY_METRICS].of[i % STUDY_METRICS];
        if (isfinite(c->p)) by[c->verdict]++;
    }
    const size_t tested = by[COMPARE_NOISE] + by[COMPARE_DIFFERENT];
    fputs("<h2 id=\"found\">What differs beyond noise</h2>\n", to);
    if (count == 0) {
        fputs("<p>No two measured cells differ in one thing only.</p>\n", to);
        return;
    }
    if (by[COMPARE_TOO_FEW] > 0)
        fprintf(to,
                "<p><strong>%zu comparisons have too few runs to tell</strong>, whatever their "
                "figures: two or three runs of each cell can't give a p below %.2g. Run with "
                "<code>--repeats 5</code>. The table below shows what was measured.</p>\n",
                by[COMPARE_TOO_FEW], COMPARE_LEVEL);
    if (tested > 0)
        fprintf(to,
                "<p>Of %zu comparisons that could be tested, <strong>%zu differ</strong> (p &le; "
                "%.2g) and <strong>%zu show no difference beyond noise</strong>. By chance alone "
                "about %.0f of so many would be called different.</p>\n",
                tested, by[COMPARE_DIFFERENT], COMPARE_LEVEL, by[COMPARE_NOISE],
                COMPARE_LEVEL * (double)tested);
    fputs("<ul>\n", to);
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].axis > STUDY_BY_EPLB) continue;
        for (int m = 0; m < STUDY_METRICS; m++) {
            if (pairs[i].of[m].verdict == COMPARE_DIFFERENT) put_sentence(&pairs[i], m, to);
        }
    }
    fputs("</ul>\n", to);
}

static void
put_comparison(const comparison *c, FILE *to)
{
    static const struct {
        const char *style, *words;
    } verdicts[] = {[COMPARE_TOO_FEW] = {"no", "too few runs"},
                    [COMPARE_NOISE] = {"no", "no difference beyond noise"},
                    [COMPARE_DIFFERENT] = {"different", "differs"}};
    if (!isfinite(c->p)) {
        fputs("<td>&ndash;</td><td>&ndash;</td>", to);
        return;
    }
    fprintf(to, "<td>%.3f</td><td class=\"l %s\">%s <span class=\"soft\">p %.2g</span></td>",
            c->ratio, verdicts[c->verdict].style, verdicts[c->verdict].words, c->p);
}

static void
put_pairs(const study_pair *pairs, size_t count, FILE *to)
{
    if (count == 0) return;
    fputs("<details open><summary>All comparisons: the second over the first (ratio of medians), "
          "and whether that is beyond noise</summary>\n<div class=\"tables\"><table>\n<tr><th>first"
          "</th><th class=\"l\">second</th>",
          to);
    for (int m = 0; m < STUDY_METRICS; m++) {
        fprintf(to, "<th colspan=\"2\" class=\"l\">%s</th>", study_metrics[m].words);
    }
    fputs("</tr>\n", to);
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || pairs[i].axis != pairs[i - 1].axis)
            fprintf(to, "<tr><th colspan=\"10\">%s</th></tr>\n", axis_words[pairs[i].axis]);
        fputs("<tr>", to);
        put_cell_name(pairs[i].a, "card.yaml", to);
        put_cell_name(pairs[i].b, "card.yaml", to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            put_comparison(&pairs[i].of[m], to);
        }
        fputs("</tr>\n", to);
    }
    fputs("</table></div></details>\n", to);
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
    put_share(seqs, to);
    put_share(tokens, to);
    const bool by_seqs = seqs >= 0.05, by_tokens = tokens >= 0.05;
    fprintf(to, "<td class=\"l\">%s</td>",
            !isfinite(seqs)        ? "not known"
            : by_seqs && by_tokens ? "both"
            : by_seqs              ? "MAX_SEQS"
            : by_tokens            ? "BATCH_TOKENS"
                                   : "<span class=\"no\">neither</span>");
}

static void
put_cells(const study *s, FILE *to)
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
        put_cell_name(c, "card.yaml", to);
        put_runs(c, to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            put_metric(c, (study_metric)m, to);
        }
        fputs("<td>", to);
        put_number(mean_of(c, offsetof(study_run, tokens_in)), to);
        fputs(", ", to);
        put_number(mean_of(c, offsetof(study_run, tokens_out)), to);
        fputs("</td>", to);
        put_binding(c, to);
        fputs("</tr>\n", to);
    }
    fputs("</table></div>\n", to);
}

/* Did balancing act?  Of the cells that are there to show it. */
static void
put_eplb(const study *s, FILE *to)
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
            fputs("<h2 id=\"eplb\">Did EPLB act?</h2>\n<p>Means over the runs, from the server's "
                  "counters and its own balancedness before and after a run.</p>\n<div "
                  "class=\"tables\"><table><tr><th>cell</th><th>EPLB</th><th>placements "
                  "adopted</th><th>experts moved</th><th>balancedness before</th><th>after</th>"
                  "</tr>\n",
                  to);
        open = true;
        fputs("<tr>", to);
        put_cell_name(c, "server.sh", to);
        fprintf(to, "<td>%s</td>", on ? "on" : "off");
        const size_t columns[] = {offsetof(study_run, placements), offsetof(study_run, moved),
                                  offsetof(study_run, balance_before),
                                  offsetof(study_run, balance_after)};
        for (size_t k = 0; k < sizeof columns / sizeof columns[0]; k++) {
            fputs("<td>", to);
            put_number(mean_of(c, columns[k]), to);
            fputs("</td>", to);
        }
        fputs("</tr>\n", to);
    }
    if (open) fputs("</table></div>\n", to);
}

static void
put_skipped(const study *s, FILE *to)
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
        put_cell_name(c, "card.yaml", to);
        fputs("<td class=\"l\">", to);
        markup_text(c->skipped[0] ? c->skipped : "not measured yet", to);
        fputs("</td></tr>\n", to);
    }
    if (open) fputs("</table></div></details>\n", to);
}

static void
put_trace_table(const study *s, FILE *to)
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
        put_cell_name(c, "traces/summary.json", to);
        for (size_t k = 0; k < n; k++) {
            const cJSON *item = cJSON_GetObjectItemCaseSensitive(c->trace, columns[k].key);
            const double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;
            if (columns[k].share) {
                put_share(v, to);
            } else {
                fputs("<td>", to);
                put_number(v, to);
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

static void
put_method(FILE *to)
{
    fputs(
        "<h2 id=\"method\">Method</h2>\n<ul>\n"
        "<li>Every cell has a folder with its scripts, its card, the result of every run and the "
        "logs; each can be run by itself.</li>\n"
        "<li>Rounds: each visits every cell once, forwards and backwards in turn. Requests before "
        "a run warm the server and are not measured. Prefix caching is off.</li>\n"
        "<li>The load is closed: as many requests are in flight as the client may have, and more "
        "than MAX_SEQS, so that throughput is capacity. TTFT then holds the time in the "
        "queue.</li>\n"
        "<li>TTFT: first token - sending. TPOT: (last token - first token) / (output tokens - 1). "
        "Both are medians over the requests of a run. Throughputs are of completed requests over "
        "the run, or over its window without ramp and tail where the run has one.</li>\n"
        "<li>MAX_SEQS and BATCH_TOKENS are totals of the cell in every mode.</li>\n"
        "<li>Difference beyond noise: exact permutation test of the difference of means, "
        "two-sided, "
        "at 5 % (above 200,000 deals: so many at random). It assumes no distribution. p values are "
        "not corrected for the number of comparisons; the text says how many to expect by chance."
        "</li>\n"
        "<li>A run with a failed or empty request is not counted.</li>\n</ul>\n</body></html>\n",
        to);
}

moe_err
study_write_report(const study *s, FILE *to, errbuf *eb)
{
    study_pair *pairs = calloc(STUDY_PAIRS_MAX, sizeof *pairs);
    if (pairs == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    const size_t count = study_find_pairs(s, pairs);
    put_head(s, to);
    put_found(pairs, count, to);
    put_pairs(pairs, count, to);
    free(pairs);
    fputs("<h2 id=\"pictures\">Pictures</h2>\n<p class=\"soft\">Points are medians, bars the range "
          "of the runs.</p>\n",
          to);
    study_draw_limits(s, to);
    study_draw_curves(s, to);
    fputs("<h2 id=\"traces\">Inside a step</h2>\n", to);
    put_trace_table(s, to);
    study_draw_timelines(s, to);
    study_draw_heat(s, to);
    study_draw_balance(s, to);
    put_cells(s, to);
    put_eplb(s, to);
    put_skipped(s, to);
    put_method(to);
    return ferror(to) ? err_set(eb, MOE_EIO, "the report can't be written") : MOE_OK;
}
