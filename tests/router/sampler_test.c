/* sampler: the golden vectors of tests/golden/sampling (their README says which order of steps and
 * which tolerances), then what the golden vectors don't show: the draw, errors, extremes. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/hash.h"
#include "common/json.h"
#include "router/sampler.h"
#include "router/sampler_math.h"
#include "tests/support/paths.h"

#define GOLDEN_BYTES_MAX (64u << 20)

TestSuite(sampler, .timeout = 60);

/* ---- golden files ---- */

static char *
load(const char *name, size_t *len)
{
    char path[1024], relative[128], *bytes;
    errbuf eb;
    snprintf(relative, sizeof relative, "sampling/%s", name);
    golden_path(path, sizeof path, relative);
    cr_assert_eq(file_read(path, GOLDEN_BYTES_MAX, &bytes, len, &eb), MOE_OK, "%s", eb.text);
    return bytes;
}

static cJSON *
load_json(const char *name)
{
    size_t len;
    errbuf eb;
    cJSON *json;
    char *text = load(name, &len);
    cr_assert_eq(json_parse(text, len, &json, &eb), MOE_OK, "%s: %s", name, eb.text);
    free(text);
    return json;
}

/* A tensor of float32 that files.KEY names. */
static float *
load_floats(const cJSON *json, const char *key, size_t *count)
{
    const cJSON *entry = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "files"), key);
    cr_assert_not_null(entry);
    cr_assert_str_eq(cJSON_GetObjectItem(entry, "dtype")->valuestring, "float32");
    size_t len;
    float *floats = (float *)(void *)load(cJSON_GetObjectItem(entry, "file")->valuestring, &len);
    *count = len / sizeof(float);
    return floats;
}

static const float *
slice(const cJSON *test_case, const char *key, const float *floats, size_t total, uint32_t *count)
{
    const cJSON *entry = cJSON_GetObjectItem(test_case, key);
    const size_t offset = (size_t)cJSON_GetObjectItem(entry, "offset")->valuedouble;
    *count = (uint32_t)cJSON_GetObjectItem(entry, "count")->valuedouble;
    cr_assert_leq(offset + *count, total);
    return floats + offset;
}

static bool
flag(const cJSON *object, const char *key)
{
    return cJSON_IsTrue(cJSON_GetObjectItem(object, key));
}

/* A case's parameters and history, with the arrays they point to. */
typedef struct golden_case {
    sampling_params params;
    uint32_t ids[4096]; /* everything that is a list of ids, one after the other */
    uint32_t used;
    float bias[SAMPLER_BIAS_MAX];
    uint32_t lens[256];
    const uint32_t *history;
    uint32_t prompt_len, total_len;
} golden_case;

static const uint32_t *
take_ids(golden_case *g, const cJSON *list, uint32_t *count)
{
    const uint32_t *start = g->ids + g->used;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        cr_assert_lt(g->used, sizeof g->ids / sizeof g->ids[0]);
        g->ids[g->used++] = (uint32_t)item->valuedouble;
        ++*count;
    }
    return start;
}

static void
take_number(const cJSON *params, const char *key, double *out)
{
    const cJSON *item = cJSON_GetObjectItem(params, key);
    if (item != NULL) *out = item->valuedouble;
}

static void
take_lists(golden_case *g, const cJSON *params)
{
    sampling_params *p = &g->params;
    p->allowed_token_ids =
        take_ids(g, cJSON_GetObjectItem(params, "allowed_token_ids"), &p->allowed_count);
    p->stop_token_ids = take_ids(g, cJSON_GetObjectItem(params, "stop_token_ids"), &p->stop_count);

    const cJSON *item;
    p->bias_ids = g->ids + g->used;
    p->bias_values = g->bias;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(params, "logit_bias"))
    {
        g->ids[g->used++] = (uint32_t)strtoul(item->string, NULL, 10);
        g->bias[p->bias_count++] = (float)item->valuedouble;
    }
    p->bad_word_ids = g->ids + g->used;
    p->bad_word_lens = g->lens;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(params, "bad_words_token_ids"))
    {
        take_ids(g, item, &g->lens[p->bad_word_count++]);
    }
}

static void
take_case(golden_case *g, const cJSON *test_case)
{
    memset(g, 0, sizeof *g);
    g->params = sampling_params_default();
    sampling_params *p = &g->params;
    uint32_t output_len = 0;
    g->history = take_ids(g, cJSON_GetObjectItem(test_case, "prompt"), &g->prompt_len);
    take_ids(g, cJSON_GetObjectItem(test_case, "output"), &output_len);
    g->total_len = g->prompt_len + output_len;

    const cJSON *params = cJSON_GetObjectItem(test_case, "params");
    static const char *const known[] = {"temperature",
                                        "top_p",
                                        "min_p",
                                        "top_k",
                                        "presence_penalty",
                                        "min_tokens",
                                        "logit_bias",
                                        "frequency_penalty",
                                        "repetition_penalty",
                                        "stop_token_ids",
                                        "allowed_token_ids",
                                        "bad_words_token_ids"};
    const cJSON *item;
    cJSON_ArrayForEach(item, params)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            found |= strcmp(item->string, known[i]) == 0;
        cr_assert(found, "unknown parameter %s", item->string);
    }
    double top_k = 0, min_tokens = 0;
    take_number(params, "temperature", &p->temperature);
    take_number(params, "top_p", &p->top_p);
    take_number(params, "min_p", &p->min_p);
    take_number(params, "presence_penalty", &p->presence_penalty);
    take_number(params, "frequency_penalty", &p->frequency_penalty);
    take_number(params, "repetition_penalty", &p->repetition_penalty);
    take_number(params, "top_k", &top_k);
    take_number(params, "min_tokens", &min_tokens);
    p->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    p->min_tokens = (uint32_t)min_tokens;
    take_lists(g, params);
}

/* Every token that is drawn must be one that is left. */
static void
expect_draws_among(sampler *s, golden_case *g, const float *logits, const double *probs, int id)
{
    for (uint32_t position = 0; position < 20; position++) {
        uint32_t token;
        g->params.seed = (uint64_t)id;
        cr_assert_eq(sampler_sample(s, &g->params, logits, g->history, g->prompt_len, g->total_len,
                                    position, &token),
                     MOE_OK);
        cr_expect_gt(probs[token], 0, "case %d drew token %u", id, token);
        if (g->params.temperature == 0) cr_expect_eq(probs[token], 1);
    }
}

Test(sampler, gives_the_golden_probabilities)
{
    cJSON *json = load_json("cases.json");
    size_t logit_total, prob_total;
    float *all_logits = load_floats(json, "logits", &logit_total);
    float *all_probs = load_floats(json, "probs", &prob_total);
    static golden_case g;
    static double probs[1 << 16];
    unsigned case_count = 0;
    const cJSON *c;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(json, "cases"))
    {
        uint32_t vocab, prob_count, nonzero = 0;
        const int id = cJSON_GetObjectItem(c, "id")->valueint;
        const float *logits = slice(c, "logits", all_logits, logit_total, &vocab);
        const float *want = slice(c, "probs", all_probs, prob_total, &prob_count);
        cr_assert_eq(vocab, prob_count);
        cr_assert_leq(vocab, sizeof probs / sizeof probs[0]);
        take_case(&g, c);
        errbuf eb;
        cr_expect_eq(sampling_params_check(&g.params, vocab, &eb), MOE_OK, "%d: %s", id, eb.text);

        sampler *s;
        cr_assert_eq(sampler_create(&s, vocab), MOE_OK);
        cr_assert_eq(
            sampler_probs(s, &g.params, logits, g.history, g.prompt_len, g.total_len, probs),
            MOE_OK);
        for (uint32_t i = 0; i < vocab; i++) {
            cr_assert_leq(fabs(probs[i] - want[i]), 1e-5, "case %d token %u: %g, want %g", id, i,
                          probs[i], want[i]);
            if (!flag(c, "underflow"))
                cr_assert_eq(probs[i] != 0, want[i] != 0, "case %d token %u: %g, want %g", id, i,
                             probs[i], want[i]);
            nonzero += probs[i] != 0;
        }
        if (!flag(c, "underflow"))
            cr_expect_eq(nonzero, (uint32_t)cJSON_GetObjectItem(c, "num_nonzero")->valueint);
        expect_draws_among(s, &g, logits, probs, id);
        sampler_free(s);
        case_count++;
    }
    cr_expect_gt(case_count, 0);
    free(all_logits);
    free(all_probs);
    cJSON_Delete(json);
}

static void
expect_near(double got, double want, int id)
{
    cr_expect_leq(fabs(got - want), 1e-5 * fmax(1, fabs(want)), "case %d: %g, want %g", id, got,
                  want);
}

Test(sampler, gives_the_golden_logprobs)
{
    cJSON *json = load_json("logprobs.json");
    size_t total;
    float *all_logits = load_floats(json, "logits", &total);
    unsigned case_count = 0;
    const cJSON *c;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(json, "cases"))
    {
        uint32_t vocab;
        const int id = cJSON_GetObjectItem(c, "id")->valueint;
        const float *logits = slice(c, "logits", all_logits, total, &vocab);
        const uint32_t token = (uint32_t)cJSON_GetObjectItem(c, "token")->valueint;
        const uint32_t top_n = (uint32_t)cJSON_GetObjectItem(c, "top_logprobs")->valueint;
        sampler *s;
        sampler_logprobs got;
        cr_assert_eq(sampler_create(&s, vocab), MOE_OK);
        cr_assert_eq(sampler_logprobs_get(s, logits, token, top_n, &got), MOE_OK);
        expect_near(got.logprob, cJSON_GetObjectItem(c, "logprob")->valuedouble, id);
        cr_expect_eq(got.rank, (uint32_t)cJSON_GetObjectItem(c, "rank")->valueint);
        const cJSON *top = cJSON_GetObjectItem(c, "top");
        cr_assert_eq(got.top_count, (uint32_t)cJSON_GetArraySize(top));
        for (uint32_t i = 0; i < got.top_count; i++) {
            const cJSON *want = cJSON_GetArrayItem(top, (int)i);
            cr_expect_eq(got.top_ids[i], (uint32_t)cJSON_GetObjectItem(want, "id")->valueint);
            expect_near(got.top_logprobs[i], cJSON_GetObjectItem(want, "logprob")->valuedouble, id);
        }
        sampler_free(s);
        case_count++;
    }
    cr_expect_gt(case_count, 0);
    free(all_logits);
    cJSON_Delete(json);
}

/* ---- what the golden vectors don't show ---- */

enum { VOCAB = 50 };

static void
make_logits(float *logits, uint64_t seed)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(hash_combine(seed, i) >> 40) * 0x1p-24f * 6 - 3;
}

static uint32_t
sample(sampler *s, const sampling_params *p, const float *logits, uint32_t position)
{
    uint32_t token;
    cr_assert_eq(sampler_sample(s, p, logits, NULL, 0, 0, position, &token), MOE_OK);
    return token;
}

Test(sampler, draws_as_often_as_the_probabilities_say)
{
    enum { DRAWS = 40000 };
    float logits[VOCAB];
    double probs[VOCAB];
    unsigned counts[3][VOCAB] = {{0}};
    sampler *s;
    make_logits(logits, 1);
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    sampling_params p = sampling_params_default();
    cr_assert_eq(sampler_probs(s, &p, logits, NULL, 0, 0, probs), MOE_OK);
    /* Each of the three keys alone must give independent noise. */
    for (uint32_t i = 0; i < DRAWS; i++) {
        p.seed = 7, p.choice = 0;
        counts[0][sample(s, &p, logits, i)]++;
        p.seed = i, p.choice = 0;
        counts[1][sample(s, &p, logits, 3)]++;
        p.seed = 7, p.choice = i;
        counts[2][sample(s, &p, logits, 3)]++;
    }
    for (unsigned k = 0; k < 3; k++) {
        for (uint32_t id = 0; id < VOCAB; id++) {
            const double deviation = sqrt(DRAWS * probs[id] * (1 - probs[id]));
            cr_expect_leq(fabs(counts[k][id] - DRAWS * probs[id]), 5 * deviation + 1,
                          "key %u token %u: %u, expected %g", k, id, counts[k][id],
                          DRAWS * probs[id]);
        }
    }
    sampler_free(s);
}

Test(sampler, depends_on_nothing_but_its_arguments)
{
    float logits[VOCAB], copy[VOCAB];
    uint32_t first[100];
    sampler *s, *other;
    make_logits(logits, 2);
    memcpy(copy, logits, sizeof copy);
    const uint32_t history[] = {1, 2, 3, 3, 4};
    const uint32_t bad[] = {3, 4, 9};
    const uint32_t lens[] = {3};
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    cr_assert_eq(sampler_create(&other, VOCAB), MOE_OK);
    sampling_params p = sampling_params_default();
    p.top_k = 20, p.top_p = 0.9, p.min_p = 0.01, p.temperature = 0.8;
    p.frequency_penalty = 0.5, p.repetition_penalty = 1.2, p.seed = 5;
    p.bad_word_ids = bad, p.bad_word_lens = lens, p.bad_word_count = 1;
    for (uint32_t i = 0; i < 100; i++)
        cr_assert_eq(sampler_sample(s, &p, logits, history, 2, 5, i, &first[i]), MOE_OK);
    /* Backwards, with other rows in between, on another sampler. */
    for (uint32_t i = 100; i-- > 0;) {
        float noise[VOCAB];
        uint32_t token;
        make_logits(noise, i + 10);
        sample(other, &(sampling_params){.temperature = 2, .top_p = 0.5, .repetition_penalty = 1},
               noise, i);
        cr_assert_eq(sampler_sample(other, &p, logits, history, 2, 5, i, &token), MOE_OK);
        cr_expect_eq(token, first[i]);
        cr_expect_neq(token, 9); /* a bad word's end */
    }
    cr_expect_arr_eq(logits, copy, sizeof copy);
    sampler_free(s);
    sampler_free(other);
}

/* If these change, every seeded request gives other tokens than before. */
Test(sampler, keeps_the_noise_of_earlier_versions)
{
    float logits[VOCAB];
    sampler *s;
    make_logits(logits, 3);
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    sampling_params p = sampling_params_default();
    p.seed = 42;
    static const uint32_t want[] = {14, 42, 48, 28, 19, 22, 22, 27};
    for (uint32_t i = 0; i < sizeof want / sizeof want[0]; i++)
        cr_expect_eq(sample(s, &p, logits, i), want[i], "position %u: %u", i,
                     sample(s, &p, logits, i));
    sampler_free(s);
}

Test(sampler, takes_the_lowest_id_of_equal_logits)
{
    float logits[VOCAB];
    sampler *s;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = i % 10 == 7 ? 2 : 1;
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    sampling_params p = sampling_params_default();
    p.temperature = 0;
    cr_expect_eq(sample(s, &p, logits, 0), 7);
    const uint32_t bias_id = 7;
    const float bias = -5;
    p.bias_ids = &bias_id, p.bias_values = &bias, p.bias_count = 1;
    cr_expect_eq(sample(s, &p, logits, 0), 17);

    sampler_logprobs top;
    cr_assert_eq(sampler_logprobs_get(s, logits, 47, 6, &top), MOE_OK);
    cr_expect_eq(top.rank, 5);
    const uint32_t want[] = {7, 17, 27, 37, 47, 0};
    cr_expect_arr_eq(top.top_ids, want, sizeof want);
    sampler_free(s);
}

Test(sampler, survives_logits_that_are_no_numbers)
{
    float logits[VOCAB];
    double probs[VOCAB];
    uint32_t token;
    sampler *s;
    sampler_logprobs top;
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    sampling_params p = sampling_params_default();
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = i % 2 != 0 ? NAN : -INFINITY;
    for (unsigned greedy = 0; greedy < 2; greedy++) {
        p.temperature = greedy ? 0 : 1;
        cr_expect_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 0, &token), MOE_EINVAL);
        cr_expect_eq(sampler_probs(s, &p, logits, NULL, 0, 0, probs), MOE_EINVAL);
    }
    cr_expect_eq(sampler_logprobs_get(s, logits, 0, 3, &top), MOE_EINVAL);
    logits[11] = INFINITY;
    logits[12] = 5;
    for (double temperature = 0; temperature < 3; temperature++) {
        p.temperature = temperature;
        for (uint32_t i = 0; i < 20; i++)
            cr_expect_eq(sample(s, &p, logits, i), 11);
    }
    cr_assert_eq(sampler_logprobs_get(s, logits, 11, 2, &top), MOE_OK);
    cr_expect_eq(top.logprob, 0);
    cr_expect_eq(top.top_ids[1], 12);

    /* All that is left may be forbidden. */
    const uint32_t only = 12, bad = 12, one = 1;
    p.allowed_token_ids = &only, p.allowed_count = 1;
    cr_expect_eq(sample(s, &p, logits, 0), 12);
    p.bad_word_ids = &bad, p.bad_word_lens = &one, p.bad_word_count = 1;
    cr_expect_eq(sampler_sample(s, &p, logits, NULL, 0, 0, 0, &token), MOE_EINVAL);
    sampler_free(s);
}

Test(sampler, refuses_parameters_outside_their_meaning)
{
    errbuf eb;
    const uint32_t id = VOCAB, zero = 0;
    const float nan_value = NAN;
    sampling_params bad[20];
    size_t n = 0;
    for (size_t i = 0; i < 20; i++)
        bad[i] = sampling_params_default();
    cr_expect_eq(sampling_params_check(&bad[0], VOCAB, &eb), MOE_OK);
    bad[n++].temperature = -0.1;
    bad[n++].temperature = NAN;
    bad[n++].temperature = INFINITY;
    bad[n++].top_p = 1.1;
    bad[n++].min_p = -1;
    bad[n++].presence_penalty = 2.1;
    bad[n++].frequency_penalty = -2.1;
    bad[n++].repetition_penalty = 0;
    bad[n].bias_ids = &id, bad[n].bias_values = &(float){1}, bad[n++].bias_count = 1;
    bad[n].bias_ids = &zero, bad[n].bias_values = &nan_value, bad[n++].bias_count = 1;
    bad[n].stop_token_ids = &id, bad[n++].stop_count = 1;
    bad[n].allowed_token_ids = &id, bad[n++].allowed_count = 1;
    bad[n].bad_word_ids = &id, bad[n].bad_word_lens = &(uint32_t){1}, bad[n++].bad_word_count = 1;
    bad[n].bad_word_ids = &zero, bad[n].bad_word_lens = &zero, bad[n++].bad_word_count = 1;
    for (size_t i = 0; i < n; i++)
        cr_expect_eq(sampling_params_check(&bad[i], VOCAB, &eb), MOE_EINVAL, "case %zu", i);

    sampler *s;
    sampler_logprobs top;
    cr_expect_eq(sampler_create(&s, 0), MOE_ERANGE);
    cr_expect_eq(sampler_create(&s, SAMPLER_VOCAB_MAX + 1), MOE_ERANGE);
    cr_assert_eq(sampler_create(&s, VOCAB), MOE_OK);
    float logits[VOCAB] = {0};
    cr_expect_eq(sampler_logprobs_get(s, logits, 0, SAMPLER_TOP_LOGPROBS_MAX + 1, &top),
                 MOE_ERANGE);
    cr_expect_eq(sampler_logprobs_get(s, logits, VOCAB, 1, &top), MOE_EINVAL);
    sampler_free(s);
    sampler_free(NULL);
}

Test(sampler, computes_exp_and_log_within_a_few_units_in_the_last_place)
{
    for (double x = 0; x > -700; x -= 0.0371) {
        const double want = exp(x);
        cr_assert_leq(fabs(exp_of_negative(x) - want), 4 * 0x1p-53 * want, "%g", x);
    }
    cr_expect_eq(exp_of_negative(0), 1);
    cr_expect_eq(exp_of_negative(-709), 0);
    cr_expect_eq(exp_of_negative(-INFINITY), 0);
    for (double x = 1; x < 1e9; x *= 1.0037)
        cr_assert_leq(fabs(log_of_large(x) - log(x)), 4 * 0x1p-53 * fmax(log(x), 1e-3), "%g", x);
    cr_expect_eq(log_of_large(1), 0);
}
