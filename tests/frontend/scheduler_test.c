/* scheduler: each rule of scheduler.h on a case worked by hand.  What becomes of whole workloads is
 * in scheduler_workload_test.c. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "frontend/scheduler.h"

TestSuite(scheduler, .timeout = 30);

/* The linker sends the library's allocations here. */
static uint64_t allocation_count;
static uint64_t allocations_left = UINT64_MAX;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

static bool
may_allocate(void)
{
    allocation_count++;
    if (allocations_left == 0) return false;
    allocations_left--;
    return true;
}

void *
__wrap_malloc(size_t n)
{
    return may_allocate() ? __real_malloc(n) : NULL;
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return may_allocate() ? __real_calloc(n, size) : NULL;
}

void *
__wrap_realloc(void *p, size_t n)
{
    return may_allocate() ? __real_realloc(p, n) : NULL;
}

#define EOS 2
#define STOP 5
#define PLAIN 1000 /* a token that ends nothing */

static const scheduler_config roomy = {.max_num_seqs = 4,
                                       .max_num_batched_tokens = 64,
                                       .max_model_len = 64,
                                       .max_waiting = 8,
                                       .kv_block_count = 64,
                                       .kv_block_tokens = 4,
                                       .prefix_caching = true,
                                       .eos_ids = {EOS},
                                       .eos_count = 1};

static const gen_params plain = {.max_tokens = 16};

static scheduler *
new_scheduler(scheduler_config config)
{
    scheduler *s = NULL;
    errbuf eb = {0};
    cr_assert_eq(scheduler_create(&s, &config, &eb), MOE_OK, "%s", eb.text);
    return s;
}

/* A prompt of `len` tokens base, base + 1, ...: prompts of equal base share prefixes. */
static seq_id
add(scheduler *s, uint32_t base, uint32_t len, const gen_params *params)
{
    uint32_t prompt[256];
    for (uint32_t i = 0; i < len; i++)
        prompt[i] = base + i;
    seq_id id = 0;
    errbuf eb = {0};
    cr_assert_eq(scheduler_add(s, prompt, len, params, NULL, &id, &eb), MOE_OK, "%s", eb.text);
    return id;
}

static step_plan
plan(scheduler *s)
{
    step_plan p;
    scheduler_plan(s, &p);
    return p;
}

/* Everybody who samples gets `token`. */
static void
commit(scheduler *s, const step_plan *p, uint32_t token)
{
    seq_outcome outcomes[16] = {0};
    for (uint32_t i = 0; i < p->count; i++)
        outcomes[i].token = token;
    scheduler_commit(s, outcomes);
}

static void
steps(scheduler *s, int count)
{
    while (count-- > 0) {
        const step_plan p = plan(s);
        commit(s, &p, PLAIN);
    }
}

static scheduler_stats
stats(const scheduler *s)
{
    scheduler_stats st;
    scheduler_get_stats(s, &st);
    return st;
}

static void
expect_work(const seq_work *w, seq_id id, uint32_t start, uint32_t count, bool sample)
{
    cr_expect_eq(w->id, id);
    cr_expect_eq(w->start_pos, start, "start %u, not %u", w->start_pos, start);
    cr_expect_eq(w->token_count, count, "count %u, not %u", w->token_count, count);
    cr_expect_eq(w->sample, sample);
    cr_expect_eq(w->tokens, w->all_tokens + start);
}

/* ---------------------------------------------------------------- limits and errors */

Test(scheduler, create_names_the_limit_that_is_wrong)
{
    struct {
        scheduler_config config;
        const char *name;
    } cases[9];
    for (size_t i = 0; i < 9; i++)
        cases[i].config = roomy;
    cases[0].config.max_num_seqs = 0, cases[0].name = "max_num_seqs";
    cases[1].config.max_num_batched_tokens = 0, cases[1].name = "max_num_batched_tokens";
    cases[2].config.max_model_len = 1, cases[2].name = "max_model_len";
    cases[3].config.max_waiting = 0, cases[3].name = "max_waiting";
    cases[4].config.kv_block_count = 0, cases[4].name = "kv_block_count";
    cases[5].config.kv_block_tokens = 0, cases[5].name = "kv_block_tokens";
    cases[6].config.eos_count = 9, cases[6].name = "eos_count";
    cases[7].config.max_num_seqs = UINT32_MAX, cases[7].name = "max_num_seqs";
    cases[8].config.kv_block_count = UINT32_MAX, cases[8].name = "KV blocks";
    for (size_t i = 0; i < 9; i++) {
        scheduler *s = (scheduler *)&s;
        errbuf eb = {0};
        cr_expect_eq(scheduler_create(&s, &cases[i].config, &eb), MOE_ERANGE);
        cr_expect_null(s);
        cr_expect(strstr(eb.text, cases[i].name) != NULL, "%s", eb.text);
    }
    scheduler_free(NULL);
}

Test(scheduler, create_and_add_survive_every_failed_allocation)
{
    uint32_t failed = 0;
    for (uint64_t allowed = 0;; allowed++, failed++) {
        scheduler *s = (scheduler *)&s;
        allocations_left = allowed;
        const moe_err err = scheduler_create(&s, &roomy, NULL);
        allocations_left = UINT64_MAX;
        if (err == MOE_OK) {
            allocations_left = 0;
            seq_id id = 1;
            cr_expect_eq(scheduler_add(s, (uint32_t[]){1}, 1, &plain, NULL, &id, NULL), MOE_ENOMEM);
            allocations_left = UINT64_MAX;
            cr_expect_eq(id, 0);
            cr_expect_eq(stats(s).waiting, 0);
            scheduler_free(s);
            break;
        }
        cr_expect_eq(err, MOE_ENOMEM);
        cr_expect_null(s);
    }
    cr_expect_geq(failed, 8);
}

Test(scheduler, add_refuses_what_can_never_run)
{
    scheduler_config config = roomy;
    config.kv_block_count = 5; /* 20 tokens, and one that is only sampled */
    scheduler *s = new_scheduler(config);
    const uint32_t prompt[64] = {0};
    const gen_params none = {.max_tokens = 0}, one = {.max_tokens = 1},
                     endless = {.max_tokens = UINT32_MAX};
    const struct {
        uint32_t prompt_len;
        const gen_params *params;
        moe_err want;
    } cases[] = {{0, &plain, MOE_ERANGE}, {1, &none, MOE_ERANGE},    {64, &one, MOE_ERANGE},
                 {5, &plain, MOE_OK},     {6, &plain, MOE_ERANGE},   {20, &one, MOE_OK},
                 {21, &one, MOE_ERANGE},  {1, &endless, MOE_ERANGE}, {63, &one, MOE_ERANGE}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        errbuf eb = {0};
        seq_id id = 1;
        const moe_err err =
            scheduler_add(s, prompt, cases[i].prompt_len, cases[i].params, NULL, &id, &eb);
        cr_expect_eq(err, cases[i].want, "case %zu: %s", i, eb.text);
        cr_expect_eq(id != 0, err == MOE_OK);
        cr_expect_eq(eb.text[0] != '\0', err != MOE_OK);
    }
    scheduler_free(s);
}

Test(scheduler, waiting_is_bounded_and_ids_are_never_reused)
{
    scheduler_config config = roomy;
    config.max_waiting = 2;
    scheduler *s = new_scheduler(config);
    const seq_id a = add(s, 10, 3, &plain), b = add(s, 20, 3, &plain);
    seq_id id = 1;
    cr_expect_eq(scheduler_add(s, (uint32_t[]){1}, 1, &plain, NULL, &id, NULL), MOE_EBUSY);
    cr_expect_eq(id, 0);
    cr_expect_null(scheduler_abort(s, a)); /* its user pointer was NULL */
    const seq_id c = add(s, 30, 3, &plain);
    cr_expect(a != b && b != c && a != c && a < b && b < c);
    steps(s, 1);
    cr_expect_eq(stats(s).waiting, 0);
    add(s, 40, 3, &plain);
    add(s, 50, 3, &plain);
    cr_expect_eq(scheduler_add(s, (uint32_t[]){1}, 1, &plain, NULL, &id, NULL), MOE_EBUSY);
    scheduler_free(s);
}

Test(scheduler, nothing_to_do_is_an_empty_plan)
{
    scheduler *s = new_scheduler(roomy);
    const step_plan p = plan(s);
    cr_expect_eq(p.count, 0);
    cr_expect_eq(p.token_count, 0);
    scheduler_commit(s, NULL);
    cr_expect_eq(stats(s).steps, 0);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- the order of work */

Test(scheduler, one_sequence_prefills_in_chunks_then_decodes_to_its_length)
{
    scheduler_config config = roomy;
    config.max_num_batched_tokens = 4;
    scheduler *s = new_scheduler(config);
    const gen_params three = {.max_tokens = 3};
    int who;
    seq_id id = 0;
    const uint32_t prompt[6] = {10, 11, 12, 13, 14, 15};
    cr_assert_eq(scheduler_add(s, prompt, 6, &three, &who, &id, NULL), MOE_OK);

    step_plan p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], id, 0, 4, false);
    cr_expect(p.work[0].init && p.work[0].user == &who &&
              p.work[0].params->max_tokens == three.max_tokens);
    cr_expect_eq(p.work[0].prompt_len, 6);
    cr_expect_eq(p.work[0].total_tokens, 6);
    cr_expect_arr_eq(p.work[0].all_tokens, prompt, sizeof prompt);
    cr_expect_eq(p.work[0].block_start, 0);
    cr_expect_eq(p.work[0].block_count, 1, "blocks are taken for the chunk, not the prompt");
    cr_expect(p.limited_by_tokens && !p.limited_by_seqs && !p.limited_by_blocks);
    cr_expect_eq(p.token_count, 4);
    commit(s, &p, 7);

    p = plan(s);
    expect_work(&p.work[0], id, 4, 2, true);
    cr_expect_not(p.work[0].init);
    cr_expect_eq(p.work[0].block_start, 1);
    cr_expect_eq(p.work[0].block_count, 1);
    cr_expect_not(p.limited_by_tokens);
    commit(s, &p, 7);

    p = plan(s);
    expect_work(&p.work[0], id, 6, 1, true);
    cr_expect_eq(p.work[0].tokens[0], 7);
    cr_expect_eq(p.work[0].block_start, 2);
    cr_expect_eq(p.work[0].block_count, 0);
    commit(s, &p, 8);

    p = plan(s);
    expect_work(&p.work[0], id, 7, 1, true);
    cr_expect_eq(stats(s).blocks_used, 2);
    seq_outcome outcome = {.token = 9};
    cr_expect_eq(scheduler_finish_with(s, &p.work[0], 9), FINISH_LENGTH);
    scheduler_commit(s, &outcome);
    cr_expect_eq(outcome.finished, FINISH_LENGTH);
    cr_expect_eq(stats(s).blocks_used, 0);
    cr_expect_eq(stats(s).running, 0);
    cr_expect_eq(stats(s).steps, 4);
    cr_expect_eq(stats(s).steps_limited_by_tokens, 1);
    cr_expect_eq(plan(s).count, 0);
    scheduler_free(s);
}

Test(scheduler, decodes_come_first_then_running_prefills_then_waiting_ones)
{
    scheduler_config config = roomy;
    config.max_num_batched_tokens = 10;
    scheduler *s = new_scheduler(config);
    const seq_id a = add(s, 100, 4, &plain), b = add(s, 200, 18, &plain);
    step_plan p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], a, 0, 4, true);
    expect_work(&p.work[1], b, 0, 6, false);
    commit(s, &p, PLAIN);

    const seq_id c = add(s, 300, 8, &plain);
    p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], a, 4, 1, true);
    expect_work(&p.work[1], b, 6, 9, false);
    cr_expect(p.limited_by_tokens);
    cr_expect_eq(p.token_count, 10);
    commit(s, &p, PLAIN);

    p = plan(s);
    cr_assert_eq(p.count, 3);
    expect_work(&p.work[0], a, 5, 1, true);
    expect_work(&p.work[1], b, 15, 3, true);
    expect_work(&p.work[2], c, 0, 6, false);
    cr_expect_eq(p.work[0].slot, 0);
    cr_expect_eq(p.work[1].slot, 1);
    cr_expect_eq(p.work[2].slot, 2);
    commit(s, &p, PLAIN);

    p = plan(s);
    cr_assert_eq(p.count, 3);
    expect_work(&p.work[0], a, 6, 1, true);
    expect_work(&p.work[1], b, 18, 1, true);
    expect_work(&p.work[2], c, 6, 2, true);
    cr_expect_not(p.limited_by_tokens);
    scheduler_free(s);
}

Test(scheduler, more_decodes_than_budget_go_first_come_first_served)
{
    scheduler_config config = roomy;
    config.max_num_batched_tokens = 2;
    scheduler *s = new_scheduler(config);
    const gen_params two = {.max_tokens = 2};
    const seq_id a = add(s, 100, 1, &two), b = add(s, 200, 1, &two);
    steps(s, 1);
    const seq_id c = add(s, 300, 1, &two);
    step_plan p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], a, 1, 1, true);
    expect_work(&p.work[1], b, 1, 1, true);
    cr_expect(p.limited_by_tokens);
    commit(s, &p, PLAIN);
    p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], c, 0, 1, true);
    scheduler_free(s);
}

Test(scheduler, at_most_max_num_seqs_run_and_the_lowest_slot_is_reused)
{
    scheduler *s = new_scheduler(roomy);
    seq_id ids[6];
    for (uint32_t i = 0; i < 6; i++)
        ids[i] = add(s, 100 * i, 3, &plain);
    step_plan p = plan(s);
    cr_expect_eq(p.count, 4);
    cr_expect(p.limited_by_seqs && !p.limited_by_tokens && !p.limited_by_blocks);
    commit(s, &p, PLAIN);
    cr_expect_eq(stats(s).running, 4);
    cr_expect_eq(stats(s).waiting, 2);
    cr_expect_eq(stats(s).steps_limited_by_seqs, 1);

    scheduler_abort(s, ids[3]);
    scheduler_abort(s, ids[1]);
    p = plan(s);
    cr_assert_eq(p.count, 4);
    expect_work(&p.work[0], ids[0], 3, 1, true);
    expect_work(&p.work[1], ids[2], 3, 1, true);
    expect_work(&p.work[2], ids[4], 0, 3, true);
    expect_work(&p.work[3], ids[5], 0, 3, true);
    cr_expect_eq(p.work[2].slot, 1);
    cr_expect_eq(p.work[3].slot, 3);
    cr_expect(p.work[2].init);
    cr_expect_not(p.limited_by_seqs);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- blocks run out */

/* 5 blocks of 4 tokens.  a starts with 7 tokens, b with 3; after six steps a has 12 tokens in 3
 * blocks, b 8 in 2, and both need another: a gets it, from b. */
static void
run_out_of_blocks(scheduler *s, const gen_params *of_a, const gen_params *of_b, seq_id ids[2])
{
    ids[0] = add(s, 100, 7, of_a);
    ids[1] = add(s, 200, 3, of_b);
    steps(s, 6);
    cr_assert_eq(stats(s).running, 2);
    cr_assert_eq(stats(s).blocks_used, 5);
    cr_assert_eq(stats(s).preemptions, 0);
}

Test(scheduler, youngest_gives_way_and_is_computed_again)
{
    scheduler_config config = roomy;
    config.kv_block_count = 5;
    config.prefix_caching = false;
    scheduler *s = new_scheduler(config);
    const gen_params twelve = {.max_tokens = 12};
    seq_id ids[2];
    run_out_of_blocks(s, &twelve, &twelve, ids);

    const seq_id c = add(s, 300, 1, &twelve);
    step_plan p = plan(s);
    cr_assert_eq(p.count, 1, "b gives way, and nobody new comes in its place");
    expect_work(&p.work[0], ids[0], 12, 1, true);
    cr_expect_eq(p.preempted, 1);
    cr_expect(p.limited_by_blocks);
    cr_expect_eq(p.token_count, 1);
    cr_expect_eq(stats(s).preemptions, 1);
    cr_expect_eq(stats(s).waiting, 2);
    cr_expect_eq(stats(s).blocks_used, 4);
    commit(s, &p, PLAIN);

    /* b needs 3 blocks for its 9 tokens, 1 is free; c would fit, but must not overtake b. */
    p = plan(s);
    cr_assert_eq(p.count, 1);
    cr_expect(p.limited_by_blocks);
    cr_expect_eq(p.preempted, 0);
    commit(s, &p, EOS); /* a ends */

    p = plan(s);
    cr_assert_geq(p.count, 1);
    expect_work(&p.work[0], ids[1], 0, 9, true);
    cr_expect(p.work[0].init);
    cr_expect_eq(p.work[0].slot, 0);
    cr_expect_eq(p.work[0].block_start, 0);
    cr_expect_eq(p.work[0].block_count, 3);
    cr_expect_eq(p.work[0].prompt_len, 3);
    for (uint32_t i = 3; i < 9; i++)
        cr_expect_eq(p.work[0].tokens[i], PLAIN);
    commit(s, &p, PLAIN);
    p = plan(s);
    expect_work(&p.work[0], ids[1], 9, 1, true);
    commit(s, &p, EOS);
    p = plan(s);
    expect_work(&p.work[0], c, 0, 1, true);
    scheduler_free(s);
}

/* 17 blocks of 4 tokens; b's prompt needs 13 of them and 4 tokens a step.  a has taken 5 when b
 * comes to its last chunk. */
Test(scheduler, youngest_without_a_block_gives_way_itself)
{
    scheduler_config config = roomy;
    config.kv_block_count = 17;
    config.max_num_batched_tokens = 5;
    config.prefix_caching = false;
    scheduler *s = new_scheduler(config);
    const gen_params many = {.max_tokens = 20}, one = {.max_tokens = 1};
    const seq_id a = add(s, 100, 4, &many);
    steps(s, 1);
    const seq_id b = add(s, 200, 52, &one);
    for (uint32_t i = 0; i < 12; i++) {
        const step_plan p = plan(s);
        cr_assert_eq(p.count, 2);
        expect_work(&p.work[0], a, 4 + i, 1, true);
        expect_work(&p.work[1], b, 4 * i, 4, false);
        commit(s, &p, PLAIN);
    }
    step_plan p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], a, 16, 1, true);
    cr_expect_eq(p.preempted, 1);
    cr_expect_eq(p.token_count, 1);
    cr_expect_eq(stats(s).waiting, 1);
    cr_expect_eq(stats(s).blocks_used, 5);
    commit(s, &p, EOS);
    p = plan(s);
    expect_work(&p.work[0], b, 0, 5, false);
    scheduler_free(s);
}

Test(scheduler, waits_for_blocks_of_its_whole_prompt_unless_alone)
{
    scheduler_config config = roomy;
    config.kv_block_count = 8;
    config.max_num_batched_tokens = 8;
    scheduler *s = new_scheduler(config);
    const gen_params one = {.max_tokens = 1}, four = {.max_tokens = 4};
    const seq_id a = add(s, 100, 5, &four); /* 2 blocks */
    steps(s, 1);
    const seq_id b = add(s, 200, 28, &one); /* 7 blocks: the first chunk would fit */
    step_plan p = plan(s);
    cr_assert_eq(p.count, 1);
    cr_expect(p.limited_by_blocks);
    cr_expect_eq(p.preempted, 0);
    commit(s, &p, EOS);
    scheduler_abort(s, a);
    p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], b, 0, 8, false);
    cr_expect_eq(p.work[0].block_count, 2);
    cr_expect_eq(stats(s).steps_limited_by_blocks, 1);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- prefix cache */

Test(scheduler, cached_prefix_is_not_computed_again)
{
    scheduler *s = new_scheduler(roomy);
    const gen_params one = {.max_tokens = 1};
    const seq_id a = add(s, 100, 10, &one);
    step_plan p = plan(s);
    expect_work(&p.work[0], a, 0, 10, true);
    uint32_t blocks[3];
    memcpy(blocks, p.work[0].blocks, sizeof blocks);
    commit(s, &p, PLAIN);
    cr_expect_eq(stats(s).prefix_query_tokens, 10);
    cr_expect_eq(stats(s).prefix_hit_tokens, 0);

    const seq_id b = add(s, 100, 12, &plain); /* shares 8 tokens in full blocks */
    p = plan(s);
    expect_work(&p.work[0], b, 8, 4, true);
    cr_expect(p.work[0].init);
    cr_expect_eq(p.work[0].block_start, 0, "the whole table is sent");
    cr_expect_eq(p.work[0].block_count, 3);
    cr_expect_arr_eq(p.work[0].blocks, blocks, 2 * sizeof blocks[0]);
    commit(s, &p, PLAIN);
    cr_expect_eq(stats(s).prefix_query_tokens, 22);
    cr_expect_eq(stats(s).prefix_hit_tokens, 8);

    const seq_id c = add(s, 100, 12, &plain); /* all 12 are cached: the last is computed anyway */
    p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[1], c, 8, 4, true);
    commit(s, &p, PLAIN);

    const gen_params echo = {.max_tokens = 1, .prompt_logprobs = true};
    const seq_id d = add(s, 100, 12, &echo);
    p = plan(s);
    cr_assert_eq(p.count, 3);
    expect_work(&p.work[2], d, 0, 12, true);
    commit(s, &p, PLAIN);
    cr_expect_eq(stats(s).prefix_query_tokens, 34, "who bypasses the cache is not counted");
    cr_expect_eq(stats(s).prefix_hit_tokens, 16);
    scheduler_free(s);
}

Test(scheduler, blocks_of_a_step_not_yet_committed_are_not_shared)
{
    scheduler *s = new_scheduler(roomy);
    const seq_id a = add(s, 100, 9, &plain), b = add(s, 100, 9, &plain);
    step_plan p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], a, 0, 9, true);
    expect_work(&p.work[1], b, 0, 9, true);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t k = 0; k < 3; k++)
            cr_expect_neq(p.work[0].blocks[i], p.work[1].blocks[k]);
    commit(s, &p, PLAIN);
    const seq_id c = add(s, 100, 9, &plain);
    p = plan(s);
    expect_work(&p.work[2], c, 8, 1, true);
    scheduler_free(s);
}

Test(scheduler, sampled_tokens_are_cached_too)
{
    scheduler *s = new_scheduler(roomy);
    const gen_params six = {.max_tokens = 6};
    add(s, 100, 3, &six);
    steps(s, 6); /* computed: 3 + 5 tokens, two full blocks */
    cr_assert_eq(stats(s).running, 0);
    const uint32_t next_turn[10] = {100, 101, 102, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN, 1};
    seq_id id = 0;
    cr_assert_eq(scheduler_add(s, next_turn, 10, &plain, NULL, &id, NULL), MOE_OK);
    const step_plan p = plan(s);
    expect_work(&p.work[0], id, 8, 2, true);
    scheduler_free(s);
}

Test(scheduler, resumed_sequence_finds_its_own_blocks_again)
{
    scheduler_config config = roomy;
    config.kv_block_count = 5;
    scheduler *s = new_scheduler(config);
    const gen_params twelve = {.max_tokens = 12}, seven = {.max_tokens = 7};
    seq_id ids[2];
    run_out_of_blocks(s, &seven, &twelve, ids);
    step_plan p = plan(s); /* a takes the later of b's blocks, and ends */
    cr_assert_eq(p.preempted, 1);
    commit(s, &p, PLAIN);
    cr_assert_eq(stats(s).running, 0);
    p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], ids[1], 4, 5, true);
    cr_expect(p.work[0].init);
    cr_expect_eq(p.work[0].block_count, 3);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- the end of a sequence */

Test(scheduler, finish_with_follows_the_parameters)
{
    scheduler *s = new_scheduler(roomy);
    const gen_params stop = {.max_tokens = 16, .stop_token_count = 1, .stop_token_ids = {STOP}};
    gen_params deaf = stop, min2 = stop;
    deaf.ignore_eos = true;
    min2.min_tokens = 2;
    const struct {
        const gen_params *params;
        uint32_t prompt_len, total, token;
        finish_reason want;
    } cases[] = {
        {&plain, 4, 4, PLAIN, FINISH_NONE},    {&plain, 4, 4, EOS, FINISH_STOP},
        {&plain, 4, 4, STOP, FINISH_NONE},     {&stop, 4, 4, STOP, FINISH_STOP},
        {&deaf, 4, 4, EOS, FINISH_NONE},       {&deaf, 4, 4, STOP, FINISH_STOP},
        {&min2, 4, 4, EOS, FINISH_NONE},       {&min2, 4, 5, STOP, FINISH_NONE},
        {&min2, 4, 6, EOS, FINISH_STOP},       {&plain, 4, 18, PLAIN, FINISH_NONE},
        {&plain, 4, 19, PLAIN, FINISH_LENGTH}, {&plain, 4, 19, EOS, FINISH_STOP},
        {&plain, 60, 62, PLAIN, FINISH_NONE},  {&plain, 60, 63, PLAIN, FINISH_LENGTH},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const seq_work work = {.params = cases[i].params,
                               .prompt_len = cases[i].prompt_len,
                               .total_tokens = cases[i].total};
        cr_expect_eq(scheduler_finish_with(s, &work, cases[i].token), cases[i].want, "case %zu", i);
    }
    scheduler_free(s);
}

Test(scheduler, commit_reports_each_end_and_forgets_the_sequence)
{
    scheduler_config config = roomy;
    config.max_num_batched_tokens = 12;
    scheduler *s = new_scheduler(config);
    seq_id ids[4];
    for (uint32_t i = 0; i < 4; i++)
        ids[i] = add(s, 100 * i, 3 + (i == 3), &plain);
    step_plan p = plan(s);
    cr_assert_eq(p.count, 4);
    cr_expect_not(p.work[3].sample);
    seq_outcome o[4] = {{.token = EOS},
                        {.token = PLAIN, .stop = true},
                        {.token = PLAIN, .finished = FINISH_ERROR},
                        {.token = EOS, .stop = true}}; /* ignored: nothing was sampled */
    scheduler_commit(s, o);
    cr_expect_eq(o[0].finished, FINISH_STOP);
    cr_expect_eq(o[1].finished, FINISH_STOP);
    cr_expect_eq(o[2].finished, FINISH_NONE);
    cr_expect_eq(o[3].finished, FINISH_NONE);
    cr_expect_eq(stats(s).running, 2);
    cr_expect_null(scheduler_abort(s, ids[0]));
    p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], ids[2], 3, 1, true);
    expect_work(&p.work[1], ids[3], 3, 1, true);
    cr_expect_eq(p.work[0].tokens[0], PLAIN);
    commit(s, &p, PLAIN);
    scheduler_free(s);
}

Test(scheduler, abort_takes_out_the_running_and_the_waiting)
{
    scheduler_config config = roomy;
    config.max_num_seqs = 1;
    scheduler *s = new_scheduler(config);
    int users[3];
    seq_id ids[3];
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t prompt[5] = {i, i, i, i, i};
        cr_assert_eq(scheduler_add(s, prompt, 5, &plain, &users[i], &ids[i], NULL), MOE_OK);
    }
    steps(s, 1);
    cr_expect_eq(scheduler_abort(s, ids[1]), &users[1]);
    cr_expect_eq(scheduler_abort(s, ids[0]), &users[0]);
    cr_expect_eq(stats(s).blocks_used, 0);
    cr_expect_null(scheduler_abort(s, ids[0]));
    cr_expect_null(scheduler_abort(s, ids[1]));
    cr_expect_null(scheduler_abort(s, 0));
    cr_expect_null(scheduler_abort(s, UINT64_MAX));
    const step_plan p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], ids[2], 0, 5, true);
    commit(s, &p, PLAIN);
    cr_expect_eq(scheduler_abort(s, ids[2]), &users[2]);
    cr_expect_eq(plan(s).count, 0);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- rollback */

Test(scheduler, rollback_starts_everything_again_in_order)
{
    scheduler_config config = roomy;
    config.max_num_seqs = 2;
    scheduler *s = new_scheduler(config);
    const seq_id a = add(s, 100, 5, &plain), b = add(s, 200, 5, &plain), c = add(s, 300, 5, &plain);
    steps(s, 2);
    plan(s); /* the router dies in the middle of it */
    scheduler_rollback(s);
    cr_expect_eq(stats(s).running, 0);
    cr_expect_eq(stats(s).waiting, 3);
    cr_expect_eq(stats(s).blocks_used, 0);
    cr_expect_eq(stats(s).steps, 2);
    cr_expect_eq(stats(s).preemptions, 0);

    step_plan p = plan(s);
    cr_assert_eq(p.count, 2);
    expect_work(&p.work[0], a, 0, 7, true); /* nothing cached: the router lost it */
    expect_work(&p.work[1], b, 0, 7, true);
    cr_expect(p.work[0].init && p.work[1].init);
    cr_expect_eq(p.work[0].tokens[6], PLAIN);
    commit(s, &p, EOS);
    p = plan(s);
    cr_assert_eq(p.count, 1);
    expect_work(&p.work[0], c, 0, 5, true);
    commit(s, &p, EOS);
    scheduler_rollback(s); /* also when idle */
    cr_expect_eq(plan(s).count, 0);
    scheduler_free(s);
}

/* ---------------------------------------------------------------- cost */

Test(scheduler, steps_allocate_nothing)
{
    scheduler_config config = roomy;
    config.kv_block_count = 9; /* tight: with preemptions */
    scheduler *s = new_scheduler(config);
    for (uint32_t i = 0; i < 8; i++)
        add(s, 100 * (i / 2), 6, &plain);
    const uint64_t before = allocation_count;
    cr_assert_gt(before, 0, "the wrapper counts");
    for (int i = 0; i < 500 && stats(s).running + stats(s).waiting > 0; i++) {
        const step_plan p = plan(s);
        commit(s, &p, PLAIN);
        if (i == 20) scheduler_rollback(s);
    }
    cr_expect_eq(stats(s).running + stats(s).waiting, 0);
    cr_expect_gt(stats(s).preemptions, 0);
    cr_expect_eq(allocation_count, before);
    scheduler_free(s);
}

Test(scheduler, long_queue_costs_no_more_per_sequence)
{
    scheduler_config config = roomy;
    config.max_waiting = 100000;
    scheduler *s = new_scheduler(config);
    seq_id *ids = malloc(100000 * sizeof ids[0]);
    const gen_params one = {.max_tokens = 1};
    for (uint32_t i = 0; i < 100000; i++)
        ids[i] = add(s, i, 1, &one);
    /* Were any of this linear in the queue, it would run into the timeout. */
    for (uint32_t i = 1; i < 100000; i += 2)
        scheduler_abort(s, ids[i]);
    uint32_t step_count = 0;
    for (; stats(s).running + stats(s).waiting > 0; step_count++)
        steps(s, 1);
    cr_expect_eq(step_count, 50000 / 4);
    free(ids);
    scheduler_free(s);
}
