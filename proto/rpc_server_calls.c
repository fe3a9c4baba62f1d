/* What a server does with what arrives: its call slots, the handshake, and replies. */
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc_server_impl.h"

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
rpc_conn_owner
peer_conn_owner(peer *p)
{
    return (rpc_conn_owner){.arg = p,
                            .mutex = &p->server->mutex,
                            .body_bytes_max = 2 * p->server->message_bytes_max + RPC_NONCE_BYTES +
                                              RPC_PROOF_BYTES,
                            .next_locked = on_next_locked,
                            .arrived = on_arrived,
                            .garbled = on_garbled,
                            .lost_locked = on_lost_locked};
}

void
server_abandon_calls_locked(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++) {
        rpc_call *call = &s->calls[i];
        if (call->state != CALL_HANDLING) continue;
        call->state = CALL_ABANDONED;
        send_locked(call->from,
                    error_reply(s, &call->header, RPC_UNAVAILABLE, "the server is stopping"));
    }
}
