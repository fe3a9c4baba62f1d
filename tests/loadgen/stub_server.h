/* stub_server: a server that answers /v1/completions as a script says, right or wrong.
 *
 * The i-th completions request gets script[i % count].  It also has /v1/models (model "stub") and
 * /tokenize (a token for each word); /version does not exist.  /metrics counts its requests.
 *
 * Threads: start and stop from one thread; it has threads of its own, one for each connection.
 */
#ifndef MOE_TESTS_LOADGEN_STUB_SERVER_H
#define MOE_TESTS_LOADGEN_STUB_SERVER_H

#include <stddef.h>
#include <stdint.h>

typedef enum stub_answer {
    STUB_TOKENS,      /* three chunks " a", " b", " c", usage 5/3, [DONE] */
    STUB_OTHER,       /* the same with " d" for " c" */
    STUB_DRIBBLE,     /* the same, one byte a write */
    STUB_500,         /* an error answer in JSON */
    STUB_429,         /* the same, for a full queue */
    STUB_CUT,         /* the connection closes after one chunk */
    STUB_NO_ANSWER,   /* the connection closes after the request */
    STUB_NO_DONE,     /* ends in order, but without [DONE] */
    STUB_EMPTY,       /* usage with 0 tokens */
    STUB_ERROR_EVENT, /* an error within the stream */
    STUB_FLOOD,       /* a line without end */
    STUB_HANG         /* one chunk, then nothing until the server stops or the client goes */
} stub_answer;

typedef struct stub_server stub_server;

/* Listens on 127.0.0.1 when it returns; aborts the test when it can't. */
stub_server *stub_server_start(const stub_answer *script, size_t count);
/* From the arrival of completions request number `at` on, and for stall_ns, no answer is begun.
 * Call before the first request. */
void stub_server_set_stall(stub_server *s, size_t at, uint64_t stall_ns);
/* When that was, clock_now_ns(); both 0 when it did not happen. */
void stub_server_get_stall(stub_server *s, uint64_t *start_ns, uint64_t *end_ns);
/* Ends every connection and joins every thread. */
void stub_server_stop(stub_server *s);

/* "http://127.0.0.1:PORT" */
const char *stub_server_url(const stub_server *s);
/* Completions requests so far, and the most that were open at one time. */
size_t stub_server_requests(stub_server *s);
size_t stub_server_peak(stub_server *s);
/* The i-th completions request's body, or NULL; valid until stop. */
const char *stub_server_body(stub_server *s, size_t i);

#endif
