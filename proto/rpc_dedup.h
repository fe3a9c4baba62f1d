/* rpc_dedup: which calls a server has seen, and the replies it may have to repeat.
 *
 * Holds the last `entry_max` calls of all clients in a ring.  What fell out of the ring is known by
 * one number per client: the highest request id forgotten; ids at or below it are refused, because
 * they may have been carried out.  (A client's ids rise, and no more calls are under way at a time
 * than the ring holds, so that a new call is never that old.)  Clients are forgotten when
 * RPC_DEDUP_CLIENT_MAX others were heard from since.
 *
 * Threads: one at a time.
 */
#ifndef MOE_PROTO_RPC_DEDUP_H
#define MOE_PROTO_RPC_DEDUP_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define RPC_DEDUP_CLIENT_MAX 64

typedef struct rpc_dedup rpc_dedup;

typedef enum rpc_dedup_verdict {
    RPC_DEDUP_NEW,     /* never seen: carry it out, then rpc_dedup_finish() */
    RPC_DEDUP_RUNNING, /* being carried out */
    RPC_DEDUP_DONE,    /* carried out: *reply, or NULL if it was too large to keep */
    RPC_DEDUP_STALE,   /* too old to tell */
} rpc_dedup_verdict;

/* entry_max: at least twice the number of calls running at a time.  reply_bytes_max: of one kept
 * reply; memory is entry_max * reply_bytes_max.
 *   MOE_ERANGE  entry_max is 0
 *   MOE_ENOMEM  */
moe_err rpc_dedup_create(rpc_dedup **out, uint32_t entry_max, uint32_t reply_bytes_max);
void rpc_dedup_free(rpc_dedup *d);

/* reply, len: set for RPC_DEDUP_DONE, borrowed until the next call. */
rpc_dedup_verdict rpc_dedup_begin(rpc_dedup *d, uint64_t incarnation, uint64_t request_id,
                                  const void **reply, size_t *len);

/* The call that rpc_dedup_begin() said is new was answered with these bytes (copied). */
void rpc_dedup_finish(rpc_dedup *d, uint64_t incarnation, uint64_t request_id, const void *reply,
                      size_t len);

#endif
