#include "loadgen/study_report_impl.h"

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
    ".effects text{fill:var(--fg);font:12px system-ui,sans-serif}.effects .head{font-weight:600;"
    "font-size:13px}.effects .mid{text-anchor:middle;fill:var(--soft)}.effects "
    ".end{text-anchor:end}"
    ".effects path{fill:none;stroke-width:2}.effects .grid{stroke:var(--line);stroke-width:1}"
    ".effects .one{stroke:var(--soft);stroke-width:1}\n"
    ".e-differs path,.e-differs circle{stroke:var(--link)}.e-differs circle{fill:var(--link)}"
    ".e-noise path,.e-noise circle{stroke:var(--soft)}.e-noise circle{fill:var(--soft)}"
    ".e-few path,.e-few circle{stroke:var(--soft)}.e-few circle{fill:var(--bg)}"
    "span.e-differs{color:var(--link)}\n"
    ".heat{fill:#d55e00;stroke:var(--line);stroke-width:.5}.cell{font-size:11px}\n"
    ".t-attention{fill:#0072b2}.t-gate{fill:#cc79a7}.t-dispatch{fill:#e69f00}"
    ".t-wait{fill:#b9c0c8}.t-combine{fill:#56b4e9}.t-experts{fill:#009e73}.t-other{fill:#7d6b5d}\n";

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
        "<li>Size of a difference: the ratio of two cells in each round, which share prompts and "
        "the hour; their geometric mean, with Student's 95 % interval of the logarithms.</li>\n"
        "<li>Beyond noise: an exact permutation test, two-sided, that assumes no distribution. Up "
        "to five common rounds all runs of two cells are dealt anew (difference of means); from "
        "six "
        "on the two cells are swapped within rounds; over all settings, within settings (a setting "
        "counts once, with the mean of its rounds). Above 200,000 deals so many are drawn at "
        "random. All p of single cells are adjusted together, all p over settings likewise "
        "(Benjamini and Hochberg's q, a false discovery rate); &ldquo;differs&rdquo; is q &le; "
        "0.05.</li>\n"
        "<li>A run with a failed or empty request is not counted.</li>\n</ul>\n</body></html>\n",
        to);
}

moe_err
study_write_report(const study *s, FILE *to, errbuf *eb)
{
    study_pair *pairs = calloc(STUDY_PAIRS_MAX, sizeof *pairs);
    study_group *groups = calloc(STUDY_GROUPS_MAX, sizeof *groups);
    moe_err err = pairs && groups ? MOE_OK : err_set(eb, MOE_ENOMEM, "out of memory");
    if (!err) {
        const size_t count = study_find_pairs(s, pairs);
        const size_t group_count = study_find_groups(pairs, count, groups);
        err = study_judge(pairs, count, groups, group_count, eb);
        if (!err) put_head(s, to);
        if (!err) study_put_found(s, pairs, count, groups, group_count, to);
    }
    free(pairs);
    free(groups);
    if (err) return err;
    fputs("<h2 id=\"pictures\">Pictures</h2>\n<p class=\"soft\">Points are medians, bars the range "
          "of the runs.</p>\n",
          to);
    study_draw_limits(s, to);
    study_draw_curves(s, to);
    study_draw_workers(s, to);
    fputs("<h2 id=\"traces\">Inside a step</h2>\n", to);
    study_put_trace_table(s, to);
    study_draw_timelines(s, to);
    study_draw_heat(s, to);
    study_draw_balance(s, to);
    study_put_cells(s, to);
    study_put_eplb(s, to);
    study_put_skipped(s, to);
    put_method(to);
    return ferror(to) ? err_set(eb, MOE_EIO, "the report can't be written") : MOE_OK;
}
