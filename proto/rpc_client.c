/* Design notes
 *
 * A client has `concurrency` call slots.  A slot owns an nng context and one aio, which sends the
 * request and then waits for the reply:
 *
 *     free -> [HELLO -> PROOF ->] CALL -> free
 *
 * each phase being one send and one receive.  Both parts of a phase time out at the call's
 * deadline, so that every call ends.  With a secret, a call on a connection that is not yet trusted
 * begins with the handshake of rpc_auth.h; several calls may do so at once.  A reply over a
 * connection that is not trusted is not believed.
 *
 * client->mutex guards the free list, the counters and the results of waiting callers.  It is
 * never held while nng or a callback is called.
 */
#include <errno.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <pthread.h>
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
#include "proto/rpc_nng.h"
#include "proto/rpc_wire.h"

#define CONCURRENCY_DEFAULT 16
#define RECONNECT_MS_MIN 10
#define RECONNECT_MS_MAX 250

typedef struct call_slot call_slot;

typedef enum call_phase { PHASE_HELLO, PHASE_PROOF, PHASE_CALL } call_phase;

struct call_slot {
    rpc_client *client;
    call_slot *next_free;
    nng_ctx ctx;
    nng_aio *aio;
    call_phase phase;
    bool sending;        /* else receiving */
    nng_msg *request;    /* waits for the handshake */
    uint32_t connection; /* that the handshake is going on with */
    unsigned char nonce[RPC_NONCE_BYTES];
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
    nng_socket socket;
    bool socket_open;
    nng_dialer dialer;
    rpc_secret secret;
    _Atomic uint32_t connection; /* the one that is up; 0 = none */
    _Atomic uint32_t trusted;    /* the one that proved itself; 0 = none */
    call_slot *slots;            /* [concurrency] */
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a slot became free, or a waiting caller's result is there */
    call_slot *free_slots;
    unsigned busy;    /* slots in use */
    unsigned waiting; /* threads inside rpc_call_sync() */
    unsigned inside;  /* threads between context_enter() and context_leave() */
    bool closing;
    uint64_t next_id;
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

static call_slot *
slot_take_locked(rpc_client *c)
{
    call_slot *slot = c->free_slots;
    if (slot == NULL || c->closing) return NULL;
    c->free_slots = slot->next_free;
    c->busy++;
    slot->request_id = ++c->next_id;
    return slot;
}

static void
slot_give_back(call_slot *slot)
{
    rpc_client *c = slot->client;
    pthread_mutex_lock(&c->mutex);
    slot->next_free = c->free_slots;
    c->free_slots = slot;
    c->busy--;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

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

/* The slot is free before the callback runs, so that the callback can start another call. */
static void
complete(call_slot *slot, rpc_status status, ProtobufCMessage *response, const char *error)
{
    rpc_done_fn *done = slot->done;
    void *arg = slot->arg;
    nng_msg_free(slot->request); /* one that waited for the handshake */
    slot->request = NULL;
    slot_give_back(slot);
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
complete_nng_error(call_slot *slot, int rc)
{
    char text[128];
    rpc_client *c = slot->client;
    pthread_mutex_lock(&c->mutex);
    const bool closing = c->closing; /* connections go first: that is no loss to report */
    pthread_mutex_unlock(&c->mutex);
    switch (closing ? NNG_ECLOSED : rc) {
    case NNG_ETIMEDOUT:
        snprintf(text, sizeof text, "deadline of %u ms passed%s", (unsigned)slot->timeout_ms,
                 slot->sending ? ", no connection" : "");
        complete_error(slot, RPC_DEADLINE_EXCEEDED, text);
        break;
    case NNG_ECLOSED:
    case NNG_ECANCELED: complete_error(slot, RPC_CANCELLED, "this client is closing"); break;
    case NNG_ECONNRESET:
        complete_error(slot, RPC_UNAVAILABLE, "connection lost before the reply came");
        break;
    default:
        complete_error(slot, rc == NNG_ENOMEM ? RPC_RESOURCE_EXHAUSTED : RPC_UNAVAILABLE,
                       nng_strerror(rc));
    }
}

/* ---- one phase: send, then receive ---- */

static nng_duration
time_left_ms(const call_slot *slot)
{
    const uint64_t now = clock_now_ns();
    if (now >= slot->deadline_ns) return 0;
    return (nng_duration)((slot->deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS);
}

/* Around every use of a context.  nng 1.5.2 lets go of the context at the end of such a call, when
 * the answer may be there already; if the socket was closed by then, it aborts the process.  So
 * closing waits until nobody is inside.  false: the client is closing; don't. */
static bool
context_enter(rpc_client *c)
{
    pthread_mutex_lock(&c->mutex);
    const bool open = !c->closing;
    if (open) c->inside++;
    pthread_mutex_unlock(&c->mutex);
    return open;
}

static void
context_leave(rpc_client *c)
{
    pthread_mutex_lock(&c->mutex);
    if (--c->inside == 0) pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

static void
send_message(call_slot *slot, nng_msg *msg)
{
    rpc_client *c = slot->client; /* the slot may be another call's after nng_ctx_send() */
    slot->sending = true;
    if (!context_enter(c)) {
        nng_msg_free(msg);
        complete_nng_error(slot, NNG_ECLOSED);
        return;
    }
    nng_aio_set_timeout(slot->aio, time_left_ms(slot));
    nng_aio_set_msg(slot->aio, msg);
    nng_ctx_send(slot->ctx, slot->aio);
    context_leave(c);
}

static void
receive_reply(call_slot *slot)
{
    rpc_client *c = slot->client;
    slot->sending = false;
    if (!context_enter(c)) {
        complete_nng_error(slot, NNG_ECLOSED);
        return;
    }
    nng_aio_set_timeout(slot->aio, time_left_ms(slot));
    nng_ctx_recv(slot->ctx, slot->aio);
    context_leave(c);
}

/* A message of this call's, with the header filled in; NULL when out of memory. */
static nng_msg *
message_alloc(const call_slot *slot, rpc_kind kind, size_t body_bytes)
{
    nng_msg *msg;
    if (nng_msg_alloc(&msg, sizeof(rpc_header) + body_bytes) != 0) return NULL;
    rpc_header header = rpc_header_make(kind, (uint32_t)body_bytes);
    header.service = slot->client->fingerprint;
    header.incarnation = slot->client->incarnation;
    header.request_id = slot->request_id;
    header.method = slot->method;
    header.timeout_ms = (uint32_t)time_left_ms(slot);
    memcpy(nng_msg_body(msg), &header, sizeof header);
    return msg;
}

static uint8_t *
body_of(nng_msg *msg)
{
    return (uint8_t *)nng_msg_body(msg) + sizeof(rpc_header);
}

/* Begin a phase of the handshake. */
static void
send_proof_of(call_slot *slot, rpc_kind kind, const unsigned char *body, size_t body_bytes)
{
    nng_msg *msg = message_alloc(slot, kind, body_bytes);
    if (msg == NULL) {
        complete_error(slot, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    slot->phase = kind == RPC_KIND_HELLO ? PHASE_HELLO : PHASE_PROOF;
    memcpy(body_of(msg), body, body_bytes);
    send_message(slot, msg);
}

static void
send_request(call_slot *slot)
{
    nng_msg *request = slot->request;
    slot->request = NULL;
    slot->phase = PHASE_CALL;
    send_message(slot, request);
}

static void
on_challenge(call_slot *slot, const rpc_header *header, const uint8_t *server_nonce,
             uint32_t connection)
{
    const rpc_client *c = slot->client;
    unsigned char body[RPC_NONCE_BYTES + RPC_PROOF_BYTES];
    if (header->kind != RPC_KIND_CHALLENGE || header->body_bytes != sizeof body ||
        !rpc_proof_check(&c->secret, RPC_ROLE_SERVER, slot->nonce, server_nonce,
                         server_nonce + RPC_NONCE_BYTES)) {
        complete_error(slot, RPC_PERMISSION_DENIED, "the server does not know the secret");
        return;
    }
    slot->connection = connection;
    memcpy(body, slot->nonce, RPC_NONCE_BYTES);
    rpc_proof_make(&c->secret, RPC_ROLE_CLIENT, slot->nonce, server_nonce, body + RPC_NONCE_BYTES);
    send_proof_of(slot, RPC_KIND_PROOF, body, sizeof body);
}

static void
on_response(call_slot *slot, const rpc_header *header, const uint8_t *body)
{
    const rpc_client *c = slot->client;
    const ProtobufCMessageDescriptor *type = c->service.descriptor->methods[slot->method].output;
    ProtobufCMessage *response =
        unpack_response(type, c->unpacked_bytes_max, body, header->body_bytes);
    if (response != NULL)
        complete(slot, RPC_OK, response, "");
    else
        complete_error(slot, RPC_INTERNAL, "the response does not unpack");
}

static void
on_reply(call_slot *slot, nng_msg *msg)
{
    rpc_client *c = slot->client;
    const uint32_t connection = (uint32_t)nng_pipe_id(nng_msg_get_pipe(msg));
    const uint8_t *body = body_of(msg);
    rpc_header header;
    errbuf eb;

    if (rpc_header_parse(&header, nng_msg_body(msg), nng_msg_len(msg), &eb) != MOE_OK) {
        complete_error(slot, RPC_INTERNAL, eb.text);
    } else if ((header.kind != RPC_KIND_REPLY && header.kind != RPC_KIND_CHALLENGE) ||
               header.request_id != slot->request_id || header.incarnation != c->incarnation) {
        complete_error(slot, RPC_INTERNAL, "the reply belongs to another call");
    } else if (slot->phase == PHASE_CALL && c->secret.len != 0 &&
               connection != atomic_load(&c->trusted)) {
        complete_error(slot, RPC_UNAVAILABLE, "the connection was replaced during the call");
    } else if (header.status != RPC_OK) {
        err_set(&eb, MOE_OK, "%s: %.*s", rpc_status_name(rpc_status_from_wire(header.status)),
                (int)(header.body_bytes < MOE_ERR_TEXT_MAX ? header.body_bytes : MOE_ERR_TEXT_MAX),
                (const char *)body);
        complete_error(slot, rpc_status_from_wire(header.status), eb.text);
    } else if (slot->phase == PHASE_HELLO) {
        on_challenge(slot, &header, body, connection);
    } else if (slot->phase == PHASE_PROOF) {
        if (connection == slot->connection) atomic_store(&c->trusted, connection);
        send_request(slot);
    } else if (header.kind == RPC_KIND_REPLY) {
        on_response(slot, &header, body);
    } else {
        complete_error(slot, RPC_INTERNAL, "the reply belongs to another call");
    }
}

static void
on_aio(void *arg)
{
    call_slot *slot = arg;
    const int rc = nng_aio_result(slot->aio);
    if (rc != 0) {
        if (slot->sending) nng_msg_free(nng_aio_get_msg(slot->aio));
        nng_aio_set_msg(slot->aio, NULL);
        complete_nng_error(slot, rc);
        return;
    }
    if (slot->sending) {
        receive_reply(slot);
        return;
    }
    nng_msg *msg = nng_aio_get_msg(slot->aio);
    nng_aio_set_msg(slot->aio, NULL);
    on_reply(slot, msg);
    nng_msg_free(msg);
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

/* Fill in a slot that was just taken, and send. */
static void
start(call_slot *slot, unsigned method, const ProtobufCMessage *request, size_t len)
{
    rpc_client *c = slot->client;
    slot->method = method;
    slot->request = message_alloc(slot, RPC_KIND_CALL, len);
    if (slot->request == NULL) {
        complete_error(slot, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    protobuf_c_message_pack(request, body_of(slot->request));
    const uint32_t trusted = atomic_load(&c->trusted);
    if (c->secret.len == 0 || (trusted != 0 && trusted == atomic_load(&c->connection)))
        send_request(slot);
    else if (rpc_nonce_make(slot->nonce) != MOE_OK)
        complete_error(slot, RPC_INTERNAL, "no random numbers from the system");
    else
        send_proof_of(slot, RPC_KIND_HELLO, slot->nonce, RPC_NONCE_BYTES);
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
        pthread_mutex_unlock(&c->mutex);
    }
    if (slot == NULL) {
        if (status == RPC_OK) {
            status = RPC_RESOURCE_EXHAUSTED;
            describe(c, method, error, "%u calls are under way already", c->concurrency);
        }
        done(arg, status, NULL, error);
        return;
    }
    set_deadline(c, slot, timeout_ms, clock_now_ns());
    slot->done = done;
    slot->arg = arg;
    start(slot, method, request, len);
}

/* A caller of rpc_call_sync(), on its stack; guarded by client->mutex. */
typedef struct sync_wait {
    rpc_client *client;
    bool done;
    rpc_status status;
    ProtobufCMessage *response;
    errbuf error;
} sync_wait;

static void
on_sync_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    sync_wait *w = arg;
    rpc_client *c = w->client;
    pthread_mutex_lock(&c->mutex);
    w->status = status;
    w->response = response;
    err_set(&w->error, MOE_OK, "%s", error);
    w->done = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* Wait for a free slot; NULL when the client closes or the deadline passes first. */
static call_slot *
slot_wait_locked(rpc_client *c, uint64_t deadline_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                   .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    while (c->free_slots == NULL && !c->closing) {
        if (pthread_cond_timedwait(&c->changed, &c->mutex, &until) == ETIMEDOUT) break;
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
    if (slot == NULL) {
        w->status = c->closing ? RPC_CANCELLED : RPC_DEADLINE_EXCEEDED;
        if (c->closing)
            describe(c, method, w->error.text, "this client is closing");
        else
            describe(c, method, w->error.text, "deadline of %u ms passed, %u calls under way",
                     (unsigned)clock.timeout_ms, c->concurrency);
    } else {
        slot->deadline_ns = clock.deadline_ns;
        slot->timeout_ms = clock.timeout_ms;
        slot->done = on_sync_done;
        slot->arg = w;
        pthread_mutex_unlock(&c->mutex);
        start(slot, method, request, len);
        pthread_mutex_lock(&c->mutex);
        while (!w->done)
            pthread_cond_wait(&c->changed, &c->mutex);
    }
    c->waiting--;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

moe_err
rpc_call_sync(rpc_client *c, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
              ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    sync_wait w = {.client = c};
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

/* ---- calls that can be left alone ---- */

/* Shared by the caller and the callback, which may come after the caller has left: the last one
 * frees it. */
struct rpc_pending {
    const rpc_client *client;
    _Atomic uint32_t owners;
    _Atomic uint32_t done;
    _Atomic uint32_t *bell;
    rpc_status status;
    ProtobufCMessage *response;
    errbuf error;
};

static void
pending_release(rpc_pending *p)
{
    if (atomic_fetch_sub(&p->owners, 1) != 1) return;
    rpc_response_free(p->response);
    free(p);
}

static void
on_pending_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    rpc_pending *p = arg;
    p->status = status;
    p->response = response;
    err_set(&p->error, MOE_OK, "%s", error);
    futex_bump(&p->done);
    if (p->bell != NULL) futex_bump(p->bell);
    pending_release(p);
}

rpc_pending *
rpc_call_begin(rpc_client *c, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
               _Atomic uint32_t *bell)
{
    rpc_pending *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->client = c;
    p->bell = bell;
    atomic_store(&p->owners, 2);
    rpc_call_async(c, method, request, timeout_ms, on_pending_done, p);
    return p;
}

bool
rpc_pending_done(const rpc_pending *p)
{
    return atomic_load(&p->done) != 0;
}

bool
rpc_pending_wait(rpc_pending *p, uint64_t deadline_ns)
{
    return futex_wait_change(&p->done, 0, deadline_ns);
}

moe_err
rpc_pending_finish(rpc_pending *p, ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    rpc_status result = RPC_CANCELLED;
    *response = NULL;
    if (rpc_pending_done(p)) {
        result = p->status;
        *response = p->response;
        p->response = NULL;
        if (result != RPC_OK) err_set(eb, MOE_OK, "%s", p->error.text);
    } else {
        err_set(eb, MOE_OK, "%s: the wait for an answer was given up", p->client->url);
    }
    pending_release(p);
    if (status != NULL) *status = result;
    return result == RPC_OK ? MOE_OK : rpc_status_to_err(result);
}

moe_err
rpc_call_watched(rpc_client *c, unsigned method, const ProtobufCMessage *request,
                 uint32_t timeout_ms, bool (*gone)(void *arg), void *arg, uint32_t poll_ms,
                 ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    *response = NULL;
    if (status != NULL) *status = RPC_RESOURCE_EXHAUSTED;
    rpc_pending *p = rpc_call_begin(c, method, request, timeout_ms, NULL);
    if (p == NULL) return err_set(eb, MOE_ENOMEM, "%s: out of memory", c->url);
    while (!rpc_pending_wait(p, clock_now_ns() + poll_ms * NS_PER_MS) && !gone(arg)) {
    }
    return rpc_pending_finish(p, response, status, eb);
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

/* ---- open and close ---- */

static void
client_free(rpc_client *c)
{
    for (unsigned i = 0; c->slots != NULL && i < c->concurrency; i++)
        nng_aio_free(c->slots[i].aio);
    free(c->slots);
    pthread_cond_destroy(&c->changed);
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
    pthread_cond_init(&c->changed, &attr);
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
    c->slots = calloc(c->concurrency, sizeof *c->slots);
    *out = c;
    return c->slots != NULL ? MOE_OK : MOE_ENOMEM;
}

static int
slots_open(rpc_client *c)
{
    for (unsigned i = 0; i < c->concurrency; i++) {
        call_slot *slot = &c->slots[i];
        int rc = nng_aio_alloc(&slot->aio, on_aio, slot);
        if (rc == 0) rc = nng_ctx_open(&slot->ctx, c->socket);
        /* A call that was sent is never sent again: nng reports a lost connection instead. */
        if (rc == 0) rc = nng_ctx_set_ms(slot->ctx, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
        if (rc != 0) return rc;
        slot->client = c;
        slot->next_free = c->free_slots;
        c->free_slots = slot;
    }
    return 0;
}

static void
on_pipe(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    rpc_client *c = arg;
    uint32_t id = (uint32_t)nng_pipe_id(pipe);
    if (event == NNG_PIPE_EV_ADD_PRE) {
        atomic_store(&c->connection, id);
        return;
    }
    uint32_t trusted = id;
    atomic_compare_exchange_strong(&c->trusted, &trusted, 0);
    atomic_compare_exchange_strong(&c->connection, &id, 0);
}

bool
rpc_client_connected(const rpc_client *c)
{
    return atomic_load(&c->connection) != 0;
}

static moe_err
client_dial(rpc_client *c, errbuf *eb)
{
    rpc_nng_mend();
    int rc = nng_req0_open(&c->socket);
    c->socket_open = rc == 0;
    if (rc == 0) rc = nng_pipe_notify(c->socket, NNG_PIPE_EV_ADD_PRE, on_pipe, c);
    if (rc == 0) rc = nng_pipe_notify(c->socket, NNG_PIPE_EV_REM_POST, on_pipe, c);
    if (rc == 0) rc = slots_open(c);
    if (rc == 0) rc = nng_dialer_create(&c->dialer, c->socket, c->url);
    if (rc == 0)
        rc = nng_dialer_set_size(c->dialer, NNG_OPT_RECVMAXSZ,
                                 c->message_bytes_max + sizeof(rpc_header) + 64);
    if (rc == 0) rc = nng_dialer_set_ms(c->dialer, NNG_OPT_RECONNMINT, RECONNECT_MS_MIN);
    if (rc == 0) rc = nng_dialer_set_ms(c->dialer, NNG_OPT_RECONNMAXT, RECONNECT_MS_MAX);
    if (rc == 0) rc = nng_dialer_start(c->dialer, NNG_FLAG_NONBLOCK);
    if (rc != 0)
        return err_set(eb, rc == NNG_ENOMEM ? MOE_ENOMEM : MOE_EIO, "can't dial %s: %s", c->url,
                       nng_strerror(rc));
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
        err = client_dial(c, eb);
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
    pthread_cond_broadcast(&c->changed);
    while (c->inside != 0)
        pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);

    /* Closing ends every aio with NNG_ECLOSED. */
    if (c->socket_open && !rpc_nng_close(c->socket)) return;

    pthread_mutex_lock(&c->mutex);
    while (c->busy != 0 || c->waiting != 0)
        pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    client_free(c); /* waits for callbacks that are still running */
}
