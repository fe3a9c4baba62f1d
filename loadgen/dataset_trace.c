#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/clock.h"
#include "common/hash.h"
#include "loadgen/dataset_impl.h"

/* Recorded loads come in a few shapes; what they have in common is read here.
 *
 *   CSV         a line of column names, then rows.  The names of the published Azure and BurstGPT
 *               traces, and a few plain ones, are known; other columns are read over.  Times are
 *               numbers, or dates as "2023-11-16 18:15:46.6805900".
 *   JSON Lines  Mooncake's keys: timestamp, input_length, output_length, hash_ids.  Two requests
 *               with equal hash_ids share those blocks of 512 tokens, so they do here. */

#define BLOCK_TOKENS 512
#define COLUMN_MAX 64
#define TIME_S_MAX 1e9
#define HASH_IDS_MAX (DATASET_TOKENS_MAX / BLOCK_TOKENS)

typedef struct row {
    double time_s;
    int64_t input_len, output_len;
    size_t entry;
    uint64_t hash_offset; /* its ids in trace.hashes */
    size_t hash_count;
} row;

typedef struct trace {
    const dataset_config *c;
    row *rows; /* [count] */
    size_t count;
    int64_t *hashes; /* [hash_count] */
    size_t hash_count, hash_capacity;
} trace;

typedef struct columns {
    int time, input, output;
} columns;

typedef struct text {
    const char *at;
    size_t len;
} text;

/* ---- one field ---- */

/* Cut a line at its commas; a field in quotes is taken without them. */
static size_t
split(const entry *e, text *fields)
{
    size_t n = 0;
    const char *at = e->text, *const end = e->text + e->len;
    while (at <= end && n < COLUMN_MAX) {
        const bool quoted = at < end && *at == '"';
        if (quoted) at++;
        const char *stop = memchr(at, quoted ? '"' : ',', (size_t)(end - at));
        if (stop == NULL) stop = end;
        fields[n++] = (text){.at = at, .len = (size_t)(stop - at)};
        const char *comma = quoted ? memchr(stop, ',', (size_t)(end - stop)) : stop;
        at = comma ? comma + 1 : end + 1;
    }
    return n;
}

/* "2023-11-16 18:15:46.6805900", a T for the blank, and a time zone that is read over: only
 * differences matter, and a trace has one zone. */
static bool
parse_date(const char *s, double *out)
{
    struct tm tm = {0};
    double second = 0;
    char gap = 0;
    if (sscanf(s, "%d-%d-%d%c%d:%d:%lf", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &gap, &tm.tm_hour,
               &tm.tm_min, &second) != 7 ||
        (gap != ' ' && gap != 'T') || tm.tm_year < 1970 || tm.tm_year > 9999 || tm.tm_mon < 1 ||
        tm.tm_mon > 12 || !(second >= 0 && second < 61))
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    *out = (double)timegm(&tm) + second;
    return true;
}

static moe_err
parse_time(const trace *t, text field, double *out, errbuf *eb)
{
    char copy[64], *end;
    snprintf(copy, sizeof copy, "%.*s", (int)(field.len < 63 ? field.len : 63), field.at);
    const double number = strtod(copy, &end);
    if (end != copy && *end == '\0' && number >= 0) {
        *out = number * (t->c->time_unit_s > 0 ? t->c->time_unit_s : 1);
        if (*out < TIME_S_MAX) return MOE_OK;
    } else if (parse_date(copy, out)) {
        return MOE_OK;
    }
    return err_set(eb, MOE_EINVAL, "time \"%s\" must be a number or a date", copy);
}

static moe_err
parse_length(text field, int64_t *out, errbuf *eb)
{
    char copy[32], *end;
    snprintf(copy, sizeof copy, "%.*s", (int)(field.len < 31 ? field.len : 31), field.at);
    const double number = strtod(copy, &end);
    if (end == copy || *end != '\0' || !(number >= 0 && number <= DATASET_TOKENS_MAX) ||
        number != floor(number))
        return err_set(eb, MOE_EINVAL, "\"%s\" must be a token count of 0..%u", copy,
                       DATASET_TOKENS_MAX);
    *out = (int64_t)number;
    return MOE_OK;
}

/* ---- one row ---- */

static int
find_column(const text *names, size_t n, const char *const *known)
{
    for (; *known != NULL; known++) {
        for (size_t i = 0; i < n; i++) {
            if (strlen(*known) == names[i].len &&
                strncasecmp(*known, names[i].at, names[i].len) == 0)
                return (int)i;
        }
    }
    return -1;
}

static moe_err
read_header(const entry *e, columns *out, errbuf *eb)
{
    static const char *const times[] = {"timestamp", "time", "arrived_at", "arrival_time", NULL};
    static const char *const inputs[] = {"ContextTokens",
                                         "Request tokens",
                                         "input_length",
                                         "prompt_tokens",
                                         "num_prefill_tokens",
                                         "input_tokens",
                                         NULL};
    static const char *const outputs[] = {"GeneratedTokens",
                                          "Response tokens",
                                          "output_length",
                                          "completion_tokens",
                                          "num_decode_tokens",
                                          "output_tokens",
                                          NULL};
    text names[COLUMN_MAX];
    const size_t n = split(e, names);
    out->time = find_column(names, n, times);
    out->input = find_column(names, n, inputs);
    out->output = find_column(names, n, outputs);
    if (out->time < 0 || out->input < 0 || out->output < 0)
        return err_set(
            eb, MOE_EINVAL,
            "must name columns for the time (timestamp), the input and the output tokens");
    return MOE_OK;
}

static moe_err
read_csv(const trace *t, const entry *e, const columns *where, row *out, errbuf *eb)
{
    text fields[COLUMN_MAX];
    const int n = (int)split(e, fields);
    if (where->time >= n || where->input >= n || where->output >= n)
        return err_set(eb, MOE_EINVAL, "has only %d fields", n);
    moe_err err = parse_time(t, fields[where->time], &out->time_s, eb);
    if (!err) err = parse_length(fields[where->input], &out->input_len, eb);
    if (!err) err = parse_length(fields[where->output], &out->output_len, eb);
    return err;
}

static moe_err
add_hash(trace *t, int64_t hash)
{
    if (t->hash_count == t->hash_capacity) {
        const size_t capacity = t->hash_capacity == 0 ? 1024 : 2 * t->hash_capacity;
        int64_t *grown = realloc(t->hashes, capacity * sizeof *grown);
        if (grown == NULL) return MOE_ENOMEM;
        t->hashes = grown;
        t->hash_capacity = capacity;
    }
    t->hashes[t->hash_count++] = hash;
    return MOE_OK;
}

static moe_err
read_hashes(trace *t, const cJSON *root, row *out, errbuf *eb)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(root, "hash_ids"), *id;
    out->hash_offset = t->hash_count;
    if (array != NULL && !cJSON_IsArray(array))
        return err_set(eb, MOE_EINVAL, "hash_ids must be an array");
    cJSON_ArrayForEach(id, array)
    {
        if (!json_is_int(id, 0, 1ll << 53) || out->hash_count == HASH_IDS_MAX)
            return err_set(eb, MOE_EINVAL, "hash_ids[%zu] must be an integer, one of at most %d",
                           out->hash_count, (int)HASH_IDS_MAX);
        if (add_hash(t, (int64_t)id->valuedouble))
            return err_set(eb, MOE_ENOMEM, "hash_ids: out of memory");
        out->hash_count++;
    }
    return MOE_OK;
}

static moe_err
read_json(trace *t, const entry *e, row *out, errbuf *eb)
{
    cJSON *root;
    double time = -1;
    const double unit = t->c->time_unit_s > 0 ? t->c->time_unit_s : 1e-3;
    out->input_len = out->output_len = -1;
    moe_err err = json_parse(e->text, e->len, &root, eb);
    if (err) return err;
    if (!cJSON_IsObject(root)) err = err_set(eb, MOE_EINVAL, "must be a JSON object");
    if (!err) err = json_get_double(root, "timestamp", 0, TIME_S_MAX / unit, &time, eb);
    if (!err) err = json_get_i64(root, "input_length", 0, DATASET_TOKENS_MAX, &out->input_len, eb);
    if (!err)
        err = json_get_i64(root, "output_length", 0, DATASET_TOKENS_MAX, &out->output_len, eb);
    if (!err && (time < 0 || out->input_len < 0 || out->output_len < 0))
        err = err_set(eb, MOE_EINVAL, "must have timestamp, input_length and output_length");
    if (!err) err = read_hashes(t, root, out, eb);
    out->time_s = time * unit;
    cJSON_Delete(root);
    return err;
}

/* ---- all of it ---- */

/* Failed requests of the recorded service have no answer and are no load that can be asked for. */
static bool
is_usable(const dataset_config *c, const row *r)
{
    return r->input_len > 0 && r->output_len > 0 &&
           (c->token_max == 0 || r->input_len + r->output_len <= c->token_max);
}

static moe_err
read_rows(trace *t, const entries *list, errbuf *eb)
{
    const bool json = list->count > 0 && list->at[0].text[0] == '{';
    columns where = {0};
    for (size_t i = 0; i < list->count; i++) {
        row r = {.entry = i};
        moe_err err;
        if (json)
            err = read_json(t, &list->at[i], &r, eb);
        else if (i == 0)
            err = read_header(&list->at[i], &where, eb);
        else
            err = read_csv(t, &list->at[i], &where, &r, eb);
        if (err) return err_wrap(eb, err, "line %zu", list->at[i].number);
        if (is_usable(t->c, &r)) t->rows[t->count++] = r;
    }
    return MOE_OK;
}

static int
compare_rows(const void *a, const void *b)
{
    const row *x = a, *y = b;
    if (x->time_s != y->time_s) return x->time_s < y->time_s ? -1 : 1;
    return (x->entry > y->entry) - (x->entry < y->entry);
}

static void
draw_prompt(const trace *t, const row *r, size_t i, strbuf *json)
{
    int64_t left = r->input_len;
    rng ids;
    strbuf_puts(json, "[");
    for (size_t b = 0; b < r->hash_count && left > 0; b++) {
        const int64_t n = left < BLOCK_TOKENS ? left : BLOCK_TOKENS;
        const uint64_t block = (uint64_t)t->hashes[r->hash_offset + b];
        rng_init(&ids, hash_combine(t->c->seed, block), RNG_BLOCKS);
        dataset_draw_ids(&ids, t->c, n, json);
        left -= n;
    }
    rng_init(&ids, t->c->seed + 1 + i, RNG_TOKENS);
    dataset_draw_ids(&ids, t->c, left, json);
    strbuf_puts(json, "]");
}

static moe_err
add_rows(const trace *t, dataset *out, errbuf *eb)
{
    if (t->count < t->c->count)
        return err_set(eb, MOE_ERANGE, "has %zu usable rows, but %zu requests are wanted", t->count,
                       t->c->count);
    for (size_t i = 0; i < t->c->count; i++) {
        const row *r = &t->rows[i];
        strbuf json;
        strbuf_init(&json, PROMPT_BYTES_MAX);
        draw_prompt(t, r, i, &json);
        const moe_err err = dataset_add(out, &json, r->input_len, r->output_len, eb);
        strbuf_fini(&json);
        if (err) return err;
        const double at_s = (r->time_s - t->rows[0].time_s) / t->c->speed;
        if (!(at_s < TIME_S_MAX)) return err_set(eb, MOE_ERANGE, "lasts more than 30 years");
        out->prompts[i].arrival_ns = (uint64_t)(at_s * (double)NS_PER_S);
    }
    out->timed = true;
    return MOE_OK;
}

moe_err
dataset_make_trace(const dataset_config *c, const char *bytes, size_t len, dataset *out, errbuf *eb)
{
    trace t = {.c = c};
    entries list = {0};
    moe_err err = dataset_check_vocab(c, eb);
    if (!err && !(c->speed > 0 && isfinite(c->speed)))
        err = err_set(eb, MOE_ERANGE, "speed %g: must be above 0", c->speed);
    if (!err) err = entries_from_lines(bytes, len, &list, eb);
    if (!err && (t.rows = calloc(list.count + 1, sizeof *t.rows)) == NULL)
        err = err_set(eb, MOE_ENOMEM, "rows: out of memory");
    if (!err) err = read_rows(&t, &list, eb);
    if (!err) {
        qsort(t.rows, t.count, sizeof *t.rows, compare_rows);
        err = add_rows(&t, out, eb);
    }
    free(t.rows);
    free(t.hashes);
    entries_fini(&list);
    return err;
}
