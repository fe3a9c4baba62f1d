/* POST /v1/completions between libmicrohttpd and completion.h: queueing, suspending, streaming. */
#include "frontend/http_exchange.h"

#include "common/log.h"

#define READ_BYTES_MAX ((size_t)16 << 10) /* of one chunk on the wire */

/* ---- the completion's host ---- */

static void
wake_cb(void *user)
{
    http_exchange *x = user;
    parking_wake(&x->parking);
}

static void
too_slow_cb(void *user)
{
    http_exchange *x = user;
    LOG_WARN("http", "a client reads its stream too slowly and is cut off");
    hangup_cut(x->server->hangup, x->watch);
}

static void
freed_cb(void *user)
{
    http_exchange *x = user;
    http_server *s = x->server;
    http_exchange_release(x);
    pthread_mutex_lock(&s->lock);
    s->completions--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void
retain_cb(void *user)
{
    completion_retain(user);
}

static void
gone_cb(void *user)
{
    completion_abort(user);
    completion_release(user);
}

/* ---- start ---- */

/* Enter the list of what computes.  False: the server is stopping, and has perhaps gone through the
 * list already: nothing may be started. */
static bool
enlist(http_exchange *x)
{
    http_server *s = x->server;
    pthread_mutex_lock(&s->lock);
    const bool stopping = s->stopping;
    s->completions++;
    x->next = s->computing;
    if (x->next != NULL) x->next->prev = x;
    s->computing = x;
    pthread_mutex_unlock(&s->lock);
    return !stopping;
}

static void
delist(http_exchange *x)
{
    http_server *s = x->server;
    pthread_mutex_lock(&s->lock);
    if (x->prev != NULL) x->prev->next = x->next;
    if (x->next != NULL) x->next->prev = x->prev;
    if (s->computing == x) s->computing = x->next;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static bool
watch_client(http_exchange *x)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (info == NULL) return false;
    const hangup_target target = {.retain = retain_cb, .on_gone = gone_cb, .user = x->completion};
    x->watch = hangup_watch(x->server->hangup, info->connect_fd, target);
    return x->watch != 0;
}

/* Parse the body into x->completion. */
static bool
prepare(http_exchange *x, api_error *error)
{
    http_server *s = x->server;
    completion_request request;
    char detail[HTTP_DETAIL_BYTES];
    if (!http_ready(x, engine_takes, detail, error)) return false;
    const completion_limits limits = http_limits(s);
    const bool good =
        completion_request_parse(&request, &limits, strbuf_text(&x->body), x->body.len, error);
    http_exchange_drop_body(x);
    if (!good) return false;
    const completion_host host = {
        .wake = wake_cb, .too_slow = too_slow_cb, .freed = freed_cb, .user = x};
    x->completion = completion_create(&s->env, &request, x->arrival_ns, host);
    if (x->completion == NULL) return api_error_set(error, 500, NULL, "out of memory");
    http_exchange_retain(x);
    return true;
}

/* ---- the answer ---- */

/* End a stream so that the client can't take it for whole: shut the socket, then let libmicrohttpd
 * fail to write the end.  END_WITH_ERROR would do, but 0.9.75 then keeps a connection that has just
 * been resumed, closed but not cleaned up, until its idle timeout. */
static ssize_t
break_off(http_exchange *x)
{
    hangup_cut(x->server->hangup, x->watch);
    return MHD_CONTENT_READER_END_OF_STREAM;
}

static ssize_t
read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    http_exchange *x = cls;
    for (;;) {
        size_t len;
        switch (completion_read(x->completion, buf, max, &len)) {
        case COMPLETION_READY: return (ssize_t)len;
        case COMPLETION_END: return MHD_CONTENT_READER_END_OF_STREAM;
        case COMPLETION_BROKEN: return break_off(x);
        case COMPLETION_WAIT: break;
        }
        if (parking_park(&x->parking)) return 0;
    }
}

static void
release_cb(void *cls)
{
    http_exchange_release(cls);
}

static enum MHD_Result
answer_stream(http_exchange *x)
{
    http_exchange_retain(x);
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, READ_BYTES_MAX, read_stream, x, release_cb);
    if (response == NULL) {
        http_exchange_release(x);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream");
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* proxies: pass events on */
    const enum MHD_Result result = MHD_queue_response(x->conn, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    x->answered = true;
    api_metrics_response(&x->server->metrics, 200);
    return result;
}

static enum MHD_Result
answer_whole(http_exchange *x)
{
    strbuf text;
    api_error error;
    strbuf_init(&text, 2 * COMPLETION_ANSWER_BYTES_MAX);
    const enum MHD_Result result = completion_print(x->completion, &text, &error)
                                       ? http_answer(x, 200, "application/json", &text)
                                       : http_refuse(x, &error);
    strbuf_fini(&text);
    return result;
}

enum MHD_Result
http_completion_continue(http_exchange *x)
{
    for (;;) {
        switch (completion_poll(x->completion)) {
        case COMPLETION_READY: return answer_whole(x);
        case COMPLETION_BROKEN: api_metrics_response(&x->server->metrics, 499); return MHD_NO;
        case COMPLETION_END:
        case COMPLETION_WAIT: break;
        }
        if (parking_park(&x->parking)) return MHD_YES;
    }
}

enum MHD_Result
http_completion_start(http_exchange *x)
{
    api_error error = {0};
    if (!prepare(x, &error)) return http_refuse(x, &error);
    if (!enlist(x)) {
        api_error_set(&error, 503, NULL, "the server is stopping");
    } else if (!watch_client(x)) {
        api_error_set(&error, 503, NULL, "the connection can't be watched");
    } else if (completion_start(x->completion, &error)) {
        return completion_is_stream(x->completion) ? answer_stream(x) : http_completion_continue(x);
    }
    return http_refuse(x, &error);
}

void
http_completion_finish(http_exchange *x)
{
    parking_close(&x->parking);
    hangup_unwatch(x->server->hangup, x->watch);
    if (x->completion == NULL) return;
    completion_abort(x->completion); /* does nothing to what has ended */
    delist(x);
    completion_release(x->completion);
}
