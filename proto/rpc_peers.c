#include "proto/rpc_peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct peer {
    uint32_t connection; /* 0 = unused */
    bool authenticated;
    unsigned char nonce[RPC_NONCE_BYTES];
} peer;

struct rpc_peers {
    pthread_mutex_t mutex; /* guards peers */
    uint32_t connection_max;
    peer peers[]; /* [connection_max] */
};

moe_err
rpc_peers_create(rpc_peers **out, uint32_t connection_max)
{
    *out = NULL;
    rpc_peers *p = calloc(1, sizeof *p + connection_max * sizeof(peer));
    if (p == NULL) return MOE_ENOMEM;
    pthread_mutex_init(&p->mutex, NULL);
    p->connection_max = connection_max;
    *out = p;
    return MOE_OK;
}

void
rpc_peers_free(rpc_peers *p)
{
    if (p == NULL) return;
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

static peer *
find_locked(rpc_peers *p, uint32_t connection)
{
    for (uint32_t i = 0; i < p->connection_max; i++) {
        if (p->peers[i].connection == connection) return &p->peers[i];
    }
    return NULL;
}

moe_err
rpc_peers_add(rpc_peers *p, uint32_t connection)
{
    peer new_peer = {.connection = connection};
    if (rpc_nonce_make(new_peer.nonce) != MOE_OK) return MOE_EIO;
    pthread_mutex_lock(&p->mutex);
    peer *unused = find_locked(p, 0);
    if (unused != NULL) *unused = new_peer;
    pthread_mutex_unlock(&p->mutex);
    return unused != NULL ? MOE_OK : MOE_EBUSY;
}

void
rpc_peers_remove(rpc_peers *p, uint32_t connection)
{
    pthread_mutex_lock(&p->mutex);
    peer *gone = find_locked(p, connection);
    if (gone != NULL) *gone = (peer){0};
    pthread_mutex_unlock(&p->mutex);
}

bool
rpc_peers_nonce(rpc_peers *p, uint32_t connection, unsigned char nonce[RPC_NONCE_BYTES])
{
    pthread_mutex_lock(&p->mutex);
    const peer *found = find_locked(p, connection);
    if (found != NULL) memcpy(nonce, found->nonce, RPC_NONCE_BYTES);
    pthread_mutex_unlock(&p->mutex);
    return found != NULL;
}

void
rpc_peers_set_authenticated(rpc_peers *p, uint32_t connection)
{
    pthread_mutex_lock(&p->mutex);
    peer *found = find_locked(p, connection);
    if (found != NULL) found->authenticated = true;
    pthread_mutex_unlock(&p->mutex);
}

bool
rpc_peers_authenticated(rpc_peers *p, uint32_t connection)
{
    pthread_mutex_lock(&p->mutex);
    const peer *found = find_locked(p, connection);
    const bool authenticated = found != NULL && found->authenticated;
    pthread_mutex_unlock(&p->mutex);
    return authenticated;
}
