#include "proto/rpc_dedup.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef enum entry_state { ENTRY_EMPTY, ENTRY_RUNNING, ENTRY_DONE } entry_state;

typedef struct entry {
    uint64_t incarnation;
    uint64_t request_id;
    entry_state state;
    bool kept;
    uint32_t reply_bytes;
} entry;

typedef struct client_floor {
    uint64_t incarnation; /* 0 = unused */
    uint64_t request_id;  /* the highest forgotten */
    uint64_t heard;       /* the tick of the last call, to find the longest silent */
} client_floor;

struct rpc_dedup {
    uint32_t entry_max;
    uint32_t reply_bytes_max;
    uint32_t next; /* the ring's oldest entry */
    uint64_t tick;
    entry *entries;         /* [entry_max] */
    unsigned char *replies; /* [entry_max, reply_bytes_max] */
    client_floor floors[RPC_DEDUP_CLIENT_MAX];
};

moe_err
rpc_dedup_create(rpc_dedup **out, uint32_t entry_max, uint32_t reply_bytes_max)
{
    *out = NULL;
    if (entry_max == 0) return MOE_ERANGE;
    rpc_dedup *d = calloc(1, sizeof *d);
    if (d == NULL) return MOE_ENOMEM;
    d->entry_max = entry_max;
    d->reply_bytes_max = reply_bytes_max;
    d->entries = calloc(entry_max, sizeof *d->entries);
    d->replies = calloc(entry_max, (size_t)reply_bytes_max + 1);
    if (d->entries == NULL || d->replies == NULL) {
        rpc_dedup_free(d);
        return MOE_ENOMEM;
    }
    *out = d;
    return MOE_OK;
}

void
rpc_dedup_free(rpc_dedup *d)
{
    if (d == NULL) return;
    free(d->entries);
    free(d->replies);
    free(d);
}

/* The client's floor, in place of the longest silent client's if it has none. */
static client_floor *
floor_of(rpc_dedup *d, uint64_t incarnation)
{
    client_floor *oldest = &d->floors[0];
    for (uint32_t i = 0; i < RPC_DEDUP_CLIENT_MAX; i++) {
        if (d->floors[i].incarnation == incarnation) return &d->floors[i];
        if (d->floors[i].heard < oldest->heard) oldest = &d->floors[i];
    }
    *oldest = (client_floor){.incarnation = incarnation};
    return oldest;
}

static entry *
find(rpc_dedup *d, uint64_t incarnation, uint64_t request_id)
{
    for (uint32_t i = 0; i < d->entry_max; i++) {
        entry *e = &d->entries[i];
        if (e->state != ENTRY_EMPTY && e->request_id == request_id && e->incarnation == incarnation)
            return e;
    }
    return NULL;
}

/* The entry to overwrite: the oldest that is not running, or NULL. */
static entry *
oldest_entry(rpc_dedup *d)
{
    for (uint32_t i = 0; i < d->entry_max; i++) {
        entry *e = &d->entries[d->next];
        d->next = (d->next + 1) % d->entry_max;
        if (e->state != ENTRY_RUNNING) return e;
    }
    return NULL;
}

static unsigned char *
reply_of(rpc_dedup *d, const entry *e)
{
    return d->replies + (size_t)(e - d->entries) * d->reply_bytes_max;
}

rpc_dedup_verdict
rpc_dedup_begin(rpc_dedup *d, uint64_t incarnation, uint64_t request_id, const void **reply,
                size_t *len)
{
    *reply = NULL;
    *len = 0;
    client_floor *client = floor_of(d, incarnation);
    client->heard = ++d->tick;

    const entry *seen = find(d, incarnation, request_id);
    if (seen != NULL && seen->state == ENTRY_RUNNING) return RPC_DEDUP_RUNNING;
    if (seen != NULL) {
        if (seen->kept) *reply = reply_of(d, seen);
        *len = seen->reply_bytes;
        return RPC_DEDUP_DONE;
    }
    if (request_id <= client->request_id) return RPC_DEDUP_STALE;

    entry *e = oldest_entry(d);
    if (e == NULL) return RPC_DEDUP_RUNNING; /* more running than entry_max: the owner's mistake */
    if (e->state == ENTRY_DONE) {
        client_floor *forgotten = floor_of(d, e->incarnation);
        if (e->request_id > forgotten->request_id) forgotten->request_id = e->request_id;
    }
    *e = (entry){.incarnation = incarnation, .request_id = request_id, .state = ENTRY_RUNNING};
    return RPC_DEDUP_NEW;
}

void
rpc_dedup_finish(rpc_dedup *d, uint64_t incarnation, uint64_t request_id, const void *reply,
                 size_t len)
{
    entry *e = find(d, incarnation, request_id);
    if (e == NULL) return;
    e->state = ENTRY_DONE;
    if (len > d->reply_bytes_max) return;
    e->kept = true;
    e->reply_bytes = (uint32_t)len;
    memcpy(reply_of(d, e), reply, len);
}
