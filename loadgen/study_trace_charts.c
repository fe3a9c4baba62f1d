/* The pictures of what was traced: experts' loads, balancedness, and a step's timeline. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "loadgen/markup.h"
#include "loadgen/plot.h"
#include "loadgen/study_report_impl.h"

#define HEAT_CELLS_MAX 4096 /* of one map: larger models show their first layers */
#define MAPS_MAX 6
#define BALANCE_LINES_MAX 4
#define BALANCE_POINTS_MAX 64

/* ---- heat maps ---- */

static double
item_number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

/* A layer's row: each expert's tokens over the mean of its layer. */
static int
draw_layer(const cJSON *layer, int l, double left, double size, FILE *to)
{
    const int count = cJSON_GetArraySize(layer);
    double sum = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, layer) sum += cJSON_IsNumber(item) ? item->valuedouble : 0;
    int e = 0;
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" class=\"end\">%d</text>\n", left - 6,
            24 + (l + 0.65) * size, l);
    cJSON_ArrayForEach(item, layer)
    {
        const double tokens = cJSON_IsNumber(item) ? item->valuedouble : 0;
        const double relative = sum > 0 ? tokens * count / sum : 0;
        fprintf(to,
                "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"heat\" "
                "fill-opacity=\"%.3f\"><title>layer %d, expert %d: %.0f tokens, %.2f of the "
                "mean</title></rect>\n",
                left + e * size, 24 + l * size, size - 1, size - 1, fmin(relative / 2.5, 1), l, e,
                tokens, relative);
        if (size >= 26)
            fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" class=\"mid cell\">%.1f</text>\n",
                    left + (e + 0.5) * size, 24 + (l + 0.65) * size, relative);
        e++;
    }
    return e;
}

static void
draw_map(const study_cell *c, const cJSON *layers, FILE *to)
{
    char title[256];
    study_describe(c, title, sizeof title);
    const int experts = cJSON_GetArraySize(cJSON_GetArrayItem(layers, 0));
    int shown = cJSON_GetArraySize(layers);
    if (experts > 0 && shown > HEAT_CELLS_MAX / experts) shown = HEAT_CELLS_MAX / experts;
    if (experts == 0 || shown == 0) return;
    const double left = 46, size = fmin(44, 360.0 / experts);
    const double height = 24 + shown * size + 24;
    fputs("<div class=\"chart\"><p class=\"sub\">", to);
    markup_text(title, to);
    fprintf(to, "</p><svg viewBox=\"0 0 420 %.0f\" width=\"420\" height=\"%.0f\" role=\"img\">\n",
            height, height);
    for (int e = 0; e < experts && size >= 18; e++) {
        fprintf(to, "<text x=\"%.1f\" y=\"17\" class=\"mid\">%d</text>\n", left + (e + 0.5) * size,
                e);
    }
    int l = 0;
    const cJSON *layer;
    cJSON_ArrayForEach(layer, layers)
    {
        if (l == shown) break;
        draw_layer(layer, l++, left, size, to);
    }
    fprintf(to,
            "<text x=\"%.1f\" y=\"%.1f\" class=\"mid\">expert</text>"
            "<text class=\"mid\" transform=\"translate(13 %.1f) "
            "rotate(-90)\">layer</text></svg></div>\n",
            left + experts * size / 2, height - 6, 24 + shown * size / 2);
}

/* One cell for each load, with EPLB's state: what the gate chose depends on the prompts alone. */
static bool
is_first_of_load(const study *s, size_t i)
{
    for (size_t j = 0; j < i; j++) {
        if (s->cells[j].trace != NULL && strcmp(study_get(&s->cells[j], "conclave.load"),
                                                study_get(&s->cells[i], "conclave.load")) == 0)
            return false;
    }
    return true;
}

void
study_draw_heat(const study *s, FILE *to)
{
    int maps = 0;
    for (size_t i = 0; i < s->count && maps < MAPS_MAX; i++) {
        const cJSON *layers = cJSON_GetObjectItemCaseSensitive(s->cells[i].trace, "expert_tokens");
        if (cJSON_GetArraySize(layers) == 0 || !is_first_of_load(s, i)) continue;
        if (maps++ == 0) {
            study_open_figure("heat",
                              "Tokens of each expert, over the mean of its layer (traced run; "
                              "one map a load, since it is the prompts that choose)",
                              to);
            fputs("<div class=\"charts\">\n", to);
        }
        draw_map(&s->cells[i], layers, to);
    }
    if (maps == 0) return;
    fputs("</div>\n", to);
    study_close_figure(to);
}

/* ---- balancedness ---- */

/* EP cells whose load is there to be (un)balanced; without one, any. */
static bool
shows_balance(const study_cell *c, bool any)
{
    const char *load = study_get(c, "conclave.load");
    const cJSON *points = cJSON_GetObjectItemCaseSensitive(c->trace, "balancedness_series");
    return cJSON_GetArraySize(points) >= 2 &&
           strcmp(study_get(c, "Model-executor.expert_parallel.mode"), "ep") == 0 &&
           strcmp(study_get(c, "conclave.options"), "none") == 0 &&
           (any || strcmp(load, "balanced") == 0 || strcmp(load, "skewed") == 0);
}

void
study_draw_balance(const study *s, FILE *to)
{
    plot_panel panel = {.title = "Balancedness of workers",
                        .x_label = "time in the traced run (s)",
                        .y_label = "mean / most rows"};
    double x[BALANCE_LINES_MAX][BALANCE_POINTS_MAX], y[BALANCE_LINES_MAX][BALANCE_POINTS_MAX];
    char names[BALANCE_LINES_MAX][64];
    bool any = true;
    for (size_t i = 0; i < s->count; i++) {
        any = any && !shows_balance(&s->cells[i], false);
    }
    for (size_t i = 0; i < s->count && panel.line_count < BALANCE_LINES_MAX; i++) {
        const study_cell *c = &s->cells[i];
        if (!shows_balance(c, any)) continue;
        const size_t l = panel.line_count++;
        size_t n = 0;
        const cJSON *item;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(c->trace, "balancedness_series"))
        {
            if (n == BALANCE_POINTS_MAX) break;
            x[l][n] = item_number(item, "seconds");
            y[l][n++] = item_number(item, "balancedness");
        }
        snprintf(names[l], sizeof names[l], "%s%s", study_get(c, "conclave.load"),
                 strcmp(study_get(c, "Model-executor.expert_parallel.eplb"), "on") ? "" : ", EPLB");
        if (any) snprintf(names[l], sizeof names[l], "%s", study_mode_name(c).text);
        panel.lines[l] = (plot_line){.name = names[l], .x = x[l], .y = y[l], .count = n};
    }
    if (panel.line_count == 0) return;
    study_open_figure("balance",
                      "Balancedness over time, EP: mean rows of a worker / rows of the fullest, "
                      "summed over layers; 1 is even",
                      to);
    fputs("<div class=\"charts\"><div class=\"chart\">", to);
    plot_write_sized(NULL, STUDY_CHART, &panel, 1, to);
    fputs("</div></div>\n", to);
    study_close_figure(to);
}

/* ---- a step's timeline ---- */

/* Colours of what the spans are, by the first name that matches. */
static const struct {
    const char *names, *style, *words;
} span_styles[] = {
    {"norm qkv rope_store attention pack project", "t-attention", "attention"},
    {"gate_up down reduce group", "t-experts", "experts"},
    {"ffn_norm gate", "t-gate", "gate"},
    {"dispatch reply", "t-dispatch", "dispatch, reply"},
    {"wait", "t-wait", "wait"},
    {"combine", "t-combine", "combine"},
    {"", "t-other", "other"},
};
#define STYLES (sizeof span_styles / sizeof span_styles[0])

static bool
has_word(const char *words, const char *word)
{
    const size_t n = strlen(word);
    for (const char *at = words; n > 0 && (at = strstr(at, word)) != NULL; at += n) {
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0')) return true;
    }
    return false;
}

static const char *
style_of(const char *name, bool worker)
{
    if (worker && strcmp(name, "pack") == 0) return "t-experts";
    for (size_t i = 0; i + 1 < STYLES; i++) {
        if (has_word(span_styles[i].names, name)) return span_styles[i].style;
    }
    return span_styles[STYLES - 1].style;
}

static void
draw_span(const cJSON *span, double us_per_pixel, FILE *to)
{
    const double process = item_number(span, "process"), start = item_number(span, "start_us");
    const double length = item_number(span, "duration_us");
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(span, "name");
    if (!cJSON_IsString(name) || !(process >= 0 && process < 64) || !isfinite(start + length))
        return;
    fprintf(to, "<rect x=\"%.2f\" y=\"%.0f\" width=\"%.2f\" height=\"17\" class=\"%s\"><title>",
            64 + start / us_per_pixel, 6 + 22 * process, fmax(length / us_per_pixel, 0.3),
            style_of(name->valuestring, process > 0));
    markup_text(name->valuestring, to);
    fprintf(to, ", layer %.0f: %.1f us</title></rect>\n", item_number(span, "layer"), length);
}

static void
draw_timeline(const study_cell *c, const cJSON *spans, FILE *to)
{
    double end = 0, processes = 1;
    const cJSON *span;
    cJSON_ArrayForEach(span, spans)
    {
        const double at = item_number(span, "start_us") + item_number(span, "duration_us");
        if (isfinite(at)) end = fmax(end, at);
        processes = fmax(processes, fmin(item_number(span, "process"), 63) + 1);
    }
    if (!(end > 0)) return;
    char title[256];
    study_describe(c, title, sizeof title);
    const double width = 900, height = 6 + 22 * processes + 24, scale = end / (width - 74);
    fputs("<p class=\"sub\">", to);
    markup_text(title, to);
    fprintf(to,
            ": step %.0f, %.2f ms</p>\n<div class=\"wide\"><svg viewBox=\"0 0 %.0f %.0f\" "
            "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n",
            item_number(c->trace, "timeline_step"), end / 1e3, width, height, width, height);
    for (int p = 0; p < (int)processes; p++) {
        char name[24];
        snprintf(name, sizeof name, p ? "worker %d" : "router", p - 1);
        fprintf(to, "<text x=\"58\" y=\"%d\" class=\"end\">%s</text>\n", 19 + 22 * p, name);
    }
    cJSON_ArrayForEach(span, spans) draw_span(span, scale, to);
    for (int tick = 0; tick <= 4; tick++) {
        const double us = end * tick / 4;
        fprintf(to, "<text x=\"%.1f\" y=\"%.0f\" class=\"mid\">%.2f ms</text>\n",
                fmin(64 + us / scale, width - 26), height - 6, us / 1e3);
    }
    fputs("</svg></div>\n", to);
}

static void
draw_span_legend(FILE *to)
{
    fputs("<p class=\"legend\">", to);
    for (size_t i = 0; i < STYLES; i++) {
        fprintf(to,
                "<span><svg width=\"12\" height=\"12\"><rect width=\"12\" height=\"12\" "
                "class=\"%s\"/></svg> %s</span> ",
                span_styles[i].style, span_styles[i].words);
    }
    fputs("</p>\n", to);
}

static size_t
cells_of_mode(const study *s, const study_cell *c)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++) {
        n += strcmp(study_get(&s->cells[i], "conclave.mode"), study_get(c, "conclave.mode")) == 0;
    }
    return n;
}

/* One of each mode; of a grid, only of the modes that it is about. */
static bool
is_first_of_mode(const study *s, size_t i)
{
    for (size_t j = 0; j < s->count; j++) {
        if (cells_of_mode(s, &s->cells[i]) * 4 < cells_of_mode(s, &s->cells[j])) return false;
    }
    for (size_t j = 0; j < i; j++) {
        if (s->cells[j].trace != NULL && strcmp(study_get(&s->cells[j], "conclave.mode"),
                                                study_get(&s->cells[i], "conclave.mode")) == 0)
            return false;
    }
    return true;
}

void
study_draw_timelines(const study *s, FILE *to)
{
    int drawn = 0;
    for (size_t i = 0; i < s->count && drawn < 3; i++) {
        const cJSON *spans = cJSON_GetObjectItemCaseSensitive(s->cells[i].trace, "timeline");
        if (cJSON_GetArraySize(spans) == 0 || !is_first_of_mode(s, i)) continue;
        if (drawn++ == 0) {
            study_open_figure("timeline", "A step of median length, process by process", to);
            draw_span_legend(to);
        }
        draw_timeline(&s->cells[i], spans, to);
    }
    if (drawn) study_close_figure(to);
}
