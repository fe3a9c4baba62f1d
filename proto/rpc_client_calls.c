/* The client's call slots and the ways to call. */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/futex.h"
#include "proto/rpc_client_impl.h"

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

void
client_unqueue_locked(call_slot *slot)
{
    rpc_client *c = slot->client;
    call_slot **at = &c->queue;
    while (*at != slot)
        at = &(*at)->next;
    *at = slot->next;
    if (slot->next == NULL) c->queue_end = at;
}

void
client_complete(call_slot *slot, rpc_status status, ProtobufCMessage *response, const char *error)
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

void
client_complete_error(call_slot *slot, rpc_status status, const char *text)
{
    char error[MOE_ERR_TEXT_MAX];
    describe(slot->client, slot->method, error, "%s", text);
    client_complete(slot, status, NULL, error);
}

void
client_complete_all(call_slot *list, rpc_status status, const char *text)
{
    while (list != NULL) {
        call_slot *slot = list;
        list = slot->next;
        client_complete_error(slot, status, text);
    }
}

call_slot *
client_claim_locked(rpc_client *c, which_calls which, uint64_t *next_ns)
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
        if (slot->state == CALL_QUEUED) client_unqueue_locked(slot);
        slot->state = CALL_FREE;
        slot->next = NULL;
        *end = slot;
        end = &slot->next;
    }
    return list;
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
    slot->frame = client_frame_alloc(c, RPC_KIND_CALL, len);
    if (slot->frame == NULL) {
        client_complete_error(slot, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    memcpy(slot->frame->data + offsetof(rpc_header, method), &wire_method, sizeof wire_method);
    protobuf_c_message_pack(request, rpc_frame_body(slot->frame));

    pthread_mutex_lock(&c->mutex);
    const bool closing = c->closing;
    if (!closing) {
        client_set_request_id_locked(c, slot->frame, &slot->request_id);
        slot->state = CALL_QUEUED;
        slot->next = NULL;
        *c->queue_end = slot;
        c->queue_end = &slot->next;
        if (slot->deadline_ns < c->wake_ns) pthread_cond_signal(&c->wake);
        client_write_locked(c);
    }
    pthread_mutex_unlock(&c->mutex);
    if (closing) client_complete_error(slot, RPC_CANCELLED, "this client is closing");
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
        futex_sleep_change(&w->done, 0, 0);
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

void
rpc_response_free(ProtobufCMessage *response)
{
    if (response != NULL) protobuf_c_message_free_unpacked(response, NULL);
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

void
client_stub_invoke(ProtobufCService *service, unsigned method, const ProtobufCMessage *request,
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
