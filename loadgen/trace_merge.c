#include "loadgen/trace_merge.h"

#include <stdlib.h>
#include <string.h>

#include "loadgen/json_writer.h"

typedef struct merger {
    const trace_align *align;
    FILE *to;
    size_t process; /* of the file being copied, from 1 */
    double offset_us;
} merger;

/* Find the number that stands after the first `"key":`.  A quote inside of a string is escaped, so
 * what is found is a key; of the top level, since what --trace writes has its args last. */
static bool
find_number(const char *text, size_t len, const char *key, const char **value, const char **rest)
{
    const char *at = memmem(text, len, key, strlen(key));
    if (at == NULL) return false;
    *value = at + strlen(key);
    *rest = *value;
    while (*rest < text + len && strchr("0123456789+-.eE", **rest) != NULL)
        (*rest)++;
    return *rest > *value;
}

/* The pieces of a line around its process number and its time. */
static void
copy_line(const merger *m, const trace_row *row)
{
    const char *at = row->text, *end = row->text + row->text_len, *value, *rest;
    if (find_number(at, (size_t)(end - at), "\"pid\":", &value, &rest)) {
        fwrite(at, 1, (size_t)(value - at), m->to);
        fprintf(m->to, "%zu", m->process);
        at = rest;
    }
    if (find_number(at, (size_t)(end - at), "\"ts\":", &value, &rest)) {
        fwrite(at, 1, (size_t)(value - at), m->to);
        fprintf(m->to, "%.3f", row->start_us - m->offset_us);
        at = rest;
    }
    fwrite(at, 1, (size_t)(end - at), m->to);
    fputs(",\n", m->to);
}

static moe_err
on_row(void *ctx, const trace_row *row, errbuf *eb)
{
    merger *m = ctx;
    copy_line(m, row);
    if (row->kind == TRACE_ROW_HEAD) {
        const trace_host *host = &m->align->hosts[trace_align_host(m->align, row)];
        m->offset_us = host->offset_us;
        fprintf(m->to,
                "{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":%zu,\"args\":{"
                "\"sort_index\":%zu}},\n",
                m->process, m->process);
    }
    return ferror(m->to) ? err_set(eb, MOE_EIO, "writing failed") : MOE_OK;
}

/* The last element, so that no comma follows. */
static moe_err
write_hosts(const trace_align *a, FILE *to, errbuf *eb)
{
    json_writer w;
    json_writer_init(&w, to);
    json_open(&w, '{');
    json_key_text(&w, "ph", "M");
    json_key_text(&w, "name", "conclave_merge");
    json_key_number(&w, "pid", 1);
    json_key(&w, "args");
    json_open(&w, '{');
    json_key(&w, "hosts");
    json_open(&w, '[');
    for (uint32_t i = 0; i < a->host_count; i++) {
        json_open(&w, '{');
        json_key_text(&w, "host", a->hosts[i].name);
        json_key_bool(&w, "aligned", a->hosts[i].aligned);
        json_key_number(&w, "offset_us", a->hosts[i].offset_us);
        json_key_number(&w, "error_us", a->hosts[i].error_us);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_close(&w, '}');
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}

moe_err
trace_merge(const trace_align *align, const char *const *paths, size_t count, FILE *to, errbuf *eb)
{
    if (count > TRACE_MERGE_FILES_MAX)
        return err_set(eb, MOE_ERANGE, "%zu files, at most %d", count, TRACE_MERGE_FILES_MAX);
    merger m = {.align = align, .to = to};
    moe_err err = MOE_OK;
    fputs("[\n", to);
    for (size_t i = 0; i < count && !err; i++) {
        m.process = i + 1;
        m.offset_us = 0;
        err = trace_read_file(paths[i], on_row, &m, eb);
    }
    if (!err) err = write_hosts(align, to, eb);
    if (!err && fputs("]\n", to) < 0) err = err_set(eb, MOE_EIO, "writing failed");
    return err;
}

void
trace_merge_print_hosts(const trace_align *align, FILE *to)
{
    if (align->host_count < 2) return;
    for (uint32_t i = 0; i < align->host_count; i++) {
        const trace_host *h = &align->hosts[i];
        if (!h->aligned)
            fprintf(to, "host %s: no messages both ways, its clock is taken as it is\n", h->name);
        else
            fprintf(to, "host %s: clock %+.1f us, within %.1f us\n", h->name, h->offset_us,
                    h->error_us);
    }
}
