/* What is computed from the steps of a trace, and how it is shown. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/json_writer.h"
#include "loadgen/study_compare.h"
#include "loadgen/trace_summary.h"

static const char *const part_names[TRACE_PARTS] = {"attention", "gate",    "dispatch",
                                                    "wait",      "combine", "other"};

double
trace_step_us(const trace_step *step)
{
    double sum = 0;
    for (int p = 0; p < TRACE_PARTS; p++) {
        sum += step->parts_us[p];
    }
    return sum;
}

double
trace_median_step_us(const trace_summary *s)
{
    double *values = malloc((s->step_count + 1) * sizeof *values);
    if (values == NULL) return NAN;
    for (size_t i = 0; i < s->step_count; i++) {
        values[i] = trace_step_us(&s->steps[i]);
    }
    const double median = compare_median(values, s->step_count);
    free(values);
    return median;
}

/* ---- output ---- */

typedef struct totals {
    double all_us, parts_us[TRACE_PARTS], expert_us, hidden_us, straggler_us, rows_max, rows_all;
    double bytes, events;
} totals;

static totals
add_up(const trace_summary *s)
{
    totals t = {0};
    for (size_t i = 0; i < s->step_count; i++) {
        const trace_step *step = &s->steps[i];
        for (int p = 0; p < TRACE_PARTS; p++) {
            t.parts_us[p] += step->parts_us[p];
        }
        t.all_us += trace_step_us(step);
        t.expert_us += step->expert_us;
        t.hidden_us += step->hidden_us;
        t.straggler_us += step->straggler_us;
        t.rows_max += step->rows_max;
        t.rows_all += step->rows_all;
        t.bytes += step->bytes;
        t.events += step->events;
    }
    return t;
}

typedef struct figure {
    const char *key, *words;
    double value, scale;
    const char *unit;
} figure;

#define FIGURES 11

/* Shares of the steps' time unless the words say otherwise. */
static void
fill_figures(const trace_summary *s, figure out[FIGURES])
{
    const totals t = add_up(s);
    const double n = (double)s->step_count, all = t.all_us > 0 ? t.all_us : NAN;
    const double moe = t.parts_us[TRACE_PART_GATE] + t.parts_us[TRACE_PART_DISPATCH] +
                       t.parts_us[TRACE_PART_WAIT] + t.parts_us[TRACE_PART_COMBINE];
    const double communication =
        t.parts_us[TRACE_PART_DISPATCH] + t.parts_us[TRACE_PART_WAIT] - t.expert_us;
    const double balance = t.rows_max > 0 ? t.rows_all / (double)s->worker_count / t.rows_max : NAN;
    const figure figures[FIGURES] = {
        {"steps", "Steps", n, 1, ""},
        {"mean_step_us", "Mean step (us)", all / n, 1, ""},
        {"median_step_us", "Median step (us)", trace_median_step_us(s), 1, ""},
        {"attention_fraction", "Attention", t.parts_us[TRACE_PART_ATTENTION] / all, 100, "%"},
        {"moe_fraction", "MoE", moe / all, 100, "%"},
        {"communication_fraction", "Communication", communication / all, 100, "%"},
        {"expert_fraction", "Waiting for experts' compute", t.expert_us / all, 100, "%"},
        {"overlap", "Overlap (of expert compute)", t.hidden_us / (t.hidden_us + t.expert_us), 100,
         "%"},
        {"straggler_fraction", "Straggler", t.straggler_us / all, 100, "%"},
        {"balancedness", "Balancedness", balance, 1, ""},
        {"events_per_step", "Trace events per step", t.events / n, 1, ""},
    };
    memcpy(out, figures, sizeof figures);
}

void
trace_summary_print(const trace_summary *s, FILE *to)
{
    figure figures[FIGURES];
    fill_figures(s, figures);
    for (int i = 0; i < FIGURES; i++) {
        fprintf(to, "%-32s %10.4g%s\n", figures[i].words, figures[i].value * figures[i].scale,
                figures[i].unit);
    }
    const totals t = add_up(s);
    fprintf(to, "%-32s %10.4g\n", "Imbalance (most / mean rows)",
            t.rows_max * s->worker_count / t.rows_all);
    fprintf(to, "%-32s %10.4g\n", "Bytes of rows per step", t.bytes / (double)s->step_count);
    fputs("Answered last (share of layers) ", to);
    double layers = 0;
    for (uint32_t w = 0; w < s->worker_count; w++) {
        layers += s->last_count[w];
    }
    for (uint32_t w = 0; w < s->worker_count; w++) {
        fprintf(to, " %u:%.0f%%", w, 100 * s->last_count[w] / layers);
    }
    fputc('\n', to);
    if (s->lost > 0) fprintf(to, "warning: %.0f events were lost\n", s->lost);
    if (s->cut) fputs("warning: a file ends early; its process was killed\n", to);
}

static void
write_balance(json_writer *w, const trace_summary *s)
{
    const double first = s->steps[0].start_us, last = s->steps[s->step_count - 1].end_us;
    const double width = fmax(last - first, 1) / TRACE_BINS;
    double most[TRACE_BINS] = {0}, all[TRACE_BINS] = {0};
    for (size_t i = 0; i < s->step_count; i++) {
        const double at = (s->steps[i].start_us - first) / width;
        const int bin = at < 0 ? 0 : at >= TRACE_BINS ? TRACE_BINS - 1 : (int)at;
        most[bin] += s->steps[i].rows_max;
        all[bin] += s->steps[i].rows_all;
    }
    json_key(w, "balancedness_series");
    json_open(w, '[');
    for (int i = 0; i < TRACE_BINS; i++) {
        if (most[i] <= 0) continue;
        json_open(w, '{');
        json_key_number(w, "seconds", (i + 0.5) * width / 1e6);
        json_key_number(w, "balancedness", all[i] / s->worker_count / most[i]);
        json_close(w, '}');
    }
    json_close(w, ']');
}

static void
write_numbers(json_writer *w, const char *key, const double *values, size_t count)
{
    json_key(w, key);
    json_open(w, '[');
    for (size_t i = 0; i < count; i++) {
        json_put_number(w, values[i]);
    }
    json_close(w, ']');
}

static void
write_timeline(json_writer *w, const trace_summary *s)
{
    json_key_number(w, "timeline_step", s->timeline_step);
    json_key(w, "timeline");
    json_open(w, '[');
    for (size_t i = 0; i < s->timeline_count; i++) {
        const trace_span *span = &s->timeline[i];
        json_open(w, '{');
        json_key_number(w, "process", span->process);
        json_key_text(w, "name", span->name);
        json_key_number(w, "layer", span->layer);
        json_key_number(w, "start_us", span->start_us);
        json_key_number(w, "duration_us", span->duration_us);
        json_close(w, '}');
    }
    json_close(w, ']');
}

moe_err
trace_summary_write_json(const trace_summary *s, FILE *to, errbuf *eb)
{
    json_writer w;
    figure figures[FIGURES];
    const totals t = add_up(s);
    fill_figures(s, figures);
    json_writer_init(&w, to);
    json_open(&w, '{');
    for (int i = 0; i < FIGURES; i++) {
        json_key_number(&w, figures[i].key, figures[i].value);
    }
    json_key_number(&w, "lost", s->lost);
    json_key_bool(&w, "cut", s->cut);
    json_key_number(&w, "workers", s->worker_count);
    json_key_number(&w, "bytes_per_step", t.bytes / (double)s->step_count);
    json_key(&w, "parts_us");
    json_open(&w, '{');
    for (int p = 0; p < TRACE_PARTS; p++) {
        json_key_number(&w, part_names[p], t.parts_us[p] / (double)s->step_count);
    }
    json_close(&w, '}');
    write_numbers(&w, "answered_last", s->last_count, s->worker_count);
    write_numbers(&w, "worker_busy_us", s->worker_us, s->worker_count);
    write_numbers(&w, "clock_offset_us", s->offset_us, s->worker_count);
    json_key(&w, "expert_tokens");
    json_open(&w, '[');
    for (uint32_t l = 0; l < s->layer_count; l++) {
        json_open(&w, '[');
        for (uint32_t e = 0; e < s->expert_count; e++) {
            json_put_number(&w, s->expert_tokens[(size_t)l * s->expert_count + e]);
        }
        json_close(&w, ']');
    }
    json_close(&w, ']');
    write_balance(&w, s);
    write_timeline(&w, s);
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}
