#include "loadgen/arrivals.h"

#include <math.h>
#include <stdlib.h>

#include "common/clock.h"
#include "loadgen/rng.h"

#define SCHEDULE_NS_MAX 9.4e17 /* about 30 years */

static double
draw_gap_s(rng *r, const arrivals_config *config)
{
    if (isinf(config->rate)) return 0;
    if (isinf(config->burstiness)) return 1 / config->rate;
    return rng_gamma(r, config->burstiness) / (config->burstiness * config->rate);
}

moe_err
arrivals_build(const arrivals_config *config, size_t count, uint64_t **out, errbuf *eb)
{
    *out = NULL;
    if (!(config->rate > 0)) return err_set(eb, MOE_ERANGE, "request rate must be above 0");
    if (!(config->burstiness > 0)) return err_set(eb, MOE_ERANGE, "burstiness must be above 0");

    uint64_t *at_ns = calloc(count + 1, sizeof *at_ns);
    if (at_ns == NULL) return err_set(eb, MOE_ENOMEM, "schedule of %zu: out of memory", count);

    rng r;
    rng_init(&r, config->seed, RNG_ARRIVALS);
    double sum_ns = 0;
    for (size_t i = 1; i < count; i++) {
        sum_ns += draw_gap_s(&r, config) * (double)NS_PER_S;
        if (!(sum_ns < SCHEDULE_NS_MAX)) {
            free(at_ns);
            return err_set(eb, MOE_ERANGE, "request %zu would be due in more than 30 years", i);
        }
        at_ns[i] = (uint64_t)sum_ns;
    }
    *out = at_ns;
    return MOE_OK;
}
