#include "router/capacity.h"

#include "router/eplb_policy.h"

/* 0 bytes would mean that there is no limit. */
static uint64_t
without_spare(const capacity_rule *rule, uint64_t memory, uint32_t spare)
{
    const uint64_t kept = rule->expert_bytes * spare;
    if (memory == 0 || spare == 0) return memory;
    return memory > kept ? memory - kept : 1;
}

static uint64_t
fill(const capacity_rule *rule, uint32_t worker_count, const uint64_t *memory, const bool *usable,
     uint32_t spare, uint32_t *out)
{
    for (uint32_t w = 0; w < worker_count; w++) {
        out[w] = usable[w] ? eplb_capacity(without_spare(rule, memory[w], spare),
                                           rule->expert_bytes, rule->num_layers, rule->num_experts)
                           : 0;
    }
    return eplb_shortfall_bytes(out, worker_count, rule->expert_bytes, rule->num_layers,
                                rule->num_experts);
}

uint64_t
capacity_fill(const capacity_rule *rule, uint32_t worker_count, const uint64_t *memory_bytes,
              const bool *usable, uint32_t *out)
{
    uint32_t room = 0;
    uint64_t missing = fill(rule, worker_count, memory_bytes, usable, rule->spare_slots, out);
    for (uint32_t w = 0; w < worker_count; w++)
        room += out[w];
    /* Without a size of experts nothing is ever missing in bytes. */
    if (missing != 0 || room < rule->num_experts)
        missing = fill(rule, worker_count, memory_bytes, usable, 0, out);
    return missing;
}
