#include "loadgen/sse.h"

#include <string.h>

void
sse_init(sse_parser *p, size_t byte_max)
{
    *p = (sse_parser){0};
    strbuf_init(&p->line, byte_max);
    strbuf_init(&p->data, byte_max);
}

void
sse_fini(sse_parser *p)
{
    strbuf_fini(&p->line);
    strbuf_fini(&p->data);
}

void
sse_reset(sse_parser *p)
{
    strbuf_reset(&p->line);
    strbuf_reset(&p->data);
    p->after_cr = p->started = false;
    p->error = MOE_OK;
}

static void
end_event(sse_parser *p, sse_event_cb on_event, void *ctx)
{
    if (p->data.len != 0) {
        p->data.text[--p->data.len] = '\0'; /* the LF after the last line is no part of it */
        on_event(ctx, p->data.text, p->data.len);
    }
    strbuf_reset(&p->data);
}

/* line is NUL-terminated; a NUL inside it can only shorten a field's name. */
static void
end_line(sse_parser *p, sse_event_cb on_event, void *ctx)
{
    const char *line = strbuf_text(&p->line);
    size_t len = p->line.len;
    if (!p->started && len >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) {
        line += 3;
        len -= 3;
    }
    p->started = true;

    if (len == 0) {
        end_event(p, on_event, ctx);
    } else if (len >= 4 && memcmp(line, "data", 4) == 0 && (len == 4 || line[4] == ':')) {
        size_t value = len == 4 ? 4 : 5;
        if (value < len && line[value] == ' ') value++;
        strbuf_append(&p->data, line + value, len - value);
        strbuf_append(&p->data, "\n", 1);
    }
    strbuf_reset(&p->line);
}

moe_err
sse_feed(sse_parser *p, const char *bytes, size_t n, sse_event_cb on_event, void *ctx)
{
    size_t start = 0;
    for (size_t i = 0; i < n && p->error == MOE_OK; i++) {
        const char c = bytes[i];
        const bool lf_of_crlf = c == '\n' && p->after_cr;
        p->after_cr = c == '\r';
        if (lf_of_crlf) {
            start = i + 1;
        } else if (c == '\n' || c == '\r') {
            strbuf_append(&p->line, bytes + start, i - start);
            start = i + 1;
            if (p->line.failed)
                p->error = MOE_ERANGE;
            else
                end_line(p, on_event, ctx);
            if (p->data.failed) p->error = MOE_ERANGE;
        }
    }
    if (p->error == MOE_OK) {
        strbuf_append(&p->line, bytes + start, n - start);
        if (p->line.failed) p->error = MOE_ERANGE;
    }
    return p->error;
}
