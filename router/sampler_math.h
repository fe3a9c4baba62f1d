/* sampler_math: exp and log in double, the same bits on every machine.
 *
 * A C library picks its exp() by the CPU (with or without fused multiply-add), and the last bit may
 * differ.  These use additions, multiplications and divisions only, each rounded once as IEEE 754
 * says, and nothing that a compiler may fuse (-ffp-contract=off).  Accuracy: about 2 units in the
 * last place.
 */
#ifndef MOE_ROUTER_SAMPLER_MATH_H
#define MOE_ROUTER_SAMPLER_MATH_H

#include <stdint.h>
#include <string.h>

#define LN2_HIGH 0x1.62e42fee00000p-1 /* 33 bits: times a small integer is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33

/* exp(x) for x <= 0; 0 below -708, where a double would become denormal. */
static inline double
exp_of_negative(double x)
{
    const double round = 0x1.8p52; /* adding it rounds to an integer */
    const double clamped = x < -708.0 ? -708.0 : x;
    const double n = (clamped * 0x1.71547652b82fep0 + round) - round;
    const double r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    /* Taylor to r^13: |r| <= ln(2) / 2, so the rest is below 2^-57. */
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -708.0 ? 0.0 : p * scale;
}

/* log(x) for normal x >= 1. */
static inline double
log_of_large(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t n = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp0) { /* sqrt(2) */
        m *= 0.5;
        n++;
    }
    /* log(m) = 2 atanh(s), |s| <= 0.1716: the rest after s^21 is below 2^-60. */
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double p = 1.0 / 21;
    for (int k = 19; k >= 1; k -= 2)
        p = p * s2 + 1.0 / k;
    return (double)n * LN2_HIGH + (2.0 * s * p + (double)n * LN2_LOW);
}

#endif
