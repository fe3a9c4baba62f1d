/* Design notes
 *
 * A connection (a `peer`) hands its frames over one after the other.  A call takes one of the
 * server's `concurrency` slots, which owns the arena that the request is unpacked into:
 *
 *     FREE -> TAKEN -> HANDLING -> FREE
 *                          \-> ABANDONED -> (released by its handler after rpc_server_stop)
 *
 * While no slot is free, peers stand in line with their next call, and are not read meanwhile.
 * Nor is a peer that does not read its replies: they wait in its queue, bounded by bytes.
 *
 * server->mutex guards slots, peers, `stopping` and the memory of replies.  nng's functions called
 * under it don't block and run none of our callbacks on this thread.
 *
 * The keeper is the server's one thread: it frees lost connections, which nng's threads can't do,
 * and accepts again after a failure.
 *
 * The server's memory is counted: one reference for its owner, one for each call that a handler
 * holds.  A peer's: one for its connection, one for each such call.
 */
#include <assert.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc.h"
#include "proto/rpc_auth.h"
#include "proto/rpc_conn.h"
#include "proto/rpc_dedup.h"
#include "proto/rpc_wire.h"

#define CONCURRENCY_DEFAULT 8
#define CONNECTION_DEFAULT 256
#define CONNECTION_LIMIT 65536
#define KEPT_REPLY_COUNT 512
#define KEPT_REPLY_BYTES 4096
#define ACCEPT_RETRY_MS 100 /* say, out of descriptors */
#define FLUSH_LIMIT_MS 1000 /* of a stop: a peer that doesn't read its replies loses them */

typedef struct peer peer;
typedef enum call_state { CALL_FREE, CALL_TAKEN, CALL_HANDLING, CALL_ABANDONED } call_state;

struct rpc_call {
    rpc_server *server;
    rpc_call *next_free;
    peer *from;
    arena *memory; /* of `request` */
    ProtobufCMessage *request;
    rpc_header header;
    uint64_t deadline_ns;
    call_state state;
};

struct peer {
    rpc_server *server;
    peer *next; /* in server->peers */
    rpc_conn *conn;
    uint32_t id;
    unsigned references;
    bool lost; /* the keeper frees conn */
    bool authenticated;
    unsigned char nonce[RPC_NONCE_BYTES];
    rpc_frame *replies, **replies_end; /* not begun to be written */
    size_t reply_bytes;
    bool crowded;    /* its next call waits for replies to be written */
    rpc_call *given; /* the slot it stood in line for */
    bool in_line;
    peer *next_in_line;
};

struct rpc_server {
    char url[RPC_URL_MAX];
    ProtobufCService *service;
    uint64_t fingerprint;
    size_t message_bytes_max;
    size_t unpacked_bytes_max;
    unsigned concurrency;
    unsigned connection_max;
    rpc_secret secret;
    nng_stream_listener *listener;
    nng_aio *acceptor;
    pthread_t keeper;
    bool keeper_started;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    unsigned references;
    bool stopping, keeper_ends;
    uint64_t accept_at_ns; /* 0 = accepting */
    rpc_dedup *seen;
    rpc_call *calls; /* [concurrency] */
    rpc_call *free_calls;
    peer *peers;
    unsigned peer_count;
    uint32_t last_peer_id;
    peer *line, **line_end;
};

static void
server_free(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++)
        arena_free(s->calls[i].memory);
    free(s->calls);
    rpc_dedup_free(s->seen);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    explicit_bzero(&s->secret, sizeof s->secret);
    free(s);
}

static void
server_unref(rpc_server *s)
{
    pthread_mutex_lock(&s->mutex);
    const bool last = --s->references == 0;
    pthread_mutex_unlock(&s->mutex);
    if (last) server_free(s);
}

static void
peer_unref_locked(peer *p)
{
    if (--p->references == 0) free(p);
}

/* ---- replies ---- */

/* A reply to the frame with this header, with room for body_bytes; NULL when out of memory. */
static rpc_frame *
reply_alloc(const rpc_server *s, const rpc_header *to, rpc_kind kind, rpc_status status,
            size_t body_bytes)
{
    rpc_header header = rpc_header_make(kind, (uint32_t)body_bytes);
    header.service = s->fingerprint;
    header.incarnation = to->incarnation;
    header.request_id = to->request_id;
    header.method = to->method;
    header.status = status;
    return rpc_frame_alloc(&header);
}

static rpc_frame *
error_reply(const rpc_server *s, const rpc_header *to, rpc_status status, const char *text)
{
    const size_t len = strlen(text);
    rpc_frame *frame = reply_alloc(s, to, RPC_KIND_REPLY, status, len);
    if (frame != NULL) memcpy(rpc_frame_body(frame), text, len);
    return frame;
}

/* frame NULL (out of memory): the client's deadline ends its call. */
static void
send_locked(peer *p, rpc_frame *frame)
{
    if (p->lost || frame == NULL) {
        free(frame);
        return;
    }
    *p->replies_end = frame;
    p->replies_end = &frame->next;
    p->reply_bytes += frame->bytes;
    rpc_conn_write_locked(p->conn);
}

static void
answer(peer *p, rpc_frame *frame)
{
    pthread_mutex_lock(&p->server->mutex);
    send_locked(p, frame);
    pthread_mutex_unlock(&p->server->mutex);
}

static rpc_frame *
on_next_locked(void *arg)
{
    peer *p = arg;
    rpc_frame *frame = p->replies;
    if (frame == NULL) return NULL;
    p->replies = frame->next;
    if (p->replies == NULL) p->replies_end = &p->replies;
    p->reply_bytes -= frame->bytes;
    if (p->crowded) {
        p->crowded = false;
        rpc_conn_resume_locked(p->conn);
    }
    return frame;
}

static void __attribute__((format(printf, 4, 5)))
refuse(peer *p, const rpc_header *to, rpc_status status, const char *fmt, ...)
{
    char text[MOE_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    LOG_DEBUG("rpc", "%s: refused a message status=%s: %s", p->server->url, rpc_status_name(status),
              text);
    answer(p, error_reply(p->server, to, status, text));
}

/* ---- slots ---- */

/* To the peer that has waited longest, if any. */
static void
release_locked(rpc_call *call)
{
    rpc_server *s = call->server;
    peer *first = s->line;
    if (first != NULL) {
        s->line = first->next_in_line;
        if (s->line == NULL) s->line_end = &s->line;
        first->in_line = false;
        first->given = call;
        call->state = CALL_TAKEN;
        rpc_conn_resume_locked(first->conn);
        return;
    }
    call->state = CALL_FREE;
    call->next_free = s->free_calls;
    s->free_calls = call;
}

/* A slot for the peer's next call, or NULL: the peer is lost, or will be resumed. */
static rpc_call *
take_locked(peer *p)
{
    rpc_server *s = p->server;
    rpc_call *call = p->given;
    if (p->lost) return NULL;
    if (call != NULL) {
        p->given = NULL;
        return call;
    }
    call = s->line == NULL ? s->free_calls : NULL;
    if (call != NULL) {
        s->free_calls = call->next_free;
        call->state = CALL_TAKEN;
    } else if (!p->in_line) {
        p->in_line = true;
        p->next_in_line = NULL;
        *s->line_end = p;
        s->line_end = &p->next_in_line;
    }
    return call;
}

static void
leave_line_locked(peer *p)
{
    rpc_server *s = p->server;
    if (p->given != NULL) {
        rpc_call *call = p->given;
        p->given = NULL;
        release_locked(call);
    }
    if (!p->in_line) return;
    p->in_line = false;
    s->line_end = &s->line;
    for (peer **at = &s->line; *at != NULL;) {
        if (*at == p) {
            *at = p->next_in_line;
        } else {
            s->line_end = &(*at)->next_in_line;
            at = s->line_end;
        }
    }
}

/* ---- calls ---- */

/* Finish a call that a handler holds, and let go of it. */
static void
finish(rpc_call *call, rpc_frame *frame)
{
    rpc_server *s = call->server;
    peer *p = call->from;
    pthread_mutex_lock(&s->mutex);
    assert(call->state == CALL_HANDLING || call->state == CALL_ABANDONED);
    call->request = NULL;
    arena_reset(call->memory);
    if (call->state == CALL_ABANDONED) {
        free(frame);
    } else {
        rpc_dedup_finish(s->seen, call->header.incarnation, call->header.request_id,
                         frame != NULL ? (const void *)frame->data : "",
                         frame != NULL ? frame->bytes : 0);
        send_locked(p, frame);
        release_locked(call);
    }
    peer_unref_locked(p);
    pthread_mutex_unlock(&s->mutex);
    server_unref(s);
}

void
rpc_reply(rpc_call *call, const ProtobufCMessage *response)
{
    const rpc_server *s = call->server;
    assert(response->descriptor == s->service->descriptor->methods[call->header.method].output);
    const size_t len = protobuf_c_message_get_packed_size(response);
    if (len > s->message_bytes_max) {
        rpc_fail(call, RPC_RESOURCE_EXHAUSTED, "response of %zu bytes exceeds the limit of %zu",
                 len, s->message_bytes_max);
        return;
    }
    rpc_frame *frame = reply_alloc(s, &call->header, RPC_KIND_REPLY, RPC_OK, len);
    if (frame != NULL) protobuf_c_message_pack(response, rpc_frame_body(frame));
    finish(call, frame);
}

void
rpc_fail(rpc_call *call, rpc_status status, const char *fmt, ...)
{
    char text[MOE_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    finish(call, error_reply(call->server, &call->header, status == RPC_OK ? RPC_INTERNAL : status,
                             text));
}

void
rpc_fail_err(rpc_call *call, moe_err err, const errbuf *eb)
{
    rpc_fail(call, rpc_status_from_err(err), "%s", eb->text);
}

uint64_t
rpc_call_deadline_ns(const rpc_call *call)
{
    return call->deadline_ns;
}

uint32_t
rpc_call_connection(const rpc_call *call)
{
    return call->from->id;
}

uint64_t
rpc_call_incarnation(const rpc_call *call)
{
    return call->header.incarnation;
}

/* The ProtobufCClosure of every method. */
static void
on_closure(const ProtobufCMessage *response, void *closure_data)
{
    if (response != NULL)
        rpc_reply(closure_data, response);
    else
        rpc_fail(closure_data, RPC_INTERNAL, "the method gave no response");
}

static void
refuse_copy(peer *p, const rpc_header *header, rpc_dedup_verdict verdict)
{
    refuse(p, header, RPC_FAILED_PRECONDITION, "request %" PRIu64 " %s", header->request_id,
           verdict == RPC_DEDUP_RUNNING ? "is being carried out already"
           : verdict == RPC_DEDUP_DONE  ? "was carried out already and its reply is no longer kept"
                                        : "is too old to tell whether it was carried out");
}

/* Hand the call in the slot to its method unless it was seen before. */
static void
dispatch(peer *p, rpc_call *call)
{
    rpc_server *s = p->server;
    const rpc_header header = call->header;
    const void *reply;
    size_t len;

    pthread_mutex_lock(&s->mutex);
    if (s->stopping) {
        release_locked(call);
        pthread_mutex_unlock(&s->mutex);
        return;
    }
    const rpc_dedup_verdict verdict =
        rpc_dedup_begin(s->seen, header.incarnation, header.request_id, &reply, &len);
    const bool repeat = reply != NULL && len != 0;
    if (verdict == RPC_DEDUP_NEW) {
        call->state = CALL_HANDLING;
        call->from = p;
        p->references++;
        s->references++;
    } else {
        if (repeat) {
            const rpc_header body = {.body_bytes = (uint32_t)(len - sizeof header)};
            rpc_frame *copy = rpc_frame_alloc(&body);
            if (copy != NULL) memcpy(copy->data, reply, len);
            send_locked(p, copy);
        }
        release_locked(call);
    }
    pthread_mutex_unlock(&s->mutex);

    if (verdict == RPC_DEDUP_NEW)
        s->service->invoke(s->service, header.method, call->request, on_closure, call);
    else if (!repeat)
        refuse_copy(p, &header, verdict);
}

static void
unpack_and_dispatch(peer *p, rpc_call *call, const rpc_header *header, const uint8_t *body)
{
    rpc_server *s = p->server;
    const ProtobufCMessageDescriptor *type = s->service->descriptor->methods[header->method].input;
    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_release, .allocator_data = call->memory};
    const uint64_t timeout_ms =
        header->timeout_ms < RPC_TIMEOUT_MS_MAX ? header->timeout_ms : RPC_TIMEOUT_MS_MAX;
    call->header = *header;
    call->deadline_ns = clock_now_ns() + timeout_ms * NS_PER_MS;
    arena_reset(call->memory);
    call->request = protobuf_c_message_unpack(type, &allocator, header->body_bytes, body);
    if (call->request != NULL) {
        dispatch(p, call);
        return;
    }
    pthread_mutex_lock(&s->mutex);
    release_locked(call);
    pthread_mutex_unlock(&s->mutex);
    refuse(p, header, RPC_INVALID_ARGUMENT, "request does not unpack as %s", type->name);
}

/* false: not now. */
static bool
handle_call(peer *p, const rpc_header *header, const uint8_t *body)
{
    rpc_server *s = p->server;
    const ProtobufCServiceDescriptor *service = s->service->descriptor;
    if (s->secret.len != 0 && !p->authenticated) {
        refuse(p, header, RPC_UNAUTHENTICATED, "this server wants a secret");
    } else if (header->service != s->fingerprint) {
        refuse(p, header, RPC_UNIMPLEMENTED,
               "this is %s, the client wants another service or version", service->name);
    } else if (header->method >= service->n_methods) {
        refuse(p, header, RPC_UNIMPLEMENTED, "%s has no method %u", service->name,
               (unsigned)header->method);
    } else if (header->body_bytes > s->message_bytes_max) {
        refuse(p, header, RPC_RESOURCE_EXHAUSTED, "request of %u bytes exceeds the limit of %zu",
               (unsigned)header->body_bytes, s->message_bytes_max);
    } else {
        pthread_mutex_lock(&s->mutex);
        rpc_call *call = take_locked(p);
        pthread_mutex_unlock(&s->mutex);
        if (call == NULL) return false;
        unpack_and_dispatch(p, call, header, body);
    }
    return true;
}

/* ---- what arrives ---- */

static void
handle_hello(peer *p, const rpc_header *header, const uint8_t *client_nonce)
{
    rpc_server *s = p->server;
    if (s->secret.len == 0) {
        refuse(p, header, RPC_FAILED_PRECONDITION, "this server has no secret to prove");
        return;
    }
    rpc_frame *frame =
        reply_alloc(s, header, RPC_KIND_CHALLENGE, RPC_OK, RPC_NONCE_BYTES + RPC_PROOF_BYTES);
    if (frame != NULL) {
        uint8_t *body = rpc_frame_body(frame);
        memcpy(body, p->nonce, RPC_NONCE_BYTES);
        rpc_proof_make(&s->secret, RPC_ROLE_SERVER, client_nonce, p->nonce, body + RPC_NONCE_BYTES);
    }
    answer(p, frame);
}

static void
handle_proof(peer *p, const rpc_header *header, const uint8_t *client_nonce)
{
    rpc_server *s = p->server;
    if (s->secret.len == 0 || !rpc_proof_check(&s->secret, RPC_ROLE_CLIENT, client_nonce, p->nonce,
                                               client_nonce + RPC_NONCE_BYTES)) {
        LOG_WARN("rpc", "%s: a client does not know the secret connection=%u", s->url,
                 (unsigned)p->id);
        refuse(p, header, RPC_PERMISSION_DENIED, "the secret is wrong");
        return;
    }
    p->authenticated = true;
    answer(p, reply_alloc(s, header, RPC_KIND_REPLY, RPC_OK, 0));
}

/* Replies wait up to the size of one message.  A peer with more gives its place in line away. */
static bool
is_crowded(peer *p)
{
    rpc_server *s = p->server;
    pthread_mutex_lock(&s->mutex);
    const bool crowded = !p->lost && p->reply_bytes > s->message_bytes_max;
    p->crowded = crowded;
    if (crowded) leave_line_locked(p);
    pthread_mutex_unlock(&s->mutex);
    return crowded;
}

static bool
on_arrived(void *arg, const rpc_header *header, const uint8_t *body)
{
    peer *p = arg;
    errbuf eb;
    const uint32_t body_bytes = header->body_bytes;
    if (is_crowded(p)) return false;
    const moe_err err = rpc_header_check(header, &eb);
    if (err != MOE_OK)
        refuse(p, header, rpc_status_from_err(err), "%s", eb.text);
    else if (header->kind == RPC_KIND_CALL)
        return handle_call(p, header, body);
    else if (header->kind == RPC_KIND_HELLO && body_bytes == RPC_NONCE_BYTES)
        handle_hello(p, header, body);
    else if (header->kind == RPC_KIND_PROOF && body_bytes == RPC_NONCE_BYTES + RPC_PROOF_BYTES)
        handle_proof(p, header, body);
    else
        refuse(p, header, RPC_INVALID_ARGUMENT, "kind %u with %u bytes is no message for a server",
               (unsigned)header->kind, (unsigned)body_bytes);
    return true;
}

/* Say why, and hang up. */
static void
on_garbled(void *arg, moe_err err, const char *why)
{
    peer *p = arg;
    rpc_server *s = p->server;
    LOG_WARN("rpc", "%s: connection dropped: %s", s->url, why);
    refuse(p, &(rpc_header){0}, rpc_status_from_err(err), "%s", why);
    pthread_mutex_lock(&s->mutex);
    rpc_conn_end_locked(p->conn);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- connections ---- */

static void
on_lost_locked(void *arg)
{
    peer *p = arg;
    p->lost = true;
    leave_line_locked(p);
    pthread_cond_broadcast(&p->server->changed);
}

/* A request of up to twice the limit gets an answer that says so; above that, the connection is
 * dropped before the body is read. */
static size_t
read_bytes_max(const rpc_server *s)
{
    return 2 * s->message_bytes_max + RPC_NONCE_BYTES + RPC_PROOF_BYTES;
}

/* NULL: refused.  Takes the stream over. */
static peer *
peer_create(rpc_server *s, nng_stream *stream)
{
    peer *p = calloc(1, sizeof *p);
    const rpc_conn_owner owner = {.arg = p,
                                  .mutex = &s->mutex,
                                  .body_bytes_max = read_bytes_max(s),
                                  .next_locked = on_next_locked,
                                  .arrived = on_arrived,
                                  .garbled = on_garbled,
                                  .lost_locked = on_lost_locked};
    if (p == NULL || rpc_nonce_make(p->nonce) != MOE_OK) {
        nng_stream_free(stream);
        free(p);
        return NULL;
    }
    p->server = s;
    p->references = 1;
    p->replies_end = &p->replies;
    if (rpc_conn_open(&p->conn, stream, &owner) == MOE_OK) return p;
    free(p);
    return NULL;
}

static void
add_peer(rpc_server *s, nng_stream *stream)
{
    peer *p = peer_create(s, stream);
    pthread_mutex_lock(&s->mutex);
    if (p != NULL) {
        p->id = ++s->last_peer_id;
        p->next = s->peers;
        s->peers = p;
        s->peer_count++;
        rpc_conn_start_locked(p->conn);
    }
    const bool refused = p == NULL || s->stopping || s->peer_count > s->connection_max;
    if (refused && p != NULL) rpc_conn_close_locked(p->conn);
    const bool log = refused && !s->stopping;
    pthread_mutex_unlock(&s->mutex);
    if (log) LOG_WARN("rpc", "%s: connection refused, too many", s->url);
}

static void
accept_locked(rpc_server *s)
{
    s->accept_at_ns = 0;
    if (!s->stopping) nng_stream_listener_accept(s->listener, s->acceptor);
}

static void
on_accepted(void *arg)
{
    rpc_server *s = arg;
    const int rc = nng_aio_result(s->acceptor);
    if (rc == 0) add_peer(s, nng_aio_get_output(s->acceptor, 0));
    pthread_mutex_lock(&s->mutex);
    const bool failed = rc != 0 && !s->stopping;
    if (rc == 0) accept_locked(s);
    if (failed) {
        s->accept_at_ns = clock_now_ns() + ACCEPT_RETRY_MS * NS_PER_MS;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    if (failed) LOG_WARN("rpc", "%s: accept: %s", s->url, nng_strerror(rc));
}

/* Give up the connection's reference; its calls' stay. */
static void
free_lost_peer_locked(rpc_server *s, peer **at)
{
    peer *p = *at;
    *at = p->next;
    pthread_mutex_unlock(&s->mutex);
    rpc_conn_free(p->conn);
    pthread_mutex_lock(&s->mutex);
    p->conn = NULL;
    while (p->replies != NULL) {
        rpc_frame *frame = p->replies;
        p->replies = frame->next;
        free(frame);
    }
    s->peer_count--;
    peer_unref_locked(p);
    pthread_cond_broadcast(&s->changed);
}

static bool
free_one_lost_locked(rpc_server *s)
{
    for (peer **at = &s->peers; *at != NULL; at = &(*at)->next) {
        if (!(*at)->lost) continue;
        free_lost_peer_locked(s, at);
        return true;
    }
    return false;
}

/* until_ns 0: no limit.  false: it passed. */
static bool
wait_locked(rpc_server *s, uint64_t until_ns)
{
    if (until_ns == 0) return pthread_cond_wait(&s->changed, &s->mutex) == 0;
    const struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                                   .tv_nsec = (long)(until_ns % NS_PER_S)};
    return pthread_cond_timedwait(&s->changed, &s->mutex, &until) == 0;
}

static void *
keeper_main(void *arg)
{
    rpc_server *s = arg;
    pthread_mutex_lock(&s->mutex);
    while (!s->keeper_ends) {
        if (free_one_lost_locked(s)) continue;
        if (s->accept_at_ns != 0 && clock_now_ns() >= s->accept_at_ns)
            accept_locked(s);
        else
            wait_locked(s, s->accept_at_ns);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- start and stop ---- */

static moe_err
check_options(const rpc_server_options *opt, errbuf *eb)
{
    const moe_err err = rpc_url_check(opt->url, eb);
    if (err != MOE_OK) return err;
    if (opt->message_bytes_max > RPC_MESSAGE_BYTES_MAX || opt->concurrency > RPC_CONCURRENCY_MAX ||
        opt->connection_max > CONNECTION_LIMIT)
        return err_set(eb, MOE_ERANGE, "%s: an option is outside its limits", opt->url);
    return rpc_service_check(opt->service->descriptor, eb);
}

static void
init_locks(rpc_server *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&s->mutex, NULL);
}

static moe_err
server_create(rpc_server **out, const rpc_server_options *opt)
{
    rpc_server *s = calloc(1, sizeof *s);
    *out = s;
    if (s == NULL) return MOE_ENOMEM;
    init_locks(s);
    s->references = 1;
    s->line_end = &s->line;
    snprintf(s->url, sizeof s->url, "%s", opt->url);
    s->service = opt->service;
    s->fingerprint = rpc_service_fingerprint(opt->service->descriptor);
    s->message_bytes_max =
        opt->message_bytes_max != 0 ? opt->message_bytes_max : RPC_MESSAGE_BYTES_DEFAULT;
    s->unpacked_bytes_max = opt->unpacked_bytes_max != 0 ? opt->unpacked_bytes_max
                                                         : 4 * s->message_bytes_max + (1u << 20);
    s->connection_max = opt->connection_max != 0 ? opt->connection_max : CONNECTION_DEFAULT;
    s->concurrency = opt->concurrency != 0 ? opt->concurrency : CONCURRENCY_DEFAULT;
    s->calls = calloc(s->concurrency, sizeof *s->calls);
    if (s->calls == NULL) return MOE_ENOMEM;
    for (unsigned i = s->concurrency; i-- > 0;) {
        rpc_call *call = &s->calls[i];
        const moe_err err = arena_create(&call->memory, s->unpacked_bytes_max);
        if (err != MOE_OK) return err;
        call->server = s;
        call->next_free = s->free_calls;
        s->free_calls = call;
    }
    return rpc_dedup_create(&s->seen, KEPT_REPLY_COUNT + 2 * s->concurrency, KEPT_REPLY_BYTES);
}

/* The url with the port that the system chose. */
static void
resolve_port(rpc_server *s)
{
    int port;
    char *colon = strrchr(s->url, ':');
    if (strncmp(s->url, "tcp", 3) != 0 || colon == NULL || strcmp(colon, ":0") != 0) return;
    if (nng_stream_listener_get_int(s->listener, NNG_OPT_TCP_BOUND_PORT, &port) != 0) return;
    snprintf(colon, sizeof s->url - (size_t)(colon - s->url), ":%d", port);
}

/* nng removes an ipc file that nobody answers on, and ours when it closes. */
static moe_err
server_listen(rpc_server *s, errbuf *eb)
{
    int rc = nng_stream_listener_alloc(&s->listener, s->url);
    if (rc == 0) {
        /* Of these, each transport knows its own. */
        nng_stream_listener_set_bool(s->listener, NNG_OPT_TCP_NODELAY, true);
        nng_stream_listener_set_bool(s->listener, NNG_OPT_TCP_KEEPALIVE, true);
        if (strncmp(s->url, RPC_IPC_PREFIX, strlen(RPC_IPC_PREFIX)) == 0)
            rc = nng_stream_listener_set_int(s->listener, NNG_OPT_IPC_PERMISSIONS, 0600);
    }
    if (rc == 0) rc = nng_aio_alloc(&s->acceptor, on_accepted, s);
    if (rc == 0) rc = nng_stream_listener_listen(s->listener);
    if (rc != 0) return err_set(eb, MOE_EIO, "can't listen on %s: %s", s->url, nng_strerror(rc));
    resolve_port(s);
    return MOE_OK;
}

static moe_err
start_keeper(rpc_server *s, errbuf *eb)
{
    sigset_t all, old;
    sigfillset(&all); /* signals are for the threads that know them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int rc = pthread_create(&s->keeper, NULL, keeper_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) return err_set(eb, MOE_EIO, "%s: no thread", s->url);
    pthread_setname_np(s->keeper, "rpc-server");
    s->keeper_started = true;
    return MOE_OK;
}

moe_err
rpc_server_start(rpc_server **out, const rpc_server_options *opt, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_options(opt, eb);
    if (err != MOE_OK) return err;

    rpc_server *s = NULL;
    err = server_create(&s, opt);
    if (err != MOE_OK) err_set(eb, err, "%s: out of memory", opt->url);
    if (err == MOE_OK) err = rpc_secret_set(&s->secret, opt->secret, opt->secret_bytes, eb);
    if (err == MOE_OK) err = server_listen(s, eb);
    if (err == MOE_OK) err = start_keeper(s, eb);
    if (err != MOE_OK) {
        rpc_server_stop(s);
        return err;
    }
    pthread_mutex_lock(&s->mutex);
    accept_locked(s);
    pthread_mutex_unlock(&s->mutex);
    *out = s;
    return MOE_OK;
}

static void
abandon_calls_locked(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++) {
        rpc_call *call = &s->calls[i];
        if (call->state != CALL_HANDLING) continue;
        call->state = CALL_ABANDONED;
        send_locked(call->from,
                    error_reply(s, &call->header, RPC_UNAVAILABLE, "the server is stopping"));
    }
}

/* Let what was answered go out, then hang up. */
static void
close_peers_locked(rpc_server *s)
{
    const uint64_t until_ns = clock_now_ns() + FLUSH_LIMIT_MS * NS_PER_MS;
    for (peer *p = s->peers; p != NULL; p = p->next) {
        if (!p->lost) rpc_conn_end_locked(p->conn);
    }
    while (s->peer_count != 0 && wait_locked(s, until_ns)) {
    }
    for (peer *p = s->peers; p != NULL; p = p->next) {
        if (!p->lost) rpc_conn_close_locked(p->conn);
    }
    while (s->peer_count != 0)
        wait_locked(s, 0);
}

void
rpc_server_stop(rpc_server *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->mutex);
    s->stopping = true;
    pthread_mutex_unlock(&s->mutex);
    if (s->listener != NULL) nng_stream_listener_close(s->listener);
    if (s->acceptor != NULL) nng_aio_stop(s->acceptor);

    pthread_mutex_lock(&s->mutex);
    abandon_calls_locked(s);
    close_peers_locked(s);
    s->keeper_ends = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    if (s->keeper_started) pthread_join(s->keeper, NULL);

    if (s->listener != NULL) nng_stream_listener_free(s->listener);
    nng_aio_free(s->acceptor);
    server_unref(s);
}

const char *
rpc_server_url(const rpc_server *s)
{
    return s->url;
}
