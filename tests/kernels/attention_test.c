/* attention: every tier against the definition, the definition against doubles, and that chunking,
 * batching, the blocks' places and what lies in invisible places leave no trace. */
#include <criterion/criterion.h>
#include <math.h>

#include "tests/kernels/support.h"

TestSuite(attention, .timeout = 100);

typedef struct shape {
    uint32_t kv_heads, group, head_dim, window, tokens;
} shape;

/* A cache of one sequence, its rows' queries, and the keys and values as the cache holds them. */
typedef struct scene {
    moe_dtype dtype;
    shape s;
    uint32_t blocks;
    char *cache;
    size_t stride;
    uint32_t *table;
    float *k, *v; /* [tokens][kv_heads][head_dim] */
    float *q;     /* [tokens][heads][head_dim] */
    float *out;
    float *scratch;
} scene;

static size_t
row_floats(const scene *c)
{
    return (size_t)c->s.kv_heads * c->s.group * c->s.head_dim;
}

/* What the cache makes of one token's keys or values of a head. */
static void
round_as_cache(moe_dtype dtype, float *x, uint32_t n)
{
    float max = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    for (uint32_t i = 0; i < n; i++) {
        if (dtype == DTYPE_BF16) x[i] = bf16_to_float(bf16_from_float(x[i]));
        if (dtype == DTYPE_INT8 && max > 0) x[i] = rintf(x[i] * (127.0f / max)) * (max / 127.0f);
    }
}

static void
store_all(scene *c)
{
    kernel_table k;
    kernel_table_init(&k, cpu_flags());
    const size_t row = (size_t)c->s.kv_heads * c->s.head_dim;
    for (uint32_t t = 0; t < c->s.tokens; t++) {
        char *block = c->cache + c->table[t / KV_BLOCK_TOKENS] * c->stride;
        k.kv_store(c->dtype, block, t % KV_BLOCK_TOKENS, c->s.kv_heads, c->s.head_dim,
                   c->k + t * row, c->v + t * row);
    }
    for (size_t i = 0; i < c->s.tokens * row; i += c->s.head_dim) {
        round_as_cache(c->dtype, c->k + i, c->s.head_dim);
        round_as_cache(c->dtype, c->v + i, c->s.head_dim);
    }
}

/* step: block i lies at place i * step + 1 mod a prime-sized cache, so tables look permuted.
 * Everything that no token fills holds NaN (0xff bytes). */
static scene
scene_create(moe_dtype dtype, shape s, uint32_t step)
{
    scene c = {.dtype = dtype, .s = s};
    uint32_t seed = s.tokens * 7 + s.head_dim;
    const size_t row = (size_t)s.kv_heads * s.head_dim;
    c.blocks = (s.tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    c.stride = kv_block_bytes(dtype, s.kv_heads, s.head_dim);
    c.cache = buffer_alloc(101 * c.stride);
    memset(c.cache, 0xff, 101 * c.stride);
    c.table = buffer_alloc(c.blocks * sizeof *c.table);
    for (uint32_t i = 0; i < c.blocks; i++)
        c.table[i] = (i * step + 1) % 101;
    c.k = random_floats(s.tokens * row, 2, &seed);
    c.v = random_floats(s.tokens * row, 3, &seed);
    c.q = random_floats(s.tokens * row_floats(&c), 2, &seed);
    c.out = floats_alloc(s.tokens * row_floats(&c));
    c.scratch = floats_alloc(attn_scratch_floats(s.head_dim));
    store_all(&c);
    return c;
}

static void
scene_free(scene *c)
{
    free(c->cache), free(c->table), free(c->k), free(c->v), free(c->q), free(c->out);
    free(c->scratch);
}

/* Rows first .. first + rows - 1 of all heads, into out (laid out as c->out). */
static void
run_rows(const kernel_table *k, const scene *c, uint32_t first, uint32_t rows, float *out)
{
    for (uint32_t h = 0; h < c->s.kv_heads; h++) {
        k->attention(&(attn_args){
            .kv_dtype = c->dtype,
            .blocks = c->cache,
            .block_stride = c->stride,
            .block_table = c->table,
            .heads = c->s.kv_heads * c->s.group,
            .kv_heads = c->s.kv_heads,
            .head_dim = c->s.head_dim,
            .window = c->s.window,
            .scale = 1.0f / sqrtf((float)c->s.head_dim),
            .first_pos = first,
            .rows = rows,
            .kv_head = h,
            .q = c->q + first * row_floats(c),
            .q_stride = row_floats(c),
            .out = out + first * row_floats(c),
            .out_stride = row_floats(c),
            .scratch = c->scratch,
        });
    }
}

/* All rows in chunks of at most `chunk`. */
static void
run_chunked(const kernel_table *k, const scene *c, uint32_t chunk, float *out)
{
    for (uint32_t t = 0; t < c->s.tokens; t += chunk)
        run_rows(k, c, t, c->s.tokens - t < chunk ? c->s.tokens - t : chunk, out);
}

/* Softmax attention in doubles of one row and head; *size bounds |v|. */
static void
oracle(const scene *c, uint32_t t, uint32_t head, double *out)
{
    const uint32_t d = c->s.head_dim, kv = head / c->s.group;
    const uint32_t first = c->s.window && t + 1 > c->s.window ? t + 1 - c->s.window : 0;
    const float *q = c->q + t * row_floats(c) + (size_t)head * d;
    double sum = 0, scores[700], max = -INFINITY;
    for (uint32_t j = first; j <= t; j++) {
        const float *k = c->k + ((size_t)j * c->s.kv_heads + kv) * d;
        scores[j] = 0;
        for (uint32_t i = 0; i < d; i++)
            scores[j] += (double)q[i] * k[i];
        scores[j] /= sqrt((double)d);
        max = fmax(max, scores[j]);
    }
    for (uint32_t i = 0; i < d; i++)
        out[i] = 0;
    for (uint32_t j = first; j <= t; j++) {
        const double p = exp(scores[j] - max);
        const float *v = c->v + ((size_t)j * c->s.kv_heads + kv) * d;
        sum += p;
        for (uint32_t i = 0; i < d; i++)
            out[i] += p * v[i];
    }
    for (uint32_t i = 0; i < d; i++)
        out[i] /= sum;
}

static void
expect_tiers_equal(const scene *c, uint32_t chunk)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    const size_t count = c->s.tokens * row_floats(c);
    float *want = floats_alloc(count);
    run_chunked(&ref, c, c->s.tokens, want);
    for (int tier = TIER_AVX2; tier < TIER_COUNT; tier++) {
        if (!tier_init(&k, tier)) continue;
        memset(c->out, 0x33, count * sizeof(float));
        run_chunked(&k, c, chunk, c->out);
        cr_assert(same_bits(want, c->out, count), "tier %s %s tokens %u group %u d %u window %u",
                  k.tier, dtype_name(c->dtype), c->s.tokens, c->s.group, c->s.head_dim,
                  c->s.window);
    }
    free(want);
}

/* Scores up to 4 sqrt(d) carry an error of d units each, which exp passes on; sums add theirs.  An
 * int8 cache adds half a step of the query's fixed point in each of d products, and half a step of
 * the weights' in each token of a split. */
static double
tolerance(const scene *c)
{
    const double d = c->s.head_dim, tokens = c->s.tokens;
    double score = (d + 4) * UNIT * 4 * sqrt(d), sum = (tokens + 20) * UNIT;
    if (c->dtype == DTYPE_INT8) {
        score += 0.5 * 2 / attn_query_max(c->s.head_dim) * 2 * sqrt(d);
        sum += 0.5 / KV_VALUE_WEIGHT_MAX * fmin(tokens, KV_SPLIT_TOKENS);
    }
    return 3.0 * (2 * score + sum);
}

static void
expect_near_oracle(const kernel_table *k, const scene *c)
{
    double want[256];
    run_chunked(k, c, c->s.tokens, c->out);
    for (uint32_t t = 0; t<c->s.tokens; t += t> 40 ? 7 : 1) {
        for (uint32_t h = 0; h < c->s.kv_heads * c->s.group; h++) {
            oracle(c, t, h, want);
            const float *got = c->out + t * row_floats(c) + (size_t)h * c->s.head_dim;
            for (uint32_t i = 0; i < c->s.head_dim; i++)
                cr_assert_float_eq(got[i], want[i], tolerance(c), "tier %s row %u head %u", k->tier,
                                   t, h);
        }
    }
}

Test(attention, one_case_worked_by_hand)
{
    /* Two tokens, d = 2.  q = (0, 0) weighs both values equally; the first row sees only itself. */
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        scene c = scene_create(DTYPE_F32, (shape){1, 1, 2, 0, 2}, 1);
        const float v[4] = {1, 2, 3, 6}, zero[4] = {0};
        memcpy(c.v, v, sizeof v);
        memcpy(c.q, zero, sizeof zero);
        store_all(&c);
        run_rows(&k, &c, 0, 2, c.out);
        cr_expect_eq(c.out[0], 1.0f);
        cr_expect_eq(c.out[1], 2.0f);
        cr_expect_eq(c.out[2], 2.0f);
        cr_expect_eq(c.out[3], 4.0f);
        scene_free(&c);
    }
}

Test(attention, kv_store_lays_keys_across_tokens_and_values_across_features)
{
    kernel_table k;
    kernel_table_init(&k, cpu_flags());
    const float key[4] = {1, 2, 3, 4}, value[4] = {5, 6, 7, 8}; /* 2 heads, d = 2 */
    float *f32 = buffer_alloc(kv_block_bytes(DTYPE_F32, 2, 2));
    uint16_t *bf16 = buffer_alloc(kv_block_bytes(DTYPE_BF16, 2, 2));
    k.kv_store(DTYPE_F32, f32, 3, 2, 2, key, value);
    k.kv_store(DTYPE_BF16, bf16, 3, 2, 2, key, value);
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t head = i / 2, feature = i % 2;
        cr_expect_eq(f32[head * 64 + feature * 16 + 3], key[i]);
        cr_expect_eq(f32[head * 64 + 32 + 3 * 2 + feature], value[i]);
        cr_expect_eq(bf16_to_float(bf16[head * 64 + 3 * 2 + feature]), key[i]);
        cr_expect_eq(bf16_to_float(bf16[head * 64 + 32 + (1 * 2 + feature) * 2 + 1]), value[i]);
    }
    free(f32), free(bf16);
}

Test(attention, kv_store_quantizes_keys_and_values_of_each_head_by_their_largest)
{
    kernel_table k;
    kernel_table_init(&k, cpu_flags());
    const float key[6] = {1, -2, 0.25f, 0, 0, 0}, value[6] = {5, 6, -7, 1e-38f, 0, 1e30f};
    const int8_t want_k[6] = {64, -127, 16, 0, 0, 0}, want_v[6] = {91, 109, -127, 0, 0, 127};
    cr_assert_eq(kv_head_bytes(DTYPE_INT8, 3), 256); /* 128 of scales, 64 of keys, 48 of values */
    char *block = buffer_alloc(kv_block_bytes(DTYPE_INT8, 2, 3));
    k.kv_store(DTYPE_INT8, block, 5, 2, 3, key, value);
    for (uint32_t head = 0; head < 2; head++) {
        const char *part = block + (size_t)head * 256;
        const float *scales = (const float *)(const void *)part;
        const int8_t *keys = (const int8_t *)part + 128, *values = (const int8_t *)part + 192;
        cr_expect_eq(scales[5], head == 0 ? 2.0f / 127.0f : 0.0f);
        cr_expect_eq(scales[16 + 5], head == 0 ? 7.0f / 127.0f : 1e30f / 127.0f);
        for (uint32_t i = 0; i < 3; i++) {
            cr_expect_eq(keys[(i / 2 * 16 + 5) * 2 + i % 2], want_k[head * 3 + i]);
            cr_expect_eq(values[(2 * 3 + i) * 2 + 1], want_v[head * 3 + i]);
        }
        cr_expect_eq(keys[(1 * 16 + 5) * 2 + 1], 0, "the pad of an odd head size");
    }
    free(block);
}

Test(attention, is_close_to_double_precision_at_every_length)
{
    static const uint32_t tokens[] = {1, 15, 16, 17, 255, 256, 257, 600};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (size_t i = 0; i < 3 * sizeof tokens / sizeof tokens[0]; i++) {
            scene c = scene_create((moe_dtype)(i % 3), (shape){1, 2, 8, 0, tokens[i / 3]}, 37);
            expect_near_oracle(&k, &c);
            scene_free(&c);
        }
    }
}

Test(attention, a_window_hides_what_is_older)
{
    static const uint32_t windows[] = {1, 2, 15, 16, 17, 100, 256, 300, 1000};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
            scene c = scene_create((moe_dtype)(i % 3), (shape){1, 1, 4, windows[i], 300}, 37);
            expect_near_oracle(&k, &c);
            scene_free(&c);
        }
    }
}

Test(attention, tiers_agree_at_every_length)
{
    skip_without_tiers();
    static const uint32_t tokens[] = {1, 2, 15, 16, 17, 33, 255, 256, 257, 600};
    for (size_t i = 0; i < 3 * sizeof tokens / sizeof tokens[0]; i++) {
        scene c = scene_create((moe_dtype)(i % 3), (shape){2, 2, 16, 0, tokens[i / 3]}, 37);
        expect_tiers_equal(&c, 64);
        scene_free(&c);
    }
}

Test(attention, tiers_agree_for_every_group_of_heads)
{
    skip_without_tiers();
    for (uint32_t group = 1; group <= 9; group++) {
        for (moe_dtype dtype = DTYPE_F32; dtype <= DTYPE_INT8; dtype++) {
            scene c = scene_create(dtype, (shape){2, group, 12, 0, 70}, 37);
            expect_tiers_equal(&c, group);
            scene_free(&c);
        }
    }
}

Test(attention, tiers_agree_for_every_head_size)
{
    skip_without_tiers();
    for (uint32_t d = 1; d <= 70; d++) {
        for (moe_dtype dtype = DTYPE_F32; dtype <= DTYPE_INT8; dtype++) {
            scene c = scene_create(dtype, (shape){3, 2, d, 0, 21}, 37);
            expect_tiers_equal(&c, 21);
            scene_free(&c);
        }
    }
}

Test(attention, tiers_agree_for_large_heads_over_several_splits)
{
    skip_without_tiers();
    static const uint32_t sizes[] = {96, 128, 256, 1100}; /* 1100: coarser queries, int8 */
    for (size_t i = 0; i < 3 * sizeof sizes / sizeof sizes[0]; i++) {
        cr_assert_leq((int64_t)attn_query_max(sizes[i / 3]) * sizes[i / 3] * 127, INT32_MAX);
        scene c = scene_create((moe_dtype)(i % 3), (shape){1, 4, sizes[i / 3], 0, 17}, 37);
        expect_tiers_equal(&c, 17);
        scene_free(&c);
    }
    for (moe_dtype dtype = DTYPE_F32; dtype <= DTYPE_INT8; dtype++) {
        scene c = scene_create(dtype, (shape){2, 4, 32, 0, 1100}, 37);
        kernel_table ref, k;
        kernel_table_init(&ref, 0);
        const size_t at = 1090 * row_floats(&c), count = 10 * row_floats(&c);
        float *want = floats_alloc(c.s.tokens * row_floats(&c));
        run_rows(&ref, &c, 1090, 10, want);
        for (int tier = TIER_AVX2; tier < TIER_COUNT; tier++) {
            if (!tier_init(&k, tier)) continue;
            run_rows(&k, &c, 1090, 10, c.out);
            cr_assert(same_bits(want + at, c.out + at, count), "tier %s %s", k.tier,
                      dtype_name(dtype));
        }
        free(want);
        scene_free(&c);
    }
}

Test(attention, tiers_agree_for_windows)
{
    skip_without_tiers();
    static const uint32_t windows[] = {1, 2, 3, 15, 16, 17, 100, 255, 256, 257, 300};
    for (size_t i = 0; i < 3 * sizeof windows / sizeof windows[0]; i++) {
        scene c = scene_create((moe_dtype)(i % 3),
                               (shape){1, (uint32_t)i % 5 + 1, 20, windows[i / 3], 600}, 37);
        expect_tiers_equal(&c, 50);
        scene_free(&c);
    }
}

Test(attention, chunks_and_single_rows_give_the_bits_of_the_whole)
{
    static const uint32_t chunks[] = {1, 3, 16, 100, 257};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (uint32_t run = 0; run < 6; run++) {
            const uint32_t window = run % 2 * 40;
            scene c = scene_create((moe_dtype)(run / 2), (shape){1, 3, 16, window, 290}, 37);
            const size_t count = c.s.tokens * row_floats(&c);
            float *whole = floats_alloc(count);
            run_chunked(&k, &c, c.s.tokens, whole);
            for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
                run_chunked(&k, &c, chunks[i], c.out);
                cr_assert(same_bits(whole, c.out, count), "tier %s chunk %u window %u", k.tier,
                          chunks[i], window);
            }
            free(whole);
            scene_free(&c);
        }
    }
}

Test(attention, the_place_of_blocks_does_not_matter)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        scene a = scene_create(DTYPE_F32, (shape){2, 2, 16, 0, 300}, 1);
        scene b = scene_create(DTYPE_F32, (shape){2, 2, 16, 0, 300}, 59);
        run_chunked(&k, &a, 300, a.out);
        run_chunked(&k, &b, 300, b.out);
        cr_expect(same_bits(a.out, b.out, a.s.tokens * row_floats(&a)));
        scene_free(&a);
        scene_free(&b);
    }
}

/* Positions whose keys are overwritten by NaN after the window has passed, and those not yet
 * written, must not reach the result; nor may a block outside the window be looked up. */
Test(attention, invisible_places_are_not_used)
{
    for (int run = 0; run < 3 * TIER_COUNT; run++) {
        kernel_table k;
        if (!tier_init(&k, run / 3)) continue;
        scene c = scene_create((moe_dtype)(run % 3), (shape){1, 4, 16, 30, 290}, 37);
        const size_t last = 289 * row_floats(&c), count = row_floats(&c);
        float *want = floats_alloc(count);
        run_rows(&k, &c, 289, 1, c.out);
        memcpy(want, c.out + last, count * sizeof *want);

        float nan[16];
        memset(nan, 0xff, sizeof nan);
        for (uint32_t t = 0; t < 260; t++) {
            char *block = c.cache + c.table[t / KV_BLOCK_TOKENS] * c.stride;
            k.kv_store(c.dtype, block, t % KV_BLOCK_TOKENS, 1, 16, nan, nan);
            float *scales = (float *)(void *)block;
            if (c.dtype == DTYPE_INT8) scales[t % 16] = scales[16 + t % 16] = nan[0];
        }
        for (uint32_t b = 0; b < 260 / KV_BLOCK_TOKENS; b++)
            c.table[b] = UINT32_MAX; /* reading there would fault */
        run_rows(&k, &c, 289, 1, c.out);
        cr_expect(same_bits(want, c.out + last, count), "tier %s", k.tier);
        free(want);
        scene_free(&c);
    }
}

/* Row 89 sees keys 60..89, row 90 keys 61..90. */
Test(attention, what_only_a_neighbour_in_the_call_sees_leaves_no_trace)
{
    for (int run = 0; run < 2 * TIER_COUNT; run++) {
        kernel_table k;
        if (!tier_init(&k, run / 2)) continue;
        scene c = scene_create((moe_dtype)(run % 2), (shape){1, 4, 16, 30, 100}, 37);
        const size_t at = 90 * row_floats(&c), count = row_floats(&c);
        float *want = floats_alloc(100 * count), infinite[16];
        for (int i = 0; i < 16; i++)
            infinite[i] = INFINITY;
        k.kv_store(c.dtype, c.cache + c.table[60 / 16] * c.stride, 60 % 16, 1, 16,
                   c.k + (size_t)60 * 16, infinite);
        run_rows(&k, &c, 90, 1, want);
        run_rows(&k, &c, 89, 2, c.out);
        cr_expect(same_bits(want + at, c.out + at, count), "tier %s", k.tier);
        cr_expect(isfinite(c.out[at]) && !isfinite(c.out[at - count]));
        free(want);
        scene_free(&c);
    }
}

Test(attention, extreme_scores_stay_finite_and_equal)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    for (int run = 0; run < 3 * TIER_COUNT; run++) {
        if (!tier_init(&k, run / 3)) continue;
        scene c = scene_create((moe_dtype)(run % 3), (shape){1, 2, 16, 0, 600}, 37);
        const size_t count = c.s.tokens * row_floats(&c);
        float *want = floats_alloc(count);
        for (size_t i = 0; i < count; i++)
            c.q[i] *= i % 3 ? 1e4f : 1e-20f;
        run_chunked(&ref, &c, 600, want);
        run_chunked(&k, &c, 600, c.out);
        cr_expect(same_bits(want, c.out, count), "tier %s", k.tier);
        for (size_t i = 0; i < count; i++)
            cr_assert(isfinite(c.out[i]) && fabsf(c.out[i]) < 3.01f);
        free(want);
        scene_free(&c);
    }
}

Test(attention, no_rows_write_nothing)
{
    kernel_table k;
    kernel_table_init(&k, cpu_flags());
    scene c = scene_create(DTYPE_F32, (shape){1, 1, 4, 0, 1}, 1);
    float canary;
    memcpy(&canary, c.out, sizeof canary);
    run_rows(&k, &c, 0, 0, c.out);
    cr_expect(same_bits(&canary, c.out, 1));
    scene_free(&c);
}
