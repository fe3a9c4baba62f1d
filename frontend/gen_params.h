/* gen_params: how one completion is to be generated, after validation.
 *
 * Threads: plain data, immutable once handed to the engine.
 */
#ifndef MOE_FRONTEND_GEN_PARAMS_H
#define MOE_FRONTEND_GEN_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#define GEN_STOP_TOKENS_MAX 64
#define GEN_LOGIT_BIAS_MAX 1024
#define GEN_LOGPROBS_MAX 20
#define GEN_CHOICES_MAX 128 /* n */

typedef struct gen_params {
    double temperature;        /* 0 = greedy */
    double top_p;              /* (0, 1] */
    double min_p;              /* [0, 1] */
    int32_t top_k;             /* 0, -1 = no limit */
    double presence_penalty;   /* [-2, 2] */
    double frequency_penalty;  /* [-2, 2] */
    double repetition_penalty; /* > 0 */
    uint64_t seed;       /* drawn at admission when the client gave none, and kept for replay */
    uint32_t choice;     /* index among n choices: noise differs by it */
    uint32_t max_tokens; /* >= 1 */
    uint32_t min_tokens;
    bool ignore_eos;
    int32_t num_logprobs; /* -1 = none, else 0..GEN_LOGPROBS_MAX */
    bool prompt_logprobs; /* logprobs of the prompt's tokens too (echo with logprobs); bypasses the
                             prefix cache */
    uint32_t stop_token_count;
    uint32_t stop_token_ids[GEN_STOP_TOKENS_MAX];
    uint32_t bias_count;
    const uint32_t *bias_ids; /* [bias_count], borrowed for the sequence's life */
    const double *bias_values;
} gen_params;

#endif
