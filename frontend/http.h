/* http: the public server: OpenAI's completions API, health, metrics, and tokenizing.
 *
 *   POST /v1/completions   GET /v1/models   POST /tokenize   POST /detokenize
 *   GET /health            GET /version     GET /metrics
 *
 * libmicrohttpd's threads take in requests, check them, and write answers; a request that waits for
 * the engine suspends its connection, so a few threads serve all streams.  Prompts are encoded on
 * those threads too: encoding is linear, a text that can't fit the context is refused unread, and
 * the body's limit bounds the rest.  A prompt that fits a context of 32k takes some 2 ms; a body
 * of 4 MB holds up the streams of its own thread, one in HTTP_THREADS_DEFAULT, for about 0.1 s.  A
 * client that leaves, or reads too slowly, has its sequences aborted at once.
 *
 * Every error is {"error": {"message", "type", "param", "code"}}, except what libmicrohttpd refuses
 * by itself before there is a request (malformed or oversized headers).
 *
 * Threads: start and stop from one thread.
 */
#ifndef MOE_FRONTEND_HTTP_H
#define MOE_FRONTEND_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/metrics.h"
#include "common/strbuf.h"
#include "frontend/engine.h"
#include "frontend/tokenizer.h"

/* Used where http_config has 0. */
#define HTTP_THREADS_DEFAULT 4u
#define HTTP_CONNECTIONS_DEFAULT 1024u
#define HTTP_IDLE_SECONDS_DEFAULT 120u /* without a byte moving; not while computing */
#define HTTP_BODY_BYTES_DEFAULT ((size_t)4 << 20)
#define HTTP_STREAM_BYTES_DEFAULT ((size_t)1 << 20)

#define HTTP_HEADER_BYTES_MAX ((size_t)32 << 10)  /* of one connection, buffers included */
#define HTTP_BODIES_BYTES_MAX ((size_t)256 << 20) /* of all requests being received */
#define HTTP_DRAIN_BYTES_MAX                                                                       \
    ((size_t)16 << 20)       /* of a refused request's body, read and dropped                      \
                              */
#define HTTP_STOP_WAIT_S 30u /* for the engine's last events, after the grace period */

/* All pointers are borrowed until http_stop() has returned. */
typedef struct http_config {
    const char *host;            /* name or address; NULL = 127.0.0.1 */
    uint16_t port;               /* 0 = any free one: http_port() */
    const char *model;           /* the served name */
    const char *const *api_keys; /* [api_key_count]; none: open to everybody */
    size_t api_key_count;
    const char *tls_cert, *tls_key; /* PEM texts, both or none */
    uint32_t threads;
    uint32_t connections_max, connections_per_ip_max; /* per ip: 0 = no limit */
    uint32_t idle_seconds;
    size_t body_bytes_max;
    size_t stream_bytes_max; /* unread bytes of one stream; slower clients are cut off */
    bool fixed_seed;         /* completion_limits: answers without a seed of their own repeat */
    uint64_t base_seed;
    uint32_t stop_grace_ms; /* how long http_stop() lets running requests finish */
    metrics *metrics;       /* printed by /metrics; may be NULL */
    void (*more_metrics)(void *user, strbuf *out); /* appends to /metrics; any thread, or NULL */
    void *more_user;
} http_config;

typedef struct http_server http_server;

/* Start serving.  e and tok are borrowed until http_stop() has returned.
 *   MOE_EINVAL  an API key is empty or too long; one of tls_cert and tls_key alone; unknown host
 *   MOE_EIO     the address can't be bound, or threads could not be started
 *   MOE_ENOMEM  */
moe_err http_start(http_server **out, const http_config *config, engine *e, const tokenizer *tok,
                   errbuf *eb);

uint16_t http_port(const http_server *s);

/* Refuse new requests (503, /health too), let running ones finish for stop_grace_ms, abort the
 * rest, and free all. The engine may have stopped and ended its sequences before, but must not be
 * freed yet.  Accepts NULL. */
void http_stop(http_server *s);

#endif
