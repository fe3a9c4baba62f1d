/* pack: checkpoint tensors -> the layout of kernels/packed.h, quantized if asked.
 *
 * int8: symmetric, per output feature and group of 64 along K: scale = max|w| / 127, q =
 * nearest-even(w * (127 / max|w|)), all in float.  A group of zeros has scale 0, and so has one
 * whose max|w| is below 2^-118, where the scale would be subnormal and 127 / max|w| would overflow.
 * int4: per output feature and group of 32 along K.  Let m be the value of largest magnitude (the
 * first of equals).  Each of a few trial scales m / c (c = -8, which maps m to the end of the
 * range, and values around it) gives nearest q in -8..7 and with them the scale of least squared
 * error, sum(w q) / sum(q q); the trial with the least error wins (the first of equals).  Its
 * scale, rounded to a half, is stored, and q = nearest-even(w * (1 / scale)) of that stored scale,
 * within -8..7.  A group whose |m| is below 2^-22 is zero.  Plain float operations in one order:
 * every machine packs the same bytes. bf16: nearest-even.  Padding is zero.
 *
 * A tensor-parallel rank takes a slice of the intermediate dimension: rows [begin, end) of w1 and
 * w3, columns [begin, end) of w2, where both are multiples of GROUP_K (or the end).
 *
 * Threads: pure; different destinations may be packed at once.  The nearest-even rounding mode,
 * which is the default, must be in force.
 */
#ifndef MOE_MODEL_PACK_H
#define MOE_MODEL_PACK_H

#include "kernels/packed.h"
#include "model/checkpoint.h"

#define PACK_INT8_ZERO_BELOW 0x1p-118f
#define PACK_INT4_ZERO_BELOW 0x1p-22f /* an eighth of it is half of the smallest half */

/* out[i] = element i of the tensor, widened exactly. begin + count within the tensor. */
void tensor_read_f32(const tensor_view *t, size_t begin, size_t count, float *out);

/* Pack rows [row_begin, row_end) and columns [col_begin, col_end) of a [N, K] tensor.
 *   dst  packed_bytes(dtype, row_end - row_begin, col_end - col_begin), any alignment (kernels want
 *        64); every byte is written on MOE_OK
 *   MOE_EINVAL  int8 or int4, and a weight is NaN or infinite, or so large (beyond half a million)
 *               that an int4 scale does not fit a half; f32 and bf16 keep such values  */
moe_err pack_matrix(void *dst, moe_dtype dtype, const tensor_view *t, uint32_t row_begin,
                    uint32_t row_end, uint32_t col_begin, uint32_t col_end);

/* Pack w1 and w3 interleaved by tile (packed.h), rows [row_begin, row_end) of both.
 *   dst  packed_bytes(dtype, 2 * round_up(row_end - row_begin, TILE_N), K)
 *   MOE_EINVAL  as above  */
moe_err pack_gate_up(void *dst, moe_dtype dtype, const tensor_view *w1, const tensor_view *w3,
                     uint32_t row_begin, uint32_t row_end);

/* One expert's slot: gate/up [2 I', H] then down [H, I'], I' = the slice's width. */
typedef struct expert_layout {
    moe_dtype dtype;
    uint32_t hidden;
    uint32_t width_begin, width_end; /* of the intermediate dimension; 0..I for whole experts */
    size_t gate_up_bytes;
    size_t down_bytes;
    size_t slot_bytes; /* gate_up_bytes + down_bytes */
} expert_layout;

void expert_layout_init(expert_layout *out, moe_dtype dtype, const model_config *config,
                        uint32_t width_begin, uint32_t width_end);

/* The slice of rank `rank` of `ranks`: whole groups of GROUP_K, spread as evenly as they go,
 * earlier ranks first; may be empty. */
void tp_slice(uint32_t intermediate, uint32_t rank, uint32_t ranks, uint32_t *begin, uint32_t *end);

/*   slot  layout->slot_bytes
 *   MOE_EINVAL  as above  */
moe_err pack_expert(void *slot, const expert_layout *layout, const checkpoint *c, uint32_t layer,
                    uint32_t expert);

#endif
