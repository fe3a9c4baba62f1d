/* gemm_avx512: f32 products, and bf16 ones that round as gemm_ref does: widened, then FMA. */
#include "kernels/gemm_avx512.h"

#include <string.h>

#include "kernels/tiers.h"

#define CHUNK_K 128

#define STAGE_STRIDE (CHUNK_K * sizeof(float) + 64)

static_assert(STAGE_STRIDE <= STAGE_STRIDE_MAX, "a row fits");

static void
stage_float(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    (void)k64;
    memcpy(staged, row + (size_t)k * sizeof(float), count * sizeof(float));
}

KERNEL_INLINE __m512
broadcast(gemm_chunk c, int r, uint32_t k)
{
    return _mm512_set1_ps(((const float *)(const void *)(c.a + r * STAGE_STRIDE))[k]);
}

KERNEL_INLINE void
f32_pass(gemm_chunk c, int rows, int tiles)
{
    const char *w = c.w, *next = c.next;
    __m512 s[SUMS_MAX];
    sums_load(c, s, rows, tiles);
    for (uint32_t k = 0; k < c.count; k++, w += 64, next += c.next_step) {
        __m512 v[4];
        EACH_TILE(t, v[t] = _mm512_load_ps(w + t * c.tile_bytes);)
        prefetch_tiles(c, next, tiles);
        EACH_ROW(r, const __m512 x = broadcast(c, r, k);
                 EACH_TILE(t, s[r * tiles + t] = _mm512_fmadd_ps(x, v[t], s[r * tiles + t]);))
    }
    sums_store(c, s, rows, tiles);
}

/* A 32-bit lane holds the weights of k (lower half) and k + 1 (upper half). */
KERNEL_INLINE void
bf16_pass(gemm_chunk c, int rows, int tiles)
{
    const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    const char *w = c.w, *next = c.next;
    __m512 s[SUMS_MAX];
    sums_load(c, s, rows, tiles);
    for (uint32_t k = 0; k < c.count; k += 2, w += 64, next += c.next_step) {
        __m512i both[4];
        __m512 v[4];
        EACH_TILE(t, both[t] = _mm512_load_si512(w + t * c.tile_bytes);
                  v[t] = _mm512_castsi512_ps(_mm512_slli_epi32(both[t], 16));)
        prefetch_tiles(c, next, tiles);
        EACH_ROW(r, const __m512 x = broadcast(c, r, k);
                 EACH_TILE(t, s[r * tiles + t] = _mm512_fmadd_ps(x, v[t], s[r * tiles + t]);))
        EACH_TILE(t, v[t] = _mm512_castsi512_ps(_mm512_and_si512(both[t], upper));)
        EACH_ROW(r, const __m512 x = broadcast(c, r, k + 1);
                 EACH_TILE(t, s[r * tiles + t] = _mm512_fmadd_ps(x, v[t], s[r * tiles + t]);))
    }
    sums_store(c, s, rows, tiles);
}

DEFINE_PASS_AVX512(pass_f32, f32_pass)
DEFINE_PASS_AVX512(pass_bf16, bf16_pass)

static const gemm_kernel f32_kernel = {
    .dtype = DTYPE_F32,
    .chunk_k = CHUNK_K,
    .stage_stride = STAGE_STRIDE,
    .rows_max = ROWS_MAX_AVX512,
    .tiles_many = TILES_MANY_AVX512,
    .stage = stage_float,
    .pass = pass_f32,
    .silu = silu_store_avx512,
};

static const gemm_kernel bf16_kernel = {
    .dtype = DTYPE_BF16,
    .chunk_k = CHUNK_K,
    .stage_stride = STAGE_STRIDE,
    .rows_max = ROWS_MAX_AVX512,
    .tiles_many = TILES_MANY_AVX512,
    .stage = stage_float,
    .pass = pass_bf16,
    .silu = silu_store_avx512,
};

void
gemm_f32_avx512(const gemm_args *args)
{
    gemm_blocks(args, &f32_kernel, false);
}

void
gemm_silu_f32_avx512(const gemm_args *args)
{
    gemm_blocks(args, &f32_kernel, true);
}

void
gemm_bf16_avx512(const gemm_args *args)
{
    gemm_blocks(args, &bf16_kernel, false);
}

void
gemm_silu_bf16_avx512(const gemm_args *args)
{
    gemm_blocks(args, &bf16_kernel, true);
}
