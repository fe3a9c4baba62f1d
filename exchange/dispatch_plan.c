#include "exchange/dispatch_plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* What one worker gets: stretches of the arrays that all workers share. */
typedef struct share {
    uint32_t first_expert, expert_count;
    uint32_t first_row, row_count;
} share;

/* A run that has rows, and where they lie. */
typedef struct placed_run {
    uint32_t worker, first_row, row_count;
} placed_run;

/* One allocation: the arrays follow the struct.  Rows lie grouped by worker, then expert, then in
 * token order; expert entries grouped by worker; runs by expert.  There are at most as many runs
 * with rows, and as many expert entries, as rows, and as pairs of an expert and a worker: N. */
struct dispatch_plan {
    exchange_limits limits;
    uint32_t worker_max;
    enum wire_mode mode;
    uint32_t worker_count; /* of the last build; 0 after a failed one */

    share *shares;          /* [worker_max]; WIRE_TP uses only the first */
    wire_expert *experts;   /* [N] */
    placed_run *placed;     /* [N] */
    dispatch_run *whole;    /* [E] one run each, where experts are not split */
    uint32_t *whole_first;  /* [E + 1] 0 .. E */
    uint32_t *counts;       /* [E] rows of each expert */
    uint32_t *next_runs;    /* [E] while rows are placed: the run after the current one, */
    uint32_t *cursors;      /* [E] where in the current one the next row goes, */
    uint32_t *left;         /* [E] and how many more it takes */
    uint32_t *row_slots;    /* [T * K] */
    float *weights;         /* [T * K] */
    uint32_t *rows;         /* [T * K] by row slot: its position in row_slots */
    uint32_t *slot_workers; /* [T * K] by row slot */
};

moe_err
dispatch_plan_create(dispatch_plan **out, const exchange_limits *limits, uint32_t worker_max)
{
    *out = NULL;
    if (exchange_limits_check(limits, NULL) != MOE_OK) return MOE_ERANGE;
    if (worker_max == 0 || worker_max > WORKER_MAX) return MOE_ERANGE;

    const size_t slots = exchange_slot_max(limits), experts = limits->num_experts;
    const size_t pairs = experts * worker_max, runs = pairs < slots ? pairs : slots;
    const size_t words = worker_max * (sizeof(share) / 4) + runs * (2 + sizeof(placed_run) / 4) +
                         7 * experts + 1 + 4 * slots;
    dispatch_plan *plan = calloc(1, sizeof *plan + words * 4);
    if (plan == NULL) return MOE_ENOMEM;

    plan->limits = *limits;
    plan->worker_max = worker_max;
    plan->shares = (share *)(plan + 1);
    plan->experts = (wire_expert *)(plan->shares + worker_max);
    plan->placed = (placed_run *)(plan->experts + runs);
    plan->whole = (dispatch_run *)(plan->placed + runs);
    plan->whole_first = (uint32_t *)(plan->whole + experts);
    plan->counts = plan->whole_first + experts + 1;
    plan->next_runs = plan->counts + experts;
    plan->cursors = plan->next_runs + experts;
    plan->left = plan->cursors + experts;
    plan->row_slots = plan->left + experts;
    plan->rows = plan->row_slots + slots;
    plan->slot_workers = plan->rows + slots;
    plan->weights = (float *)(plan->slot_workers + slots);
    for (uint32_t e = 0; e <= experts; e++) {
        plan->whole_first[e] = e;
    }
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

moe_err
dispatch_plan_count(const dispatch_plan *plan, const uint32_t *topk_ids, uint32_t token_count,
                    uint32_t *counts)
{
    if (token_count > plan->limits.token_max) return MOE_ERANGE;
    memset(counts, 0, plan->limits.num_experts * sizeof counts[0]);
    for (uint32_t s = 0; s < token_count * plan->limits.top_k; s++) {
        if (topk_ids[s] >= plan->limits.num_experts) return MOE_EINVAL;
        counts[topk_ids[s]]++;
    }
    return MOE_OK;
}

/* Check the runs, and count what each worker gets. */
static moe_err
count_shares(dispatch_plan *plan, const dispatch_split *split, uint32_t worker_count)
{
    for (uint32_t e = 0; e < plan->limits.num_experts; e++) {
        const uint32_t first = split->run_first[e], end = split->run_first[e + 1];
        uint64_t rows = 0;
        for (uint32_t r = first; r < end; r++) {
            const dispatch_run *run = &split->runs[r];
            if (r != first && run->worker <= run[-1].worker) return MOE_EINVAL;
            if (run->row_count == 0) continue; /* its worker may be any */
            if (run->worker >= worker_count) return MOE_EINVAL;
            rows += run->row_count;
            plan->shares[run->worker].expert_count++;
            plan->shares[run->worker].row_count += run->row_count;
        }
        if (rows != plan->counts[e]) return MOE_EINVAL;
    }
    return MOE_OK;
}

/* Give each worker its stretches, and each run its place in its worker's. */
static void
lay_out(dispatch_plan *plan, const dispatch_split *split)
{
    uint32_t expert = 0, row = 0, placed = 0;
    for (uint32_t w = 0; w < plan->worker_max; w++) {
        share *s = &plan->shares[w];
        s->first_expert = expert;
        s->first_row = row;
        expert += s->expert_count;
        row += s->row_count;
        s->expert_count = s->row_count = 0; /* count up again below */
    }
    for (uint32_t e = 0; e < plan->limits.num_experts; e++) {
        plan->next_runs[e] = placed;
        plan->left[e] = 0;
        for (uint32_t r = split->run_first[e]; r < split->run_first[e + 1]; r++) {
            const dispatch_run *run = &split->runs[r];
            if (run->row_count == 0) continue;
            share *s = &plan->shares[run->worker];
            plan->experts[s->first_expert + s->expert_count++] =
                (wire_expert){.expert = e, .row_count = run->row_count};
            plan->placed[placed++] = (placed_run){.worker = run->worker,
                                                  .first_row = s->first_row + s->row_count,
                                                  .row_count = run->row_count};
            s->row_count += run->row_count;
        }
    }
}

/* Walking the slots in order keeps each expert's rows in token order. */
static void
place_rows(dispatch_plan *plan, const uint32_t *topk_ids, const float *topk_weights,
           uint32_t slot_count)
{
    for (uint32_t s = 0; s < slot_count; s++) {
        const uint32_t e = topk_ids[s];
        if (plan->left[e] == 0) {
            const placed_run *run = &plan->placed[plan->next_runs[e]++];
            plan->cursors[e] = run->first_row;
            plan->left[e] = run->row_count;
        }
        plan->left[e]--;
        const uint32_t row = plan->cursors[e]++;
        plan->row_slots[row] = s;
        plan->rows[s] = row;
        plan->slot_workers[s] = plan->placed[plan->next_runs[e] - 1].worker;
        if (plan->mode == WIRE_TP) plan->weights[row] = topk_weights[s];
    }
}

/* plan->counts are those of topk_ids. */
static moe_err
build(dispatch_plan *plan, const dispatch_split *split, uint32_t worker_count,
      const uint32_t *topk_ids, const float *topk_weights, uint32_t token_count)
{
    const moe_err err = count_shares(plan, split, worker_count);
    if (err) {
        plan_clear(plan);
        return err;
    }
    lay_out(plan, split);
    place_rows(plan, topk_ids, topk_weights, token_count * plan->limits.top_k);
    plan->worker_count = worker_count;
    return MOE_OK;
}

/* Check the limits and count rows; on error the plan is empty. */
static moe_err
begin(dispatch_plan *plan, enum wire_mode mode, uint32_t worker_count, const uint32_t *topk_ids,
      uint32_t token_count)
{
    plan_clear(plan);
    plan->mode = mode;
    if (worker_count == 0 || worker_count > plan->worker_max) return MOE_ERANGE;
    const moe_err err = dispatch_plan_count(plan, topk_ids, token_count, plan->counts);
    if (err) plan_clear(plan);
    return err;
}

moe_err
dispatch_plan_build(dispatch_plan *plan, enum wire_mode mode, const uint32_t *expert_worker,
                    uint32_t worker_count, const uint32_t *topk_ids, const float *topk_weights,
                    uint32_t token_count)
{
    const moe_err err = begin(plan, mode, worker_count, topk_ids, token_count);
    if (err) return err;
    for (uint32_t e = 0; e < plan->limits.num_experts; e++) {
        plan->whole[e] = (dispatch_run){.worker = mode == WIRE_EP ? expert_worker[e] : 0,
                                        .row_count = plan->counts[e]};
    }
    const dispatch_split split = {.run_first = plan->whole_first, .runs = plan->whole};
    return build(plan, &split, worker_count, topk_ids, topk_weights, token_count);
}

moe_err
dispatch_plan_build_split(dispatch_plan *plan, const dispatch_split *split, uint32_t worker_count,
                          const uint32_t *topk_ids, uint32_t token_count)
{
    const moe_err err = begin(plan, WIRE_EP, worker_count, topk_ids, token_count);
    if (err) return err;
    return build(plan, split, worker_count, topk_ids, NULL, token_count);
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
    *worker = plan->slot_workers[row_slot];
    *row = plan->rows[row_slot] - plan->shares[*worker].first_row;
}

const uint32_t *
dispatch_plan_expert_counts(const dispatch_plan *plan)
{
    return plan->counts;
}
