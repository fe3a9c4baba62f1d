/* rpc_nng: two defects of nng 1.5.2, mended from outside.
 *
 * 1. When a peer connects and is gone before nng has sent its greeting, sendmsg() fails with EPIPE,
 * which nng translates to NNG_ECLOSED, which its listeners and dialers take for "I was closed": the
 * listener accepts no further connection, the dialer never tries again, and nobody is told.  One
 * process that dies while connecting would silence a server.  As ECONNRESET, which is what
 * happened, the same event is handled well.
 *
 * So this module defines sendmsg() for the process: the system call, with EPIPE reported as
 * ECONNRESET to callers that pass just MSG_NOSIGNAL, as nng does.
 *
 * 2. nng_close() can wait for ever, when a message arrives in the same instant: nng's own reaper
 * thread then waits for a task that was prepared but will not be started (nng issues 1543 and 1813,
 * mended upstream in 1.8).  So closing has a time limit here; what nng still holds after it is
 * given up and leaked, which only a process that is about to end does.
 */
#ifndef MOE_PROTO_RPC_NNG_H
#define MOE_PROTO_RPC_NNG_H

#include <nng/nng.h>
#include <stdbool.h>

#define RPC_NNG_CLOSE_MS 2000

/* Does nothing but make a program that calls it contain the sendmsg() of rpc_nng.c. */
void rpc_nng_mend(void);

/* Close a socket.  false: it was given up after RPC_NNG_CLOSE_MS; then memory that the socket's
 * aios use must not be freed. */
bool rpc_nng_close(nng_socket socket);

#endif
