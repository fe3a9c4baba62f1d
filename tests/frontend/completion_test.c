/* completion: from tokens to text: stop strings, logprobs, and what a choice prints. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/choice.h"
#include "tests/support/paths.h"

#define BYTE(c) (3u + (unsigned char)(c)) /* the token of one byte */

TestSuite(completion, .timeout = 30);

/* ---- stop strings ---- */

static bool
feed(const char *const *stops, uint32_t count, const char *text, uint64_t cuts, strbuf *out,
     bool include, int *matched)
{
    char *list[COMPLETION_STOPS_MAX];
    size_t lens[COMPLETION_STOPS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        list[i] = strdup(stops[i]);
        lens[i] = strlen(stops[i]);
    }
    stop_matcher m;
    stop_matcher_init(&m, list, lens, count, include);
    bool met = false;
    const size_t len = strlen(text);
    for (size_t from = 0; from < len && !met;) {
        size_t n = 1;
        while (from + n < len && !(cuts >> (from + n) & 1))
            n++;
        met = stop_matcher_push(&m, text + from, n, out);
        from += n;
    }
    if (!met) stop_matcher_flush(&m, out);
    *matched = m.matched;
    stop_matcher_fini(&m);
    for (uint32_t i = 0; i < count; i++)
        free(list[i]);
    return met;
}

Test(completion, stops_alike_however_the_text_is_cut)
{
    static const struct {
        const char *stops[3];
        const char *text, *want;
        int matched;
    } cases[] = {
        {{"abc"}, "xxababcyy", "xxab", 0},
        {{"abc"}, "xxabab", "xxabab", -1},
        {{"aab"}, "aaaaab", "aaa", 0},
        {{"abcd", "bc"}, "zabcd", "za", 1},
        {{"bcd", "abcd"}, "zabcd", "z", 1},
        {{"a", "b"}, "a", "", 0},
        {{"longer than the text"}, "longer than", "longer than", -1},
        {{"\n\n", "END"}, "a\nb\nEN\n\nD", "a\nb\nEN", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t count = 0;
        while (count < 3 && cases[i].stops[count] != NULL)
            count++;
        const size_t ways = (size_t)1 << strlen(cases[i].text);
        for (size_t cuts = 0; cuts < ways; cuts++) {
            strbuf out;
            int matched;
            strbuf_init(&out, 1000);
            const bool met =
                feed(cases[i].stops, count, cases[i].text, cuts, &out, false, &matched);
            cr_assert_str_eq(strbuf_text(&out), cases[i].want, "case %zu cuts %zx", i, cuts);
            cr_assert_eq(matched, cases[i].matched, "case %zu cuts %zx", i, cuts);
            cr_assert_eq(met, matched >= 0);
            strbuf_fini(&out);
        }
    }
}

Test(completion, holds_back_only_what_could_become_a_stop_string)
{
    char stop[] = "abab";
    char *const stops[] = {stop};
    const size_t lens[] = {4};
    static const struct {
        const char *push, *out;
    } steps[] = {{"xa", "x"}, {"b", ""}, {"a", ""}, {"c", "abac"}, {"aba", ""}, {"a", "aba"}};
    stop_matcher m;
    strbuf out;
    stop_matcher_init(&m, stops, lens, 1, false);
    strbuf_init(&out, 100);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        strbuf_reset(&out);
        cr_expect_not(stop_matcher_push(&m, steps[i].push, strlen(steps[i].push), &out));
        cr_expect_str_eq(strbuf_text(&out), steps[i].out, "step %zu", i);
    }
    strbuf_fini(&out);
    stop_matcher_fini(&m);
}

/* ---- a choice ---- */

typedef struct bench {
    tokenizer *tok;
    completion_limits limits;
    completion_request request;
    choice choice;
} bench;

static void
bench_start(bench *b, const char *body)
{
    char path[512];
    errbuf eb = {""};
    api_error error;
    cr_assert_eq(tokenizer_load(&b->tok, test_path(path, sizeof path, "models/demo"), &eb), MOE_OK);
    b->limits = (completion_limits){.tok = b->tok, .model = "demo", .max_model_len = 4096};
    completion_limits_measure(&b->limits);
    cr_assert(completion_request_parse(&b->request, &b->limits, body, strlen(body), &error), "%s",
              error.message);
    choice_init(&b->choice, &b->request, &b->request.prompts[0], b->tok, 0, 0, 1u << 20);
}

static void
bench_stop(bench *b)
{
    choice_fini(&b->choice);
    completion_request_fini(&b->request);
    tokenizer_free(b->tok);
}

static bool
push(bench *b, uint32_t token, finish_reason finish, const token_logprobs *lp)
{
    const gen_event event = {.kind = GEN_TOKEN, .token = token, .finish = finish, .logprobs = lp};
    return choice_push(&b->choice, &event);
}

static void
expect_print(bench *b, const char *want)
{
    strbuf out;
    strbuf_init(&out, 1u << 20);
    choice_take(&b->choice, &out);
    cr_expect_str_eq(strbuf_text(&out), want);
    strbuf_fini(&out);
}

Test(completion, never_cuts_a_character)
{
    bench b;
    bench_start(&b, "{\"prompt\":[1,400]}");
    const unsigned char smile[] = {0xf0, 0x9f, 0x99, 0x82};
    for (int i = 0; i < 4; i++) {
        cr_expect_not(push(&b, BYTE(smile[i]), FINISH_NONE, NULL));
        cr_expect_str_eq(strbuf_text(&b.choice.text), i < 3 ? "" : "🙂");
    }
    cr_expect(push(&b, BYTE(0xf0), FINISH_LENGTH, NULL)); /* never completed */
    cr_expect_str_eq(strbuf_text(&b.choice.text), "🙂\xef\xbf\xbd");
    bench_stop(&b);
}

Test(completion, prints_a_choice_once)
{
    bench b;
    bench_start(&b, "{\"prompt\":[1,400]}");
    push(&b, BYTE('a'), FINISH_NONE, NULL);
    expect_print(&b, "{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null,"
                     "\"stop_reason\":null}");
    push(&b, BYTE('b'), FINISH_LENGTH, NULL);
    expect_print(&b, "{\"index\":0,\"text\":\"b\",\"logprobs\":null,\"finish_reason\":\"length\","
                     "\"stop_reason\":null}");
    bench_stop(&b);
}

Test(completion, a_stop_string_in_the_last_token_is_a_stop)
{
    bench b;
    bench_start(&b, "{\"prompt\":[1,400],\"stop\":\"b\"}");
    push(&b, BYTE('a'), FINISH_NONE, NULL);
    cr_expect(push(&b, BYTE('b'), FINISH_LENGTH, NULL));
    expect_print(&b, "{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":\"stop\","
                     "\"stop_reason\":\"b\"}");
    bench_stop(&b);
}

Test(completion, stop_strings_wait_for_min_tokens)
{
    bench b;
    bench_start(&b, "{\"prompt\":[1,400],\"stop\":\"b\",\"min_tokens\":2}");
    cr_expect_not(push(&b, BYTE('b'), FINISH_NONE, NULL));
    cr_expect_not(push(&b, BYTE('b'), FINISH_NONE, NULL));
    cr_expect(push(&b, BYTE('b'), FINISH_NONE, NULL));
    cr_expect_str_eq(strbuf_text(&b.choice.text), "bb");
    bench_stop(&b);
}

Test(completion, shows_the_ending_token_only_if_asked)
{
    static const char *const wants[] = {"", "</s>"};
    for (int i = 0; i < 2; i++) {
        bench b;
        bench_start(&b, i ? "{\"prompt\":[1,400],\"skip_special_tokens\":false,"
                            "\"include_stop_str_in_output\":true}"
                          : "{\"prompt\":[1,400],\"skip_special_tokens\":false}");
        cr_expect(push(&b, 2, FINISH_STOP, NULL));
        cr_expect_str_eq(strbuf_text(&b.choice.text), wants[i]);
        cr_expect_eq(b.choice.completion_tokens, 1);
        bench_stop(&b);
    }
}

Test(completion, lists_logprobs_by_token)
{
    const token_logprobs a = {.logprob = -0.5f,
                              .top_count = 2,
                              .top_ids = {BYTE('x'), BYTE(0xe2)},
                              .top_logprobs = {-0.25f, -1}};
    const token_logprobs c = {.logprob = -0.125f,
                              .top_count = 2,
                              .top_ids = {BYTE('"'), 5000},
                              .top_logprobs = {-0.125f, -3}};
    bench b;
    bench_start(&b, "{\"prompt\":[1,400],\"logprobs\":2}");
    push(&b, BYTE(0xc3), FINISH_NONE, &a);
    push(&b, BYTE(0xb6), FINISH_NONE, &a);
    push(&b, BYTE('"'), FINISH_LENGTH, &c);
    expect_print(
        &b, "{\"index\":0,\"text\":\"ö\\\"\",\"logprobs\":{\"tokens\":[\"bytes:\\\\xc3\","
            "\"bytes:\\\\xb6\",\"\\\"\"],\"token_logprobs\":[-0.5,-0.5,-0.125],\"top_logprobs\":["
            "{\"x\":-0.25,\"bytes:\\\\xe2\":-1,\"bytes:\\\\xc3\":-0.5},"
            "{\"x\":-0.25,\"bytes:\\\\xe2\":-1,\"bytes:\\\\xb6\":-0.5},"
            "{\"\\\"\":-0.125,\"\":-3}],\"text_offset\":[0,0,1]},\"finish_reason\":\"length\","
            "\"stop_reason\":null}");
    bench_stop(&b);
}

Test(completion, lists_no_spelling_twice_and_no_infinity)
{
    /* Two tokens that look alike: the byte of a space, and the piece of one. */
    bench b;
    bench_start(&b, "{\"prompt\":[1,400],\"logprobs\":3}");
    const uint32_t space = tokenizer_token_id(b.tok, "\xe2\x96\x81", 3);
    cr_assert_neq(space, TOKENIZER_ID_NONE);
    const token_logprobs lp = {.logprob = -1.0f / 0.0f,
                               .top_count = 3,
                               .top_ids = {space, BYTE(' '), BYTE('a')},
                               .top_logprobs = {-0.5f, -1, -2}};
    push(&b, BYTE('b'), FINISH_LENGTH, &lp);
    cr_expect_str_eq(strbuf_text(&b.choice.logprobs.tops), "{\" \":-0.5,\"a\":-2,\"b\":-9999}");
    cr_expect_str_eq(strbuf_text(&b.choice.logprobs.values), "-9999");
    bench_stop(&b);
}

Test(completion, echo_with_logprobs_begins_with_the_prompts_tokens)
{
    bench b;
    bench_start(&b, "{\"prompt\":\"hi\",\"logprobs\":0,\"echo\":true}");
    const completion_prompt *p = &b.request.prompts[0];
    token_logprobs lp = {.logprob = -1};
    for (uint32_t i = 1; i < p->count; i++) {
        const gen_event event = {
            .kind = GEN_PROMPT_LOGPROBS, .position = i, .token = p->ids[i], .logprobs = &lp};
        cr_expect_not(choice_push(&b.choice, &event));
    }
    push(&b, BYTE('!'), FINISH_LENGTH, &lp);
    strbuf out;
    strbuf_init(&out, 1u << 20);
    choice_take(&b.choice, &out);
    cJSON *root = cJSON_Parse(strbuf_text(&out));
    const cJSON *l = cJSON_GetObjectItem(root, "logprobs");
    cr_expect_str_eq(cJSON_GetObjectItem(root, "text")->valuestring, "hi!");
    cr_expect_str_eq(cJSON_GetObjectItem(l, "tokens")->child->valuestring, "<s>");
    cr_expect(cJSON_IsNull(cJSON_GetObjectItem(l, "token_logprobs")->child));
    cr_expect(cJSON_IsNull(cJSON_GetObjectItem(l, "top_logprobs")->child));
    cr_expect_eq(cJSON_GetArraySize(cJSON_GetObjectItem(l, "tokens")), (int)p->count + 1);
    const cJSON *offsets = cJSON_GetObjectItem(l, "text_offset");
    cr_expect_eq(cJSON_GetArrayItem(offsets, 0)->valueint, 0);
    cr_expect_eq(cJSON_GetArrayItem(offsets, 1)->valueint, 0);
    cr_expect_eq(cJSON_GetArrayItem(offsets, (int)p->count)->valueint, 2);
    cJSON_Delete(root);
    strbuf_fini(&out);
    bench_stop(&b);
}
