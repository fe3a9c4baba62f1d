/* sampler: worked by hand, at its limits, on nonsense, and by the frequencies it draws. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/sampler.h"

#define BIG_VOCAB 1000u

static int malloc_calls;
static bool malloc_fails;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *
__wrap_malloc(size_t size)
{
    malloc_calls++;
    return malloc_fails ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    malloc_calls++;
    return malloc_fails ? NULL : __real_calloc(count, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    malloc_calls++;
    return malloc_fails ? NULL : __real_realloc(old, size);
}

TestSuite(sampler, .timeout = 60);

static sampler *
new_sampler(uint32_t vocab_size)
{
    sampler *s = NULL;
    cr_assert_eq(sampler_create(&s, vocab_size), MOE_OK);
    return s;
}

/* Logits in [-4, 4), the same for the same seed. */
static void
fill_logits(float *logits, uint32_t count, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++)
        logits[i] = (float)(hash_combine(seed, i) >> 40) * 0x1p-21f - 4.0f;
}

static void
expect_probs(sampler *s, const sampling_params *p, const float *logits, const double *want,
             uint32_t count)
{
    const double *probs = sampler_probs(s, p, logits, NULL, 0, 0);
    for (uint32_t i = 0; i < count; i++)
        cr_assert(fabs(probs[i] - want[i]) < 1e-12, "token %u: %g, not %g", i, probs[i], want[i]);
}

Test(sampler, refuses_sizes_outside_the_limits_and_reports_lack_of_memory)
{
    sampler *s = (sampler *)&s;
    cr_assert_eq(sampler_create(&s, 0), MOE_ERANGE);
    cr_assert_null(s);
    s = (sampler *)&s;
    cr_assert_eq(sampler_create(&s, SAMPLER_VOCAB_MAX + 1), MOE_ERANGE);
    cr_assert_null(s);
    malloc_fails = true;
    s = (sampler *)&s;
    const moe_err err = sampler_create(&s, 16);
    malloc_fails = false;
    cr_assert_eq(err, MOE_ENOMEM);
    cr_assert_null(s);
    sampler_free(NULL);
}

Test(sampler, matches_probabilities_worked_by_hand)
{
    sampler *s = new_sampler(4);
    const float logits[4] = {0.0f, logf(2.0f), logf(4.0f), 0.0f}; /* 1 : 2 : 4 : 1 */
    const double l2 = (double)logits[1], l4 = (double)logits[2];
    const double all = 2.0 + exp(l2) + exp(l4);
    sampling_params p = sampler_default_params();
    expect_probs(s, &p, logits, (double[]){1 / all, exp(l2) / all, exp(l4) / all, 1 / all}, 4);

    p.top_k = 2;
    const double two = exp(l2) + exp(l4);
    expect_probs(s, &p, logits, (double[]){0, exp(l2) / two, exp(l4) / two, 0}, 4);

    p.top_k = 3; /* the third and the fourth are equal: both stay */
    expect_probs(s, &p, logits, (double[]){1 / all, exp(l2) / all, exp(l4) / all, 1 / all}, 4);

    p = sampler_default_params();
    p.top_p = 0.8; /* 4/8 + 2/8 falls short: one of the equal ones is needed, the lower id */
    const double three = 1.0 + two;
    expect_probs(s, &p, logits, (double[]){1 / three, exp(l2) / three, exp(l4) / three, 0}, 4);

    p.top_p = 0.0;
    expect_probs(s, &p, logits, (double[]){0, 0, 1, 0}, 4);
    p = sampler_default_params();
    p.min_p = 2.0;
    expect_probs(s, &p, logits, (double[]){0, 0, 1, 0}, 4);
    sampler_free(s);
}

Test(sampler, applies_penalties_to_what_was_seen)
{
    sampler *s = new_sampler(4);
    const float logits[4] = {1.0f, 1.0f, 1.0f, -1.0f};
    const uint32_t history[] = {3, 0, 1, 1}; /* prompt 3 0, output 1 1 */
    sampling_params p = sampler_default_params();
    p.repetition_penalty = 2.0;
    p.frequency_penalty = 0.25;
    p.presence_penalty = 0.5;
    const double scores[4] = {0.5, 0.5 - 2 * 0.25 - 0.5, 1.0, -2.0};
    const double *probs = sampler_probs(s, &p, logits, history, 2, 4);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert(fabs(log(probs[i] / probs[2]) - (scores[i] - 1.0)) < 1e-12, "token %u", i);

    /* Nothing of one call's history is left in the next. */
    probs = sampler_probs(s, &p, logits, NULL, 0, 0);
    cr_assert(fabs(log(probs[3] / probs[0]) + 2.0) < 1e-12);
    cr_assert_eq(probs[0], probs[1]);
    sampler_free(s);
}

Test(sampler, greedy_takes_the_lowest_of_equal_ids_with_and_without_penalties)
{
    sampler *s = new_sampler(5);
    const float logits[5] = {-1.0f, 3.0f, 3.0f, 2.0f, 3.0f};
    const uint32_t history[] = {1};
    sampling_params p = sampler_default_params();
    p.temperature = 0.0;
    cr_assert_eq(sampler_sample(s, &p, logits, history, 0, 1, 9), 1u);
    p.presence_penalty = 0.5;
    cr_assert_eq(sampler_sample(s, &p, logits, history, 0, 1, 9), 2u);
    p.temperature = NAN;
    cr_assert_eq(sampler_sample(s, &p, logits, history, 0, 1, 9), 2u);
    sampler_free(s);
}

Test(sampler, forbids_bad_words_only_where_the_output_leads_up_to_them)
{
    sampler *s = new_sampler(8);
    const float logits[8] = {0};
    const uint32_t history[] = {5, 6, 1, 2};
    const uint32_t words[] = {7, 1, 2, 3, 2, 1, 4, 6, 1, 2, 0};
    const uint32_t lens[] = {1, 0, 3, 3, 4}; /* 7; nothing; 1 2 3; 2 1 4; 6 1 2 0 */
    sampling_params p = sampler_default_params();
    p.bad_word_count = 5;
    p.bad_word_ids = words;
    p.bad_word_lens = lens;
    for (uint32_t prompt_len = 0; prompt_len <= 4; prompt_len++) {
        const double *probs = sampler_probs(s, &p, logits, history, prompt_len, 4);
        cr_assert_eq(probs[7], 0.0);
        cr_assert_eq(probs[3] == 0.0, prompt_len <= 2);
        cr_assert_eq(probs[0] == 0.0, prompt_len <= 1);
        cr_assert(probs[4] > 0.0 && probs[1] > 0.0 && probs[2] > 0.0);
    }
    sampler_free(s);
}

Test(sampler, forbids_stop_tokens_until_the_output_is_long_enough)
{
    sampler *s = new_sampler(3);
    const float logits[3] = {0};
    const uint32_t history[] = {0, 0, 0, 0}, stop[] = {2};
    sampling_params p = sampler_default_params();
    p.min_tokens = 2;
    p.stop_token_count = 1;
    p.stop_token_ids = stop;
    for (uint32_t output_len = 0; output_len <= 3; output_len++) {
        const double *probs = sampler_probs(s, &p, logits, history, 1, 1 + output_len);
        cr_assert_eq(probs[2] == 0.0, output_len < 2, "output of %u", output_len);
    }
    sampler_free(s);
}

Test(sampler, gives_up_bans_when_nothing_is_left)
{
    sampler *s = new_sampler(4);
    const float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    const uint32_t every[] = {0, 1, 2, 3}, some[] = {1, 2, 77}, none[] = {77};
    const uint32_t lens[] = {1, 1, 1, 1};
    sampling_params p = sampler_default_params();
    p.bad_word_count = 4;
    p.bad_word_ids = every;
    p.bad_word_lens = lens;
    cr_assert_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 0), 3u);
    p.allowed_count = 3;
    p.allowed_token_ids = some;
    cr_assert_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 0), 2u);
    p.allowed_count = 1;
    p.allowed_token_ids = none;
    cr_assert_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 0), 3u);
    expect_probs(s, &p, logits, (double[]){0, 0, 0, 1}, 4);
    sampler_free(s);
}

Test(sampler, ignores_ids_outside_the_vocabulary)
{
    sampler *s = new_sampler(4), *clean = new_sampler(4);
    const float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    const uint32_t ids[] = {4, UINT32_MAX}, lens[] = {1, 1};
    const double values[] = {100.0, -100.0};
    sampling_params p = sampler_default_params();
    const double *want = sampler_probs(clean, &p, logits, NULL, 0, 0);
    p.repetition_penalty = 2.0;
    p.frequency_penalty = 1.0;
    p.min_tokens = 100;
    p.stop_token_count = p.bias_count = p.bad_word_count = 2;
    p.stop_token_ids = p.bias_ids = p.bad_word_ids = ids;
    p.bias_values = values;
    p.bad_word_lens = lens;
    const double *got = sampler_probs(s, &p, logits, ids, 1, 2);
    cr_assert_arr_eq(got, want, 4 * sizeof want[0]);
    sampler_free(s);
    sampler_free(clean);
}

Test(sampler, returns_a_token_whatever_the_numbers_are)
{
    static const float odd[] = {0.0f, -0.0f, 1e30f, -3e38f, INFINITY, -INFINITY, NAN, 1e-40f};
    static const double values[] = {0.0,      1.0,       -1.0, 1e-300, 1e300,
                                    INFINITY, -INFINITY, NAN,  0.5,    0.999999};
    const uint32_t value_count = sizeof values / sizeof values[0];
    const uint32_t history[] = {0, 1, 2, 3, 2, 1}, bias_ids[] = {1, 2};
    sampler *s = new_sampler(6);
    for (uint32_t round = 0; round < 20000; round++) {
        float logits[6];
        double pick[8];
        for (uint32_t i = 0; i < 6; i++)
            logits[i] = odd[hash_combine(round, i) % (sizeof odd / sizeof odd[0])];
        for (uint32_t i = 0; i < 8; i++)
            pick[i] = values[hash_combine(round, 100 + i) % value_count];
        const sampling_params p = {.temperature = pick[0],
                                   .top_p = pick[1],
                                   .min_p = pick[2],
                                   .presence_penalty = pick[3],
                                   .frequency_penalty = pick[4],
                                   .repetition_penalty = pick[5],
                                   .top_k = (int32_t)(round % 9) - 1,
                                   .bias_count = 2,
                                   .bias_ids = bias_ids,
                                   .bias_values = pick + 6,
                                   .seed = round};
        const uint32_t token = sampler_sample(s, &p, logits, history, 2, 6, 6);
        cr_assert_lt(token, 6u);
        const double *probs = sampler_probs(s, &p, logits, history, 2, 6);
        double sum = 0.0;
        for (uint32_t i = 0; i < 6; i++)
            sum += probs[i];
        cr_assert(fabs(sum - 1.0) < 1e-9, "round %u", round);
        cr_assert(probs[token] > 0.0, "round %u", round);

        sampled_logprobs out;
        sampler_logprobs(s, logits, token, 20, &out);
        cr_assert(out.logprob <= 0.0f && out.rank >= 1 && out.rank <= 6);
        cr_assert_eq(out.top_count, 6u);
        for (uint32_t i = 1; i < 6; i++)
            cr_assert(out.top_logprobs[i - 1] >= out.top_logprobs[i]);
    }
    sampler_free(s);
}

Test(sampler, draws_the_same_token_for_the_same_key_and_others_for_others)
{
    float logits[BIG_VOCAB];
    fill_logits(logits, BIG_VOCAB, 1);
    sampler *s = new_sampler(BIG_VOCAB), *other = new_sampler(BIG_VOCAB);
    const uint32_t history[] = {1, 2, 3};
    uint32_t seed_differs = 0, choice_differs = 0, position_differs = 0;
    for (uint32_t i = 0; i < 200; i++) {
        sampling_params p = sampler_default_params();
        p.seed = i;
        const uint32_t token = sampler_sample(s, &p, logits, NULL, 0, 0, i);
        /* Another sampler, another history: without penalties it makes no difference. */
        cr_assert_eq(sampler_sample(other, &p, logits, history, 1, 3, i), token);
        position_differs += sampler_sample(other, &p, logits, NULL, 0, 0, i + 1) != token;
        p.choice = 1;
        choice_differs += sampler_sample(other, &p, logits, NULL, 0, 0, i) != token;
        p.choice = 0;
        p.seed = i + (1ull << 32);
        seed_differs += sampler_sample(other, &p, logits, NULL, 0, 0, i) != token;
    }
    cr_assert(seed_differs > 150 && choice_differs > 150 && position_differs > 150);
    sampler_free(s);
    sampler_free(other);
}

/* The golden vectors say nothing of the noise, so these few fix it: a replay in a later build must
 * repeat an earlier one's tokens.  All ids are equally likely: the token is 1000 u, rounded down.
 */
Test(sampler, keeps_the_noise_it_has_always_had)
{
    float logits[BIG_VOCAB] = {0};
    sampler *s = new_sampler(BIG_VOCAB);
    static const uint32_t want[4] = {531, 617, 16, 394};
    for (uint32_t i = 0; i < 4; i++) {
        sampling_params p = sampler_default_params();
        p.seed = 42;
        p.choice = i / 2;
        cr_assert_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 7 + i), want[i], "draw %u: %u", i,
                     sampler_sample(s, &p, logits, NULL, 0, 0, 7 + i));
    }
    sampler_free(s);
}

/* Pearson's statistic over `draws` keys that differ in the position, or in the seed. */
static double
chi_squared(sampler *s, sampling_params p, const float *logits, uint32_t count, uint32_t draws,
            bool vary_seed)
{
    uint32_t seen[16] = {0};
    for (uint32_t i = 0; i < draws; i++) {
        if (vary_seed) p.seed = i;
        seen[sampler_sample(s, &p, logits, NULL, 0, 0, vary_seed ? 3 : i)]++;
    }
    const double *probs = sampler_probs(s, &p, logits, NULL, 0, 0);
    double chi = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        const double expected = probs[i] * draws;
        if (expected == 0.0)
            cr_assert_eq(seen[i], 0u, "token %u", i);
        else
            chi += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    return chi;
}

Test(sampler, draws_each_token_as_often_as_its_probability_says)
{
    float logits[16];
    fill_logits(logits, 16, 5);
    sampler *s = new_sampler(16);
    sampling_params settings[3];
    for (uint32_t i = 0; i < 3; i++) {
        settings[i] = sampler_default_params();
        settings[i].temperature = 2.0;
    }
    settings[1].top_k = 7;
    settings[2].top_p = 0.8;
    for (uint32_t i = 0; i < 3; i++) {
        for (int vary_seed = 0; vary_seed < 2; vary_seed++) {
            /* 15 degrees of freedom at most: above 44.3 once in 10,000; the keys are fixed. */
            const double chi = chi_squared(s, settings[i], logits, 16, 40000, vary_seed);
            cr_assert_lt(chi, 44.3, "setting %u, vary_seed %d: %g", i, vary_seed, chi);
        }
    }
    sampler_free(s);
}

static double
sum_before(const double *probs, uint32_t count, uint32_t id)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        if (probs[i] > probs[id] || (probs[i] == probs[id] && i < id)) sum += probs[i];
    }
    return sum;
}

/* The definition, computed the long way, over values that repeat a lot. */
Test(sampler, truncates_as_the_definition_says_on_random_logits)
{
    static const double top_ps[] = {1e-9, 0.3, 0.9, 0.999, 1.0 - 1e-9};
    float logits[97];
    sampler *s = new_sampler(97), *plain = new_sampler(97);
    for (uint32_t round = 0; round < 200; round++) {
        fill_logits(logits, 97, round);
        for (uint32_t i = 0; round % 2 == 1 && i < 97; i++)
            logits[i] = rintf(logits[i]);
        sampling_params p = sampler_default_params();
        const double *all = sampler_probs(plain, &p, logits, NULL, 0, 0);
        p.top_p = top_ps[round % 5];
        const double *kept = sampler_probs(s, &p, logits, NULL, 0, 0);
        for (uint32_t i = 0; i < 97; i++) {
            const double before = sum_before(all, 97, i);
            if (fabs(before - p.top_p) < 1e-12) continue;
            cr_assert_eq(kept[i] > 0.0, before < p.top_p, "round %u, token %u", round, i);
        }

        p.top_p = 1.0;
        p.top_k = (int32_t)(round % 97) + 1;
        kept = sampler_probs(s, &p, logits, NULL, 0, 0);
        for (uint32_t i = 0; i < 97; i++) {
            int32_t better = 0;
            for (uint32_t j = 0; j < 97; j++)
                better += logits[j] > logits[i];
            cr_assert_eq(kept[i] > 0.0, better < p.top_k, "round %u, token %u", round, i);
        }
    }
    sampler_free(s);
    sampler_free(plain);
}

Test(sampler, exponential_agrees_with_the_c_library)
{
    sampler *s = new_sampler(2);
    sampling_params p = sampler_default_params();
    for (uint32_t i = 0; i < 20000; i++) {
        const float logits[2] = {0.0f, -(float)i * 0.0349f}; /* down to -698 */
        const double *probs = sampler_probs(s, &p, logits, NULL, 0, 0);
        const double want = exp((double)logits[1]);
        cr_assert(fabs(probs[1] / probs[0] / want - 1.0) < 1e-15, "e^%g", (double)logits[1]);
    }
    sampler_free(s);
}

Test(sampler, reports_ranks_and_ties_by_lower_id)
{
    sampler *s = new_sampler(6);
    const float logits[6] = {1.0f, 2.0f, 2.0f, 0.0f, 2.0f, -INFINITY};
    sampled_logprobs out;
    sampler_logprobs(s, logits, 2, 5, &out);
    cr_assert_eq(out.rank, 3u); /* the equals count */
    static const uint32_t order[5] = {1, 2, 4, 0, 3};
    cr_assert_eq(out.top_count, 5u);
    cr_assert_arr_eq(out.top_ids, order, sizeof order);
    const double log_sum = log(3 * exp(2.0) + exp(1.0) + 1.0);
    cr_assert(fabs((double)out.logprob - (2.0 - log_sum)) < 1e-6);
    cr_assert(fabs((double)out.top_logprobs[4] + log_sum) < 1e-6);

    sampler_logprobs(s, logits, 5, 0, &out);
    cr_assert(out.top_count == 0 && out.rank == 6 && isinf(out.logprob));
    sampler_logprobs(s, logits, 600, UINT32_MAX, &out);
    cr_assert(out.top_count == 6 && out.top_ids[5] == 5 && isinf(out.logprob));
    sampler_free(s);
}

Test(sampler, allocates_nothing_after_create)
{
    float logits[BIG_VOCAB];
    fill_logits(logits, BIG_VOCAB, 2);
    sampler *s = new_sampler(BIG_VOCAB);
    const uint32_t history[] = {1, 2, 3};
    sampling_params p = sampler_default_params();
    p.top_k = 50;
    p.top_p = 0.9;
    p.frequency_penalty = 0.5;
    sampled_logprobs out;
    const int before = malloc_calls;
    const uint32_t token = sampler_sample(s, &p, logits, history, 1, 3, 3);
    sampler_logprobs(s, logits, token, 20, &out);
    const int after = malloc_calls;
    cr_assert_eq(after, before);
    cr_assert_gt(before, 0);
    sampler_free(s);
}
