#include "exchange/dispatch_plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* What one worker gets: stretches of the arrays that all workers share. */
typedef struct share {
    uint32_t first_expert, expert_count;
    uint32_t first_row, row_count;
} share;

/* One allocation: the arrays follow the struct.  Rows lie grouped by worker, then expert, then in
 * token order; expert entries grouped by worker. */
struct dispatch_plan {
    exchange_limits limits;
    uint32_t worker_max;
    enum wire_mode mode;
    uint32_t worker_count; /* of the last build; 0 after a failed one */

    share *shares;          /* [worker_max]; WIRE_TP uses only the first */
    wire_expert *experts;   /* [E] */
    uint32_t *counts;       /* [E] rows of each expert */
    uint32_t *cursors;      /* [E] where the expert's next row goes */
    uint32_t *workers;      /* [E] worker of each expert */
    uint32_t *row_slots;    /* [T * K] */
    float *weights;         /* [T * K] */
    uint32_t *rows;         /* [T * K] by row slot: its position in row_slots */
    uint32_t *slot_experts; /* [T * K] by row slot */
};

moe_err
dispatch_plan_create(dispatch_plan **out, const exchange_limits *limits, uint32_t worker_max)
{
    *out = NULL;
    if (exchange_limits_check(limits, NULL) != MOE_OK) return MOE_ERANGE;
    if (worker_max == 0 || worker_max > WORKER_MAX) return MOE_ERANGE;

    const size_t slots = exchange_slot_max(limits), experts = limits->num_experts;
    const size_t words = worker_max * (sizeof(share) / 4) + 5 * experts + 4 * slots;
    dispatch_plan *plan = calloc(1, sizeof *plan + words * 4);
    if (plan == NULL) return MOE_ENOMEM;

    plan->limits = *limits;
    plan->worker_max = worker_max;
    plan->shares = (share *)(plan + 1);
    plan->experts = (wire_expert *)(plan->shares + worker_max);
    plan->counts = (uint32_t *)(plan->experts + experts);
    plan->cursors = plan->counts + experts;
    plan->workers = plan->cursors + experts;
    plan->row_slots = plan->workers + experts;
    plan->rows = plan->row_slots + slots;
    plan->slot_experts = plan->rows + slots;
    plan->weights = (float *)(plan->slot_experts + slots);
    *out = plan;
    return MOE_OK;
}

void
dispatch_plan_free(dispatch_plan *plan)
{
    free(plan);
}

static void
plan_clear(dispatch_plan *plan)
{
    memset(plan->shares, 0, plan->worker_max * sizeof plan->shares[0]);
    memset(plan->counts, 0, plan->limits.num_experts * sizeof plan->counts[0]);
    plan->worker_count = 0;
}

/* Rows per expert and per worker. */
static moe_err
count_rows(dispatch_plan *plan, const uint32_t *expert_worker, uint32_t worker_count,
           const uint32_t *topk_ids, uint32_t slot_count)
{
    for (uint32_t s = 0; s < slot_count; s++) {
        if (topk_ids[s] >= plan->limits.num_experts) return MOE_EINVAL;
        plan->counts[topk_ids[s]]++;
    }
    for (uint32_t e = 0; e < plan->limits.num_experts; e++) {
        if (plan->counts[e] == 0) continue;
        const uint32_t w = plan->mode == WIRE_EP ? expert_worker[e] : 0;
        if (w >= worker_count) return MOE_EINVAL;
        plan->workers[e] = w;
        plan->shares[w].expert_count++;
        plan->shares[w].row_count += plan->counts[e];
    }
    return MOE_OK;
}

/* Give each worker its stretches, and each expert its place in its worker's. */
static void
lay_out(dispatch_plan *plan)
{
    uint32_t expert = 0, row = 0;
    for (uint32_t w = 0; w < plan->worker_max; w++) {
        share *s = &plan->shares[w];
        s->first_expert = expert;
        s->first_row = row;
        expert += s->expert_count;
        row += s->row_count;
        s->expert_count = s->row_count = 0; /* count up again below */
    }
    for (uint32_t e = 0; e < plan->limits.num_experts; e++) {
        if (plan->counts[e] == 0) continue;
        share *s = &plan->shares[plan->workers[e]];
        plan->experts[s->first_expert + s->expert_count++] =
            (wire_expert){.expert = e, .row_count = plan->counts[e]};
        plan->cursors[e] = s->first_row + s->row_count;
        s->row_count += plan->counts[e];
    }
}

moe_err
dispatch_plan_build(dispatch_plan *plan, enum wire_mode mode, const uint32_t *expert_worker,
                    uint32_t worker_count, const uint32_t *topk_ids, const float *topk_weights,
                    uint32_t token_count)
{
    plan_clear(plan);
    plan->mode = mode;
    if (token_count > plan->limits.token_max) return MOE_ERANGE;
    if (worker_count == 0 || worker_count > plan->worker_max) return MOE_ERANGE;

    const uint32_t slot_count = token_count * plan->limits.top_k;
    moe_err err = count_rows(plan, expert_worker, worker_count, topk_ids, slot_count);
    if (err != MOE_OK) {
        plan_clear(plan);
        return err;
    }
    lay_out(plan);

    /* Walking the slots in order keeps each expert's rows in token order. */
    for (uint32_t s = 0; s < slot_count; s++) {
        const uint32_t row = plan->cursors[topk_ids[s]]++;
        plan->row_slots[row] = s;
        plan->rows[s] = row;
        plan->slot_experts[s] = topk_ids[s];
        if (mode == WIRE_TP) plan->weights[row] = topk_weights[s];
    }
    plan->worker_count = worker_count;
    return MOE_OK;
}

dispatch_list
dispatch_plan_list(const dispatch_plan *plan, uint32_t worker)
{
    if (worker >= plan->worker_count) return (dispatch_list){0};
    const share *s = &plan->shares[plan->mode == WIRE_TP ? 0 : worker];
    return (dispatch_list){
        .experts = plan->experts + s->first_expert,
        .expert_count = s->expert_count,
        .row_slots = plan->row_slots + s->first_row,
        .weights = plan->mode == WIRE_TP ? plan->weights + s->first_row : NULL,
        .row_count = s->row_count,
    };
}

void
dispatch_plan_home(const dispatch_plan *plan, uint32_t row_slot, uint32_t *worker, uint32_t *row)
{
    assert(plan->mode == WIRE_EP && row_slot < exchange_slot_max(&plan->limits));
    *worker = plan->workers[plan->slot_experts[row_slot]];
    *row = plan->rows[row_slot] - plan->shares[*worker].first_row;
}

const uint32_t *
dispatch_plan_expert_counts(const dispatch_plan *plan)
{
    return plan->counts;
}
