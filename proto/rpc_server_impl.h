/* rpc_server_impl: what the sources of the server share; see the design notes in rpc_server.c.
 *
 * Functions that end in _locked are called with server->mutex held, the others without it.
 */
#ifndef MOE_PROTO_RPC_SERVER_IMPL_H
#define MOE_PROTO_RPC_SERVER_IMPL_H

#include <nng/nng.h>
#include <pthread.h>
#include <stdbool.h>

#include "common/arena.h"
#include "proto/rpc.h"
#include "proto/rpc_auth.h"
#include "proto/rpc_conn.h"
#include "proto/rpc_dedup.h"
#include "proto/rpc_wire.h"

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

/* ---- rpc_server.c ---- */

void server_unref(rpc_server *s);
void peer_unref_locked(peer *p);

/* ---- rpc_server_calls.c ---- */

rpc_conn_owner peer_conn_owner(peer *p);

/* End every call that a handler holds with RPC_UNAVAILABLE; the handler need not know. */
void server_abandon_calls_locked(rpc_server *s);

#endif
