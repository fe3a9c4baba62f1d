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
 * 2. nng_close() can wait for ever: when a pipe is closed between the header and the body of a
 * message that is coming in, the ipc and tcp transports resubmit a read that was stopped already,
 * nobody completes the protocol's receive, and nng's one reaper thread waits for it (nng issues
 * 1543 and 1813).  So closing has a time limit here; what nng still holds after it is leaked, and
 * the process leaves without nng's exit handler, which would wait for the same thing.
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
