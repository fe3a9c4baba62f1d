/* gemm: rows times packed weights, the arithmetic of every projection and expert.
 *
 *   out[r][n] = sum over k of a[r][k] * w[n][k]
 *
 * One output element is one chain:
 *
 *   f32, bf16  acc = fmaf(a[k], w[k], acc), k rising one by one from 0 to K64-1, acc starts at 0
 *              (bf16: the weight widened exactly)
 *   int8       per group of 64, rising: an exact int32 sum s, then acc = fmaf((float)s, a_scale *
 *              w_scale, acc), where a_scale * w_scale is one rounded float product
 *   int4       the same per group of 32, with the a_scale of the group of 64 around it
 *
 * The number of rows, the range of tiles and the thread never change a row's bits.  f32, int8 and
 * int4 results are the same on every tier; bf16 results belong to the tier
 * (kernel_table.bf16_tier): "avx2" and all others without vdpbf16ps as said above; "avx512_bf16"
 * rounds a[k] to bfloat16 (nearest-even) and follows vdpbf16ps, one instruction for k and k + 1, k
 * rising in pairs: still one chain per output.
 *
 * Threads: pure functions; calls with disjoint tiles or rows may run at once.
 */
#ifndef MOE_KERNELS_GEMM_H
#define MOE_KERNELS_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/packed.h"

typedef struct gemm_args {
    const void *w; /* packed tiles (packed.h); tile t starts at w + t * tile_bytes(dtype, k);
                      64-byte aligned */
    uint32_t k;    /* input features before padding; 0 gives zeros */
    uint32_t tile_begin, tile_end; /* tiles to compute; for gemm_silu both even */

    const void *a;   /* activation rows of the weights' dtype (packed.h), row i at a + i * a_stride;
                        64-byte aligned */
    size_t a_stride; /* bytes */
    const uint32_t *rows; /* [m] indices into a, or NULL for 0..m-1; may repeat */
    uint32_t m;           /* 0 is allowed */

    /* Row i (0..m-1, not rows[i]) at out + i * out_stride.  gemm: feature n of tile t at column t *
     * 16 + lane. gemm_silu: tiles t, t+1 give columns t / 2 * 16 + lane.  Columns beyond N get
     * exact zeros (their weights are zero). */
    float *out;
    size_t out_stride; /* floats */
} gemm_args;

typedef void gemm_fn(const gemm_args *args);

#endif
