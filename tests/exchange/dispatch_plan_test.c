/* dispatch_plan: one case worked by hand in both modes, each promised error, and the invariant that
 * the lists of a plan are a permutation of the row slots, on seeded random batches. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "exchange/dispatch_plan.h"

static const exchange_limits hand = {.micro_batch_max = 1,
                                     .token_max = 4,
                                     .num_layers = 1,
                                     .num_experts = 5,
                                     .top_k = 2,
                                     .hidden = 64,
                                     .dtype = DTYPE_F32};

/* Experts 0, 2 and 4 on worker 1, expert 1 on worker 0, expert 3 on worker 2. */
static const uint32_t placement[] = {1, 0, 1, 2, 1};
/* slots:                    0  1   2  3   4  5 */
static const uint32_t ids[] = {4, 1, 0, 4, 1, 0};
static const float weights[] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};

static dispatch_plan *plan;

static void
setup(void)
{
    cr_assert_eq(dispatch_plan_create(&plan, &hand, 8), MOE_OK);
}

static void
teardown(void)
{
    dispatch_plan_free(plan);
    plan = NULL;
}

TestSuite(dispatch_plan, .timeout = 30);

static void
expect_list(uint32_t worker, const wire_expert *experts, uint32_t expert_count,
            const uint32_t *slots, uint32_t row_count)
{
    const dispatch_list l = dispatch_plan_list(plan, worker);
    cr_assert_eq(l.expert_count, expert_count, "worker %u", worker);
    cr_assert_eq(l.row_count, row_count, "worker %u", worker);
    if (row_count == 0) return;
    cr_expect_eq(memcmp(l.experts, experts, expert_count * sizeof *experts), 0);
    cr_expect_eq(memcmp(l.row_slots, slots, row_count * sizeof *slots), 0);
}

Test(dispatch_plan, gives_each_worker_the_rows_of_its_experts_in_token_order, .init = setup,
     .fini = teardown)
{
    cr_assert_eq(dispatch_plan_build(plan, WIRE_EP, placement, 3, ids, NULL, 3), MOE_OK);
    expect_list(0, (wire_expert[]){{1, 2}}, 1, (uint32_t[]){1, 4}, 2);
    expect_list(1, (wire_expert[]){{0, 2}, {4, 2}}, 2, (uint32_t[]){2, 5, 0, 3}, 4);
    expect_list(2, NULL, 0, NULL, 0);
    cr_expect_null(dispatch_plan_list(plan, 1).weights);

    const uint32_t homes[][2] = {{1, 2}, {0, 0}, {1, 0}, {1, 3}, {0, 1}, {1, 1}};
    for (uint32_t s = 0; s < 6; s++) {
        uint32_t worker, row;
        dispatch_plan_home(plan, s, &worker, &row);
        cr_expect(worker == homes[s][0] && row == homes[s][1], "slot %u: %u, %u", s, worker, row);
    }
    const uint32_t counts[] = {2, 2, 0, 0, 2};
    cr_expect_eq(memcmp(dispatch_plan_expert_counts(plan), counts, sizeof counts), 0);
}

Test(dispatch_plan, gives_every_worker_everything_in_tp, .init = setup, .fini = teardown)
{
    const float by_expert[] = {0.3f, 0.6f, 0.2f, 0.5f, 0.1f, 0.4f};
    cr_assert_eq(dispatch_plan_build(plan, WIRE_TP, NULL, 3, ids, weights, 3), MOE_OK);
    for (uint32_t w = 0; w < 3; w++) {
        expect_list(w, (wire_expert[]){{0, 2}, {1, 2}, {4, 2}}, 3, (uint32_t[]){2, 5, 1, 4, 0, 3},
                    6);
        cr_expect_eq(memcmp(dispatch_plan_list(plan, w).weights, by_expert, sizeof by_expert), 0);
    }
    expect_list(3, NULL, 0, NULL, 0);
}

Test(dispatch_plan, an_empty_micro_batch_gives_empty_lists, .init = setup, .fini = teardown)
{
    cr_assert_eq(dispatch_plan_build(plan, WIRE_EP, placement, 3, ids, NULL, 3), MOE_OK);
    cr_assert_eq(dispatch_plan_build(plan, WIRE_EP, placement, 3, ids, NULL, 0), MOE_OK);
    for (uint32_t w = 0; w < 3; w++) {
        expect_list(w, NULL, 0, NULL, 0);
    }
}

Test(dispatch_plan, an_error_leaves_the_plan_empty, .init = setup, .fini = teardown)
{
    const uint32_t bad_ids[] = {4, 1, 0, 4, 5, 0};
    const uint32_t bad_placement[] = {1, 0, 1, 2, 3};
    const struct {
        const uint32_t *placement, *ids;
        uint32_t workers, tokens;
        moe_err err;
    } cases[] = {
        {placement, ids, 3, 5, MOE_ERANGE},     {placement, ids, 0, 3, MOE_ERANGE},
        {placement, ids, 9, 3, MOE_ERANGE},     {placement, bad_ids, 3, 3, MOE_EINVAL},
        {bad_placement, ids, 3, 3, MOE_EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(dispatch_plan_build(plan, WIRE_EP, placement, 3, ids, NULL, 3), MOE_OK);
        const moe_err err = dispatch_plan_build(plan, WIRE_EP, cases[i].placement, cases[i].workers,
                                                cases[i].ids, NULL, cases[i].tokens);
        cr_expect_eq(err, cases[i].err, "case %zu", i);
        for (uint32_t w = 0; w < 3; w++) {
            expect_list(w, NULL, 0, NULL, 0);
        }
        for (uint32_t e = 0; e < hand.num_experts; e++) {
            cr_expect_eq(dispatch_plan_expert_counts(plan)[e], 0);
        }
    }
    /* The worker of an expert that has no rows does not matter. */
    const uint32_t unused[] = {1, 0, 99, 99, 1};
    cr_expect_eq(dispatch_plan_build(plan, WIRE_EP, unused, 2, ids, NULL, 3), MOE_OK);
}

/* Expert 4's rows (slots 0, 3) go to workers 0 and 2, expert 1's to worker 1, expert 0's first to
 * worker 1 and last to worker 2. */
static const uint32_t run_first[] = {0, 3, 4, 4, 5, 7};
static const dispatch_run runs[] = {{0, 0}, {1, 1}, {2, 1}, {1, 2}, {9, 0}, {0, 1}, {2, 1}};

Test(dispatch_plan, splits_an_experts_rows_in_token_order, .init = setup, .fini = teardown)
{
    const dispatch_split split = {run_first, runs};
    uint32_t counts[5];
    cr_assert_eq(dispatch_plan_count(plan, ids, 3, counts), MOE_OK);
    cr_expect_arr_eq(counts, ((uint32_t[]){2, 2, 0, 0, 2}), sizeof counts);
    cr_assert_eq(dispatch_plan_build_split(plan, &split, 3, ids, 3), MOE_OK);
    expect_list(0, (wire_expert[]){{4, 1}}, 1, (uint32_t[]){0}, 1);
    expect_list(1, (wire_expert[]){{0, 1}, {1, 2}}, 2, (uint32_t[]){2, 1, 4}, 3);
    expect_list(2, (wire_expert[]){{0, 1}, {4, 1}}, 2, (uint32_t[]){5, 3}, 2);
    const uint32_t homes[][2] = {{0, 0}, {1, 1}, {1, 0}, {2, 1}, {1, 2}, {2, 0}};
    for (uint32_t s = 0; s < 6; s++) {
        uint32_t worker, row;
        dispatch_plan_home(plan, s, &worker, &row);
        cr_expect(worker == homes[s][0] && row == homes[s][1], "slot %u: %u, %u", s, worker, row);
    }
    cr_expect_arr_eq(dispatch_plan_expert_counts(plan), counts, sizeof counts);
}

Test(dispatch_plan, a_split_that_does_not_fit_leaves_the_plan_empty, .init = setup,
     .fini = teardown)
{
    const struct {
        uint32_t run; /* what is changed: */
        dispatch_run to;
        uint32_t workers;
    } cases[] = {
        {1, {1, 2}, 3},          /* a row too many */
        {1, {1, 0}, 3},          /* and one too few */
        {1, {1, UINT32_MAX}, 3}, /* a sum that wraps */
        {2, {1, 1}, 3},          /* a worker twice, */
        {2, {0, 1}, 3},          /* falling, */
        {2, {3, 1}, 3},          /* not there */
        {0, {0, 0}, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dispatch_run changed[7];
        memcpy(changed, runs, sizeof runs);
        changed[cases[i].run] = cases[i].to;
        const dispatch_split split = {run_first, changed};
        cr_expect_eq(dispatch_plan_build_split(plan, &split, cases[i].workers, ids, 3), MOE_EINVAL,
                     "case %zu", i);
        for (uint32_t w = 0; w < 3; w++) {
            expect_list(w, NULL, 0, NULL, 0);
        }
    }
    const dispatch_split split = {run_first, runs};
    uint32_t counts[5];
    cr_expect_eq(dispatch_plan_build_split(plan, &split, 3, ids, 5), MOE_ERANGE);
    cr_expect_eq(dispatch_plan_build_split(plan, &split, 0, ids, 3), MOE_ERANGE);
    cr_expect_eq(dispatch_plan_build_split(plan, &split, 9, ids, 3), MOE_ERANGE);
    cr_expect_eq(dispatch_plan_count(plan, ids, 5, counts), MOE_ERANGE);
    cr_expect_eq(dispatch_plan_count(plan, (uint32_t[]){5, 0}, 1, counts), MOE_EINVAL);
}

Test(dispatch_plan, create_refuses_limits_that_are_none)
{
    dispatch_plan *p = (dispatch_plan *)&plan;
    exchange_limits l = hand;
    cr_expect_eq(dispatch_plan_create(&p, &l, 0), MOE_ERANGE);
    cr_expect_null(p);
    cr_expect_eq(dispatch_plan_create(&p, &l, WORKER_MAX + 1), MOE_ERANGE);
    l.token_max = 0;
    cr_expect_eq(dispatch_plan_create(&p, &l, 1), MOE_ERANGE);
    dispatch_plan_free(NULL);
}

/* Every slot once, in the list of the worker and the stretch of the expert it was meant for, and at
 * home where it lies. */
static void
check_permutation(const exchange_limits *l, enum wire_mode mode, const uint32_t *expert_worker,
                  uint32_t worker_count, const uint32_t *topk_ids, uint32_t token_count)
{
    const uint32_t slot_count = token_count * l->top_k;
    unsigned *seen = calloc(slot_count + 1u, sizeof *seen);
    uint64_t *marks = calloc(wire_seen_words(l), sizeof *marks);
    cr_assert(seen != NULL && marks != NULL);
    for (uint32_t w = 0; w < worker_count; w++) {
        const dispatch_list list = dispatch_plan_list(plan, w);
        uint32_t row = 0;
        for (uint32_t i = 0; i < list.expert_count; i++) {
            const uint32_t expert = list.experts[i].expert;
            if (expert_worker) cr_assert_eq(expert_worker[expert], w);
            for (uint32_t r = 0; r < list.experts[i].row_count; r++, row++) {
                const uint32_t slot = list.row_slots[row];
                cr_assert(slot < slot_count && topk_ids[slot] == expert);
                seen[slot]++;
                if (mode == WIRE_TP) continue;
                uint32_t home_worker, home_row;
                dispatch_plan_home(plan, slot, &home_worker, &home_row);
                cr_assert(home_worker == w && home_row == row);
            }
        }
        if (list.row_count == 0) continue;
        /* What a plan makes passes the check of the other end. */
        const wire_hdr h = {.mode = mode,
                            .token_count = token_count,
                            .row_count = list.row_count,
                            .expert_count = list.expert_count};
        errbuf eb;
        cr_assert_eq(wire_dispatch_check(&h, list.experts, list.row_slots, l, marks, &eb), MOE_OK,
                     "%s", eb.text);
    }
    for (uint32_t s = 0; s < slot_count; s++) {
        cr_assert_eq(seen[s], mode == WIRE_TP ? worker_count : 1);
    }
    free(marks);
    free(seen);
}

Test(dispatch_plan, lists_are_a_permutation_of_the_row_slots)
{
    const exchange_limits l = {.micro_batch_max = 1,
                               .token_max = 100,
                               .num_layers = 1,
                               .num_experts = 37,
                               .top_k = 4,
                               .hidden = 64,
                               .dtype = DTYPE_F32};
    uint32_t topk_ids[400], expert_worker[37];
    float topk_weights[400] = {0};
    cr_assert_eq(dispatch_plan_create(&plan, &l, 13), MOE_OK);
    for (uint64_t seed = 0; seed < 200; seed++) {
        const uint32_t workers = 1 + (uint32_t)(hash_mix(seed) % 13);
        const uint32_t tokens = (uint32_t)(hash_combine(seed, 1) % 101);
        for (uint32_t e = 0; e < 37; e++) {
            expert_worker[e] = (uint32_t)(hash_combine(seed, 100 + e) % workers);
        }
        for (uint32_t s = 0; s < tokens * 4; s++) {
            topk_ids[s] = (uint32_t)(hash_combine(seed, 1000 + s) % 37);
        }
        const enum wire_mode mode = seed % 2 ? WIRE_TP : WIRE_EP;
        cr_assert_eq(
            dispatch_plan_build(plan, mode, expert_worker, workers, topk_ids, topk_weights, tokens),
            MOE_OK);
        check_permutation(&l, mode, mode == WIRE_EP ? expert_worker : NULL, workers, topk_ids,
                          tokens);
    }
    teardown();
}

Test(dispatch_plan, split_lists_are_a_permutation_of_the_row_slots)
{
    const exchange_limits l = {.micro_batch_max = 1,
                               .token_max = 100,
                               .num_layers = 1,
                               .num_experts = 37,
                               .top_k = 4,
                               .hidden = 64,
                               .dtype = DTYPE_F32};
    uint32_t topk_ids[400], counts[37], first[38] = {0};
    dispatch_run cut[37 * 13];
    cr_assert_eq(dispatch_plan_create(&plan, &l, 13), MOE_OK);
    for (uint64_t seed = 0; seed < 200; seed++) {
        const uint32_t workers = 1 + (uint32_t)(hash_mix(seed) % 13);
        const uint32_t tokens = (uint32_t)(hash_combine(seed, 1) % 101);
        for (uint32_t s = 0; s < tokens * 4; s++) {
            topk_ids[s] = (uint32_t)(hash_combine(seed, 1000 + s) % 37);
        }
        cr_assert_eq(dispatch_plan_count(plan, topk_ids, tokens, counts), MOE_OK);
        uint32_t n = 0;
        for (uint32_t e = 0; e < 37; e++) { /* every worker takes some, the last the rest */
            first[e] = n;
            for (uint32_t w = 0, left = counts[e]; w < workers; w++) {
                const uint32_t rows =
                    w + 1 == workers ? left : (uint32_t)(hash_combine(seed, 2000 + n) % (left + 1));
                cut[n++] = (dispatch_run){w, rows};
                left -= rows;
            }
            first[e + 1] = n;
        }
        const dispatch_split split = {first, cut};
        cr_assert_eq(dispatch_plan_build_split(plan, &split, workers, topk_ids, tokens), MOE_OK);
        check_permutation(&l, WIRE_EP, NULL, workers, topk_ids, tokens);
    }
    teardown();
}
