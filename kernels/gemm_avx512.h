/* gemm_avx512: what the inner kernels of the AVX-512 tiers share.  Include as avx512.h. */
#ifndef MOE_KERNELS_GEMM_AVX512_H
#define MOE_KERNELS_GEMM_AVX512_H

#include <assert.h>

#include "kernels/avx512.h"
#include "kernels/gemm_blocks.h"

/* Of 32 registers 24 hold sums: 12 rows by 2 tiles or 6 by 4. */
#define SUMS_MAX 24
#define ROWS_MAX_AVX512                                                                            \
    {                                                                                              \
        0, 12, 12, 0, 6                                                                            \
    }
#define TILES_MANY_AVX512 2

/* The combinations of rows and tiles that a pass may have, each with its own inlined body. */
#define CASE_4_TILES(body, rows)                                                                   \
    case (rows)*8 + 1: body(*c, rows, 1); return;                                                  \
    case (rows)*8 + 2: body(*c, rows, 2); return;                                                  \
    case (rows)*8 + 4:                                                                             \
        body(*c, rows, 4);                                                                         \
        return
#define CASE_2_TILES(body, rows)                                                                   \
    case (rows)*8 + 1: body(*c, rows, 1); return;                                                  \
    case (rows)*8 + 2:                                                                             \
        body(*c, rows, 2);                                                                         \
        return
#define DEFINE_PASS_AVX512(name, body)                                                             \
    static void name(const gemm_chunk *c, uint32_t rows, uint32_t tiles)                           \
    {                                                                                              \
        switch (rows * 8 + tiles) {                                                                \
            CASE_4_TILES(body, 1);                                                                 \
            CASE_4_TILES(body, 2);                                                                 \
            CASE_4_TILES(body, 3);                                                                 \
            CASE_4_TILES(body, 4);                                                                 \
            CASE_4_TILES(body, 5);                                                                 \
            CASE_4_TILES(body, 6);                                                                 \
            CASE_2_TILES(body, 7);                                                                 \
            CASE_2_TILES(body, 8);                                                                 \
            CASE_2_TILES(body, 9);                                                                 \
            CASE_2_TILES(body, 10);                                                                \
            CASE_2_TILES(body, 11);                                                                \
            CASE_2_TILES(body, 12);                                                                \
        default: assert(0 && "no such shape");                                                     \
        }                                                                                          \
    }

/* Register r * tiles + t holds row r, tile t. */
KERNEL_INLINE void
sums_load(gemm_chunk c, __m512 *s, int rows, int tiles)
{
    EACH_ROW(r, EACH_TILE(t, s[r * tiles + t] = _mm512_load_ps(c.acc + t * ACC_TILE + r * TILE_N);))
}

KERNEL_INLINE void
sums_store(gemm_chunk c, const __m512 *s, int rows, int tiles)
{
    EACH_ROW(r, EACH_TILE(t, _mm512_store_ps(c.acc + t * ACC_TILE + r * TILE_N, s[r * tiles + t]);))
}

static inline void
silu_store_avx512(const float *acc, uint32_t rows, uint32_t tiles, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t t = 0; t < tiles; t += 2) {
            const float *gate = acc + t * ACC_TILE + r * TILE_N;
            const __m512 y =
                _mm512_mul_ps(silu_16(_mm512_load_ps(gate)), _mm512_load_ps(gate + ACC_TILE));
            _mm512_storeu_ps(out + r * out_stride + t / 2 * TILE_N, y);
        }
    }
}

#endif
