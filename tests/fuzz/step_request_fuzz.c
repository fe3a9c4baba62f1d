/* Unpack bytes as the control plane does (capped arena), as each message that a router or worker
 * receives; check steps. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/arena.h"
#include "router/step_check.h"

#define ARENA_BYTES (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_step(const ProtobufCMessage *message)
{
    static const step_rules rules = {100, 4, 40, 64, 8, 7};
    static const slot_state slots[4] = {
        {0}, {true, 20, 2, true}, {true, 63, 4, false}, {true, 0, 0, true}};
    bool seen[4];
    errbuf eb;
    step_check(&rules, slots, seen, (const Conclave__StepRequest *)message, &eb);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const kinds[] = {
        &conclave__step_request__descriptor, &conclave__register_request__descriptor,
        &conclave__load_request__descriptor, &conclave__attach_request__descriptor,
        &conclave__step_reply__descriptor,   &conclave__health_reply__descriptor};
    if (size == 0) return 0;
    arena *a;
    if (arena_create(&a, ARENA_BYTES) != MOE_OK) return 0;
    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_release, .allocator_data = a};
    const size_t kind = data[0] % (sizeof kinds / sizeof kinds[0]);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(kinds[kind], &allocator, size - 1, data + 1);
    if (message != NULL && kind == 0) check_step(message);
    arena_free(a);
    return 0;
}
