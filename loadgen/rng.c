#include "loadgen/rng.h"

#include <assert.h>
#include <math.h>

#include "common/hash.h"

#define TWO_PI 6.283185307179586

void
rng_init(rng *r, uint64_t seed, uint64_t stream)
{
    r->state = hash_combine(hash_mix(seed), stream);
}

uint64_t
rng_u64(rng *r)
{
    const uint64_t word = hash_mix(r->state);
    r->state += 0x9e3779b97f4a7c15ull; /* the step that hash_mix itself begins with */
    return word;
}

uint64_t
rng_below(rng *r, uint64_t bound)
{
    assert(bound > 0);
    /* Words below 2^64 mod bound would favour small results: draw again. */
    const uint64_t unfair = (0 - bound) % bound;
    uint64_t word;
    do {
        word = rng_u64(r);
    } while (word < unfair);
    return word % bound;
}

double
rng_uniform(rng *r)
{
    return ((double)(rng_u64(r) >> 11) + 0.5) * 0x1p-53;
}

double
rng_normal(rng *r)
{
    const double radius = sqrt(-2 * log(rng_uniform(r)));
    return radius * cos(TWO_PI * rng_uniform(r));
}

double
rng_gamma(rng *r, double shape)
{
    assert(shape > 0 && isfinite(shape));
    if (shape < 1) {
        const double boost = pow(rng_uniform(r), 1 / shape);
        return boost * rng_gamma(r, shape + 1);
    }
    const double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) { /* accepts more than 95 % of the draws at any shape >= 1 */
        const double x = rng_normal(r);
        double v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(rng_uniform(r)) < 0.5 * x * x + d * (1 - v + log(v))) return d * v;
    }
}
