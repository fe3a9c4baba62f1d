/* packed: how weights and activation rows lie in memory.
 *
 * Weights are packed once, at load, into tiles of 16 output features: output features across vector
 * lanes, K sequential inside a lane.  So every output element sums over K in one order, whatever
 * the number of rows, and a weight vector that was loaded serves all rows at hand.
 *
 *   N  output features, padded to N16 = a multiple of TILE_N with zero weights
 *   K  input features, padded to K64 = a multiple of GROUP_K with zeros, in weights and activations
 *
 * Tile layouts (one tile = 16 features x K64, tiles follow each other without gaps):
 *
 *   f32   [K64][16] float
 *   bf16  [K64/2][16][2] bfloat16 (the upper half of a float); the layout of vdpbf16ps
 *   int8  [K64/64] blocks of { [16][16][4] bytes, [16] float scale }: 16 steps of 4 along K, 16
 *         lanes, 4 along K; a byte is q + 128, q in -127..127; weight = q * scale of its feature
 *         and group of 64
 *   int4  [K64/64] blocks of { [2][4][16][4] bytes, [2][16] half scale }: 2 groups of 32 along K, 4
 *         vectors of 16 lanes by 4 along K; in vector v of a group the lower nibble is k = 4 v + i,
 *         the upper one k = 16 + 4 v + i; a nibble is q + 8, q in -8..7; weight = q * scale of its
 *         feature and group of 32, the scale an IEEE half of either sign (4.5 bits a weight)
 *
 * Activation rows (the same bytes in memory, in shared memory and on the wire; row stride =
 * act_row_bytes()):
 *
 *   for f32 and bf16 weights   [K64] float
 *   for int8 and int4 weights  [K64] int8 q, then [K64/64] float scale, then [K64/32] int16 sums of
 *                              q over each group of 32; q in -127..127.  The sums follow from q; a
 *                              kernel whose weights carry an offset subtracts it with them.
 *
 * A gate/up matrix holds w1 and w3 interleaved by tile: tile 2i has 16 features of w1, tile 2i+1
 * the same 16 of w3, so that silu(w1 x) * (w3 x) is finished in registers.
 *
 * Every matrix of one kind has the same size in every layer and expert: it fills an equal slot, and
 * a slot starts on a 64-byte boundary.
 *
 * Source: the VNNI/madd tile order follows Intel's and AMD's instruction definitions.
 */
#ifndef MOE_KERNELS_PACKED_H
#define MOE_KERNELS_PACKED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TILE_N 16
#define GROUP_K 64
#define GROUP_INT4 32 /* along K: weights of one int4 scale, activations of one sum */

typedef enum moe_dtype {
    DTYPE_F32 = 0,
    DTYPE_BF16 = 1,
    DTYPE_INT8 = 2,
    DTYPE_INT4 = 3,
    DTYPE_COUNT
} moe_dtype;

/* "f32", "bf16", "int8", "int4". */
const char *dtype_name(moe_dtype dtype);
/* Also vLLM's "float32", "float", "bfloat16".  Returns DTYPE_COUNT for anything else. */
moe_dtype dtype_parse(const char *text);

static inline uint32_t
round_up_u32(uint32_t v, uint32_t to)
{
    return (v + to - 1) / to * to;
}

static inline uint32_t
pad_k(uint32_t k)
{
    return round_up_u32(k, GROUP_K);
}

static inline uint32_t
tile_count(uint32_t n)
{
    return (n + TILE_N - 1) / TILE_N;
}

/* Bytes of one tile; a multiple of 64. */
static inline size_t
tile_bytes(moe_dtype dtype, uint32_t k)
{
    const size_t k64 = pad_k(k);
    if (dtype == DTYPE_F32) return k64 * TILE_N * 4;
    if (dtype == DTYPE_BF16) return k64 * TILE_N * 2;
    if (dtype == DTYPE_INT4) return k64 / GROUP_K * (GROUP_K * TILE_N / 2 + TILE_N * 4);
    return k64 / GROUP_K * (GROUP_K * TILE_N + TILE_N * 4);
}

static inline size_t
packed_bytes(moe_dtype dtype, uint32_t n, uint32_t k)
{
    return tile_bytes(dtype, k) * tile_count(n);
}

/* Does the dtype's activation row hold int8?  (else f32) */
static inline int
act_is_int8(moe_dtype dtype)
{
    return dtype == DTYPE_INT8 || dtype == DTYPE_INT4;
}

/* Bytes from one activation row to the next; a multiple of 64. */
static inline size_t
act_row_bytes(moe_dtype dtype, uint32_t k)
{
    const size_t k64 = pad_k(k);
    if (!act_is_int8(dtype)) return k64 * 4;
    return (k64 + k64 / GROUP_K * 4 + k64 / GROUP_INT4 * 2 + 63) / 64 * 64;
}

/* The scales, [K64/64], and the sums, [K64/32], of an int8 activation row. */
static inline const float *
act_scales(const void *row, uint32_t k64)
{
    return (const float *)(const void *)((const char *)row + k64);
}

static inline const int16_t *
act_sums(const void *row, uint32_t k64)
{
    return (const int16_t *)(const void *)(act_scales(row, k64) + k64 / GROUP_K);
}

/* bfloat16, the upper half of a float: widened exactly, narrowed to nearest-even (a NaN stays one).
 */
static inline float
bf16_to_float(uint16_t v)
{
    const uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint16_t
bf16_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    /* Both are computed and one is chosen, which compilers can do for a vector of values. */
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, quiet = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/* IEEE half, widened exactly. */
static inline float
half_to_float(uint16_t h)
{
    const uint32_t exponent = h >> 10 & 0x1fu, fraction = h & 0x3ffu;
    const float small = (float)(int32_t)fraction * 0x1p-24f; /* zero and subnormals: exact */
    uint32_t bits;
    memcpy(&bits, &small, sizeof bits);
    if (exponent != 0) bits = (exponent + (exponent == 0x1fu ? 224 : 112)) << 23 | fraction << 13;
    bits |= (uint32_t)(h & 0x8000u) << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

#endif
