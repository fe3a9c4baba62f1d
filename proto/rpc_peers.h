/* rpc_peers: the connections of a server, at most so many, and which of them proved themselves.
 *
 * Threads: any.
 */
#ifndef MOE_PROTO_RPC_PEERS_H
#define MOE_PROTO_RPC_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "proto/rpc_auth.h"

typedef struct rpc_peers rpc_peers;

moe_err rpc_peers_create(rpc_peers **out, uint32_t connection_max);
void rpc_peers_free(rpc_peers *p);

/* connection: not 0.
 *   MOE_EBUSY  connection_max are there already
 *   MOE_EIO    no random numbers for its nonce */
moe_err rpc_peers_add(rpc_peers *p, uint32_t connection);
void rpc_peers_remove(rpc_peers *p, uint32_t connection);

/* The server's nonce for this connection; false when it is not (or no longer) there. */
bool rpc_peers_nonce(rpc_peers *p, uint32_t connection, unsigned char nonce[RPC_NONCE_BYTES]);
void rpc_peers_set_authenticated(rpc_peers *p, uint32_t connection);
bool rpc_peers_authenticated(rpc_peers *p, uint32_t connection);

#endif
