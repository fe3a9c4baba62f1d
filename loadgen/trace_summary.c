#include "loadgen/trace_summary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    double want_step, step_start, step_end;
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
    if (row->kind == TRACE_ROW_OTHER) return MOE_OK;
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
    /* Another router's step may have the same number. */
    if (start < 0 || start > r->step_end - r->step_start) return MOE_OK;
    trace_span *span = &s->timeline[s->timeline_count++];
    *span = (trace_span){.process = r->head.is_router ? 0 : 1 + id,
                         .layer = row->layer,
                         .start_us = start,
                         .duration_us = row->duration_us};
    memcpy(span->name, row->name, sizeof span->name);
    return MOE_OK;
}

/* ---- the three passes ---- */

static void
choose_step(const trace_summary *s, reader *r)
{
    const double median = trace_median_step_us(s);
    size_t best = 0;
    for (size_t i = 1; i < s->step_count; i++) {
        if (fabs(trace_step_us(&s->steps[i]) - median) <
            fabs(trace_step_us(&s->steps[best]) - median))
            best = i;
    }
    r->want_step = s->steps[best].number;
    r->step_start = s->steps[best].start_us;
    r->step_end = s->steps[best].end_us;
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
