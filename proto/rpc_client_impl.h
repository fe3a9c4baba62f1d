/* rpc_client_impl: what the sources of the client share; see the design notes in rpc_client.c.
 *
 * Functions that end in _locked are called with client->mutex held, the others without it.
 */
#ifndef MOE_PROTO_RPC_CLIENT_IMPL_H
#define MOE_PROTO_RPC_CLIENT_IMPL_H

#include <nng/nng.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "proto/rpc.h"
#include "proto/rpc_auth.h"
#include "proto/rpc_conn.h"
#include "proto/rpc_wire.h"

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
    _Atomic uint32_t losses;     /* connections that were up and ended */
    _Atomic uint32_t *lost_bell; /* or NULL */
    call_slot *slots;            /* [concurrency] */
    pthread_mutex_t mutex;       /* guards what follows, and the slots */
    pthread_cond_t wake;         /* the keeper */
    pthread_cond_t freed;        /* a slot became free, or a thread left rpc_call_sync() */
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

/* ---- rpc_client_calls.c ---- */

/* The calls that are sent (and lost with their connection), all, or those whose deadline has
 * passed. */
typedef enum which_calls { CALLS_SENT, CALLS_ALL, CALLS_EXPIRED } which_calls;

/* Take them out of the queue or out of SENT; *next_ns becomes the earliest deadline of the others.
 */
call_slot *client_claim_locked(rpc_client *c, which_calls which, uint64_t *next_ns);
void client_unqueue_locked(call_slot *slot);

/* The call in the slot is over, and nobody else's to end.  The slot is free before the callback
 * runs, so that the callback can start another call. */
void client_complete(call_slot *slot, rpc_status status, ProtobufCMessage *response,
                     const char *error);
void client_complete_error(call_slot *slot, rpc_status status, const char *text);
void client_complete_all(call_slot *list, rpc_status status, const char *text);

/* `invoke` of rpc_client_service(). */
void client_stub_invoke(ProtobufCService *service, unsigned method, const ProtobufCMessage *request,
                        ProtobufCClosure closure, void *closure_data);

/* ---- rpc_client_conn.c ---- */

/* A frame of this client's; NULL when out of memory. */
rpc_frame *client_frame_alloc(const rpc_client *c, rpc_kind kind, size_t body_bytes);
void client_set_request_id_locked(rpc_client *c, rpc_frame *frame, uint64_t *id);
void client_write_locked(rpc_client *c);
rpc_conn_owner client_conn_owner(rpc_client *c);

#endif
