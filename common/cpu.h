/* cpu: which instruction sets the kernels may use.
 *
 * A flag is set when the CPU has the instructions and the operating system saves their registers.
 * CONCLAVE_CPU_MASK lowers the tier: "ref", "avx2", "avx512" or "all" (default); it never raises
 * it.
 */
#ifndef MOE_COMMON_CPU_H
#define MOE_COMMON_CPU_H

enum {
    CPU_AVX2 = 1u << 0,        /* AVX2 and FMA */
    CPU_AVX512 = 1u << 1,      /* F, BW, DQ, VL */
    CPU_AVX512_VNNI = 1u << 2, /* vpdpbusd */
    CPU_AVX512_BF16 = 1u << 3, /* vdpbf16ps */
    /* vdpbf16ps starts every other cycle only, as on Intel's cores with AMX: widening and two FMAs
     * are faster (measured on a Xeon: 172 against 347 GOP/s on two cores). */
    CPU_SLOW_BF16 = 1u << 4,
};

/* Flags of this machine after CONCLAVE_CPU_MASK; an unknown mask value is reported and ignored.
 * Call once, at start. */
unsigned cpu_flags(void);

#endif
