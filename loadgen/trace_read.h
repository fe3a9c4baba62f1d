/* trace_read: the files of --trace (common/trace.h), read line by line.
 *
 * A file may be cut anywhere (its process was killed, the disk was full): what comes before is
 * read. Anything else that is not what common/trace.h writes is an error that names the line.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_TRACE_READ_H
#define MOE_LOADGEN_TRACE_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"

#define TRACE_NAME_MAX 24
#define TRACE_ID_MAX 1024 /* routers and workers are below it */
#define TRACE_LAYER_MAX 4096
#define TRACE_EXPERT_MAX 65536
#define TRACE_LINE_BYTES_MAX (2u << 20)

typedef enum trace_row_kind {
    TRACE_ROW_OTHER, /* for viewers only */
    TRACE_ROW_HEAD,  /* who wrote the file */
    TRACE_ROW_SPAN,
    TRACE_ROW_DISPATCH_SENT,
    TRACE_ROW_DISPATCH_RECEIVED,
    TRACE_ROW_RESULT_SENT,
    TRACE_ROW_RESULT_RECEIVED,
    TRACE_ROW_EXPERTS,
    TRACE_ROW_END
} trace_row_kind;

typedef struct trace_row {
    trace_row_kind kind;
    char name[TRACE_NAME_MAX]; /* of a span; head: "router" or "worker" */
    char host[64];             /* head */
    double start_us, duration_us;
    double sent_us, busy_us, bytes;
    double step, lost;
    int32_t layer; /* -1 = none */
    uint32_t micro_batch, router, worker, rows;
    uint32_t id;           /* head */
    uint32_t expert_count; /* experts */
    double *expert_tokens; /* [expert_count]; valid during the call */
    const char *text;      /* [text_len] the line without its comma; valid during the call */
    size_t text_len;
} trace_row;

typedef moe_err (*trace_row_fn)(void *ctx, const trace_row *row, errbuf *eb);

/* Calls fn for every row, until it returns an error.
 *   MOE_EINVAL, MOE_ERANGE  the text is no trace; the error names the line
 *   MOE_ENOMEM; and what fn returns */
moe_err trace_read_text(const char *text, size_t len, trace_row_fn fn, void *ctx, errbuf *eb);
/* The same of a file, whose name errors bear.   MOE_ENOTFOUND, MOE_EIO */
moe_err trace_read_file(const char *path, trace_row_fn fn, void *ctx, errbuf *eb);

#endif
