/* step_check: each rule a StepRequest can break, named in the error; and a good request passes. */
#include <criterion/criterion.h>

#include <math.h>
#include <string.h>

#include "router/step_check.h"

static const step_rules rules = {.vocab_size = 100,
                                 .max_num_seqs = 4,
                                 .max_num_batched_tokens = 40,
                                 .max_model_len = 64,
                                 .kv_block_count = 8};

/* Slot 0 is free; slot 1 runs with 20 tokens in two blocks. */
static slot_state slots[4];
static Conclave__StepRequest request;
static Conclave__SeqWork work[5], *pointers[5];
static Conclave__SeqInit init;
static Conclave__Sampling sampling;
static uint32_t tokens[64], cached[64], blocks[8] = {0, 1, 2, 3};

/* A first chunk of 16 tokens for slot 0, and a decode for slot 1. */
static void
setup(void)
{
    memset(slots, 0, sizeof slots);
    slots[1] = (slot_state){.used = true, .known = 20, .block_count = 2};
    conclave__step_request__init(&request);
    conclave__seq_init__init(&init);
    conclave__sampling__init(&sampling);
    for (int i = 0; i < 5; i++) {
        conclave__seq_work__init(&work[i]);
        pointers[i] = &work[i];
    }
    sampling.temperature = sampling.top_p = sampling.repetition_penalty = 1;
    sampling.num_logprobs = -1;
    init.sampling = &sampling;
    init.prompt_len = 16;
    work[0].init = &init;
    work[0].tokens = tokens;
    work[0].n_tokens = 16;
    work[0].blocks = blocks;
    work[0].n_blocks = 1;
    work[1].slot = 1;
    work[1].start_pos = 20;
    work[1].tokens = tokens;
    work[1].n_tokens = 1;
    request.step = 5;
    request.router_incarnation = 7;
    request.work = pointers;
    request.n_work = 2;
    memset(tokens, 0, sizeof tokens);
}

TestSuite(step_check, .init = setup, .timeout = 10);

static moe_err
check(errbuf *eb)
{
    bool seen[4];
    return step_check(&rules, slots, seen, &request, eb);
}

static void
expect(moe_err want, const char *text)
{
    errbuf eb = {{0}};
    cr_expect_eq(check(&eb), want, "%s", text);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" does not say \"%s\"", eb.text, text);
    setup();
}

Test(step_check, a_good_step_passes)
{
    errbuf eb = {{0}};
    cr_expect_eq(check(&eb), MOE_OK, "%s", eb.text);
    work[1].n_tokens = 0;
    work[1].token_is_last_sampled = slots[1].sampled = true;
    cr_expect_eq(check(&eb), MOE_OK, "%s", eb.text);
    request.n_work = 0;
    cr_expect_eq(check(&eb), MOE_OK, "%s", eb.text);
}

Test(step_check, names_the_rule_that_a_step_breaks)
{
    request.n_work = 5;
    expect(MOE_ERANGE, "5 sequences in a step, at most 4");
    work[0].slot = 4;
    expect(MOE_EINVAL, "slot 4 is not below 4");
    work[0].slot = 1;
    expect(MOE_EINVAL, "slot 1 is named twice");
    work[0].n_tokens = 0;
    expect(MOE_EINVAL, "slot 0: work without tokens");
    work[1].token_is_last_sampled = slots[1].sampled = true;
    expect(MOE_EINVAL, "slot 1: no token was sampled that could be fed, or others are given");
    work[1].n_tokens = 0;
    work[1].token_is_last_sampled = true;
    expect(MOE_EINVAL, "slot 1: no token was sampled");
    work[0].n_tokens = 0;
    work[0].token_is_last_sampled = slots[0].sampled = true;
    expect(MOE_EINVAL, "slot 0: no token was sampled");
    work[1].start_pos = slots[1].known = 32;
    work[1].n_tokens = 0;
    work[1].token_is_last_sampled = slots[1].sampled = true;
    expect(MOE_EINVAL, "slot 1: 2 blocks do not cover positions up to 33");
    work[0].n_tokens = 40;
    work[0].n_blocks = 3;
    expect(MOE_ERANGE, "41 tokens in a step, at most 40");
    tokens[3] = 100;
    expect(MOE_EINVAL, "slot 0: token id 100 is not below 100");
    init.cached_tokens = cached;
    init.n_cached_tokens = work[0].start_pos = 5;
    cached[4] = 101;
    work[0].n_blocks = 2;
    expect(MOE_EINVAL, "slot 0: cached token id 101 is not below 100");
    cached[4] = 0;
    work[0].has_next_token = true;
    work[0].next_token = 101;
    expect(MOE_EINVAL, "slot 0: next_token 101");
}

Test(step_check, steps_follow_each_other_within_a_life)
{
    const step_order order = {.client = 9, .life = 3, .step = 4};
    step_order failed = order;
    failed.failed = true;
    const struct {
        const step_order *order;
        uint64_t incarnation, client, life, step;
        moe_err want;
        const char *text;
    } cases[] = {
        {&order, 7, 9, 3, 5, MOE_OK, ""},
        {&order, 7, 9, 3, 4, MOE_EINVAL, "step 4 came where step 5 is due"},
        {&order, 7, 9, 3, 6, MOE_EINVAL, "step 6 came where step 5 is due"},
        {&order, 7, 9, 3, 1, MOE_EINVAL, "step 1 came"},
        {&order, 7, 9, 4, 1, MOE_OK, ""},
        {&order, 7, 9, 4, 5, MOE_EINVAL, "step 5 came where step 1 is due"},
        {&order, 7, 9, 2, 1, MOE_ECLOSED, "started over"},
        {&order, 7, 8, 1, 1, MOE_OK, ""}, /* another frontend */
        {&order, 7, 8, 3, 5, MOE_EINVAL, "step 5 came"},
        {&failed, 7, 9, 3, 5, MOE_ECLOSED, "step 4 failed"},
        {&failed, 7, 9, 4, 1, MOE_OK, ""},
        {&order, 6, 9, 3, 5, MOE_ECLOSED, "another router"},
        {&order, 6, 8, 3, 25, MOE_ECLOSED, "another router"}, /* it started again unnoticed */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        errbuf eb = {{0}};
        request.life = cases[i].life;
        request.step = cases[i].step;
        cr_expect_eq(
            step_order_check(cases[i].order, cases[i].incarnation, cases[i].client, &request, &eb),
            cases[i].want, "case %zu: %s", i, eb.text);
        cr_expect_not_null(strstr(eb.text, cases[i].text), "case %zu: %s", i, eb.text);
    }
}

Test(step_check, a_step_that_has_overtaken_the_one_before_it_is_known)
{
    const step_order order = {.client = 9, .life = 3, .step = 4};
    step_order failed = order;
    failed.failed = true;
    const struct {
        const step_order *order;
        uint64_t client, life, step;
        bool want;
    } cases[] = {
        {&order, 9, 3, 6, true},  {&order, 9, 3, 5, false},
        {&order, 9, 3, 7, false}, {&failed, 9, 3, 6, false}, /* it waits for nothing any more */
        {&order, 9, 4, 2, true},  {&order, 9, 4, 1, false},
        {&order, 9, 2, 2, false}, {&order, 8, 1, 2, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        request.life = cases[i].life;
        request.step = cases[i].step;
        cr_expect_eq(step_order_overtook(cases[i].order, cases[i].client, &request), cases[i].want,
                     "case %zu", i);
    }
}

Test(step_check, names_what_does_not_follow_in_a_slot)
{
    work[0].init = NULL;
    expect(MOE_EINVAL, "slot 0: work at position 0, but 0 are known");
    work[1].start_pos = 21;
    expect(MOE_EINVAL, "slot 1: work at position 21, but 20 are known");
    work[0].start_pos = 5; /* no cached tokens for them */
    expect(MOE_EINVAL, "0 cached tokens, but the work starts at 5");
    init.n_cached_tokens = 5;
    init.cached_tokens = cached;
    expect(MOE_EINVAL, "5 cached tokens, but the work starts at 0");
    init.prompt_len = 65;
    expect(MOE_EINVAL, "cached tokens");
}

Test(step_check, names_blocks_that_do_not_fit)
{
    blocks[0] = 8;
    expect(MOE_EINVAL, "slot 0: block 8 is not below 8");
    blocks[0] = 0;
    work[0].n_blocks = 0;
    expect(MOE_EINVAL, "slot 0: 0 blocks do not cover positions up to 16");
    work[0].block_start = 1; /* a new sequence has none before */
    expect(MOE_EINVAL, "do not follow 0 known ones");
    work[1].block_start = 3;
    work[1].blocks = blocks;
    work[1].n_blocks = 1;
    expect(MOE_EINVAL, "do not follow 2 known ones");
    work[0].n_blocks = 5;
    expect(MOE_EINVAL, "slot 0: 5 blocks");
    slots[1].known = work[1].start_pos = 32;
    expect(MOE_EINVAL, "slot 1: 2 blocks do not cover positions up to 33");
    slots[1] = (slot_state){.used = true, .known = 64, .block_count = 4};
    work[1].start_pos = 64;
    expect(MOE_EINVAL, "do not cover positions up to 65");
}

Test(step_check, names_sampling_that_makes_no_sense)
{
    init.sampling = NULL;
    expect(MOE_EINVAL, "without sampling parameters");
    sampling.temperature = NAN;
    expect(MOE_EINVAL, "not finite");
    sampling.num_logprobs = 21;
    expect(MOE_EINVAL, "num_logprobs 21 is above 20");
    sampling.n_bias_ids = 1;
    sampling.bias_ids = tokens;
    expect(MOE_EINVAL, "too many, or uneven");
    sampling.n_stop_token_ids = STEP_STOP_TOKENS_MAX + 1;
    sampling.stop_token_ids = tokens;
    expect(MOE_EINVAL, "65 stop tokens");
}
