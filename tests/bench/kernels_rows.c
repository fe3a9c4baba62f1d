/* Operations on whole rows of 4096 floats, which lie in a core's cache as they do between two
 * products. */
#include <stdlib.h>

#include "tests/bench/kernels_bench.h"

#define WIDTH 4096u
#define ROWS 8u
#define PASSES 16u

typedef struct rows_bench {
    const kernels_bench *b;
    moe_dtype dtype;
    const float *in, *weight;
    char *out; /* [threads][act_row_bytes of f32] */
} rows_bench;

static char *
out_of(const rows_bench *r, uint32_t thread)
{
    return r->out + thread * act_row_bytes(DTYPE_F32, WIDTH);
}

static void
norm_item(void *arg, uint32_t item, uint32_t thread)
{
    const rows_bench *r = arg;
    (void)item;
    for (uint32_t i = 0; i < ROWS * PASSES; i++)
        r->b->table->rmsnorm(r->in + (size_t)(i % ROWS) * WIDTH, r->weight, 1e-5f, WIDTH,
                             (float *)(void *)out_of(r, thread));
}

static void
pack_item(void *arg, uint32_t item, uint32_t thread)
{
    const rows_bench *r = arg;
    (void)item;
    for (uint32_t i = 0; i < ROWS * PASSES; i++)
        r->b->table->act_pack(r->dtype, r->in + (size_t)(i % ROWS) * WIDTH, WIDTH,
                              out_of(r, thread));
}

static void
norm_call(void *arg)
{
    const rows_bench *r = arg;
    pool_run(r->b->pool, norm_item, arg, pool_size(r->b->pool) * 4);
}

static void
pack_call(void *arg)
{
    const rows_bench *r = arg;
    pool_run(r->b->pool, pack_item, arg, pool_size(r->b->pool) * 4);
}

static void
measure(kernels_bench *b, rows_bench *r, const char *name, void (*call)(void *arg))
{
    char test[RESULT_TEST_MAX];
    const uint32_t threads = pool_size(b->pool);
    snprintf(test, sizeof test, "%s.%s.t%u.n%u", name, b->level->name, threads, WIDTH);
    const kernel_work work = {
        .run = call, .arg = r, .bytes = 4.0 * WIDTH * ROWS * PASSES * threads * 4};
    kernels_measure(b, test, &work);
}

moe_err
kernels_rows(kernels_bench *b)
{
    const uint32_t threads = pool_size(b->pool);
    float *in = aligned_alloc(64, (size_t)ROWS * WIDTH * sizeof *in);
    float *weight = aligned_alloc(64, WIDTH * sizeof *weight);
    rows_bench r = {.b = b, .in = in, .weight = weight};
    r.out = aligned_alloc(64, threads * act_row_bytes(DTYPE_F32, WIDTH));
    const moe_err err = in && weight && r.out ? MOE_OK : MOE_ENOMEM;
    if (!err) {
        for (uint32_t i = 0; i < ROWS * WIDTH; i++)
            in[i] = bench_float(i);
        for (uint32_t i = 0; i < WIDTH; i++)
            weight[i] = bench_float(i + 7);
        if (b->below == NULL || b->table->rmsnorm != b->below->rmsnorm)
            measure(b, &r, "rmsnorm", norm_call);
        const bool packs = b->below == NULL || b->table->act_pack != b->below->act_pack;
        for (uint32_t d = 0; d < DTYPE_COUNT && packs; d++) {
            char name[32];
            r.dtype = (moe_dtype)d;
            snprintf(name, sizeof name, "act_pack.%s", dtype_name(r.dtype));
            if (b->dtypes[d]) measure(b, &r, name, pack_call);
        }
    }
    free(in);
    free(weight);
    free(r.out);
    return err;
}
