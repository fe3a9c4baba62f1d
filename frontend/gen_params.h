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

/* Which experts a token uses: num_layers x top_k ids of id_bytes (1, or 2: little-endian). */
typedef struct routing_shape {
    uint32_t num_layers, top_k;
    uint32_t id_bytes; /* 0: nobody tells */
} routing_shape;

static inline uint32_t
routing_token_bytes(const routing_shape *s)
{
    return s->num_layers * s->top_k * s->id_bytes;
}

/* In one number, for sharing it between threads; num_layers below 2^16, top_k below 2^8. */
static inline uint64_t
routing_pack(const routing_shape *s)
{
    return (uint64_t)s->num_layers << 32 | (uint64_t)s->top_k << 8 | s->id_bytes;
}

static inline routing_shape
routing_unpack(uint64_t packed)
{
    return (routing_shape){.num_layers = (uint32_t)(packed >> 32),
                           .top_k = (uint32_t)(packed >> 8 & 0xff),
                           .id_bytes = (uint32_t)(packed & 0xff)};
}

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
    bool routed_experts;  /* which experts each token uses; bypasses the prefix cache, too */
    uint32_t stop_token_count;
    uint32_t stop_token_ids[GEN_STOP_TOKENS_MAX];
    uint32_t bias_count;
    const uint32_t *bias_ids; /* [bias_count], borrowed for the sequence's life */
    const double *bias_values;
} gen_params;

#endif
