/* http_exchange: one HTTP request and its answer; inside of http.h's server.
 *
 * Lifetime: counted references: libmicrohttpd's until the request is completed, the response's
 * while a stream is being sent, the completion's until its last sequence has ended.
 *
 * Threads: one connection's callbacks come one at a time; what other threads touch is atomic, or
 * guarded by the lock named.
 */
#ifndef MOE_FRONTEND_HTTP_EXCHANGE_H
#define MOE_FRONTEND_HTTP_EXCHANGE_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/strbuf.h"
#include "frontend/api_error.h"
#include "frontend/api_metrics.h"
#include "frontend/completion.h"
#include "frontend/hangup.h"
#include "frontend/http.h"
#include "frontend/parking.h"

typedef struct http_exchange http_exchange;

struct http_server {
    http_config config; /* defaults filled in */
    engine *engine;
    const tokenizer *tok;
    struct MHD_Daemon *daemon;
    hangup *hangup;
    api_metrics metrics;
    completion_env env;
    completion_limits limits; /* but for max_model_len: http_limits() */
    atomic_size_t body_bytes; /* held by requests being received */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool stopping;
    http_exchange *computing; /* exchanges with a completion whose connection is open */
    uint32_t completions;     /* not freed yet */
};

/* Answer a request whose body is complete. */
typedef enum MHD_Result http_handler(http_exchange *x);

typedef struct http_route {
    const char *path;
    const char *method;
    bool open; /* needs no API key */
    http_handler *handle;
} http_route;

struct http_exchange {
    atomic_uint refs;
    http_server *server;
    struct MHD_Connection *conn;
    const http_route *route;
    uint64_t arrival_ns;
    strbuf body;
    size_t body_counted; /* part of server->body_bytes */
    size_t drained;
    api_error refusal; /* status 0: none */
    const char *allow; /* with 405 */
    bool answered;

    completion *completion; /* NULL: none */
    parking parking;
    uint64_t watch;             /* hangup's handle; 0: none */
    bool swept;                 /* guarded by the server's lock: aborted by http_stop() */
    http_exchange *next, *prev; /* guarded by the server's lock */
};

void http_exchange_retain(http_exchange *x);
void http_exchange_release(http_exchange *x);
void http_exchange_drop_body(http_exchange *x);

/* Queue an answer.  Text is copied. */
enum MHD_Result http_answer(http_exchange *x, int status, const char *content_type,
                            const strbuf *text);
enum MHD_Result http_refuse(http_exchange *x, const api_error *error);

#define HTTP_DETAIL_BYTES 256

/* Ask the engine: engine_ready(), or engine_takes().  If not, *error (503) says why. */
bool http_ready(http_exchange *x, bool (*asked)(engine *e, char *detail, size_t detail_size),
                char detail[HTTP_DETAIL_BYTES], api_error *error);

/* POST /v1/completions: start it, look again after a wake-up, and let go of it. */
enum MHD_Result http_completion_start(http_exchange *x);
enum MHD_Result http_completion_continue(http_exchange *x);
void http_completion_finish(http_exchange *x);

/* The route for this path, NULL if there is none; *allow is set if only the method is wrong. */
const http_route *http_route_find(const char *path, const char *method, const char **allow);

/* The limits as they stand: the context's length is known only once the engine has met its router.
 */
completion_limits http_limits(const http_server *s);

#endif
