/* store and ffn: what a worker hosts, and that its rows are the experts' arithmetic, whatever the
 * grouping and the threads. */
#include <criterion/criterion.h>

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu.h"
#include "common/hash.h"
#include "expert_worker/ffn.h"
#include "tests/support/paths.h"

#define TOKENS 24
#define TOP_K 2

static checkpoint *ckpt;
static const model_config *config;
static pool *one_thread, *three_threads;
static kernel_table kernels, reference;

static void
setup(void)
{
    char dir[512];
    errbuf eb = {{0}};
    cr_assert_eq(checkpoint_open(&ckpt, golden_path(dir, sizeof dir, "models/base"), &eb), MOE_OK,
                 "%s", eb.text);
    config = checkpoint_config(ckpt);
    kernel_table_init(&kernels, cpu_flags());
    kernel_table_init(&reference, 0);
    cr_assert_eq(pool_create(&one_thread, 1), MOE_OK);
    cr_assert_eq(pool_create(&three_threads, 3), MOE_OK);
}

static void
teardown(void)
{
    pool_free(one_thread);
    pool_free(three_threads);
    checkpoint_close(ckpt);
    ckpt = NULL;
}

TestSuite(expert_store, .init = setup, .fini = teardown, .timeout = 60);
TestSuite(ffn, .init = setup, .fini = teardown, .timeout = 60);

static expert_store *
make_store(moe_dtype dtype, uint32_t rank, uint32_t ranks)
{
    const uint32_t total = config->num_layers * config->num_experts;
    uint32_t *ids = malloc(total * sizeof *ids), begin, end;
    for (uint32_t i = 0; i < total; i++) {
        ids[i] = i;
    }
    expert_layout layout;
    errbuf eb = {{0}};
    expert_store *store;
    tp_slice(config->intermediate_size, rank, ranks, &begin, &end);
    expert_layout_init(&layout, dtype, config, begin, end);
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, ids, total, three_threads, NULL, &eb),
                 MOE_OK, "%s", eb.text);
    free(ids);
    return store;
}

Test(expert_store, slots_hold_what_pack_expert_makes)
{
    expert_layout layout;
    errbuf eb = {{0}};
    expert_layout_init(&layout, DTYPE_INT8, config, 0, config->intermediate_size);
    const uint32_t ids[] = {1, config->num_experts + 2};
    expert_store *store;
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, ids, 2, three_threads, NULL, &eb),
                 MOE_OK);
    void *want = aligned_alloc(64, layout.slot_bytes);
    cr_assert_eq(pack_expert(want, &layout, ckpt, 1, 2), MOE_OK);
    cr_expect_eq(memcmp(expert_store_slot(store, 1, 2), want, layout.slot_bytes), 0);
    cr_expect_not_null(expert_store_slot(store, 0, 1));
    cr_expect_null(expert_store_slot(store, 0, 2), "not hosted");
    cr_expect_null(expert_store_slot(store, 0, config->num_experts), "no such expert");
    cr_expect_null(expert_store_slot(store, config->num_layers, 0), "no such layer");
    cr_expect_eq(expert_store_count(store), 2);
    cr_expect_eq(expert_store_bytes(store), 2 * layout.slot_bytes);
    free(want);
    expert_store_free(store);
}

Test(expert_store, refuses_experts_that_do_not_exist_or_come_twice)
{
    expert_layout layout;
    errbuf eb = {{0}};
    expert_layout_init(&layout, DTYPE_F32, config, 0, config->intermediate_size);
    const uint32_t twice[] = {3, 3}, beyond[] = {config->num_layers * config->num_experts};
    expert_store *store = (expert_store *)1;
    cr_expect_eq(expert_store_create(&store, ckpt, &layout, twice, 2, one_thread, NULL, &eb),
                 MOE_EINVAL);
    cr_expect_null(store);
    cr_expect_not_null(strstr(eb.text, "expert 3 (entry 1)"), "%s", eb.text);
    cr_expect_eq(expert_store_create(&store, ckpt, &layout, beyond, 1, one_thread, NULL, &eb),
                 MOE_EINVAL);
    cr_expect_null(store);
}

/* A dispatch of TOKENS tokens, each to TOP_K experts, grouped by expert as dispatch_plan does it.
 */
typedef struct batch {
    char *rows; /* [TOKENS][row_bytes] */
    size_t row_bytes;
    wire_expert experts[64];
    uint32_t slots[TOKENS * TOP_K];
    float weights[TOKENS * TOP_K];
    uint32_t expert_count, row_count;
    float *results;
    size_t stride;
} batch;

static void
make_batch(batch *b, moe_dtype dtype, uint32_t seed)
{
    const uint32_t h = config->hidden_size, e = config->num_experts;
    uint32_t choice[TOKENS * TOP_K];
    memset(b, 0, sizeof *b);
    b->row_bytes = act_row_bytes(dtype, h);
    b->stride = round_up_u32(h, TILE_N);
    b->rows = aligned_alloc(64, TOKENS * b->row_bytes);
    b->results = calloc(TOKENS * TOP_K * b->stride, sizeof(float));
    float *x = malloc(h * sizeof *x);
    for (uint32_t t = 0; t < TOKENS; t++) {
        for (uint32_t i = 0; i < h; i++) {
            x[i] = (float)((int64_t)(hash_mix(seed * 1000003u + t * 977u + i) % 4001) - 2000) /
                   1000.0f;
        }
        reference.act_pack(dtype, x, h, b->rows + t * b->row_bytes);
        choice[t * TOP_K] = (uint32_t)(hash_mix(seed + t) % e);
        choice[t * TOP_K + 1] = (choice[t * TOP_K] + 1) % e;
    }
    free(x);
    for (uint32_t expert = 0; expert < e; expert++) {
        const uint32_t before = b->row_count;
        for (uint32_t s = 0; s < TOKENS * TOP_K; s++) {
            if (choice[s] != expert) continue;
            b->weights[b->row_count] = 0.25f + 0.5f * (float)(s % TOP_K);
            b->slots[b->row_count++] = s;
        }
        if (b->row_count > before)
            b->experts[b->expert_count++] = (wire_expert){expert, b->row_count - before};
    }
}

static dispatch_view
view_of(const batch *b, enum wire_mode mode, uint32_t layer)
{
    return (dispatch_view){.hdr = {.layer = layer,
                                   .mode = mode,
                                   .token_count = TOKENS,
                                   .row_count = b->row_count,
                                   .expert_count = b->expert_count},
                           .experts = b->experts,
                           .row_slots = b->slots,
                           .weights = mode == WIRE_TP ? b->weights : NULL,
                           .rows = b->rows,
                           .row_bytes = b->row_bytes,
                           .results = b->results,
                           .result_stride = b->stride,
                           .top_k = TOP_K};
}

static void
free_batch(batch *b)
{
    free(b->rows);
    free(b->results);
}

static void
run(const expert_store *store, const kernel_table *k, pool *p, const dispatch_view *views,
    uint32_t count)
{
    ffn *f;
    cr_assert_eq(ffn_create(&f, k, p, expert_store_layout(store), count * TOKENS * TOP_K, 8,
                            config->num_experts),
                 MOE_OK);
    cr_assert_eq(ffn_group(f, views, count), count);
    cr_assert_eq(ffn_run(f, store, views, count), WIRE_STATUS_OK);
    ffn_free(f);
}

/* One row by the reference kernels alone; bf16 products round as their tier does, so there the
 * tier's own kernels take it, a single row on one thread. */
static void
expected_row(const expert_store *store, moe_dtype dtype, uint32_t layer, uint32_t expert,
             const char *row, float *out)
{
    const expert_layout *l = expert_store_layout(store);
    const uint32_t width = l->width_end - l->width_begin;
    const char *slot = expert_store_slot(store, layer, expert);
    const kernel_table *alone = dtype == DTYPE_BF16 ? &kernels : &reference;
    float *hidden = aligned_alloc(64, pad_k(width) * sizeof(float));
    char *act = aligned_alloc(64, act_row_bytes(dtype, width));
    memset(hidden, 0, pad_k(width) * sizeof(float));
    const gemm_args up = {.w = slot,
                          .k = l->hidden,
                          .tile_end = 2 * tile_count(width),
                          .a = row,
                          .a_stride = 64,
                          .m = 1,
                          .out = hidden,
                          .out_stride = pad_k(width)};
    alone->gemm_silu[dtype](&up);
    reference.act_pack(dtype, hidden, width, act);
    const gemm_args down = {.w = slot + l->gate_up_bytes,
                            .k = width,
                            .tile_end = tile_count(l->hidden),
                            .a = act,
                            .a_stride = 64,
                            .m = 1,
                            .out = out,
                            .out_stride = round_up_u32(l->hidden, TILE_N)};
    alone->gemm[dtype](&down);
    free(hidden);
    free(act);
}

Test(ffn, result_rows_are_the_experts_arithmetic)
{
    for (int d = 0; d < DTYPE_COUNT; d++) {
        const moe_dtype dtype = (moe_dtype)d;
        expert_store *store = make_store(dtype, 0, 1);
        batch b;
        make_batch(&b, dtype, 3);
        const dispatch_view view = view_of(&b, WIRE_EP, 1);
        run(store, &kernels, three_threads, &view, 1);
        float *want = aligned_alloc(64, b.stride * sizeof *want);
        for (uint32_t e = 0, r = 0; e < b.expert_count; e++) {
            for (uint32_t i = 0; i < b.experts[e].row_count; i++, r++) {
                expected_row(store, dtype, 1, b.experts[e].expert,
                             b.rows + b.slots[r] / TOP_K * b.row_bytes, want);
                cr_assert_eq(
                    memcmp(b.results + r * b.stride, want, config->hidden_size * sizeof(float)), 0,
                    "%s: row %u", dtype_name(dtype), r);
            }
        }
        free(want);
        free_batch(&b);
        expert_store_free(store);
    }
}

Test(ffn, grouping_and_threads_change_no_bit)
{
    for (int d = 0; d < DTYPE_COUNT; d++) {
        const moe_dtype dtype = (moe_dtype)d;
        expert_store *store = make_store(dtype, 0, 1);
        batch alone[3], together[3];
        dispatch_view views[3];
        for (uint32_t i = 0; i < 3; i++) {
            make_batch(&alone[i], dtype, i);
            make_batch(&together[i], dtype, i);
            const dispatch_view view = view_of(&alone[i], WIRE_EP, 0);
            run(store, &kernels, one_thread, &view, 1);
            views[i] = view_of(&together[i], WIRE_EP, 0);
        }
        run(store, &kernels, three_threads, views, 3);
        for (uint32_t i = 0; i < 3; i++) {
            cr_expect_eq(memcmp(alone[i].results, together[i].results,
                                alone[i].row_count * alone[i].stride * sizeof(float)),
                         0, "%s: view %u", dtype_name(dtype), i);
            free_batch(&alone[i]);
            free_batch(&together[i]);
        }
        expert_store_free(store);
    }
}

/* Tensor parallel: the ranks' rows, added in rank order, are the weighted sum of the experts' rows,
 * within rounding; a rank with an empty slice adds zeros. */
Test(ffn, slices_add_up_to_the_whole)
{
    batch whole;
    make_batch(&whole, DTYPE_F32, 5);
    expert_store *store = make_store(DTYPE_F32, 0, 1);
    const dispatch_view ep = view_of(&whole, WIRE_EP, 1);
    run(store, &kernels, one_thread, &ep, 1);
    float *want = calloc(TOKENS * whole.stride, sizeof *want);
    for (uint32_t r = 0; r < whole.row_count; r++) {
        for (uint32_t i = 0; i < config->hidden_size; i++) {
            want[whole.slots[r] / TOP_K * whole.stride + i] +=
                whole.weights[r] * whole.results[r * whole.stride + i];
        }
    }
    expert_store_free(store);

    for (uint32_t ranks = 1; ranks <= 3; ranks++) {
        float *sum = calloc(TOKENS * whole.stride, sizeof *sum);
        for (uint32_t rank = 0; rank < ranks; rank++) {
            batch part;
            make_batch(&part, DTYPE_F32, 5);
            memset(part.results, 0xff, TOKENS * part.stride * sizeof(float)); /* NaN */
            store = make_store(DTYPE_F32, rank, ranks);
            const dispatch_view tp = view_of(&part, WIRE_TP, 1);
            run(store, &kernels, three_threads, &tp, 1);
            for (uint32_t t = 0; t < TOKENS; t++) {
                for (uint32_t i = 0; i < config->hidden_size; i++) {
                    sum[t * part.stride + i] += part.results[t * part.stride + i];
                }
            }
            free_batch(&part);
            expert_store_free(store);
        }
        for (uint32_t i = 0; i < TOKENS * whole.stride; i++) {
            cr_assert_leq(fabsf(sum[i] - want[i]), 1e-4f, "%u ranks, element %u", ranks, i);
        }
        free(sum);
    }
    free(want);
    free_batch(&whole);
}

Test(ffn, an_expert_that_is_not_hosted_is_said_so)
{
    expert_layout layout;
    errbuf eb = {{0}};
    const uint32_t only[] = {0};
    expert_store *store;
    expert_layout_init(&layout, DTYPE_F32, config, 0, config->intermediate_size);
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, only, 1, one_thread, NULL, &eb),
                 MOE_OK);
    batch b;
    make_batch(&b, DTYPE_F32, 1);
    const dispatch_view view = view_of(&b, WIRE_EP, 0);
    ffn *f;
    cr_assert_eq(
        ffn_create(&f, &kernels, one_thread, &layout, TOKENS * TOP_K, 8, config->num_experts),
        MOE_OK);
    cr_expect_eq(ffn_run(f, store, &view, 1), WIRE_STATUS_NOT_HOSTED);
    ffn_free(f);
    free_batch(&b);
    expert_store_free(store);
}

Test(ffn, a_group_holds_what_fits_and_one_layer_only)
{
    expert_layout layout;
    expert_layout_init(&layout, DTYPE_F32, config, 0, config->intermediate_size);
    ffn *f;
    cr_assert_eq(ffn_create(&f, &kernels, one_thread, &layout, 10, 3, config->num_experts), MOE_OK);
    dispatch_view v[5] = {{.hdr = {.row_count = 4}},
                          {.hdr = {.row_count = 6}},
                          {.hdr = {.row_count = 1}},
                          {.hdr = {.layer = 1}},
                          {.hdr = {.layer = 1}}};
    cr_expect_eq(ffn_group(f, v, 5), 2, "4 + 6 rows fill it");
    cr_expect_eq(ffn_group(f, v + 2, 3), 1, "the next is of another layer");
    v[0].hdr.row_count = 0;
    v[1].hdr.row_count = 0;
    v[3].hdr.layer = 0;
    cr_expect_eq(ffn_group(f, v, 4), 3, "at most 3 views");
    ffn_free(f);
}
