#include "loadgen/trace_summary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/json_writer.h"

const char *const trace_part_names[TRACE_PARTS] = {"attention", "gate",    "dispatch",
                                                   "wait",      "combine", "other"};

/* ---- reading ---- */

typedef struct file_head {
    bool is_router, seen, ended;
    uint32_t id;
    char host[64];
} file_head;

typedef struct answer {
    double sent_us, busy_us;
    uint32_t worker, rows;
} answer;

typedef struct reader {
    trace_summary *s;
    file_head head; /* of the file being read */
    bool has_router;
    double dispatch_delay[TRACE_ID_MAX], result_delay[TRACE_ID_MAX]; /* the least, in us */
    bool far[TRACE_ID_MAX];                                          /* on another host */
    trace_step step;                                                 /* being read */
    bool in_step;
    answer answers[TRACE_ID_MAX]; /* of the layer being waited for */
    size_t answer_count;
    /* the second pass */
    double want_step, step_start;
} reader;

static trace_part
part_of(const char *name)
{
    static const struct {
        const char *name;
        trace_part part;
    } parts[] = {{"norm", TRACE_PART_ATTENTION},       {"qkv", TRACE_PART_ATTENTION},
                 {"rope_store", TRACE_PART_ATTENTION}, {"attention", TRACE_PART_ATTENTION},
                 {"pack", TRACE_PART_ATTENTION},       {"project", TRACE_PART_ATTENTION},
                 {"ffn_norm", TRACE_PART_GATE},        {"gate", TRACE_PART_GATE},
                 {"dispatch", TRACE_PART_DISPATCH},    {"wait", TRACE_PART_WAIT},
                 {"combine", TRACE_PART_COMBINE}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (strcmp(name, parts[i].name) == 0) return parts[i].part;
    }
    return TRACE_PART_OTHER;
}

static moe_err
keep_step(reader *r, errbuf *eb)
{
    trace_summary *s = r->s;
    if (s->step_count == TRACE_STEPS_MAX)
        return err_set(eb, MOE_ERANGE, "more than %u steps", TRACE_STEPS_MAX);
    if (s->step_count == s->step_capacity) {
        const size_t capacity = s->step_capacity ? 2 * s->step_capacity : 1024;
        trace_step *grown = realloc(s->steps, capacity * sizeof *grown);
        if (grown == NULL) return err_set(eb, MOE_ENOMEM, "no memory for %zu steps", capacity);
        s->steps = grown;
        s->step_capacity = capacity;
    }
    s->steps[s->step_count++] = r->step;
    return MOE_OK;
}

/* How long [a0, a1] and [b0, b1] have in common. */
static double
common_us(double a0, double a1, double b0, double b1)
{
    return fmax(0, fmin(a1, b1) - fmax(a0, b0));
}

/* A wait is over, and the answers that ended it are known. */
static void
close_layer(reader *r, const trace_row *wait)
{
    const double begin = wait->start_us, end = begin + wait->duration_us;
    double last = -INFINITY, mean = 0, busy = 0;
    uint32_t who = 0, rows_max = 0;
    for (size_t i = 0; i < r->answer_count; i++) {
        const answer *a = &r->answers[i];
        mean += a->sent_us / (double)r->answer_count;
        if (a->rows > rows_max) rows_max = a->rows;
        r->step.rows_all += a->rows;
        r->s->worker_us[a->worker] += a->busy_us;
        if (a->sent_us <= last) continue;
        last = a->sent_us, busy = a->busy_us, who = a->worker;
    }
    if (r->answer_count == 0) return;
    r->step.rows_max += rows_max;
    r->s->last_count[who]++;
    r->step.straggler_us += last - mean;
    const double within = common_us(last - busy, last, begin, end);
    r->step.expert_us += within;
    r->step.hidden_us += common_us(last - busy, last, -INFINITY, begin);
    r->answer_count = 0;
}

static moe_err
take_span(reader *r, const trace_row *row, errbuf *eb)
{
    if (strcmp(row->name, "prepare") == 0) {
        r->step = (trace_step){.number = row->step, .start_us = row->start_us};
        r->in_step = true;
        r->answer_count = 0;
    }
    if (!r->in_step) return MOE_OK;
    r->step.parts_us[part_of(row->name)] += row->duration_us;
    r->step.end_us = row->start_us + row->duration_us;
    r->step.events++;
    if (strcmp(row->name, "wait") == 0) close_layer(r, row);
    if (strcmp(row->name, "reply") != 0) return MOE_OK;
    r->in_step = false;
    return keep_step(r, eb);
}

static void
take_answer(reader *r, const trace_row *row)
{
    if (!r->in_step || r->answer_count == TRACE_ID_MAX) return;
    const uint32_t w = row->worker;
    const double offset = r->far[w] && isfinite(r->s->offset_us[w]) ? r->s->offset_us[w] : 0;
    r->answers[r->answer_count++] = (answer){
        .sent_us = row->sent_us - offset, .busy_us = row->busy_us, .worker = w, .rows = row->rows};
    r->step.events++;
    r->step.bytes += row->bytes;
}

static moe_err
take_experts(reader *r, const trace_row *row, errbuf *eb)
{
    trace_summary *s = r->s;
    if ((uint32_t)row->layer != s->layer_count ||
        (s->layer_count > 0 && row->expert_count != s->expert_count))
        return err_set(eb, MOE_EINVAL, "layers of experts are out of order");
    const size_t n = row->expert_count;
    double *grown = realloc(s->expert_tokens, ((size_t)s->layer_count + 1) * n * sizeof *grown + 1);
    if (grown == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    memcpy(grown + s->layer_count * n, row->expert_tokens, n * sizeof *grown);
    s->expert_tokens = grown;
    s->expert_count = row->expert_count;
    s->layer_count++;
    return MOE_OK;
}

static void
least(double *value, double v)
{
    if (!(v >= *value)) *value = v;
}

/* First pass: who wrote what, and how fast messages are. */
static moe_err
on_first(void *ctx, const trace_row *row, errbuf *eb)
{
    reader *r = ctx;
    trace_summary *s = r->s;
    if (row->kind != TRACE_ROW_HEAD && !r->head.seen)
        return err_set(eb, MOE_EINVAL, "the first event must say who wrote the file");
    if (row->worker >= s->worker_count && row->kind >= TRACE_ROW_DISPATCH_SENT &&
        row->kind <= TRACE_ROW_RESULT_RECEIVED)
        s->worker_count = row->worker + 1;
    switch (row->kind) {
    case TRACE_ROW_HEAD:
        r->head =
            (file_head){.is_router = strcmp(row->name, "router") == 0, .seen = true, .id = row->id};
        memcpy(r->head.host, row->host, sizeof r->head.host);
        if (r->head.is_router && r->has_router) return err_set(eb, MOE_EINVAL, "a second router");
        r->has_router = r->has_router || r->head.is_router;
        break;
    case TRACE_ROW_DISPATCH_RECEIVED:
        if (!r->head.is_router)
            least(&r->dispatch_delay[row->worker], row->start_us - row->sent_us);
        break;
    case TRACE_ROW_RESULT_RECEIVED:
        if (r->head.is_router) least(&r->result_delay[row->worker], row->start_us - row->sent_us);
        break;
    case TRACE_ROW_EXPERTS: return r->head.is_router ? take_experts(r, row, eb) : MOE_OK;
    case TRACE_ROW_END:
        r->head.ended = true;
        s->lost += row->lost;
        break;
    default: break;
    }
    return MOE_OK;
}

static moe_err
on_router(void *ctx, const trace_row *row, errbuf *eb)
{
    reader *r = ctx;
    if (row->kind == TRACE_ROW_SPAN) return take_span(r, row, eb);
    if (row->kind == TRACE_ROW_RESULT_RECEIVED) take_answer(r, row);
    if (row->kind == TRACE_ROW_DISPATCH_SENT && r->in_step) {
        r->step.events++;
        r->step.bytes += row->bytes;
    }
    return MOE_OK;
}

/* Last pass: the spans of one step. */
static moe_err
on_timeline(void *ctx, const trace_row *row, errbuf *eb)
{
    reader *r = ctx;
    trace_summary *s = r->s;
    (void)eb;
    if (row->kind == TRACE_ROW_HEAD) {
        r->head.is_router = strcmp(row->name, "router") == 0;
        r->head.id = row->id;
    }
    if (row->kind != TRACE_ROW_SPAN || row->step != r->want_step ||
        s->timeline_count == TRACE_TIMELINE_MAX)
        return MOE_OK;
    const uint32_t id = r->head.id;
    const double offset =
        !r->head.is_router && r->far[id] && isfinite(s->offset_us[id]) ? s->offset_us[id] : 0;
    const double start = row->start_us - offset - r->step_start;
    if (start < -1e6 || start > 1e9) return MOE_OK; /* of another router's step */
    trace_span *span = &s->timeline[s->timeline_count++];
    *span = (trace_span){.process = r->head.is_router ? 0 : 1 + id,
                         .layer = row->layer,
                         .start_us = start,
                         .duration_us = row->duration_us};
    memcpy(span->name, row->name, sizeof span->name);
    return MOE_OK;
}

/* ---- figures ---- */

static double
step_us(const trace_step *step)
{
    double sum = 0;
    for (int p = 0; p < TRACE_PARTS; p++) {
        sum += step->parts_us[p];
    }
    return sum;
}

static int
by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The lower median of the steps' lengths. */
static double
median_step_us(const trace_summary *s)
{
    double *sorted = malloc(s->step_count * sizeof *sorted);
    if (sorted == NULL || s->step_count == 0) {
        free(sorted);
        return NAN;
    }
    for (size_t i = 0; i < s->step_count; i++) {
        sorted[i] = step_us(&s->steps[i]);
    }
    qsort(sorted, s->step_count, sizeof *sorted, by_value);
    const double median = sorted[(s->step_count - 1) / 2];
    free(sorted);
    return median;
}

static void
choose_step(const trace_summary *s, reader *r)
{
    const double median = median_step_us(s);
    size_t best = 0;
    for (size_t i = 1; i < s->step_count; i++) {
        if (fabs(step_us(&s->steps[i]) - median) < fabs(step_us(&s->steps[best]) - median))
            best = i;
    }
    r->want_step = s->steps[best].number;
    r->step_start = s->steps[best].start_us;
}

static void
find_offsets(reader *r)
{
    for (uint32_t w = 0; w < r->s->worker_count; w++) {
        r->s->offset_us[w] = (r->dispatch_delay[w] - r->result_delay[w]) / 2;
    }
}

static moe_err
read_all(reader *r, const char *const *paths, size_t count, errbuf *eb)
{
    trace_summary *s = r->s;
    size_t router = SIZE_MAX;
    char hosts[TRACE_FILES_MAX][64] = {{0}};
    uint32_t ids[TRACE_FILES_MAX] = {0};
    for (size_t i = 0; i < count; i++) {
        r->head = (file_head){0};
        const moe_err err = trace_read_file(paths[i], on_first, r, eb);
        if (err) return err;
        if (!r->head.seen) return err_set(eb, MOE_EINVAL, "%s: an empty trace", paths[i]);
        if (r->head.is_router) router = i;
        s->cut = s->cut || !r->head.ended;
        memcpy(hosts[i], r->head.host, sizeof hosts[i]);
        ids[i] = r->head.id;
    }
    if (router == SIZE_MAX) return err_set(eb, MOE_EINVAL, "no router's trace among the files");
    for (size_t i = 0; i < count; i++) {
        if (i != router) r->far[ids[i]] = strcmp(hosts[i], hosts[router]) != 0;
    }
    find_offsets(r);
    moe_err err = trace_read_file(paths[router], on_router, r, eb);
    if (err) return err;
    if (s->step_count == 0) return err_set(eb, MOE_EINVAL, "%s: no whole step", paths[router]);
    choose_step(s, r);
    s->timeline_step = r->want_step;
    s->timeline = calloc(TRACE_TIMELINE_MAX, sizeof *s->timeline);
    if (s->timeline == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (size_t i = 0; i < count && !err; i++) {
        err = trace_read_file(paths[i], on_timeline, r, eb);
    }
    return err;
}

moe_err
trace_summarize(const char *const *paths, size_t count, trace_summary *out, errbuf *eb)
{
    *out = (trace_summary){0};
    if (count > TRACE_FILES_MAX)
        return err_set(eb, MOE_ERANGE, "%zu files, at most %d", count, TRACE_FILES_MAX);
    reader *r = calloc(1, sizeof *r);
    if (r == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    r->s = out;
    for (size_t i = 0; i < TRACE_ID_MAX; i++) {
        r->dispatch_delay[i] = r->result_delay[i] = out->offset_us[i] = NAN;
    }
    const moe_err err = read_all(r, paths, count, eb);
    if (err) trace_summary_fini(out);
    free(r);
    return err;
}

void
trace_summary_fini(trace_summary *s)
{
    free(s->steps);
    free(s->expert_tokens);
    free(s->timeline);
    *s = (trace_summary){0};
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
        t.all_us += step_us(step);
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
        {"median_step_us", "Median step (us)", median_step_us(s), 1, ""},
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
        json_key_number(&w, trace_part_names[p], t.parts_us[p] / (double)s->step_count);
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
