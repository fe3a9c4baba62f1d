/* routing_synth: a gate that is only a random number generator, for replays and benchmarks.
 *
 * Each token picks K different experts of each layer, one after the other, with chances that fall
 * like 1 / rank^exponent (Zipf).  Which expert has which rank differs from layer to layer and can
 * change over time: slowly, or all at once, as when the texts' domain changes.
 *
 *   L layers   E experts   K top-k
 *
 * Threads: one owner.
 */
#ifndef MOE_ROUTER_ROUTING_SYNTH_H
#define MOE_ROUTER_ROUTING_SYNTH_H

#include <stdint.h>

#include "common/err.h"

typedef struct routing_synth routing_synth;

typedef struct routing_synth_config {
    uint32_t num_layers, num_experts, top_k;
    double exponent; /* 0: all experts alike */
    uint64_t seed;
    uint32_t drift_steps; /* after so many steps two experts of each layer change ranks; 0: never */
    uint32_t switch_step; /* at this step all ranks are drawn anew; 0: never */
} routing_synth_config;

/*   MOE_ERANGE  L, E or K is 0 or too large, K > E, an exponent outside 0 .. 16
 *   MOE_ENOMEM  */
moe_err routing_synth_create(routing_synth **out, const routing_synth_config *config, errbuf *eb);
void routing_synth_free(routing_synth *s); /* accepts NULL */

/* The next step: rows of each expert for that many tokens.  counts [L][E], overwritten. */
void routing_synth_step(routing_synth *s, uint32_t token_count, uint32_t *counts);

#endif
