/* tiers: every implementation of every kernel; only table.c and tests name them.
 *
 * `_ref` is the definition.  All others exist on x86-64 only: `_avx2` needs AVX2 and FMA, `_avx512`
 * F, BW, DQ and VL, and `_avx512_vnni` and `_avx512_bf16` what they name besides.
 */
#ifndef MOE_KERNELS_TIERS_H
#define MOE_KERNELS_TIERS_H

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/rows.h"

gemm_fn gemm_f32_ref, gemm_bf16_ref, gemm_int8_ref, gemm_int4_ref;
gemm_fn gemm_silu_f32_ref, gemm_silu_bf16_ref, gemm_silu_int8_ref, gemm_silu_int4_ref;
rmsnorm_fn rmsnorm_ref;
act_pack_fn act_pack_ref;
rope_fn rope_ref;
gate_topk_fn gate_topk_ref;
row_add_fn row_add_ref;
combine_fn combine_ref;
kv_store_fn kv_store_ref;
attention_fn attention_ref;

gemm_fn gemm_f32_avx2, gemm_bf16_avx2, gemm_int8_avx2, gemm_int4_avx2;
gemm_fn gemm_silu_f32_avx2, gemm_silu_bf16_avx2, gemm_silu_int8_avx2, gemm_silu_int4_avx2;
rmsnorm_fn rmsnorm_avx2;
act_pack_fn act_pack_avx2;
rope_fn rope_avx2;
row_add_fn row_add_avx2;
combine_fn combine_avx2;
attention_fn attention_avx2;

attention_fn attention_avx512;
rmsnorm_fn rmsnorm_avx512;
act_pack_fn act_pack_avx512;
row_add_fn row_add_avx512;
combine_fn combine_avx512;
gemm_fn gemm_f32_avx512, gemm_bf16_avx512, gemm_bf16_avx512_bf16;
gemm_fn gemm_silu_f32_avx512, gemm_silu_bf16_avx512, gemm_silu_bf16_avx512_bf16;
gemm_fn gemm_int8_avx512_vnni, gemm_int4_avx512_vnni;
gemm_fn gemm_silu_int8_avx512_vnni, gemm_silu_int4_avx512_vnni;

#endif
