/* kernels: every kernel of every tier that this machine has, beside what the machine reaches at the
 * same moment.
 *
 * The three of a line (kernel, peak, memory) take turns, so that a share is one of figures that
 * were measured within some milliseconds. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/cpu.h"
#include "tests/bench/bench.h"
#include "tests/bench/kernels_bench.h"

#define BESIDE_NS (5 * NS_PER_MS) /* of a peak or of reading memory, beside a kernel */
#define LEVELS 5

static const tier_level levels[LEVELS] = {
    {"ref", 0},
    {"avx2", CPU_AVX2},
    {"avx512", CPU_AVX2 | CPU_AVX512},
    {"avx512vnni", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI},
    {"avx512bf16", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI | CPU_AVX512_BF16},
};

double
kernels_time(void (*run)(void *arg), void *arg)
{
    const uint64_t start = clock_now_ns();
    run(arg);
    return (double)(clock_now_ns() - start) / 1e9;
}

/* Seconds a call, over as many calls as fill for_ns. */
static double
time_calls(const kernel_work *w, uint64_t for_ns)
{
    const uint64_t start = clock_now_ns();
    uint64_t now;
    uint32_t calls = 0;
    do {
        w->run(w->arg);
        calls++;
        now = clock_now_ns();
    } while (now - start < for_ns);
    return (double)(now - start) / 1e9 / calls;
}

void
kernels_measure(kernels_bench *b, const char *test, const kernel_work *w)
{
    result x = {.unit = w->ops > 0 ? "GOP/s" : "GB/s"};
    samples reads = {.count = 0}, of_peak = {.count = 0}, of_dram = {.count = 0};
    double best_peak = 0, best_dram = 0;
    const uint64_t beside_ns = b->for_ns < BESIDE_NS ? b->for_ns : BESIDE_NS;
    snprintf(x.test, sizeof x.test, "%s", test);
    w->run(w->arg);
    const cpu_watch watch = cpu_watch_begin();
    for (uint32_t r = 0; r < b->repeat; r++) {
        const double reached = w->peak ? machine_peak(b->pool, w->peak, beside_ns) : 0;
        const double dram = w->from_memory ? machine_read(b->pool, &b->dram, beside_ns) : 0;
        const double seconds = time_calls(w, b->for_ns);
        samples_add(&x.values, (w->ops > 0 ? w->ops : w->bytes) / seconds / 1e9);
        samples_add(&reads, w->bytes / seconds / 1e9);
        samples_add(&of_peak, reached > 0 ? w->ops / seconds / reached : 0);
        if (reached > best_peak) best_peak = reached;
        if (dram > best_dram) best_dram = dram;
        samples_add(&of_dram, dram > 0 ? w->bytes / seconds / dram : 0);
    }
    const double cpu = cpu_watch_share(&watch, pool_size(b->pool));
    if (w->ops > 0) result_number(&x, "gb_s", samples_median(&reads));
    if (w->peak != NULL) {
        result_number(&x, "of_peak", samples_median(&of_peak));
        result_number(&x, "best_of_peak", samples_max(&x.values) * 1e9 / best_peak);
    }
    if (w->from_memory) {
        result_number(&x, "of_dram", samples_median(&of_dram));
        result_number(&x, "best_of_dram", samples_max(&reads) * 1e9 / best_dram);
    }
    result_number(&x, "cpu", cpu);
    report_result(&b->out, &x);
}

/* ---- all of them ---- */

typedef struct kernels_options {
    bench_options common;
    const char *what, *dtypes, *tiers, *m, *shapes, *contexts, *threads;
    int64_t ms, rows_per_item, tiles_per_item;
} kernels_options;

/* Is word one of the words of a list with commas?  "all" holds every word. */
static bool
listed(const char *list, const char *word)
{
    const size_t n = strlen(word);
    if (strcmp(list, "all") == 0) return true;
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',') at++;
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == '\0')) return true;
    }
    return false;
}

static moe_err
run_level(kernels_bench *b, const kernels_options *o)
{
    moe_err err = MOE_OK;
    if (listed(o->what, "gemm")) err = kernels_gemm(b, false);
    if (!err && listed(o->what, "silu")) err = kernels_gemm(b, true);
    if (!err && listed(o->what, "attention")) err = kernels_attention(b);
    if (!err && listed(o->what, "rows")) err = kernels_rows(b);
    return err;
}

static moe_err
run_threads(kernels_bench *b, const kernels_options *o, uint32_t threads)
{
    moe_err err = pool_create(&b->pool, threads);
    if (err) return err;
    kernel_table tables[LEVELS];
    for (uint32_t i = 0; i < LEVELS && !err; i++) {
        if ((levels[i].flags & b->m.flags) != levels[i].flags) continue;
        kernel_table_init(&tables[i], levels[i].flags);
        b->level = &levels[i];
        b->table = &tables[i];
        b->named = strcmp(o->tiers, "all") != 0;
        if (listed(o->tiers, levels[i].name)) err = run_level(b, o);
        b->below = b->table;
    }
    pool_free(b->pool);
    b->below = NULL;
    return err;
}

static int
bad_option(const char *text)
{
    fprintf(stderr, "conclave-bench kernels: %s\n", text);
    return 2;
}

static bool
read_shapes(kernels_bench *b, const char *text)
{
    for (const char *at = text; b->shape_count < KERNEL_LIST_MAX;) {
        char *end;
        const unsigned long k = strtoul(at, &end, 10);
        if (*end != 'x' || k == 0 || k > 1u << 20) return false;
        at = end + 1;
        const unsigned long n = strtoul(at, &end, 10);
        if (end == at || n == 0 || n > 1u << 20) return false;
        b->shapes[b->shape_count].k = (uint32_t)k;
        b->shapes[b->shape_count++].n = (uint32_t)n;
        if (*end == '\0') return true;
        if (*end != ',') return false;
        at = end + 1;
    }
    return false;
}

static bool
read_words(const char *list, const char *const *known, size_t count)
{
    for (const char *at = list; *at != '\0';) {
        const size_t n = strcspn(at, ",");
        bool found = n == 3 && strncmp(at, "all", 3) == 0;
        for (size_t i = 0; i < count; i++)
            found = found || (strlen(known[i]) == n && strncmp(known[i], at, n) == 0);
        if (!found) return false;
        at += n + (at[n] == ',');
    }
    return *list != '\0';
}

static int
run(kernels_bench *b, const kernels_options *o, const uint32_t *threads, uint32_t thread_counts)
{
    const size_t bytes = machine_beyond_cache(&b->m, 64u << 20);
    char *memory = machine_memory(bytes);
    if (memory == NULL) return bench_fail("kernels", "no memory");
    b->dram = (read_ring){.base = memory, .bytes = bytes, .read = peak_reader(b->m.flags)};
    report_title(&b->out, "of_peak, of_dram: shares of what the machine reached at that moment");
    moe_err err = MOE_OK;
    for (uint32_t i = 0; i < thread_counts && !err; i++)
        err = run_threads(b, o, threads[i] == 0 ? b->m.threads : threads[i]);
    machine_release(memory, bytes);
    return err ? bench_fail("kernels", err == MOE_ENOMEM ? "out of memory" : moe_err_name(err)) : 0;
}

static int
start(const kernels_options *o, int argc, char **argv)
{
    static const char *const kinds[] = {"gemm", "silu", "attention", "rows"};
    const char *names[LEVELS], *dtypes[DTYPE_COUNT];
    kernels_bench b = {.out = {.out = stdout, .bench = "kernels", .json = o->common.json},
                       .repeat = (uint32_t)o->common.repeat,
                       .for_ns = (uint64_t)o->ms * NS_PER_MS,
                       .rows_per_item = (uint32_t)o->rows_per_item,
                       .tiles_per_item = (uint32_t)o->tiles_per_item};
    uint32_t threads[KERNEL_LIST_MAX];
    for (uint32_t i = 0; i < LEVELS; i++)
        names[i] = levels[i].name;
    for (uint32_t d = 0; d < DTYPE_COUNT; d++) {
        dtypes[d] = dtype_name((moe_dtype)d);
        b.dtypes[d] = listed(o->dtypes, dtypes[d]);
    }
    if (!read_words(o->what, kinds, 4)) return bad_option("--what: gemm, silu, attention, rows");
    if (!read_words(o->dtypes, dtypes, DTYPE_COUNT)) return bad_option("--dtypes: no such dtype");
    if (!read_words(o->tiers, names, LEVELS)) return bad_option("--tiers: no such tier");
    b.m_count = machine_numbers(o->m, 4096, b.m_list, KERNEL_LIST_MAX);
    if (b.m_count == 0) return bad_option("--m: must be row counts with commas");
    b.context_count = machine_numbers(o->contexts, 1u << 20, b.contexts, KERNEL_LIST_MAX);
    if (b.context_count == 0) return bad_option("--contexts: must be token counts with commas");
    if (!read_shapes(&b, o->shapes)) return bad_option("--shapes: must be KxN with commas");
    uint32_t counts = machine_numbers(o->threads, POOL_THREAD_MAX, threads, KERNEL_LIST_MAX);
    if (counts == 0) return bad_option("--threads: must be numbers with commas");
    if (o->common.compare != NULL) return bench_compare("kernels", &o->common, argc, argv);
    machine_look(&b.m);
    if (strcmp(o->threads, "1,0") == 0 && b.m.threads == 1) counts = 1;
    return run(&b, o, threads, counts);
}

int
bench_kernels(int argc, char **argv)
{
    kernels_options o = {0};
    const flag_spec specs[] = {
        BENCH_SPECS(o.common, "5"),
        BENCH_COMPARE_SPECS(o.common),
        {"what", NULL, FLAG_STRING, &o.what, "gemm,attention,rows", 0, 0, NULL, NULL,
         "which kernels: gemm, silu, attention, rows; all"},
        {"dtypes", "dtype", FLAG_STRING, &o.dtypes, "all", 0, 0, NULL, NULL,
         "of weights, keys and values"},
        {"tiers", "tier", FLAG_STRING, &o.tiers, "all", 0, 0, NULL, NULL,
         "ref, avx2, avx512, avx512vnni, avx512bf16; with all, ref computes the smallest shape"},
        {"m", NULL, FLAG_STRING, &o.m, "1,2,4,8,16,32,128,512", 0, 0, NULL, NULL,
         "rows of a product"},
        {"shapes", NULL, FLAG_STRING, &o.shapes, "4096x14336,14336x4096,1024x3584", 0, 0, NULL,
         NULL, "of weights: input features x output features"},
        {"contexts", NULL, FLAG_STRING, &o.contexts, "4096,32768", 0, 0, NULL, "tokens",
         "of attention, 32 heads on 8, 128 wide"},
        {"threads", NULL, FLAG_STRING, &o.threads, "1,0", 0, 0, NULL, NULL,
         "a pass for each number; 0 = all CPUs"},
        {"ms", NULL, FLAG_INT, &o.ms, "20", 1, 10000, NULL, "ms", "length of one measurement"},
        {"rows-per-item", NULL, FLAG_INT, &o.rows_per_item, "256", 1, 65536, NULL, NULL,
         "rows of a product that one thread takes at a time"},
        {"tiles-per-item", NULL, FLAG_INT, &o.tiles_per_item, "32", 1, 65536, NULL, NULL,
         "tiles of 16 output features that one thread takes at a time"},
    };
    flags f;
    int rc = bench_parse(&f, "kernels", "Measures each kernel beside the machine's peaks.", specs,
                         sizeof specs / sizeof specs[0], argc, argv);
    if (rc == BENCH_GO_ON) rc = start(&o, argc, argv);
    flags_fini(&f);
    return rc;
}
