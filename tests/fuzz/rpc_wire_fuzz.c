/* What a server does with the bytes of a connection: frame after frame, each body into a capped
 * arena. */
#include <stdbool.h>
#include <stdlib.h>

#include "common/arena.h"
#include "echo.pb-c.h"
#include "proto/rpc_wire.h"

#define BODY_BYTES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
unpack(const rpc_header *header, const uint8_t *body)
{
    static arena *memory;
    if (memory == NULL && arena_create(&memory, 1u << 18) != MOE_OK) abort();
    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_release, .allocator_data = memory};
    arena_reset(memory);
    ProtobufCMessage *request = protobuf_c_message_unpack(&conclave__test__echo_request__descriptor,
                                                          &allocator, header->body_bytes, body);
    if (request != NULL && protobuf_c_message_get_packed_size(request) > (1u << 20)) abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    while (true) {
        rpc_header header;
        size_t bytes;
        errbuf eb;
        if (rpc_frame_find(&header, data, size, BODY_BYTES_MAX, &bytes, &eb) != MOE_OK) return 0;
        if (bytes == 0) return 0;
        if (bytes != sizeof header + header.body_bytes || bytes > size) abort();
        if (rpc_header_check(&header, &eb) == MOE_OK) unpack(&header, data + sizeof header);
        data += bytes;
        size -= bytes;
    }
}
