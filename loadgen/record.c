#include "loadgen/record.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/err.h"

void
record_init(request_record *r)
{
    *r = (request_record){.prompt_tokens = -1, .output_tokens = -1};
    strbuf_init(&r->text, RECORD_TEXT_BYTES_MAX);
}

void
record_fini(request_record *r)
{
    free(r->chunk_ns);
    free(r->error);
    strbuf_fini(&r->text);
    record_init(r);
}

request_record *
record_array_create(size_t count)
{
    request_record *records = calloc(count + 1, sizeof *records);
    for (size_t i = 0; records != NULL && i < count; i++) {
        record_init(&records[i]);
    }
    return records;
}

void
record_array_free(request_record *records, size_t count)
{
    if (records == NULL) return;
    for (size_t i = 0; i < count; i++) {
        record_fini(&records[i]);
    }
    free(records);
}

void
record_add_chunk(request_record *r, uint64_t now_ns)
{
    if (r->chunk_count == RECORD_CHUNKS_MAX) {
        record_fail(r, "more than %u chunks", RECORD_CHUNKS_MAX);
        return;
    }
    if (r->chunk_count == r->chunk_capacity) {
        const size_t capacity = r->chunk_capacity == 0 ? 64 : 2 * r->chunk_capacity;
        uint64_t *grown = realloc(r->chunk_ns, capacity * sizeof *grown);
        if (grown == NULL) {
            record_fail(r, "out of memory after %zu chunks", r->chunk_count);
            return;
        }
        r->chunk_ns = grown;
        r->chunk_capacity = capacity;
    }
    r->chunk_ns[r->chunk_count++] = now_ns;
}

void
record_fail(request_record *r, const char *fmt, ...)
{
    if (r->failed) return;
    r->failed = true;
    char text[MOE_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->error = strdup(text);
}

void
record_finish(request_record *r, uint64_t now_ns)
{
    r->end_ns = now_ns;
    if (r->http_status != 0 && r->http_status != 200)
        record_fail(r, "HTTP %d", r->http_status);
    else if (r->text.failed)
        record_fail(r, "the answer's text is longer than %u bytes", RECORD_TEXT_BYTES_MAX);
    else if (!r->stream_ended)
        record_fail(r, "the stream ended without [DONE] after %zu chunks", r->chunk_count);
    else if (r->output_tokens < 0)
        record_fail(r, "the stream carried no usage, so its token count is unknown");
    else if (r->output_tokens == 0 || r->chunk_count == 0)
        record_fail(r, "empty answer: %lld tokens in %zu chunks", (long long)r->output_tokens,
                    r->chunk_count);
    else if (!r->failed)
        r->completed = true;
}

const char *
record_error(const request_record *r)
{
    if (r->completed) return "";
    return r->error ? r->error : "failed (and no memory to say why)";
}
