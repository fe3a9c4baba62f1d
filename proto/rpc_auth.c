#include "proto/rpc_auth.h"

#include <string.h>
#include <sys/random.h>

moe_err
rpc_secret_set(rpc_secret *out, const void *bytes, size_t len, errbuf *eb)
{
    *out = (rpc_secret){0};
    if (bytes == NULL) return MOE_OK;
    if (len == 0 || len > RPC_SECRET_MAX)
        return err_set(eb, MOE_ERANGE, "a secret has 1 to %d bytes", RPC_SECRET_MAX);
    memcpy(out->bytes, bytes, len);
    out->len = len;
    return MOE_OK;
}

static rpc_secret default_secret;

moe_err
rpc_secret_set_default(const void *bytes, size_t len, errbuf *eb)
{
    return rpc_secret_set(&default_secret, bytes, len, eb);
}

moe_err
rpc_secret_set_own(rpc_secret *out, const void *bytes, size_t len, errbuf *eb)
{
    if (bytes != NULL) return rpc_secret_set(out, bytes, len, eb);
    *out = default_secret;
    return MOE_OK;
}

moe_err
rpc_nonce_make(unsigned char nonce[RPC_NONCE_BYTES])
{
    return getrandom(nonce, RPC_NONCE_BYTES, 0) == RPC_NONCE_BYTES ? MOE_OK : MOE_EIO;
}

void
rpc_proof_make(const rpc_secret *secret, rpc_role role, const unsigned char *client_nonce,
               const unsigned char *server_nonce, unsigned char proof[RPC_PROOF_BYTES])
{
    const char *label = role == RPC_ROLE_SERVER ? "conclave rpc server" : "conclave rpc client";
    hmac_sha256 h;
    hmac_sha256_init(&h, secret->bytes, secret->len);
    hmac_sha256_update(&h, label, strlen(label));
    hmac_sha256_update(&h, client_nonce, RPC_NONCE_BYTES);
    hmac_sha256_update(&h, server_nonce, RPC_NONCE_BYTES);
    hmac_sha256_final(&h, proof);
}

bool
rpc_proof_check(const rpc_secret *secret, rpc_role role, const unsigned char *client_nonce,
                const unsigned char *server_nonce, const unsigned char *proof)
{
    unsigned char want[RPC_PROOF_BYTES];
    rpc_proof_make(secret, role, client_nonce, server_nonce, want);
    return bytes_equal_constant_time(want, proof, sizeof want);
}
