/* gemm_blocks: how the vector tiers cut a product (gemm.h) into pieces that fit registers and
 * caches.  The cuts never reach a result: an output's partial sum rests in memory as a float
 * between pieces, and its terms are added in the same order whatever the cuts.
 *
 *   block   up to BLOCK_ROWS rows
 *   bundle  up to BUNDLE_TILES tiles
 *   chunk   a stretch of K
 *   pass    a few rows and 1, 2 or 4 tiles whose sums fit the registers: the inner kernel
 *
 * A block's rows are staged first (copied or converted to what the inner kernel wants, at a fixed
 * stride), or, if they are too many, chunk after chunk for each bundle.  Of each bundle, chunk
 * after chunk, each few tiles are read by pass after pass.  So weights come from DRAM once a block,
 * and from the L1 cache for all passes but the first.  Every pass also prefetches its share of the
 * weights that come next: memory is read at an even pace while arithmetic goes on.
 *
 * Threads: gemm_blocks() is pure.
 */
#ifndef MOE_KERNELS_GEMM_BLOCKS_H
#define MOE_KERNELS_GEMM_BLOCKS_H

#include "kernels/gemm.h"

#define BLOCK_ROWS 112
#define BUNDLE_TILES 32
#define ACC_TILE (BLOCK_ROWS * TILE_N) /* floats between tiles of sums; rows lie side by side */
#define STAGE_STRIDE_MAX 576           /* bytes between staged rows */

/* What an inner kernel works on. */
typedef struct gemm_chunk {
    const char *w; /* the first tile's bytes of this chunk */
    size_t tile_bytes;
    uint32_t count;     /* of K, a multiple of GROUP_K */
    const char *next;   /* prefetch here, and at the same distances from it as tiles lie apart; */
    uint32_t next_step; /* move on by so many bytes for each 64 bytes of a tile.  May lie beyond
                           the weights. */
    const char *a;      /* staged rows */
    float *acc;         /* row r, tile t at acc + t * ACC_TILE + r * TILE_N; read and written */
} gemm_chunk;

typedef struct gemm_kernel {
    moe_dtype dtype;
    uint32_t chunk_k; /* a multiple of GROUP_K; a staged row of it fits stage_stride */
    /* Bytes between staged rows, at most STAGE_STRIDE_MAX; an odd number of cache lines spreads
     * the rows of a pass over the sets of the L1 cache. */
    uint32_t stage_stride;
    uint32_t rows_max[5]; /* [1], [2], [4]: most rows of a pass with that many tiles */
    uint32_t tiles_many;  /* tiles of a pass where the rows need several passes: 1 or 2 */

    /* Elements k..k + count - 1 of one activation row (packed.h) -> staged row. */
    void (*stage)(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged);
    /* One pass; 1 <= rows <= rows_max[tiles]. */
    void (*pass)(const gemm_chunk *c, uint32_t rows, uint32_t tiles);
    /* out = silu(gate) * up of the tile pairs in acc. */
    void (*silu)(const float *acc, uint32_t rows, uint32_t tiles, float *out, size_t out_stride);
} gemm_kernel;

/* One step of a pass's prefetching.  Software must do it: the hardware's own prefetch follows the
 * loads, and a pass of several rows moves on too slowly to draw it far enough ahead.  Into L2:
 * misses of the L1 cache are few at a time, and prefetches into it would hold up the loads
 * (measured with VNNI: 4 rows of int8 reach about 90 % of memory's bandwidth, where they had 65 %).
 */
static inline __attribute__((always_inline)) void
prefetch_tiles(gemm_chunk c, const char *next, int tiles)
{
    __builtin_prefetch(next, 0, 2);
    if (tiles > 1) __builtin_prefetch(next + c.tile_bytes, 0, 2);
    if (tiles > 2) __builtin_prefetch(next + 2 * c.tile_bytes, 0, 2);
    if (tiles > 3) __builtin_prefetch(next + 3 * c.tile_bytes, 0, 2);
}

/* The product of gemm.h; silu: its gemm_silu. */
void gemm_blocks(const gemm_args *args, const gemm_kernel *kernel, bool silu);

#endif
