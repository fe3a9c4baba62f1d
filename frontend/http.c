#include "frontend/http.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "frontend/http_common.h"
#include "frontend/http_exchange.h"

/* ---- exchanges ---- */

void
http_exchange_retain(http_exchange *x)
{
    atomic_fetch_add_explicit(&x->refs, 1, memory_order_relaxed);
}

void
http_exchange_drop_body(http_exchange *x)
{
    atomic_fetch_sub_explicit(&x->server->body_bytes, x->body_counted, memory_order_relaxed);
    x->body_counted = 0;
    strbuf_fini(&x->body);
}

/* The last reference may go after the server has: nothing of it is touched here. */
void
http_exchange_release(http_exchange *x)
{
    if (atomic_fetch_sub_explicit(&x->refs, 1, memory_order_acq_rel) != 1) return;
    parking_fini(&x->parking);
    strbuf_fini(&x->body);
    free(x);
}

static http_exchange *
exchange_create(http_server *s, struct MHD_Connection *conn)
{
    http_exchange *x = calloc(1, sizeof *x);
    if (x == NULL) return NULL;
    atomic_init(&x->refs, 1);
    x->server = s;
    x->conn = conn;
    x->arrival_ns = clock_now_ns();
    strbuf_init(&x->body, s->config.body_bytes_max);
    parking_init(&x->parking, conn);
    return x;
}

/* ---- answers ---- */

enum MHD_Result
http_answer(http_exchange *x, int status, const char *content_type, const strbuf *text)
{
    const enum MHD_Result result = http_send(x->conn, status, content_type, text, x->allow);
    if (result == MHD_NO) return MHD_NO;
    x->answered = true;
    api_metrics_response(&x->server->metrics, status);
    return result;
}

enum MHD_Result
http_refuse(http_exchange *x, const api_error *error)
{
    strbuf text;
    strbuf_init(&text, 16 * API_ERROR_TEXT_MAX);
    api_error_print(error, &text);
    const enum MHD_Result result = http_answer(x, error->status, "application/json", &text);
    strbuf_fini(&text);
    return result;
}

bool
http_ready(http_exchange *x, bool (*asked)(engine *e, char *detail, size_t detail_size),
           char detail[HTTP_DETAIL_BYTES], api_error *error)
{
    http_server *s = x->server;
    detail[0] = '\0';
    pthread_mutex_lock(&s->lock);
    const bool stopping = s->stopping;
    pthread_mutex_unlock(&s->lock);
    if (stopping) return api_error_set(error, 503, NULL, "the server is stopping");
    if (asked(s->engine, detail, HTTP_DETAIL_BYTES)) return true;
    return api_error_set(error, 503, NULL, "not ready: %s", detail);
}

/* ---- who may ask ---- */

static bool
authorized(const http_exchange *x)
{
    const http_config *config = &x->server->config;
    return config->api_key_count == 0 ||
           http_has_key(x->conn, config->api_keys, config->api_key_count);
}

/* ---- taking in a request ---- */

static uint64_t
declared_length(const http_exchange *x)
{
    const char *text =
        MHD_lookup_connection_value(x->conn, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return text == NULL ? 0 : strtoull(text, NULL, 10); /* libmicrohttpd has checked its form */
}

static void
refuse_body(http_exchange *x, uint64_t len)
{
    api_error_set(&x->refusal, 413, NULL, "the body has %s%llu bytes; the limit is %zu",
                  len != 0 ? "" : "more than ",
                  (unsigned long long)(len != 0 ? len : x->server->config.body_bytes_max),
                  x->server->config.body_bytes_max);
}

/* The request's line and headers are there: decide what can be decided without the body. */
static void
check_head(http_exchange *x, const char *path, const char *method)
{
    x->route = http_route_find(path, method, &x->allow);
    if ((x->route == NULL || !x->route->open) && !authorized(x)) {
        http_want_key(&x->refusal, "API key");
    } else if (x->route == NULL && x->allow != NULL) {
        api_error_set(&x->refusal, 405, NULL, "%.100s needs the method %s, not %.20s", path,
                      x->allow, method);
    } else if (x->route == NULL) {
        api_error_set(&x->refusal, 404, NULL, "there is no %.100s here", path);
    } else if (declared_length(x) > x->server->config.body_bytes_max) {
        refuse_body(x, declared_length(x));
    }
}

static enum MHD_Result
begin(http_server *s, struct MHD_Connection *conn, const char *path, const char *method,
      void **state)
{
    http_exchange *x = exchange_create(s, conn);
    if (x == NULL) return MHD_NO;
    *state = x;
    check_head(x, path, method);
    /* A refusal normally waits until the body was read and dropped: answering earlier would close
     * the connection with unread bytes, and the client might see a reset instead of the answer. */
    if (x->refusal.status != 0 && declared_length(x) > HTTP_DRAIN_BYTES_MAX)
        return http_refuse(x, &x->refusal);
    return MHD_YES;
}

static enum MHD_Result
take_body(http_exchange *x, const char *bytes, size_t *n)
{
    http_server *s = x->server;
    const size_t len = *n;
    *n = 0;
    if (x->answered) return MHD_YES;
    if (x->refusal.status != 0) {
        x->drained += len;
        return x->drained <= HTTP_DRAIN_BYTES_MAX ? MHD_YES : MHD_NO;
    }
    const size_t held = atomic_fetch_add_explicit(&s->body_bytes, len, memory_order_relaxed);
    x->body_counted += len;
    strbuf_append(&x->body, bytes, len);
    if (x->body.failed)
        refuse_body(x, 0);
    else if (held + len > HTTP_BODIES_BYTES_MAX)
        api_error_set(&x->refusal, 503, NULL, "too many request bodies are being received");
    if (x->refusal.status != 0) http_exchange_drop_body(x);
    return MHD_YES;
}

static enum MHD_Result
on_request(void *cls, struct MHD_Connection *conn, const char *path, const char *method,
           const char *version, const char *bytes, size_t *byte_count, void **state)
{
    (void)version;
    http_exchange *x = *state;
    if (x == NULL) return begin(cls, conn, path, method, state);
    if (*byte_count != 0) return take_body(x, bytes, byte_count);
    if (x->answered) return MHD_YES;
    if (x->refusal.status != 0) return http_refuse(x, &x->refusal);
    if (x->completion != NULL) return http_completion_continue(x);
    return x->route->handle(x);
}

static void
on_completed(void *cls, struct MHD_Connection *conn, void **state,
             enum MHD_RequestTerminationCode how)
{
    (void)cls, (void)conn, (void)how;
    http_exchange *x = *state;
    *state = NULL;
    if (x == NULL) return;
    http_completion_finish(x);
    http_exchange_drop_body(x);
    http_exchange_release(x);
}

/* ---- start and stop ---- */

static moe_err
check_config(const http_config *c, errbuf *eb)
{
    for (size_t i = 0; i < c->api_key_count; i++) {
        const moe_err err = http_check_key(c->api_keys[i], eb);
        if (err) return err;
    }
    if ((c->tls_cert == NULL) != (c->tls_key == NULL))
        return err_set(eb, MOE_EINVAL, "TLS needs a certificate and a key, not one of them");
    return MOE_OK;
}

static void
fill_defaults(http_config *c)
{
    if (c->host == NULL) c->host = "127.0.0.1";
    if (c->threads == 0) c->threads = HTTP_THREADS_DEFAULT;
    if (c->connections_max == 0) c->connections_max = HTTP_CONNECTIONS_DEFAULT;
    /* Each of the daemon's threads has its own share of the connections. */
    if (c->connections_max < c->threads) c->threads = c->connections_max;
    if (c->idle_seconds == 0) c->idle_seconds = HTTP_IDLE_SECONDS_DEFAULT;
    if (c->body_bytes_max == 0) c->body_bytes_max = HTTP_BODY_BYTES_DEFAULT;
    if (c->stream_bytes_max == 0) c->stream_bytes_max = HTTP_STREAM_BYTES_DEFAULT;
}

static moe_err
start_daemon(http_server *s, errbuf *eb)
{
    const http_config *c = &s->config;
    struct addrinfo *at;
    const moe_err err = http_resolve(c->host, c->port, &at, eb);
    if (err) return err;

    unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    if (at->ai_family == AF_INET6) flags |= MHD_USE_IPv6;
    if (c->tls_cert != NULL) flags |= MHD_USE_TLS;
    const struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)c->tls_cert},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)c->tls_key},
        {MHD_OPTION_END, 0, NULL},
    };
    const struct MHD_OptionItem pool[] = {
        {MHD_OPTION_THREAD_POOL_SIZE, (intptr_t)c->threads, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    errno = 0;
    s->daemon =
        MHD_start_daemon(flags, c->port, NULL, NULL, on_request, s,                     /* */
                         MHD_OPTION_EXTERNAL_LOGGER, http_log_daemon, NULL,             /* */
                         MHD_OPTION_SOCK_ADDR, at->ai_addr,                             /* */
                         MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,                  /* */
                         MHD_OPTION_CONNECTION_LIMIT, c->connections_max,               /* */
                         MHD_OPTION_PER_IP_CONNECTION_LIMIT, c->connections_per_ip_max, /* */
                         MHD_OPTION_CONNECTION_TIMEOUT, c->idle_seconds,                /* */
                         MHD_OPTION_CONNECTION_MEMORY_LIMIT, HTTP_HEADER_BYTES_MAX,     /* */
                         MHD_OPTION_ARRAY, c->threads > 1 ? pool : pool + 1,            /* */
                         MHD_OPTION_ARRAY, c->tls_cert != NULL ? tls : tls + 2, MHD_OPTION_END);
    const int why = errno;
    freeaddrinfo(at);
    if (s->daemon == NULL)
        return err_set(eb, MOE_EIO, "can't serve HTTP on %s port %u: %s", c->host, c->port,
                       why != 0 ? strerror(why) : "libmicrohttpd did not start");
    return MOE_OK;
}

moe_err
http_start(http_server **out, const http_config *config, engine *e, const tokenizer *tok,
           errbuf *eb)
{
    *out = NULL;
    moe_err err = check_config(config, eb);
    if (err) return err;
    http_server *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "http: out of memory");
    s->config = *config;
    fill_defaults(&s->config);
    s->engine = e;
    s->tok = tok;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    api_metrics_init(&s->metrics, config->metrics);
    s->env = (completion_env){.engine = e,
                              .tok = tok,
                              .model = config->model,
                              .metrics = &s->metrics,
                              .stream_bytes_max = s->config.stream_bytes_max};
    s->limits = (completion_limits){.tok = tok,
                                    .model = config->model,
                                    .fixed_seed = config->fixed_seed,
                                    .base_seed = config->base_seed};
    completion_limits_measure(&s->limits);

    err = hangup_create(&s->hangup, s->config.connections_max);
    if (err) err_set(eb, err, "http: the hang-up watcher can't be started");
    if (!err) err = start_daemon(s, eb);
    if (!err) {
        *out = s;
        return MOE_OK;
    }
    hangup_free(s->hangup);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return err;
}

completion_limits
http_limits(const http_server *s)
{
    completion_limits limits = s->limits;
    limits.max_model_len = engine_max_model_len(s->engine);
    limits.routing = engine_routing(s->engine);
    return limits;
}

uint16_t
http_port(const http_server *s)
{
    return http_bound_port(s->daemon);
}

/* Wait until nothing computes (with_sequences: and no completion is left), at most this long. */
static bool
wait_idle(http_server *s, uint64_t ms, bool with_sequences)
{
    const uint64_t end = clock_now_ns() + ms * NS_PER_MS;
    const struct timespec until = {.tv_sec = (time_t)(end / NS_PER_S),
                                   .tv_nsec = (long)(end % NS_PER_S)};
    pthread_mutex_lock(&s->lock);
    int late = 0;
    while (late == 0 && (s->computing != NULL || (with_sequences && s->completions != 0)))
        late = pthread_cond_timedwait(&s->changed, &s->lock, &until);
    pthread_mutex_unlock(&s->lock);
    return late == 0;
}

/* Abort every computing exchange.  After that none suspends its connection again. */
static void
abort_all(http_server *s)
{
    for (;;) {
        completion *c = NULL;
        pthread_mutex_lock(&s->lock);
        for (http_exchange *x = s->computing; x != NULL && c == NULL; x = x->next) {
            if (x->swept) continue;
            x->swept = true;
            c = x->completion;
            completion_retain(c);
        }
        pthread_mutex_unlock(&s->lock);
        if (c == NULL) return;
        completion_abort(c);
        completion_release(c);
    }
}

/* Connections are still accepted while requests finish, and told 503: MHD_quiesce_daemon() would
 * refuse them, but in 0.9.75 it and a worker thread can both take the listening socket out of the
 * worker's epoll set, and the second to do so ends the process. */
void
http_stop(http_server *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_mutex_unlock(&s->lock);
    wait_idle(s, s->config.stop_grace_ms, false);
    abort_all(s);
    MHD_stop_daemon(s->daemon);
    if (!wait_idle(s, HTTP_STOP_WAIT_S * 1000ull, true)) {
        /* Sequences may still call back: rather keep the memory than pull it from under them. */
        LOG_ERROR("http", "the engine has not ended all sequences wait_s=%u", HTTP_STOP_WAIT_S);
        return;
    }
    hangup_free(s->hangup);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
