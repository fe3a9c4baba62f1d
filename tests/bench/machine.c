#include "tests/bench/machine.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/cpu.h"

#define MIB ((size_t)1 << 20)
#define CACHE_INDEX_MAX 8
#define PIECES_PER_THREAD 8 /* so that a thread that starts late does not double the time */
#define READ_PIECE ((size_t)1 << 20)

static bool
read_text(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    const bool got = fgets(out, (int)size, f) != NULL;
    fclose(f);
    if (got) out[strcspn(out, "\n")] = '\0';
    return got;
}

/* Size of the data cache of a level, 0 if the system does not say. */
static size_t
cache_bytes(int level)
{
    char path[96], text[64];
    for (int i = 0; i < CACHE_INDEX_MAX; i++) {
        static const char folder[] = "/sys/devices/system/cpu/cpu0/cache/index";
        snprintf(path, sizeof path, "%s%d/level", folder, i);
        if (!read_text(path, text, sizeof text) || atoi(text) != level) continue;
        snprintf(path, sizeof path, "%s%d/type", folder, i);
        if (!read_text(path, text, sizeof text) || strcmp(text, "Instruction") == 0) continue;
        snprintf(path, sizeof path, "%s%d/size", folder, i);
        if (!read_text(path, text, sizeof text)) continue;
        char *end;
        const size_t n = strtoull(text, &end, 10);
        return *end == 'M' ? n * MIB : *end == 'K' ? n * 1024 : n;
    }
    return 0;
}

static size_t
free_memory(void)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    }
    if (f != NULL) fclose(f);
    return (size_t)kib * 1024;
}

static void
cpu_model(char *out, size_t size)
{
    char line[256];
    snprintf(out, size, "unknown CPU");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, size, "%s", colon + 2);
        break;
    }
    if (f != NULL) fclose(f);
}

void
machine_look(machine *m)
{
    cpu_set_t set;
    *m = (machine){.flags = cpu_flags(), .threads = 1};
    if (sched_getaffinity(0, sizeof set, &set) == 0) m->threads = (uint32_t)CPU_COUNT(&set);
    if (m->threads > POOL_THREAD_MAX) m->threads = POOL_THREAD_MAX;
    m->l2_bytes = cache_bytes(2);
    if (m->l2_bytes == 0) m->l2_bytes = MIB;
    m->l3_bytes = cache_bytes(3);
    if (m->l3_bytes == 0) m->l3_bytes = 32 * MIB;
    m->memory_bytes = free_memory();
    cpu_model(m->model, sizeof m->model);
}

size_t
machine_beyond_cache(const machine *m, size_t least)
{
    size_t want = 4 * m->l3_bytes + MIB;
    if (want < least) want = least;
    if (m->memory_bytes != 0 && want > m->memory_bytes / 4) want = m->memory_bytes / 4;
    return (want + MIB - 1) / MIB * MIB;
}

void *
machine_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 0, bytes);
    return p;
}

void
machine_release(void *memory, size_t bytes)
{
    if (memory != NULL) munmap(memory, bytes);
}

static uint64_t
cpu_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

cpu_watch
cpu_watch_begin(void)
{
    return (cpu_watch){clock_now_ns(), cpu_now_ns()};
}

double
cpu_watch_share(const cpu_watch *w, uint32_t threads)
{
    const double wall = (double)(clock_now_ns() - w->wall_ns) * threads;
    return wall > 0 ? (double)(cpu_now_ns() - w->cpu_ns) / wall : 1;
}

/* ---- loops ---- */

/* Results go here, so that the compiler keeps the loops. */
static _Atomic uint64_t sink;

typedef struct peak_job {
    const peak *run;
    uint64_t rounds;
} peak_job;

static void
peak_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)item, (void)thread;
    const peak_job *j = arg;
    atomic_fetch_xor_explicit(&sink, j->run->run(j->rounds), memory_order_relaxed);
}

static double
run_peak(pool *p, peak_job *j)
{
    const uint32_t items = pool_size(p) * PIECES_PER_THREAD;
    const uint64_t start = clock_now_ns();
    pool_run(p, peak_item, j, items);
    const double seconds = (double)(clock_now_ns() - start) / 1e9;
    return (double)items * (double)j->rounds * j->run->ops_per_round / seconds;
}

double
machine_peak(pool *p, const peak *run, uint64_t for_ns)
{
    peak_job j = {run, 20000};
    const double guess = run_peak(p, &j) / pool_size(p); /* this also wakes the units up */
    j.rounds = (uint64_t)(guess * (double)for_ns / 1e9 / PIECES_PER_THREAD / run->ops_per_round);
    if (j.rounds < 1000) j.rounds = 1000;
    return run_peak(p, &j);
}

typedef struct read_job {
    const read_ring *ring;
    size_t start, each, piece;
    uint32_t passes;
} read_job;

static void
read_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const read_job *j = arg;
    const size_t at = (j->start + item * j->piece) % j->ring->bytes;
    const uint64_t got = j->ring->read(j->ring->base + at, j->piece);
    atomic_fetch_xor_explicit(&sink, got, memory_order_relaxed);
}

double
machine_read(pool *p, read_ring *ring, uint64_t for_ns)
{
    size_t total = 0;
    const uint64_t start = clock_now_ns();
    uint64_t now;
    do {
        const uint32_t items = 16 * pool_size(p);
        read_job j = {.ring = ring, .start = ring->at, .piece = READ_PIECE};
        pool_run(p, read_item, &j, items);
        total += items * READ_PIECE;
        ring->at = (ring->at + items * READ_PIECE) % ring->bytes;
        now = clock_now_ns();
    } while (now - start < for_ns);
    return (double)total / ((double)(now - start) / 1e9);
}

static void
read_own_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)item;
    const read_job *j = arg;
    uint64_t got = 0;
    for (uint32_t i = 0; i < j->passes; i++)
        got ^= j->ring->read(j->ring->base + thread * j->each, j->each);
    atomic_fetch_xor_explicit(&sink, got, memory_order_relaxed);
}

double
machine_read_own(pool *p, const read_ring *ring, size_t bytes_each, uint64_t for_ns)
{
    const uint32_t items = pool_size(p) * PIECES_PER_THREAD;
    read_job j = {.ring = ring, .each = bytes_each};
    j.passes = (uint32_t)((4 * MIB + bytes_each - 1) / bytes_each);
    pool_run(p, read_own_item, &j, items); /* into the cache */
    uint64_t passes = 0, now;
    const uint64_t start = clock_now_ns();
    do {
        pool_run(p, read_own_item, &j, items);
        passes += (uint64_t)items * j.passes;
        now = clock_now_ns();
    } while (now - start < for_ns);
    return (double)passes * (double)bytes_each / ((double)(now - start) / 1e9);
}

uint32_t
machine_numbers(const char *text, uint32_t limit, uint32_t *out, uint32_t max)
{
    uint32_t count = 0;
    for (const char *at = text; count < max;) {
        char *end;
        if (*at < '0' || *at > '9') return 0;
        const unsigned long long v = strtoull(at, &end, 10);
        if (end == at || v > limit) return 0;
        out[count++] = (uint32_t)v;
        if (*end == '\0') return count;
        if (*end != ',') return 0;
        at = end + 1;
    }
    return 0;
}
