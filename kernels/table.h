/* table: the kernels of the best tier this machine may use.
 *
 * `_ref` in plain C is the definition; each tier that the flags allow overwrites what it does
 * better.  Passing the flags explicitly is what lets tests reach every tier (common/cpu.h).
 */
#ifndef MOE_KERNELS_TABLE_H
#define MOE_KERNELS_TABLE_H

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/rows.h"

typedef struct kernel_table {
    const char *tier;      /* "ref", "avx2", "avx512": the highest tier in use */
    const char *bf16_tier; /* whose rounding bf16 products have, "avx2" or "avx512_bf16": part of
                              the numeric class */
    gemm_fn *gemm[DTYPE_COUNT];
    gemm_fn *gemm_silu[DTYPE_COUNT]; /* out = silu(gate) * up over tile pairs; silu(g) = g / (1 +
                                        exp(-g)) */
    rmsnorm_fn *rmsnorm;
    act_pack_fn *act_pack;
    rope_fn *rope;
    gate_topk_fn *gate_topk;
    row_add_fn *row_add;
    combine_fn *combine;
    kv_store_fn *kv_store;
    attention_fn *attention;
} kernel_table;

void kernel_table_init(kernel_table *k, unsigned cpu_flags);

#endif
