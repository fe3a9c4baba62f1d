#include "loadgen/plot.h"

#include <math.h>
#include <string.h>

#include "loadgen/markup.h"

#define TITLE_HEIGHT 44
#define LEFT 70
#define RIGHT 170
#define RIGHT_NARROW 22
#define TOP 34
#define BOTTOM 46
#define LEGEND_HEIGHT 20
#define LETTER_WIDTH 6.6 /* about, of 12 px */

typedef struct axis {
    double low, high; /* of the data, or their log10 */
    double step;      /* between ticks */
    double base;      /* of the logarithm; 0 = linear */
} axis;

typedef struct frame {
    double x0, x1, y0, y1; /* pixels; y0 is the bottom */
    axis x, y;
    bool legend_below;
} frame;

static void
put_label(FILE *to, double x, double y, const char *style, const char *text)
{
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, style);
    markup_text(text, to);
    fputs("</text>\n", to);
}

static bool
is_shown(const plot_panel *p, double x, double y)
{
    return isfinite(x) && isfinite(y) && (!p->log_y || y > 0) && (!p->log2_x || x > 0);
}

/* The least of 1, 2 and 5 times a power of ten that gives at most nine ticks. */
static double
choose_step(double range)
{
    const double power = pow(10, floor(log10(range / 8)));
    const double over = range / 8 / power;
    return power * (over <= 1 ? 1 : over <= 2 ? 2 : over <= 5 ? 5 : 10);
}

static axis
fit_axis(double low, double high, double base)
{
    axis a = {.base = base};
    if (!(high >= low)) low = base > 0 ? 1 : 0, high = low + 1; /* nothing to show */
    if (base > 0) {
        a.low = floor(log(low) / log(base) + 1e-9);
        a.high = fmax(ceil(log(high) / log(base) - 1e-9), a.low + 1);
        a.step = 1;
        return a;
    }
    low = fmin(low, 0);
    if (high <= low) high = low + 1;
    a.step = choose_step(high - low);
    a.low = floor(low / a.step) * a.step;
    a.high = ceil(high / a.step - 1e-9) * a.step;
    return a;
}

static double
place(const axis *a, double v, double from, double to)
{
    if (a->base > 0) v = log(v) / log(a->base);
    return from + (v - a->low) / (a->high - a->low) * (to - from);
}

/* What is shown of a line's spread at point i. */
static double
spread_end(const double *ends, const plot_line *line, size_t i)
{
    return ends != NULL && isfinite(ends[i]) ? ends[i] : line->y[i];
}

static frame
fit(const plot_panel *p, plot_size size, double top)
{
    double low_x = INFINITY, high_x = -INFINITY, low_y = INFINITY, high_y = -INFINITY;
    for (size_t l = 0; l < p->line_count; l++) {
        for (size_t i = 0; i < p->lines[l].count; i++) {
            const double x = p->lines[l].x[i], y = p->lines[l].y[i];
            if (!is_shown(p, x, y)) continue;
            low_x = fmin(low_x, x), high_x = fmax(high_x, x);
            low_y = fmin(low_y, spread_end(p->lines[l].low, &p->lines[l], i));
            high_y = fmax(high_y, spread_end(p->lines[l].high, &p->lines[l], i));
        }
    }
    for (size_t i = 0; i < p->level_count; i++) {
        if (p->levels[i].vertical || !is_shown(p, 0, p->levels[i].at)) continue;
        low_y = fmin(low_y, p->levels[i].at), high_y = fmax(high_y, p->levels[i].at);
    }
    return (frame){.x0 = LEFT,
                   .x1 = size.width - (size.legend_below ? RIGHT_NARROW : RIGHT),
                   .y0 = top + size.panel_height - BOTTOM,
                   .y1 = top + TOP,
                   .x = fit_axis(low_x, high_x, p->log2_x ? 2 : 0),
                   .y = fit_axis(low_y, high_y, p->log_y ? 10 : 0),
                   .legend_below = size.legend_below};
}

static void
draw_axes(const plot_panel *p, const frame *f, FILE *to)
{
    char text[32];
    for (int i = 0; i <= 100; i++) {
        const double v = f->y.low + i * f->y.step;
        if (v > f->y.high + f->y.step / 2) break;
        const double value = f->y.base > 0 ? pow(f->y.base, v) : v;
        const double y = place(&f->y, value, f->y0, f->y1);
        fprintf(to, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", f->x0, y, f->x1);
        snprintf(text, sizeof text, "%.10g", fabs(value) < 1e-12 ? 0 : value);
        put_label(to, f->x0 - 8, y + 4, "end", text);
    }
    for (int i = 0; i <= 100; i++) {
        const double v = f->x.low + i * f->x.step;
        if (v > f->x.high + f->x.step / 2) break;
        const double value = f->x.base > 0 ? pow(f->x.base, v) : v;
        const double x = place(&f->x, value, f->x0, f->x1);
        fprintf(to, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", x, f->y0, f->y1);
        snprintf(text, sizeof text, "%.10g", fabs(value) < 1e-12 ? 0 : value);
        put_label(to, x, f->y0 + 17, "mid", text);
    }
    put_label(to, f->x0, f->y1 - 12, "head", p->title);
    put_label(to, (f->x0 + f->x1) / 2, f->y0 + 35, "mid", p->x_label);
    fprintf(to, "<text class=\"mid\" transform=\"translate(16 %.1f) rotate(-90)\">",
            (f->y0 + f->y1) / 2);
    markup_text(p->y_label, to);
    fputs("</text>\n", to);
}

static void
draw_spread(const plot_panel *p, const frame *f, size_t l, FILE *to)
{
    const plot_line *line = &p->lines[l];
    for (size_t i = 0; line->low != NULL && line->high != NULL && i < line->count; i++) {
        if (!is_shown(p, line->x[i], line->y[i]) || !is_shown(p, line->x[i], line->low[i]))
            continue;
        const double x = place(&f->x, line->x[i], f->x0, f->x1);
        const double low = place(&f->y, spread_end(line->low, line, i), f->y0, f->y1);
        const double high = place(&f->y, spread_end(line->high, line, i), f->y0, f->y1);
        fprintf(to, "<path class=\"spread c%zu\" d=\"M%.1f %.1fV%.1fM%.1f %.1fh8M%.1f %.1fh8\"/>\n",
                l, x, low, high, x - 4, low, x - 4, high);
    }
}

/* The place of line l's entry; below the panel they stand side by side. */
static void
place_legend(const plot_panel *p, const frame *f, size_t l, double *x, double *y)
{
    *x = f->x1 + 14;
    *y = f->y1 + 8 + 20 * (double)l;
    if (!f->legend_below) return;
    *x = f->x0 - 50;
    *y = f->y0 + BOTTOM + 6;
    for (size_t before = 0; before < l; before++) {
        *x += 38 + LETTER_WIDTH * (double)strlen(p->lines[before].name);
    }
}

static void
draw_line(const plot_panel *p, const frame *f, size_t l, FILE *to)
{
    const plot_line *line = &p->lines[l];
    bool begun = false;
    fprintf(to, "<path class=\"line c%zu\" d=\"", l);
    for (size_t i = 0; i < line->count; i++) {
        if (!is_shown(p, line->x[i], line->y[i])) continue;
        fprintf(to, "%c%.1f %.1f", begun ? 'L' : 'M', place(&f->x, line->x[i], f->x0, f->x1),
                place(&f->y, line->y[i], f->y0, f->y1));
        begun = true;
    }
    fputs("\"/>\n", to);
    draw_spread(p, f, l, to);
    for (size_t i = 0; i < line->count; i++) {
        if (!is_shown(p, line->x[i], line->y[i])) continue;
        fprintf(to, "<circle class=\"dot c%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>", l,
                place(&f->x, line->x[i], f->x0, f->x1), place(&f->y, line->y[i], f->y0, f->y1));
        markup_text(line->name, to);
        fprintf(to, ": %.6g at %.6g</title></circle>\n", line->y[i], line->x[i]);
    }
    double x, y;
    place_legend(p, f, l, &x, &y);
    fprintf(to, "<path class=\"line c%zu\" d=\"M%.1f %.1fh18\"/>\n", l, x, y);
    put_label(to, x + 24, y + 4, "start", line->name);
}

/* Named where they are: dashes of one grey could not be told apart in a legend. */
static void
draw_levels(const plot_panel *p, const frame *f, FILE *to)
{
    for (size_t i = 0; i < p->level_count; i++) {
        const plot_level *level = &p->levels[i];
        const double at = level->at;
        if (level->vertical && at >= f->x.low && at <= f->x.high) {
            const double x = place(&f->x, at, f->x0, f->x1);
            fprintf(to, "<path class=\"level\" d=\"M%.1f %.1fV%.1f\"/>\n", x, f->y0, f->y1);
            put_label(to, x - 5, f->y0 - 8, "note", level->name);
        } else if (!level->vertical && is_shown(p, 0, at)) {
            const double y = place(&f->y, at, f->y0, f->y1);
            fprintf(to, "<path class=\"level\" d=\"M%.1f %.1fH%.1f\"/>\n", f->x0, y, f->x1);
            put_label(to, f->x1 - 5, y - 5, "note", level->name);
        }
    }
}

/* Colours that stay apart for colour-blind readers (Okabe and Ito), on light and on dark. */
static const char style[] =
    "<style>\n"
    "svg{background:#fff;font:12px system-ui,sans-serif}\n"
    "text{fill:#222}.head{font-weight:600;font-size:13px}.title{font-weight:600;font-size:15px}\n"
    ".note{text-anchor:end;font-size:11px}.end{text-anchor:end}.mid{text-anchor:middle}\n"
    ".grid{stroke:#ddd;fill:none}.line{fill:none;stroke-width:2}.spread{fill:none}\n"
    ".level{stroke:#888;stroke-dasharray:5 4;fill:none;stroke-width:1.5}\n"
    ".c0{stroke:#0072b2}.c1{stroke:#d55e00}.c2{stroke:#009e73}.c3{stroke:#cc79a7}"
    ".c4{stroke:#e69f00}.c5{stroke:#56b4e9}\n"
    ".dot{fill:#fff;stroke-width:2}\n"
    "@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#ddd}.grid{stroke:#333}"
    ".dot{fill:#16181c}.c0{stroke:#56b4e9}}\n"
    "</style>\n";

void
plot_write(const char *title, const plot_panel *panels, size_t count, FILE *to)
{
    plot_write_sized(title, (plot_size){.width = 760, .panel_height = 300}, panels, count, to);
}

void
plot_write_sized(const char *title, plot_size size, const plot_panel *panels, size_t count,
                 FILE *to)
{
    const int above = title != NULL ? TITLE_HEIGHT : 0;
    const int each = size.panel_height + (size.legend_below ? LEGEND_HEIGHT : 0);
    const int height = above + (int)count * each;
    const char *name = title != NULL ? title : count > 0 ? panels[0].title : "";
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" role=\"img\">\n<title>",
            size.width, height, size.width, height);
    markup_text(name, to);
    fputs("</title>\n", to);
    fputs(style, to);
    if (title != NULL) put_label(to, LEFT, 26, "title", title);
    for (size_t i = 0; i < count; i++) {
        const frame f = fit(&panels[i], size, above + (double)i * each);
        draw_axes(&panels[i], &f, to);
        draw_levels(&panels[i], &f, to);
        for (size_t l = 0; l < panels[i].line_count; l++) {
            draw_line(&panels[i], &f, l, to);
        }
    }
    fputs("</svg>\n", to);
}
