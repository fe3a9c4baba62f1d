/* Traces: the published formats, and errors that say where. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "loadgen/dataset.h"

TestSuite(trace, .timeout = 10);

static errbuf eb;

static moe_err
parse(const dataset_config *c, const char *text, dataset *out)
{
    return dataset_parse(c, "set.file", text, strlen(text), out, &eb);
}

static dataset_config
config_of(size_t count)
{
    return (dataset_config){.kind = DATASET_TRACE,
                            .count = count,
                            .seed = 5,
                            .shuffle = true,
                            .vocab_first = 3,
                            .vocab_end = 50,
                            .speed = 1};
}

static void
expect_row(const dataset *d, size_t i, double at_s, int64_t input, int64_t output)
{
    cJSON *ids = cJSON_Parse(d->prompts[i].json);
    cr_expect_float_eq((double)d->prompts[i].arrival_ns / 1e9, at_s, 1e-6, "row %zu: %g", i,
                       (double)d->prompts[i].arrival_ns / 1e9);
    cr_expect_eq(cJSON_GetArraySize(ids), input);
    cr_expect_eq(d->prompts[i].token_count, input);
    cr_expect_eq(d->prompts[i].max_tokens, output);
    cJSON_Delete(ids);
}

Test(trace, the_published_formats_are_read)
{
    static const char *const texts[] = {
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,5,7\r\n"
        "2023-11-16 18:15:48.1805900,6,1\r\n"
        "2023-11-17 18:15:48.1805900,2,3\r\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "45,\"Chat, GPT\",5,7,12,Conversation log\n"
        "86446.5,ChatGPT,9,0,9,a failed one\n"
        "46.5,ChatGPT,6,1,7,API log\n"
        "86446.5,ChatGPT,2,3,5,API log",
        "{\"timestamp\": 1000, \"input_length\": 5, \"output_length\": 7, \"hash_ids\": [1]}\n"
        "{\"timestamp\": 2500, \"input_length\": 6, \"output_length\": 1, \"hash_ids\": [1]}\n"
        "{\"timestamp\": 86402500, \"input_length\": 2, \"output_length\": 3}\n",
    };
    dataset_config c = config_of(3);
    for (size_t i = 0; i < 3; i++) {
        dataset d;
        cr_assert_eq(parse(&c, texts[i], &d), MOE_OK, "text %zu: %s", i, eb.text);
        cr_expect(d.timed);
        expect_row(&d, 0, 0, 5, 7);
        expect_row(&d, 1, 1.5, 6, 1);
        expect_row(&d, 2, i == 0 ? 86401.5 : i == 1 ? 86401.5 : 86401.5, 2, 3);
        dataset_fini(&d);
    }
    c.speed = 10;
    c.time_unit_s = 1;
    c.token_max = 10;
    c.count = 2;
    dataset d;
    cr_assert_eq(parse(&c, texts[2], &d), MOE_OK, "%s", eb.text);
    expect_row(&d, 0, 0, 6, 1); /* the first row is too long */
    expect_row(&d, 1, 8640000, 2, 3);
    dataset_fini(&d);
}

/* The byte at which the 512th of the ids ends; 0 when there are fewer. */
static size_t
block_bytes(const char *json)
{
    const char *at = json;
    for (int i = 0; i < 512; i++) {
        at = strchr(at + 1, ',');
        if (at == NULL) return 0;
    }
    return (size_t)(at - json);
}

Test(trace, requests_with_equal_blocks_have_equal_tokens_there)
{
    const char *text =
        "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [4, 9]}\n"
        "{\"timestamp\": 1, \"input_length\": 700, \"output_length\": 1, \"hash_ids\": [4, 8]}\n"
        "{\"timestamp\": 2, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [5, 9]}\n";
    const dataset_config c = config_of(3);
    dataset d;
    cr_assert_eq(parse(&c, text, &d), MOE_OK, "%s", eb.text);
    const char *a = d.prompts[0].json, *b = d.prompts[1].json, *other = d.prompts[2].json;
    const size_t n = block_bytes(a);
    cr_assert(n > 0 && block_bytes(b) == n);
    cr_expect_eq(strncmp(a, b, n), 0);
    cr_expect_neq(strncmp(a + n, b + n, 80), 0);
    cr_expect_neq(strncmp(a, other, n), 0);
    cr_expect_str_eq(a + n, other + block_bytes(other));
    dataset_fini(&d);
}

Test(trace, errors_name_the_file_and_the_line)
{
#define HEAD "time,input_tokens,output_tokens\n"
    static const struct {
        const char *text, *want;
        moe_err err;
    } cases[] = {
        {"", "0 usable rows, but 2", MOE_ERANGE},
        {HEAD "1,2,3", "1 usable rows, but 2", MOE_ERANGE},
        {"a,b,c\n1,2,3\n", "set.file: line 1: must name columns", MOE_EINVAL},
        {HEAD "\n1,2\n", "set.file: line 3: has only 2 fields", MOE_EINVAL},
        {HEAD "x,2,3\n", "line 2: time \"x\" must be", MOE_EINVAL},
        {HEAD "-1,2,3\n", "line 2: time \"-1\"", MOE_EINVAL},
        {HEAD "nan,2,3\n", "line 2: time \"nan\"", MOE_EINVAL},
        {HEAD "2023-13-01 00:00:00,2,3\n", "line 2: time", MOE_EINVAL},
        {HEAD "1,2.5,3\n", "\"2.5\" must be a token count", MOE_EINVAL},
        {HEAD "1,2,99999999\n", "\"99999999\" must be a token count", MOE_EINVAL},
        {HEAD "1,,3\n", "\"\" must be a token count", MOE_EINVAL},
        {"{\"timestamp\":1}\n", "line 1: must have timestamp, input_length", MOE_EINVAL},
        {"{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}\n", "timestamp must be",
         MOE_EINVAL},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1,\"hash_ids\":[-1]}\n",
         "hash_ids[0]", MOE_EINVAL},
        {"{\"timestamp\":1,\"input_length\":1,\"output_length\":1}\n[1]\n",
         "line 2: must be a JSON", MOE_EINVAL},
    };
    const dataset_config c = config_of(2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dataset d;
        cr_expect_eq(parse(&c, cases[i].text, &d), cases[i].err, "case %zu: %s", i, eb.text);
        cr_expect(strstr(eb.text, cases[i].want), "case %zu: %s", i, eb.text);
        cr_expect(d.prompts == NULL && d.count == 0);
    }
}
