/* sse: the same events whatever the cuts, and bounded memory. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/sse.h"

TestSuite(sse, .timeout = 20);

/* Events, each in brackets. */
static void
collect(void *ctx, const char *data, size_t len)
{
    strbuf *out = ctx;
    strbuf_puts(out, "<");
    strbuf_append(out, data, len);
    strbuf_puts(out, ">");
    cr_assert_eq(data[len], '\0');
}

static void
expect_events(const char *stream, size_t len, size_t step, const char *want)
{
    sse_parser p;
    strbuf got;
    sse_init(&p, 1000);
    strbuf_init(&got, 10000);
    for (size_t i = 0; i < len; i += step) {
        const size_t n = len - i < step ? len - i : step;
        /* An exact copy, so that a read past the piece is seen. */
        char *piece = malloc(n);
        memcpy(piece, stream + i, n);
        cr_assert_eq(sse_feed(&p, piece, n, collect, &got), MOE_OK);
        free(piece);
    }
    cr_expect_str_eq(strbuf_text(&got), want, "in steps of %zu", step);
    sse_fini(&p);
    strbuf_fini(&got);
}

static const struct {
    const char *stream, *want;
} cases[] = {
    {"data: a\n\ndata: b\n\n", "<a><b>"},
    {"data: a\r\n\r\ndata: b\r\n\r\n", "<a><b>"},
    {"data: a\r\rdata: b\r\r", "<a><b>"},
    {"data: a\r\n\ndata: b\n\r\n", "<a><b>"},
    {"data: one\r\ndata: two\r\n\r\n", "<one\ntwo>"},
    {"data:a\n\n", "<a>"},
    {"data:  a \n\n", "< a >"},
    {"data: one\ndata: two\ndata\ndata:\n\n", "<one\ntwo\n\n>"},
    {": keep-alive\n\n:\n\ndata: a\n: inside\n\n", "<a>"},
    {"event: x\nid: 4\nretry: 9\ndata: a\n\n", "<a>"},
    {"event: only\n\n\n\n", ""},
    {"\xef\xbb\xbf"
     "data: a\n\n",
     "<a>"},
    {"database: a\ndat: b\n data: c\n\n", ""},
    {"data: {\"x\": \"\xc3\xa4\"}\n\ndata: [DONE]\n\n", "<{\"x\": \"\xc3\xa4\"}><[DONE]>"},
    {"data: complete\n\ndata: cut short\n", "<complete>"},
};

Test(sse, finds_the_same_events_wherever_the_stream_is_cut)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t len = strlen(cases[i].stream);
        for (size_t step = 1; step <= len; step++) {
            expect_events(cases[i].stream, len, step, cases[i].want);
        }
    }
}

Test(sse, a_line_or_event_over_the_bound_is_an_error_until_reset)
{
    char line[101];
    memset(line, 'x', sizeof line);
    for (int many_lines = 0; many_lines < 2; many_lines++) {
        sse_parser p;
        strbuf got;
        sse_init(&p, 100);
        strbuf_init(&got, 10000);
        moe_err err = MOE_OK;
        if (many_lines) {
            for (int i = 0; i < 30 && !err; i++) {
                err = sse_feed(&p, "data: 12345678\n", 15, collect, &got);
            }
        } else {
            cr_expect_eq(sse_feed(&p, line, 100, collect, &got), MOE_OK);
            err = sse_feed(&p, line, 1, collect, &got);
        }
        cr_expect_eq(err, MOE_ERANGE);
        cr_expect_eq(sse_feed(&p, "\n\ndata: a\n\n", 11, collect, &got), MOE_ERANGE);
        cr_expect_str_eq(strbuf_text(&got), "");

        sse_reset(&p);
        cr_expect_eq(sse_feed(&p, "data: a\n\n", 9, collect, &got), MOE_OK);
        cr_expect_str_eq(strbuf_text(&got), "<a>");
        sse_fini(&p);
        strbuf_fini(&got);
    }
}
