#include "kernels/gemm_blocks.h"

#include <assert.h>
#include <string.h>

/* How far before a single pass weights are prefetched, over all tiles at hand: more than memory
 * delivers during its own latency. */
#define AHEAD_BYTES 8192

/* Staged rows; what has more is staged anew for each bundle. */
#define STAGED_BYTES (256u << 10)

/* One block of rows against one bundle of tiles. */
typedef struct block {
    const gemm_kernel *kernel;
    const char *a[BLOCK_ROWS]; /* activation rows */
    uint32_t rows;
    uint32_t k64;
    const char *w; /* of the bundle */
    const char *w_end;
    uint32_t tiles;
    size_t tile_bytes;
    _Alignas(64) float acc[BUNDLE_TILES * ACC_TILE];
    bool all_staged; /* every chunk, one behind the other; else the one at hand */
    _Alignas(64) char staged[STAGED_BYTES];
} block;

static_assert(BLOCK_ROWS *STAGE_STRIDE_MAX <= STAGED_BYTES, "one chunk of a block");

static uint32_t
min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Tiles that pass together: few rows take four, so that enough sums are under way at once. */
static uint32_t
tiles_beside(const gemm_kernel *kernel, uint32_t rows, uint32_t tiles)
{
    if (tiles >= 4 && rows <= kernel->rows_max[4]) return 4;
    if (tiles >= 2 && rows <= kernel->rows_max[2]) return 2;
    return min_u32(tiles, kernel->tiles_many);
}

/* All rows of the block times `tiles` tiles, over one chunk; the rows are spread evenly over as few
 * passes as will do (8 rows where 6 fit: 4 + 4), and so is the prefetching of the next chunk. */
static void
run_passes(const block *b, gemm_chunk c, uint32_t tiles)
{
    const uint32_t most = b->kernel->rows_max[tiles];
    const uint32_t passes = (b->rows + most - 1) / most;
    const size_t bytes = tile_bytes(b->kernel->dtype, c.count);
    c.next_step = (64 + passes - 1) / passes;
    uint32_t left = b->rows;
    for (uint32_t pass = passes; pass > 0; pass--) {
        const uint32_t rows = (left + pass - 1) / pass;
        b->kernel->pass(&c, rows, tiles);
        c.next += bytes / passes;
        c.a += (size_t)rows * b->kernel->stage_stride;
        c.acc += (size_t)rows * TILE_N;
        left -= rows;
    }
}

static void
stage_rows(const block *b, uint32_t k, uint32_t count, char *staged)
{
    for (uint32_t r = 0; r < b->rows; r++)
        b->kernel->stage(b->a[r], b->k64, k, count, staged + (size_t)r * b->kernel->stage_stride);
}

static char *
staged_chunk(block *b, uint32_t k)
{
    return b->staged + (size_t)(k / b->kernel->chunk_k) * b->rows * b->kernel->stage_stride;
}

/* Once for all bundles, if there is room. */
static void
stage_block(block *b)
{
    const uint32_t step = b->kernel->chunk_k;
    const size_t chunks = (b->k64 + step - 1) / step;
    b->all_staged = chunks * b->rows * b->kernel->stage_stride <= sizeof b->staged;
    for (uint32_t k = 0; b->all_staged && k < b->k64; k += step)
        stage_rows(b, k, min_u32(step, b->k64 - k), staged_chunk(b, k));
}

/* The rows' chunk that begins at k. */
static const char *
chunk_rows(block *b, uint32_t k, uint32_t count)
{
    if (b->all_staged) return staged_chunk(b, k);
    stage_rows(b, k, count, b->staged);
    return b->staged;
}

static size_t
offset_of(const block *b, uint32_t k)
{
    return tile_bytes(b->kernel->dtype, k);
}

/* Many rows: several passes over each chunk of each few tiles.  While one is at work, the next
 * comes: the bundle's further tiles, else its first ones further along K, else the next bundle. */
static void
run_many(block *b)
{
    const uint32_t step = b->kernel->chunk_k;
    for (uint32_t k = 0, count; k < b->k64; k += count) {
        count = min_u32(step, b->k64 - k);
        const char *rows = chunk_rows(b, k, count);
        for (uint32_t t = 0, tiles; t < b->tiles; t += tiles) {
            tiles = tiles_beside(b->kernel, b->rows, b->tiles - t);
            const char *w = b->w + t * b->tile_bytes + offset_of(b, k);
            const char *next = w + tiles * b->tile_bytes;
            if (t + tiles == b->tiles)
                next = k + count < b->k64 ? b->w + offset_of(b, k + count)
                                          : b->w + b->tiles * b->tile_bytes;
            const gemm_chunk c = {.w = w,
                                  .tile_bytes = b->tile_bytes,
                                  .count = count,
                                  .next = next < b->w_end ? next : w,
                                  .a = rows,
                                  .acc = b->acc + t * ACC_TILE};
            run_passes(b, c, tiles);
        }
    }
}

/* Few rows: one pass over the bundle's tiles from end to end, always some chunks before it; the
 * last of them are followed by the next bundle's first. */
static void
run_once(block *b)
{
    const uint32_t step = b->kernel->chunk_k;
    const size_t chunk_bytes = offset_of(b, step) * b->tiles;
    const uint32_t tail_k = (uint32_t)((AHEAD_BYTES + chunk_bytes - 1) / chunk_bytes) * step;
    const size_t ahead = offset_of(b, tail_k);
    const uint32_t turn = b->k64 > tail_k ? (b->k64 - tail_k + step - 1) / step * step : 0;
    for (uint32_t k = 0, count; k < b->k64; k += count) {
        count = min_u32(step, b->k64 - k);
        const char *rows = chunk_rows(b, k, count);
        const char *w = b->w + offset_of(b, k);
        const char *next = k < turn
                               ? w + ahead
                               : b->w + b->tiles * b->tile_bytes + (w - b->w) - offset_of(b, turn);
        gemm_chunk c = {.w = w,
                        .tile_bytes = b->tile_bytes,
                        .count = count,
                        .next = next < b->w_end ? next : w,
                        .next_step = 64,
                        .a = rows,
                        .acc = b->acc};
        b->kernel->pass(&c, b->rows, b->tiles);
    }
}

static void
run_bundle(block *b)
{
    for (uint32_t t = 0; t < b->tiles; t++)
        memset(b->acc + t * ACC_TILE, 0, b->rows * TILE_N * sizeof(float));
    if (b->rows <= b->kernel->rows_max[b->tiles <= 4 ? b->tiles : 0])
        run_once(b);
    else
        run_many(b);
}

static void
store_plain(const block *b, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < b->rows; r++) {
        for (uint32_t t = 0; t < b->tiles; t++)
            memcpy(out + r * out_stride + t * TILE_N, b->acc + t * ACC_TILE + r * TILE_N,
                   TILE_N * sizeof *out);
    }
}

static void
run_block(block *b, const gemm_args *args, float *out, bool silu)
{
    const uint32_t beside = tiles_beside(b->kernel, b->rows, BUNDLE_TILES);
    /* Rows that pass at once read a few tiles from end to end; more rows share a staged chunk among
     * more tiles. */
    const bool once = b->rows <= b->kernel->rows_max[beside];
    const uint32_t bundle = !once ? BUNDLE_TILES : beside < 2 ? 2 : beside;
    stage_block(b);
    const char *w = args->w;
    b->w_end = w + args->tile_end * b->tile_bytes;
    for (uint32_t t = args->tile_begin; t < args->tile_end; t += bundle) {
        b->w = w + t * b->tile_bytes;
        b->tiles = min_u32(bundle, args->tile_end - t);
        run_bundle(b);
        if (silu)
            b->kernel->silu(b->acc, b->rows, b->tiles, out + (size_t)t / 2 * TILE_N,
                            args->out_stride);
        else
            store_plain(b, out + (size_t)t * TILE_N, args->out_stride);
    }
}

void
gemm_blocks(const gemm_args *args, const gemm_kernel *kernel, bool silu)
{
    assert(!silu || (args->tile_begin % 2 == 0 && args->tile_end % 2 == 0));
    if (args->m == 0) return;
    block b; /* not initialized as a whole: it is large */
    b.kernel = kernel;
    b.k64 = pad_k(args->k);
    b.tile_bytes = tile_bytes(kernel->dtype, args->k);

    uint32_t blocks = (args->m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (uint32_t i = 0; i < args->m; blocks--) {
        b.rows = (args->m - i + blocks - 1) / blocks;
        for (uint32_t r = 0; r < b.rows; r++) {
            const size_t row = args->rows ? args->rows[i + r] : i + r;
            b.a[r] = (const char *)args->a + row * args->a_stride;
        }
        run_block(&b, args, args->out + i * args->out_stride, silu);
        i += b.rows;
    }
}
