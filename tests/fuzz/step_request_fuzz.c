/* Unpack bytes as the control plane does (capped arena), as each message that a router or worker
 * receives; check steps, moves and fetches, and read placements. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/arena.h"
#include "expert_worker/fetch.h"
#include "proto/fleet_json.h"
#include "router/follower.h"
#include "router/step_check.h"

#define ARENA_BYTES (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_step(const ProtobufCMessage *message)
{
    static const step_rules rules = {100, 4, 40, 64, 8, true};
    static const slot_state slots[4] = {
        {0}, {true, 20, 2, true}, {true, 63, 4, false}, {true, 0, 0, true}};
    bool seen[4];
    errbuf eb;
    step_check(&rules, slots, seen, (const Conclave__StepRequest *)message, &eb);
}

static void
read_fleet(const ProtobufCMessage *message)
{
    static const exchange_limits limits = {.num_layers = 2, .num_experts = 4};
    errbuf eb;
    placement *p;
    if (follower_read_placement((const Conclave__FleetReply *)message, &limits, &p, &eb)) return;
    if (p != NULL && placement_is_host(p, 1, 3, 0) && p->slot_count == 0) abort();
    placement_free(p);
}

/* What the admin API and conclave-ctl print. */
static void
print_json(const ProtobufCMessage *message, size_t kind)
{
    errbuf eb;
    cJSON *root = NULL;
    if (kind == 8) fleet_json_placement((const Conclave__PlacementReply *)message, &root, &eb);
    if (kind == 9) fleet_json_routing((const Conclave__RoutingReply *)message, &root, &eb);
    if (kind == 10) fleet_json_stats((const Conclave__RouterStats *)message, &root, &eb);
    cJSON_Delete(root);
}

/* What passes names only peers and bytes that are there. */
static void
check_move(const ProtobufCMessage *message)
{
    const Conclave__HostRequest *r = (const Conclave__HostRequest *)message;
    errbuf eb;
    if (fetch_check_peers(r, &eb)) return;
    for (size_t i = 0; i < r->n_peer_of; i++) {
        if (r->peer_of[i] > r->n_peers || i >= r->n_experts || i >= r->n_hashes) abort();
    }
}

static void
check_fetch(const ProtobufCMessage *message)
{
    static const expert_layout layout = {
        .dtype = DTYPE_INT8, .width_end = 256, .slot_bytes = 3u << 20};
    const Conclave__FetchRequest *r = (const Conclave__FetchRequest *)message;
    errbuf eb;
    if (fetch_check(r, &layout, 7, &eb)) return;
    if (r->bytes > FETCH_BLOCK_BYTES || r->offset + r->bytes > layout.slot_bytes) abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const kinds[] = {
        &conclave__step_request__descriptor,    &conclave__register_request__descriptor,
        &conclave__load_request__descriptor,    &conclave__attach_request__descriptor,
        &conclave__step_reply__descriptor,      &conclave__health_reply__descriptor,
        &conclave__fleet_request__descriptor,   &conclave__fleet_reply__descriptor,
        &conclave__placement_reply__descriptor, &conclave__routing_reply__descriptor,
        &conclave__router_stats__descriptor,    &conclave__host_request__descriptor,
        &conclave__fetch_request__descriptor,   &conclave__host_reply__descriptor,
        &conclave__fetch_reply__descriptor};
    if (size == 0) return 0;
    arena *a;
    if (arena_create(&a, ARENA_BYTES) != MOE_OK) return 0;
    ProtobufCAllocator allocator = {
        .alloc = arena_alloc, .free = arena_release, .allocator_data = a};
    const size_t kind = data[0] % (sizeof kinds / sizeof kinds[0]);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(kinds[kind], &allocator, size - 1, data + 1);
    if (message != NULL && kind == 0) check_step(message);
    if (message != NULL && kind == 7) read_fleet(message);
    if (message != NULL && kind > 7 && kind < 11) print_json(message, kind);
    if (message != NULL && kind == 11) check_move(message);
    if (message != NULL && kind == 12) check_fetch(message);
    arena_free(a);
    return 0;
}
