#include "router/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/hash.h"
#include "router/sampler_math.h"

#define LOGIT_MAX 1e30 /* stands for +inf, so that differences stay numbers */

struct sampler {
    uint32_t vocab_size;
    double *scores;   /* [V] processed logits; -inf = removed */
    double *weights;  /* [V] exp(score - max), 0 = removed */
    uint32_t *heap;   /* [V] ids, best first */
    uint32_t *kept;   /* [V] ids taken off the heap, in falling order */
    uint32_t *counts; /* [V] times in the output; all 0 between calls */
    uint8_t *marks;   /* [V] in the history, or allowed; all 0 between calls */
};

/* Where a sequence stands. */
typedef struct past {
    const uint32_t *ids;
    uint32_t prompt_len;
    uint32_t total_len;
} past;

sampling_params
sampling_params_default(void)
{
    return (sampling_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

/* ---- checking a request's parameters ---- */

static bool
within(double x, double min, double max)
{
    return x >= min && x <= max; /* false for NaN */
}

static moe_err
check_ids(const uint32_t *ids, uint64_t count, uint64_t count_max, uint32_t vocab_size,
          const char *name, errbuf *eb)
{
    if (count > count_max)
        return err_set(eb, MOE_EINVAL, "%s may have %llu entries", name,
                       (unsigned long long)count_max);
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] >= vocab_size)
            return err_set(eb, MOE_EINVAL, "%s: token id %u is not below %u", name,
                           (unsigned)ids[i], (unsigned)vocab_size);
    }
    return MOE_OK;
}

static moe_err
check_lists(const sampling_params *p, uint32_t vocab_size, errbuf *eb)
{
    uint64_t bad_id_count = 0;
    if (p->bad_word_count > SAMPLER_BAD_WORD_MAX)
        return err_set(eb, MOE_EINVAL, "bad_words may have %d entries", SAMPLER_BAD_WORD_MAX);
    for (uint32_t i = 0; i < p->bad_word_count; i++) {
        if (p->bad_word_lens[i] == 0) return err_set(eb, MOE_EINVAL, "bad_words: one is empty");
        bad_id_count += p->bad_word_lens[i];
    }
    for (uint32_t i = 0; i < p->bias_count && i < SAMPLER_BIAS_MAX; i++) {
        if (!within(p->bias_values[i], -1e6, 1e6))
            return err_set(eb, MOE_EINVAL, "logit_bias: a value is not a finite number");
    }
    moe_err err =
        check_ids(p->bias_ids, p->bias_count, SAMPLER_BIAS_MAX, vocab_size, "logit_bias", eb);
    if (err == MOE_OK)
        err = check_ids(p->stop_token_ids, p->stop_count, SAMPLER_STOP_MAX, vocab_size,
                        "stop_token_ids", eb);
    if (err == MOE_OK)
        err = check_ids(p->allowed_token_ids, p->allowed_count, vocab_size, vocab_size,
                        "allowed_token_ids", eb);
    if (err == MOE_OK)
        err = check_ids(p->bad_word_ids, bad_id_count, UINT32_MAX, vocab_size, "bad_words", eb);
    return err;
}

moe_err
sampling_params_check(const sampling_params *p, uint32_t vocab_size, errbuf *eb)
{
    if (!within(p->temperature, 0, 100))
        return err_set(eb, MOE_EINVAL, "temperature must be 0 to 100");
    if (!within(p->top_p, 0, 1)) return err_set(eb, MOE_EINVAL, "top_p must be 0 to 1");
    if (!within(p->min_p, 0, 1)) return err_set(eb, MOE_EINVAL, "min_p must be 0 to 1");
    if (!within(p->presence_penalty, -2, 2))
        return err_set(eb, MOE_EINVAL, "presence_penalty must be -2 to 2");
    if (!within(p->frequency_penalty, -2, 2))
        return err_set(eb, MOE_EINVAL, "frequency_penalty must be -2 to 2");
    if (!within(p->repetition_penalty, 1e-3, 1e3))
        return err_set(eb, MOE_EINVAL, "repetition_penalty must be 0.001 to 1000");
    return check_lists(p, vocab_size, eb);
}

/* ---- create and free ---- */

moe_err
sampler_create(sampler **out, uint32_t vocab_size)
{
    *out = NULL;
    if (vocab_size == 0 || vocab_size > SAMPLER_VOCAB_MAX) return MOE_ERANGE;
    sampler *s = calloc(1, sizeof *s);
    if (s == NULL) return MOE_ENOMEM;
    s->vocab_size = vocab_size;
    s->scores = calloc(vocab_size, sizeof *s->scores);
    s->weights = calloc(vocab_size, sizeof *s->weights);
    s->heap = calloc(vocab_size, sizeof *s->heap);
    s->kept = calloc(vocab_size, sizeof *s->kept);
    s->counts = calloc(vocab_size, sizeof *s->counts);
    s->marks = calloc(vocab_size, sizeof *s->marks);
    if (s->scores == NULL || s->weights == NULL || s->heap == NULL || s->kept == NULL ||
        s->counts == NULL || s->marks == NULL) {
        sampler_free(s);
        return MOE_ENOMEM;
    }
    *out = s;
    return MOE_OK;
}

void
sampler_free(sampler *s)
{
    if (s == NULL) return;
    free(s->scores);
    free(s->weights);
    free(s->heap);
    free(s->kept);
    free(s->counts);
    free(s->marks);
    free(s);
}

/* ---- steps 1 to 7: the scores ---- */

static double
clean(float logit)
{
    if (isnan(logit)) return -INFINITY;
    return logit > LOGIT_MAX ? LOGIT_MAX : logit;
}

static void
forbid(sampler *s, uint32_t id)
{
    if (id < s->vocab_size) s->scores[id] = -INFINITY;
}

static void
keep_allowed(sampler *s, const sampling_params *p)
{
    for (uint32_t i = 0; i < p->allowed_count; i++) {
        if (p->allowed_token_ids[i] < s->vocab_size) s->marks[p->allowed_token_ids[i]] = 1;
    }
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        if (!s->marks[id]) s->scores[id] = -INFINITY;
        s->marks[id] = 0;
    }
}

static void
forbid_bad_words(sampler *s, const sampling_params *p, const past *h)
{
    const uint32_t *word = p->bad_word_ids;
    const uint32_t output_len = h->total_len - h->prompt_len;
    for (uint32_t w = 0; w < p->bad_word_count; word += p->bad_word_lens[w], w++) {
        const uint32_t prefix_len = p->bad_word_lens[w] - 1;
        if (prefix_len > output_len) continue;
        if (prefix_len == 0 ||
            memcmp(h->ids + h->total_len - prefix_len, word, prefix_len * sizeof *word) == 0)
            forbid(s, word[prefix_len]);
    }
}

static void
add_bias(sampler *s, const sampling_params *p)
{
    for (uint32_t i = 0; i < p->bias_count; i++) {
        if (p->bias_ids[i] < s->vocab_size) s->scores[p->bias_ids[i]] += p->bias_values[i];
    }
}

/* Each id of the history once: the first time it is met its counts are complete, and its mark is
 * taken away. */
static void
apply_penalties(sampler *s, const sampling_params *p, const past *h)
{
    for (uint32_t i = 0; i < h->total_len; i++) {
        if (h->ids[i] >= s->vocab_size) continue;
        s->marks[h->ids[i]] = 1;
        if (i >= h->prompt_len) s->counts[h->ids[i]]++;
    }
    for (uint32_t i = 0; i < h->total_len; i++) {
        const uint32_t id = h->ids[i];
        if (id >= s->vocab_size || !s->marks[id]) continue;
        double score = s->scores[id];
        if (score > 0)
            score /= p->repetition_penalty;
        else
            score *= p->repetition_penalty;
        score -= p->frequency_penalty * s->counts[id];
        if (s->counts[id] != 0) score -= p->presence_penalty;
        s->scores[id] = score;
        s->marks[id] = 0;
        s->counts[id] = 0;
    }
}

static bool
has_penalties(const sampling_params *p)
{
    return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

/* Do steps 1 to 7 change anything? */
static bool
changes_scores(const sampling_params *p, const past *h)
{
    return p->allowed_count != 0 || p->bad_word_count != 0 || p->bias_count != 0 ||
           has_penalties(p) || (p->stop_count != 0 && h->total_len - h->prompt_len < p->min_tokens);
}

static void
score(sampler *s, const sampling_params *p, const float *logits, const past *h)
{
    for (uint32_t id = 0; id < s->vocab_size; id++)
        s->scores[id] = clean(logits[id]);
    if (!changes_scores(p, h)) return;

    if (p->allowed_count != 0) keep_allowed(s, p);
    forbid_bad_words(s, p, h);
    if (h->total_len - h->prompt_len < p->min_tokens) {
        for (uint32_t i = 0; i < p->stop_count; i++)
            forbid(s, p->stop_token_ids[i]);
    }
    add_bias(s, p);
    if (has_penalties(p)) apply_penalties(s, p, h);
}

/* ---- steps 8 to 11: the weights ---- */

/* The largest score's id, the lowest one of equals; V when all are removed. */
static uint32_t
best_of(const sampler *s)
{
    uint32_t best = s->vocab_size;
    double largest = -INFINITY;
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        if (s->scores[id] > largest) {
            largest = s->scores[id];
            best = id;
        }
    }
    return best;
}

static bool
better(const sampler *s, uint32_t a, uint32_t b)
{
    return s->scores[a] > s->scores[b] || (s->scores[a] == s->scores[b] && a < b);
}

static void
sift_down(sampler *s, uint32_t at, uint32_t count)
{
    const uint32_t id = s->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && better(s, s->heap[child + 1], s->heap[child])) child++;
        if (!better(s, s->heap[child], id)) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = id;
}

/* Put all ids that are left on the heap; how many. */
static uint32_t
heap_build(sampler *s)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        if (s->scores[id] > -INFINITY) s->heap[count++] = id;
    }
    for (uint32_t at = count / 2; at-- > 0;)
        sift_down(s, at, count);
    return count;
}

static uint32_t
heap_pop(sampler *s, uint32_t *count)
{
    const uint32_t id = s->heap[0];
    s->heap[0] = s->heap[--*count];
    if (*count != 0) sift_down(s, 0, *count);
    return id;
}

/* Does the heap's best belong to the top k, of which kept_count were taken? */
static bool
in_top_k(const sampler *s, uint32_t top_k, uint32_t kept_count)
{
    return kept_count < top_k || s->scores[s->heap[0]] == s->scores[s->kept[top_k - 1]];
}

/* Set the weights of what top_k and top_p remove to 0.  Only as much is sorted as is kept, or as
 * top_k keeps before top_p looks at it. */
static void
truncate(sampler *s, uint32_t top_k, double top_p)
{
    uint32_t left = heap_build(s), kept_count = 0;
    double total = 0, before = 0;
    if (top_k != 0 && top_k < left) {
        while (left != 0 && in_top_k(s, top_k, kept_count))
            s->kept[kept_count++] = heap_pop(s, &left);
        for (uint32_t i = 0; i < kept_count; i++)
            total += s->weights[s->kept[i]];
        for (uint32_t i = 0; i < kept_count; i++) {
            const double weight = s->weights[s->kept[i]];
            if (i != 0 && top_p < 1 && before >= top_p * total) s->weights[s->kept[i]] = 0;
            before += weight;
        }
    } else if (top_p < 1) {
        for (uint32_t id = 0; id < s->vocab_size; id++)
            total += s->weights[id];
        do
            before += s->weights[heap_pop(s, &left)];
        while (left != 0 && before < top_p * total);
    } else {
        return;
    }
    for (uint32_t i = 0; i < left; i++)
        s->weights[s->heap[i]] = 0;
}

/* Steps 8 to 11 for a temperature above 0, with `best` the largest score's id.  Returns the sum of
 * the weights. */
static double
weigh(sampler *s, const sampling_params *p, uint32_t best)
{
    const double largest = s->scores[best];
    for (uint32_t id = 0; id < s->vocab_size; id++)
        s->weights[id] = exp_of_negative((s->scores[id] - largest) / p->temperature);
    if (p->min_p > 0) {
        for (uint32_t id = 0; id < s->vocab_size; id++) {
            if (s->weights[id] >= p->min_p) continue;
            s->scores[id] = -INFINITY;
            s->weights[id] = 0;
        }
    }
    if (p->top_k != 0 || p->top_p < 1) truncate(s, p->top_k, p->top_p);

    double total = 0;
    for (uint32_t id = 0; id < s->vocab_size; id++)
        total += s->weights[id];
    return total;
}

/* ---- the draw ---- */

/* In [0, 1), a multiple of 2^-53. */
static double
uniform(uint64_t seed, uint32_t choice, uint32_t position)
{
    const uint64_t key = hash_combine(hash_combine(hash_mix(seed), choice), position);
    return (double)(key >> 11) * 0x1p-53;
}

static uint32_t
draw(const sampler *s, double total, double u)
{
    const double target = u * total;
    double sum = 0;
    uint32_t last = 0;
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        if (s->weights[id] == 0) continue;
        sum += s->weights[id];
        last = id;
        if (sum > target) break;
    }
    return last; /* the last of all if rounding left sum <= target */
}

/* Greedy, and nothing to change: no scratch is touched. */
static uint32_t
best_logit(const float *logits, uint32_t vocab_size)
{
    uint32_t best = vocab_size;
    float largest = -INFINITY;
    for (uint32_t id = 0; id < vocab_size; id++) {
        if (logits[id] > largest) {
            largest = logits[id];
            best = id;
        }
    }
    return best;
}

moe_err
sampler_sample(sampler *s, const sampling_params *p, const float *logits, const uint32_t *history,
               uint32_t prompt_len, uint32_t total_len, uint32_t position, uint32_t *token)
{
    assert(prompt_len <= total_len);
    const past h = {history, prompt_len, total_len};
    *token = 0;
    uint32_t best;
    if (p->temperature == 0 && !changes_scores(p, &h)) {
        best = best_logit(logits, s->vocab_size);
    } else {
        score(s, p, logits, &h);
        best = best_of(s);
    }
    if (best == s->vocab_size) return MOE_EINVAL;
    *token = best;
    if (p->temperature > 0)
        *token = draw(s, weigh(s, p, best), uniform(p->seed, p->choice, position));
    return MOE_OK;
}

moe_err
sampler_probs(sampler *s, const sampling_params *p, const float *logits, const uint32_t *history,
              uint32_t prompt_len, uint32_t total_len, double *probs)
{
    assert(prompt_len <= total_len);
    const past h = {history, prompt_len, total_len};
    for (uint32_t id = 0; id < s->vocab_size; id++)
        probs[id] = 0;
    score(s, p, logits, &h);
    const uint32_t best = best_of(s);
    if (best == s->vocab_size) return MOE_EINVAL;
    probs[best] = 1;
    if (p->temperature == 0) return MOE_OK;

    const double total = weigh(s, p, best);
    for (uint32_t id = 0; id < s->vocab_size; id++)
        probs[id] = s->weights[id] / total;
    return MOE_OK;
}

/* ---- log-probabilities ---- */

/* Put id in its place among the top_n best so far; ids come in rising order. */
static void
top_insert(sampler_logprobs *out, uint32_t top_n, uint32_t id, double score)
{
    if (out->top_count == top_n && score <= out->top_logprobs[top_n - 1]) return;
    uint32_t at = out->top_count < top_n ? out->top_count++ : top_n - 1;
    for (; at > 0 && out->top_logprobs[at - 1] < score; at--) {
        out->top_logprobs[at] = out->top_logprobs[at - 1];
        out->top_ids[at] = out->top_ids[at - 1];
    }
    out->top_logprobs[at] = score;
    out->top_ids[at] = id;
}

moe_err
sampler_logprobs_get(const sampler *s, const float *logits, uint32_t token, uint32_t top_n,
                     sampler_logprobs *out)
{
    *out = (sampler_logprobs){0};
    if (top_n > SAMPLER_TOP_LOGPROBS_MAX) return MOE_ERANGE;
    const uint32_t best = best_logit(logits, s->vocab_size);
    if (token >= s->vocab_size || best == s->vocab_size) return MOE_EINVAL;

    const double largest = clean(logits[best]), mine = clean(logits[token]);
    double sum = 0;
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        const double score_of_id = clean(logits[id]);
        sum += exp_of_negative(score_of_id - largest);
        if (score_of_id >= mine) out->rank++;
        if (top_n != 0) top_insert(out, top_n, id, score_of_id);
    }
    const double log_sum = log_of_large(sum);
    out->logprob = mine - largest - log_sum;
    for (uint32_t i = 0; i < out->top_count; i++)
        out->top_logprobs[i] = out->top_logprobs[i] - largest - log_sum;
    return MOE_OK;
}
