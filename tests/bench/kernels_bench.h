/* kernels_bench: what the measurements of single kernels share.
 *
 * Threads: the main thread; it uses the pool.
 */
#ifndef MOE_TESTS_BENCH_KERNELS_BENCH_H
#define MOE_TESTS_BENCH_KERNELS_BENCH_H

#include "kernels/table.h"
#include "tests/bench/machine.h"
#include "tests/bench/report.h"

#define KERNEL_LIST_MAX 16

/* A tier, and the flags that lead to it. */
typedef struct tier_level {
    const char *name;
    unsigned flags;
} tier_level;

typedef struct kernels_bench {
    machine m;
    report out;
    uint32_t repeat;
    uint64_t for_ns; /* length of one measurement */
    uint32_t rows_per_item, tiles_per_item;
    uint32_t m_list[KERNEL_LIST_MAX], m_count;
    struct {
        uint32_t k, n;
    } shapes[KERNEL_LIST_MAX];
    uint32_t shape_count;
    uint32_t contexts[KERNEL_LIST_MAX], context_count;
    bool dtypes[DTYPE_COUNT];

    /* Of the round being run. */
    pool *pool;
    read_ring dram;
    const tier_level *level;
    const kernel_table *table, *below; /* below: of the level under this one; NULL for the first */
    bool named;                        /* this tier was asked for by its name */
} kernels_bench;

/* One quantity: call run(arg) again and again, each call `ops` operations and `bytes` read, and
 * report GOP/s (or, where ops is 0, GB/s) beside the peak and the bandwidth of the same moment. */
typedef struct kernel_work {
    void (*run)(void *arg);
    void *arg;
    double ops, bytes;
    const peak *peak; /* NULL: no share of a peak */
    bool from_memory; /* compare with reading memory */
} kernel_work;

void kernels_measure(kernels_bench *b, const char *test, const kernel_work *w);

/* Seconds of one call. */
double kernels_time(void (*run)(void *arg), void *arg);

/* A small float that is not zero, -1 .. 1, from a counter. */
static inline float
bench_float(uint64_t i)
{
    i = (i + 1) * 0x9e3779b97f4a7c15ull;
    i ^= i >> 29;
    const float f = (float)(int32_t)(uint32_t)(i >> 16) * 0x1p-31f;
    return f == 0 ? 0.5f : f;
}

/* Each measures all of its kernels at b->level; a kernel that b->below has too is left out.
 *   MOE_ENOMEM  */
moe_err kernels_gemm(kernels_bench *b, bool silu);
moe_err kernels_attention(kernels_bench *b);
moe_err kernels_rows(kernels_bench *b);

#endif
