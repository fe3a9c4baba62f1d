#include "kernels/table.h"

#include "common/cpu.h"
#include "kernels/tiers.h"

static const kernel_table ref = {
    .tier = "ref",
    .bf16_tier = "avx2", /* avx2 rounds bf16 products as ref does: one name for both */
    .gemm = {gemm_f32_ref, gemm_bf16_ref, gemm_int8_ref, gemm_int4_ref},
    .gemm_silu = {gemm_silu_f32_ref, gemm_silu_bf16_ref, gemm_silu_int8_ref, gemm_silu_int4_ref},
    .rmsnorm = rmsnorm_ref,
    .act_pack = act_pack_ref,
    .rope = rope_ref,
    .gate_topk = gate_topk_ref,
    .row_add = row_add_ref,
    .combine = combine_ref,
    .kv_store = kv_store_ref,
    .attention = attention_ref,
};

#if defined(__x86_64__)
static void
use_avx2(kernel_table *k)
{
    k->tier = "avx2";
    k->gemm[DTYPE_F32] = gemm_f32_avx2;
    k->gemm[DTYPE_BF16] = gemm_bf16_avx2;
    k->gemm[DTYPE_INT8] = gemm_int8_avx2;
    k->gemm[DTYPE_INT4] = gemm_int4_avx2;
    k->gemm_silu[DTYPE_F32] = gemm_silu_f32_avx2;
    k->gemm_silu[DTYPE_BF16] = gemm_silu_bf16_avx2;
    k->gemm_silu[DTYPE_INT8] = gemm_silu_int8_avx2;
    k->gemm_silu[DTYPE_INT4] = gemm_silu_int4_avx2;
    k->rmsnorm = rmsnorm_avx2;
    k->act_pack = act_pack_avx2;
    k->rope = rope_avx2;
    k->row_add = row_add_avx2;
    k->combine = combine_avx2;
    k->attention = attention_avx2;
}

static void
use_avx512(kernel_table *k)
{
    k->tier = "avx512";
    k->gemm[DTYPE_F32] = gemm_f32_avx512;
    k->gemm[DTYPE_BF16] = gemm_bf16_avx512;
    k->gemm_silu[DTYPE_F32] = gemm_silu_f32_avx512;
    k->gemm_silu[DTYPE_BF16] = gemm_silu_bf16_avx512;
    k->rmsnorm = rmsnorm_avx512;
    k->act_pack = act_pack_avx512;
    k->row_add = row_add_avx512;
    k->combine = combine_avx512;
    k->attention = attention_avx512;
}

static void
use_avx512_bf16(kernel_table *k)
{
    k->bf16_tier = "avx512_bf16";
    k->gemm[DTYPE_BF16] = gemm_bf16_avx512_bf16;
    k->gemm_silu[DTYPE_BF16] = gemm_silu_bf16_avx512_bf16;
}

static void
use_avx512_vnni(kernel_table *k)
{
    k->gemm[DTYPE_INT8] = gemm_int8_avx512_vnni;
    k->gemm[DTYPE_INT4] = gemm_int4_avx512_vnni;
    k->gemm_silu[DTYPE_INT8] = gemm_silu_int8_avx512_vnni;
    k->gemm_silu[DTYPE_INT4] = gemm_silu_int4_avx512_vnni;
}
#endif

void
kernel_table_init(kernel_table *k, unsigned cpu_flags)
{
    *k = ref;
    if (!(cpu_flags & CPU_AVX2)) return;
#if defined(__x86_64__)
    use_avx2(k);
    if (!(cpu_flags & CPU_AVX512)) return;
    use_avx512(k);
    if ((cpu_flags & CPU_AVX512_BF16) && !(cpu_flags & CPU_SLOW_BF16)) use_avx512_bf16(k);
    if (cpu_flags & CPU_AVX512_VNNI) use_avx512_vnni(k);
#endif
}
