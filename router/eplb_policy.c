#include "router/eplb_policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/eplb.h"
#include "router/eplb_conclave.h"

static const char *const policy_names[] = {"conclave", "deepseek"};
static const char *const verdict_names[] = {"adopted",  "repaired", "no_load",
                                            "balanced", "too_dear", "unchanged"};

bool
eplb_policy_parse(const char *name, eplb_policy *out)
{
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(name, policy_names[i]) != 0) continue;
        *out = (eplb_policy)i;
        return true;
    }
    return false;
}

const char *
eplb_policy_name(eplb_policy policy)
{
    return policy_names[policy];
}

const char *
eplb_verdict_name(eplb_verdict verdict)
{
    return verdict_names[verdict];
}

eplb_costs
eplb_default_costs(void)
{
    return (eplb_costs){.row_ns = 1000,
                        .move_bytes_per_s = 100e6,
                        .move_interference = 0.1,
                        .gain_min = 0.01,
                        .hysteresis = 1.5,
                        .noise_sigmas = 2.5};
}

uint32_t
eplb_capacity(uint64_t memory_bytes, uint64_t expert_bytes, uint32_t num_layers,
              uint32_t num_experts)
{
    if (memory_bytes == 0 || expert_bytes == 0) return num_experts;
    const uint64_t slots = memory_bytes / expert_bytes / num_layers;
    return slots < num_experts ? (uint32_t)slots : num_experts;
}

uint64_t
eplb_shortfall_bytes(const uint32_t *capacities, uint32_t worker_count, uint64_t expert_bytes,
                     uint32_t num_layers, uint32_t num_experts)
{
    uint64_t slots = 0;
    for (uint32_t w = 0; w < worker_count; w++)
        slots += capacities[w];
    return slots >= num_experts ? 0 : (num_experts - slots) * num_layers * expert_bytes;
}

/* What slots are worth on a worker: no more than there are experts, unless replicas may meet. */
static uint32_t
useful(eplb_policy policy, uint32_t capacity, uint32_t num_experts)
{
    return policy == EPLB_CONCLAVE && capacity > num_experts ? num_experts : capacity;
}

/* One slot at a time to the worker that has fewest and has room; returns what could not be given.
 */
static uint32_t
deal_out(eplb_policy policy, uint32_t num_experts, uint32_t worker_count,
         const uint32_t *capacities, uint32_t want, uint32_t *slot_counts)
{
    memset(slot_counts, 0, worker_count * sizeof *slot_counts);
    for (uint32_t level = 0; want > 0; level++) {
        bool any = false;
        for (uint32_t w = 0; w < worker_count && want > 0; w++) {
            if (useful(policy, capacities[w], num_experts) <= level) continue;
            slot_counts[w]++;
            want--;
            any = true;
        }
        if (!any) break;
    }
    return want;
}

/* The same number for all: rounded up, or what the smallest holds. */
static uint32_t
deal_equally(uint32_t worker_count, const uint32_t *capacities, uint32_t want, uint32_t num_experts,
             uint32_t *slot_counts)
{
    uint32_t usable = 0, least = UINT32_MAX, total = 0;
    for (uint32_t w = 0; w < worker_count; w++) {
        if (capacities[w] == 0) continue;
        usable++;
        if (capacities[w] < least) least = capacities[w];
    }
    const uint32_t each = usable ? (want + usable - 1) / usable : 0;
    for (uint32_t w = 0; w < worker_count; w++) {
        slot_counts[w] = capacities[w] == 0 ? 0 : each < least ? each : least;
        total += slot_counts[w];
    }
    return total >= num_experts ? 0 : num_experts - total;
}

moe_err
eplb_slot_counts(eplb_policy policy, uint32_t num_layers, uint32_t num_experts, uint32_t redundant,
                 uint32_t worker_count, const uint32_t *capacities, double bytes_per_expert,
                 uint32_t *slot_counts, errbuf *eb)
{
    const uint32_t want = num_experts + redundant;
    uint32_t total = 0, short_of = 0;
    err_set(eb, MOE_OK, "%s", "");
    if (want < num_experts || want > PLACEMENT_SLOT_MAX)
        return err_set(eb, MOE_ERANGE, "%u redundant experts are too many", redundant);
    if (policy == EPLB_DEEPSEEK) {
        short_of = deal_equally(worker_count, capacities, want, num_experts, slot_counts);
    } else {
        const uint32_t left =
            deal_out(policy, num_experts, worker_count, capacities, want, slot_counts);
        short_of = left > redundant ? left - redundant : 0;
    }
    if (short_of != 0)
        return err_set(eb, MOE_ENOMEM,
                       "the workers' memory is short of %u slots in each of %u layers (%.0f bytes)",
                       short_of, num_layers, short_of * (double)num_layers * bytes_per_expert);
    for (uint32_t w = 0; w < worker_count; w++)
        total += slot_counts[w];
    if (total > want)
        err_set(eb, MOE_OK, "%u slots were rounded up to %u, a multiple of the workers", want,
                total);
    else if (total < want)
        err_set(eb, MOE_OK, "only %u of %u slots are of use or have memory", total, want);
    return MOE_OK;
}

/* DeepSeek's placement as it is, in out->next. */
static moe_err
solve_deepseek(const eplb_input *in, uint32_t usable, placement *next, errbuf *eb)
{
    const uint32_t layers = next->num_layers, experts = next->num_experts;
    const size_t slots = (size_t)layers * next->slot_count, count = (size_t)layers * experts;
    const eplb_shape shape = {layers,         experts,       next->slot_count,
                              in->num_groups, in->num_nodes, usable};
    float *weights = malloc(count * sizeof *weights);
    uint32_t *ranks = malloc((slots + count) * sizeof *ranks);
    moe_err err = MOE_OK;
    if (weights == NULL || ranks == NULL) {
        err = err_set(eb, MOE_ENOMEM, "out of memory");
    } else {
        for (size_t i = 0; i < count; i++)
            weights[i] = (float)in->expert_rows[i];
        /* Workers without slots have none between the others': slot p is device p * D / P's. */
        err = eplb_rebalance_experts(&shape, weights, next->slots, ranks, ranks + slots, eb);
    }
    free(weights);
    free(ranks);
    if (err) return err;
    placement_index(next);
    placement_set_even_shares(next);
    return MOE_OK;
}

static moe_err
decide_deepseek(const eplb_input *in, uint32_t usable, eplb_outcome *out, errbuf *eb)
{
    placement *next = out->next;
    placement_diff diff;
    double *scratch = malloc((in->worker_count + in->current->worker_count) * sizeof *scratch);
    if (scratch == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = solve_deepseek(in, usable, next, eb);
    if (!err) err = placement_diff_init(&diff, in->current, next, eb);
    if (!err) {
        out->balancedness_before =
            placement_balancedness(in->current, in->expert_rows, NULL, scratch);
        out->balancedness_after = placement_balancedness(next, in->expert_rows, NULL, scratch);
        out->move_count = diff.move_count;
        out->move_bytes = (double)diff.move_count * in->costs.bytes_per_expert;
        out->layers_changed = next->num_layers;
        out->verdict = EPLB_ADOPTED;
        snprintf(out->text, sizeof out->text,
                 "%zu experts (%.1f MB) move: balancedness %.3f to %.3f", diff.move_count,
                 out->move_bytes / 1e6, out->balancedness_before, out->balancedness_after);
        if (diff.move_count == 0 && diff.drop_count == 0) {
            out->verdict = EPLB_UNCHANGED;
            out->layers_changed = 0;
            out->balancedness_after = out->balancedness_before;
            snprintf(out->text, sizeof out->text, "balancedness %.3f: the placement is the same",
                     out->balancedness_before);
            placement_free(out->next);
            out->next = NULL;
        }
        placement_diff_fini(&diff);
    }
    free(scratch);
    return err;
}

static moe_err
check_input(const eplb_input *in, uint32_t *usable, double *mean_speed, errbuf *eb)
{
    uint32_t each = 0;
    *usable = 0;
    *mean_speed = 0;
    for (uint32_t w = 0; w < in->worker_count; w++) {
        const double speed = in->speeds ? in->speeds[w] : 1;
        if (in->slot_counts[w] == 0) continue;
        if (!(speed > 0) || !isfinite(speed))
            return err_set(eb, MOE_EINVAL, "worker %u: a speed of %g", w, speed);
        if (in->policy == EPLB_DEEPSEEK && each != 0 && each != in->slot_counts[w])
            return err_set(eb, MOE_EINVAL, "worker %u has %u slots, others %u", w,
                           in->slot_counts[w], each);
        each = in->slot_counts[w];
        *mean_speed += speed;
        ++*usable;
    }
    if (*usable != 0) *mean_speed /= *usable;
    if (in->num_groups == 0 || in->num_nodes == 0)
        return err_set(eb, MOE_ERANGE, "%u groups, %u nodes", in->num_groups, in->num_nodes);
    return MOE_OK;
}

static moe_err
decide(const eplb_input *in, uint32_t usable, double mean_speed, eplb_outcome *out, errbuf *eb)
{
    if (out->next->slot_count < out->next->num_experts)
        return err_set(eb, MOE_ERANGE, "%u slots can't hold %u experts", out->next->slot_count,
                       out->next->num_experts);
    if (in->policy == EPLB_DEEPSEEK) return decide_deepseek(in, usable, out, eb);
    double *speeds = malloc(in->worker_count * sizeof *speeds);
    if (speeds == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t w = 0; w < in->worker_count; w++)
        speeds[w] = in->speeds ? in->speeds[w] / mean_speed : 1;
    const moe_err err = eplb_conclave_decide(in, speeds, out, eb);
    free(speeds);
    return err;
}

moe_err
eplb_decide(const eplb_input *in, eplb_outcome *out, errbuf *eb)
{
    uint32_t usable;
    double mean_speed;
    *out = (eplb_outcome){0};
    moe_err err = check_input(in, &usable, &mean_speed, eb);
    if (!err)
        err = placement_create(&out->next, in->current->num_layers, in->current->num_experts,
                               in->worker_count, in->slot_counts, eb);
    if (!err) err = decide(in, usable, mean_speed, out, eb);
    if (!err && out->next != NULL && in->speeds != NULL && in->policy == EPLB_CONCLAVE)
        placement_set_speeds(out->next, in->speeds);
    if (err) eplb_outcome_fini(out);
    return err;
}

void
eplb_outcome_fini(eplb_outcome *out)
{
    placement_free(out->next);
    out->next = NULL;
}
