/* routing_trace_fuzz: bytes of a trace file; what can be read goes through a replay.
 *
 * The replay is skipped for large traces: not the reader, but the solver, would be slow. */
#include <stdint.h>
#include <stdlib.h>

#include "router/eplb_replay.h"

#define CELLS_MAX 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    routing_trace t;
    routing_trace_record r;
    errbuf eb;
    if (routing_trace_open(&t, data, size, &eb) != MOE_OK) return 0;
    const size_t cells = (size_t)t.header.num_layers * t.header.num_experts;
    if (cells > CELLS_MAX) return 0;
    uint32_t *counts = malloc(cells * sizeof *counts);
    if (counts == NULL) return 0;
    while (routing_trace_next(&t, &r, counts, &eb) == MOE_OK) {
        if (r.step_count == 0) abort();
    }
    free(counts);
    const replay_config config = {.policy = size % 2 ? EPLB_CONCLAVE : EPLB_DEEPSEEK,
                                  .worker_count = 3,
                                  .redundant = 2,
                                  .window_size = 4,
                                  .step_interval = 2,
                                  .num_groups = 1,
                                  .num_nodes = 1,
                                  .costs = eplb_default_costs()};
    replay_summary summary;
    if (routing_trace_open(&t, data, size, &eb) != MOE_OK) abort();
    eplb_replay(&t, &config, NULL, NULL, &summary, &eb);
    return 0;
}
