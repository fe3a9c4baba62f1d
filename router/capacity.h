/* capacity: how many slots of each layer workers' memory has for a placement.
 *
 * Some room can be kept out of placements, for experts that are on their way: with none in the
 * whole fleet, full workers can't exchange experts (move_stage.h).  Where one copy of every expert
 * needs that room, too, it is used.
 *
 * Threads: pure.
 */
#ifndef MOE_ROUTER_CAPACITY_H
#define MOE_ROUTER_CAPACITY_H

#include <stdbool.h>
#include <stdint.h>

typedef struct capacity_rule {
    uint64_t expert_bytes; /* of one expert of one layer; 0: memory is not looked at */
    uint32_t num_layers, num_experts;
    uint32_t spare_slots; /* experts of room that each worker keeps, if that is possible */
} capacity_rule;

/* Slots of each worker in every layer; 0 for those of which nothing is to be used.
 *   memory_bytes  [W] 0: no limit
 *   usable        [W]
 *   out           [W]
 * Returns the bytes that are missing for one copy of every expert; 0: it fits. */
uint64_t capacity_fill(const capacity_rule *rule, uint32_t worker_count,
                       const uint64_t *memory_bytes, const bool *usable, uint32_t *out);

#endif
