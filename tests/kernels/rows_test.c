/* rows: every tier against the definition bit by bit, the definition against doubles, and the
 * promises of rows.h one by one. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>

#include "tests/kernels/support.h"

TestSuite(rows, .timeout = 60);

static const uint32_t lengths[] = {96, 128, 251, 256, 500, 4096};
#define LENGTHS (70 + sizeof lengths / sizeof lengths[0])

/* All of 1..70, then some longer ones. */
static uint32_t
length(size_t i)
{
    return i < 70 ? (uint32_t)i + 1 : lengths[i - 70];
}

Test(rows, rmsnorm_agrees_with_ref_and_doubles)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        if (!tier_init(&k, tier)) continue;
        for (size_t i = 0; i < LENGTHS; i++) {
            const uint32_t n = length(i);
            uint32_t seed = n;
            float *x = random_floats(n, 3, &seed), *w = random_floats(n, 1, &seed);
            float *want = floats_alloc(n), *got = floats_alloc(n);
            ref.rmsnorm(x, w, 1e-5f, n, want);
            k.rmsnorm(x, w, 1e-5f, n, got);
            cr_assert(same_bits(want, got, n), "tier %s n %u", k.tier, n);
            double sum = 0;
            for (uint32_t j = 0; j < n; j++)
                sum += (double)x[j] * x[j];
            const double rstd = 1 / sqrt(sum / n + 1e-5);
            for (uint32_t j = 0; j < n; j++) {
                const double y = x[j] * rstd * w[j];
                cr_assert_float_eq(got[j], y, fabs(y) * (n / 16 + 12) * UNIT);
            }
            k.rmsnorm(x, w, 1e-5f, n, x);
            cr_assert(same_bits(want, x, n), "in place, n %u", n);
            free(x), free(w), free(want), free(got);
        }
    }
}

Test(rows, rmsnorm_of_zeros_is_zero_and_huge_rows_do_not_hang)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        float x[17] = {0}, w[17], y[17];
        for (int i = 0; i < 17; i++)
            w[i] = 1;
        k.rmsnorm(x, w, 1e-5f, 17, y);
        for (int i = 0; i < 17; i++)
            cr_expect_eq(y[i], 0.0f);
        for (int i = 0; i < 17; i++)
            x[i] = 1e18f;
        k.rmsnorm(x, w, 1e-5f, 17, y);
        cr_expect_float_eq(y[16], 1.0f, 1e-6);
    }
}

static void
expect_same_acts(const kernel_table *k, moe_dtype dtype, const float *x, uint32_t n)
{
    kernel_table ref;
    kernel_table_init(&ref, 0);
    const size_t bytes = act_row_bytes(dtype, n);
    char *want = buffer_alloc(bytes), *got = buffer_alloc(bytes);
    memset(got, 0x5a, bytes);
    ref.act_pack(dtype, x, n, want);
    k->act_pack(dtype, x, n, got);
    cr_assert_arr_eq(want, got, bytes, "tier %s %s n %u", k->tier, dtype_name(dtype), n);
    free(want), free(got);
}

Test(rows, act_pack_agrees_with_ref)
{
    static const float sizes[] = {1.0f, 0.0f, 1e-42f, 1e-37f, 1e-36f, 1e-30f, 1e30f, 3e38f};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (size_t i = 0; i < LENGTHS * DTYPE_COUNT; i++) {
            const uint32_t n = length(i / DTYPE_COUNT);
            uint32_t seed = n + 5;
            for (size_t s = 0; s < (n < 300 ? 8 : 1); s++) {
                float *x = random_floats(n, sizes[s], &seed);
                expect_same_acts(&k, (moe_dtype)(i % DTYPE_COUNT), x, n);
                free(x);
            }
        }
    }
}

Test(rows, act_pack_quantizes_as_worked_by_hand)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        /* A largest magnitude of 127 makes q = x: ties go to even, both ends are reached. */
        float x[66] = {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.49f, 126.5f};
        x[64] = 0; /* the second group holds zeros only */
        const int8_t q[10] = {127, -127, 0, 2, 2, 0, -2, -2, 3, 126};
        int8_t *out = buffer_alloc(act_row_bytes(DTYPE_INT8, 66));
        k.act_pack(DTYPE_INT8, x, 66, out);
        cr_expect_arr_eq(out, q, sizeof q);
        const float *scale = (const float *)(const void *)(out + 128);
        cr_expect_eq(scale[0], 1.0f);
        cr_expect_eq(scale[1], 0.0f);
        for (uint32_t i = 10; i < 128; i++)
            cr_expect_eq(out[i], 0);
        free(out);
    }
}

/* Rows are finite by contract, but -128 would break int8 products: not even a NaN may make one. */
Test(rows, act_pack_never_makes_minus_128)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        const float odd[4] = {NAN, -NAN, INFINITY, -INFINITY};
        for (int i = 0; i < 4; i++) {
            float x[64] = {1, -2, odd[i], 3};
            int8_t *out = buffer_alloc(act_row_bytes(DTYPE_INT8, 64));
            expect_same_acts(&k, DTYPE_INT8, x, 64);
            k.act_pack(DTYPE_INT8, x, 64, out);
            for (int j = 0; j < 64; j++)
                cr_assert_gt(out[j], -128);
            free(out);
        }
    }
}

Test(rows, act_pack_adds_up_q_per_group_of_32)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (uint32_t n = 1; n < 300; n += 7) {
            uint32_t seed = n;
            float *x = random_floats(n, 2, &seed);
            for (uint32_t i = 64; n > 128 && i < 128; i++)
                x[i] = n % 2 ? 3 : -3; /* the largest sums */
            int8_t *out = buffer_alloc(act_row_bytes(DTYPE_INT4, n));
            k.act_pack(DTYPE_INT4, x, n, out);
            const int16_t *sums = act_sums(out, pad_k(n));
            for (uint32_t g = 0; g < pad_k(n) / 32; g++) {
                int sum = 0;
                for (uint32_t i = 0; i < 32; i++)
                    sum += out[g * 32 + i];
                cr_assert_eq(sums[g], sum, "tier %s n %u group %u", k.tier, n, g);
            }
            free(x), free(out);
        }
    }
}

Test(rows, act_pack_stays_within_half_a_step)
{
    kernel_table k;
    kernel_table_init(&k, cpu_flags());
    uint32_t seed = 4;
    float *x = random_floats(256, 5, &seed);
    int8_t *out = buffer_alloc(act_row_bytes(DTYPE_INT8, 256));
    k.act_pack(DTYPE_INT8, x, 256, out);
    const float *scale = (const float *)(const void *)(out + 256);
    for (uint32_t i = 0; i < 256; i++)
        cr_expect_float_eq((double)out[i] * scale[i / 64], x[i], scale[i / 64] * 0.50002);
    free(x), free(out);
}

Test(rows, rope_agrees_with_ref_and_doubles)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        if (!tier_init(&k, tier)) continue;
        for (uint32_t d = 2; d <= 140; d += 2) {
            uint32_t seed = d;
            const uint32_t heads = 3, half = d / 2;
            float *x = random_floats(heads * d, 2, &seed), *angle = random_floats(half, 3, &seed);
            float *c = floats_alloc(half), *s = floats_alloc(half), *y = floats_alloc(heads * d);
            double *want = buffer_alloc(heads * d * sizeof *want);
            for (uint32_t i = 0; i < half; i++)
                c[i] = cosf(angle[i]), s[i] = sinf(angle[i]);
            for (uint32_t i = 0; i < heads * half; i++) {
                const uint32_t at = i / half * d + i % half;
                want[at] = (double)x[at] * c[i % half] - (double)x[at + half] * s[i % half];
                want[at + half] = (double)x[at + half] * c[i % half] + (double)x[at] * s[i % half];
            }
            memcpy(y, x, heads * d * sizeof *x);
            ref.rope(y, heads, d, c, s);
            k.rope(x, heads, d, c, s);
            cr_assert(same_bits(x, y, heads * d), "tier %s d %u", k.tier, d);
            for (uint32_t i = 0; i < heads * d; i++)
                cr_assert_float_eq(x[i], want[i], 4 * 3 * UNIT);
            free(x), free(angle), free(c), free(s), free(y), free(want);
        }
    }
}

Test(rows, add_and_combine_agree_with_ref)
{
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        if (!tier_init(&k, tier)) continue;
        for (size_t i = 0; i < LENGTHS; i++) {
            const uint32_t n = length(i), count = (uint32_t)(i % 8) + 1;
            uint32_t seed = n;
            float *rows[8], *y = random_floats(n, 2, &seed), *z = floats_alloc(n);
            float *weights = random_floats(8, 1, &seed);
            for (uint32_t j = 0; j < 8; j++)
                rows[j] = random_floats(n, 3, &seed);
            memcpy(z, y, n * sizeof *y);
            ref.combine(y, (const float *const *)rows, weights, count, n);
            k.combine(z, (const float *const *)rows, weights, count, n);
            cr_assert(same_bits(y, z, n), "combine: tier %s n %u k %u", k.tier, n, count);
            ref.row_add(y, rows[0], n);
            k.row_add(z, rows[0], n);
            cr_assert(same_bits(y, z, n), "add: tier %s n %u", k.tier, n);
            for (uint32_t j = 0; j < 8; j++)
                free(rows[j]);
            free(y), free(z), free(weights);
        }
    }
}

Test(rows, rows_may_start_at_any_float)
{
    skip_without_tiers();
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    kernel_table_init(&k, cpu_flags());
    uint32_t seed = 12;
    float *x = random_floats(80, 2, &seed), *w = random_floats(80, 2, &seed);
    float *want = floats_alloc(80), *got = floats_alloc(80);
    for (uint32_t at = 0; at < 9; at++) {
        ref.rmsnorm(x + at, w + 1, 1e-5f, 70, want + at);
        k.rmsnorm(x + at, w + 1, 1e-5f, 70, got + at);
        cr_assert(same_bits(want + at, got + at, 70));
        ref.row_add(want + at, x + 3, 70);
        k.row_add(got + at, x + 3, 70);
        cr_assert(same_bits(want + at, got + at, 70));
        expect_same_acts(&k, DTYPE_INT8, x + at, 70);
        ref.rope(want + at, 2, 34, x + 1, w + 3);
        k.rope(got + at, 2, 34, x + 1, w + 3);
        cr_assert(same_bits(want + at, got + at, 68));
    }
    free(x), free(w), free(want), free(got);
}

Test(rows, combine_weighs_and_adds_as_worked_by_hand)
{
    const float a[3] = {1, 2, 3}, b[3] = {10, 20, 30}, weights[2] = {0.5f, 0.25f};
    const float *rows[2] = {a, b};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        float y[3] = {100, 200, 300};
        k.combine(y, rows, weights, 2, 3);
        cr_expect_eq(y[0], 103.0f);
        cr_expect_eq(y[1], 206.0f);
        cr_expect_eq(y[2], 309.0f);
    }
}

Test(rows, gate_takes_the_most_probable_and_lower_ids_first_among_equals)
{
    const float logits[8] = {1, 3, 2, 3, -50, 3, 2, 0};
    const uint32_t want[8] = {1, 3, 5, 2, 6, 0, 7, 4};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (uint32_t top = 1; top <= 8; top++) {
            uint32_t ids[8];
            float weights[8];
            k.gate_topk(logits, 8, top, ids, weights);
            cr_expect_arr_eq(ids, want, top * sizeof ids[0]);
            double sum = 0;
            for (uint32_t i = 0; i < top; i++)
                sum += weights[i];
            cr_expect_float_eq(sum, 1.0, 1e-6);
        }
    }
}

Test(rows, gate_weights_are_a_softmax_over_the_chosen)
{
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        for (uint32_t experts = 1; experts <= 70; experts++) {
            uint32_t seed = experts, ids[8];
            float weights[8], *logits = random_floats(experts, 6, &seed);
            const uint32_t top = experts < 8 ? experts : 8;
            k.gate_topk(logits, experts, top, ids, weights);
            double sum = 0;
            for (uint32_t i = 0; i < top; i++)
                sum += exp((double)logits[ids[i]]);
            for (uint32_t i = 0; i < top; i++) {
                cr_assert_float_eq(weights[i], exp((double)logits[ids[i]]) / sum, 32 * UNIT);
                for (uint32_t e = 0; i == top - 1 && e < experts; e++) {
                    bool chosen = false;
                    for (uint32_t j = 0; j < top; j++)
                        chosen |= ids[j] == e;
                    cr_assert(chosen || logits[e] <= logits[ids[i]]);
                }
            }
            free(logits);
        }
    }
}

Test(rows, gate_survives_the_largest_logits)
{
    const float logits[4] = {FLT_MAX, -FLT_MAX, FLT_MAX, 0};
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        kernel_table k;
        if (!tier_init(&k, tier)) continue;
        uint32_t ids[3];
        float weights[3];
        k.gate_topk(logits, 4, 3, ids, weights);
        cr_expect_eq(ids[0], 0);
        cr_expect_eq(ids[1], 2);
        cr_expect_eq(ids[2], 1);
        cr_expect_eq(weights[0], 0.5f);
        cr_expect_eq(weights[2], 0.0f);
    }
}
