/* rpc_peers: the connections of a server, at most so many.
 *
 * Threads: any.
 */
#ifndef MOE_PROTO_RPC_PEERS_H
#define MOE_PROTO_RPC_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

typedef struct rpc_peers rpc_peers;

moe_err rpc_peers_create(rpc_peers **out, uint32_t connection_max);
void rpc_peers_free(rpc_peers *p);

/* connection: not 0.
 *   MOE_EBUSY  connection_max are there already */
moe_err rpc_peers_add(rpc_peers *p, uint32_t connection);
void rpc_peers_remove(rpc_peers *p, uint32_t connection);

#endif
