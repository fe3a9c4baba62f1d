/* cell: what the queue, the routers' schedulers and placing do together.  No router computes here:
 * a sequence's tokens are made from what came before them, so that one lost or out of place shows.
 */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/cell.h"

#define ROUTERS 3
#define TOTAL_MAX 64

static const router_limits usual = {.max_num_seqs = 2,
                                    .max_num_batched_tokens = 32,
                                    .max_model_len = 64,
                                    .kv_block_count = 32,
                                    .kv_block_tokens = 4};
static const bool all_up[ROUTERS] = {true, true, true};
static const gen_params plain = {.max_tokens = 16};

static cell *c;
static errbuf eb;

static void
teardown(void)
{
    cell_free(c);
    c = NULL;
}

TestSuite(cell, .fini = teardown, .timeout = 60);

static void
open_cell(uint32_t routers, const router_limits *limits)
{
    const cell_config config = {.router_count = routers, .max_waiting = 8, .prefix_caching = true};
    cr_assert_eq(cell_create(&c, &config, &eb), MOE_OK, "%s", eb.text);
    for (uint32_t r = 0; r < routers; r++) {
        cr_assert_eq(cell_set_router(c, r, limits, &eb), MOE_OK, "%s", eb.text);
    }
}

/* A prompt of base, base + 1, ... */
static moe_err
submit(uint32_t base, uint32_t len, void *user, seq_id *id)
{
    uint32_t prompt[TOTAL_MAX];
    for (uint32_t i = 0; i < len; i++)
        prompt[i] = base + i;
    return cell_submit(c, prompt, len, &plain, user, id, &eb);
}

static seq_id
add(uint32_t base, uint32_t len)
{
    seq_id id;
    cr_assert_eq(submit(base, len, NULL, &id), MOE_OK, "%s", eb.text);
    return id;
}

static uint32_t
next_token(const uint32_t *tokens, uint32_t count)
{
    uint64_t h = 5;
    for (uint32_t i = 0; i < count; i++)
        h = hash_combine(h, tokens[i]);
    return (uint32_t)(h % 1000);
}

/* A step of one router; returns how many sequences were in it. */
static uint32_t
step(uint32_t router)
{
    step_plan plan;
    seq_outcome outcomes[16] = {0};
    scheduler *s = cell_scheduler(c, router);
    scheduler_plan(s, &plan);
    for (uint32_t i = 0; i < plan.count; i++) {
        const seq_work *w = &plan.work[i];
        outcomes[i].token = next_token(w->all_tokens, w->total_tokens);
    }
    scheduler_commit(s, outcomes);
    return plan.count;
}

static uint32_t
load_of(uint32_t router)
{
    return scheduler_load(cell_scheduler(c, router));
}

static cell_stats
stats(void)
{
    cell_stats st;
    cell_get_stats(c, &st);
    return st;
}

Test(cell, refuses_routers_that_do_not_belong_together_and_says_what_differs)
{
    const cell_config none = {.max_waiting = 8}, crowd = {.router_count = 65, .max_waiting = 8},
                      two = {.router_count = 2, .max_waiting = 8};
    cr_expect_eq(cell_create(&c, &none, &eb), MOE_ERANGE);
    cr_expect_eq(cell_create(&c, &crowd, &eb), MOE_ERANGE);
    cr_expect_null(c);
    cr_assert_eq(cell_create(&c, &two, &eb), MOE_OK);
    seq_id id;
    cr_expect(!cell_is_open(c));
    cr_expect_eq(cell_max_model_len(c), 0);
    cr_expect_eq(submit(1, 3, NULL, &id), MOE_ECLOSED);
    cr_expect_null(cell_abort(c, 1));
    router_limits limits = usual;
    limits.max_num_seqs = 0;
    cr_expect_eq(cell_set_router(c, 0, &limits, &eb), MOE_ERANGE);
    cr_expect(!cell_is_open(c));
    cr_assert_eq(cell_set_router(c, 0, &usual, &eb), MOE_OK);
    cr_expect_eq(cell_max_model_len(c), 64);
    cr_expect_eq(cell_set_router(c, 0, &usual, &eb), MOE_OK, "it was there before");

    uint32_t *const fields[] = {&limits.max_model_len, &limits.kv_block_tokens,
                                &limits.max_num_seqs};
    for (size_t i = 0; i < 3; i++) {
        limits = usual;
        *fields[i] += 2;
        cr_expect_eq(cell_set_router(c, 1, &limits, &eb), MOE_EMISMATCH);
        cr_expect_not_null(strstr(eb.text, "other limits"), "%s", eb.text);
    }
    limits = usual;
    limits.max_num_batched_tokens++;
    cr_expect_eq(cell_set_router(c, 0, &limits, &eb), MOE_EMISMATCH, "not as before");
    limits.max_num_seqs++; /* shares of 5: 3 and 2 */
    limits.kv_block_count += 7;
    cr_expect_eq(cell_set_router(c, 1, &limits, &eb), MOE_OK, "%s", eb.text);
}

Test(cell, spreads_by_load_and_fills_every_slot_before_anybody_waits)
{
    open_cell(ROUTERS, &usual);
    for (uint32_t i = 0; i < 8; i++)
        add(100 * i, 5);
    cell_place(c, all_up);
    for (uint32_t r = 0; r < ROUTERS; r++)
        cr_expect_eq(load_of(r), 2);
    cr_expect_eq(stats().queued, 2);
    cr_expect_eq(stats().sum.waiting, 8, "nobody runs yet");
    for (uint32_t r = 0; r < ROUTERS; r++)
        cr_expect_eq(step(r), 2);
    cr_expect_eq(stats().sum.running, 6);
    cr_expect_eq(stats().sum.waiting, 2);
    cr_expect_eq(stats().sum.steps_limited_by_seqs, 3, "those in the queue count");
    while (load_of(1) == 2)
        step(1);
    cell_place(c, all_up);
    cr_expect_eq(load_of(1), 2, "who waited longest takes the free place");
    cr_expect_eq(stats().queued, 0);
}

Test(cell, a_prefix_draws_a_sequence_to_the_router_that_has_it)
{
    router_limits limits = usual;
    limits.max_num_seqs = 8;
    open_cell(ROUTERS, &limits);
    const bool only_2[ROUTERS] = {false, false, true};
    add(500, 21);
    cell_place(c, only_2);
    step(2);
    cr_expect_eq(load_of(2), 1);
    add(500, 21); /* the same again: router 2 is loaded, the others are not */
    add(700, 21);
    cell_place(c, all_up);
    cr_expect_eq(load_of(2), 2);
    cr_expect_eq(load_of(0), 1);
    cr_expect_eq(stats().placed_by_prefix, 1);
    cr_expect_eq(stats().placed, 3);
    step(2);
    cr_expect_eq(stats().sum.prefix_hit_tokens, 20);
}

/* Router 0 has more slots left, router 1 more blocks; each block is 4 tokens. */
Test(cell, a_sequence_goes_where_its_blocks_are_and_waits_in_the_queue_if_they_are_nowhere)
{
    router_limits limits = usual;
    limits.max_num_seqs = 8;
    limits.max_num_batched_tokens = 64;
    limits.kv_block_count = 16;
    open_cell(2, &limits);
    const bool only_0[] = {true, false}, only_1[] = {false, true};
    add(100, 44); /* 11 of the 16 blocks, and one that it grows into */
    cell_place(c, only_0);
    add(200, 5);
    add(300, 5);
    cell_place(c, only_1);
    step(0);
    step(1);
    cr_assert(load_of(0) == 1 && load_of(1) == 2);
    add(400, 25);
    cell_place(c, all_up);
    cr_expect_eq(load_of(1), 3, "router 0 has less load, but not 7 blocks and some to spare");
    step(1);
    add(500, 25);
    cell_place(c, all_up);
    cr_expect_eq(stats().queued, 1, "neither has them");
    const uint64_t before = stats().sum.steps_limited_by_blocks;
    step(0);
    cr_expect_eq(stats().sum.steps_limited_by_blocks, before + 1);
    while (load_of(0) > 0)
        step(0);
    cell_place(c, all_up);
    cr_expect_eq(load_of(0), 1);
    cr_expect_eq(stats().queued, 0);
}

Test(cell, nobody_is_placed_where_nobody_serves)
{
    const bool none[ROUTERS] = {false};
    open_cell(ROUTERS, &usual);
    add(1, 5);
    cell_place(c, none);
    cr_expect_eq(stats().queued, 1);
    const bool last[ROUTERS] = {false, false, true};
    cell_place(c, last);
    cr_expect_eq(load_of(2), 1);
}

/* max_waiting is 8; two of each router's sequences could be preempted and wait too. */
Test(cell, waiting_is_bounded_for_the_cell_as_a_whole)
{
    open_cell(2, &usual);
    seq_id id;
    for (uint32_t i = 0; i < 12; i++)
        add(100 * i, 5);
    cr_expect_eq(submit(1, 5, NULL, &id), MOE_EBUSY);
    cr_expect_eq(id, 0);
    cell_place(c, all_up);
    cr_expect_eq(submit(1, 5, NULL, &id), MOE_EBUSY, "placed is not running");
    step(0);
    step(1);
    for (uint32_t i = 0; i < 4; i++)
        add(1, 5);
    cr_expect_eq(submit(1, 5, NULL, &id), MOE_EBUSY);
    for (uint32_t r = 0; r < 2; r++)
        scheduler_rollback(cell_scheduler(c, r));
    cr_expect_eq(cell_recall(c, 0) + cell_recall(c, 1), 4);
    cr_expect_eq(stats().queued, 16);
    cr_expect_leq(stats().queued, cell_capacity(c));
    cr_expect_eq(submit(1, 5, NULL, &id), MOE_EBUSY);
}

Test(cell, a_sequence_that_fits_no_router_is_refused_and_one_that_fits_one_waits_for_it)
{
    router_limits large = usual, small = usual;
    large.kv_block_count = 16;
    small.kv_block_count = 4;
    open_cell(1, &small);
    seq_id id;
    cr_expect_eq(submit(1, 30, NULL, &id), MOE_ERANGE);
    cr_expect_not_null(strstr(eb.text, "KV blocks"), "%s", eb.text);
    cell_free(c);
    const cell_config config = {.router_count = 2, .max_waiting = 8};
    cr_assert_eq(cell_create(&c, &config, &eb), MOE_OK);
    cr_assert_eq(cell_set_router(c, 0, &small, &eb), MOE_OK);
    cr_assert_eq(cell_set_router(c, 1, &large, &eb), MOE_OK);
    cr_expect_eq(submit(1, 30, NULL, &id), MOE_OK, "%s", eb.text);
    cell_place(c, (const bool[]){true, false});
    cr_expect_eq(stats().queued, 1);
    cell_place(c, all_up);
    cr_expect_eq(load_of(1), 1);
}

Test(cell, what_is_recalled_goes_on_elsewhere_in_order_of_arrival)
{
    open_cell(ROUTERS, &usual);
    for (uint32_t i = 0; i < 8; i++)
        add(100 * i, 5);
    cell_place(c, all_up);
    for (uint32_t n = 0; n < 3; n++)
        for (uint32_t r = 0; r < ROUTERS; r++)
            step(r);
    const uint32_t running = load_of(1);
    cr_assert_eq(running, 2);
    scheduler_rollback(cell_scheduler(c, 1));
    cr_expect_eq(cell_recall(c, 1), 2);
    cr_expect_eq(cell_recall(c, 1), 0);
    cr_expect_eq(stats().recalled, 2);
    cr_expect_eq(stats().queued, 4);
    const bool without_1[ROUTERS] = {true, false, true};
    while (load_of(0) > 0)
        step(0);
    cell_place(c, without_1);
    cr_expect_eq(load_of(0), 2);

    /* Those of router 1 came second and fifth, before the two that never ran: they go first, with
     * the tokens they had. */
    step_plan plan;
    scheduler_plan(cell_scheduler(c, 0), &plan);
    cr_assert_eq(plan.count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        const seq_work *w = &plan.work[i];
        cr_expect_eq(w->all_tokens[0], i == 0 ? 100 : 400);
        cr_expect(w->init);
        cr_expect_eq(w->start_pos + w->token_count, 8, "prompt and three tokens");
        for (uint32_t t = 5; t < 8; t++)
            cr_expect_eq(w->all_tokens[t], next_token(w->all_tokens, t));
    }
    scheduler_rollback(cell_scheduler(c, 0));
}

Test(cell, abort_finds_a_sequence_wherever_it_is)
{
    open_cell(2, &usual);
    int users[6];
    seq_id ids[6];
    for (uint32_t i = 0; i < 6; i++)
        cr_assert_eq(submit(100 * i, 5, &users[i], &ids[i]), MOE_OK);
    cell_place(c, all_up);
    step(0);
    cr_expect_eq(cell_abort(c, ids[0]), &users[0], "runs");
    cr_expect_eq(cell_abort(c, ids[1]), &users[1], "waits for its router");
    cr_expect_eq(cell_abort(c, ids[5]), &users[5], "in the queue");
    for (uint32_t i = 0; i < 2; i++)
        cr_expect_null(cell_abort(c, ids[i]));
    cr_expect_null(cell_abort(c, 999999));
    for (uint32_t i = 0; i < 3; i++)
        cr_expect_not_null(cell_abort_any(c));
    cr_expect_null(cell_abort_any(c));
    cr_expect_eq(stats().sum.running + stats().sum.waiting, 0);
    cr_expect_eq(stats().sum.blocks_used, 0);
}

/* Steps, deaths and returns of routers in any order: every sequence ends with its own tokens. */
Test(cell, any_order_of_steps_and_losses_ends_every_sequence)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        open_cell(ROUTERS, &usual);
        bool up[ROUTERS] = {true, true, true};
        uint32_t sent = 0, ended = 0, idle = 0;
        for (uint64_t round = 0; ended < 30; round++) {
            cr_assert_lt(round, 100000, "seed %u: only %u of 30 ended", (unsigned)seed, ended);
            const uint64_t draw = hash_combine(seed, round);
            const uint32_t r = (uint32_t)(draw % ROUTERS);
            seq_id id;
            if (sent < 30 && draw >> 8 & 1 &&
                submit((uint32_t)(draw >> 16) % 3 * 100, 1 + (uint32_t)(draw >> 24) % 20, NULL,
                       &id) == MOE_OK)
                sent++;
            if ((draw >> 32) % 16 == 0) {
                up[r] = !up[r];
                if (!up[r]) scheduler_rollback(cell_scheduler(c, r));
                if (!up[r] && draw >> 40 & 1) cell_recall(c, r);
            }
            cell_place(c, up);
            if (up[r]) idle += step(r) == 0;
            const cell_stats st = stats();
            cr_assert_leq(st.sum.running + st.sum.waiting, sent);
            ended = sent - st.sum.running - st.sum.waiting;
        }
        cr_expect_eq(stats().sum.blocks_used, 0);
        cell_free(c);
        c = NULL;
    }
}
