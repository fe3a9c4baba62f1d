/* completion: one request to /v1/completions, from its parsed body to the text of its answer.
 *
 * A request is prompts x n sequences ("choices").  All are reserved and submitted together; their
 * events arrive on the engine's thread and become text there.  A stream's events gather in one
 * bounded buffer until the connection reads them; without a stream the answer is printed once all
 * choices have ended.
 *
 *   create -> start -> (wake, read)* -> [abort] -> release
 *
 * Lifetime: counted references.  The creator has one, every submitted sequence has one until its
 * last event; the last to go frees it.  So the connection may end before the sequences do.
 *
 * Threads: each function says; `wake` is called from the engine's thread, with no lock held.
 */
#ifndef MOE_FRONTEND_COMPLETION_H
#define MOE_FRONTEND_COMPLETION_H

#include "frontend/api_error.h"
#include "frontend/api_metrics.h"
#include "frontend/completion_request.h"
#include "frontend/engine.h"

/* All text of one answer; what needs more is refused half way, with an error. */
#define COMPLETION_ANSWER_BYTES_MAX ((size_t)64 << 20)

typedef struct completion completion;

/* What completions share; borrowed, constant. */
typedef struct completion_env {
    engine *engine;
    const tokenizer *tok;
    const char *model;
    api_metrics *metrics;
    size_t stream_bytes_max; /* unread text of a stream: a client slower than this is cut off */
} completion_env;

/* Whoever waits for the answer. */
typedef struct completion_host {
    void (*wake)(void *user);     /* there is something to read, or the answer is ready */
    void (*too_slow)(void *user); /* the client has let its stream exceed the bound */
    void (*freed)(void *user);    /* last call: the completion is gone */
    void *user;
} completion_host;

/* Takes over *request (also on error, when it is emptied and `freed` is not called).  NULL: out of
 * memory.  arrival_ns: clock_now_ns() when the request arrived. */
completion *completion_create(const completion_env *env, completion_request *request,
                              uint64_t arrival_ns, completion_host host);
void completion_retain(completion *c);
void completion_release(completion *c);

/* Reserve and submit all sequences.  False: *error says why (429 if the queue is full), and what
 * was submitted is being aborted. */
bool completion_start(completion *c, api_error *error);

/* End all sequences that still run, as soon as the engine can.  Reading gives COMPLETION_BROKEN
 * from now on.  Any thread, any number of times; never blocks on the engine's progress. */
void completion_abort(completion *c);

bool completion_is_stream(const completion *c);

typedef enum completion_state {
    COMPLETION_WAIT,  /* nothing yet: wake follows */
    COMPLETION_READY, /* stream: *len bytes were read; else: completion_print() may be called */
    COMPLETION_END,   /* stream: all was read */
    COMPLETION_BROKEN /* aborted: close the connection */
} completion_state;

/* A stream's next bytes, at most max. */
completion_state completion_read(completion *c, char *out, size_t max, size_t *len);

/* Without a stream: is the answer ready? */
completion_state completion_poll(completion *c);
/* Once it is: append the body to out, or fill *error (status 500 or 503) and return false.  Call
 * once. */
bool completion_print(completion *c, strbuf *out, api_error *error);

#endif
