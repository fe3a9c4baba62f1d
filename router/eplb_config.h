/* eplb_config: --eplb-config, a JSON object with vLLM's keys.
 *
 *   {"window_size": 1000, "step_interval": 3000, "num_redundant_experts": 0,
 *    "log_balancedness": false}
 *
 * Threads: no shared state.
 */
#ifndef MOE_ROUTER_EPLB_CONFIG_H
#define MOE_ROUTER_EPLB_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

typedef struct eplb_config {
    uint32_t window_size;           /* steps whose load is looked at */
    uint32_t step_interval;         /* steps between two looks at the placement */
    uint32_t num_redundant_experts; /* slots of a layer beyond its experts, over all workers */
    bool log_balancedness;          /* log it as steps end, at most ten times a second */
} eplb_config;

eplb_config eplb_default_config(void);

/* Keys that are absent keep their default.
 *   MOE_EINVAL  not an object, an unknown key, or a value outside its limits; the text names it  */
moe_err eplb_config_parse(const char *text, eplb_config *out, errbuf *eb);

#endif
