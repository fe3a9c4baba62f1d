/* sampler: from one row of logits to one token, and to the log-probabilities that a client asked
 * for.
 *
 * Steps, in this order (vLLM's): allowed ids, bad words, min_tokens, logit bias, repetition,
 * frequency and presence penalty, temperature, min_p, top_k, top_p, softmax, draw.
 *
 * A token depends on the logits, the parameters and (seed, choice, position) alone: noise is one
 * uniform number keyed by those three, the draw walks the tokens in rising id, and exp() and log()
 * are computed here by plain IEEE operations in double, because a C library chooses its own by the
 * CPU.
 *
 * Symbols: V vocabulary.
 *
 * Threads: a sampler belongs to one thread at a time.  Nothing allocates but sampler_create().
 */
#ifndef MOE_ROUTER_SAMPLER_H
#define MOE_ROUTER_SAMPLER_H

#include <stdint.h>

#include "common/err.h"

#define SAMPLER_VOCAB_MAX (1u << 24)
#define SAMPLER_TOP_LOGPROBS_MAX 20
#define SAMPLER_BIAS_MAX 1024
#define SAMPLER_STOP_MAX 1024
#define SAMPLER_BAD_WORD_MAX 1024

/* Every array is borrowed, and NULL where its count is 0. */
typedef struct sampling_params {
    double temperature; /* 0 = greedy: the largest logit, lowest id first */
    double top_p;       /* 1 = all */
    double min_p;       /* 0 = all */
    uint32_t top_k;     /* 0 = all */
    double presence_penalty;
    double frequency_penalty;
    double repetition_penalty; /* 1 = none */
    uint32_t min_tokens;       /* stop_token_ids are forbidden before so many tokens of output */
    uint64_t seed;
    uint32_t choice;
    const uint32_t *bias_ids; /* [bias_count] */
    const float *bias_values; /* [bias_count] */
    uint32_t bias_count;
    const uint32_t *stop_token_ids; /* [stop_count] */
    uint32_t stop_count;
    const uint32_t *allowed_token_ids; /* [allowed_count]; 0 = all are allowed */
    uint32_t allowed_count;
    /* Sequences that must not appear in the output, one after the other.  Of each, the last id is
     * forbidden where the output ends with the ids before it. */
    const uint32_t *bad_word_ids;  /* [sum of bad_word_lens] */
    const uint32_t *bad_word_lens; /* [bad_word_count], not 0 */
    uint32_t bad_word_count;
} sampling_params;

/* Everything off: temperature 1, all tokens. */
sampling_params sampling_params_default(void);

/* Check what came from a request, for a vocabulary of V.
 *   MOE_EINVAL  a number is not finite or outside its meaning, a list is too long, an id >= V; eb
 *               names the parameter */
moe_err sampling_params_check(const sampling_params *p, uint32_t vocab_size, errbuf *eb);

typedef struct sampler sampler;

/*   MOE_ERANGE  vocab_size is 0 or above SAMPLER_VOCAB_MAX
 *   MOE_ENOMEM  */
moe_err sampler_create(sampler **out, uint32_t vocab_size);
void sampler_free(sampler *s);

/* Choose one token.
 *   params   checked by sampling_params_check(); borrowed for the call, as all arrays
 *   logits   [V], unmodified; NaN counts as -inf
 *   history  [total_len]: prompt_len ids of the prompt, then the output so far; read only where
 *            penalties or bad words are set
 *   position of the token to be chosen: together with seed and choice it keys the noise
 *   MOE_EINVAL  no token is left (all forbidden or -inf); *token is 0 then */
moe_err sampler_sample(sampler *s, const sampling_params *params, const float *logits,
                       const uint32_t *history, uint32_t prompt_len, uint32_t total_len,
                       uint32_t position, uint32_t *token);

/* The probabilities that sampler_sample() draws from, into probs [V]. */
moe_err sampler_probs(sampler *s, const sampling_params *params, const float *logits,
                      const uint32_t *history, uint32_t prompt_len, uint32_t total_len,
                      double *probs);

typedef struct sampler_logprobs {
    double logprob;
    uint32_t rank; /* tokens whose logit is at least this one's; 1 = best */
    uint32_t top_count;
    uint32_t top_ids[SAMPLER_TOP_LOGPROBS_MAX]; /* falling; equal ones by rising id */
    double top_logprobs[SAMPLER_TOP_LOGPROBS_MAX];
} sampler_logprobs;

/* Log-softmax of the unmodified logits [V], for one token and the top_n best.
 *   MOE_ERANGE  top_n above SAMPLER_TOP_LOGPROBS_MAX
 *   MOE_EINVAL  token >= V, or all logits are -inf or NaN */
moe_err sampler_logprobs_get(const sampler *s, const float *logits, uint32_t token, uint32_t top_n,
                             sampler_logprobs *out);

#endif
