#include "frontend/engine_metrics.h"

#include <stddef.h>
#include <stdio.h>

static const double token_bounds[] = {1,   2,   4,   8,    16,   32,   64,
                                      128, 256, 512, 1024, 2048, 4096, 8192};

/* One name at a time, as Prometheus wants them printed. */
static void
init_routers(engine_metrics *em, metrics *m, const char *labels, uint32_t count)
{
    static const struct {
        metric *(*add)(metrics *m, const char *name, const char *labels, const char *help);
        size_t field;
        const char *name, *help;
    } each[] = {
        {metrics_gauge, offsetof(router_metrics, ready), "conclave:router_ready",
         "1 while the router serves"},
        {metrics_gauge, offsetof(router_metrics, running), "conclave:router_requests_running",
         "Sequences in the router's steps"},
        {metrics_gauge, offsetof(router_metrics, waiting), "conclave:router_requests_waiting",
         "Sequences given to the router that wait for their first step or were preempted"},
        {metrics_gauge, offsetof(router_metrics, kv_used), "conclave:router_kv_blocks_used",
         "KV blocks of the router in use"},
        {metrics_gauge, offsetof(router_metrics, kv_total), "conclave:router_kv_blocks_total",
         "KV blocks of the router"},
        {metrics_counter, offsetof(router_metrics, steps), "conclave:router_steps_total",
         "Steps run by the router"},
        {metrics_counter, offsetof(router_metrics, tokens), "conclave:router_tokens_total",
         "Tokens of the router's steps"},
        {metrics_counter, offsetof(router_metrics, step_seconds), "conclave:router_seconds_total",
         "Time of the router's steps as the frontend sees them"},
        {metrics_counter, offsetof(router_metrics, lost), "conclave:router_lost_total",
         "Times that the router stopped serving"},
    };
    for (uint32_t r = 0; r < count; r++) {
        char *own = em->routers[r].labels;
        snprintf(own, sizeof em->routers[r].labels, "%s%srouter=\"%u\"",
                 labels == NULL ? "" : labels, labels == NULL || labels[0] == '\0' ? "" : ",", r);
    }
    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
        for (uint32_t r = 0; r < count; r++) {
            metric **at = (metric **)(void *)((char *)&em->routers[r] + each[i].field);
            *at = each[i].add(m, each[i].name, em->routers[r].labels, each[i].help);
        }
    }
}

void
engine_metrics_init(engine_metrics *em, metrics *m, const char *labels, uint32_t router_count)
{
    *em = (engine_metrics){0};
    if (m == NULL) return;
    em->running = metrics_gauge(m, "vllm:num_requests_running", labels, "Sequences in steps");
    em->waiting = metrics_gauge(m, "vllm:num_requests_waiting", labels,
                                "Sequences waiting for their first step or preempted");
    em->queued = metrics_gauge(m, "conclave:requests_queued", labels,
                               "Of the waiting sequences, those that no router has a place for");
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
    em->placed_by_prefix =
        metrics_counter(m, "conclave:requests_placed_by_prefix_total", labels,
                        "Sequences given to a router that had some of their prefix cached");
    em->moved = metrics_counter(m, "conclave:requests_moved_total", labels,
                                "Sequences taken back from a lost router, for the others");
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
    init_routers(em, m, labels, router_count);
}

void
engine_metrics_cell(engine_metrics *em, const cell_stats *stats)
{
    const scheduler_stats *now = &stats->sum, *last = &em->last.sum;
    metric_set(em->running, now->running);
    metric_set(em->waiting, now->waiting);
    metric_set(em->queued, stats->queued);
    metric_set(em->kv_used, now->blocks_used);
    metric_set(em->kv_total, now->blocks_total);
    metric_set(em->kv_usage, now->blocks_total ? (double)now->blocks_used / now->blocks_total : 0);
    const struct {
        metric *counter;
        uint64_t now, last;
    } counters[] = {
        {em->preemptions, now->preemptions, last->preemptions},
        {em->prefix_queries, now->prefix_query_tokens, last->prefix_query_tokens},
        {em->prefix_hits, now->prefix_hit_tokens, last->prefix_hit_tokens},
        {em->placed_by_prefix, stats->placed_by_prefix, em->last.placed_by_prefix},
        {em->moved, stats->recalled, em->last.recalled},
        {em->steps, now->steps, last->steps},
        {em->limited_seqs, now->steps_limited_by_seqs, last->steps_limited_by_seqs},
        {em->limited_tokens, now->steps_limited_by_tokens, last->steps_limited_by_tokens},
        {em->limited_blocks, now->steps_limited_by_blocks, last->steps_limited_by_blocks},
    };
    for (size_t i = 0; i < sizeof counters / sizeof counters[0]; i++) {
        metric_add(counters[i].counter, (double)(counters[i].now - counters[i].last));
    }
    em->last = *stats;
}

void
engine_metrics_router(engine_metrics *em, uint32_t router, const scheduler_stats *now)
{
    const router_metrics *rm = &em->routers[router];
    metric_set(rm->running, now->running);
    metric_set(rm->waiting, now->waiting);
    metric_set(rm->kv_used, now->blocks_used);
    metric_set(rm->kv_total, now->blocks_total);
}

void
engine_metrics_ready(engine_metrics *em, uint32_t router, bool ready)
{
    metric_set(em->routers[router].ready, ready);
}

void
engine_metrics_lost(engine_metrics *em, uint32_t router)
{
    metric_add(em->routers[router].lost, 1);
}

void
engine_metrics_step(engine_metrics *em, uint32_t router, uint32_t tokens, uint64_t step_ns,
                    uint64_t router_ns, uint64_t expert_wait_ns)
{
    const router_metrics *rm = &em->routers[router];
    metric_add(em->step_seconds, (double)step_ns / 1e9);
    metric_add(em->router_seconds, (double)router_ns / 1e9);
    metric_add(em->expert_wait_seconds, (double)expert_wait_ns / 1e9);
    metric_observe(em->step_tokens, tokens);
    metric_add(rm->steps, 1);
    metric_add(rm->tokens, tokens);
    metric_add(rm->step_seconds, (double)step_ns / 1e9);
}
