/* Design notes
 *
 * A client has `concurrency` call slots and at most one connection:
 *
 *     FREE -> QUEUED -> SENT -> FREE
 *
 * A queued call is sent when the connection has room for it, in the order of the calls, and from
 * then on belongs to that connection: when it is lost, so is the call.  Calls that are still queued
 * wait for the next one.  Whoever takes a slot out of the queue, or out of SENT, ends its call.
 *
 * With a secret, a connection's first call makes it prove itself by the handshake of rpc_auth.h;
 * calls stay queued meanwhile.  A refusal ends them; the next call tries again.
 *
 * The keeper is the client's one thread: it dials, frees lost connections, and ends calls whose
 * deadline passed.  What it waits for is in `wake_ns`, so that a new call wakes it only when its
 * deadline is earlier.
 *
 * client->mutex guards slots, queue and connection.  It is never held while a callback is called;
 * nng's functions called under it don't block and run none of our callbacks on this thread.
 */
#include <assert.h>
#include <errno.h>
#include <nng/nng.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/futex.h"
#include "proto/rpc.h"
#include "proto/rpc_auth.h"
#include "proto/rpc_conn.h"
#include "proto/rpc_wire.h"

#define CONCURRENCY_DEFAULT 16
#define RECONNECT_MS_MIN 10
#define RECONNECT_MS_MAX 250

typedef struct call_slot call_slot;

typedef enum call_state { CALL_FREE, CALL_QUEUED, CALL_SENT } call_state;
typedef enum proof_state { UNPROVED, HELLO_SENT, PROOF_SENT, PROVED } proof_state;

struct call_slot {
    rpc_client *client;
    call_slot *next; /* free, queued, or in a list of calls to end */
    call_state state;
    rpc_frame *frame; /* until it is sent */
    unsigned method;
    uint64_t request_id;
    uint64_t deadline_ns;
    uint32_t timeout_ms;
    rpc_done_fn *done;
    void *arg;
};

struct rpc_client {
    ProtobufCService service; /* first: generated stubs hold a pointer to it */
    char url[RPC_URL_MAX];
    uint64_t fingerprint;
    uint64_t incarnation;
    size_t message_bytes_max;
    size_t unpacked_bytes_max;
    uint32_t default_timeout_ms;
    unsigned concurrency;
    rpc_secret secret;
    nng_stream_dialer *dialer;
    nng_aio *dial_aio;
    pthread_t keeper;
    bool keeper_started;
    _Atomic bool connected;
    call_slot *slots;      /* [concurrency] */
    pthread_mutex_t mutex; /* guards what follows, and the slots */
    pthread_cond_t wake;   /* the keeper */
    pthread_cond_t freed;  /* a slot became free, or a thread left rpc_call_sync() */
    call_slot *free_slots;
    call_slot *queue, **queue_end;
    unsigned waiting; /* threads inside rpc_call_sync() */
    bool closing;
    uint64_t next_id;
    uint64_t wake_ns; /* when the keeper wakes by itself; 0 = it is awake */

    rpc_conn *conn; /* NULL = none */
    bool lost;      /* the keeper frees conn */
    bool dialling;
    uint64_t dial_at_ns;
    uint32_t backoff_ms;
    proof_state proof;
    uint64_t proof_id; /* request id of the handshake's last message */
    unsigned char nonce[RPC_NONCE_BYTES];
    rpc_frame *proof_frame;          /* to be sent next */
    char farewell[MOE_ERR_TEXT_MAX]; /* why the connection was lost, if we know */
};

/* ---- capped memory for responses ---- */

/* A response lives on the heap, so that its owner may keep it; only its total size is bounded. */
static void *
budget_alloc(void *data, size_t size)
{
    size_t *left = data;
    if (size > *left) return NULL;
    *left -= size;
    return malloc(size);
}

static void
budget_free(void *data, void *pointer)
{
    (void)data;
    free(pointer);
}

static ProtobufCMessage *
unpack_response(const ProtobufCMessageDescriptor *type, size_t budget, const uint8_t *body,
                size_t len)
{
    ProtobufCAllocator allocator = {
        .alloc = budget_alloc, .free = budget_free, .allocator_data = &budget};
    return protobuf_c_message_unpack(type, &allocator, len, body);
}

void
rpc_response_free(ProtobufCMessage *response)
{
    if (response != NULL) protobuf_c_message_free_unpacked(response, NULL);
}

/* ---- slots ---- */

static const char *
method_name(const rpc_client *c, unsigned method)
{
    return method < c->service.descriptor->n_methods ? c->service.descriptor->methods[method].name
                                                     : "?";
}

/* "URL: METHOD: text" into out [MOE_ERR_TEXT_MAX]. */
static void __attribute__((format(printf, 4, 5)))
describe(const rpc_client *c, unsigned method, char *out, const char *fmt, ...)
{
    const int n = snprintf(out, MOE_ERR_TEXT_MAX, "%s: %s: ", c->url, method_name(c, method));
    if (n < 0 || n >= MOE_ERR_TEXT_MAX) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(out + n, MOE_ERR_TEXT_MAX - (size_t)n, fmt, args);
    va_end(args);
}

static call_slot *
slot_take_locked(rpc_client *c)
{
    call_slot *slot = c->free_slots;
    if (slot == NULL || c->closing) return NULL;
    c->free_slots = slot->next;
    return slot;
}

static void
unqueue_locked(call_slot *slot)
{
    rpc_client *c = slot->client;
    call_slot **at = &c->queue;
    while (*at != slot)
        at = &(*at)->next;
    *at = slot->next;
    if (slot->next == NULL) c->queue_end = at;
}

/* The call in the slot is over, and nobody else's to end.  The slot is free before the callback
 * runs, so that the callback can start another call. */
static void
complete(call_slot *slot, rpc_status status, ProtobufCMessage *response, const char *error)
{
    rpc_client *c = slot->client;
    rpc_done_fn *done = slot->done;
    void *arg = slot->arg;
    free(slot->frame);
    slot->frame = NULL;
    pthread_mutex_lock(&c->mutex);
    slot->next = c->free_slots;
    c->free_slots = slot;
    if (c->waiting != 0) pthread_cond_signal(&c->freed);
    pthread_mutex_unlock(&c->mutex);
    done(arg, status, response, error);
}

static void
complete_error(call_slot *slot, rpc_status status, const char *text)
{
    char error[MOE_ERR_TEXT_MAX];
    describe(slot->client, slot->method, error, "%s", text);
    complete(slot, status, NULL, error);
}

static void
complete_all(call_slot *list, rpc_status status, const char *text)
{
    while (list != NULL) {
        call_slot *slot = list;
        list = slot->next;
        complete_error(slot, status, text);
    }
}

/* ---- what is sent ---- */

static uint32_t
time_left_ms(const call_slot *slot)
{
    const uint64_t now = clock_now_ns();
    if (now >= slot->deadline_ns) return 0;
    return (uint32_t)((slot->deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS);
}

static rpc_frame *
frame_alloc(const rpc_client *c, rpc_kind kind, size_t body_bytes)
{
    rpc_header header = rpc_header_make(kind, (uint32_t)body_bytes);
    header.service = c->fingerprint;
    header.incarnation = c->incarnation;
    return rpc_frame_alloc(&header);
}

static void
set_request_id_locked(rpc_client *c, rpc_frame *frame, uint64_t *id)
{
    *id = ++c->next_id;
    memcpy(frame->data + offsetof(rpc_header, request_id), id, sizeof *id);
}

/* NULL: no memory or no random numbers; tried again with the next call. */
static rpc_frame *
hello_locked(rpc_client *c)
{
    rpc_frame *frame = frame_alloc(c, RPC_KIND_HELLO, RPC_NONCE_BYTES);
    if (frame == NULL || rpc_nonce_make(c->nonce) != MOE_OK) {
        free(frame);
        return NULL;
    }
    memcpy(rpc_frame_body(frame), c->nonce, RPC_NONCE_BYTES);
    set_request_id_locked(c, frame, &c->proof_id);
    c->proof = HELLO_SENT;
    return frame;
}

static rpc_frame *
on_next_locked(void *arg)
{
    rpc_client *c = arg;
    rpc_frame *frame = c->proof_frame;
    call_slot *slot = c->queue;
    if (frame != NULL) {
        c->proof_frame = NULL;
        return frame;
    }
    if (slot == NULL) return NULL;
    if (c->secret.len != 0 && c->proof != PROVED)
        return c->proof == UNPROVED ? hello_locked(c) : NULL;
    unqueue_locked(slot);
    slot->state = CALL_SENT;
    frame = slot->frame;
    slot->frame = NULL;
    const uint32_t left_ms = time_left_ms(slot);
    memcpy(frame->data + offsetof(rpc_header, timeout_ms), &left_ms, sizeof left_ms);
    return frame;
}

static void
write_locked(rpc_client *c)
{
    if (c->conn != NULL) rpc_conn_write_locked(c->conn);
}

/* ---- what arrives: the connection may be lost already, and conn NULL ---- */

/* Take the call with this id, if it waits for a reply. */
static call_slot *
claim_sent(rpc_client *c, uint64_t request_id)
{
    call_slot *found = NULL;
    pthread_mutex_lock(&c->mutex);
    c->backoff_ms = RECONNECT_MS_MIN; /* a server that answers */
    for (unsigned i = 0; i < c->concurrency; i++) {
        if (c->slots[i].state == CALL_SENT && c->slots[i].request_id == request_id)
            found = &c->slots[i];
    }
    if (found != NULL) found->state = CALL_FREE;
    pthread_mutex_unlock(&c->mutex);
    return found;
}

/* "STATUS: the server's text". */
static rpc_status
status_of(const rpc_header *header, const uint8_t *body, errbuf *text)
{
    const rpc_status status = rpc_status_from_wire(header->status);
    err_set(text, MOE_OK, "%s: %.*s", rpc_status_name(status),
            (int)(header->body_bytes < MOE_ERR_TEXT_MAX ? header->body_bytes : MOE_ERR_TEXT_MAX),
            (const char *)body);
    return status;
}

static void
on_response(call_slot *slot, const rpc_header *header, const uint8_t *body)
{
    const rpc_client *c = slot->client;
    const ProtobufCMessageDescriptor *type = c->service.descriptor->methods[slot->method].output;
    errbuf text;
    if (header->status != RPC_OK) {
        const rpc_status status = status_of(header, body, &text);
        complete_error(slot, status, text.text);
        return;
    }
    ProtobufCMessage *response =
        unpack_response(type, c->unpacked_bytes_max, body, header->body_bytes);
    if (response != NULL)
        complete(slot, RPC_OK, response, "");
    else
        complete_error(slot, RPC_INTERNAL, "the response does not unpack");
}

/* The connection could not prove itself: end the calls that waited for it. */
static void
refuse_proof(rpc_client *c, rpc_status status, const char *text)
{
    pthread_mutex_lock(&c->mutex);
    call_slot *list = c->queue;
    c->queue = NULL;
    c->queue_end = &c->queue;
    for (call_slot *slot = list; slot != NULL; slot = slot->next)
        slot->state = CALL_FREE;
    c->proof = UNPROVED;
    pthread_mutex_unlock(&c->mutex);
    complete_all(list, status, text);
}

static void
on_challenge(rpc_client *c, const rpc_header *header, const uint8_t *server_nonce)
{
    rpc_frame *frame = frame_alloc(c, RPC_KIND_PROOF, RPC_NONCE_BYTES + RPC_PROOF_BYTES);
    if (header->kind != RPC_KIND_CHALLENGE ||
        header->body_bytes != RPC_NONCE_BYTES + RPC_PROOF_BYTES ||
        !rpc_proof_check(&c->secret, RPC_ROLE_SERVER, c->nonce, server_nonce,
                         server_nonce + RPC_NONCE_BYTES)) {
        free(frame);
        refuse_proof(c, RPC_PERMISSION_DENIED, "the server does not know the secret");
    } else if (frame == NULL) {
        refuse_proof(c, RPC_RESOURCE_EXHAUSTED, "out of memory");
    } else {
        uint8_t *body = rpc_frame_body(frame);
        memcpy(body, c->nonce, RPC_NONCE_BYTES);
        rpc_proof_make(&c->secret, RPC_ROLE_CLIENT, c->nonce, server_nonce, body + RPC_NONCE_BYTES);
        pthread_mutex_lock(&c->mutex);
        set_request_id_locked(c, frame, &c->proof_id);
        c->proof = PROOF_SENT;
        free(c->proof_frame);
        c->proof_frame = frame;
        write_locked(c);
        pthread_mutex_unlock(&c->mutex);
    }
}

static void
on_handshake(rpc_client *c, proof_state proof, const rpc_header *header, const uint8_t *body)
{
    errbuf text;
    if (header->status != RPC_OK) {
        const rpc_status status = status_of(header, body, &text);
        refuse_proof(c, status, text.text);
    } else if (proof == HELLO_SENT) {
        on_challenge(c, header, body);
    } else {
        pthread_mutex_lock(&c->mutex);
        c->proof = PROVED;
        write_locked(c);
        pthread_mutex_unlock(&c->mutex);
    }
}

/* The handshake that this frame belongs to; UNPROVED = none. */
static proof_state
handshake_of(rpc_client *c, const rpc_header *header)
{
    pthread_mutex_lock(&c->mutex);
    const bool mine =
        (c->proof == HELLO_SENT || c->proof == PROOF_SENT) && header->request_id == c->proof_id;
    const proof_state proof = mine ? c->proof : UNPROVED;
    pthread_mutex_unlock(&c->mutex);
    return proof;
}

static void
hang_up(rpc_client *c, const char *why)
{
    pthread_mutex_lock(&c->mutex);
    if (c->conn != NULL && !c->lost) {
        snprintf(c->farewell, sizeof c->farewell, ": %.200s", why);
        rpc_conn_close_locked(c->conn);
    }
    pthread_mutex_unlock(&c->mutex);
}

static bool
on_arrived(void *arg, const rpc_header *header, const uint8_t *body)
{
    rpc_client *c = arg;
    errbuf eb;
    if (header->kind == RPC_KIND_REPLY && header->request_id == 0 && header->status != RPC_OK) {
        status_of(header, body, &eb); /* a last word, about all we sent */
        hang_up(c, eb.text);
        return true;
    }
    moe_err err = rpc_header_check(header, &eb);
    if (err == MOE_OK && (header->incarnation != c->incarnation ||
                          (header->kind != RPC_KIND_REPLY && header->kind != RPC_KIND_CHALLENGE)))
        err = err_set(&eb, MOE_EINVAL, "a message that is no reply to this client");
    if (err != MOE_OK) {
        hang_up(c, eb.text);
        return true;
    }
    const proof_state proof = handshake_of(c, header);
    if (proof != UNPROVED) {
        on_handshake(c, proof, header, body);
        return true;
    }
    /* None: the reply came after its call's deadline. */
    call_slot *slot = header->kind == RPC_KIND_REPLY ? claim_sent(c, header->request_id) : NULL;
    if (slot != NULL) on_response(slot, header, body);
    return true;
}

static void
on_garbled(void *arg, moe_err err, const char *why)
{
    (void)err;
    hang_up(arg, why);
}

static void
on_lost_locked(void *arg)
{
    rpc_client *c = arg;
    c->lost = true;
    atomic_store(&c->connected, false);
    pthread_cond_signal(&c->wake);
}

/* ---- calls ---- */

static rpc_status
check_call(const rpc_client *c, unsigned method, const ProtobufCMessage *request, size_t *len,
           char *error)
{
    const ProtobufCServiceDescriptor *service = c->service.descriptor;
    if (method >= service->n_methods) {
        describe(c, method, error, "%s has no method %u", service->name, method);
        return RPC_UNIMPLEMENTED;
    }
    assert(request->descriptor == service->methods[method].input);
    *len = protobuf_c_message_get_packed_size(request);
    if (*len > c->message_bytes_max) {
        describe(c, method, error, "request of %zu bytes exceeds the limit of %zu", *len,
                 c->message_bytes_max);
        return RPC_RESOURCE_EXHAUSTED;
    }
    return RPC_OK;
}

/* Fill in a slot that was just taken, and send when there is room. */
static void
start(call_slot *slot, unsigned method, const ProtobufCMessage *request, size_t len)
{
    rpc_client *c = slot->client;
    const uint32_t wire_method = method;
    slot->method = method;
    slot->frame = frame_alloc(c, RPC_KIND_CALL, len);
    if (slot->frame == NULL) {
        complete_error(slot, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    memcpy(slot->frame->data + offsetof(rpc_header, method), &wire_method, sizeof wire_method);
    protobuf_c_message_pack(request, rpc_frame_body(slot->frame));

    pthread_mutex_lock(&c->mutex);
    const bool closing = c->closing;
    if (!closing) {
        set_request_id_locked(c, slot->frame, &slot->request_id);
        slot->state = CALL_QUEUED;
        slot->next = NULL;
        *c->queue_end = slot;
        c->queue_end = &slot->next;
        if (slot->deadline_ns < c->wake_ns) pthread_cond_signal(&c->wake);
        write_locked(c);
    }
    pthread_mutex_unlock(&c->mutex);
    if (closing) complete_error(slot, RPC_CANCELLED, "this client is closing");
}

static void
set_deadline(const rpc_client *c, call_slot *slot, uint32_t timeout_ms, uint64_t since_ns)
{
    if (timeout_ms == 0) timeout_ms = c->default_timeout_ms;
    if (timeout_ms > RPC_TIMEOUT_MS_MAX) timeout_ms = RPC_TIMEOUT_MS_MAX;
    slot->timeout_ms = timeout_ms;
    slot->deadline_ns = since_ns + timeout_ms * NS_PER_MS;
}

void
rpc_call_async(rpc_client *c, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
               rpc_done_fn *done, void *arg)
{
    char error[MOE_ERR_TEXT_MAX];
    size_t len = 0;
    rpc_status status = check_call(c, method, request, &len, error);
    call_slot *slot = NULL;
    if (status == RPC_OK) {
        pthread_mutex_lock(&c->mutex);
        slot = slot_take_locked(c);
        if (slot == NULL && c->closing) {
            status = RPC_CANCELLED;
            describe(c, method, error, "this client is closing");
        } else if (slot == NULL) {
            status = RPC_RESOURCE_EXHAUSTED;
            describe(c, method, error, "%u calls are under way already", c->concurrency);
        }
        pthread_mutex_unlock(&c->mutex);
    }
    if (slot == NULL) {
        done(arg, status, NULL, error);
        return;
    }
    set_deadline(c, slot, timeout_ms, clock_now_ns());
    slot->done = done;
    slot->arg = arg;
    start(slot, method, request, len);
}

/* A caller of rpc_call_sync(), on its stack. */
typedef struct sync_wait {
    _Atomic uint32_t done;
    rpc_status status;
    ProtobufCMessage *response;
    errbuf error;
} sync_wait;

static void
on_sync_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    sync_wait *w = arg;
    w->status = status;
    w->response = response;
    err_set(&w->error, MOE_OK, "%s", error);
    futex_bump(&w->done); /* w may be gone before this returns, which a futex doesn't mind */
}

/* Wait for a free slot; NULL when the client closes or the deadline passes first. */
static call_slot *
slot_wait_locked(rpc_client *c, uint64_t deadline_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                   .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    while (c->free_slots == NULL && !c->closing) {
        if (pthread_cond_timedwait(&c->freed, &c->mutex, &until) == ETIMEDOUT) break;
    }
    return slot_take_locked(c);
}

static void
call_and_wait(rpc_client *c, unsigned method, const ProtobufCMessage *request, size_t len,
              uint32_t timeout_ms, sync_wait *w)
{
    call_slot clock;
    set_deadline(c, &clock, timeout_ms, clock_now_ns());

    pthread_mutex_lock(&c->mutex);
    c->waiting++;
    call_slot *slot = slot_wait_locked(c, clock.deadline_ns);
    const bool closing = c->closing;
    pthread_mutex_unlock(&c->mutex);
    if (slot == NULL) {
        w->status = closing ? RPC_CANCELLED : RPC_DEADLINE_EXCEEDED;
        if (closing)
            describe(c, method, w->error.text, "this client is closing");
        else
            describe(c, method, w->error.text, "deadline of %u ms passed, %u calls under way",
                     (unsigned)clock.timeout_ms, c->concurrency);
    } else {
        slot->deadline_ns = clock.deadline_ns;
        slot->timeout_ms = clock.timeout_ms;
        slot->done = on_sync_done;
        slot->arg = w;
        start(slot, method, request, len);
        futex_wait_change(&w->done, 0, 0);
    }
    pthread_mutex_lock(&c->mutex);
    c->waiting--;
    pthread_cond_broadcast(&c->freed);
    pthread_mutex_unlock(&c->mutex);
}

moe_err
rpc_call_sync(rpc_client *c, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
              ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    sync_wait w = {.done = 0};
    size_t len = 0;
    *response = NULL;
    w.status = check_call(c, method, request, &len, w.error.text);
    if (w.status == RPC_OK) call_and_wait(c, method, request, len, timeout_ms, &w);
    if (status != NULL) *status = w.status;
    if (w.status == RPC_OK) {
        *response = w.response;
        return MOE_OK;
    }
    return err_set(eb, rpc_status_to_err(w.status), "%s", w.error.text);
}

/* ---- generated stubs ---- */

typedef struct stub_call {
    ProtobufCClosure closure;
    void *closure_data;
} stub_call;

static void
on_stub_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    (void)status;
    (void)error;
    stub_call *stub = arg;
    stub->closure(response, stub->closure_data);
    rpc_response_free(response);
    free(stub);
}

static void
stub_invoke(ProtobufCService *service, unsigned method, const ProtobufCMessage *request,
            ProtobufCClosure closure, void *closure_data)
{
    stub_call *stub = malloc(sizeof *stub);
    if (stub == NULL) {
        closure(NULL, closure_data);
        return;
    }
    *stub = (stub_call){.closure = closure, .closure_data = closure_data};
    rpc_call_async((rpc_client *)service, method, request, 0, on_stub_done, stub);
}

ProtobufCService *
rpc_client_service(rpc_client *c)
{
    return &c->service;
}

/* ---- the keeper ---- */

/* Take the calls that are sent (of a lost connection), or all, or those whose deadline has passed;
 * *next_ns becomes the earliest deadline of the others. */
typedef enum which_calls { CALLS_SENT, CALLS_ALL, CALLS_EXPIRED } which_calls;

static call_slot *
claim_locked(rpc_client *c, which_calls which, uint64_t *next_ns)
{
    call_slot *list = NULL, **end = &list;
    const uint64_t now = clock_now_ns();
    *next_ns = UINT64_MAX;
    for (unsigned i = 0; i < c->concurrency; i++) {
        call_slot *slot = &c->slots[i];
        if (slot->state == CALL_FREE) continue;
        if ((which == CALLS_SENT && slot->state != CALL_SENT) ||
            (which == CALLS_EXPIRED && slot->deadline_ns > now)) {
            if (slot->deadline_ns < *next_ns) *next_ns = slot->deadline_ns;
            continue;
        }
        if (slot->state == CALL_QUEUED) unqueue_locked(slot);
        slot->state = CALL_FREE;
        slot->next = NULL;
        *end = slot;
        end = &slot->next;
    }
    return list;
}

static void
complete_expired(call_slot *list, bool connected)
{
    while (list != NULL) {
        char text[128];
        call_slot *slot = list;
        list = slot->next;
        const bool sent = slot->frame == NULL;
        snprintf(text, sizeof text, "deadline of %u ms passed%s", (unsigned)slot->timeout_ms,
                 sent        ? ""
                 : connected ? ", not sent"
                             : ", no connection");
        complete_error(slot, RPC_DEADLINE_EXCEEDED, text);
    }
}

static void
drop_lost_conn_locked(rpc_client *c)
{
    char text[MOE_ERR_TEXT_MAX + 64];
    uint64_t next_ns;
    rpc_conn *conn = c->conn;
    call_slot *list = claim_locked(c, CALLS_SENT, &next_ns);
    snprintf(text, sizeof text, "connection lost before the reply came%s", c->farewell);
    c->farewell[0] = '\0';
    c->conn = NULL;
    c->lost = false;
    pthread_mutex_unlock(&c->mutex);
    complete_all(list, RPC_UNAVAILABLE, text);
    rpc_conn_free(conn);
    pthread_mutex_lock(&c->mutex);
    free(c->proof_frame);
    c->proof_frame = NULL;
    c->dial_at_ns = clock_now_ns() + c->backoff_ms * NS_PER_MS;
}

static void
dial_locked(rpc_client *c)
{
    c->dialling = true;
    c->backoff_ms = c->backoff_ms * 2 < RECONNECT_MS_MAX ? c->backoff_ms * 2 : RECONNECT_MS_MAX;
    nng_stream_dialer_dial(c->dialer, c->dial_aio);
}

static void
on_dialled(void *arg)
{
    rpc_client *c = arg;
    const rpc_conn_owner owner = {.arg = c,
                                  .mutex = &c->mutex,
                                  .body_bytes_max = c->message_bytes_max + MOE_ERR_TEXT_MAX,
                                  .next_locked = on_next_locked,
                                  .arrived = on_arrived,
                                  .garbled = on_garbled,
                                  .lost_locked = on_lost_locked};
    rpc_conn *conn = NULL;
    if (nng_aio_result(c->dial_aio) == 0)
        rpc_conn_open(&conn, nng_aio_get_output(c->dial_aio, 0), &owner);
    pthread_mutex_lock(&c->mutex);
    c->dialling = false;
    c->dial_at_ns = clock_now_ns() + c->backoff_ms * NS_PER_MS;
    if (conn != NULL) {
        c->conn = conn;
        c->proof = UNPROVED;
        atomic_store(&c->connected, true);
        rpc_conn_start_locked(conn);
    }
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->mutex);
}

/* Until wake_ns at the latest. */
static void
sleep_locked(rpc_client *c, uint64_t wake_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(wake_ns / NS_PER_S),
                                   .tv_nsec = (long)(wake_ns % NS_PER_S)};
    c->wake_ns = wake_ns;
    if (wake_ns == UINT64_MAX)
        pthread_cond_wait(&c->wake, &c->mutex);
    else
        pthread_cond_timedwait(&c->wake, &c->mutex, &until);
    c->wake_ns = 0;
}

static void
keep_locked(rpc_client *c)
{
    while (!c->closing) {
        uint64_t wake_ns;
        call_slot *expired = claim_locked(c, CALLS_EXPIRED, &wake_ns);
        const bool to_dial = c->conn == NULL && !c->dialling;
        if (expired != NULL) {
            const bool connected = c->conn != NULL;
            pthread_mutex_unlock(&c->mutex);
            complete_expired(expired, connected);
            pthread_mutex_lock(&c->mutex);
        } else if (c->lost) {
            drop_lost_conn_locked(c);
        } else if (to_dial && clock_now_ns() >= c->dial_at_ns) {
            dial_locked(c);
        } else {
            if (to_dial && c->dial_at_ns < wake_ns) wake_ns = c->dial_at_ns;
            sleep_locked(c, wake_ns);
        }
    }
}

static void *
keeper_main(void *arg)
{
    rpc_client *c = arg;
    uint64_t next_ns;
    pthread_mutex_lock(&c->mutex);
    keep_locked(c);
    pthread_mutex_unlock(&c->mutex);

    nng_aio_stop(c->dial_aio); /* from here on, conn is only changed below */
    pthread_mutex_lock(&c->mutex);
    call_slot *list = claim_locked(c, CALLS_ALL, &next_ns);
    rpc_conn *conn = c->conn;
    c->conn = NULL;
    pthread_mutex_unlock(&c->mutex);
    complete_all(list, RPC_CANCELLED, "this client is closing");
    /* The dialer goes first: the stream holds on to it, and releases it on a thread of nng's. */
    nng_stream_dialer_free(c->dialer);
    c->dialer = NULL;
    rpc_conn_free(conn); /* waits for callbacks that are still running */
    return NULL;
}

/* ---- open and close ---- */

static void
client_free(rpc_client *c)
{
    if (c->dialer != NULL) nng_stream_dialer_free(c->dialer);
    nng_aio_free(c->dial_aio);
    free(c->proof_frame);
    free(c->slots);
    pthread_cond_destroy(&c->freed);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->mutex);
    explicit_bzero(&c->secret, sizeof c->secret);
    free(c);
}

static void
init_locks(rpc_client *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->wake, &attr);
    pthread_cond_init(&c->freed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&c->mutex, NULL);
}

static moe_err
client_create(rpc_client **out, const rpc_client_options *opt)
{
    rpc_client *c = calloc(1, sizeof *c);
    if (c == NULL) return MOE_ENOMEM;
    init_locks(c);
    c->service = (ProtobufCService){.descriptor = opt->service, .invoke = stub_invoke};
    snprintf(c->url, sizeof c->url, "%s", opt->url);
    c->fingerprint = rpc_service_fingerprint(opt->service);
    c->message_bytes_max =
        opt->message_bytes_max != 0 ? opt->message_bytes_max : RPC_MESSAGE_BYTES_DEFAULT;
    c->unpacked_bytes_max = opt->unpacked_bytes_max != 0 ? opt->unpacked_bytes_max
                                                         : 4 * c->message_bytes_max + (1u << 20);
    c->default_timeout_ms =
        opt->default_timeout_ms != 0 ? opt->default_timeout_ms : RPC_TIMEOUT_MS_DEFAULT;
    c->concurrency = opt->concurrency != 0 ? opt->concurrency : CONCURRENCY_DEFAULT;
    c->backoff_ms = RECONNECT_MS_MIN;
    c->queue_end = &c->queue;
    c->slots = calloc(c->concurrency, sizeof *c->slots);
    *out = c;
    if (c->slots == NULL) return MOE_ENOMEM;
    for (unsigned i = c->concurrency; i-- > 0;) {
        c->slots[i] = (call_slot){.client = c, .next = c->free_slots};
        c->free_slots = &c->slots[i];
    }
    return MOE_OK;
}

bool
rpc_client_connected(const rpc_client *c)
{
    return atomic_load(&c->connected);
}

const char *
rpc_client_url(const rpc_client *c)
{
    return c->url;
}

static moe_err
start_dialling(rpc_client *c, errbuf *eb)
{
    int rc = nng_stream_dialer_alloc(&c->dialer, c->url);
    if (rc == 0) rc = nng_aio_alloc(&c->dial_aio, on_dialled, c);
    if (rc != 0)
        return err_set(eb, rc == NNG_ENOMEM ? MOE_ENOMEM : MOE_EIO, "can't dial %s: %s", c->url,
                       nng_strerror(rc));
    /* Of tcp; ipc knows neither. */
    nng_stream_dialer_set_bool(c->dialer, NNG_OPT_TCP_NODELAY, true);
    nng_stream_dialer_set_bool(c->dialer, NNG_OPT_TCP_KEEPALIVE, true);

    sigset_t all, old;
    sigfillset(&all); /* signals are for the threads that know them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    c->keeper_started = pthread_create(&c->keeper, NULL, keeper_main, c) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!c->keeper_started) return err_set(eb, MOE_EIO, "can't dial %s: no thread", c->url);
    pthread_setname_np(c->keeper, "rpc-client");
    return MOE_OK;
}

static moe_err
check_options(const rpc_client_options *opt, errbuf *eb)
{
    const moe_err err = rpc_url_check(opt->url, eb);
    if (err != MOE_OK) return err;
    if (opt->message_bytes_max > RPC_MESSAGE_BYTES_MAX || opt->concurrency > RPC_CONCURRENCY_MAX ||
        opt->default_timeout_ms > RPC_TIMEOUT_MS_MAX)
        return err_set(eb, MOE_ERANGE, "%s: an option is outside its limits", opt->url);
    return rpc_service_check(opt->service, eb);
}

moe_err
rpc_client_open(rpc_client **out, const rpc_client_options *opt, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_options(opt, eb);
    if (err != MOE_OK) return err;

    rpc_client *c = NULL;
    err = client_create(&c, opt);
    if (err == MOE_ENOMEM) err_set(eb, err, "%s: out of memory", opt->url);
    if (err == MOE_OK) err = rpc_secret_set(&c->secret, opt->secret, opt->secret_bytes, eb);
    if (err == MOE_OK &&
        getrandom(&c->incarnation, sizeof c->incarnation, 0) != (ssize_t)sizeof c->incarnation)
        err = err_set(eb, MOE_EIO, "no random numbers from the system");
    if (err == MOE_OK) {
        c->incarnation |= 1; /* never 0 */
        err = start_dialling(c, eb);
    }
    if (err != MOE_OK) {
        rpc_client_close(c);
        return err;
    }
    *out = c;
    return MOE_OK;
}

void
rpc_client_close(rpc_client *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_signal(&c->wake);
    pthread_cond_broadcast(&c->freed);
    pthread_mutex_unlock(&c->mutex);

    if (c->keeper_started) pthread_join(c->keeper, NULL);
    pthread_mutex_lock(&c->mutex);
    while (c->waiting != 0)
        pthread_cond_wait(&c->freed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    client_free(c);
}
