/* step_check: each rule a StepRequest can break, named in the error; and a good request passes. */
#include <criterion/criterion.h>

#include <math.h>
#include <string.h>

#include "router/step_check.h"

static const step_rules rules = {.vocab_size = 100,
                                 .max_num_seqs = 4,
                                 .max_num_batched_tokens = 40,
                                 .max_model_len = 64,
                                 .kv_block_count = 8,
                                 .incarnation = 7};

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
    return step_check(&rules, slots, seen, 4, &request, eb);
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
    request.step = 1; /* the frontend starts over */
    cr_expect_eq(check(&eb), MOE_OK, "%s", eb.text);
    request.n_work = 0;
    cr_expect_eq(check(&eb), MOE_OK, "%s", eb.text);
}

Test(step_check, names_the_rule_that_a_step_breaks)
{
    request.n_work = 5;
    expect(MOE_ERANGE, "5 sequences in a step, at most 4");
    request.router_incarnation = 8;
    expect(MOE_ECLOSED, "another router");
    request.step = 7;
    expect(MOE_EINVAL, "step 7 does not follow step 4");
    work[0].slot = 4;
    expect(MOE_EINVAL, "slot 4 is not below 4");
    work[0].slot = 1;
    expect(MOE_EINVAL, "slot 1 is named twice");
    work[0].n_tokens = 0;
    expect(MOE_EINVAL, "slot 0: work without tokens");
    work[1].token_is_last_sampled = true;
    expect(MOE_EINVAL, "slot 1: work without tokens");
    work[0].n_tokens = 40;
    work[0].n_blocks = 3;
    expect(MOE_ERANGE, "41 tokens in a step, at most 40");
    tokens[3] = 100;
    expect(MOE_EINVAL, "slot 0: token id 100 is not below 100");
    work[0].has_next_token = true;
    work[0].next_token = 101;
    expect(MOE_EINVAL, "slot 0: next_token 101");
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
    slots[1] = (slot_state){true, 64, 4};
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
