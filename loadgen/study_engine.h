/* study_engine: a result file for a run of conclave-bench engine, so that a study's cells without a
 * server (router and experts alone, in one process or split) are read and compared like the others.
 *
 * From the bench's JSON lines are taken the first prompt ("pp512") and the first batch ("b32"):
 *
 *   output_throughput    the batch's tokens per second
 *   median_tpot_ms       its median step
 *   median_ttft_ms       the time of the prompt by itself: its tokens / its tokens per second
 *   input_throughput     the prompt's tokens per second
 *   request_throughput   null: there are no requests
 *   engine               the lines, unchanged
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_ENGINE_H
#define MOE_LOADGEN_STUDY_ENGINE_H

#include <stddef.h>
#include <stdio.h>

#include "common/err.h"

#define STUDY_ENGINE_BYTES_MAX (1u << 20)

typedef struct study_engine_result {
    const char *lines; /* borrowed, [len] */
    size_t len;
    double prompt_tokens, prompt_rate, batch, batch_rate, step_ms;
} study_engine_result;

/* lines [len]: JSON Lines; borrowed by *out.
 *   MOE_EINVAL  not what the bench writes, or neither a prompt nor a batch is in it */
moe_err study_engine_parse(const char *lines, size_t len, study_engine_result *out, errbuf *eb);

/* As the file of a run.   MOE_EIO, MOE_ENOMEM */
moe_err study_engine_write(const study_engine_result *r, FILE *to, errbuf *eb);

#endif
