/* gemm_ref: the definition of gemm.h, one tile and one row at a time. */
#include "kernels/gemm.h"

#include <math.h>

#include "kernels/expf.h"
#include "kernels/tiers.h"

/* One row times one tile of 16 features; k64 is the padded K. */
typedef void tile_fn(const void *tile, const void *act, uint32_t k64, float out[TILE_N]);

static void
tile_f32(const void *tile, const void *act, uint32_t k64, float out[TILE_N])
{
    const float *w = tile, *a = act;
    for (uint32_t k = 0; k < k64; k++) {
        for (uint32_t n = 0; n < TILE_N; n++)
            out[n] = fmaf(a[k], w[(size_t)k * TILE_N + n], out[n]);
    }
}

static void
tile_bf16(const void *tile, const void *act, uint32_t k64, float out[TILE_N])
{
    const uint16_t *w = tile;
    const float *a = act;
    for (uint32_t k = 0; k < k64; k++) {
        const uint16_t *pair = w + (size_t)(k / 2) * TILE_N * 2 + k % 2;
        for (uint32_t n = 0; n < TILE_N; n++)
            out[n] = fmaf(a[k], bf16_to_float(pair[2 * n]), out[n]);
    }
}

static int32_t
dot_group(const int8_t *a, const uint8_t *w, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < GROUP_K; k++)
        sum += a[k] * (w[k / 4 * TILE_N * 4 + n * 4 + k % 4] - 128);
    return sum;
}

static void
tile_int8(const void *tile, const void *act, uint32_t k64, float out[TILE_N])
{
    const uint8_t *w = tile;
    const int8_t *a = act;
    const float *a_scale = act_scales(act, k64);
    for (uint32_t g = 0; g < k64 / GROUP_K; g++) {
        const float *w_scale = (const float *)(const void *)(w + GROUP_K * TILE_N);
        for (uint32_t n = 0; n < TILE_N; n++) {
            const float sum = (float)dot_group(a + g * GROUP_K, w, n);
            out[n] = fmaf(sum, a_scale[g] * w_scale[n], out[n]);
        }
        w += GROUP_K * TILE_N + TILE_N * sizeof(float);
    }
}

/* q of feature n and input k of a group of 32. */
static int32_t
nibble(const uint8_t *group, uint32_t n, uint32_t k)
{
    const uint32_t byte = group[k % 16 / 4 * TILE_N * 4 + n * 4 + k % 4];
    return (int32_t)(k < 16 ? byte & 0xf : byte >> 4) - 8;
}

static void
tile_int4(const void *tile, const void *act, uint32_t k64, float out[TILE_N])
{
    const uint8_t *w = tile;
    const int8_t *a = act;
    const float *a_scale = act_scales(act, k64);
    for (uint32_t g = 0; g < k64 / GROUP_INT4; g++) {
        const uint8_t *block = w + g / 2 * tile_bytes(DTYPE_INT4, GROUP_K);
        const uint8_t *group = block + g % 2 * (GROUP_INT4 * TILE_N / 2);
        const uint16_t *w_scale = (const uint16_t *)(const void *)(block + GROUP_INT4 * TILE_N);
        for (uint32_t n = 0; n < TILE_N; n++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < GROUP_INT4; k++)
                sum += a[g * GROUP_INT4 + k] * nibble(group, n, k);
            const float scale = a_scale[g / 2] * half_to_float(w_scale[g % 2 * TILE_N + n]);
            out[n] = fmaf((float)sum, scale, out[n]);
        }
    }
}

static const char *
act_row(const gemm_args *args, uint32_t i)
{
    const size_t row = args->rows ? args->rows[i] : i;
    return (const char *)args->a + row * args->a_stride;
}

static void
gemm(const gemm_args *args, moe_dtype dtype, tile_fn *tile)
{
    const size_t bytes = tile_bytes(dtype, args->k);
    for (uint32_t i = 0; i < args->m; i++) {
        for (uint32_t t = args->tile_begin; t < args->tile_end; t++) {
            float acc[TILE_N] = {0};
            tile((const char *)args->w + t * bytes, act_row(args, i), pad_k(args->k), acc);
            float *out = args->out + i * args->out_stride + (size_t)t * TILE_N;
            for (uint32_t n = 0; n < TILE_N; n++)
                out[n] = acc[n];
        }
    }
}

static void
gemm_silu(const gemm_args *args, moe_dtype dtype, tile_fn *tile)
{
    const size_t bytes = tile_bytes(dtype, args->k);
    for (uint32_t i = 0; i < args->m; i++) {
        for (uint32_t t = args->tile_begin; t < args->tile_end; t += 2) {
            const char *w = (const char *)args->w + t * bytes;
            float gate[TILE_N] = {0}, up[TILE_N] = {0};
            tile(w, act_row(args, i), pad_k(args->k), gate);
            tile(w + bytes, act_row(args, i), pad_k(args->k), up);
            float *out = args->out + i * args->out_stride + (size_t)t / 2 * TILE_N;
            for (uint32_t n = 0; n < TILE_N; n++)
                out[n] = kernel_silu(gate[n]) * up[n];
        }
    }
}

void
gemm_f32_ref(const gemm_args *args)
{
    gemm(args, DTYPE_F32, tile_f32);
}

void
gemm_bf16_ref(const gemm_args *args)
{
    gemm(args, DTYPE_BF16, tile_bf16);
}

void
gemm_int8_ref(const gemm_args *args)
{
    gemm(args, DTYPE_INT8, tile_int8);
}

void
gemm_int4_ref(const gemm_args *args)
{
    gemm(args, DTYPE_INT4, tile_int4);
}

void
gemm_silu_f32_ref(const gemm_args *args)
{
    gemm_silu(args, DTYPE_F32, tile_f32);
}

void
gemm_silu_bf16_ref(const gemm_args *args)
{
    gemm_silu(args, DTYPE_BF16, tile_bf16);
}

void
gemm_silu_int8_ref(const gemm_args *args)
{
    gemm_silu(args, DTYPE_INT8, tile_int8);
}

void
gemm_silu_int4_ref(const gemm_args *args)
{
    gemm_silu(args, DTYPE_INT4, tile_int4);
}
