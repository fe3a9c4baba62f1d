/* The client's end of a connection: what is sent, the handshake, and what arrives. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/futex.h"
#include "common/clock.h"
#include "proto/rpc_client_impl.h"

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

/* ---- what is sent ---- */

static uint32_t
time_left_ms(const call_slot *slot)
{
    const uint64_t now = clock_now_ns();
    if (now >= slot->deadline_ns) return 0;
    return (uint32_t)((slot->deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS);
}

rpc_frame *
client_frame_alloc(const rpc_client *c, rpc_kind kind, size_t body_bytes)
{
    rpc_header header = rpc_header_make(kind, (uint32_t)body_bytes);
    header.service = c->fingerprint;
    header.incarnation = c->incarnation;
    return rpc_frame_alloc(&header);
}

void
client_set_request_id_locked(rpc_client *c, rpc_frame *frame, uint64_t *id)
{
    *id = ++c->next_id;
    memcpy(frame->data + offsetof(rpc_header, request_id), id, sizeof *id);
}

/* NULL: no memory or no random numbers; tried again with the next call. */
static rpc_frame *
hello_locked(rpc_client *c)
{
    rpc_frame *frame = client_frame_alloc(c, RPC_KIND_HELLO, RPC_NONCE_BYTES);
    if (frame == NULL || rpc_nonce_make(c->nonce) != MOE_OK) {
        free(frame);
        return NULL;
    }
    memcpy(rpc_frame_body(frame), c->nonce, RPC_NONCE_BYTES);
    client_set_request_id_locked(c, frame, &c->proof_id);
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
    client_unqueue_locked(slot);
    slot->state = CALL_SENT;
    frame = slot->frame;
    slot->frame = NULL;
    const uint32_t left_ms = time_left_ms(slot);
    memcpy(frame->data + offsetof(rpc_header, timeout_ms), &left_ms, sizeof left_ms);
    return frame;
}

void
client_write_locked(rpc_client *c)
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
        client_complete_error(slot, status, text.text);
        return;
    }
    ProtobufCMessage *response =
        unpack_response(type, c->unpacked_bytes_max, body, header->body_bytes);
    if (response != NULL)
        client_complete(slot, RPC_OK, response, "");
    else
        client_complete_error(slot, RPC_INTERNAL, "the response does not unpack");
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
    client_complete_all(list, status, text);
}

static void
on_challenge(rpc_client *c, const rpc_header *header, const uint8_t *server_nonce)
{
    rpc_frame *frame = client_frame_alloc(c, RPC_KIND_PROOF, RPC_NONCE_BYTES + RPC_PROOF_BYTES);
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
        client_set_request_id_locked(c, frame, &c->proof_id);
        c->proof = PROOF_SENT;
        free(c->proof_frame);
        c->proof_frame = frame;
        client_write_locked(c);
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
        client_write_locked(c);
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
    if (atomic_exchange(&c->connected, false)) {
        atomic_fetch_add(&c->losses, 1);
        if (c->lost_bell != NULL) futex_bump(c->lost_bell);
    }
    pthread_cond_signal(&c->wake);
}

rpc_conn_owner
client_conn_owner(rpc_client *c)
{
    return (rpc_conn_owner){.arg = c,
                            .mutex = &c->mutex,
                            .body_bytes_max = c->message_bytes_max + MOE_ERR_TEXT_MAX,
                            .next_locked = on_next_locked,
                            .arrived = on_arrived,
                            .garbled = on_garbled,
                            .lost_locked = on_lost_locked};
}
