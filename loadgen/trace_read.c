#include "loadgen/trace_read.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"

#define TIME_US_MAX 1e18
#define COUNT_MAX 9e18 /* of what is a 64-bit number in the trace */

static moe_err
read_args(const cJSON *args, trace_row *row, errbuf *eb)
{
    uint32_t layer = UINT32_MAX;
    double sent_ns = 0, busy_ns = 0;
    moe_err err = json_get_double(args, "step", 0, COUNT_MAX * 3, &row->step, eb);
    if (!err) err = json_get_u32(args, "layer", 0, TRACE_LAYER_MAX - 1, &layer, eb);
    if (!err) err = json_get_u32(args, "mb", 0, 255, &row->micro_batch, eb);
    if (!err) err = json_get_u32(args, "rows", 0, UINT32_MAX, &row->rows, eb);
    if (!err) err = json_get_u32(args, "router", 0, TRACE_ID_MAX - 1, &row->router, eb);
    if (!err) err = json_get_u32(args, "worker", 0, TRACE_ID_MAX - 1, &row->worker, eb);
    if (!err) err = json_get_double(args, "bytes", 0, COUNT_MAX, &row->bytes, eb);
    if (!err) err = json_get_double(args, "sent_ns", 0, COUNT_MAX * 3, &sent_ns, eb);
    if (!err) err = json_get_double(args, "busy_ns", 0, COUNT_MAX * 3, &busy_ns, eb);
    row->layer = layer == UINT32_MAX ? -1 : (int32_t)layer;
    row->sent_us = sent_ns / 1e3;
    row->busy_us = busy_ns / 1e3;
    return err;
}

static moe_err
read_text(const cJSON *object, const char *key, char *out, size_t size, errbuf *eb)
{
    const char *text = NULL;
    const moe_err err = json_get_string(object, key, &text, eb);
    if (err) return err;
    if (text == NULL) return err_set(eb, MOE_EINVAL, "no %s", key);
    if (strlen(text) >= size)
        return err_set(eb, MOE_ERANGE, "%s is longer than %zu bytes", key, size - 1);
    memcpy(out, text, strlen(text) + 1);
    return MOE_OK;
}

static moe_err
read_experts(const cJSON *args, trace_row *row, errbuf *eb)
{
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(args, "tokens");
    const int count = cJSON_GetArraySize(tokens);
    if (!cJSON_IsArray(tokens) || row->layer < 0)
        return err_set(eb, MOE_EINVAL, "experts without layer or tokens");
    if (count > TRACE_EXPERT_MAX)
        return err_set(eb, MOE_ERANGE, "%d experts, at most %d", count, TRACE_EXPERT_MAX);
    row->expert_tokens = calloc((size_t)count + 1, sizeof *row->expert_tokens);
    if (row->expert_tokens == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    const cJSON *item;
    cJSON_ArrayForEach(item, tokens)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= COUNT_MAX))
            return err_set(eb, MOE_EINVAL, "tokens of an expert must be a count");
        row->expert_tokens[row->expert_count++] = item->valuedouble;
    }
    return MOE_OK;
}

static moe_err
read_meta(const cJSON *args, const char *name, trace_row *row, errbuf *eb)
{
    moe_err err = MOE_OK;
    if (strcmp(name, "conclave") == 0) {
        row->kind = TRACE_ROW_HEAD;
        err = read_text(args, "role", row->name, sizeof row->name, eb);
        if (!err) err = read_text(args, "host", row->host, sizeof row->host, eb);
        if (!err) err = json_get_u32(args, "id", 0, TRACE_ID_MAX - 1, &row->id, eb);
        if (!err && strcmp(row->name, "router") != 0 && strcmp(row->name, "worker") != 0)
            err = err_set(eb, MOE_EINVAL, "unknown role");
    } else if (strcmp(name, "experts") == 0) {
        row->kind = TRACE_ROW_EXPERTS;
        err = read_experts(args, row, eb);
    } else if (strcmp(name, "conclave_end") == 0) {
        row->kind = TRACE_ROW_END;
        err = json_get_double(args, "lost", 0, COUNT_MAX, &row->lost, eb);
    }
    return err;
}

static moe_err
read_row(const cJSON *root, trace_row *row, errbuf *eb)
{
    const cJSON *args = cJSON_GetObjectItemCaseSensitive(root, "args");
    char ph[4], name[TRACE_NAME_MAX];
    if (!cJSON_IsObject(root) || !cJSON_IsObject(args))
        return err_set(eb, MOE_EINVAL, "no event with args");
    moe_err err = read_text(root, "ph", ph, sizeof ph, eb);
    if (!err) err = read_text(root, "name", name, sizeof name, eb);
    if (!err) err = read_args(args, row, eb);
    if (err) return err;
    if (ph[0] == 'M') return read_meta(args, name, row, eb);
    err = json_get_double(root, "ts", 0, TIME_US_MAX, &row->start_us, eb);
    if (!err) err = json_get_double(root, "dur", 0, TIME_US_MAX, &row->duration_us, eb);
    const bool result = strcmp(name, "result") == 0;
    switch (ph[0]) {
    case 'X':
        row->kind = TRACE_ROW_SPAN;
        memcpy(row->name, name, sizeof name);
        break;
    case 's': row->kind = result ? TRACE_ROW_RESULT_SENT : TRACE_ROW_DISPATCH_SENT; break;
    case 'f': row->kind = result ? TRACE_ROW_RESULT_RECEIVED : TRACE_ROW_DISPATCH_RECEIVED; break;
    default: break; /* of another program that added to the file */
    }
    return err;
}

static moe_err
read_line(const char *line, size_t len, trace_row_fn fn, void *ctx, errbuf *eb)
{
    if (len > 0 && line[len - 1] == ',') len--;
    if (len == 0 || (len == 1 && (line[0] == '[' || line[0] == ']'))) return MOE_OK;
    if (len > TRACE_LINE_BYTES_MAX)
        return err_set(eb, MOE_ERANGE, "longer than %u bytes", TRACE_LINE_BYTES_MAX);
    cJSON *root;
    moe_err err = json_parse(line, len, &root, eb);
    if (err) return err;
    trace_row row = {.layer = -1, .text = line, .text_len = len};
    err = read_row(root, &row, eb);
    if (!err) err = fn(ctx, &row, eb);
    free(row.expert_tokens);
    cJSON_Delete(root);
    return err;
}

moe_err
trace_read_text(const char *text, size_t len, trace_row_fn fn, void *ctx, errbuf *eb)
{
    size_t number = 1;
    for (size_t at = 0; at < len; number++) {
        const char *end = memchr(text + at, '\n', len - at);
        if (end == NULL) break; /* cut within a line */
        const size_t n = (size_t)(end - (text + at));
        const moe_err err = read_line(text + at, n, fn, ctx, eb);
        if (err) return err_wrap(eb, err, "line %zu", number);
        at += n + 1;
    }
    return MOE_OK;
}

moe_err
trace_read_file(const char *path, trace_row_fn fn, void *ctx, errbuf *eb)
{
    const void *map;
    size_t len;
    moe_err err = file_map(path, &map, &len, eb);
    if (err) return err;
    err = trace_read_text(map, len, fn, ctx, eb);
    file_unmap(map, len);
    return err ? err_wrap(eb, err, "%s", path) : MOE_OK;
}
