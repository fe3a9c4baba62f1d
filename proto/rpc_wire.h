/* rpc_wire: the frames of the control plane, and what their header promises.
 *
 *   | rpc_header, 48 bytes, little endian | body, body_bytes bytes | rpc_header | ...
 *
 * A connection is a sequence of frames each way, with nothing between them.  The body is a protobuf
 * message, or a text when status is not RPC_OK.  A reply repeats the method, incarnation and
 * request id of its call.  `service` is a fingerprint of the service's method list, so that a
 * client which dialled the wrong socket is told so instead of being misunderstood.
 *
 * Threads: no shared state.
 */
#ifndef MOE_PROTO_RPC_WIRE_H
#define MOE_PROTO_RPC_WIRE_H

#include <assert.h>
#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "proto/rpc.h"

#define RPC_MAGIC 0x63705243u /* "CRpc" */
#define RPC_VERSION 1
#define RPC_IPC_PREFIX "ipc://"

typedef enum rpc_kind {
    RPC_KIND_CALL = 1,
    RPC_KIND_REPLY,
    RPC_KIND_HELLO,     /* client -> server: I will authenticate; body: nonce */
    RPC_KIND_CHALLENGE, /* server -> client: body: nonce, proof */
    RPC_KIND_PROOF,     /* client -> server: body: nonce, proof; answered by a REPLY */
    RPC_KIND_END,
} rpc_kind;

typedef struct rpc_header {
    uint32_t magic;
    uint8_t version;
    uint8_t kind;
    uint16_t reserved; /* 0 */
    uint64_t service;
    uint64_t incarnation; /* of the client, not 0 */
    uint64_t request_id;  /* rising within an incarnation */
    uint32_t method;
    uint32_t timeout_ms; /* what was left of the deadline when the call was sent */
    uint32_t status;     /* rpc_status; 0 unless a reply */
    uint32_t body_bytes;
} rpc_header;

static_assert(sizeof(rpc_header) == 48, "the header is read from the wire as it is");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little endian");

/* Find the first frame of the len bytes that a connection holds.
 *   *frame_bytes  its length, header and body, all of it there; 0: more bytes are needed, and
 *                 out->body_bytes says how many (0 while the header is not complete)
 * After an error nobody can tell where the next frame begins: the connection is of no more use.
 *   MOE_EMISMATCH  magic or version is not ours
 *   MOE_ERANGE     a body above body_bytes_max */
moe_err rpc_frame_find(rpc_header *out, const void *bytes, size_t len, size_t body_bytes_max,
                       size_t *frame_bytes, errbuf *eb);

/* Check what can be checked of a found frame's header without knowing the service.
 *   MOE_EINVAL  unknown kind, or a field that must be 0 (or must not be) */
moe_err rpc_header_check(const rpc_header *header, errbuf *eb);

/* A header with magic, version, kind and body length set and everything else 0. */
rpc_header rpc_header_make(rpc_kind kind, uint32_t body_bytes);

/* The same for the same service name, method names, order and message types. */
uint64_t rpc_service_fingerprint(const ProtobufCServiceDescriptor *service);

/* protobuf-c unpacks nested messages by recursion without a limit, so a message type that can
 * contain itself lets a peer overflow the stack.
 *   MOE_EINVAL  a message type of the service is recursive; the text names it */
moe_err rpc_service_check(const ProtobufCServiceDescriptor *service, errbuf *eb);

/* MOE_EINVAL: NULL, longer than RPC_URL_MAX - 1, or an ipc path longer than a socket may have. */
moe_err rpc_url_check(const char *url, errbuf *eb);

/* A status as it came from the wire; RPC_INTERNAL for a number that is none of ours. */
rpc_status rpc_status_from_wire(uint32_t status);

#endif
