/* What a study found: the first part of its page. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/markup.h"
#include "loadgen/study_report_impl.h"

#define NAME_BYTES 200
#define ROWS_MAX 48 /* of the picture */
#define ROW_HEIGHT 34
#define LEFT 8.0
#define RIGHT 412.0
#define WIDTH 420

static const char *const axis_words[STUDY_AXES] = {
    "Mode",
    "EPLB: off against on",
    "Load: balanced against skewed (other prompts: see tokens in and out)",
    "MAX_SEQS: smallest against largest",
    "BATCH_TOKENS: smallest against largest",
    "Workers: fewest against more",
    "Options: without against with"};

typedef struct found {
    const study_pair *pairs;
    size_t pair_count;
    const study_group *groups;
    size_t group_count;
} found;

/* ---- names ---- */

static void
name_group(const study_group *g, char *out)
{
    const char *what = g->axis == STUDY_BY_SEQS     ? "MAX_SEQS "
                       : g->axis == STUDY_BY_TOKENS ? "BATCH_TOKENS "
                                                    : "";
    snprintf(out, NAME_BYTES, "%s%s instead of %s: %s, %zu settings", what, g->to, g->from, g->load,
             g->pairs);
}

/* What moves first, then what is held: "EPLB on instead of off: EP4, 32 / 8192, skewed". */
static void
name_pair(const study_pair *pair, char *out)
{
    char a[96], b[96];
    const study_name from = study_mode_name(pair->a), to = study_mode_name(pair->b);
    study_describe(pair->a, a, sizeof a);
    study_describe(pair->b, b, sizeof b);
    const char *held = a + strcspn(a, ",");
    switch (pair->axis) {
    case STUDY_BY_MODE:
    case STUDY_BY_WORKERS:
        snprintf(out, NAME_BYTES, "%s instead of %s: %s", to.text, from.text,
                 held + strspn(held, ", "));
        return;
    case STUDY_BY_EPLB: snprintf(out, NAME_BYTES, "EPLB on instead of off: %s", a); return;
    case STUDY_BY_OPTIONS:
        snprintf(out, NAME_BYTES, "%s instead of %s: %s", study_get(pair->b, "conclave.options"),
                 strncmp(study_get(pair->b, "conclave.options"), "dtype", 5) == 0
                     ? study_get(pair->a, "workload.model.precision")
                     : "none",
                 a);
        return;
    default: snprintf(out, NAME_BYTES, "%s instead of %s", b, a);
    }
}

/* Said one by one, and drawn: what the study is about.  The rest is in the table. */
static bool
is_told(const found *f, const study_pair *pair)
{
    if (pair->axis == STUDY_BY_EPLB || pair->axis == STUDY_BY_OPTIONS) return true;
    if (pair->axis == STUDY_BY_WORKERS) return pair->of[STUDY_TPOT].verdict == COMPARE_DIFFERENT;
    if (pair->axis != STUDY_BY_MODE) return f->group_count == 0 && pair->axis == STUDY_BY_SEQS;
    for (size_t i = 0; i < f->group_count; i++) { /* the group says it already */
        if (f->groups[i].axis == STUDY_BY_MODE &&
            strcmp(f->groups[i].load, study_get(pair->a, "conclave.load")) == 0)
            return false;
    }
    return true;
}

/* ---- sentences ---- */

static void
put_interval(const comparison *c, FILE *to)
{
    if (isfinite(c->low)) fprintf(to, " (95 %% %.3g to %.3g)", c->low, c->high);
}

/* One difference in all metrics that have this verdict. */
static void
put_item(const char *name, const comparison of[STUDY_METRICS], compare_verdict verdict, FILE *to)
{
    bool open = false;
    for (int m = 0; m < STUDY_METRICS; m++) {
        const comparison *c = &of[m];
        if (c->verdict != verdict || !isfinite(c->p)) continue;
        if (!open) {
            fputs("<li><strong>", to);
            markup_text(name, to);
            fputs("</strong>: ", to);
        } else {
            fputs("; ", to);
        }
        open = true;
        fprintf(to, "%s &times; %.3g", study_metrics[m].words, c->effect);
        put_interval(c, to);
        if (verdict != COMPARE_DIFFERENT) continue;
        fprintf(to, ", %s, q = %.2g",
                (c->effect < 1) == study_metrics[m].lower_is_better ? "better" : "worse", c->q);
    }
    if (open) fputs("</li>\n", to);
}

static void
put_list(const found *f, compare_verdict verdict, FILE *to)
{
    char name[NAME_BYTES];
    fputs("<ul>\n", to);
    for (size_t i = 0; i < f->group_count; i++) {
        name_group(&f->groups[i], name);
        put_item(name, f->groups[i].of, verdict, to);
    }
    for (size_t i = 0; i < f->pair_count; i++) {
        if (!is_told(f, &f->pairs[i])) continue;
        name_pair(&f->pairs[i], name);
        put_item(name, f->pairs[i].of, verdict, to);
    }
    fputs("</ul>\n", to);
}

static void
put_counts(const found *f, size_t by[3], FILE *to)
{
    const size_t tested = by[COMPARE_NOISE] + by[COMPARE_DIFFERENT];
    if (by[COMPARE_TOO_FEW] > 0)
        fprintf(to,
                "<p><strong>%zu comparisons of single cells have too few runs to tell</strong>, "
                "whatever their figures: with two or three runs of each cell no p can be below "
                "%.2g. Run with <code>--repeats 5</code>%s.</p>\n",
                by[COMPARE_TOO_FEW], COMPARE_LEVEL,
                f->group_count ? ", or read what the cells say together" : "");
    if (tested > 0)
        fprintf(to,
                "<p>Of %zu comparisons of single cells that could be tested, <strong>%zu "
                "differ</strong> and <strong>%zu show no difference beyond noise</strong> (q &le; "
                "%.2g: one in twenty of those called different is expected to be wrong).</p>\n",
                tested, by[COMPARE_DIFFERENT], by[COMPARE_NOISE], COMPARE_LEVEL);
}

static void
put_floor(const study *s, FILE *to)
{
    bool open = false;
    for (int m = 0; m < STUDY_METRICS; m++) {
        const study_floor noise = study_noise_floor(s, (study_metric)m);
        if (noise.pairs == 0) continue;
        if (!open)
            fprintf(to,
                    "<p id=\"floor\"><strong>Noise.</strong> %zu pairs of cells differ in a "
                    "BATCH_TOKENS that never bound, so they ran the same schedule. Their medians "
                    "still lie apart by",
                    noise.pairs);
        fprintf(to, "%s %.1f %% (at most %.0f %%) in %s", open ? "," : "", 100 * (noise.median - 1),
                100 * (noise.most - 1), study_metrics[m].words);
        open = true;
    }
    if (open) fputs(". An effect of that size in one pair of cells means nothing.</p>\n", to);
}

/* ---- the picture ---- */

typedef struct row {
    char name[NAME_BYTES];
    const comparison *of;
} row;

static size_t
list_rows(const found *f, row *out)
{
    size_t n = 0;
    for (size_t i = 0; i < f->group_count && n < ROWS_MAX; i++) {
        name_group(&f->groups[i], out[n].name);
        out[n++].of = f->groups[i].of;
    }
    for (size_t i = 0; i < f->pair_count && n < ROWS_MAX; i++) {
        if (!is_told(f, &f->pairs[i])) continue;
        name_pair(&f->pairs[i], out[n].name);
        out[n++].of = f->pairs[i].of;
    }
    return n;
}

/* Where a ratio is drawn: log scale, `span` = log of the largest that has a place of its own. */
static double
place(double ratio, double span)
{
    const double at = fmax(fmin(log(ratio) / span, 1), -1);
    return (LEFT + RIGHT) / 2 + at * (RIGHT - LEFT) / 2;
}

static void
draw_row(const comparison *c, const char *name, double y, double span, FILE *to)
{
    static const char *const styles[] = {[COMPARE_TOO_FEW] = "e-few",
                                         [COMPARE_NOISE] = "e-noise",
                                         [COMPARE_DIFFERENT] = "e-differs"};
    fprintf(to, "<g class=\"%s\"><text x=\"%.0f\" y=\"%.1f\">", styles[c->verdict], LEFT, y + 12);
    markup_text(name, to);
    fputs("</text>", to);
    if (isfinite(c->effect)) {
        fprintf(to, "<text class=\"end\" x=\"%.0f\" y=\"%.1f\">%.2f</text>", RIGHT, y + 12,
                c->effect);
        if (isfinite(c->low))
            fprintf(to, "<path d=\"M%.1f %.1fH%.1f\"/>", place(c->low, span), y + 22,
                    place(c->high, span));
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>", place(c->effect, span),
                y + 22);
        fprintf(to, "%.3f", c->effect);
        put_interval(c, to);
        fputs("</title></circle>", to);
    }
    fputs("</g>\n", to);
}

static void
draw_effects(const row *rows, size_t count, int m, FILE *to)
{
    static const double ticks[] = {0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4, 2, 5, 10};
    double span = log(1.1);
    for (size_t i = 0; i < count; i++) {
        const comparison *c = &rows[i].of[m];
        if (isfinite(c->effect)) span = fmax(span, 1.15 * fabs(log(c->effect)));
    }
    span = fmin(span, log(2)); /* what is larger lies at the edge: its figure tells */
    const double height = 26 + (double)count * ROW_HEIGHT + 26;
    fprintf(to,
            "<div class=\"chart\"><svg class=\"effects\" viewBox=\"0 0 %d %.0f\" width=\"%d\" "
            "height=\"%.0f\" role=\"img\">\n<text x=\"%.0f\" y=\"14\" class=\"head\">%s: %s is "
            "better</text>\n",
            WIDTH, height, WIDTH, height, LEFT, study_metrics[m].words,
            study_metrics[m].lower_is_better ? "left" : "right");
    double last = -100;
    for (size_t i = 0; i < sizeof ticks / sizeof ticks[0]; i++) {
        if (fabs(log(ticks[i])) > span) continue;
        const double x = place(ticks[i], span);
        if (x - last < 34 && ticks[i] != 1) continue;
        last = x;
        fprintf(to,
                "<path class=\"%s\" d=\"M%.1f 24V%.1f\"/><text class=\"mid\" x=\"%.1f\" "
                "y=\"%.1f\">%g</text>\n",
                ticks[i] == 1 ? "one" : "grid", x, height - 22, x, height - 7, ticks[i]);
    }
    for (size_t i = 0; i < count; i++) {
        draw_row(&rows[i].of[m], rows[i].name, 26 + (double)i * ROW_HEIGHT, span, to);
    }
    fputs("</svg></div>\n", to);
}

static void
put_picture(const found *f, FILE *to)
{
    row *rows = calloc(ROWS_MAX, sizeof *rows);
    const size_t count = rows != NULL ? list_rows(f, rows) : 0;
    if (count > 0) {
        fputs(
            "<figure id=\"effects\">\n<figcaption>Ratios by round with their 95 % intervals: "
            "<span class=\"e-differs\">&#9679; differs</span>, <span class=\"e-noise\">&#9679; no "
            "difference beyond noise</span>, <span class=\"e-few\">&#9675; too few runs to "
            "tell</span></figcaption>\n<div class=\"charts\">\n",
            to);
        draw_effects(rows, count, STUDY_TPOT, to);
        draw_effects(rows, count, STUDY_OUTPUT, to);
        fputs("</div>\n</figure>\n", to);
    }
    free(rows);
}

/* ---- tables ---- */

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
    fprintf(to, "<td>%.3f", isfinite(c->effect) ? c->effect : c->ratio);
    if (isfinite(c->low))
        fprintf(to, " <span class=\"soft\">%.3g&ndash;%.3g</span>", c->low, c->high);
    fprintf(to, "</td><td class=\"l %s\">%s <span class=\"soft\">p %.2g",
            verdicts[c->verdict].style, verdicts[c->verdict].words, c->p);
    if (isfinite(c->q)) fprintf(to, ", q %.2g", c->q);
    fputs("</span></td>", to);
}

static void
open_table(const char *summary, const char *first, FILE *to)
{
    fprintf(to, "<details><summary>%s</summary>\n<div class=\"tables\"><table>\n<tr>%s", summary,
            first);
    for (int m = 0; m < STUDY_METRICS; m++) {
        fprintf(to, "<th colspan=\"2\" class=\"l\">%s</th>", study_metrics[m].words);
    }
    fputs("</tr>\n", to);
}

static void
put_groups(const found *f, FILE *to)
{
    char name[NAME_BYTES];
    if (f->group_count == 0) return;
    open_table("Over all settings: mean effect of the pairs, and the range of single pairs",
               "<th>difference</th>", to);
    for (size_t i = 0; i < f->group_count; i++) {
        const study_group *g = &f->groups[i];
        name_group(g, name);
        fputs("<tr><td class=\"l\">", to);
        markup_text(name, to);
        fputs("</td>", to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            put_comparison(&g->of[m], to);
        }
        fputs("</tr>\n<tr><td class=\"l soft\">range of single pairs</td>", to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            fputs("<td class=\"soft\">", to);
            study_put_number(g->least[m], to);
            fputs("&ndash;", to);
            study_put_number(g->most[m], to);
            fputs("</td><td></td>", to);
        }
        fputs("</tr>\n", to);
    }
    fputs("</table></div></details>\n", to);
}

static void
put_pairs(const found *f, FILE *to)
{
    if (f->pair_count == 0) return;
    open_table("All comparisons of single cells: the second over the first, and whether that is "
               "beyond noise",
               "<th>first</th><th class=\"l\">second</th>", to);
    for (size_t i = 0; i < f->pair_count; i++) {
        const study_pair *pair = &f->pairs[i];
        if (i == 0 || pair->axis != pair[-1].axis)
            fprintf(to, "<tr><th colspan=\"10\">%s</th></tr>\n", axis_words[pair->axis]);
        fputs("<tr>", to);
        study_put_cell_name(pair->a, "card.yaml", to);
        study_put_cell_name(pair->b, "card.yaml", to);
        for (int m = 0; m < STUDY_METRICS; m++) {
            put_comparison(&pair->of[m], to);
        }
        fputs("</tr>\n", to);
    }
    fputs("</table></div></details>\n", to);
}

void
study_put_found(const study *s, const study_pair *pairs, size_t pair_count,
                const study_group *groups, size_t group_count, FILE *to)
{
    const found f = {
        .pairs = pairs, .pair_count = pair_count, .groups = groups, .group_count = group_count};
    size_t by[3] = {0};
    for (size_t i = 0; i < pair_count * STUDY_METRICS; i++) {
        const comparison *c = &pairs[i / STUDY_METRICS].of[i % STUDY_METRICS];
        if (isfinite(c->p)) by[c->verdict]++;
    }
    fputs("<h2 id=\"found\">What differs beyond noise</h2>\n", to);
    if (pair_count == 0) {
        fputs("<p>No two measured cells differ in one thing only.</p>\n", to);
        return;
    }
    put_counts(&f, by, to);
    put_list(&f, COMPARE_DIFFERENT, to);
    put_floor(s, to);
    put_picture(&f, to);
    fputs(
        "<details><summary>No difference beyond noise: what was compared, and how large an effect "
        "could hide in it</summary>\n",
        to);
    put_list(&f, COMPARE_NOISE, to);
    fputs("</details>\n", to);
    put_groups(&f, to);
    put_pairs(&f, to);
}
