/* Design notes
 *
 * A server has `concurrency` call slots.  A slot owns an nng context, which receives one request
 * and sends one reply in turn, and the arena its request is unpacked into:
 *
 *     RECEIVING -> HANDLING -> SENDING -> RECEIVING ...
 *                     \-> ABANDONED -> (released by its handler after rpc_server_stop)
 *
 * server->mutex guards the slots' state, `stopping` and the memory of replies.  A slot's context
 * and aios are only used under it (or in its own callbacks), and never once `stopping` is set, so
 * that rpc_server_stop() may free them while handlers still hold calls.  nng's functions called
 * under it don't block, and run no callback of ours on this thread that would take it: on_sent()
 * doesn't.
 *
 * The server's memory is counted: one reference for its owner, one for each call that a handler
 * holds.
 */
#include <errno.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc.h"
#include "proto/rpc_auth.h"
#include "proto/rpc_dedup.h"
#include "proto/rpc_nng.h"
#include "proto/rpc_peers.h"
#include "proto/rpc_wire.h"

#define CONCURRENCY_DEFAULT 8
#define CONNECTION_DEFAULT 256
#define CONNECTION_LIMIT 65536
#define KEPT_REPLY_COUNT 512
#define KEPT_REPLY_BYTES 4096
#define SEND_TIMEOUT_MS 2000 /* a peer that doesn't read its reply loses it */

typedef enum call_state { CALL_RECEIVING, CALL_HANDLING, CALL_SENDING, CALL_ABANDONED } call_state;

struct rpc_call {
    rpc_server *server;
    nng_ctx ctx;
    nng_aio *receiver;
    nng_aio *sender;
    arena *memory; /* of `request` */
    ProtobufCMessage *request;
    rpc_header header;
    uint32_t connection;
    uint64_t deadline_ns;
    call_state state;
};

struct rpc_server {
    char url[RPC_URL_MAX];
    ProtobufCService *service;
    uint64_t fingerprint;
    size_t message_bytes_max;
    size_t unpacked_bytes_max;
    unsigned concurrency;
    nng_socket socket;
    nng_listener listener;
    bool socket_open;
    rpc_secret secret;
    rpc_peers *peers;
    pthread_mutex_t mutex; /* guards what the design notes say */
    unsigned references;
    _Atomic bool stopping; /* set under the mutex; read without it by on_sent() */
    rpc_dedup *seen;
    rpc_call *calls; /* [concurrency] */
};

static void
server_free(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++)
        arena_free(s->calls[i].memory);
    free(s->calls);
    rpc_dedup_free(s->seen);
    rpc_peers_free(s->peers);
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

/* A reply to `call` with room for body_bytes after its header; NULL when out of memory. */
static nng_msg *
reply_alloc(const rpc_call *call, rpc_kind kind, rpc_status status, size_t body_bytes)
{
    nng_msg *msg;
    if (nng_msg_alloc(&msg, sizeof(rpc_header) + body_bytes) != 0) return NULL;
    rpc_header header = rpc_header_make(kind, (uint32_t)body_bytes);
    header.service = call->server->fingerprint;
    header.incarnation = call->header.incarnation;
    header.request_id = call->header.request_id;
    header.method = call->header.method;
    header.status = status;
    memcpy(nng_msg_body(msg), &header, sizeof header);
    return msg;
}

static nng_msg *
error_reply(const rpc_call *call, rpc_status status, const char *text)
{
    const size_t len = strlen(text);
    nng_msg *msg = reply_alloc(call, RPC_KIND_REPLY, status, len);
    if (msg != NULL) memcpy((char *)nng_msg_body(msg) + sizeof(rpc_header), text, len);
    return msg;
}

/* The context waits for its next request.  A request without a reply is dropped by nng. */
static void
receive(rpc_call *call)
{
    nng_ctx_recv(call->ctx, call->receiver);
}

static void
send_locked(rpc_call *call, nng_msg *msg)
{
    call->state = CALL_SENDING;
    nng_aio_set_msg(call->sender, msg);
    nng_ctx_send(call->ctx, call->sender);
}

static void
on_sent(void *arg)
{
    rpc_call *call = arg;
    if (nng_aio_result(call->sender) != 0) {
        nng_msg_free(nng_aio_get_msg(call->sender));
        nng_aio_set_msg(call->sender, NULL);
    }
    /* A slot that rpc_server_stop() abandoned must not take another request: its handler still
     * reads the last one. */
    if (!atomic_load(&call->server->stopping)) receive(call);
}

/* Answer a request that no handler has seen.  msg NULL (out of memory): the client's deadline ends
 * its call. */
static void
answer(rpc_call *call, nng_msg *msg)
{
    rpc_server *s = call->server;
    pthread_mutex_lock(&s->mutex);
    if (s->stopping) {
        nng_msg_free(msg);
    } else if (msg == NULL) {
        receive(call);
    } else {
        send_locked(call, msg);
    }
    pthread_mutex_unlock(&s->mutex);
}

static void __attribute__((format(printf, 3, 4)))
refuse(rpc_call *call, rpc_status status, const char *fmt, ...)
{
    char text[MOE_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    LOG_DEBUG("rpc", "%s: refused a message status=%s: %s", call->server->url,
              rpc_status_name(status), text);
    answer(call, error_reply(call, status, text));
}

/* Finish a call that a handler holds, and let go of it. */
static void
finish(rpc_call *call, nng_msg *msg)
{
    rpc_server *s = call->server;
    pthread_mutex_lock(&s->mutex);
    assert(call->state == CALL_HANDLING || call->state == CALL_ABANDONED);
    call->request = NULL;
    arena_reset(call->memory);
    if (call->state == CALL_ABANDONED) {
        nng_msg_free(msg);
    } else {
        rpc_dedup_finish(s->seen, call->header.incarnation, call->header.request_id,
                         msg != NULL ? nng_msg_body(msg) : "", msg != NULL ? nng_msg_len(msg) : 0);
        if (msg != NULL)
            send_locked(call, msg);
        else
            receive(call);
    }
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
    nng_msg *msg = reply_alloc(call, RPC_KIND_REPLY, RPC_OK, len);
    if (msg != NULL)
        protobuf_c_message_pack(response, (uint8_t *)nng_msg_body(msg) + sizeof(rpc_header));
    finish(call, msg);
}

void
rpc_fail(rpc_call *call, rpc_status status, const char *fmt, ...)
{
    char text[MOE_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    finish(call, error_reply(call, status == RPC_OK ? RPC_INTERNAL : status, text));
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
    return call->connection;
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

/* Hand the call to its method unless it was seen before. */
static void
dispatch(rpc_call *call)
{
    rpc_server *s = call->server;
    const void *reply;
    size_t len;
    nng_msg *copy = NULL;

    pthread_mutex_lock(&s->mutex);
    if (s->stopping) {
        pthread_mutex_unlock(&s->mutex);
        return;
    }
    const rpc_dedup_verdict verdict =
        rpc_dedup_begin(s->seen, call->header.incarnation, call->header.request_id, &reply, &len);
    if (verdict == RPC_DEDUP_NEW) {
        call->state = CALL_HANDLING;
        s->references++;
    } else if (reply != NULL && len != 0 && nng_msg_alloc(&copy, len) == 0) {
        memcpy(nng_msg_body(copy), reply, len);
    }
    pthread_mutex_unlock(&s->mutex);

    if (verdict == RPC_DEDUP_NEW) {
        s->service->invoke(s->service, call->header.method, call->request, on_closure, call);
    } else if (copy != NULL) {
        answer(call, copy);
    } else {
        refuse(call, RPC_FAILED_PRECONDITION, "request %" PRIu64 " %s", call->header.request_id,
               verdict == RPC_DEDUP_RUNNING ? "is being carried out already"
               : verdict == RPC_DEDUP_DONE
                   ? "was carried out already and its reply is no longer kept"
                   : "is too old to tell whether it was carried out");
    }
}

static void
handle_call(rpc_call *call, const uint8_t *body)
{
    rpc_server *s = call->server;
    const ProtobufCServiceDescriptor *service = s->service->descriptor;
    const rpc_header *header = &call->header;
    if (s->secret.len != 0 && !rpc_peers_authenticated(s->peers, call->connection)) {
        refuse(call, RPC_UNAUTHENTICATED, "this server wants a secret");
    } else if (header->service != s->fingerprint) {
        refuse(call, RPC_UNIMPLEMENTED, "this is %s, the client wants another service or version",
               service->name);
    } else if (header->method >= service->n_methods) {
        refuse(call, RPC_UNIMPLEMENTED, "%s has no method %u", service->name,
               (unsigned)header->method);
    } else if (header->body_bytes > s->message_bytes_max) {
        refuse(call, RPC_RESOURCE_EXHAUSTED, "request of %u bytes exceeds the limit of %zu",
               (unsigned)header->body_bytes, s->message_bytes_max);
    } else {
        ProtobufCAllocator allocator = {
            .alloc = arena_alloc, .free = arena_release, .allocator_data = call->memory};
        arena_reset(call->memory);
        call->request = protobuf_c_message_unpack(service->methods[header->method].input,
                                                  &allocator, header->body_bytes, body);
        if (call->request != NULL)
            dispatch(call);
        else
            refuse(call, RPC_INVALID_ARGUMENT, "request does not unpack as %s",
                   service->methods[header->method].input->name);
    }
}

static void
handle_hello(rpc_call *call, const uint8_t *client_nonce)
{
    rpc_server *s = call->server;
    unsigned char body[RPC_NONCE_BYTES + RPC_PROOF_BYTES];
    if (s->secret.len == 0) {
        refuse(call, RPC_FAILED_PRECONDITION, "this server has no secret to prove");
    } else if (!rpc_peers_nonce(s->peers, call->connection, body)) {
        answer(call, NULL); /* the connection is gone */
    } else {
        rpc_proof_make(&s->secret, RPC_ROLE_SERVER, client_nonce, body, body + RPC_NONCE_BYTES);
        nng_msg *msg = reply_alloc(call, RPC_KIND_CHALLENGE, RPC_OK, sizeof body);
        if (msg != NULL) memcpy((char *)nng_msg_body(msg) + sizeof(rpc_header), body, sizeof body);
        answer(call, msg);
    }
}

static void
handle_proof(rpc_call *call, const uint8_t *client_nonce)
{
    rpc_server *s = call->server;
    unsigned char nonce[RPC_NONCE_BYTES];
    if (s->secret.len == 0 || !rpc_peers_nonce(s->peers, call->connection, nonce) ||
        !rpc_proof_check(&s->secret, RPC_ROLE_CLIENT, client_nonce, nonce,
                         client_nonce + RPC_NONCE_BYTES)) {
        LOG_WARN("rpc", "%s: a client does not know the secret connection=%u", s->url,
                 (unsigned)call->connection);
        refuse(call, RPC_PERMISSION_DENIED, "the secret is wrong");
        return;
    }
    rpc_peers_set_authenticated(s->peers, call->connection);
    answer(call, reply_alloc(call, RPC_KIND_REPLY, RPC_OK, 0));
}

static void
handle_message(rpc_call *call, const uint8_t *bytes, size_t len)
{
    errbuf eb;
    const moe_err err = rpc_header_parse(&call->header, bytes, len, &eb);
    if (err != MOE_OK) {
        refuse(call, rpc_status_from_err(err), "%s", eb.text);
        return;
    }
    const uint64_t timeout_ms =
        call->header.timeout_ms < RPC_TIMEOUT_MS_MAX ? call->header.timeout_ms : RPC_TIMEOUT_MS_MAX;
    call->deadline_ns = clock_now_ns() + timeout_ms * NS_PER_MS;
    const uint8_t *body = bytes + sizeof(rpc_header);
    const uint32_t body_bytes = call->header.body_bytes;
    if (call->header.kind == RPC_KIND_CALL)
        handle_call(call, body);
    else if (call->header.kind == RPC_KIND_HELLO && body_bytes == RPC_NONCE_BYTES)
        handle_hello(call, body);
    else if (call->header.kind == RPC_KIND_PROOF && body_bytes == RPC_NONCE_BYTES + RPC_PROOF_BYTES)
        handle_proof(call, body);
    else
        refuse(call, RPC_INVALID_ARGUMENT, "kind %u with %u bytes is no message for a server",
               (unsigned)call->header.kind, (unsigned)body_bytes);
}

static void
on_received(void *arg)
{
    rpc_call *call = arg;
    const int rc = nng_aio_result(call->receiver);
    if (rc == NNG_ECLOSED || rc == NNG_ECANCELED) return; /* stopping */
    if (rc != 0) {
        LOG_WARN("rpc", "%s: receive: %s", call->server->url, nng_strerror(rc));
        answer(call, NULL);
        return;
    }
    nng_msg *msg = nng_aio_get_msg(call->receiver);
    nng_aio_set_msg(call->receiver, NULL);
    call->connection = (uint32_t)nng_pipe_id(nng_msg_get_pipe(msg));
    /* Unpacking copies, and a handler may answer (and this slot receive again) before this
     * returns: nothing of `call` is touched below. */
    handle_message(call, nng_msg_body(msg), nng_msg_len(msg));
    nng_msg_free(msg);
}

static void
on_pipe(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    rpc_server *s = arg;
    if (event == NNG_PIPE_EV_REM_POST) {
        rpc_peers_remove(s->peers, (uint32_t)nng_pipe_id(pipe));
    } else if (rpc_peers_add(s->peers, (uint32_t)nng_pipe_id(pipe)) != MOE_OK) {
        LOG_WARN("rpc", "%s: connection refused, too many", s->url);
        nng_pipe_close(pipe);
    }
}

/* ---- start and stop ---- */

static moe_err
call_init(rpc_call *call, rpc_server *s)
{
    call->server = s;
    if (nng_aio_alloc(&call->receiver, on_received, call) != 0 ||
        nng_aio_alloc(&call->sender, on_sent, call) != 0 ||
        nng_ctx_open(&call->ctx, s->socket) != 0)
        return MOE_ENOMEM;
    nng_aio_set_timeout(call->receiver, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(call->sender, SEND_TIMEOUT_MS);
    return arena_create(&call->memory, s->unpacked_bytes_max);
}

/* Everything of nng's: after this no callback runs.  Receiving ends before the socket closes: a
 * request that arrives meanwhile is what makes nng 1.5 hang.  false: it hung; nothing may be
 * freed. */
static bool
server_close(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++) {
        rpc_call *call = &s->calls[i];
        if (call->receiver == NULL || call->sender == NULL) continue;
        nng_aio_wait(call->sender);
        nng_aio_stop(call->receiver);
        nng_aio_stop(call->sender);
    }
    if (s->socket_open && !rpc_nng_close(s->socket)) return false;
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++) {
        nng_aio_free(s->calls[i].receiver);
        nng_aio_free(s->calls[i].sender);
    }
    return true;
}

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

static moe_err
server_create(rpc_server **out, const rpc_server_options *opt)
{
    rpc_server *s = calloc(1, sizeof *s);
    if (s == NULL) return MOE_ENOMEM;
    pthread_mutex_init(&s->mutex, NULL);
    s->references = 1;
    snprintf(s->url, sizeof s->url, "%s", opt->url);
    s->service = opt->service;
    s->fingerprint = rpc_service_fingerprint(opt->service->descriptor);
    s->message_bytes_max =
        opt->message_bytes_max != 0 ? opt->message_bytes_max : RPC_MESSAGE_BYTES_DEFAULT;
    s->unpacked_bytes_max = opt->unpacked_bytes_max != 0 ? opt->unpacked_bytes_max
                                                         : 4 * s->message_bytes_max + (1u << 20);
    s->concurrency = opt->concurrency != 0 ? opt->concurrency : CONCURRENCY_DEFAULT;
    s->calls = calloc(s->concurrency, sizeof *s->calls);
    *out = s;
    if (s->calls == NULL) return MOE_ENOMEM;
    moe_err err =
        rpc_dedup_create(&s->seen, KEPT_REPLY_COUNT + 2 * s->concurrency, KEPT_REPLY_BYTES);
    if (err == MOE_OK)
        err = rpc_peers_create(&s->peers,
                               opt->connection_max != 0 ? opt->connection_max : CONNECTION_DEFAULT);
    return err;
}

/* A request of up to twice the limit gets an answer that says so; above that, the transport drops
 * the connection before it reads the body. */
static size_t
transport_bytes_max(size_t message_bytes_max)
{
    return 2 * message_bytes_max + sizeof(rpc_header) + 64;
}

/* The url with the port that the system chose. */
static void
resolve_port(rpc_server *s)
{
    int port;
    char *colon = strrchr(s->url, ':');
    if (strncmp(s->url, "tcp", 3) != 0 || colon == NULL || strcmp(colon, ":0") != 0) return;
    if (nng_listener_get_int(s->listener, NNG_OPT_TCP_BOUND_PORT, &port) != 0) return;
    snprintf(colon, sizeof s->url - (size_t)(colon - s->url), ":%d", port);
}

static moe_err
server_listen(rpc_server *s, errbuf *eb)
{
    rpc_nng_mend();
    int rc = nng_rep0_open(&s->socket);
    if (rc == 0) {
        s->socket_open = true;
        nng_pipe_notify(s->socket, NNG_PIPE_EV_ADD_PRE, on_pipe, s);
        nng_pipe_notify(s->socket, NNG_PIPE_EV_REM_POST, on_pipe, s);
        rc = nng_listener_create(&s->listener, s->socket, s->url);
    }
    if (rc == 0)
        rc = nng_listener_set_size(s->listener, NNG_OPT_RECVMAXSZ,
                                   transport_bytes_max(s->message_bytes_max));
    if (rc == 0 && strncmp(s->url, RPC_IPC_PREFIX, strlen(RPC_IPC_PREFIX)) == 0)
        rc = nng_listener_set_int(s->listener, NNG_OPT_IPC_PERMISSIONS, 0600);
    for (unsigned i = 0; rc == 0 && i < s->concurrency; i++) {
        if (call_init(&s->calls[i], s) != MOE_OK) return MOE_ENOMEM;
    }
    if (rc == 0) rc = nng_listener_start(s->listener, 0);
    if (rc != 0) return err_set(eb, MOE_EIO, "can't listen on %s: %s", s->url, nng_strerror(rc));
    resolve_port(s);
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
    if (err == MOE_OK) err = rpc_secret_set(&s->secret, opt->secret, opt->secret_bytes, eb);
    if (err == MOE_OK) err = server_listen(s, eb);
    if (err != MOE_OK) {
        if (err == MOE_ENOMEM) err_set(eb, err, "%s: out of memory", opt->url);
        if (s != NULL) {
            if (server_close(s)) server_free(s);
        }
        return err;
    }
    for (unsigned i = 0; i < s->concurrency; i++)
        receive(&s->calls[i]);
    *out = s;
    return MOE_OK;
}

void
rpc_server_stop(rpc_server *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->mutex);
    s->stopping = true;
    for (unsigned i = 0; i < s->concurrency; i++) {
        rpc_call *call = &s->calls[i];
        if (call->state != CALL_HANDLING) continue;
        nng_msg *msg = error_reply(call, RPC_UNAVAILABLE, "the server is stopping");
        if (msg != NULL) send_locked(call, msg);
        call->state = CALL_ABANDONED;
    }
    pthread_mutex_unlock(&s->mutex);
    if (server_close(s)) server_unref(s);
}

const char *
rpc_server_url(const rpc_server *s)
{
    return s->url;
}
