/* sse: server-sent events out of a byte stream that may be cut anywhere.
 *
 * Follows the event stream format of the HTML standard (section 9.2.6): lines end in LF, CR or
 * CRLF; a line that starts with a colon is a comment; `data` lines of one event are joined by LF;
 * an empty line ends the event; an event without data is dropped, and so is one that the stream's
 * end cuts short.  The fields event, id and retry are read over: no server here uses them.
 *
 * A line and an event are each bounded by byte_max, so a peer can't make this process grow.
 *
 * Threads: one at a time for each parser.
 */
#ifndef MOE_LOADGEN_SSE_H
#define MOE_LOADGEN_SSE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/strbuf.h"

/* One event's data: len bytes and a NUL after them, borrowed for the call. */
typedef void (*sse_event_cb)(void *ctx, const char *data, size_t len);

typedef struct sse_parser {
    strbuf line; /* the unfinished line */
    strbuf data; /* the unfinished event, each line followed by LF */
    bool after_cr;
    bool started; /* the first line, which may carry a byte order mark, is over */
    moe_err error;
} sse_parser;

void sse_init(sse_parser *p, size_t byte_max);
void sse_fini(sse_parser *p);
/* Ready for the next stream; keeps the memory. */
void sse_reset(sse_parser *p);

/* Take the next bytes [n] of the stream and report each event that they complete.
 *   MOE_ERANGE  a line or an event is longer than byte_max (or memory ran out); every later call
 *               returns the same until sse_reset() */
moe_err sse_feed(sse_parser *p, const char *bytes, size_t n, sse_event_cb on_event, void *ctx);

#endif
