#include "loadgen/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

moe_err
select_uses_init(select_uses *u, uint32_t prompts, uint32_t experts, errbuf *eb)
{
    *u = (select_uses){.capacity = prompts, .experts = experts};
    if (prompts == 0 || prompts > SELECT_PROMPTS_MAX)
        return err_set(eb, MOE_ERANGE, "%u prompts, not 1..%d", prompts, SELECT_PROMPTS_MAX);
    if (experts == 0 || experts > NPY_EXPERTS_MAX)
        return err_set(eb, MOE_ERANGE, "%u experts, not 1..%d", experts, NPY_EXPERTS_MAX);
    return MOE_OK;
}

void
select_uses_fini(select_uses *u)
{
    free(u->share);
    *u = (select_uses){0};
}

static size_t
prompt_size(const select_uses *u)
{
    return (size_t)u->layers * u->experts;
}

static moe_err
check_ids(const select_uses *u, const routed_ids *ids, errbuf *eb)
{
    const size_t count = (size_t)ids->tokens * ids->layers * ids->top_k;
    if (count == 0) return err_set(eb, MOE_EINVAL, "no token's experts");
    if (u->layers != 0 && ids->layers != u->layers)
        return err_set(eb, MOE_EINVAL, "%u layers, %u before", ids->layers, u->layers);
    if (u->count == u->capacity)
        return err_set(eb, MOE_ERANGE, "more than %u prompts", u->capacity);
    for (size_t i = 0; i < count; i++) {
        if (ids->ids[i] >= u->experts)
            return err_set(eb, MOE_EINVAL, "expert %u of %u", ids->ids[i], u->experts);
    }
    return MOE_OK;
}

moe_err
select_uses_add(select_uses *u, const routed_ids *ids, errbuf *eb)
{
    const moe_err err = check_ids(u, ids, eb);
    if (err) return err;
    if (u->share == NULL) {
        u->layers = ids->layers;
        u->share = calloc(u->capacity, prompt_size(u) * sizeof *u->share);
        if (u->share == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    }
    float *share = u->share + u->count * prompt_size(u);
    const float one = 1.0f / (float)(ids->tokens * ids->top_k);
    const uint16_t *id = ids->ids;
    for (uint32_t t = 0; t < ids->tokens; t++) {
        for (uint32_t l = 0; l < ids->layers; l++) {
            for (uint32_t k = 0; k < ids->top_k; k++)
                share[(size_t)l * u->experts + *id++] += one;
        }
    }
    u->count++;
    return MOE_OK;
}

/* sum [layers, experts], of count prompts, and one prompt's more; NULL: none. */
static double
skew_of(const select_uses *u, const float *sum, const float *more, size_t count)
{
    double total = 0;
    for (uint32_t l = 0; l < u->layers; l++) {
        float hottest = 0;
        for (uint32_t e = 0; e < u->experts; e++) {
            const size_t i = (size_t)l * u->experts + e;
            const float v = sum[i] + (more != NULL ? more[i] : 0);
            if (v > hottest) hottest = v;
        }
        total += hottest;
    }
    return total * u->experts / ((double)u->layers * (double)count);
}

static void
add_to(const select_uses *u, float *sum, const float *share)
{
    for (size_t i = 0; i < prompt_size(u); i++)
        sum[i] += share[i];
}

double
select_skew(const select_uses *u, const uint32_t *picks, size_t count)
{
    if (count == 0 || u->count == 0) return NAN;
    float *sum = calloc(prompt_size(u), sizeof *sum);
    if (sum == NULL) return NAN;
    for (size_t i = 0; i < count; i++)
        add_to(u, sum, u->share + (picks != NULL ? picks[i] : i) * prompt_size(u));
    const double skew = skew_of(u, sum, NULL, count);
    free(sum);
    return skew;
}

/* The prompt that is best to take next; count: how many are in the sum. */
static uint32_t
best_next(const select_uses *u, const float *sum, const bool *taken, size_t count, bool even)
{
    uint32_t best = 0;
    double best_skew = NAN;
    for (uint32_t p = 0; p < u->count; p++) {
        if (taken[p]) continue;
        const double skew = skew_of(u, sum, u->share + p * prompt_size(u), count + 1);
        if (!isnan(best_skew) && (even ? skew >= best_skew : skew <= best_skew)) continue;
        best = p, best_skew = skew;
    }
    return best;
}

size_t
select_pick(const select_uses *u, size_t wanted, bool even, uint32_t *picks)
{
    if (u->count == 0) return 0;
    if (wanted > u->count) wanted = u->count;
    float *sum = calloc(prompt_size(u), sizeof *sum);
    bool *taken = calloc(u->count, sizeof *taken);
    size_t count = 0;
    while (sum != NULL && taken != NULL && count < wanted) {
        const uint32_t p = best_next(u, sum, taken, count, even);
        taken[p] = true;
        add_to(u, sum, u->share + p * prompt_size(u));
        picks[count++] = p;
    }
    free(taken);
    free(sum);
    return count;
}
