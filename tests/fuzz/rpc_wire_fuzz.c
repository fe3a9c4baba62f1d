/* What a server does with the bytes of a message: header, then body into a capped arena. */
#include <stdlib.h>

#include "common/arena.h"
#include "echo.pb-c.h"
#include "proto/rpc_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static arena *memory;
    if (memory == NULL && arena_create(&memory, 1u << 18) != MOE_OK) abort();
    rpc_header header;
    errbuf eb;
    if (rpc_header_parse(&header, data, size, &eb) != MOE_OK) return 0;
    if (header.body_bytes + sizeof header != size) abort();

    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_release, .allocator_data = memory};
    arena_reset(memory);
    ProtobufCMessage *request =
        protobuf_c_message_unpack(&conclave__test__echo_request__descriptor, &allocator,
                                  header.body_bytes, data + sizeof header);
    if (request != NULL && protobuf_c_message_get_packed_size(request) > (1u << 20)) abort();
    return 0;
}
