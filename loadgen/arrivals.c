#include "loadgen/arrivals.h"

#include <math.h>
#include <stdlib.h>

#include "common/clock.h"
#include "loadgen/rng.h"

#define SCHEDULE_NS_MAX 9.4e17 /* about 30 years */

double
arrivals_rate_at(const arrivals_config *config, size_t i, size_t count)
{
    if (config->ramp == ARRIVALS_STEADY) return config->rate;
    const double progress = count > 1 ? (double)i / (double)(count - 1) : 0;
    if (config->ramp == ARRIVALS_LINEAR)
        return config->ramp_start + (config->ramp_end - config->ramp_start) * progress;
    return config->ramp_start * pow(config->ramp_end / config->ramp_start, progress);
}

static double
draw_gap_s(rng *r, double rate, double burstiness)
{
    if (isinf(rate)) return 0;
    if (isinf(burstiness)) return 1 / rate;
    return rng_gamma(r, burstiness) / (burstiness * rate);
}

static moe_err
check(const arrivals_config *c, errbuf *eb)
{
    if (c->ramp == ARRIVALS_STEADY && !(c->rate > 0))
        return err_set(eb, MOE_ERANGE, "request rate must be above 0");
    if (c->ramp != ARRIVALS_STEADY &&
        !(c->ramp_start > 0 && isfinite(c->ramp_start) && c->ramp_end > 0 && isfinite(c->ramp_end)))
        return err_set(eb, MOE_ERANGE, "a ramp's first and last rate must be above 0");
    if (!(c->burstiness > 0)) return err_set(eb, MOE_ERANGE, "burstiness must be above 0");
    return MOE_OK;
}

moe_err
arrivals_build(const arrivals_config *config, size_t count, uint64_t **out, errbuf *eb)
{
    *out = NULL;
    const moe_err err = check(config, eb);
    if (err) return err;

    uint64_t *at_ns = calloc(count + 1, sizeof *at_ns);
    if (at_ns == NULL) return err_set(eb, MOE_ENOMEM, "schedule of %zu: out of memory", count);

    rng r;
    rng_init(&r, config->seed, RNG_ARRIVALS);
    double sum_ns = 0;
    for (size_t i = 1; i < count; i++) {
        const double rate = arrivals_rate_at(config, i, count);
        sum_ns += draw_gap_s(&r, rate, config->burstiness) * (double)NS_PER_S;
        if (!(sum_ns < SCHEDULE_NS_MAX)) {
            free(at_ns);
            return err_set(eb, MOE_ERANGE, "request %zu would be due in more than 30 years", i);
        }
        at_ns[i] = (uint64_t)sum_ns;
    }
    *out = at_ns;
    return MOE_OK;
}
