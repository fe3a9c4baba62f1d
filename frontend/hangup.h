/* hangup: notices that clients have gone while their connections are suspended.
 *
 * libmicrohttpd does not poll a suspended connection, so a client that leaves while its request is
 * queued or computing would be served to the end.  One thread here polls the sockets of such
 * requests for the peer's end of stream.
 *
 * A socket must be unwatched before it is closed.
 *
 * Threads: watch, unwatch and cut from any thread; on_gone runs on the watcher's own thread.
 */
#ifndef MOE_FRONTEND_HANGUP_H
#define MOE_FRONTEND_HANGUP_H

#include <stdint.h>

#include "common/err.h"

typedef struct hangup hangup;

/* Who is told, at most once.  retain() is called under the watcher's lock, so that the object can't
 * go away between the event and on_gone(); on_gone() gives that reference back. */
typedef struct hangup_target {
    void (*retain)(void *user);
    void (*on_gone)(void *user);
    void *user;
} hangup_target;

/* Up to watch_max sockets at a time.  MOE_ENOMEM, MOE_EIO. */
moe_err hangup_create(hangup **out, uint32_t watch_max);
/* Joins the thread; no call to on_gone is running or comes afterwards.  Accepts NULL. */
void hangup_free(hangup *h);

/* Returns a handle, or 0 if the socket can't be watched (watch_max reached, not a socket). */
uint64_t hangup_watch(hangup *h, int fd, hangup_target target);
/* 0 and handles of old are ignored.  An on_gone() that began before may still be running. */
void hangup_unwatch(hangup *h, uint64_t handle);
/* Shut the socket down, if it is still watched: both sides see an end of stream, on_gone() follows.
 * Does not block. */
void hangup_cut(hangup *h, uint64_t handle);

#endif
