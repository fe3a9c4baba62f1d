/* machine: what the measurements need to know of this machine, and memory and loops to measure
 * with.
 *
 * Threads: one at a time.
 */
#ifndef MOE_TESTS_BENCH_MACHINE_H
#define MOE_TESTS_BENCH_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "common/pool.h"
#include "tests/bench/peaks.h"

typedef struct machine {
    unsigned flags;            /* common/cpu.h */
    uint32_t threads;          /* that this process may run at a time */
    size_t l2_bytes, l3_bytes; /* as one core sees them; 1 MiB and 32 MiB where nobody says */
    size_t memory_bytes;       /* free for use now */
    char model[96];            /* of the CPU */
} machine;

void machine_look(machine *m);

/* Memory larger than the caches can keep: 4 times L3, at least `least`, but no more than a quarter
 * of what is free; whole megabytes. */
size_t machine_beyond_cache(const machine *m, size_t least);

/* Zeroed, page aligned, in huge pages where the system gives them, touched.  NULL: no memory.
 * Release with machine_release(). */
void *machine_memory(size_t bytes);
void machine_release(void *memory, size_t bytes);

/* How much of its threads' time a measurement got: 1 = all of it; less where it slept, or where
 * other processes took the cores. */
typedef struct cpu_watch {
    uint64_t wall_ns, cpu_ns;
} cpu_watch;

cpu_watch cpu_watch_begin(void);
double cpu_watch_share(const cpu_watch *w, uint32_t threads);

/* ---- loops ---- */

/* Run pieces of `run` on all threads of p for about `for_ns`; operations per second. */
double machine_peak(pool *p, const peak *run, uint64_t for_ns);

/* A range that threads read in turn, each its own part; where they were is remembered, so that the
 * next reading goes on instead of finding the start in a cache. */
typedef struct read_ring {
    const char *base;
    size_t bytes;
    size_t at;
    read_fn *read;
} read_ring;

/* Bytes per second of reading on from where the last reading ended, for about for_ns. */
double machine_read(pool *p, read_ring *ring, uint64_t for_ns);
/* The same, each thread reading its own part again and again: base has bytes for every thread. */
double machine_read_own(pool *p, const read_ring *ring, size_t bytes_each, uint64_t for_ns);

/* Splits "1,8,32" into out [max]; returns how many, 0 when the text is no such list or holds a
 * number above `limit`. */
uint32_t machine_numbers(const char *text, uint32_t limit, uint32_t *out, uint32_t max);

#endif
