/* gemm_avx512_bf16: bf16 products with vdpbf16ps, 32 multiply-adds an instruction.  Rows become
 * bfloat16 as they are staged. */
#include "kernels/gemm_avx512.h"
#include "kernels/tiers.h"

#define CHUNK_K 256

#define STAGE_STRIDE (CHUNK_K * 2 + 64)

static_assert(STAGE_STRIDE <= STAGE_STRIDE_MAX, "a row fits");

static void
stage_bf16(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    (void)k64;
    const float *a = (const float *)(const void *)row + k;
    for (uint32_t i = 0; i < count; i += 32) {
        const __m512 low = _mm512_load_ps(a + i), high = _mm512_load_ps(a + i + 16);
        _mm512_store_si512(staged + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

KERNEL_INLINE __m512i
broadcast2(gemm_chunk c, int r, uint32_t k)
{
    return _mm512_set1_epi32(((const int32_t *)(const void *)(c.a + r * STAGE_STRIDE))[k / 2]);
}

/* _mm512_dpbf16_ps, in place: compilers copy the sum around the intrinsic. */
KERNEL_INLINE __m512
dot2(__m512 sum, __m512i w, __m512i x)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

KERNEL_INLINE void
bf16_pass(gemm_chunk c, int rows, int tiles)
{
    const char *w = c.w, *next = c.next;
    __m512 s[SUMS_MAX];
    sums_load(c, s, rows, tiles);
    for (uint32_t k = 0; k < c.count; k += 2, w += 64, next += c.next_step) {
        __m512i v[4];
        EACH_TILE(t, v[t] = _mm512_load_si512(w + t * c.tile_bytes);)
        prefetch_tiles(c, next, tiles);
        EACH_ROW(r, const __m512i x = broadcast2(c, r, k);
                 EACH_TILE(t, s[r * tiles + t] = dot2(s[r * tiles + t], v[t], x);))
    }
    sums_store(c, s, rows, tiles);
}

DEFINE_PASS_AVX512(pass_bf16, bf16_pass)

static const gemm_kernel kernel = {
    .dtype = DTYPE_BF16,
    .chunk_k = CHUNK_K,
    .stage_stride = STAGE_STRIDE,
    .rows_max = ROWS_MAX_AVX512,
    .tiles_many = TILES_MANY_AVX512,
    .stage = stage_bf16,
    .pass = pass_bf16,
    .silu = silu_store_avx512,
};

void
gemm_bf16_avx512_bf16(const gemm_args *args)
{
    gemm_blocks(args, &kernel, false);
}

void
gemm_silu_bf16_avx512_bf16(const gemm_args *args)
{
    gemm_blocks(args, &kernel, true);
}
