/* pack: layouts worked by hand, then every byte against an oracle that follows packed.h's index
 * formulas element by element; rounding at its edges; slices that add up to the whole. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "model/pack.h"
#include "tests/support/paths.h"

TestSuite(pack, .timeout = 60);

#define GUARD 64

static const moe_dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_INT8, DTYPE_INT4};
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

static tensor_view
view_f32(const float *data, uint32_t n, uint32_t k)
{
    return (tensor_view){.name = "t",
                         .file = "f",
                         .dtype = TENSOR_F32,
                         .rank = 2,
                         .shape = {n, k},
                         .data = data,
                         .bytes = (size_t)n * k * sizeof *data};
}

/* Seeded weights between -2 and 2, with some zeros and one group of zeros in each row. */
static float *
random_weights(uint32_t n, uint32_t k, uint64_t seed)
{
    float *w = malloc((size_t)n * k * sizeof *w);
    cr_assert_not_null(w);
    for (size_t i = 0; i < (size_t)n * k; i++) {
        const uint64_t r = hash_combine(seed, i);
        const bool zero_group = i % k / GROUP_K == (i / k) % 5 + 1;
        w[i] = zero_group || r % 16 == 0 ? 0 : (float)((double)(r >> 11) * 0x1p-51 - 2);
    }
    return w;
}

static uint8_t *
alloc_packed(size_t bytes)
{
    uint8_t *p = aligned_alloc(64, (bytes + GUARD + 63) / 64 * 64);
    cr_assert_not_null(p);
    memset(p, 0xaa, bytes + GUARD);
    return p;
}

static void
expect_guard(const uint8_t *packed, size_t bytes)
{
    for (size_t i = 0; i < GUARD; i++) {
        cr_expect_eq(packed[bytes + i], 0xaa, "written behind the end");
    }
}

static float
at_f32(const void *p, size_t index)
{
    float f;
    memcpy(&f, (const char *)p + index * sizeof f, sizeof f);
    return f;
}

static uint16_t
round_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint32_t low = bits & 0xffff, high = bits >> 16;
    return (uint16_t)(high + (low > 0x8000 || (low == 0x8000 && (high & 1))));
}

Test(pack, f32_and_bf16_by_hand)
{
    static const float w[2][3] = {{1, 2, 3}, {-4, 5, 6}};
    const tensor_view t = view_f32(&w[0][0], 2, 3);
    uint8_t *p = alloc_packed(packed_bytes(DTYPE_F32, 2, 3));
    cr_assert_eq(packed_bytes(DTYPE_F32, 2, 3), 64 * 16 * 4);
    cr_assert_eq(pack_matrix(p, DTYPE_F32, &t, 0, 2, 0, 3), MOE_OK);
    cr_expect_eq(at_f32(p, 0), 1);
    cr_expect_eq(at_f32(p, 1), -4);
    cr_expect_eq(at_f32(p, 2), 0);
    cr_expect_eq(at_f32(p, 16), 2);
    cr_expect_eq(at_f32(p, 17), 5);
    cr_expect_eq(at_f32(p, 32), 3);
    cr_expect_eq(at_f32(p, 33), 6);
    cr_expect_eq(at_f32(p, 48), 0);

    cr_assert_eq(pack_matrix(p, DTYPE_BF16, &t, 0, 2, 0, 3), MOE_OK);
    static const uint16_t want[][2] = {
        {0, 0x3f80} /* 1 */,
        {1, 0x4000} /* 2 */,
        {2, 0xc080} /* -4 */,
        {3, 0x40a0} /* 5 */,
        {4, 0},
        {32, 0x4040} /* 3 */,
        {33, 0},
        {34, 0x40c0} /* 6 */,
        {64 * 16 - 1, 0},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        uint16_t got;
        memcpy(&got, p + 2 * want[i][0], 2);
        cr_expect_eq(got, want[i][1], "element %u is %x", want[i][0], got);
    }
    free(p);
}

static int
int8_q(const uint8_t *byte)
{
    return *byte - 128;
}

Test(pack, int8_by_hand)
{
    /* Feature 0 has scale 1, so its q are the weights rounded to even; feature 1 is all zero;
     * feature 2 has scale 0.5 / 127. */
    static const float w[3][8] = {
        {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -63.5f}, {0}, {0, 0, 0, -0.5f, 0.25f}};
    const tensor_view t = view_f32(&w[0][0], 3, 8);
    uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT8, 3, 8));
    cr_assert_eq(packed_bytes(DTYPE_INT8, 3, 8), 1024 + 64);
    cr_assert_eq(pack_matrix(p, DTYPE_INT8, &t, 0, 3, 0, 8), MOE_OK);
    static const int first[] = {127, -127, 0, 2}, second[] = {2, 0, -2, -64};
    static const int third[] = {0, 0, 0, -127}, fourth[] = {64, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
        cr_expect_eq(int8_q(p + i), first[i]);
        cr_expect_eq(int8_q(p + 64 + i), second[i]);
        cr_expect_eq(int8_q(p + 8 + i), third[i]);
        cr_expect_eq(int8_q(p + 64 + 8 + i), fourth[i]);
        cr_expect_eq(int8_q(p + 4 + i), 0);
        cr_expect_eq(int8_q(p + 128 + i), 0, "padding along K");
        cr_expect_eq(int8_q(p + 12 + i), 0, "padding along N");
    }
    cr_expect_eq(at_f32(p + 1024, 0), 1);
    cr_expect_eq(at_f32(p + 1024, 1), 0);
    cr_expect_eq(at_f32(p + 1024, 2), 0.5f / 127);
    cr_expect_eq(at_f32(p + 1024, 15), 0);
    free(p);
}

/* q of feature n and input k of an int4 block, and its scale. */
static int
int4_q(const uint8_t *block, uint32_t n, uint32_t k)
{
    const uint32_t in = k % 32;
    const uint8_t byte = block[k / 32 * 256 + in % 16 / 4 * 64 + n * 4 + in % 4];
    return (in < 16 ? byte & 15 : byte >> 4) - 8;
}

static double
int4_scale(const uint8_t *block, uint32_t n, uint32_t k)
{
    uint16_t half;
    memcpy(&half, block + 512 + k / 32 * 32 + n * 2, sizeof half);
    return half_to_float(half);
}

Test(pack, int4_by_hand)
{
    /* Feature 0: the whole range at a scale of 1/2.  Feature 1: its largest is positive, so the
     * scale is negative.  Feature 2 is zero; feature 3 has a value in the second group only. */
    float w[4][64] = {{-4, 3.5f, -3.5f, 3, 0.5f, -0.5f, 1, 0}, {16, -14, 2}};
    w[3][33] = -0.25f;
    w[0][16] = 1.5f;
    const tensor_view t = view_f32(&w[0][0], 4, 64);
    uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT4, 4, 64));
    cr_assert_eq(packed_bytes(DTYPE_INT4, 4, 64), 576);
    cr_assert_eq(pack_matrix(p, DTYPE_INT4, &t, 0, 4, 0, 64), MOE_OK);
    static const uint8_t first[4] = {0xb0, 0x8f, 0x81, 0x8e}, second[4] = {0x89, 0x87, 0x8a, 0x88};
    cr_expect_arr_eq(p, first, 4);
    cr_expect_arr_eq(p + 64, second, 4);
    cr_expect_eq(int4_scale(p, 0, 0), 0.5);
    cr_expect_eq(int4_scale(p, 0, 32), 0);
    cr_expect_eq(int4_scale(p, 1, 0), -2);
    cr_expect_eq(int4_q(p, 1, 0), -8);
    cr_expect_eq(int4_q(p, 1, 1), 7);
    cr_expect_eq(int4_q(p, 1, 2), -1);
    cr_expect_eq(int4_scale(p, 2, 0), 0);
    cr_expect_eq(int4_scale(p, 3, 0), 0);
    cr_expect_eq(int4_q(p, 3, 33) * int4_scale(p, 3, 33), -0.25);
    for (uint32_t k = 0; k < 64; k++) {
        cr_expect_eq(int4_q(p, 2, k), 0);
        cr_expect_eq(int4_q(p, 15, k), 0, "padding along N");
    }
    free(p);
}

Test(pack, gate_and_up_alternate_tile_by_tile)
{
    float w1[20], w3[20]; /* 20 features, K = 1 */
    for (int i = 0; i < 20; i++) {
        w1[i] = (float)(i + 1);
        w3[i] = (float)(-i - 1);
    }
    const tensor_view t1 = view_f32(w1, 20, 1), t3 = view_f32(w3, 20, 1);
    const size_t tile = tile_bytes(DTYPE_F32, 1), bytes = packed_bytes(DTYPE_F32, 64, 1);
    uint8_t *p = alloc_packed(bytes);
    cr_assert_eq(bytes, 4 * tile);
    cr_assert_eq(pack_gate_up(p, DTYPE_F32, &t1, &t3, 0, 20), MOE_OK);
    cr_expect_eq(at_f32(p, 0), 1);
    cr_expect_eq(at_f32(p, 15), 16);
    cr_expect_eq(at_f32(p + tile, 0), -1);
    cr_expect_eq(at_f32(p + 2 * tile, 0), 17);
    cr_expect_eq(at_f32(p + 2 * tile, 4), 0, "padding of the last tile");
    cr_expect_eq(at_f32(p + 3 * tile, 3), -20);
    expect_guard(p, bytes);
    free(p);
}

/* What packed.h says of feature n (of N) and input k (of K), computed alone. */
static float
oracle_weight(const tensor_view *t, uint32_t row, uint32_t row_end, uint32_t col, uint32_t col_end)
{
    float w;
    if (row >= row_end || col >= col_end) return 0;
    tensor_read_f32(t, (size_t)row * t->shape[1] + col, 1, &w);
    return w;
}

static void
expect_int8_block(const uint8_t *block, const tensor_view *t, uint32_t tile_row, uint32_t row_end,
                  uint32_t col, uint32_t col_end)
{
    for (uint32_t n = 0; n < TILE_N; n++) {
        float most = 0;
        for (uint32_t k = 0; k < GROUP_K; k++) {
            most = fmaxf(most, fabsf(oracle_weight(t, tile_row + n, row_end, col + k, col_end)));
        }
        const float scale = at_f32(block + 1024, n), inverse = 127 / most;
        cr_assert_eq(scale, most / 127, "scale of feature %u", tile_row + n);
        for (uint32_t k = 0; k < GROUP_K; k++) {
            const float w = oracle_weight(t, tile_row + n, row_end, col + k, col_end);
            const int q = int8_q(block + k / 4 * 64 + n * 4 + k % 4);
            cr_assert_eq(q, most == 0 ? 0 : (int)rintf(w * inverse));
            /* Half a step, and the roundings of the scale, its inverse and the product. */
            cr_assert_leq(fabs(w - (double)q * scale), 0.5 * scale * (1 + 0x1p-14));
        }
    }
}

/* Every q is the nearest in range for the stored scale, and the group's squared error is no worse
 * than with the plain rule, largest / -8. */
static void
expect_int4_group(const uint8_t *block, uint32_t k0, const tensor_view *t, uint32_t n, uint32_t row,
                  uint32_t row_end, uint32_t col, uint32_t col_end)
{
    double largest = 0, error = 0, plain_error = 0;
    const double scale = int4_scale(block, n, k0);
    for (uint32_t k = k0; k < k0 + 32; k++) {
        const double w = oracle_weight(t, row, row_end, col + k, col_end);
        largest = fabs(w) > fabs(largest) ? w : largest;
    }
    for (uint32_t k = k0; k < k0 + 32; k++) {
        const double w = oracle_weight(t, row, row_end, col + k, col_end), plain = largest / -8;
        const int q = int4_q(block, n, k);
        const double want = scale == 0 ? 0 : fmin(fmax(w / scale, -8), 7);
        cr_assert_leq(fabs(q - want), 0.5 + 1e-5, "feature %u k %u: %d for %g", row, k, q, want);
        const double p = plain == 0 ? 0 : fmin(fmax(rint(w / plain), -8), 7);
        error += (w - q * scale) * (w - q * scale);
        plain_error += (w - p * plain) * (w - p * plain);
    }
    cr_assert_eq(scale == 0, largest == 0);
    /* The stored half is up to 2^-11 beside the best scale. */
    cr_assert_leq(error, plain_error + 32 * pow(8 * scale * 0x1p-11, 2));
}

static void
expect_int4_block(const uint8_t *block, const tensor_view *t, uint32_t tile_row, uint32_t row_end,
                  uint32_t col, uint32_t col_end)
{
    for (uint32_t n = 0; n < TILE_N; n++) {
        for (uint32_t k = 0; k < GROUP_K; k += 32) {
            expect_int4_group(block, k, t, n, tile_row + n, row_end, col, col_end);
        }
    }
}

static void
expect_packed(const uint8_t *p, moe_dtype dtype, const tensor_view *t, uint32_t row_begin,
              uint32_t row_end, uint32_t col_begin, uint32_t col_end)
{
    const uint32_t k64 = pad_k(col_end - col_begin);
    const size_t tile = tile_bytes(dtype, k64);
    for (uint32_t i = 0; i < tile_count(row_end - row_begin); i++) {
        const uint8_t *at = p + i * tile;
        const uint32_t row = row_begin + i * TILE_N;
        for (uint32_t k = 0; dtype == DTYPE_INT8 && k < k64; k += GROUP_K) {
            expect_int8_block(at + k / GROUP_K * 1088, t, row, row_end, col_begin + k, col_end);
        }
        for (uint32_t k = 0; dtype == DTYPE_INT4 && k < k64; k += GROUP_K) {
            expect_int4_block(at + k / GROUP_K * 576, t, row, row_end, col_begin + k, col_end);
        }
        for (uint32_t k = 0; dtype <= DTYPE_BF16 && k < k64; k++) {
            for (uint32_t n = 0; n < TILE_N; n++) {
                const float w = oracle_weight(t, row + n, row_end, col_begin + k, col_end);
                uint16_t half;
                memcpy(&half, at + ((size_t)(k / 2) * 32 + n * 2 + k % 2) * 2, 2);
                if (dtype == DTYPE_F32)
                    cr_assert_eq(at_f32(at, (size_t)k * 16 + n), w);
                else
                    cr_assert_eq(half, round_bf16(w));
            }
        }
    }
}

Test(pack, every_byte_follows_the_layout_for_any_shape_and_slice)
{
    static const uint32_t shapes[][2] = {{1, 1},   {16, 64},  {17, 65}, {33, 130},
                                         {5, 28},  {48, 256}, {2, 63},  {31, 1},
                                         {28, 96}, {96, 28},  {16, 400}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const uint32_t n = shapes[s][0], k = shapes[s][1];
        float *w = random_weights(n, k, s);
        const tensor_view t = view_f32(w, n, k);
        const uint32_t slices[][4] = {
            {0, n, 0, k}, {n / 3, n, 0, k}, {0, n - n / 4, k / 2, k}, {n, n, 0, k}, {0, n, k, k}};
        for (size_t c = 0; c < sizeof slices / sizeof slices[0]; c++) {
            const uint32_t *r = slices[c];
            for (size_t d = 0; d < DTYPES; d++) {
                const size_t bytes = packed_bytes(dtypes[d], r[1] - r[0], r[3] - r[2]);
                uint8_t *p = alloc_packed(bytes);
                cr_assert_eq(pack_matrix(p, dtypes[d], &t, r[0], r[1], r[2], r[3]), MOE_OK);
                expect_packed(p, dtypes[d], &t, r[0], r[1], r[2], r[3]);
                expect_guard(p, bytes);
                free(p);
            }
        }
        free(w);
    }
}

Test(pack, every_half_and_bfloat16_widens_exactly)
{
    static uint16_t all[65536];
    static float got[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        all[i] = (uint16_t)i;
    }
    tensor_view t = {.name = "t", .file = "f", .rank = 1, .shape = {65536}};
    t.data = all;
    t.bytes = sizeof all;
    t.dtype = TENSOR_F16;
    tensor_read_f32(&t, 0, 65536, got);
    for (uint32_t i = 0; i < 65536; i++) {
        const int exponent = i >> 10 & 31, fraction = i & 1023;
        double want = ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
        if (exponent == 31) want = fraction ? NAN : INFINITY;
        if (i & 0x8000) want = -want;
        if (isnan(want))
            cr_assert(isnan(got[i]));
        else
            cr_assert_eq(got[i], want, "half %x", i);
        cr_assert_eq(signbit(got[i]) != 0, i >> 15);
    }
    t.dtype = TENSOR_BF16;
    tensor_read_f32(&t, 0, 65536, got);
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t bits;
        memcpy(&bits, &got[i], 4);
        cr_assert_eq(bits, i << 16);
    }
}

Test(pack, reads_any_stretch_at_any_alignment)
{
    static uint8_t bytes[4 * 40 + 1];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i % 60);
    }
    for (int dtype = TENSOR_F32; dtype <= TENSOR_BF16; dtype++) {
        tensor_view t = {.name = "t", .file = "f", .rank = 1, .shape = {40}};
        t.data = bytes + 1;
        t.dtype = (tensor_dtype)dtype;
        t.bytes = 40 * (dtype == TENSOR_F32 ? 4 : 2);
        float all[40], some[9];
        tensor_read_f32(&t, 0, 40, all);
        tensor_read_f32(&t, 23, 9, some);
        cr_expect_arr_eq(some, all + 23, sizeof some);
        tensor_read_f32(&t, 40, 0, some);
    }
}

Test(pack, bfloat16_rounds_to_even_and_keeps_what_is_not_finite)
{
    static const uint32_t cases[][2] = {
        {0x3f808000, 0x3f80}, /* halfway, even below */
        {0x3f818000, 0x3f82}, /* halfway, even above */
        {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80},
        {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffffffff, 0xffff}, {0x80000000, 0x8000},
        {0x00008000, 0x0000}, {0x00018000, 0x0002},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const tensor_view t = view_f32((const float *)&cases[i][0], 1, 1);
        uint8_t *p = alloc_packed(packed_bytes(DTYPE_BF16, 1, 1));
        uint16_t got;
        cr_assert_eq(pack_matrix(p, DTYPE_BF16, &t, 0, 1, 0, 1), MOE_OK);
        memcpy(&got, p, sizeof got);
        cr_expect_eq(got, cases[i][1], "%x became %x", cases[i][0], got);
        free(p);
    }
}

Test(pack, int8_refuses_what_is_not_finite_and_survives_extremes)
{
    static const struct {
        float w;
        moe_err err;
        float scale;
        int8_t q;
    } cases[] = {
        {NAN, MOE_EINVAL, 0, 0},
        {-NAN, MOE_EINVAL, 0, 0},
        {INFINITY, MOE_EINVAL, 0, 0},
        {-INFINITY, MOE_EINVAL, 0, 0},
        {0x1.fffffep127f, MOE_OK, 0x1.fffffep127f / 127, 127},
        {-0x1.fffffep127f, MOE_OK, 0x1.fffffep127f / 127, -127},
        {-0.0f, MOE_OK, 0, 0},
        {0x1p-149f, MOE_OK, 0, 0}, /* its inverse would overflow */
        {0x1.fffffep-119f, MOE_OK, 0, 0},
        {-PACK_INT8_ZERO_BELOW, MOE_OK, PACK_INT8_ZERO_BELOW / 127, -127},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float w[70] = {0};
        w[66] = cases[i].w;
        const tensor_view t = view_f32(w, 1, 70);
        uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT8, 1, 70));
        cr_expect_eq(pack_matrix(p, DTYPE_INT8, &t, 0, 1, 0, 70), cases[i].err, "case %zu", i);
        if (!cases[i].err) {
            cr_expect_eq(at_f32(p + 1088 + 1024, 0), cases[i].scale, "case %zu", i);
            cr_expect_eq(int8_q(p + 1088 + 2), cases[i].q, "case %zu", i);
        }
        free(p);
    }
}

/* The largest magnitude becomes 127 however its division rounds: never 128. */
Test(pack, int8_never_leaves_its_range)
{
    float w[GROUP_K];
    uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT8, 1, GROUP_K));
    for (uint32_t round = 0; round < 20000; round++) {
        for (uint32_t k = 0; k < GROUP_K; k++) {
            w[k] = 0;
        }
        w[round % GROUP_K] =
            ldexpf(1 + (float)(hash_mix(round) >> 41) * 0x1p-23f, (int)(round % 200) - 100);
        w[(round + 1) % GROUP_K] = -w[round % GROUP_K];
        const tensor_view t = view_f32(w, 1, GROUP_K);
        cr_assert_eq(pack_matrix(p, DTYPE_INT8, &t, 0, 1, 0, GROUP_K), MOE_OK);
        const uint32_t a = round % GROUP_K, b = (round + 1) % GROUP_K;
        cr_assert_eq(int8_q(p + a / 4 * 64 + a % 4), 127);
        cr_assert_eq(int8_q(p + b / 4 * 64 + b % 4), -127);
    }
    free(p);
}

Test(pack, int4_refuses_what_is_not_finite_or_too_large_and_survives_extremes)
{
    static const struct {
        float w;
        moe_err err;
        double back; /* q * scale */
    } cases[] = {
        {NAN, MOE_EINVAL, 0},
        {-NAN, MOE_EINVAL, 0},
        {INFINITY, MOE_EINVAL, 0},
        {-INFINITY, MOE_EINVAL, 0},
        {0x1.fffffep127f, MOE_EINVAL, 0},
        {8 * 65536.0f, MOE_EINVAL, 0}, /* rounds to a scale beyond the halves */
        {8 * 65504.0f, MOE_OK, 8 * 65504.0},
        {-8 * 65504.0f, MOE_OK, -8 * 65504.0},
        {-0.0f, MOE_OK, 0},
        {0x1p-149f, MOE_OK, 0},
        {0x1.fffffep-23f, MOE_OK, 0},
        {0x1p-21f, MOE_OK, 0x1p-21}, /* the smallest half, 8 times */
        {-0x1p-20f, MOE_OK, -0x1p-20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float w[70] = {0};
        w[66] = cases[i].w;
        const tensor_view t = view_f32(w, 1, 70);
        uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT4, 1, 70));
        cr_expect_eq(pack_matrix(p, DTYPE_INT4, &t, 0, 1, 0, 70), cases[i].err, "case %zu", i);
        if (!cases[i].err) {
            const double back = int4_q(p + 576, 0, 2) * int4_scale(p + 576, 0, 2);
            cr_expect_eq(back, cases[i].back, "case %zu: %g", i, back);
        }
        free(p);
    }
}

/* What makes int4 useful: less error than the plain rule on bell-shaped weights. */
Test(pack, int4_scales_lessen_the_squared_error)
{
    enum { N = 64, K = 256 };
    static float w[N][K];
    for (uint32_t i = 0; i < N * K; i++) {
        double sum = 0;
        for (uint64_t j = 0; j < 12; j++)
            sum += (double)(hash_combine(j, i) >> 11) * 0x1p-53 - 0.5;
        w[i / K][i % K] = (float)sum;
    }
    const tensor_view t = view_f32(&w[0][0], N, K);
    uint8_t *p = alloc_packed(packed_bytes(DTYPE_INT4, N, K));
    cr_assert_eq(pack_matrix(p, DTYPE_INT4, &t, 0, N, 0, K), MOE_OK);
    double error = 0, plain_error = 0, size = 0;
    for (uint32_t i = 0; i < N * K; i += 32) {
        const uint32_t n = i / K, k0 = i % K;
        const uint8_t *block = p + n / 16 * tile_bytes(DTYPE_INT4, K) + k0 / 64 * 576;
        float most = 0;
        for (uint32_t k = k0; k < k0 + 32; k++)
            most = fabsf(w[n][k]) > fabsf(most) ? w[n][k] : most;
        for (uint32_t k = k0; k < k0 + 32; k++) {
            const double v = w[n][k], plain = most / -8, q = fmin(rint(v / plain), 7);
            const double got = int4_q(block, n % 16, k % 64) * int4_scale(block, n % 16, k % 64);
            size += v * v;
            error += (v - got) * (v - got);
            plain_error += (v - q * plain) * (v - q * plain);
        }
    }
    printf("int4: squared error %.5f of the weights', plain rule %.5f\n", error / size,
           plain_error / size);
    cr_expect_lt(error, 0.93 * plain_error);
    free(p);
}

static const uint32_t widths[] = {1, 28, 64, 65, 256, 14336};

Test(pack, tensor_parallel_slices_cover_the_width_once_and_evenly)
{
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        for (uint32_t ranks = 1; ranks <= 8; ranks++) {
            uint32_t at = 0, most = 0, least = UINT32_MAX, before = UINT32_MAX;
            for (uint32_t rank = 0; rank < ranks; rank++) {
                uint32_t begin, end;
                tp_slice(widths[i], rank, ranks, &begin, &end);
                cr_assert_eq(begin, at, "width %u rank %u of %u", widths[i], rank, ranks);
                cr_assert_leq(begin, end);
                cr_assert(end % GROUP_K == 0 || end == widths[i]);
                const uint32_t groups = pad_k(end - begin) / GROUP_K;
                most = groups > most ? groups : most;
                least = groups < least ? groups : least;
                cr_assert_leq(groups, before, "earlier ranks first");
                before = groups;
                at = end;
            }
            cr_assert_eq(at, widths[i]);
            cr_assert_leq(most - least, 1);
        }
    }
    uint32_t begin, end;
    tp_slice(1u << 20, 4095, 4096, &begin, &end);
    cr_expect_eq(end, 1u << 20);
}

/* Pack every rank's slice of one expert; put its pieces where they lie in the whole. */
static void
expect_slices_equal_whole(moe_dtype dtype, uint32_t width, uint32_t hidden, uint32_t ranks,
                          const tensor_view w[3])
{
    const size_t up_bytes = packed_bytes(dtype, 2 * round_up_u32(width, TILE_N), hidden);
    const size_t down_bytes = packed_bytes(dtype, hidden, width);
    uint8_t *whole = alloc_packed(up_bytes + down_bytes), *slice = alloc_packed(up_bytes);
    cr_assert_eq(pack_gate_up(whole, dtype, &w[0], &w[2], 0, width), MOE_OK);
    cr_assert_eq(pack_matrix(whole + up_bytes, dtype, &w[1], 0, hidden, 0, width), MOE_OK);

    size_t up_at = 0;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        uint32_t begin, end;
        tp_slice(width, rank, ranks, &begin, &end);
        cr_assert_eq(pack_gate_up(slice, dtype, &w[0], &w[2], begin, end), MOE_OK);
        const size_t part = packed_bytes(dtype, 2 * round_up_u32(end - begin, TILE_N), hidden);
        cr_assert_eq(memcmp(slice, whole + up_at, part), 0);
        up_at += part;
    }
    cr_assert_eq(up_at, up_bytes);
    free(slice);

    /* Down: each tile is the ranks' tiles, one after the other. */
    slice = alloc_packed(down_bytes);
    size_t down_at = 0;
    const size_t tile = tile_bytes(dtype, width);
    for (uint32_t rank = 0; rank < ranks; rank++) {
        uint32_t begin, end;
        tp_slice(width, rank, ranks, &begin, &end);
        const size_t part = tile_bytes(dtype, end - begin);
        cr_assert_eq(pack_matrix(slice, dtype, &w[1], 0, hidden, begin, end), MOE_OK);
        for (uint32_t i = 0; i < tile_count(hidden); i++) {
            cr_assert_eq(memcmp(slice + i * part, whole + up_bytes + i * tile + down_at, part), 0);
        }
        down_at += part;
    }
    cr_assert_eq(down_at, tile);
    free(slice);
    free(whole);
}

Test(pack, slices_side_by_side_are_the_whole)
{
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        const uint32_t width = widths[i], hidden = width > 1000 ? 18 : 70;
        float *w1 = random_weights(width, hidden, 1), *w2 = random_weights(hidden, width, 2);
        float *w3 = random_weights(width, hidden, 3);
        const tensor_view w[3] = {view_f32(w1, width, hidden), view_f32(w2, hidden, width),
                                  view_f32(w3, width, hidden)};
        for (uint32_t ranks = 1; ranks <= 8; ranks++) {
            for (size_t d = 0; d < DTYPES; d++) {
                if (width > 1000 && ranks % 3 != 0) continue; /* 3 and 6 do for the large one */
                expect_slices_equal_whole(dtypes[d], width, hidden, ranks, w);
            }
        }
        free(w1);
        free(w2);
        free(w3);
    }
}

Test(pack, an_expert_fills_its_slot_with_gate_up_then_down)
{
    static const char *const models[] = {"models/odd", "models/f16", "models/f32"};
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        char dir[512];
        checkpoint *c;
        errbuf eb;
        golden_path(dir, sizeof dir, models[m]);
        cr_assert_eq(checkpoint_open(&c, dir, &eb), MOE_OK, "%s", eb.text);
        const model_config *config = checkpoint_config(c);
        const uint32_t width = config->intermediate_size, expert = config->num_experts - 1;
        const tensor_view *w2 = checkpoint_tensor(c, TENSOR_W2, 1, expert);
        for (uint32_t rank = 0; rank < 3; rank++) {
            for (size_t d = 0; d < DTYPES; d++) {
                expert_layout layout;
                uint32_t begin, end;
                tp_slice(width, rank, 3, &begin, &end);
                expert_layout_init(&layout, dtypes[d], config, begin, end);
                cr_expect_eq(layout.slot_bytes, layout.gate_up_bytes + layout.down_bytes);
                cr_expect_eq(layout.slot_bytes % 64, 0);
                cr_expect_eq(layout.slot_bytes == 0, begin == end);
                uint8_t *slot = alloc_packed(layout.slot_bytes);
                uint8_t *up = alloc_packed(layout.gate_up_bytes);
                cr_assert_eq(pack_expert(slot, &layout, c, 1, expert), MOE_OK);
                cr_assert_eq(pack_gate_up(up, dtypes[d], checkpoint_tensor(c, TENSOR_W1, 1, expert),
                                          checkpoint_tensor(c, TENSOR_W3, 1, expert), begin, end),
                             MOE_OK);
                cr_expect_eq(memcmp(slot, up, layout.gate_up_bytes), 0);
                expect_packed(slot + layout.gate_up_bytes, dtypes[d], w2, 0, config->hidden_size,
                              begin, end);
                expect_guard(slot, layout.slot_bytes);
                free(slot);
                free(up);
            }
        }
        checkpoint_close(c);
    }
}
