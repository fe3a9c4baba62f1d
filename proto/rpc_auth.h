/* rpc_auth: both ends of a connection prove that they know the shared secret.
 *
 *   client -> server  HELLO      client nonce
 *   server -> client  CHALLENGE  server nonce, HMAC(secret, "server" | both nonces)
 *   client -> server  PROOF      client nonce, HMAC(secret, "client" | both nonces)
 *   server -> client  REPLY      RPC_OK: every later call of this connection is looked at
 *
 * The server's nonce belongs to the connection, so an overheard proof is worth nothing on another
 * one.  This keeps strangers out; it does not hide or protect what is sent: use it on networks
 * where nobody else can listen or alter.
 *
 * Threads: no shared state but the default secret, which is set before threads are made.
 */
#ifndef MOE_PROTO_RPC_AUTH_H
#define MOE_PROTO_RPC_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/sha256.h"
#include "proto/rpc.h"

#define RPC_NONCE_BYTES 32
#define RPC_PROOF_BYTES SHA256_BYTES

typedef struct rpc_secret {
    unsigned char bytes[RPC_SECRET_MAX];
    size_t len; /* 0 = none */
} rpc_secret;

typedef enum rpc_role { RPC_ROLE_SERVER, RPC_ROLE_CLIENT } rpc_role;

/* bytes NULL: none.  MOE_ERANGE: not 1 to RPC_SECRET_MAX bytes. */
moe_err rpc_secret_set(rpc_secret *out, const void *bytes, size_t len, errbuf *eb);

/* The secret of servers and clients that are made without one of their own, from now on: a process
 * of a cell has one, and a new client or server can't be forgotten.  Before any is made; bytes
 * NULL: none.  Errors as rpc_secret_set(). */
moe_err rpc_secret_set_default(const void *bytes, size_t len, errbuf *eb);
/* rpc_secret_set(), or that default where bytes is NULL. */
moe_err rpc_secret_set_own(rpc_secret *out, const void *bytes, size_t len, errbuf *eb);

/* MOE_EIO: the system gives no random numbers. */
moe_err rpc_nonce_make(unsigned char nonce[RPC_NONCE_BYTES]);

void rpc_proof_make(const rpc_secret *secret, rpc_role role, const unsigned char *client_nonce,
                    const unsigned char *server_nonce, unsigned char proof[RPC_PROOF_BYTES]);

bool rpc_proof_check(const rpc_secret *secret, rpc_role role, const unsigned char *client_nonce,
                     const unsigned char *server_nonce, const unsigned char *proof);

#endif
