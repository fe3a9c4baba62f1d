/* rpc: protobuf-c services over nng's byte streams, with deadlines and gRPC's status codes.
 *
 * A server answers the calls of one ProtobufCService, the struct that protoc-c generates for a
 * `service`: its methods are the handlers.  A client is a ProtobufCService too, so that generated
 * stubs work on it, and has a blocking and an asynchronous call of its own.
 *
 * A handler may answer at once or later, from any thread: `closure_data` of every method is the
 * rpc_call, and whoever holds it finishes it exactly once, by one of
 *     closure(&response, closure_data)            as protobuf-c has it; NULL = RPC_INTERNAL
 *     rpc_reply(call, &response.base)             the same
 *     rpc_fail(call, RPC_NOT_FOUND, "slot %u", n)
 * A service with one handler for all methods sets `invoke` of a ProtobufCService of its own.
 *
 * What holds:
 *  - A client has one connection and sends its calls over it in the order in which they were made.
 *    A server hands those of one connection to its methods in that order, one after the other;
 *    what is answered later may be answered in any order.
 *  - A client never sends a call twice, and a server that receives one twice all the same carries
 *    it out once: it answers the copy from a bounded memory of replies, or refuses it.
 *  - Every call ends by its deadline, or at once when the connection it was sent over is lost.
 * RPC_UNAVAILABLE and RPC_DEADLINE_EXCEEDED say that the call may or may not have been carried out.
 *  - Messages and what they unpack to are bounded; bytes that are no valid call are answered with
 *    an error or dropped.
 *  - With a shared secret, both sides prove that they know it before a call is looked at.
 *
 * Source: status codes and their meaning are gRPC's; at-most-once execution by client incarnation
 * and request id is Birrell and Nelson, Implementing Remote Procedure Calls (1984).
 *
 * Threads: every function may be called from any thread, except that rpc_server_stop() and
 * rpc_client_close() must not be called from a handler or callback.  Handlers and callbacks run on
 * nng's threads (a callback also on its client's own), those of different connections at once, and
 * must not block: nothing else that came over the same connection is looked at meanwhile.
 */
#ifndef MOE_PROTO_RPC_H
#define MOE_PROTO_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define RPC_URL_MAX 256
#define RPC_SECRET_MAX 256
#define RPC_CONCURRENCY_MAX 256
#define RPC_MESSAGE_BYTES_MAX (1u << 30)
#define RPC_MESSAGE_BYTES_DEFAULT (1u << 20)
#define RPC_TIMEOUT_MS_DEFAULT 5000
#define RPC_TIMEOUT_MS_MAX (24u * 3600 * 1000)

/* gRPC's codes, with gRPC's numbers. */
typedef enum rpc_status {
    RPC_OK = 0,
    RPC_CANCELLED = 1,          /* this client is closing */
    RPC_INVALID_ARGUMENT = 3,   /* the request breaks a rule, or does not unpack */
    RPC_DEADLINE_EXCEEDED = 4,  /* no answer in time */
    RPC_NOT_FOUND = 5,          /* what the request names does not exist */
    RPC_PERMISSION_DENIED = 7,  /* the secret is wrong */
    RPC_RESOURCE_EXHAUSTED = 8, /* a message too large, or a bounded resource is full */
    RPC_FAILED_PRECONDITION = 9,
    RPC_UNIMPLEMENTED = 12, /* no such method, or another service */
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,     /* connection lost, or the server is stopping */
    RPC_UNAUTHENTICATED = 16, /* the server wants a secret */
} rpc_status;

/* "DEADLINE_EXCEEDED"; "UNKNOWN" for a number outside the enum.  Static storage. */
const char *rpc_status_name(rpc_status status);
moe_err rpc_status_to_err(rpc_status status);
rpc_status rpc_status_from_err(moe_err err);

/* ---- server ---- */

typedef struct rpc_server rpc_server;
typedef struct rpc_call rpc_call; /* one call being handled */

typedef struct rpc_server_options {
    const char *url;           /* "ipc:///run/x.sock" (mode 0600), "tcp://0.0.0.0:0" */
    ProtobufCService *service; /* borrowed until stop; `invoke` runs on several threads at once */
    size_t message_bytes_max;  /* of a packed request or response; 0 = 1 MiB */
    size_t unpacked_bytes_max; /* of one unpacked request; 0 = 4 x message_bytes_max + 1 MiB */
    unsigned concurrency;      /* calls handled at a time, further ones wait; 0 = 8 */
    unsigned connection_max;   /* 0 = 256 */
    const void *secret;        /* copied; NULL = rpc_secret_set_default(), or none wanted */
    size_t secret_bytes;       /* 1..RPC_SECRET_MAX */
} rpc_server_options;

/* Listen and serve.
 *   MOE_EINVAL   the url or the service is not usable
 *   MOE_ERANGE   an option is outside its limits
 *   MOE_EIO      can't listen there; the text names the url and why
 *   MOE_ENOMEM  */
moe_err rpc_server_start(rpc_server **out, const rpc_server_options *opt, errbuf *eb);

/* Answer every unfinished call with RPC_UNAVAILABLE, close all connections (those that do not take
 * their replies after a second), remove the ipc file.  Does not wait for handlers that answer
 * later: their calls stay valid and must still be finished once, which then has no effect but to
 * release them.  Waits for methods that are running on nng's threads to return.  Accepts NULL. */
void rpc_server_stop(rpc_server *server);

/* Where it listens, with the real port for a url that ended in ":0".  Borrowed until stop. */
const char *rpc_server_url(const rpc_server *server);

/* Finish a call with RPC_OK; response is packed before this returns (so it may point into the
 * request).  A response above message_bytes_max becomes RPC_RESOURCE_EXHAUSTED.  The call and its
 * request are invalid afterwards. */
void rpc_reply(rpc_call *call, const ProtobufCMessage *response);

/* Finish a call with an error; RPC_OK is taken for RPC_INTERNAL. */
void rpc_fail(rpc_call *call, rpc_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Finish a call with the status that fits err and the text in eb. */
void rpc_fail_err(rpc_call *call, moe_err err, const errbuf *eb);

/* When its client stops waiting, in clock_now_ns() time of this host. */
uint64_t rpc_call_deadline_ns(const rpc_call *call);
/* The connection it came over: the same number for all calls of one connection, never reused while
 * the server runs. */
uint32_t rpc_call_connection(const rpc_call *call);
/* Chosen at random by each rpc_client_open(); not 0. */
uint64_t rpc_call_incarnation(const rpc_call *call);

/* ---- client ---- */

typedef struct rpc_client rpc_client;

typedef struct rpc_client_options {
    const char *url;
    const ProtobufCServiceDescriptor *service;
    size_t message_bytes_max;    /* of a packed request or response; 0 = 1 MiB */
    size_t unpacked_bytes_max;   /* of one unpacked response; 0 = 4 x message_bytes_max + 1 MiB */
    unsigned concurrency;        /* calls under way at a time; 0 = 16 */
    uint32_t default_timeout_ms; /* 0 = RPC_TIMEOUT_MS_DEFAULT */
    const void *secret;          /* copied; NULL = rpc_secret_set_default(), or none */
    size_t secret_bytes;
    _Atomic uint32_t *lost_bell; /* bumped (common/futex.h) whenever a connection ends; NULL = none.
                                    Must live until the client is closed. */
} rpc_client_options;

/* Start connecting in the background, and again after each loss; returns at once, whether or not a
 * server is there.  Errors as rpc_server_start(). */
moe_err rpc_client_open(rpc_client **out, const rpc_client_options *opt, errbuf *eb);

/* Is a connection up at this moment?  For health reports: a call may still fail, or wait for one.
 */
bool rpc_client_connected(const rpc_client *client);

/* How often a connection that was up has ended: the server's process is gone, or it hung up. */
uint32_t rpc_client_losses(const rpc_client *client);

/* Borrowed until close. */
const char *rpc_client_url(const rpc_client *client);

/* End every unfinished call with RPC_CANCELLED, wait until their callbacks have returned, free.
 * No call may be started meanwhile.  Accepts NULL. */
void rpc_client_close(rpc_client *client);

/* Call and wait.  A server that is not there yet is waited for within the deadline.
 *   method      index into the service's methods
 *   timeout_ms  0 = the client's default; at most RPC_TIMEOUT_MS_MAX
 *   *response   on MOE_OK of the method's output type, owned: rpc_response_free(); else NULL
 *   *status     may be NULL; RPC_OK if and only if the result is MOE_OK
 *   eb          may be NULL; "URL: METHOD: what went wrong"
 * Result: rpc_status_to_err(*status). */
moe_err rpc_call_sync(rpc_client *client, unsigned method, const ProtobufCMessage *request,
                      uint32_t timeout_ms, ProtobufCMessage **response, rpc_status *status,
                      errbuf *eb);

/* As rpc_call_sync(), but gone(arg) is asked every poll_ms while the answer is awaited; once it
 * says true the wait ends with RPC_CANCELLED.  The call may still be carried out, its answer is
 * dropped. For calls of long deadlines in processes that must be able to stop at any moment. */
moe_err rpc_call_watched(rpc_client *client, unsigned method, const ProtobufCMessage *request,
                         uint32_t timeout_ms, bool (*gone)(void *arg), void *arg, uint32_t poll_ms,
                         ProtobufCMessage **response, rpc_status *status, errbuf *eb);

/* A call that is under way and may be left. */
typedef struct rpc_pending rpc_pending;

/* Call without waiting; request is packed before this returns.  NULL: out of memory.
 *   bell  bumped (common/futex.h) when the call is done; NULL = none.  Must live until then, or
 *         until the client is closed. */
rpc_pending *rpc_call_begin(rpc_client *client, unsigned method, const ProtobufCMessage *request,
                            uint32_t timeout_ms, _Atomic uint32_t *bell);
bool rpc_pending_done(const rpc_pending *call);
/* true once it is done, false when deadline_ns (clock_now_ns() time) has passed. */
bool rpc_pending_wait(rpc_pending *call, uint64_t deadline_ns);
/* Results as rpc_call_sync(); a call that is not done is left: RPC_CANCELLED, it may still be
 * carried out, its answer is dropped.  Frees the call. */
moe_err rpc_pending_finish(rpc_pending *call, ProtobufCMessage **response, rpc_status *status,
                           errbuf *eb);

/* Accepts NULL. */
void rpc_response_free(ProtobufCMessage *response);

/* Called exactly once per call.  response is owned by the callee if status is RPC_OK, else NULL;
 * error is "" or the text, borrowed for the call.  Another call may be started from here. */
typedef void rpc_done_fn(void *arg, rpc_status status, ProtobufCMessage *response,
                         const char *error);

/* Call without waiting: request is packed before this returns.  When the call can't be started
 * (the request is too large, all of `concurrency` are under way), done runs at once, on this
 * thread. */
void rpc_call_async(rpc_client *client, unsigned method, const ProtobufCMessage *request,
                    uint32_t timeout_ms, rpc_done_fn *done, void *arg);

/* For generated stubs: they call asynchronously with the default timeout; the closure gets the
 * response, borrowed for the call, or NULL after an error.  Borrowed until close. */
ProtobufCService *rpc_client_service(rpc_client *client);

#endif
