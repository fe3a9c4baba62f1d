/* rpc_nng: a defect of nng 1.5.2, mended from outside.
 *
 * When a peer connects and is gone before nng has sent its greeting, sendmsg() fails with EPIPE,
 * which nng translates to NNG_ECLOSED, which its listeners and dialers take for "I was closed": the
 * listener accepts no further connection, the dialer never tries again, and nobody is told.  One
 * process that dies while connecting would silence a server.  As ECONNRESET, which is what
 * happened, the same event is handled well.
 *
 * So this module defines sendmsg() for the process: the system call, with EPIPE reported as
 * ECONNRESET to callers that pass just MSG_NOSIGNAL, as nng does.
 */
#ifndef MOE_PROTO_RPC_NNG_H
#define MOE_PROTO_RPC_NNG_H

/* Does nothing but make a program that calls it contain the sendmsg() of rpc_nng.c. */
void rpc_nng_mend(void);

#endif
