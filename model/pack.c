#include "model/pack.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* A block is one group along K of one tile: 16 features x 64.  In every dtype its packed bytes are
 * contiguous and blocks follow each other, so a tile is packed block by block through a scratch
 * that stays in the L1 cache. */
typedef struct weight_block {
    float w[TILE_N][GROUP_K];
} weight_block;

static float
float_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t
bits_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void
read_f16(float *out, const unsigned char *p, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, p + i * sizeof h, sizeof h);
        out[i] = half_to_float(h);
    }
}

static void
read_bf16(float *out, const unsigned char *p, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, p + i * sizeof h, sizeof h);
        out[i] = bf16_to_float(h);
    }
}

void
tensor_read_f32(const tensor_view *t, size_t begin, size_t count, float *out)
{
    const size_t element = t->dtype == TENSOR_F32 ? 4 : 2;
    assert(begin <= t->bytes / element && count <= t->bytes / element - begin);
    if (count == 0) return;
    const unsigned char *p = (const unsigned char *)t->data + begin * element;
    switch (t->dtype) {
    case TENSOR_F32: memcpy(out, p, count * element); break;
    case TENSOR_F16: read_f16(out, p, count); break;
    case TENSOR_BF16: read_bf16(out, p, count); break;
    }
}

static void
pack_block_f32(unsigned char *dst, const weight_block *block)
{
    float out[GROUP_K][TILE_N];
    for (int k = 0; k < GROUP_K; k++) {
        for (int n = 0; n < TILE_N; n++) {
            out[k][n] = block->w[n][k];
        }
    }
    memcpy(dst, out, sizeof out);
}

static void
pack_block_bf16(unsigned char *dst, const weight_block *block)
{
    uint16_t out[GROUP_K / 2][TILE_N][2];
    for (int k = 0; k < GROUP_K; k += 2) {
        for (int n = 0; n < TILE_N; n++) {
            out[k / 2][n][0] = bf16_from_float(block->w[n][k]);
            out[k / 2][n][1] = bf16_from_float(block->w[n][k + 1]);
        }
    }
    memcpy(dst, out, sizeof out);
}

/* The largest magnitude, or infinity when a value is NaN or infinite.  The bits of non-negative
 * floats are ordered as integers, and NaNs lie above infinity: no value is skipped. */
static float
largest_magnitude(const float w[GROUP_K])
{
    int32_t most = 0;
    for (int k = 0; k < GROUP_K; k++) {
        const int32_t bits = (int32_t)(bits_from_float(w[k]) & 0x7fffffffu);
        most = bits > most ? bits : most;
    }
    return most >= 0x7f800000 ? INFINITY : float_from_bits((uint32_t)most);
}

/* q + 128 of q = nearest-even(w * inverse), |w * inverse| < 2^22.  Adding 1.5 * 2^23 leaves no
 * fraction bits, so the addition itself rounds, and the low byte of the sum is q: the same as
 * rintf, but a form that compilers turn into vector code for any CPU. */
static void
quantize_row(uint8_t bytes[GROUP_K], const float w[GROUP_K], float inverse)
{
    for (int k = 0; k < GROUP_K; k++) {
        const float scaled = w[k] * inverse;
        bytes[k] = (uint8_t)(bits_from_float(scaled + 0x1.8p23f) + 128u);
    }
}

static moe_err
pack_block_int8(unsigned char *dst, const weight_block *block)
{
    float scales[TILE_N];
    uint8_t q[GROUP_K], out[GROUP_K / 4][TILE_N][4];
    for (int n = 0; n < TILE_N; n++) {
        const float most = largest_magnitude(block->w[n]);
        if (most == INFINITY) return MOE_EINVAL;
        const bool zeros = most < PACK_INT8_ZERO_BELOW;
        scales[n] = zeros ? 0 : most / 127.0f;
        quantize_row(q, block->w[n], zeros ? 0 : 127.0f / most);
        for (int k = 0; k < GROUP_K; k += 4) {
            memcpy(out[k / 4][n], q + k, 4);
        }
    }
    memcpy(dst, out, sizeof out);
    memcpy(dst + sizeof out, scales, sizeof scales);
    return MOE_OK;
}

/* Nearest-even; beyond the largest half: infinity. |f| >= 2^-25 or 0. */
static uint16_t
narrow_half(float f)
{
    const uint32_t bits = bits_from_float(f), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* 65520 */
    if (magnitude < 0x38800000u) { /* below 2^-14: a subnormal, counted in units of 2^-24 */
        const float units = float_from_bits(magnitude) * 0x1p24f + 0x1.8p23f;
        return (uint16_t)(sign | (bits_from_float(units) & 0x7ffu));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

/* One group of int4 weights, features across lanes: every loop over n is one vector operation. */
typedef struct int4_group {
    float w[GROUP_INT4][TILE_N];
} int4_group;

/* m: the value of largest magnitude, the first of equals.  False: some value is not finite. */
static bool
extremes(float m[TILE_N], const int4_group *group)
{
    uint32_t most[TILE_N] = {0}, all = 0;
    for (int n = 0; n < TILE_N; n++)
        m[n] = 0;
    for (int k = 0; k < GROUP_INT4; k++) {
        for (int n = 0; n < TILE_N; n++) {
            const uint32_t bits = bits_from_float(group->w[k][n]) & 0x7fffffffu;
            m[n] = bits > most[n] ? group->w[k][n] : m[n];
            most[n] = bits > most[n] ? bits : most[n];
        }
    }
    for (int n = 0; n < TILE_N; n++)
        all = most[n] > all ? most[n] : all;
    return all < 0x7f800000u;
}

static inline float
round_int4(float scaled)
{
    scaled = scaled > -8.0f ? scaled : -8.0f;
    scaled = scaled < 7.0f ? scaled : 7.0f;
    return scaled + 0x1.8p23f - 0x1.8p23f;
}

/* best: for each lane the scale of least squared error among the trials m / c. */
static void
search_scales(float best[TILE_N], const int4_group *group, const float m[TILE_N])
{
    static const float trials[] = {-8.0f, -7.5f, -8.5f, -7.0f, -9.0f};
    float best_score[TILE_N];
    for (int n = 0; n < TILE_N; n++)
        best[n] = best_score[n] = 0;
    for (size_t c = 0; c < sizeof trials / sizeof trials[0]; c++) {
        float inverse[TILE_N], wq[TILE_N] = {0}, qq[TILE_N] = {0};
        for (int n = 0; n < TILE_N; n++)
            inverse[n] = m[n] == 0 ? 0 : trials[c] / m[n];
        for (int k = 0; k < GROUP_INT4; k++) {
            for (int n = 0; n < TILE_N; n++) {
                const float q = round_int4(group->w[k][n] * inverse[n]);
                wq[n] += group->w[k][n] * q;
                qq[n] += q * q;
            }
        }
        /* The error with the best scale is sum(w w) - wq * wq / qq. */
        for (int n = 0; n < TILE_N; n++) {
            const float scale = qq[n] > 0 ? wq[n] / qq[n] : 0, score = wq[n] * scale;
            best[n] = score > best_score[n] ? scale : best[n];
            best_score[n] = score > best_score[n] ? score : best_score[n];
        }
    }
}

/* nibbles [4][16][4] of one group, and its scales. */
static moe_err
pack_group_int4(uint8_t nibbles[GROUP_INT4 / 8][TILE_N][4], uint16_t scales[TILE_N],
                const int4_group *group)
{
    float m[TILE_N], inverse[TILE_N];
    if (!extremes(m, group)) return MOE_EINVAL;
    for (int n = 0; n < TILE_N; n++) {
        if (fabsf(m[n]) > 8 * 65504.0f) return MOE_EINVAL;
        m[n] = fabsf(m[n]) < PACK_INT4_ZERO_BELOW ? 0 : m[n];
    }
    search_scales(inverse, group, m);
    for (int n = 0; n < TILE_N; n++) {
        scales[n] = narrow_half(inverse[n]);
        if ((scales[n] & 0x7fffu) == 0x7c00u) return MOE_EINVAL;
        inverse[n] = (scales[n] & 0x7fffu) == 0 ? 0 : 1.0f / half_to_float(scales[n]);
    }
    for (int k = 0; k < GROUP_INT4 / 2; k++) {
        for (int n = 0; n < TILE_N; n++) {
            const uint32_t low = (uint32_t)(int32_t)round_int4(group->w[k][n] * inverse[n]) + 8;
            const uint32_t high =
                (uint32_t)(int32_t)round_int4(group->w[k + GROUP_INT4 / 2][n] * inverse[n]) + 8;
            nibbles[k / 4][n][k % 4] = (uint8_t)(low | high << 4);
        }
    }
    return MOE_OK;
}

static moe_err
pack_block_int4(unsigned char *dst, const weight_block *block)
{
    uint8_t nibbles[2][GROUP_INT4 / 8][TILE_N][4];
    uint16_t scales[2][TILE_N];
    int4_group groups[2];
    for (int n = 0; n < TILE_N; n++) {
        for (int k = 0; k < GROUP_K; k++)
            groups[k / GROUP_INT4].w[k % GROUP_INT4][n] = block->w[n][k];
    }
    for (int g = 0; g < 2; g++) {
        const moe_err err = pack_group_int4(nibbles[g], scales[g], &groups[g]);
        if (err) return err;
    }
    memcpy(dst, nibbles, sizeof nibbles);
    memcpy(dst + sizeof nibbles, scales, sizeof scales);
    return MOE_OK;
}

/* Rows [row, row + rows) and columns [col, col + cols) of t; the rest of the block is zero. */
static void
read_block(weight_block *block, const tensor_view *t, uint32_t row, uint32_t rows, uint32_t col,
           uint32_t cols)
{
    const size_t k = (size_t)t->shape[1];
    if (rows < TILE_N || cols < GROUP_K) memset(block, 0, sizeof *block);
    for (uint32_t n = 0; n < rows; n++) {
        tensor_read_f32(t, (row + n) * k + col, cols, block->w[n]);
    }
}

/* One tile: `rows` rows of t from `row` on, columns [col_begin, col_end). */
static moe_err
pack_tile(unsigned char *dst, moe_dtype dtype, const tensor_view *t, uint32_t row, uint32_t rows,
          uint32_t col_begin, uint32_t col_end)
{
    const size_t block_bytes = tile_bytes(dtype, GROUP_K);
    for (uint32_t col = col_begin; col < col_end; dst += block_bytes) {
        const uint32_t cols = col_end - col < GROUP_K ? col_end - col : GROUP_K;
        weight_block block;
        moe_err err = MOE_OK;
        read_block(&block, t, row, rows, col, cols);
        if (dtype == DTYPE_F32)
            pack_block_f32(dst, &block);
        else if (dtype == DTYPE_BF16)
            pack_block_bf16(dst, &block);
        else if (dtype == DTYPE_INT8)
            err = pack_block_int8(dst, &block);
        else
            err = pack_block_int4(dst, &block);
        if (err) return err;
        col += cols;
    }
    return MOE_OK;
}

/* Tiles of t's rows [row_begin, row_end), each `stride` bytes after the one before. */
static moe_err
pack_tiles(unsigned char *dst, size_t stride, moe_dtype dtype, const tensor_view *t,
           uint32_t row_begin, uint32_t row_end, uint32_t col_begin, uint32_t col_end)
{
    assert(t->rank == 2 && (unsigned)dtype < DTYPE_COUNT);
    assert(row_begin <= row_end && row_end <= t->shape[0]);
    assert(col_begin <= col_end && col_end <= t->shape[1]);
    for (uint32_t row = row_begin; row < row_end; dst += stride) {
        const uint32_t rows = row_end - row < TILE_N ? row_end - row : TILE_N;
        const moe_err err = pack_tile(dst, dtype, t, row, rows, col_begin, col_end);
        if (err) return err;
        row += rows;
    }
    return MOE_OK;
}

moe_err
pack_matrix(void *dst, moe_dtype dtype, const tensor_view *t, uint32_t row_begin, uint32_t row_end,
            uint32_t col_begin, uint32_t col_end)
{
    return pack_tiles(dst, tile_bytes(dtype, col_end - col_begin), dtype, t, row_begin, row_end,
                      col_begin, col_end);
}

moe_err
pack_gate_up(void *dst, moe_dtype dtype, const tensor_view *w1, const tensor_view *w3,
             uint32_t row_begin, uint32_t row_end)
{
    const uint32_t k = (uint32_t)w1->shape[1];
    assert(w3->shape[1] == k);
    const size_t tile = tile_bytes(dtype, k);
    moe_err err = pack_tiles(dst, 2 * tile, dtype, w1, row_begin, row_end, 0, k);
    if (err) return err;
    return pack_tiles((unsigned char *)dst + tile, 2 * tile, dtype, w3, row_begin, row_end, 0, k);
}

void
expert_layout_init(expert_layout *out, moe_dtype dtype, const model_config *config,
                   uint32_t width_begin, uint32_t width_end)
{
    assert(width_begin <= width_end && width_end <= config->intermediate_size);
    const uint32_t width = width_end - width_begin;
    *out = (expert_layout){
        .dtype = dtype,
        .hidden = config->hidden_size,
        .width_begin = width_begin,
        .width_end = width_end,
        .gate_up_bytes = packed_bytes(dtype, 2 * round_up_u32(width, TILE_N), config->hidden_size),
        .down_bytes = packed_bytes(dtype, config->hidden_size, width),
    };
    out->slot_bytes = out->gate_up_bytes + out->down_bytes;
}

static uint32_t
min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void
tp_slice(uint32_t intermediate, uint32_t rank, uint32_t ranks, uint32_t *begin, uint32_t *end)
{
    assert(rank < ranks);
    const uint32_t groups = pad_k(intermediate) / GROUP_K;
    const uint32_t each = groups / ranks, extra = groups % ranks;
    const uint32_t first = rank * each + min_u32(rank, extra);
    *begin = min_u32(first * GROUP_K, intermediate);
    *end = min_u32((first + each + (rank < extra)) * GROUP_K, intermediate);
}

moe_err
pack_expert(void *slot, const expert_layout *layout, const checkpoint *c, uint32_t layer,
            uint32_t expert)
{
    const tensor_view *w1 = checkpoint_tensor(c, TENSOR_W1, layer, expert);
    const tensor_view *w2 = checkpoint_tensor(c, TENSOR_W2, layer, expert);
    const tensor_view *w3 = checkpoint_tensor(c, TENSOR_W3, layer, expert);
    const uint32_t begin = layout->width_begin, end = layout->width_end;
    moe_err err = pack_gate_up(slot, layout->dtype, w1, w3, begin, end);
    if (err) return err;
    return pack_matrix((unsigned char *)slot + layout->gate_up_bytes, layout->dtype, w2, 0,
                       layout->hidden, begin, end);
}
