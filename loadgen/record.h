/* record: what was observed of one request.
 *
 * The client writes a record while the answer streams in; measure and report read it afterwards.
 * Times are clock_now_ns(); 0 means "did not happen".
 *
 * A request is `completed` only when the server answered 200, streamed at least one token, sent its
 * usage and ended the stream with [DONE].  Anything else is a failure with a reason, so that an
 * empty or torn answer can't pass for a fast one.
 *
 * Threads: one at a time for each record.
 */
#ifndef MOE_LOADGEN_RECORD_H
#define MOE_LOADGEN_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/strbuf.h"

#define RECORD_TEXT_BYTES_MAX (16u << 20)
#define RECORD_CHUNKS_MAX (1u << 20)
#define RECORD_FINISH_MAX 16

typedef struct request_record {
    uint64_t scheduled_ns; /* when the schedule wanted it sent */
    uint64_t ready_ns;     /* scheduled_ns, or later when it had to wait for a free place */
    uint64_t send_ns;      /* when it was handed to the network */
    uint64_t last_ns;      /* the last event that carried a choice */
    uint64_t end_ns;       /* the transfer is over, either way */

    uint64_t *chunk_ns; /* [chunk_count] arrival of each chunk with tokens; owned */
    size_t chunk_count, chunk_capacity;

    strbuf text;                           /* the generated text */
    int64_t prompt_tokens;                 /* from the usage chunk; -1 = not told */
    int64_t output_tokens;                 /* likewise */
    char finish_reason[RECORD_FINISH_MAX]; /* "" = none */
    int http_status;                       /* 0 = no answer */
    bool stream_ended;                     /* [DONE] was seen */
    bool completed;
    bool failed;
    char *error; /* owned; why it failed, NULL otherwise (or when memory ran out) */
} request_record;

void record_init(request_record *r);
void record_fini(request_record *r);

/* Zero-initialised records [count], each record_init()ed; NULL when out of memory. */
request_record *record_array_create(size_t count);
void record_array_free(request_record *records, size_t count);

/* A chunk with tokens arrived. */
void record_add_chunk(request_record *r, uint64_t now_ns);

/* The first reason stays: what follows a failure is its consequence. */
void record_fail(request_record *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Why a finished request failed; "" when it completed.  Valid as long as the record. */
const char *record_error(const request_record *r);

/* The transfer is over: set end_ns and decide whether the request completed. */
void record_finish(request_record *r, uint64_t now_ns);

#endif
