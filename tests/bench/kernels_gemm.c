/* Products of rows and packed weights.  Weights come from memory: they lie in a ring of tiles that
 * no cache holds, and each call goes on where the last one ended. */
#include <stdlib.h>
#include <string.h>

#include "tests/bench/kernels_bench.h"

#define ITEM_SECONDS_MAX 0.5

typedef struct gemm_bench {
    pool *pool;
    gemm_fn *fn;
    moe_dtype dtype;
    uint32_t k, n, m;
    uint32_t rows_per_item, tiles_per_item, row_chunks;
    const char *weights;     /* [ring_tiles] tiles */
    size_t tile;             /* bytes */
    uint64_t ring_tiles, at; /* a multiple of tiles_per_item */
    const char *acts;        /* [m] activation rows */
    size_t act_bytes;
    float *out; /* [m][out_stride] */
    size_t out_stride;
    uint32_t tile_chunks; /* of one call */
} gemm_bench;

static void
gemm_item(void *arg, uint32_t item, uint32_t thread)
{
    const gemm_bench *g = arg;
    const uint32_t row0 = item / g->tile_chunks * g->rows_per_item;
    const uint32_t chunk = item % g->tile_chunks;
    const uint64_t tile = (g->at + (uint64_t)chunk * g->tiles_per_item) % g->ring_tiles;
    const gemm_args args = {.w = g->weights + tile * g->tile,
                            .k = g->k,
                            .tile_end = g->tiles_per_item,
                            .a = g->acts + row0 * g->act_bytes,
                            .a_stride = g->act_bytes,
                            .m = g->m - row0 < g->rows_per_item ? g->m - row0 : g->rows_per_item,
                            .out = g->out + row0 * g->out_stride +
                                   (size_t)chunk * g->tiles_per_item * TILE_N,
                            .out_stride = g->out_stride};
    (void)thread;
    g->fn(&args);
}

static void
gemm_call(void *arg)
{
    gemm_bench *g = arg;
    pool_run(g->pool, gemm_item, g, g->tile_chunks * g->row_chunks);
    g->at = (g->at + (uint64_t)g->tile_chunks * g->tiles_per_item) % g->ring_tiles;
}

static void
gemm_one_item(void *arg)
{
    gemm_item(arg, 0, 0);
}

/* Weights of about unit size, none a number that is slow to compute with. */
static void
fill_weights(moe_dtype dtype, char *w, size_t bytes)
{
    if (dtype == DTYPE_F32) {
        for (size_t i = 0; i < bytes / 4; i++)
            ((float *)(void *)w)[i] = bench_float(i);
        return;
    }
    if (dtype == DTYPE_BF16) {
        for (size_t i = 0; i < bytes / 2; i++)
            ((uint16_t *)(void *)w)[i] = bf16_from_float(bench_float(i));
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        w[i] = (char)(signed char)(bench_float(i) * 127);
    /* Each block of packed.h ends in its scales. */
    const size_t block = tile_bytes(dtype, GROUP_K);
    const size_t scales = dtype == DTYPE_INT8 ? TILE_N * sizeof(float) : 2 * TILE_N * 2;
    for (size_t end = block; end <= bytes; end += block) {
        for (size_t at = end - scales; at < end; at += sizeof(float)) {
            if (dtype == DTYPE_INT8)
                memcpy(w + at, &(float){0.01f}, sizeof(float));
            else
                memcpy(w + at, (uint16_t[2]){0x2000, 0x2000}, sizeof(float)); /* 2^-7 */
        }
    }
}

static void
measure_rows(kernels_bench *b, gemm_bench *g, bool silu)
{
    char test[RESULT_TEST_MAX], why[64];
    snprintf(test, sizeof test, "%s.%s.%s.t%u.m%u.%ux%u", silu ? "silu" : "gemm",
             dtype_name(g->dtype), b->level->name, pool_size(b->pool), g->m, g->k, g->n);
    g->row_chunks = (g->m + g->rows_per_item - 1) / g->rows_per_item;
    g->tile_chunks = tile_count(g->n) / g->tiles_per_item;
    if (g->tile_chunks == 0) g->tile_chunks = 1;
    const double item = kernels_time(gemm_one_item, g);
    if (item > ITEM_SECONDS_MAX) {
        snprintf(why, sizeof why, "one item takes %.1f s", item);
        report_skip(&b->out, test, why);
        return;
    }
    /* A call need not be a whole matrix: many short measurements say more than one long one. */
    const double call = item * g->tile_chunks * g->row_chunks / pool_size(b->pool);
    const double longest = 2e-9 * (double)b->for_ns;
    uint32_t chunks = (uint32_t)(g->tile_chunks * longest / call) + 1;
    if (chunks < 4 * pool_size(b->pool)) chunks = 4 * pool_size(b->pool);
    if (chunks < g->tile_chunks) g->tile_chunks = chunks;
    const double tiles = (double)g->tile_chunks * g->tiles_per_item;
    const kernel_work work = {.run = gemm_call,
                              .arg = g,
                              .ops = 2.0 * g->m * g->k * tiles * TILE_N,
                              .bytes = tiles * (double)g->tile,
                              .peak = peak_best(g->dtype == DTYPE_F32    ? PEAK_F32
                                                : g->dtype == DTYPE_BF16 ? PEAK_BF16
                                                                         : PEAK_INT8,
                                                b->level->flags),
                              .from_memory = true};
    kernels_measure(b, test, &work);
}

static void
fill_rows(const kernels_bench *b, gemm_bench *g, uint32_t rows, float *row, char *acts)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < g->k; i++)
            row[i] = bench_float((uint64_t)r * g->k + i);
        b->table->act_pack(g->dtype, row, g->k, acts + r * g->act_bytes);
    }
}

static moe_err
measure_shape(kernels_bench *b, gemm_bench *g, uint32_t rows_max, bool silu)
{
    const uint32_t tiles = round_up_u32(tile_count(g->n), g->tiles_per_item);
    g->act_bytes = act_row_bytes(g->dtype, g->k);
    g->out_stride = (size_t)tiles * TILE_N;
    char *acts = aligned_alloc(64, rows_max * g->act_bytes);
    float *row = malloc(g->k * sizeof *row);
    g->out = aligned_alloc(64, rows_max * g->out_stride * sizeof(float));
    moe_err err = acts && row && g->out ? MOE_OK : MOE_ENOMEM;
    if (!err) {
        memset(g->out, 0, rows_max * g->out_stride * sizeof(float));
        fill_rows(b, g, rows_max, row, acts);
        g->acts = acts;
    }
    for (uint32_t i = 0; i < b->m_count && !err; i++) {
        g->m = b->m_list[i];
        if (g->m > 0) measure_rows(b, g, silu);
    }
    free(acts);
    free(row);
    free(g->out);
    return err;
}

static moe_err
measure_dtype(kernels_bench *b, moe_dtype dtype, gemm_fn *fn, bool silu)
{
    const size_t bytes = machine_beyond_cache(&b->m, 64u << 20);
    uint32_t rows_max = 1, smallest = 0;
    for (uint32_t i = 0; i < b->m_count; i++) {
        if (b->m_list[i] > rows_max) rows_max = b->m_list[i];
    }
    for (uint32_t s = 1; s < b->shape_count; s++) {
        if ((uint64_t)b->shapes[s].k * b->shapes[s].n <
            (uint64_t)b->shapes[smallest].k * b->shapes[smallest].n)
            smallest = s;
    }
    char *weights = machine_memory(bytes);
    if (weights == NULL) return MOE_ENOMEM;
    fill_weights(dtype, weights, bytes);
    moe_err err = MOE_OK;
    for (uint32_t s = 0; s < b->shape_count && !err; s++) {
        if (b->level->flags == 0 && !b->named && s != smallest) continue;
        gemm_bench g = {.pool = b->pool,
                        .fn = fn,
                        .dtype = dtype,
                        .k = b->shapes[s].k,
                        .n = b->shapes[s].n,
                        .rows_per_item = b->rows_per_item,
                        .tiles_per_item = b->tiles_per_item,
                        .weights = weights};
        if (silu) g.tiles_per_item = round_up_u32(g.tiles_per_item, 2);
        g.tile = tile_bytes(dtype, g.k);
        g.ring_tiles = bytes / g.tile / g.tiles_per_item * g.tiles_per_item;
        if (g.ring_tiles == 0) continue;
        err = measure_shape(b, &g, rows_max, silu);
    }
    machine_release(weights, bytes);
    return err;
}

moe_err
kernels_gemm(kernels_bench *b, bool silu)
{
    moe_err err = MOE_OK;
    for (uint32_t d = 0; d < DTYPE_COUNT && !err; d++) {
        gemm_fn *const fn = silu ? b->table->gemm_silu[d] : b->table->gemm[d];
        const kernel_table *below = b->below;
        if (!b->dtypes[d] || fn == NULL) continue;
        if (below != NULL && fn == (silu ? below->gemm_silu[d] : below->gemm[d])) continue;
        err = measure_dtype(b, (moe_dtype)d, fn, silu);
    }
    return err;
}
