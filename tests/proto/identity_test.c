/* identity: whatever differs between two processes is refused, with a text that names the field and
 * both values. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "common/cpu.h"
#include "proto/identity.h"
#include "tests/support/paths.h"

static identity mine;
static Conclave__ModelIdentity model; /* what the peer says; equal to mine before each test */
static Conclave__NumericClass numeric;
static errbuf eb;

static void
setup(void)
{
    conclave__model_identity__init(&mine.model);
    mine.model.fingerprint = 0xabcdef;
    mine.model.num_layers = 11;
    mine.model.num_experts = 12;
    mine.model.top_k = 3;
    mine.model.hidden_size = 14;
    mine.model.intermediate_size = 15;
    mine.model.vocab_size = 16;
    conclave__numeric_class__init(&mine.numeric);
    mine.numeric.expert_dtype = (char *)(uintptr_t) "int8";
    mine.numeric.attn_dtype = (char *)(uintptr_t) "bf16";
    mine.numeric.kv_dtype = (char *)(uintptr_t) "bf16";
    mine.numeric.isa = (char *)(uintptr_t) "any";
    model = mine.model;
    numeric = mine.numeric;
}

TestSuite(identity, .init = setup, .timeout = 30);

static moe_err
check(void)
{
    eb.text[0] = '\0';
    return identity_check(&mine, "worker 2", CONCLAVE_VERSION, &model, &numeric, &eb);
}

static void
expect_named(const char *field, const char *theirs, const char *ours)
{
    cr_expect_eq(check(), MOE_EMISMATCH, "%s", field);
    cr_expect_not_null(strstr(eb.text, "worker 2"), "%s", eb.text);
    cr_expect_not_null(strstr(eb.text, field), "%s is not named: %s", field, eb.text);
    cr_expect_not_null(strstr(eb.text, theirs), "%s is not named: %s", theirs, eb.text);
    cr_expect_not_null(strstr(eb.text, ours), "%s is not named: %s", ours, eb.text);
}

Test(identity, accepts_a_peer_that_is_equal)
{
    cr_assert_eq(check(), MOE_OK, "%s", eb.text);
}

Test(identity, names_each_size_that_differs_and_both_values)
{
    const struct {
        const char *name;
        uint32_t *value;
    } sizes[] = {{"num_layers", &model.num_layers},
                 {"num_experts", &model.num_experts},
                 {"top_k", &model.top_k},
                 {"hidden_size", &model.hidden_size},
                 {"intermediate_size", &model.intermediate_size},
                 {"vocab_size", &model.vocab_size}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char ours[16];
        snprintf(ours, sizeof ours, "%u", *sizes[i].value);
        *sizes[i].value = 9876;
        expect_named(sizes[i].name, "9876", ours);
        model = mine.model;
    }
    cr_assert_eq(check(), MOE_OK);
}

Test(identity, names_both_fingerprints_of_two_models_of_one_size)
{
    model.fingerprint = 0x123456;
    expect_named("fingerprint", "123456", "abcdef");
}

Test(identity, names_both_versions)
{
    cr_assert_eq(identity_check(&mine, "worker 2", "0.0.0-other", &model, &numeric, &eb),
                 MOE_EMISMATCH);
    cr_expect_not_null(strstr(eb.text, "version 0.0.0-other"), "%s", eb.text);
    cr_expect_not_null(strstr(eb.text, CONCLAVE_VERSION), "%s", eb.text);
}

Test(identity, names_the_dtype_and_the_tier_that_differ)
{
    numeric.expert_dtype = (char *)(uintptr_t) "bf16";
    expect_named("--dtype", "bf16", "int8");
    numeric = mine.numeric;
    numeric.isa = (char *)(uintptr_t) "avx2";
    expect_named("tier", "avx2", "any");
}

Test(identity, does_not_compare_what_only_the_router_has)
{
    numeric.attn_dtype = (char *)(uintptr_t) "f32";
    numeric.kv_dtype = (char *)(uintptr_t) "f32";
    cr_assert_eq(check(), MOE_OK, "%s", eb.text);
}

Test(identity, refuses_a_peer_that_does_not_say_what_it_serves)
{
    cr_expect_eq(identity_check(&mine, "worker 2", CONCLAVE_VERSION, NULL, &numeric, &eb),
                 MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "worker 2"), "%s", eb.text);
    cr_expect_eq(identity_check(&mine, "worker 2", CONCLAVE_VERSION, &model, NULL, &eb),
                 MOE_EINVAL);
}

Test(identity, survives_texts_of_any_length)
{
    static char huge[5000];
    memset(huge, 'x', sizeof huge - 1);
    cr_expect_eq(identity_check(&mine, "worker 2", huge, &model, &numeric, &eb), MOE_EMISMATCH);
    numeric.expert_dtype = huge;
    cr_expect_eq(check(), MOE_EMISMATCH);
    cr_expect_not_null(strstr(eb.text, "int8"), "our value is cut off: %s", eb.text);
    numeric = mine.numeric;
    numeric.isa = huge;
    cr_expect_eq(check(), MOE_EMISMATCH);
    cr_expect_not_null(strstr(eb.text, "any"), "our value is cut off: %s", eb.text);
}

Test(identity, is_the_same_for_two_openings_of_one_checkpoint_and_another_for_another)
{
    char dir[512];
    kernel_table kernels;
    kernel_table_init(&kernels, cpu_flags());
    identity ids[3];
    const char *const names[] = {"models/base", "models/base", "models/theta1e6"};
    for (int i = 0; i < 3; i++) {
        checkpoint *c;
        cr_assert_eq(checkpoint_open(&c, golden_path(dir, sizeof dir, names[i]), &eb), MOE_OK, "%s",
                     eb.text);
        identity_init(&ids[i], c, &kernels, DTYPE_BF16, DTYPE_F32, DTYPE_F32);
        checkpoint_close(c); /* the texts are static */
    }
    cr_expect_eq(
        identity_check(&ids[0], "w", CONCLAVE_VERSION, &ids[1].model, &ids[1].numeric, &eb), MOE_OK,
        "%s", eb.text);
    cr_expect_eq(
        identity_check(&ids[0], "w", CONCLAVE_VERSION, &ids[2].model, &ids[2].numeric, &eb),
        MOE_EMISMATCH);
    cr_expect_str_eq(ids[0].host_id, ids[1].host_id);
    cr_expect_str_eq(ids[0].numeric.isa, kernels.bf16_tier);
    cr_expect_str_neq(ids[0].host_id, "");
}
