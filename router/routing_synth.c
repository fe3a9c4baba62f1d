#include "router/routing_synth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/placement.h"

#define EXPONENT_MAX 16.0

/* One allocation. */
struct routing_synth {
    routing_synth_config config;
    uint64_t rng, step;
    double *rates;   /* [E] by rank */
    double *keys;    /* [K] smallest so far, falling */
    uint32_t *picks; /* [K] */
    uint32_t *ranks; /* [L][E] */
};

static uint64_t
draw(routing_synth *s)
{
    return s->rng = hash_mix(s->rng);
}

static void
draw_ranks(routing_synth *s)
{
    for (uint32_t l = 0; l < s->config.num_layers; l++) {
        uint32_t *ranks = s->ranks + (size_t)l * s->config.num_experts;
        for (uint32_t e = 0; e < s->config.num_experts; e++) {
            const uint32_t other = (uint32_t)(draw(s) % (e + 1));
            ranks[e] = ranks[other];
            ranks[other] = e;
        }
    }
}

moe_err
routing_synth_create(routing_synth **out, const routing_synth_config *c, errbuf *eb)
{
    *out = NULL;
    if (c->num_layers == 0 || c->num_layers > PLACEMENT_LAYER_MAX || c->num_experts == 0 ||
        c->num_experts > PLACEMENT_EXPERT_MAX || c->top_k == 0 || c->top_k > c->num_experts)
        return err_set(eb, MOE_ERANGE, "%u layers, %u experts, top-%u", c->num_layers,
                       c->num_experts, c->top_k);
    if (!(c->exponent >= 0) || c->exponent > EXPONENT_MAX)
        return err_set(eb, MOE_ERANGE, "an exponent of %g, not 0 .. %g", c->exponent, EXPONENT_MAX);
    const size_t experts = c->num_experts, all = experts * c->num_layers;
    routing_synth *s = calloc(1, sizeof *s + (experts + c->top_k) * sizeof(double) +
                                     (c->top_k + all) * sizeof(uint32_t));
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->config = *c;
    s->rng = hash_mix(c->seed);
    s->rates = (double *)(s + 1);
    s->keys = s->rates + experts;
    s->picks = (uint32_t *)(s->keys + c->top_k);
    s->ranks = s->picks + c->top_k;
    for (uint32_t r = 0; r < experts; r++)
        s->rates[r] = pow(r + 1, -c->exponent);
    draw_ranks(s);
    *out = s;
    return MOE_OK;
}

void
routing_synth_free(routing_synth *s)
{
    free(s);
}

static void
drift(routing_synth *s)
{
    const uint32_t experts = s->config.num_experts;
    if (s->config.switch_step != 0 && s->step == s->config.switch_step) draw_ranks(s);
    if (s->config.drift_steps == 0 || s->step == 0 || s->step % s->config.drift_steps != 0) return;
    for (uint32_t l = 0; l < s->config.num_layers; l++) {
        uint32_t *a = s->ranks + (size_t)l * experts + draw(s) % experts;
        uint32_t *b = s->ranks + (size_t)l * experts + draw(s) % experts;
        const uint32_t rank = *a;
        *a = *b;
        *b = rank;
    }
}

/* Each expert's clock rings after an exponential time; the first K to ring are K draws without
 * replacement. */
static void
route_token(routing_synth *s, const uint32_t *ranks, uint32_t *counts)
{
    const uint32_t k = s->config.top_k;
    uint32_t filled = 0;
    for (uint32_t e = 0; e < s->config.num_experts; e++) {
        const double u = ((double)(draw(s) >> 11) + 0.5) / 9007199254740992.0; /* 2^53 */
        const double key = -log(u) / s->rates[ranks[e]];
        if (filled == k && key >= s->keys[k - 1]) continue;
        uint32_t at = filled < k ? filled++ : k - 1;
        for (; at > 0 && s->keys[at - 1] > key; at--) {
            s->keys[at] = s->keys[at - 1];
            s->picks[at] = s->picks[at - 1];
        }
        s->keys[at] = key;
        s->picks[at] = e;
    }
    for (uint32_t i = 0; i < k; i++)
        counts[s->picks[i]]++;
}

void
routing_synth_step(routing_synth *s, uint32_t token_count, uint32_t *counts)
{
    const size_t experts = s->config.num_experts;
    drift(s);
    memset(counts, 0, s->config.num_layers * experts * sizeof *counts);
    for (uint32_t l = 0; l < s->config.num_layers; l++) {
        for (uint32_t t = 0; t < token_count; t++)
            route_token(s, s->ranks + l * experts, counts + l * experts);
    }
    s->step++;
}
