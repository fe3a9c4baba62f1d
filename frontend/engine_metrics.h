/* engine_metrics: what the engine tells /metrics: queue, KV cache, steps.
 *
 * vLLM's names stand for the whole cell; conclave:router_... for each router, with its number as a
 * label.
 *
 * Threads: the engine's thread.
 */
#ifndef MOE_FRONTEND_ENGINE_METRICS_H
#define MOE_FRONTEND_ENGINE_METRICS_H

#include "common/metrics.h"
#include "frontend/cell.h"

typedef struct router_metrics {
    metric *ready, *running, *waiting, *kv_used, *kv_total;
    metric *steps, *tokens, *step_seconds, *lost;
    char labels[640];
} router_metrics;

typedef struct engine_metrics {
    metric *running, *waiting, *queued, *kv_usage, *kv_used, *kv_total;
    metric *preemptions, *prefix_queries, *prefix_hits, *placed_by_prefix, *moved;
    metric *steps, *limited_seqs, *limited_tokens, *limited_blocks;
    metric *step_seconds, *router_seconds, *expert_wait_seconds, *step_tokens;
    cell_stats last; /* what the counters stand at */
    router_metrics routers[CELL_ROUTERS_MAX];
} engine_metrics;

/* m may be NULL: then nothing is recorded. */
void engine_metrics_init(engine_metrics *em, metrics *m, const char *labels, uint32_t router_count);
void engine_metrics_cell(engine_metrics *em, const cell_stats *now);
void engine_metrics_router(engine_metrics *em, uint32_t router, const scheduler_stats *now);
void engine_metrics_ready(engine_metrics *em, uint32_t router, bool ready);
void engine_metrics_lost(engine_metrics *em, uint32_t router);
void engine_metrics_step(engine_metrics *em, uint32_t router, uint32_t tokens, uint64_t step_ns,
                         uint64_t router_ns, uint64_t expert_wait_ns);

#endif
