/* engine_metrics: what the engine tells /metrics: queue, KV cache, steps.
 *
 * Threads: the engine's thread.
 */
#ifndef MOE_FRONTEND_ENGINE_METRICS_H
#define MOE_FRONTEND_ENGINE_METRICS_H

#include "common/metrics.h"
#include "frontend/scheduler.h"

typedef struct engine_metrics {
    metric *running, *waiting, *kv_usage, *kv_used, *kv_total;
    metric *preemptions, *prefix_queries, *prefix_hits;
    metric *steps, *limited_seqs, *limited_tokens, *limited_blocks;
    metric *step_seconds, *router_seconds, *expert_wait_seconds, *step_tokens;
    scheduler_stats last; /* what the counters stand at */
} engine_metrics;

/* m may be NULL: then nothing is recorded. */
void engine_metrics_init(engine_metrics *em, metrics *m, const char *labels);
void engine_metrics_scheduler(engine_metrics *em, const scheduler_stats *now);
void engine_metrics_step(engine_metrics *em, uint32_t tokens, uint64_t step_ns, uint64_t router_ns,
                         uint64_t expert_wait_ns);

#endif
