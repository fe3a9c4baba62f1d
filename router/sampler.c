#include "router/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

#define BUCKET_COUNT 1024u

/* One allocation: the arrays follow the struct, the doubles first. */
struct sampler {
    uint32_t vocab_size;
    double bucket_sums[BUCKET_COUNT]; /* while top_p is applied */
    double *scores;                   /* [V] logits after steps 1 to 7 */
    double *weights;  /* [V] probabilities up to a factor; the k-th search's heap before that */
    uint32_t *heap;   /* [V] ids, the likeliest at the root, while top_p is applied */
    uint32_t *counts; /* [V] zero between calls; while penalties are applied see count_history() */
};

/* What the steps leave: either one token for certain, or weights and their sum. */
typedef struct outcome {
    bool certain;
    uint32_t token;
    double total;
} outcome;

typedef struct token_history {
    const uint32_t *ids; /* prompt, then output */
    uint32_t prompt_len;
    uint32_t total_len;
} token_history;

sampling_params
sampler_default_params(void)
{
    return (sampling_params){.temperature = 1.0, .top_p = 1.0, .repetition_penalty = 1.0};
}

moe_err
sampler_create(sampler **out, uint32_t vocab_size)
{
    assert(out != NULL);
    *out = NULL;
    if (vocab_size == 0 || vocab_size > SAMPLER_VOCAB_MAX) return MOE_ERANGE;

    const size_t per_token = 2 * sizeof(double) + 2 * sizeof(uint32_t);
    sampler *s = calloc(1, sizeof *s + vocab_size * per_token);
    if (s == NULL) return MOE_ENOMEM;

    double *doubles = (double *)(s + 1);
    uint32_t *words = (uint32_t *)(doubles + (size_t)vocab_size * 2);
    s->vocab_size = vocab_size;
    s->scores = doubles;
    s->weights = doubles + vocab_size;
    s->heap = words;
    s->counts = words + vocab_size;
    *out = s;
    return MOE_OK;
}

void
sampler_free(sampler *s)
{
    free(s);
}

/* e^d for d <= 0, to about one unit in the last place; 0 below -700, where a float could not hold
 * it by far.  Not the C library's: that one may pick another code path, and other last bits, on
 * another CPU, and a cumulative sum can turn the last bit into another token.
 *
 * d = k ln2 + r with |r| <= ln2 / 2; 14 terms of the series leave an error below 1e-17. */
static double
exp_nonpositive(double d)
{
    static const double shift = 0x1.8p52; /* adding it rounds to an integer, held in the low bits */
    static const double ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
    if (!(d > -700.0)) return 0.0;

    const double shifted = d * 0x1.71547652b82fep+0 + shift;
    const double k = shifted - shift;
    const double r = (d - k * ln2_hi) - k * ln2_lo;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;

    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52; /* k + bias into the exponent: -1010 <= k <= 0 */
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* ---- steps 1 to 7: what a request forbids and prefers ---- */

static void
load_scores(sampler *s, const sampling_params *params, const float *logits)
{
    if (params->allowed_count == 0) {
        for (uint32_t i = 0; i < s->vocab_size; i++)
            s->scores[i] = logits[i];
        return;
    }
    for (uint32_t i = 0; i < s->vocab_size; i++)
        s->scores[i] = -INFINITY;
    for (uint32_t a = 0; a < params->allowed_count; a++) {
        const uint32_t id = params->allowed_token_ids[a];
        if (id < s->vocab_size) s->scores[id] = logits[id];
    }
}

static void
forbid(sampler *s, uint32_t id)
{
    if (id < s->vocab_size) s->scores[id] = -INFINITY;
}

/* A sequence forbids its last id where the ids before it are the end of the output. */
static void
forbid_bad_words(sampler *s, const sampling_params *params, const token_history *h)
{
    const uint32_t output_len = h->total_len - h->prompt_len;
    const uint32_t *word = params->bad_word_ids;
    for (uint32_t b = 0; b < params->bad_word_count; b++) {
        const uint32_t len = params->bad_word_lens[b];
        if (len == 0) continue;
        const uint32_t before = len - 1;
        if (before == 0 || (before <= output_len && memcmp(word, h->ids + h->total_len - before,
                                                           before * sizeof word[0]) == 0))
            forbid(s, word[before]);
        word += len;
    }
}

static void
forbid_early_stop(sampler *s, const sampling_params *params, const token_history *h)
{
    if (h->total_len - h->prompt_len >= params->min_tokens) return;
    for (uint32_t i = 0; i < params->stop_token_count; i++)
        forbid(s, params->stop_token_ids[i]);
}

static void
add_bias(sampler *s, const sampling_params *params)
{
    for (uint32_t i = 0; i < params->bias_count; i++) {
        const uint32_t id = params->bias_ids[i];
        if (id < s->vocab_size) s->scores[id] += params->bias_values[i];
    }
}

/* counts[id] becomes 0 for an id the sequence lacks, else 1 + its occurrences in the output. */
static void
count_history(sampler *s, const token_history *h)
{
    for (uint32_t i = 0; i < h->total_len; i++) {
        const uint32_t id = h->ids[i];
        if (id >= s->vocab_size) continue;
        if (s->counts[id] == 0) s->counts[id] = 1;
        if (i >= h->prompt_len) s->counts[id]++;
    }
}

static bool
has_repetition_penalty(const sampling_params *params)
{
    return params->repetition_penalty > 0.0 && params->repetition_penalty != 1.0;
}

static bool
has_penalties(const sampling_params *params)
{
    return has_repetition_penalty(params) || params->frequency_penalty != 0.0 ||
           params->presence_penalty != 0.0;
}

static double
penalize(const sampling_params *params, double score, uint32_t output_count)
{
    if (has_repetition_penalty(params))
        score =
            score > 0.0 ? score / params->repetition_penalty : score * params->repetition_penalty;
    if (output_count == 0) return score;
    score -= params->frequency_penalty * output_count;
    return score - params->presence_penalty;
}

/* The second walk over the history takes each id once and leaves the counts zero again. */
static void
apply_penalties(sampler *s, const sampling_params *params, const token_history *h)
{
    count_history(s, h);
    for (uint32_t i = 0; i < h->total_len; i++) {
        const uint32_t id = h->ids[i];
        if (id >= s->vocab_size || s->counts[id] == 0) continue;
        s->scores[id] = penalize(params, s->scores[id], s->counts[id] - 1);
        s->counts[id] = 0;
    }
}

static bool
changes_scores(const sampling_params *params, const token_history *h)
{
    return params->allowed_count != 0 || params->bad_word_count != 0 || params->bias_count != 0 ||
           (params->stop_token_count != 0 && h->total_len - h->prompt_len < params->min_tokens) ||
           has_penalties(params);
}

static void
score_tokens(sampler *s, const sampling_params *params, const float *logits, const token_history *h)
{
    load_scores(s, params, logits);
    forbid_bad_words(s, params, h);
    forbid_early_stop(s, params, h);
    add_bias(s, params);
    if (has_penalties(params)) apply_penalties(s, params, h);
}

/* ---- the best token ---- */

static uint32_t
best_logit(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    float best_value = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        if (logits[i] > best_value) {
            best = i;
            best_value = logits[i];
        }
    }
    return best;
}

/* The best score's id, V if nothing is left.  What is not a number is removed on the way, so that
 * the later steps can compare without care. */
static uint32_t
best_score(sampler *s)
{
    uint32_t best = s->vocab_size;
    double best_value = -INFINITY;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        if (isnan(s->scores[i])) s->scores[i] = -INFINITY;
        if (s->scores[i] > best_value) {
            best = i;
            best_value = s->scores[i];
        }
    }
    return best;
}

/* Everything is forbidden: only the list of allowed ids is still obeyed, if it names any. */
static uint32_t
best_despite_bans(sampler *s, const sampling_params *params, const float *logits)
{
    load_scores(s, params, logits);
    const uint32_t best = best_score(s);
    return best < s->vocab_size ? best : best_logit(logits, s->vocab_size);
}

/* ---- steps 8 to 11: temperature and truncation ---- */

static void
sift_down_smallest(double *heap, uint32_t count, uint32_t at)
{
    const double value = heap[at];
    for (uint32_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

/* The k-th largest score, 1 <= k < V.  A heap of the k largest so far has it at the root; most
 * scores then cost one comparison. */
static double
kth_largest_score(sampler *s, uint32_t k)
{
    double *heap = s->weights; /* not in use yet */
    memcpy(heap, s->scores, k * sizeof heap[0]);
    for (uint32_t i = k / 2; i-- > 0;)
        sift_down_smallest(heap, k, i);
    for (uint32_t i = k; i < s->vocab_size; i++) {
        if (s->scores[i] <= heap[0]) continue;
        heap[0] = s->scores[i];
        sift_down_smallest(heap, k, 0);
    }
    return heap[0];
}

/* Weights relative to the best token's, which is 1; min_p and top_k are both a floor, so one pass
 * applies them together.  Returns the sum. */
static double
weigh_tokens(sampler *s, const sampling_params *params, double best)
{
    double score_floor = -INFINITY;
    if (params->top_k > 0 && (uint32_t)params->top_k < s->vocab_size)
        score_floor = kth_largest_score(s, (uint32_t)params->top_k);
    const double weight_floor = params->min_p > 0.0 ? fmin(params->min_p, 1.0) : 0.0;

    double total = 0.0;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        const double score = s->scores[i];
        double weight = 0.0;
        if (score == best)
            weight = 1.0; /* also where infinity - infinity would be no number */
        else if (score >= score_floor)
            weight = exp_nonpositive((score - best) / params->temperature);
        if (weight < weight_floor) weight = 0.0;
        s->weights[i] = weight;
        total += weight;
    }
    return total;
}

/* In falling order, the lower id first among equals. */
static bool
comes_before(const sampler *s, uint32_t a, uint32_t b)
{
    if (s->weights[a] != s->weights[b]) return s->weights[a] > s->weights[b];
    return a < b;
}

static void
sift_down_first(sampler *s, uint32_t count, uint32_t at)
{
    const uint32_t id = s->heap[at];
    for (uint32_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && comes_before(s, s->heap[child + 1], s->heap[child])) child++;
        if (comes_before(s, id, s->heap[child])) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = id;
}

/* A weight's place among the buckets, larger weights first: sixteen to each power of two, taken
 * from the bits of the number; the last holds everything below 2^-64. */
static uint32_t
bucket_of(double weight)
{
    uint64_t bits;
    memcpy(&bits, &weight, sizeof bits);
    const uint64_t steps_below_one = 0x3ff0u - (bits >> 48); /* 0x3ff0: the weight 1, the largest */
    return steps_below_one < BUCKET_COUNT ? (uint32_t)steps_below_one : BUCKET_COUNT - 1;
}

/* The bucket in which the sum reaches the target, and the sum of those before it. */
static uint32_t
find_edge_bucket(sampler *s, double target, double *sum_before)
{
    memset(s->bucket_sums, 0, sizeof s->bucket_sums);
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        if (s->weights[i] > 0.0) s->bucket_sums[bucket_of(s->weights[i])] += s->weights[i];
    }
    uint32_t edge = 0;
    double sum = 0.0;
    for (uint32_t b = 0; b < BUCKET_COUNT; b++) {
        if (s->bucket_sums[b] == 0.0) continue;
        edge = b;
        *sum_before = sum;
        sum += s->bucket_sums[b];
        if (sum >= target) break;
    }
    return edge;
}

static uint32_t
heap_bucket(sampler *s, uint32_t bucket)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        if (s->weights[i] > 0.0 && bucket_of(s->weights[i]) == bucket) s->heap[count++] = i;
    }
    for (uint32_t i = count / 2; i-- > 0;)
        sift_down_first(s, count, i);
    return count;
}

/* The last token, in falling order, that stays: only one bucket has to be put in order. */
static uint32_t
last_of_nucleus(sampler *s, double target)
{
    double sum = 0.0;
    uint32_t count = heap_bucket(s, find_edge_bucket(s, target, &sum));
    uint32_t last = 0;
    assert(count > 0);
    do {
        last = s->heap[0];
        sum += s->weights[last];
        s->heap[0] = s->heap[--count];
        if (count > 0) sift_down_first(s, count, 0);
    } while (count > 0 && sum < target);
    return last;
}

/* Keep the likeliest tokens until their sum reaches top_p of the total.  Returns the new sum,
 * added in id order as the draw will add it. */
static double
keep_nucleus(sampler *s, double top_p, double total)
{
    const uint32_t last = last_of_nucleus(s, fmax(top_p, 0.0) * total);
    const double last_weight = s->weights[last];
    total = 0.0;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        const double weight = s->weights[i];
        if (weight < last_weight || (weight == last_weight && i > last)) s->weights[i] = 0.0;
        total += s->weights[i];
    }
    return total;
}

static outcome
run_steps(sampler *s, const sampling_params *params, const float *logits, const token_history *h)
{
    const bool greedy = !(params->temperature > 0.0);
    if (greedy && !changes_scores(params, h))
        return (outcome){.certain = true, .token = best_logit(logits, s->vocab_size)};

    score_tokens(s, params, logits, h);
    const uint32_t best = best_score(s);
    if (best == s->vocab_size)
        return (outcome){.certain = true, .token = best_despite_bans(s, params, logits)};
    if (greedy) return (outcome){.certain = true, .token = best};

    double total = weigh_tokens(s, params, s->scores[best]);
    if (params->top_p < 1.0) total = keep_nucleus(s, params->top_p, total);
    return (outcome){.token = best, .total = total};
}

static token_history
history_of(const uint32_t *ids, uint32_t prompt_len, uint32_t total_len)
{
    assert(ids != NULL || total_len == 0);
    return (token_history){
        .ids = ids,
        .prompt_len = prompt_len < total_len ? prompt_len : total_len,
        .total_len = total_len,
    };
}

/* ---- drawing ---- */

/* Uniform in [0, 1), a multiple of 2^-53. */
static double
noise_at(uint64_t seed, uint32_t choice, uint32_t position)
{
    const uint64_t word = hash_combine(hash_combine(hash_mix(seed), choice), position);
    return (double)(word >> 11) * 0x1p-53;
}

uint32_t
sampler_sample(sampler *s, const sampling_params *params, const float *logits,
               const uint32_t *history, uint32_t prompt_len, uint32_t total_len, uint32_t position)
{
    const token_history h = history_of(history, prompt_len, total_len);
    const outcome left = run_steps(s, params, logits, &h);
    if (left.certain) return left.token;

    /* The same additions in the same order gave the total, so the sum passes the target. */
    const double target = noise_at(params->seed, params->choice, position) * left.total;
    double sum = 0.0;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        sum += s->weights[i];
        if (sum > target) return i;
    }
    return left.token;
}

const double *
sampler_probs(sampler *s, const sampling_params *params, const float *logits,
              const uint32_t *history, uint32_t prompt_len, uint32_t total_len)
{
    const token_history h = history_of(history, prompt_len, total_len);
    const outcome left = run_steps(s, params, logits, &h);
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        if (left.certain)
            s->weights[i] = i == left.token ? 1.0 : 0.0;
        else
            s->weights[i] /= left.total;
    }
    return s->weights;
}

/* ---- reporting ---- */

static float
logit_or_nothing(const float *logits, uint32_t id)
{
    return isnan(logits[id]) ? -INFINITY : logits[id];
}

/* The log of the sum of all e^logit. */
static double
log_sum_exp(const float *logits, uint32_t count)
{
    const double best = logit_or_nothing(logits, best_logit(logits, count));
    if (isinf(best)) return best;
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp_nonpositive(logit_or_nothing(logits, i) - best);
    return best + log(sum);
}

static float
logprob_of(double logit, double log_sum)
{
    if (isinf(logit)) return logit > 0.0 ? 0.0f : -INFINITY; /* infinity holds all there is */
    return (float)(logit - log_sum);
}

/* Put an id into the list of the top_n best, which is in falling order; top_logprobs holds logits
 * meanwhile.  Ids come in rising order, so equals queue up behind each other. */
static void
rank_among_top(sampled_logprobs *out, uint32_t top_n, uint32_t id, float logit)
{
    if (out->top_count == top_n) {
        if (top_n == 0 || !(logit > out->top_logprobs[top_n - 1])) return;
    } else {
        out->top_count++;
    }
    uint32_t at = out->top_count - 1;
    for (; at > 0 && logit > out->top_logprobs[at - 1]; at--) {
        out->top_ids[at] = out->top_ids[at - 1];
        out->top_logprobs[at] = out->top_logprobs[at - 1];
    }
    out->top_ids[at] = id;
    out->top_logprobs[at] = logit;
}

void
sampler_logprobs(const sampler *s, const float *logits, uint32_t token, uint32_t top_n,
                 sampled_logprobs *out)
{
    memset(out, 0, sizeof *out);
    if (top_n > SAMPLER_TOP_MAX) top_n = SAMPLER_TOP_MAX;
    const double log_sum = log_sum_exp(logits, s->vocab_size);
    const float own = token < s->vocab_size ? logit_or_nothing(logits, token) : -INFINITY;
    for (uint32_t i = 0; i < s->vocab_size; i++) {
        const float logit = logit_or_nothing(logits, i);
        if (logit >= own) out->rank++;
        rank_among_top(out, top_n, i, logit);
    }
    out->logprob = logprob_of(own, log_sum);
    for (uint32_t i = 0; i < out->top_count; i++)
        out->top_logprobs[i] = logprob_of(out->top_logprobs[i], log_sum);
}
