#include "frontend/engine_metrics.h"

static const double token_bounds[] = {1,   2,   4,   8,    16,   32,   64,
                                      128, 256, 512, 1024, 2048, 4096, 8192};

void
engine_metrics_init(engine_metrics *em, metrics *m, const char *labels)
{
    *em = (engine_metrics){0};
    if (m == NULL) return;
    em->running = metrics_gauge(m, "vllm:num_requests_running", labels, "Sequences in steps");
    em->waiting = metrics_gauge(m, "vllm:num_requests_waiting", labels,
                                "Sequences waiting for their first step or preempted");
    em->kv_usage =
        metrics_gauge(m, "vllm:kv_cache_usage_perc", labels, "Share of KV blocks in use, 0 to 1");
    em->kv_used = metrics_gauge(m, "conclave:kv_blocks_used", labels, "KV blocks in use");
    em->kv_total = metrics_gauge(m, "conclave:kv_blocks_total", labels, "KV blocks");
    em->preemptions = metrics_counter(m, "vllm:num_preemptions_total", labels,
                                      "Sequences preempted because KV blocks ran out");
    em->prefix_queries = metrics_counter(m, "vllm:prefix_cache_queries_total", labels,
                                         "Tokens looked up in the prefix cache");
    em->prefix_hits = metrics_counter(m, "vllm:prefix_cache_hits_total", labels,
                                      "Tokens found in the prefix cache");
    em->steps = metrics_counter(m, "conclave:steps_total", labels, "Steps run");
    em->limited_seqs = metrics_counter(m, "conclave:steps_limited_by_seqs_total", labels,
                                       "Steps in which max_num_seqs kept something waiting");
    em->limited_tokens = metrics_counter(m, "conclave:steps_limited_by_tokens_total", labels,
                                         "Steps in which max_num_batched_tokens cut something");
    em->limited_blocks = metrics_counter(m, "conclave:steps_limited_by_blocks_total", labels,
                                         "Steps in which KV blocks kept something waiting");
    em->step_seconds = metrics_counter(m, "conclave:step_seconds_total", labels,
                                       "Time of steps as the frontend sees them");
    em->router_seconds = metrics_counter(m, "conclave:router_step_seconds_total", labels,
                                         "Time steps took in the router");
    em->expert_wait_seconds = metrics_counter(m, "conclave:expert_wait_seconds_total", labels,
                                              "Of it, waiting for expert workers");
    em->step_tokens =
        metrics_histogram(m, "vllm:iteration_tokens_total", labels, "Tokens of a step",
                          token_bounds, sizeof token_bounds / sizeof token_bounds[0]);
}

void
engine_metrics_scheduler(engine_metrics *em, const scheduler_stats *now)
{
    const scheduler_stats *last = &em->last;
    metric_set(em->running, now->running);
    metric_set(em->waiting, now->waiting);
    metric_set(em->kv_used, now->blocks_used);
    metric_set(em->kv_total, now->blocks_total);
    metric_set(em->kv_usage, now->blocks_total ? (double)now->blocks_used / now->blocks_total : 0);
    metric_add(em->preemptions, (double)(now->preemptions - last->preemptions));
    metric_add(em->prefix_queries, (double)(now->prefix_query_tokens - last->prefix_query_tokens));
    metric_add(em->prefix_hits, (double)(now->prefix_hit_tokens - last->prefix_hit_tokens));
    metric_add(em->steps, (double)(now->steps - last->steps));
    metric_add(em->limited_seqs,
               (double)(now->steps_limited_by_seqs - last->steps_limited_by_seqs));
    metric_add(em->limited_tokens,
               (double)(now->steps_limited_by_tokens - last->steps_limited_by_tokens));
    metric_add(em->limited_blocks,
               (double)(now->steps_limited_by_blocks - last->steps_limited_by_blocks));
    em->last = *now;
}

void
engine_metrics_step(engine_metrics *em, uint32_t tokens, uint64_t step_ns, uint64_t router_ns,
                    uint64_t expert_wait_ns)
{
    metric_add(em->step_seconds, (double)step_ns / 1e9);
    metric_add(em->router_seconds, (double)router_ns / 1e9);
    metric_add(em->expert_wait_seconds, (double)expert_wait_ns / 1e9);
    metric_observe(em->step_tokens, tokens);
}
