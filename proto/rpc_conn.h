/* rpc_conn: frames (proto/rpc_wire.h) over one nng stream, both ways at once.
 *
 * Used by both ends.  The owner keeps the frames that wait to be written and hands them over one
 * at a time, when the stream has room: so it knows which ones were begun, and may still take back
 * the others.  What arrives is given to it frame by frame, in order; it may leave a frame for later
 * and thereby stop the peer from sending more.
 *
 *     open -> (ending: no longer read, closed when everything is written) -> lost -> freed
 *
 * Threads: functions that end in _locked are called with the owner's mutex held, and so are the
 * owner's functions that end in _locked; the others without it.  The owner's functions run on nng's
 * threads or inside the _locked functions here, and must not block.
 */
#ifndef MOE_PROTO_RPC_CONN_H
#define MOE_PROTO_RPC_CONN_H

#include <nng/nng.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "proto/rpc_wire.h"

typedef struct rpc_frame {
    struct rpc_frame *next; /* for queues of its owner */
    size_t bytes;           /* of data */
    unsigned char data[];   /* header, body */
} rpc_frame;

/* A frame with this header and room for the body_bytes it says; NULL when out of memory.  Released
 * with free(). */
rpc_frame *rpc_frame_alloc(const rpc_header *header);
uint8_t *rpc_frame_body(rpc_frame *frame);

typedef struct rpc_conn rpc_conn;

typedef struct rpc_conn_owner {
    void *arg; /* the first argument of what follows */
    pthread_mutex_t *mutex;
    size_t body_bytes_max; /* of a frame that is read */

    /* The next frame to write, which becomes the connection's, or NULL. */
    rpc_frame *(*next_locked)(void *arg);

    /* A frame arrived; body is borrowed for the call.  false: not now; the same frame comes again
     * after rpc_conn_resume_locked(). */
    bool (*arrived)(void *arg, const rpc_header *header, const uint8_t *body);

    /* What arrives is no frame (rpc_frame_find() says why), so that nothing is read any more.  The
     * owner ends or closes the connection, at once or later. */
    void (*garbled)(void *arg, moe_err err, const char *why);

    /* The connection is closed, by whomever.  Comes once, and nothing is written or read
     * afterwards; an arrived() that runs may still go on.  The owner has rpc_conn_free() called. */
    void (*lost_locked)(void *arg);
} rpc_conn_owner;

/* Take the stream over, also after an error.  Nothing happens before rpc_conn_start_locked().
 *   MOE_ENOMEM  */
moe_err rpc_conn_open(rpc_conn **out, nng_stream *stream, const rpc_conn_owner *owner);

/* Begin to read, and to write. */
void rpc_conn_start_locked(rpc_conn *conn);

/* next_locked() may have something: ask. */
void rpc_conn_write_locked(rpc_conn *conn);

/* Go on after an arrived() that returned false, also if it has not returned yet. */
void rpc_conn_resume_locked(rpc_conn *conn);

/* Read no more; close when next_locked() has nothing left. */
void rpc_conn_end_locked(rpc_conn *conn);

/* Hang up now. */
void rpc_conn_close_locked(rpc_conn *conn);

/* Hang up, wait for the owner's functions that are running, free.  Not on nng's threads.  Accepts
 * NULL. */
void rpc_conn_free(rpc_conn *conn);

#endif
