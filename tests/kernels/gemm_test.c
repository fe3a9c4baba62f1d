/* gemm: every tier against the definition, the definition against doubles, and that neither the
 * other rows nor the range of tiles reach a row's bits. */
#include <criterion/criterion.h>
#include <math.h>

#include "tests/kernels/support.h"

TestSuite(gemm, .timeout = 60);

/* A product and everything about it, in exact-sized buffers. */
typedef struct problem {
    moe_dtype dtype;
    uint32_t n, k, m; /* n: columns of w; gemm_silu sees them as tile pairs */
    float *w, *a;     /* [n][k], [m][k], as the packed form represents them */
    char *packed, *acts;
    float *out; /* [m][columns] */
    uint32_t columns;
} problem;

static float *
tile_scales(char *tile, uint32_t group)
{
    const size_t block = GROUP_K * TILE_N + TILE_N * sizeof(float);
    return (float *)(void *)(tile + group * block + GROUP_K * TILE_N);
}

/* Where weight k of lane n of a tile lies, for int8: q + 128. */
static uint8_t *
tile_byte(char *tile, uint32_t n, uint32_t k)
{
    const size_t block = GROUP_K * TILE_N + TILE_N * sizeof(float);
    const uint32_t g = k % GROUP_K;
    return (uint8_t *)tile + k / GROUP_K * block + g / 4 * TILE_N * 4 + n * 4 + g % 4;
}

/* int4: the half scale of lane n and group g of 32, and its nibble k. */
static uint16_t *
tile_half(char *tile, uint32_t n, uint32_t g)
{
    char *block = tile + g / 2 * 576;
    return (uint16_t *)(void *)(block + 512) + g % 2 * 16 + n;
}

static void
set_nibble(char *tile, uint32_t n, uint32_t k, int q)
{
    const uint32_t in = k % 32; /* of the group */
    uint8_t *byte =
        (uint8_t *)tile + k / 64 * 576 + k % 64 / 32 * 256 + in % 16 / 4 * 64 + n * 4 + in % 4;
    if (in < 16)
        *byte = (uint8_t)((*byte & 0xf0) | (q + 8));
    else
        *byte = (uint8_t)((*byte & 0x0f) | (q + 8) << 4);
}

static void
pack_weight(problem *p, uint32_t n, uint32_t k)
{
    char *tile = p->packed + n / TILE_N * tile_bytes(p->dtype, p->k);
    const uint32_t lane = n % TILE_N;
    float *v = p->w + (size_t)n * p->k + k;
    if (p->dtype == DTYPE_F32) {
        ((float *)(void *)tile)[(size_t)k * TILE_N + lane] = *v;
    } else if (p->dtype == DTYPE_BF16) {
        const uint16_t b = bf16_from_float(*v);
        ((uint16_t *)(void *)tile)[(size_t)(k / 2 * TILE_N + lane) * 2 + k % 2] = b;
        *v = bf16_to_float(b);
    } else if (p->dtype == DTYPE_INT4) {
        const int q = (int)lrintf(*v * 7.5f - 0.5f);
        set_nibble(tile, lane, k, q);
        *v = (float)q * half_to_float(*tile_half(tile, lane, k / 32));
    } else {
        const int q = (int)lrintf(*v * 127.0f);
        *tile_byte(tile, lane, k) = (uint8_t)(q + 128);
        *v = (float)q * tile_scales(tile, k / GROUP_K)[lane];
    }
}

static void
pack_weights(problem *p, uint32_t *rng)
{
    const size_t bytes = packed_bytes(p->dtype, p->n, p->k);
    p->packed = buffer_alloc(bytes);
    memset(p->packed, 0, bytes);
    for (uint32_t n = 0; p->dtype == DTYPE_INT4 && n < p->n; n++) {
        char *tile = p->packed + n / TILE_N * tile_bytes(p->dtype, p->k);
        for (uint32_t k = 0; k < pad_k(p->k); k++)
            set_nibble(tile, n % TILE_N, k, 0);
        /* Normal and subnormal halves of both signs. */
        for (uint32_t g = 0; g < pad_k(p->k) / 32; g++)
            *tile_half(tile, n % TILE_N, g) =
                (uint16_t)((rng_next(rng) & 0x8000) | (rng_next(rng) % 0x3000));
    }
    for (uint32_t n = 0; p->dtype == DTYPE_INT8 && n < p->n; n++) {
        char *tile = p->packed + n / TILE_N * tile_bytes(p->dtype, p->k);
        for (uint32_t g = 0; g < pad_k(p->k) / GROUP_K; g++)
            tile_scales(tile, g)[n % TILE_N] = (rng_float(rng) + 1.5f) * 0.01f;
    }
    for (uint32_t n = 0; n < p->n; n++) {
        for (uint32_t k = 0; k < p->k; k++)
            pack_weight(p, n, k);
    }
}

static void
pack_acts(problem *p)
{
    kernel_table ref;
    kernel_table_init(&ref, 0);
    const size_t stride = act_row_bytes(p->dtype, p->k);
    p->acts = buffer_alloc(stride * p->m);
    for (uint32_t r = 0; r < p->m; r++) {
        char *row = p->acts + r * stride;
        float *a = p->a + (size_t)r * p->k;
        ref.act_pack(p->dtype, a, p->k, row);
        const float *scale = (const float *)(const void *)(row + pad_k(p->k));
        for (uint32_t k = 0; act_is_int8(p->dtype) && k < p->k; k++)
            a[k] = (float)((int8_t *)row)[k] * scale[k / GROUP_K];
    }
}

static problem
problem_create(moe_dtype dtype, uint32_t n, uint32_t k, uint32_t m, float size, uint32_t seed)
{
    problem p = {.dtype = dtype, .n = n, .k = k, .m = m};
    p.w = random_floats((size_t)n * k, act_is_int8(dtype) ? 1.0f : size, &seed);
    p.a = random_floats((size_t)m * k, size, &seed);
    pack_weights(&p, &seed);
    pack_acts(&p);
    p.columns = tile_count(n) * TILE_N;
    p.out = floats_alloc((size_t)m * p.columns);
    return p;
}

static void
problem_free(problem *p)
{
    free(p->w);
    free(p->a);
    free(p->packed);
    free(p->acts);
    free(p->out);
}

static gemm_args
args_of(const problem *p, float *out)
{
    return (gemm_args){
        .w = p->packed,
        .k = p->k,
        .tile_end = tile_count(p->n),
        .a = p->acts,
        .a_stride = act_row_bytes(p->dtype, p->k),
        .m = p->m,
        .out = out,
        .out_stride = p->columns,
    };
}

static gemm_fn *
pick(const kernel_table *k, moe_dtype dtype, bool silu)
{
    return silu ? k->gemm_silu[dtype] : k->gemm[dtype];
}

/* Every tier above ref gives ref's bits for both products (silu where the tiles make pairs). */
static void
expect_tiers_equal(const problem *p, const uint32_t *rows, uint32_t m)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    const size_t count = (size_t)m * p->columns;
    float *want = floats_alloc(count), *got = floats_alloc(count);
    for (int tier = TIER_AVX2; tier < TIER_COUNT; tier++) {
        if (!tier_init(&k, tier)) continue;
        if (p->dtype == DTYPE_BF16 && strcmp(k.bf16_tier, ref.bf16_tier) != 0) continue;
        for (int silu = 0; silu <= (tile_count(p->n) % 2 == 0); silu++) {
            gemm_args args = args_of(p, want);
            args.rows = rows;
            args.m = m;
            memset(want, 0x11, count * sizeof *want); /* what neither writes is equal too */
            memset(got, 0x11, count * sizeof *got);
            pick(&ref, p->dtype, silu)(&args);
            args.out = got;
            pick(&k, p->dtype, silu)(&args);
            cr_assert(same_bits(want, got, count), "tier %s %s silu %d n %u k %u m %u", k.tier,
                      dtype_name(p->dtype), silu, p->n, p->k, m);
        }
    }
    free(want);
    free(got);
}

Test(gemm, one_case_worked_by_hand)
{
    /* Features (1, 2, 3) and (-1, 0.5, 4) times the row (2, 4, 0.25). */
    const float w[2][3] = {{1, 2, 3}, {-1, 0.5f, 4}}, a[3] = {2, 4, 0.25f};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        for (moe_dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            kernel_table k;
            if (!tier_init(&k, tier)) continue;
            problem p = problem_create(dtype, 2, 3, 1, 1, 1);
            memcpy(p.w, w, sizeof w);
            for (uint32_t i = 0; i < 6; i++)
                pack_weight(&p, i / 3, i % 3);
            k.act_pack(dtype, a, 3, p.acts);
            const gemm_args args = args_of(&p, p.out);
            k.gemm[dtype](&args);
            cr_expect_eq(p.out[0], 10.75f);
            cr_expect_eq(p.out[1], 1.0f);
            for (uint32_t n = 2; n < TILE_N; n++)
                cr_expect_eq(p.out[n], 0.0f, "column %u beyond N", n);
            problem_free(&p);
        }
    }
}

Test(gemm, tiers_agree_for_every_small_shape)
{
    skip_without_tiers();
    for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (uint32_t i = 1; i <= 70; i++) {
            problem p = problem_create(dtype, 71 - i, i, 5, 1, i);
            expect_tiers_equal(&p, NULL, p.m);
            problem_free(&p);
        }
    }
}

Test(gemm, tiers_agree_for_every_number_of_rows)
{
    skip_without_tiers();
    static const uint32_t ms[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,   10,  11,  12,  13,
                                  15, 16, 17, 24, 25, 47, 48, 49, 64, 101, 143, 144, 145, 300};
    for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (size_t i = 0; i < sizeof ms / sizeof ms[0]; i++) {
            problem p = problem_create(dtype, 96, 70, ms[i], 1, ms[i]);
            expect_tiers_equal(&p, NULL, p.m);
            problem_free(&p);
        }
    }
}

Test(gemm, tiers_agree_for_long_and_odd_sizes)
{
    skip_without_tiers();
    static const uint32_t shapes[][3] = {/* n, k, m */
                                         {96, 251, 7},  {251, 96, 3},  {28, 28, 13},
                                         {28, 512, 4},  {64, 600, 1},  {48, 600, 2},
                                         {32, 1100, 6}, {16, 2304, 5}, {128, 1025, 1}};
    for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            const uint32_t *s = shapes[i];
            problem p = problem_create(dtype, s[0], s[1], s[2], 1, 77 + (uint32_t)i);
            expect_tiers_equal(&p, NULL, p.m);
            problem_free(&p);
        }
    }
}

Test(gemm, tiers_agree_on_rows_by_index_that_repeat)
{
    skip_without_tiers();
    static const uint32_t rows[] = {4, 0, 4, 4, 2, 6, 1, 0, 3};
    for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        problem p = problem_create(dtype, 64, 130, 7, 1, 5);
        expect_tiers_equal(&p, rows, sizeof rows / sizeof rows[0]);
        problem_free(&p);
    }
}

Test(gemm, tiers_agree_on_huge_and_tiny_values)
{
    skip_without_tiers();
    static const float sizes[] = {0.0f, 1e-30f, 1e-18f, 1e15f, 1e18f};
    for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            problem p = problem_create(dtype, 64, 96, 5, sizes[i], 9);
            expect_tiers_equal(&p, NULL, p.m);
            problem_free(&p);
        }
    }
}

/* An empty slice of a tensor-parallel worker. */
Test(gemm, no_input_features_give_zeros)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int which = 0; which < 2 * DTYPE_COUNT; which++) {
            problem p = problem_create((moe_dtype)(which / 2), 32, 0, 5, 1, 1);
            const gemm_args args = args_of(&p, p.out);
            pick(&k, p.dtype, which % 2)(&args);
            for (uint32_t i = 0; i < 5 * 32; i++)
                cr_assert(p.out[i] == 0.0f || (which % 2 && i % 32 >= 16), "tier %s", k.tier);
            problem_free(&p);
        }
    }
}

Test(gemm, int8_products_of_the_largest_values_do_not_saturate)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int sign = 0; sign < 4; sign++) {
            const int wq = sign & 1 ? -127 : 127, aq = sign & 2 ? -127 : 127;
            problem p = problem_create(DTYPE_INT8, 16, 128, 5, 1, 3);
            for (uint32_t i = 0; i < 16 * 128; i++)
                *tile_byte(p.packed, i % 16, i / 16) = (uint8_t)(wq + 128);
            float row[128];
            for (uint32_t i = 0; i < 128; i++)
                row[i] = (float)aq; /* a scale of 1 */
            for (uint32_t r = 0; r < 5; r++)
                k.act_pack(DTYPE_INT8, row, 128, p.acts + r * act_row_bytes(DTYPE_INT8, 128));
            for (uint32_t i = 0; i < 2 * 16; i++)
                tile_scales(p.packed, i / 16)[i % 16] = 1.0f;
            const gemm_args args = args_of(&p, p.out);
            k.gemm[DTYPE_INT8](&args);
            for (uint32_t i = 0; i < 5 * 16; i++)
                cr_expect_eq(p.out[i], (float)(128 * wq * aq), "tier %s", k.tier);
            problem_free(&p);
        }
    }
}

/* Every q at an end of its range, every activation at one of its own. */
Test(gemm, int4_products_of_the_largest_values_do_not_saturate)
{
    const size_t stride = act_row_bytes(DTYPE_INT4, 128);
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int sign = 0; sign < 4; sign++) {
            const int wq = sign & 1 ? -8 : 7, aq = sign & 2 ? -127 : 127;
            problem p = problem_create(DTYPE_INT4, 16, 128, 13, 1, 3);
            float row[128];
            for (uint32_t i = 0; i < 128; i++)
                row[i] = (float)aq; /* a scale of 1 */
            for (uint32_t r = 0; r < p.m; r++)
                k.act_pack(DTYPE_INT4, row, 128, p.acts + r * stride);
            for (uint32_t i = 0; i < 16 * 128; i++)
                set_nibble(p.packed, i % 16, i / 16, wq);
            for (uint32_t i = 0; i < 16 * 4; i++)
                *tile_half(p.packed, i % 16, i / 16) = 0xbc00; /* -1 */
            const gemm_args args = args_of(&p, p.out);
            k.gemm[DTYPE_INT4](&args);
            for (uint32_t i = 0; i < p.m * 16; i++)
                cr_expect_eq(p.out[i], (float)(-128 * wq * aq), "tier %s", k.tier);
            problem_free(&p);
        }
    }
}

/* A row computed alone equals the same row in any batch, on every tier. */
Test(gemm, the_number_of_rows_never_changes_a_row)
{
    static const uint32_t ms[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 64};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int which = 0; which < 2 * DTYPE_COUNT; which++) {
            const moe_dtype dtype = (moe_dtype)(which / 2);
            problem p = problem_create(dtype, 64, 321, 64, 1, 21);
            float *alone = floats_alloc((size_t)p.m * p.columns);
            gemm_fn *run = pick(&k, dtype, which % 2);
            const uint32_t columns = which % 2 ? p.columns / 2 : p.columns;
            for (uint32_t r = 0; r < p.m; r++) {
                gemm_args args = args_of(&p, alone + (size_t)r * p.columns);
                args.rows = &r;
                args.m = 1;
                run(&args);
            }
            for (size_t i = 0; i < sizeof ms / sizeof ms[0]; i++) {
                gemm_args args = args_of(&p, p.out);
                args.m = ms[i];
                run(&args);
                for (uint32_t r = 0; r < ms[i]; r++) {
                    const size_t at = (size_t)r * p.columns;
                    cr_assert(same_bits(p.out + at, alone + at, columns), "tier %s %s m %u row %u",
                              k.tier, dtype_name(dtype), ms[i], r);
                }
            }
            free(alone);
            problem_free(&p);
        }
    }
}

/* Cutting the tiles anywhere gives the same bits, and nothing outside the range is written. */
Test(gemm, the_range_of_tiles_never_changes_a_tile)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int which = 0; which < 2 * DTYPE_COUNT; which++) {
            const bool silu = which % 2;
            const moe_dtype dtype = (moe_dtype)(which / 2);
            problem p = problem_create(dtype, 16 * 14, 70, 5, 1, 8);
            const size_t count = (size_t)p.m * p.columns;
            float *part = floats_alloc(count);
            memset(p.out, 0x22, count * sizeof(float));
            gemm_args args = args_of(&p, p.out);
            pick(&k, dtype, silu)(&args);
            for (uint32_t begin = 0; begin < 14; begin += 2) {
                for (uint32_t end = begin; end <= 14; end += 2) {
                    memset(part, 0x22, count * sizeof(float));
                    args = args_of(&p, part);
                    args.tile_begin = begin;
                    args.tile_end = end;
                    pick(&k, dtype, silu)(&args);
                    const uint32_t wide = silu ? TILE_N / 2 : TILE_N;
                    for (size_t i = 0; i < count; i++) {
                        const uint32_t column = (uint32_t)(i % p.columns);
                        float untouched;
                        memset(&untouched, 0x22, sizeof untouched);
                        const bool inside = column >= begin * wide && column < end * wide;
                        cr_assert(same_bits(part + i, inside ? p.out + i : &untouched, 1),
                                  "tier %s tiles %u..%u column %u", k.tier, begin, end, column);
                    }
                }
            }
            free(part);
            problem_free(&p);
        }
    }
}

/* The true value and a bound on the error of a chain of K64 roundings (or one a group, with one
 * more for the product of scales): |error| <= steps * unit * sum |a w|. */
static void
oracle(const problem *p, uint32_t r, uint32_t n, double *value, double *bound)
{
    double sum = 0, size = 0;
    for (uint32_t k = 0; k < p->k; k++) {
        const double product = (double)p->a[(size_t)r * p->k + k] * p->w[(size_t)n * p->k + k];
        sum += product;
        size += fabs(product);
    }
    /* The int8 and int4 oracles multiply dequantized floats: two more roundings each. */
    const double steps = p->dtype == DTYPE_INT8   ? pad_k(p->k) / GROUP_K + 4
                         : p->dtype == DTYPE_INT4 ? pad_k(p->k) / GROUP_INT4 + 4
                                                  : pad_k(p->k) + 1;
    *value = sum;
    *bound = steps * UNIT * size * 1.01 + 1e-40;
}

Test(gemm, results_are_close_to_double_precision)
{
    static const uint32_t shapes[][3] = {{96, 251, 3}, {28, 70, 5}, {16, 1100, 2}, {64, 64, 6}};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (int i = 0; i < 4 * DTYPE_COUNT; i++) {
            const uint32_t *s = shapes[i % 4];
            problem p = problem_create((moe_dtype)(i / 4), s[0], s[1], s[2], 2, 99);
            const gemm_args args = args_of(&p, p.out);
            k.gemm[p.dtype](&args);
            for (uint32_t j = 0; j < p.m * p.n; j++) {
                double value, bound;
                oracle(&p, j / p.n, j % p.n, &value, &bound);
                /* vdpbf16ps rounds the rows to bfloat16, too. */
                if (p.dtype == DTYPE_BF16 && strcmp(k.bf16_tier, "avx2") != 0) bound *= 0x1p16;
                const double got = p.out[(size_t)(j / p.n) * p.columns + j % p.n];
                cr_assert(fabs(got - value) <= bound, "%s %s: %g for %g", k.tier,
                          dtype_name(p.dtype), got, value);
            }
            problem_free(&p);
        }
    }
}

/* silu(gate) * up of the plain product's own gate and up columns: a few roundings away. */
Test(gemm, silu_is_taken_of_the_gate_tile_and_multiplies_the_up_tile)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (moe_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
            problem p = problem_create(dtype, 96, 96, 9, 3, 31);
            gemm_args args = args_of(&p, p.out);
            k.gemm[dtype](&args);
            float *got = floats_alloc((size_t)p.m * p.columns);
            args.out = got;
            k.gemm_silu[dtype](&args);
            for (uint32_t i = 0; i < p.m * 48; i++) {
                const float *row = p.out + (size_t)(i / 48) * p.columns;
                const uint32_t column = i % 48;
                const double gate = row[column / 16 * 32 + column % 16];
                const double up = row[column / 16 * 32 + 16 + column % 16];
                const double want = gate / (1 + exp(-gate)) * up;
                cr_assert_float_eq(got[(size_t)(i / 48) * p.columns + column], want,
                                   fabs(want) * 8 * UNIT + 1e-36);
            }
            free(got);
            problem_free(&p);
        }
    }
}
