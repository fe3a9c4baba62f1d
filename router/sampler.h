/* sampler: from one row of logits to the next token, and to what is reported about it.
 *
 * The order of the steps is the one users of vLLM expect: allowed ids, bad words, min_tokens, bias,
 * repetition, frequency and presence penalty, temperature, min_p, top_k, top_p.  Everything after
 * the load of the logits is computed in double, in id order, with an exponential of our own, so
 * that the same logits give the same token on every machine.
 *
 * Symbols used in shapes below:
 *   V  vocab_size
 *
 * Ties: the lower id wins, in greedy choice, in the order of top_p and among top logprobs; tokens
 * equal to the k-th stay with top_k.  A logit that is not a number counts as -infinity.  Ids
 * outside the vocabulary are ignored wherever they occur.
 *
 * When the steps forbid every token, bad words and min_tokens are given up: the answer is the best
 * of the allowed ids, and without such the largest logit.
 *
 * Threads: a sampler belongs to one thread at a time; distinct samplers are independent.  Nothing
 * here allocates after create, blocks or logs.
 */
#ifndef MOE_ROUTER_SAMPLER_H
#define MOE_ROUTER_SAMPLER_H

#include <stdint.h>

#include "common/err.h"

#define SAMPLER_VOCAB_MAX (1u << 24)
#define SAMPLER_TOP_MAX 20u

typedef struct sampler sampler;

/* What one request asks for.  Arrays are borrowed; NULL where the count is 0.  Start from
 * sampler_default_params(): all zero would be greedy. */
typedef struct sampling_params {
    double temperature; /* not above 0: greedy */
    double top_p;       /* 1 or more: no limit; 0 or less: only the best */
    double min_p;       /* 0: no limit; more than 1 counts as 1 */
    int32_t top_k;      /* not above 0, or at least V: no limit */
    double presence_penalty;
    double frequency_penalty;
    double repetition_penalty; /* 1: none; not above 0: none */
    uint32_t min_tokens;       /* stop tokens are forbidden while the output is shorter */
    uint64_t seed;
    uint32_t choice; /* index among the request's n choices */
    uint32_t stop_token_count;
    const uint32_t *stop_token_ids; /* [stop_token_count] */
    uint32_t bias_count;
    const uint32_t *bias_ids;          /* [bias_count]; an id given twice is biased twice */
    const double *bias_values;         /* [bias_count] */
    uint32_t allowed_count;            /* 0: all are allowed */
    const uint32_t *allowed_token_ids; /* [allowed_count] */
    uint32_t bad_word_count;
    const uint32_t *bad_word_ids;  /* [sum of bad_word_lens], one sequence after the other */
    const uint32_t *bad_word_lens; /* [bad_word_count]; an empty sequence forbids nothing */
} sampling_params;

/* The log-softmax of the unmodified logits, as the OpenAI API reports it. */
typedef struct sampled_logprobs {
    float logprob; /* of the token; -infinity if its logit is, or if it is no id */
    uint32_t rank; /* tokens at least as likely as it, itself included: 1 is the best */
    uint32_t top_count;
    uint32_t top_ids[SAMPLER_TOP_MAX];   /* [top_count], most likely first */
    float top_logprobs[SAMPLER_TOP_MAX]; /* [top_count] */
} sampled_logprobs;

/* Temperature 1 and everything else off. */
sampling_params sampler_default_params(void);

/* The only function here that allocates: 24 bytes per token of the vocabulary.
 *
 * On MOE_OK *out is owned by the caller: sampler_free().  On error *out is NULL.
 *   MOE_ERANGE  vocab_size is 0 or above SAMPLER_VOCAB_MAX
 *   MOE_ENOMEM  */
moe_err sampler_create(sampler **out, uint32_t vocab_size);

/* Accepts NULL. */
void sampler_free(sampler *s);

/* Choose the next token; always less than V.
 *
 *   logits      [V], as the model gave them; not changed
 *   history     [total_len], the prompt's ids and then the output's so far
 *   prompt_len  how many of them are the prompt, at most total_len
 *   position    the new token's place in the sequence; the noise depends on (seed, choice,
 *               position) and on nothing else, so a replayed step repeats its token  */
uint32_t sampler_sample(sampler *s, const sampling_params *params, const float *logits,
                        const uint32_t *history, uint32_t prompt_len, uint32_t total_len,
                        uint32_t position);

/* The probabilities [V] that sampler_sample() draws from, for tests and analysis.  Borrowed until
 * the next call on this sampler. */
const double *sampler_probs(sampler *s, const sampling_params *params, const float *logits,
                            const uint32_t *history, uint32_t prompt_len, uint32_t total_len);

/* Report one token and the top_n most likely ones (cut to SAMPLER_TOP_MAX and V).
 *
 *   logits  [V], as the model gave them  */
void sampler_logprobs(const sampler *s, const float *logits, uint32_t token, uint32_t top_n,
                      sampled_logprobs *out);

#endif
