/* api_metrics: what the HTTP side measures.  Names are vLLM's where vLLM has the figure.
 *
 * Threads: create once, before others use the set; everything else from any thread.
 */
#ifndef MOE_FRONTEND_API_METRICS_H
#define MOE_FRONTEND_API_METRICS_H

#include "common/metrics.h"
#include "frontend/scheduler.h"

#define API_METRICS_CODES 12

typedef struct api_metrics {
    metric *time_to_first_token;
    metric *time_per_output_token, *inter_token_latency; /* the same figure under both names */
    metric *e2e_latency;
    metric *success[FINISH_ERROR + 1]; /* by finish_reason */
    metric *prompt_tokens, *generation_tokens;
    metric *responses[API_METRICS_CODES];
} api_metrics;

/* Register in set; with set NULL, or full, the figures concerned are not kept. */
void api_metrics_init(api_metrics *m, metrics *set);

/* Count one answer of this HTTP status. */
void api_metrics_response(api_metrics *m, int status);

#endif
