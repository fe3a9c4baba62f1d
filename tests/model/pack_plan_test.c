/* pack_plan: the bytes are those of pack_expert() and pack_matrix(), however many pieces and
 * threads; failures name the tensor. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/pack_plan.h"
#include "tests/model/support.h"
#include "tests/support/paths.h"

TestSuite(pack_plan, .timeout = 60);

static const moe_dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_INT8};

static checkpoint *
open_dir(const char *dir)
{
    checkpoint *c;
    errbuf eb = {{0}};
    cr_assert_eq(checkpoint_open(&c, dir, &eb), MOE_OK, "%s", eb.text);
    return c;
}

static pool *
make_pool(uint32_t threads)
{
    pool *p;
    cr_assert_eq(pool_create(&p, threads), MOE_OK);
    return p;
}

static void *
alloc(size_t bytes, int fill)
{
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    cr_assert_not_null(p);
    memset(p, fill, bytes);
    return p;
}

static void
compare_experts(const checkpoint *c, pool *p, const expert_layout *layout)
{
    const model_config *m = checkpoint_config(c);
    const uint32_t total = m->num_layers * m->num_experts;
    char *got = alloc(total * layout->slot_bytes, 0xaa), *want = alloc(layout->slot_bytes, 0x55);
    pack_plan *plan;
    errbuf eb = {{0}};
    cr_assert_eq(pack_plan_create(&plan, 2 * total), MOE_OK);
    for (uint32_t i = 0; i < total; i++) {
        pack_plan_add_expert(plan, got + i * layout->slot_bytes, layout, c, i / m->num_experts,
                             i % m->num_experts);
    }
    cr_assert_eq(pack_plan_run(plan, p, NULL, &eb), MOE_OK, "%s", eb.text);
    pack_plan_free(plan);
    for (uint32_t i = 0; i < total; i++) {
        cr_assert_eq(pack_expert(want, layout, c, i / m->num_experts, i % m->num_experts), MOE_OK);
        cr_expect_arr_eq(got + i * layout->slot_bytes, want, layout->slot_bytes,
                         "%s slice %u..%u expert %u", dtype_name(layout->dtype),
                         layout->width_begin, layout->width_end, i);
    }
    free(got);
    free(want);
}

Test(pack_plan, packs_what_pack_expert_packs)
{
    char path[PATH_BYTES];
    checkpoint *c = open_dir(test_path(path, sizeof path, "models/demo"));
    const uint32_t width = checkpoint_config(c)->intermediate_size;
    const uint32_t slices[][2] = {{0, width}, {64, width}, {64, 128}, {width, width}};
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        pool *p = make_pool(threads);
        for (size_t d = 0; d < 3; d++) {
            for (size_t s = 0; s < 4; s++) {
                expert_layout layout;
                expert_layout_init(&layout, dtypes[d], checkpoint_config(c), slices[s][0],
                                   slices[s][1]);
                compare_experts(c, p, &layout);
            }
        }
        pool_free(p);
    }
    checkpoint_close(c);
}

/* Pieces have about 4 MB: only a large matrix has several, and one with odd ends. */
Test(pack_plan, cuts_a_large_matrix_into_pieces_that_meet)
{
    char dir[PATH_BYTES];
    enum { V = 20011, H = 520 };
    static const char config[] =
        "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"vocab_size\":"
        "20011,\"hidden_size\":520,\"intermediate_size\":12,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"num_local_experts\":2}";
    st_tensor tensors[TINY_TENSORS];
    memcpy(tensors, tiny_tensors, sizeof tensors);
    for (size_t i = 0; i < TINY_TENSORS; i++) {
        for (uint32_t d = 0; d < tensors[i].rank; d++) {
            if (tensors[i].shape[d] == 8) tensors[i].shape[d] = H;
            if (tensors[i].shape[d] == 16) tensors[i].shape[d] = V;
            if (tensors[i].shape[d] == 4) tensors[i].shape[d] = H / 2;
        }
    }
    temp_create(dir);
    temp_write(dir, "config.json", config, strlen(config));
    st_write(dir, "model.safetensors", tensors, TINY_TENSORS);
    checkpoint *c = open_dir(dir);
    pool *p = make_pool(3);
    const tensor_view *t = checkpoint_tensor(c, TENSOR_HEAD, 0, 0);
    for (size_t d = 0; d < 3; d++) {
        const size_t bytes = packed_bytes(dtypes[d], V - 1, H);
        char *got = alloc(bytes, 0xaa), *want = alloc(bytes, 0x55);
        pack_plan *plan;
        errbuf eb = {{0}};
        cr_assert_eq(pack_plan_create(&plan, 1), MOE_OK);
        pack_plan_add_matrix(plan, got, dtypes[d], t, 1, V, 0, H);
        cr_expect_eq(pack_plan_source_bytes(plan), (V - 1) * H * 2ull);
        cr_assert_eq(pack_plan_run(plan, p, NULL, &eb), MOE_OK, "%s", eb.text);
        cr_assert_eq(pack_matrix(want, dtypes[d], t, 1, V, 0, H), MOE_OK);
        cr_expect_arr_eq(got, want, bytes, "%s", dtype_name(dtypes[d]));
        pack_plan_free(plan);
        free(got);
        free(want);
    }
    pool_free(p);
    checkpoint_close(c);
    temp_remove(dir);
}

Test(pack_plan, names_the_first_tensor_that_is_not_finite)
{
    static const uint16_t nan_bf16[96] = {[95] = 0x7fc0};
    static const struct {
        size_t bad[2];
        const char *name;
    } cases[] = {{{10, 10}, "experts.0.w1.weight"},
                 {{12, 12}, "experts.0.w3.weight"},
                 {{14, 11}, "experts.0.w2.weight"},
                 {{15, 14}, "experts.1.w2.weight"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char dir[PATH_BYTES];
        st_tensor tensors[TINY_TENSORS];
        memcpy(tensors, tiny_tensors, sizeof tensors);
        tensors[cases[i].bad[0]].data = tensors[cases[i].bad[1]].data = nan_bf16;
        if (i == 3) tensors[15].data = NULL;
        temp_create(dir);
        temp_write(dir, "config.json", tiny_config, strlen(tiny_config));
        st_write(dir, "model.safetensors", tensors, TINY_TENSORS);
        checkpoint *c = open_dir(dir);
        pool *p = make_pool(2);
        expert_layout layout;
        expert_layout_init(&layout, DTYPE_INT8, checkpoint_config(c), 0, 12);
        char *slots = alloc(2 * layout.slot_bytes, 0);
        pack_plan *plan;
        errbuf eb = {{0}};
        cr_assert_eq(pack_plan_create(&plan, 4), MOE_OK);
        for (uint32_t e = 0; e < 2; e++) {
            pack_plan_add_expert(plan, slots + e * layout.slot_bytes, &layout, c, 0, e);
        }
        cr_expect_eq(pack_plan_run(plan, p, NULL, &eb), MOE_EINVAL);
        cr_expect_not_null(strstr(eb.text, cases[i].name), "%s: %s", cases[i].name, eb.text);
        cr_expect_not_null(strstr(eb.text, "model.safetensors"), "%s", eb.text);
        pack_plan_free(plan);
        free(slots);
        pool_free(p);
        checkpoint_close(c);
        temp_remove(dir);
    }
}

Test(pack_plan, an_empty_plan_is_done_and_a_cancelled_one_says_so)
{
    char path[PATH_BYTES];
    checkpoint *c = open_dir(test_path(path, sizeof path, "models/demo"));
    pool *p = make_pool(2);
    const _Atomic bool cancel = true;
    pack_plan *plan;
    errbuf eb = {{0}};
    cr_assert_eq(pack_plan_create(&plan, 1), MOE_OK);
    cr_expect_eq(pack_plan_run(plan, p, NULL, &eb), MOE_OK);
    const tensor_view *t = checkpoint_tensor(c, TENSOR_GATE, 0, 0);
    void *dst = alloc(packed_bytes(DTYPE_F32, (uint32_t)t->shape[0], (uint32_t)t->shape[1]), 0);
    pack_plan_add_matrix(plan, dst, DTYPE_F32, t, 0, (uint32_t)t->shape[0], 0,
                         (uint32_t)t->shape[1]);
    cr_expect_eq(pack_plan_run(plan, p, &cancel, &eb), MOE_ECLOSED);
    pack_plan_free(plan);
    pack_plan_free(NULL);
    free(dst);
    pool_free(p);
    checkpoint_close(c);
}
