/* completion_request: what a body becomes.  What is refused, and how, is in http_test. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/completion_request.h"
#include "tests/support/paths.h"

static completion_limits limits;
static tokenizer *tok;

static void
setup(void)
{
    char path[512];
    errbuf eb = {""};
    cr_assert_eq(tokenizer_load(&tok, test_path(path, sizeof path, "models/demo"), &eb), MOE_OK,
                 "%s", eb.text);
    limits = (completion_limits){.tok = tok, .model = "demo", .max_model_len = 100};
    completion_limits_measure(&limits);
}

static void
teardown(void)
{
    tokenizer_free(tok);
    tok = NULL;
}

TestSuite(completion_request, .timeout = 20);

static completion_request
parse(const char *body)
{
    completion_request r;
    api_error error;
    cr_assert(completion_request_parse(&r, &limits, body, strlen(body), &error), "%s: %s", body,
              error.message);
    return r;
}

static api_error
refused(const char *body)
{
    completion_request r;
    api_error error;
    cr_expect_not(completion_request_parse(&r, &limits, body, strlen(body), &error), "%s", body);
    cr_expect_null(r.prompts);
    return error;
}

Test(completion_request, has_openais_defaults, .init = setup, .fini = teardown)
{
    completion_request r = parse("{\"prompt\":\"Hi\"}");
    cr_expect_eq(r.prompt_count, 1);
    cr_expect_eq(r.n, 1);
    cr_expect_eq(r.prompts[0].max_tokens, 16);
    cr_expect_eq(r.prompts[0].ids[0], tokenizer_bos_id(tok));
    cr_expect_null(r.prompts[0].text);
    cr_expect_eq(r.params.temperature, 1);
    cr_expect_eq(r.params.top_p, 1);
    cr_expect_eq(r.params.repetition_penalty, 1);
    cr_expect_eq(r.params.num_logprobs, -1);
    cr_expect_not(r.params.ignore_eos);
    cr_expect(r.skip_special);
    cr_expect_not(r.stream || r.echo || r.include_usage || r.include_stop);
    completion_request_fini(&r);
}

Test(completion_request, takes_every_field, .init = setup, .fini = teardown)
{
    completion_request r = parse(
        "{\"model\":\"demo\",\"prompt\":[1,15],\"max_tokens\":9,\"temperature\":0.5,\"top_p\":0.25,"
        "\"top_k\":-1,\"min_p\":0.125,\"seed\":-2,\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[2,7],"
        "\"n\":3,\"best_of\":3,\"echo\":true,\"logprobs\":20,\"ignore_eos\":true,\"min_tokens\":9,"
        "\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_penalty\":1.5,"
        "\"logit_bias\":{\"5\":-100,\"4095\":1.5},\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true},"
        "\"skip_special_tokens\":false,\"include_stop_str_in_output\":true}");
    const gen_params *p = &r.params;
    cr_expect_eq(r.n, 3);
    cr_expect_eq(r.prompts[0].max_tokens, 9);
    cr_expect_eq(r.prompts[0].seed, (uint64_t)-2);
    cr_expect_not_null(r.prompts[0].text);
    cr_expect(p->temperature == 0.5 && p->top_p == 0.25 && p->min_p == 0.125 && p->top_k == -1);
    cr_expect(p->presence_penalty == -2 && p->frequency_penalty == 2);
    cr_expect(p->repetition_penalty == 1.5 && p->ignore_eos && p->min_tokens == 9);
    cr_expect(p->num_logprobs == 20 && p->prompt_logprobs);
    cr_expect(p->stop_token_count == 2 && p->stop_token_ids[0] == 2 && p->stop_token_ids[1] == 7);
    cr_expect(p->bias_count == 2 && p->bias_ids[1] == 4095 && p->bias_values[1] == 1.5);
    cr_expect(r.stop_count == 2 && strcmp(r.stops[1], "bc") == 0 && r.stop_lens[1] == 2);
    cr_expect(r.stream && r.include_usage && r.continuous_usage && r.echo && r.include_stop);
    cr_expect_not(r.skip_special);
    completion_request_fini(&r);
}

Test(completion_request, reads_all_four_forms_of_a_prompt, .init = setup, .fini = teardown)
{
    static const struct {
        const char *body;
        uint32_t prompts, first_count; /* 0: some */
    } cases[] = {{"{\"prompt\":\"a b\"}", 1, 0},
                 {"{\"prompt\":[\"a\",\"b\",\"c\"]}", 3, 0},
                 {"{\"prompt\":[4,5,6]}", 1, 3},
                 {"{\"prompt\":[[4,5],[6],[7,8,9]]}", 3, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        completion_request r = parse(cases[i].body);
        cr_expect_eq(r.prompt_count, cases[i].prompts);
        if (cases[i].first_count) cr_expect_eq(r.prompts[0].count, cases[i].first_count);
        completion_request_fini(&r);
    }
}

Test(completion_request, reads_special_tokens_in_a_text_as_text, .init = setup, .fini = teardown)
{
    completion_request r = parse("{\"prompt\":\"a</s><s>\"}");
    cr_expect_eq(r.prompts[0].ids[0], tokenizer_bos_id(tok));
    for (uint32_t i = 1; i < r.prompts[0].count; i++)
        cr_expect_gt(r.prompts[0].ids[i], 2);
    completion_request_fini(&r);
}

/* A body with `count` ids as its prompt. */
static char *
body_of_ids(unsigned count, const char *more)
{
    char *body = calloc(1, 64 + count * 2 + strlen(more));
    strcpy(body, "{\"prompt\":[7");
    for (unsigned i = 1; i < count; i++)
        strcat(body, ",7");
    strcat(body, "]");
    strcat(body, more);
    strcat(body, "}");
    return body;
}

Test(completion_request, fits_prompt_and_output_into_the_context, .init = setup, .fini = teardown)
{
    static const struct {
        unsigned ids;
        const char *more, *param; /* param NULL: good */
        uint32_t max_tokens;
    } cases[] = {
        {84, "", NULL, 16},
        {85, "", NULL, 15}, /* the default is cut to what fits */
        {99, "", NULL, 1},
        {100, "", "prompt", 0},
        {101, ",\"max_tokens\":1", "prompt", 0},
        {90, ",\"max_tokens\":10", NULL, 10},
        {90, ",\"max_tokens\":11", "max_tokens", 0}, /* what was asked for is not cut */
        {90, ",\"max_tokens\":2147483647", "max_tokens", 0},
        {95, ",\"min_tokens\":6", "min_tokens", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *body = body_of_ids(cases[i].ids, cases[i].more);
        if (cases[i].param == NULL) {
            completion_request r = parse(body);
            cr_expect_eq(r.prompts[0].max_tokens, cases[i].max_tokens, "case %zu", i);
            completion_request_fini(&r);
        } else {
            const api_error error = refused(body);
            cr_expect_str_eq(error.param, cases[i].param, "case %zu: %s", i, error.message);
        }
        free(body);
    }
}

Test(completion_request, refuses_a_hopelessly_long_text_unread, .init = setup, .fini = teardown)
{
    const size_t len = (size_t)limits.max_model_len * limits.token_bytes_max + 1;
    char *body = malloc(len + 64);
    strcpy(body, "{\"prompt\":\"");
    memset(body + 11, 'a', len);
    strcpy(body + 11 + len, "\"}");
    const api_error error = refused(body);
    cr_expect_str_eq(error.param, "prompt");
    cr_expect(strstr(error.message, "100 tokens") != NULL, "%s", error.message);
    free(body);
}

Test(completion_request, cuts_quotations_between_characters, .init = setup, .fini = teardown)
{
    char body[1024], name[601] = "";
    for (int i = 0; i < 100; i++)
        strcat(name, "é🙂");
    snprintf(body, sizeof body, "{\"model\":\"%s\",\"prompt\":\"a\"}", name);
    const api_error error = refused(body);
    cJSON *text = cJSON_CreateString(error.message);
    cr_expect_eq(error.status, 404);
    cr_expect_gt(strlen(error.message), 40);
    /* Valid UTF-8 ends outside a character: the last byte is ASCII or completes one. */
    const unsigned char *p = (const unsigned char *)error.message;
    for (; *p != '\0'; p++) {
        const int more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : *p >= 0xc0 ? 1 : 0;
        for (int i = 0; i < more; i++)
            cr_assert_eq(*++p & 0xc0, 0x80);
    }
    cJSON_Delete(text);
}

static uint64_t
seed_of(const char *body)
{
    completion_request r = parse(body);
    const uint64_t seed = r.prompts[0].seed;
    completion_request_fini(&r);
    return seed;
}

Test(completion_request, a_fixed_seed_depends_on_the_prompt_alone, .init = setup, .fini = teardown)
{
    const char *body = "{\"prompt\":[1,15]}";
    cr_expect_neq(seed_of(body), seed_of(body), "seeds are drawn at random by default");
    limits.fixed_seed = true;
    limits.base_seed = 7;
    const uint64_t seed = seed_of(body);
    cr_expect_eq(seed_of("{\"prompt\":[1,15],\"max_tokens\":3}"), seed);
    cr_expect_neq(seed_of("{\"prompt\":[1,16]}"), seed);
    cr_expect_eq(seed_of("{\"prompt\":[1,15],\"seed\":5}"), 5,
                 "the request's own seed comes first");
    limits.base_seed = 8;
    cr_expect_neq(seed_of(body), seed);
}

Test(completion_request, bounds_what_return_routed_experts_may_give, .init = setup,
     .fini = teardown)
{
    limits.max_model_len = 1u << 20;
    limits.routing = (routing_shape){32, 2, 1};
    completion_request r = parse("{\"prompt\":[1,5,9],\"max_tokens\":4,\"n\":2,"
                                 "\"return_routed_experts\":true,"
                                 "\"routed_experts_prompt_start\":3}");
    cr_expect(r.params.routed_experts);
    cr_expect_eq(r.routed_start, 3);
    cr_expect_eq(r.routing.num_layers, 32);
    completion_request_fini(&r);
    r = parse("{\"prompt\":[1,5,9],\"return_routed_experts\":null}");
    cr_expect_not(r.params.routed_experts);
    completion_request_fini(&r);
    /* 64 bytes a token: 2^18 tokens are the limit. */
    r = parse("{\"prompt\":[1,5],\"max_tokens\":262142,\"return_routed_experts\":true}");
    completion_request_fini(&r);
    api_error e =
        refused("{\"prompt\":[1,5],\"max_tokens\":262143,\"return_routed_experts\":true}");
    cr_expect_eq(e.status, 400);
    cr_expect_str_eq(e.param, "return_routed_experts");
    cr_expect_not_null(strstr(e.message, "16777280 bytes"), "%s", e.message);
    cr_expect_not_null(strstr(e.message, "limit is 16777216"), "%s", e.message);
    e = refused("{\"prompt\":[1,5],\"return_routed_experts\":true,"
                "\"routed_experts_prompt_start\":3}");
    cr_expect_str_eq(e.param, "routed_experts_prompt_start");
    e = refused("{\"prompt\":[1,5],\"return_routed_experts\":1}");
    cr_expect_str_eq(e.param, "return_routed_experts");
    limits.routing = (routing_shape){0};
    e = refused("{\"prompt\":[1,5],\"return_routed_experts\":true}");
    cr_expect_not_null(strstr(e.message, "not offered"), "%s", e.message);
}
