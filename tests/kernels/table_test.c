/* table: which tier is chosen, and the names of number formats. */
#include <criterion/criterion.h>
#include <math.h>

#include "tests/kernels/support.h"

TestSuite(table, .timeout = 10);

Test(table, without_flags_every_kernel_is_the_reference)
{
    kernel_table k;
    memset(&k, 0, sizeof k);
    kernel_table_init(&k, 0);
    cr_expect_str_eq(k.tier, "ref");
    for (moe_dtype d = 0; d < DTYPE_COUNT; d++) {
        cr_expect(k.gemm[d] != NULL);
        cr_expect(k.gemm_silu[d] != NULL);
    }
    cr_expect(k.rmsnorm && k.act_pack && k.rope && k.gate_topk && k.row_add && k.combine);
    cr_expect(k.kv_store && k.attention);
}

Test(table, avx2_replaces_the_products_where_allowed)
{
    skip_without_tiers();
    kernel_table ref, k;
    kernel_table_init(&ref, 0);
    kernel_table_init(&k, CPU_AVX2);
    cr_expect_str_eq(k.tier, "avx2");
    cr_expect_str_eq(k.bf16_tier, ref.bf16_tier);
    for (moe_dtype d = 0; d < DTYPE_COUNT; d++)
        cr_expect(k.gemm[d] != ref.gemm[d]);
    cr_expect(k.attention != ref.attention);
}

Test(table, avx512_replaces_what_each_of_its_flags_offers)
{
    if (!(cpu_flags() & CPU_AVX512)) cr_skip("this machine has no AVX-512, or the mask hides it");
    const unsigned plain = CPU_AVX2 | CPU_AVX512;
    kernel_table avx2, k;
    kernel_table_init(&avx2, CPU_AVX2);
    kernel_table_init(&k, plain);
    cr_expect_str_eq(k.tier, "avx512");
    cr_expect_str_eq(k.bf16_tier, "avx2", "zmm registers alone round as before");
    cr_expect(k.gemm[DTYPE_F32] != avx2.gemm[DTYPE_F32]);
    cr_expect(k.gemm[DTYPE_BF16] != avx2.gemm[DTYPE_BF16]);
    cr_expect(k.gemm[DTYPE_INT8] == avx2.gemm[DTYPE_INT8]);
    kernel_table_init(&k, plain | CPU_AVX512_VNNI);
    cr_expect(k.gemm[DTYPE_INT8] != avx2.gemm[DTYPE_INT8]);
    cr_expect(k.gemm[DTYPE_INT4] != avx2.gemm[DTYPE_INT4]);
    cr_expect_str_eq(k.bf16_tier, "avx2");
    kernel_table_init(&k, plain | CPU_AVX512_BF16);
    cr_expect_str_eq(k.bf16_tier, "avx512_bf16");
    cr_expect(k.gemm[DTYPE_INT8] == avx2.gemm[DTYPE_INT8]);
    kernel_table_init(&k, plain | CPU_AVX512_BF16 | CPU_SLOW_BF16);
    cr_expect_str_eq(k.bf16_tier, "avx2", "a slow vdpbf16ps is left alone");
    kernel_table_init(&k, CPU_AVX512_VNNI | CPU_AVX512_BF16);
    cr_expect_str_eq(k.tier, "ref", "no tier without the one below it");
}

Test(table, dtypes_have_names_and_aliases)
{
    for (moe_dtype d = 0; d < DTYPE_COUNT; d++)
        cr_expect_eq(dtype_parse(dtype_name(d)), d);
    cr_expect_eq(dtype_parse("float32"), DTYPE_F32);
    cr_expect_eq(dtype_parse("float"), DTYPE_F32);
    cr_expect_eq(dtype_parse("bfloat16"), DTYPE_BF16);
    cr_expect_eq(dtype_parse("int2"), DTYPE_COUNT);
    cr_expect_eq(dtype_parse(""), DTYPE_COUNT);
}

Test(table, sizes_are_multiples_of_a_cache_line)
{
    for (moe_dtype d = 0; d < DTYPE_COUNT; d++) {
        for (uint32_t k = 1; k < 300; k++) {
            cr_expect_eq(tile_bytes(d, k) % 64, 0);
            cr_expect_eq(act_row_bytes(d, k) % 64, 0);
        }
    }
    cr_expect_eq(tile_bytes(DTYPE_INT8, 65), 2 * (64 * 16 + 64));
    cr_expect_eq(tile_bytes(DTYPE_INT4, 65), 2 * (32 * 16 + 64));
    cr_expect_eq(act_row_bytes(DTYPE_INT8, 65), 192, "128 + 2 * 4 + 4 * 2, padded");
    cr_expect_eq(act_row_bytes(DTYPE_INT4, 512), 576, "512 + 8 * 4 + 16 * 2");
    cr_expect_eq(packed_bytes(DTYPE_BF16, 17, 64), 2 * 64 * 16 * 2);
}

Test(table, halves_widen_exactly)
{
    for (uint32_t i = 0; i < 0x7c00; i++) {
        const int exponent = i >> 10 & 31, fraction = i & 1023;
        const double want =
            ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
        cr_assert_eq(half_to_float((uint16_t)i), want);
        cr_assert_eq(half_to_float((uint16_t)(i | 0x8000)), -want);
    }
    cr_expect(isinf(half_to_float(0x7c00)) && isnan(half_to_float(0x7c01)));
}

Test(table, bfloat16_rounds_to_nearest_even)
{
    cr_expect_eq(bf16_from_float(1.0f), 0x3f80);
    cr_expect_eq(bf16_from_float(0x1.01p+0f), 0x3f80, "a tie goes to the even neighbour below");
    cr_expect_eq(bf16_from_float(0x1.03p+0f), 0x3f82, "and above");
    cr_expect_eq(bf16_from_float(0x1.010002p+0f), 0x3f81);
    cr_expect_eq(bf16_from_float(3.4e38f), 0x7f80, "rounds to infinity");
    for (uint32_t v = 0; v < 0x7f80; v++)
        cr_assert_eq(bf16_from_float(bf16_to_float((uint16_t)v)), v);
}
