/* sampler against the golden vectors: every case of cases.json and logprobs.json, whatever they
 * are, by the rules of the golden set's README. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"
#include "router/sampler.h"
#include "tests/support/paths.h"

#define FILE_MAX ((size_t)256 << 20)

TestSuite(sampler_golden, .timeout = 60);

typedef struct tensor {
    float *values;
    size_t count;
} tensor;

static char *
read_golden(const char *name, size_t *len)
{
    char path[1024], relative[256], *bytes = NULL;
    errbuf eb = {{0}};
    snprintf(relative, sizeof relative, "sampling/%s", name);
    golden_path(path, sizeof path, relative);
    cr_assert_eq(file_read(path, FILE_MAX, &bytes, len, &eb), MOE_OK, "%s", eb.text);
    return bytes;
}

static cJSON *
read_golden_json(const char *name)
{
    size_t len = 0;
    char *bytes = read_golden(name, &len);
    errbuf eb = {{0}};
    cJSON *root = NULL;
    cr_assert_eq(json_parse(bytes, len, &root, &eb), MOE_OK, "%s: %s", name, eb.text);
    free(bytes);
    return root;
}

static const cJSON *
member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    cr_assert_not_null(item, "no %s", key);
    return item;
}

static tensor
read_tensor(const cJSON *root, const char *key)
{
    const cJSON *file = member(member(member(root, "files"), key), "file");
    size_t len = 0;
    tensor t = {.values = (float *)(void *)read_golden(file->valuestring, &len)};
    cr_assert_eq(len % sizeof(float), 0u);
    t.count = len / sizeof(float);
    return t;
}

static uint32_t
to_u32(const cJSON *item)
{
    cr_assert(json_is_int(item, 0, UINT32_MAX));
    return (uint32_t)item->valuedouble;
}

static const float *
slice(const tensor *t, const cJSON *where, uint32_t *count)
{
    const uint32_t offset = to_u32(member(where, "offset"));
    *count = to_u32(member(where, "count"));
    cr_assert_leq((size_t)offset + *count, t->count);
    return t->values + offset;
}

/* Append an array's ids to ids [count], which grows; NULL adds none. */
static uint32_t *
append_ids(uint32_t *ids, uint32_t *count, const cJSON *array)
{
    const size_t more = array == NULL ? 0 : (size_t)cJSON_GetArraySize(array);
    ids = realloc(ids, (*count + more + 1) * sizeof ids[0]);
    cr_assert_not_null(ids);
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        ids[(*count)++] = to_u32(item);
    }
    return ids;
}

/* One case's params with the arrays they point to. */
typedef struct owned_params {
    sampling_params p;
    uint32_t *stop, *allowed, *bad, *bad_lens, *bias;
    double *bias_values;
} owned_params;

static void
read_bad_words(owned_params *o, const cJSON *words)
{
    uint32_t total = 0;
    o->bad_lens = calloc((size_t)cJSON_GetArraySize(words) + 1, sizeof o->bad_lens[0]);
    const cJSON *word;
    cJSON_ArrayForEach(word, words)
    {
        o->bad = append_ids(o->bad, &total, word);
        o->bad_lens[o->p.bad_word_count++] = (uint32_t)cJSON_GetArraySize(word);
    }
    o->p.bad_word_ids = o->bad;
    o->p.bad_word_lens = o->bad_lens;
}

static void
read_bias(owned_params *o, const cJSON *map)
{
    const size_t count = (size_t)cJSON_GetArraySize(map) + 1;
    o->bias = calloc(count, sizeof o->bias[0]);
    o->bias_values = calloc(count, sizeof o->bias_values[0]);
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        o->bias[o->p.bias_count] = (uint32_t)strtoul(item->string, NULL, 10);
        o->bias_values[o->p.bias_count++] = item->valuedouble;
    }
    o->p.bias_ids = o->bias;
    o->p.bias_values = o->bias_values;
}

static bool
read_number(sampling_params *p, const cJSON *item)
{
    const struct {
        const char *key;
        double *to;
    } numbers[] = {
        {"temperature", &p->temperature},
        {"top_p", &p->top_p},
        {"min_p", &p->min_p},
        {"presence_penalty", &p->presence_penalty},
        {"frequency_penalty", &p->frequency_penalty},
        {"repetition_penalty", &p->repetition_penalty},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (strcmp(item->string, numbers[i].key) != 0) continue;
        *numbers[i].to = item->valuedouble;
        return true;
    }
    return false;
}

/* Every key must be one this test knows. */
static void
read_param(owned_params *o, const cJSON *item)
{
    const char *key = item->string;
    if (read_number(&o->p, item)) return;
    if (strcmp(key, "top_k") == 0) {
        o->p.top_k = (int32_t)item->valuedouble;
    } else if (strcmp(key, "min_tokens") == 0) {
        o->p.min_tokens = to_u32(item);
    } else if (strcmp(key, "stop_token_ids") == 0) {
        o->p.stop_token_ids = o->stop = append_ids(NULL, &o->p.stop_token_count, item);
    } else if (strcmp(key, "allowed_token_ids") == 0) {
        o->p.allowed_token_ids = o->allowed = append_ids(NULL, &o->p.allowed_count, item);
    } else if (strcmp(key, "bad_words_token_ids") == 0) {
        read_bad_words(o, item);
    } else if (strcmp(key, "logit_bias") == 0) {
        read_bias(o, item);
    } else {
        cr_assert_fail("unknown parameter %s", key);
    }
}

static owned_params
read_params(const cJSON *object)
{
    owned_params o = {.p = sampler_default_params()};
    const cJSON *item;
    cJSON_ArrayForEach(item, object)
    {
        read_param(&o, item);
    }
    return o;
}

static void
free_params(owned_params *o)
{
    free(o->stop);
    free(o->allowed);
    free(o->bad);
    free(o->bad_lens);
    free(o->bias);
    free(o->bias_values);
}

static void
expect_probs(const cJSON *item, const double *probs, const float *want, uint32_t count)
{
    const int id = (int)to_u32(member(item, "id"));
    const bool underflow = cJSON_IsTrue(member(item, "underflow"));
    uint32_t num_nonzero = 0;
    for (uint32_t i = 0; i < count; i++) {
        cr_assert(fabs(probs[i] - (double)want[i]) <= 1e-5, "case %d, token %u: %g, not %g", id, i,
                  probs[i], (double)want[i]);
        num_nonzero += probs[i] != 0.0;
        if (!underflow)
            cr_assert_eq(probs[i] != 0.0, want[i] != 0.0f, "case %d, token %u: %g, not %g", id, i,
                         probs[i], (double)want[i]);
    }
    if (!underflow) cr_assert_eq(num_nonzero, to_u32(member(item, "num_nonzero")), "case %d", id);
}

/* What is drawn must have a probability, and be the certain token where there is one. */
static void
expect_draws(sampler *s, const owned_params *o, const float *logits, const uint32_t *history,
             uint32_t prompt_len, uint32_t total_len, const float *want)
{
    for (uint32_t position = 0; position < 20; position++) {
        const uint32_t token =
            sampler_sample(s, &o->p, logits, history, prompt_len, total_len, position);
        cr_assert(want[token] > 0.0f, "token %u was drawn with probability 0", token);
    }
}

static void
check_case(const cJSON *item, const tensor *all_logits, const tensor *all_probs)
{
    uint32_t vocab_size = 0, prob_count = 0, total_len = 0;
    const float *logits = slice(all_logits, member(item, "logits"), &vocab_size);
    const float *want = slice(all_probs, member(item, "probs"), &prob_count);
    cr_assert_eq(vocab_size, prob_count);

    uint32_t *history = append_ids(NULL, &total_len, member(item, "prompt"));
    const uint32_t prompt_len = total_len;
    history = append_ids(history, &total_len, member(item, "output"));
    owned_params o = read_params(member(item, "params"));
    sampler *s = NULL;
    cr_assert_eq(sampler_create(&s, vocab_size), MOE_OK);

    expect_probs(item, sampler_probs(s, &o.p, logits, history, prompt_len, total_len), want,
                 vocab_size);
    expect_draws(s, &o, logits, history, prompt_len, total_len, want);
    sampler_free(s);
    free_params(&o);
    free(history);
}

Test(sampler_golden, probabilities_equal_those_of_every_case)
{
    cJSON *root = read_golden_json("cases.json");
    tensor logits = read_tensor(root, "logits"), probs = read_tensor(root, "probs");
    const cJSON *cases = member(root, "cases"), *item;
    cr_assert_gt(cJSON_GetArraySize(cases), 0);
    cJSON_ArrayForEach(item, cases)
    {
        check_case(item, &logits, &probs);
    }
    free(logits.values);
    free(probs.values);
    cJSON_Delete(root);
}

static void
expect_close(double got, double want, int id)
{
    cr_assert(fabs(got - want) <= 1e-5 * fmax(1.0, fabs(want)), "case %d: %g, not %g", id, got,
              want);
}

static void
check_logprob_case(const cJSON *item, const tensor *all_logits)
{
    const int id = (int)to_u32(member(item, "id"));
    uint32_t vocab_size = 0, i = 0;
    const float *logits = slice(all_logits, member(item, "logits"), &vocab_size);
    const uint32_t top_n = to_u32(member(item, "top_logprobs"));
    cr_assert_leq(top_n, SAMPLER_TOP_MAX);
    sampler *s = NULL;
    sampled_logprobs out;
    cr_assert_eq(sampler_create(&s, vocab_size), MOE_OK);
    sampler_logprobs(s, logits, to_u32(member(item, "token")), top_n, &out);

    expect_close(out.logprob, member(item, "logprob")->valuedouble, id);
    cr_assert_eq(out.rank, to_u32(member(item, "rank")), "case %d", id);
    const cJSON *top = member(item, "top"), *entry;
    cr_assert_eq(out.top_count, (uint32_t)cJSON_GetArraySize(top), "case %d", id);
    cJSON_ArrayForEach(entry, top)
    {
        cr_assert_eq(out.top_ids[i], to_u32(member(entry, "id")), "case %d, place %u", id, i);
        expect_close(out.top_logprobs[i++], member(entry, "logprob")->valuedouble, id);
    }
    sampler_free(s);
}

Test(sampler_golden, logprobs_and_ranks_equal_those_of_every_case)
{
    cJSON *root = read_golden_json("logprobs.json");
    tensor logits = read_tensor(root, "logits");
    const cJSON *cases = member(root, "cases"), *item;
    cr_assert_gt(cJSON_GetArraySize(cases), 0);
    cJSON_ArrayForEach(item, cases)
    {
        check_logprob_case(item, &logits);
    }
    free(logits.values);
    cJSON_Delete(root);
}
