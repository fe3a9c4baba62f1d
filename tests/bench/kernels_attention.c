/* Attention of one layer: 32 query heads on 8 KV heads of 128.  One row is a step of decoding; 64
 * rows are a chunk of a prompt.  Sequences take turns, so that keys and values come from memory. */
#include <stdlib.h>
#include <string.h>

#include "tests/bench/kernels_bench.h"

#define HEADS 32u
#define KV_HEADS 8u
#define HEAD_DIM 128u
#define ROWS_MAX 64u

typedef struct attention_bench {
    pool *pool;
    attn_args args; /* of sequence 0 */
    attention_fn *fn;
    uint32_t sequences, at;
    uint32_t *blocks; /* [sequences * blocks_each] 0, 1, 2, ... */
    uint32_t blocks_each;
    float *scratch; /* [threads][scratch_floats] */
    size_t scratch_floats;
} attention_bench;

static void
attention_item(void *arg, uint32_t item, uint32_t thread)
{
    const attention_bench *a = arg;
    attn_args args = a->args;
    args.kv_head = item;
    args.block_table = a->blocks + (size_t)a->at * a->blocks_each;
    args.scratch = a->scratch + thread * a->scratch_floats;
    a->fn(&args);
}

static void
attention_call(void *arg)
{
    attention_bench *a = arg;
    pool_run(a->pool, attention_item, a, KV_HEADS);
    a->at = (a->at + 1) % a->sequences;
}

static void
fill_cache(moe_dtype dtype, char *memory, size_t bytes)
{
    if (dtype == DTYPE_F32) {
        for (size_t i = 0; i < bytes / 4; i++)
            ((float *)(void *)memory)[i] = bench_float(i);
        return;
    }
    if (dtype == DTYPE_INT8) {
        memset(memory, 0x3c, bytes); /* bytes of 60, and scales of 0.0115 */
        return;
    }
    for (size_t i = 0; i < bytes / 2; i++)
        ((uint16_t *)(void *)memory)[i] = bf16_from_float(bench_float(i));
}

static void
measure_context(kernels_bench *b, attention_bench *a, uint32_t context, size_t seq_bytes)
{
    static const uint32_t row_counts[] = {1, ROWS_MAX};
    for (size_t i = 0; i < 2; i++) {
        char test[RESULT_TEST_MAX];
        const uint32_t rows = row_counts[i] < context ? row_counts[i] : context;
        a->args.rows = rows;
        a->args.first_pos = context - rows;
        snprintf(test, sizeof test, "attention.%s.%s.t%u.r%u.c%u", dtype_name(a->args.kv_dtype),
                 b->level->name, pool_size(b->pool), rows, context);
        const double pairs = (double)rows * (context - (rows - 1) / 2.0);
        const kernel_work work = {.run = attention_call,
                                  .arg = a,
                                  .ops = 4.0 * pairs * HEADS * HEAD_DIM,
                                  .bytes = (double)seq_bytes,
                                  .peak = peak_best(PEAK_F32, b->level->flags),
                                  .from_memory = true};
        kernels_measure(b, test, &work);
    }
}

static moe_err
with_context(kernels_bench *b, moe_dtype dtype, uint32_t context)
{
    const uint32_t threads = pool_size(b->pool);
    const size_t block = kv_block_bytes(dtype, KV_HEADS, HEAD_DIM);
    attention_bench a = {.pool = b->pool, .fn = b->table->attention};
    a.blocks_each = (context + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    a.scratch_floats = round_up_u32((uint32_t)attn_scratch_floats(HEAD_DIM), TILE_N);
    const size_t seq_bytes = a.blocks_each * block;
    const size_t bytes = machine_beyond_cache(&b->m, seq_bytes) + seq_bytes;
    a.sequences = (uint32_t)(bytes / seq_bytes);

    const size_t floats = (size_t)ROWS_MAX * HEADS * HEAD_DIM;
    char *cache = machine_memory(bytes);
    float *q = aligned_alloc(64, floats * sizeof *q);
    float *out = aligned_alloc(64, floats * sizeof *out);
    a.scratch = aligned_alloc(64, threads * a.scratch_floats * sizeof(float));
    a.blocks = malloc((size_t)a.sequences * a.blocks_each * sizeof *a.blocks);
    const moe_err err = cache && q && out && a.scratch && a.blocks ? MOE_OK : MOE_ENOMEM;
    if (!err) {
        fill_cache(dtype, cache, bytes);
        for (size_t i = 0; i < floats; i++)
            q[i] = bench_float(i);
        for (uint32_t i = 0; i < a.sequences * a.blocks_each; i++)
            a.blocks[i] = i;
        a.args = (attn_args){.kv_dtype = dtype,
                             .blocks = cache,
                             .block_stride = block,
                             .heads = HEADS,
                             .kv_heads = KV_HEADS,
                             .head_dim = HEAD_DIM,
                             .scale = 0.088388f,
                             .q = q,
                             .q_stride = (size_t)HEADS * HEAD_DIM,
                             .out = out,
                             .out_stride = (size_t)HEADS * HEAD_DIM};
        measure_context(b, &a, context, seq_bytes);
    }
    machine_release(cache, bytes);
    free(q);
    free(out);
    free(a.scratch);
    free(a.blocks);
    return err;
}

moe_err
kernels_attention(kernels_bench *b)
{
    if (b->below != NULL && b->table->attention == b->below->attention) return MOE_OK;
    moe_err err = MOE_OK;
    for (uint32_t d = DTYPE_F32; d <= DTYPE_INT8 && !err; d++) {
        if (!b->dtypes[d]) continue;
        for (uint32_t c = 0; c < b->context_count && !err; c++) {
            if (b->level->flags == 0 && !b->named && c > 0) continue;
            if (b->contexts[c] > 0) err = with_context(b, (moe_dtype)d, b->contexts[c]);
        }
    }
    return err;
}
