#include "kernels/table.h"

#include "common/cpu.h"
#include "kernels/tiers.h"

static const kernel_table ref = {
    .tier = "ref",
    /* "avx2" rounds bf16 products as ref does, so both carry one name. */
    .bf16_tier = "avx2",
    .gemm = {gemm_f32_ref, gemm_bf16_ref, gemm_int8_ref},
    .gemm_silu = {gemm_silu_f32_ref, gemm_silu_bf16_ref, gemm_silu_int8_ref},
    .rmsnorm = rmsnorm_ref,
    .act_pack = act_pack_ref,
    .rope = rope_ref,
    .gate_topk = gate_topk_ref,
    .row_add = row_add_ref,
    .combine = combine_ref,
    .kv_store = kv_store_ref,
    .attention = attention_ref,
};

void
kernel_table_init(kernel_table *k, unsigned cpu_flags)
{
    *k = ref;
    (void)cpu_flags;
}
