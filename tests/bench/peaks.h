/* peaks: what the instructions of a tier reach at best: loops that touch registers only, and loops
 * that only read memory.
 *
 * Each tier's loops are in a file of their own, compiled with that tier's flags; one whose flags
 * the CPU lacks must not be called.
 *
 * Threads: pure functions.
 */
#ifndef MOE_TESTS_BENCH_PEAKS_H
#define MOE_TESTS_BENCH_PEAKS_H

#include <stddef.h>
#include <stdint.h>

/* Run the loop `rounds` times.  The result depends on every operation, so none can be left out. */
typedef uint64_t peak_fn(uint64_t rounds);

/* Read every byte of a 64-byte aligned range of whole 512 bytes. */
typedef uint64_t read_fn(const void *from, size_t bytes);

typedef enum peak_kind { PEAK_F32, PEAK_BF16, PEAK_INT8, PEAK_KIND_COUNT } peak_kind;

typedef struct peak {
    peak_kind kind;
    const char *name;     /* "int8.avx512vnni" */
    const char *how;      /* its instructions */
    unsigned flags;       /* of common/cpu.h that it needs, all of them */
    const char *missing;  /* what a CPU without them lacks: "AVX-512 VNNI" */
    double ops_per_round; /* a multiply-add is two */
    peak_fn *run;
} peak;

/* All peaks, in the order of kinds, lower tiers first. */
extern const peak peak_list[];
extern const uint32_t peak_count;

/* The best one of a kind that these flags allow; bf16 weights without vdpbf16ps are widened and
 * multiplied as f32.  NULL: none. */
const peak *peak_best(peak_kind kind, unsigned flags);
/* The widest loads that these flags allow. */
read_fn *peak_reader(unsigned flags);

peak_fn peak_f32_avx2, peak_int8_avx2;
peak_fn peak_f32_avx512;
peak_fn peak_int8_avx512vnni;
peak_fn peak_bf16_avx512bf16;
read_fn read_ref, read_avx2, read_avx512;

/* Operations of one round of each. */
#define PEAK_CHAINS_AVX2 12
#define PEAK_CHAINS_INT8_AVX2 8
#define PEAK_CHAINS_AVX512 24

#endif
