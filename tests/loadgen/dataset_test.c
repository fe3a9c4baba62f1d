/* dataset and entries: prompts worked by hand, and errors that say where. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "loadgen/dataset.h"
#include "loadgen/entries.h"
#include "tests/support/paths.h"

TestSuite(dataset, .timeout = 10);

static errbuf eb;

static moe_err
count_words(void *ctx, const char *text, int64_t *count, errbuf *e)
{
    (void)ctx;
    if (strcmp(text, "unreachable") == 0) return err_set(e, MOE_ECLOSED, "server is gone");
    *count = 1;
    for (; *text != '\0'; text++) {
        *count += *text == ' ';
    }
    return MOE_OK;
}

static dataset_config
config_of(dataset_kind kind, size_t count)
{
    return (dataset_config){.kind = kind,
                            .count = count,
                            .seed = 1,
                            .output_len = kind == DATASET_CUSTOM ? 77 : 0,
                            .count_tokens = count_words,
                            .input_len = 10,
                            .random_output_len = 20,
                            .vocab_first = 3,
                            .vocab_end = 50};
}

static moe_err
parse(const dataset_config *c, const char *text, dataset *out)
{
    return dataset_parse(c, "set.file", text, strlen(text), out, &eb);
}

Test(dataset, random_prompts_have_their_lengths_and_ids_and_are_the_seeds)
{
    dataset_config c = config_of(DATASET_RANDOM, 6);
    dataset a, b, other;
    cr_assert_eq(dataset_load(&c, &a, &eb), MOE_OK);
    cr_assert_eq(dataset_load(&c, &b, &eb), MOE_OK);
    c.seed = 2;
    cr_assert_eq(dataset_load(&c, &other, &eb), MOE_OK);
    for (size_t i = 0; i < 6; i++) {
        cJSON *ids = cJSON_Parse(a.prompts[i].json), *id;
        cr_assert_eq(cJSON_GetArraySize(ids), 10);
        cJSON_ArrayForEach(id, ids) cr_expect(json_is_int(id, 3, 49));
        cJSON_Delete(ids);
        cr_expect_eq(a.prompts[i].token_count, 10);
        cr_expect_eq(a.prompts[i].max_tokens, 20);
        cr_expect_str_eq(a.prompts[i].json, b.prompts[i].json);
        cr_expect_str_neq(a.prompts[i].json, other.prompts[i].json);
        if (i) cr_expect_str_neq(a.prompts[i].json, a.prompts[i - 1].json);
    }
    dataset_fini(&a);
    dataset_fini(&b);
    dataset_fini(&other);
}

Test(dataset, random_lengths_vary_within_the_ratio_after_a_shared_prefix)
{
    dataset_config c = config_of(DATASET_RANDOM, 200);
    c.range_ratio = 0.5;
    c.prefix_len = 4;
    dataset a;
    cr_assert_eq(dataset_load(&c, &a, &eb), MOE_OK);
    int64_t shortest = 1000, longest = 0;
    const char *comma = a.prompts[0].json;
    for (int i = 0; i < 4; i++) {
        comma = strchr(comma + 1, ',');
    }
    const size_t prefix_bytes = (size_t)(comma - a.prompts[0].json);
    for (size_t i = 0; i < 200; i++) {
        const prompt *p = &a.prompts[i];
        cr_expect_eq(strncmp(p->json, a.prompts[0].json, prefix_bytes), 0);
        if (p->token_count < shortest) shortest = p->token_count;
        if (p->token_count > longest) longest = p->token_count;
        cr_expect(p->max_tokens >= 10 && p->max_tokens <= 30);
    }
    cr_expect_eq(shortest, 4 + 5);
    cr_expect_eq(longest, 4 + 15);
    dataset_fini(&a);
}

Test(dataset, random_refuses_lengths_and_ids_out_of_range)
{
    for (int i = 0; i < 6; i++) {
        dataset_config c = config_of(DATASET_RANDOM, 2);
        if (i == 0) c.input_len = 0;
        if (i == 1) c.input_len = -1;
        if (i == 2) c.random_output_len = 0;
        if (i == 3) c.vocab_end = c.vocab_first;
        if (i == 4) c.range_ratio = 1;
        if (i == 5) c.count = 0;
        dataset a;
        cr_expect_eq(dataset_load(&c, &a, &eb), MOE_ERANGE, "case %d", i);
        cr_expect_null(a.prompts);
    }
}

Test(dataset, custom_takes_texts_and_ids_and_repeats_when_short)
{
    const dataset_config c = config_of(DATASET_CUSTOM, 5);
    const char *text = "{\"prompt\": \"say \\\"hi\\\"\"}\r\n\n"
                       "  {\"prompt\": [1, 2,  3], \"max_tokens\": 4}\n"
                       "{\"prompt\": \"x\", \"output_len\": 9, \"other\": {\"a\": []}}";
    dataset a;
    cr_assert_eq(parse(&c, text, &a), MOE_OK, "%s", eb.text);
    cr_assert_eq(a.count, 5);
    cr_expect_eq(a.repeated, 2);
    cr_expect_str_eq(a.prompts[0].json, "\"say \\\"hi\\\"\"");
    cr_expect_eq(a.prompts[0].token_count, -1);
    cr_expect_eq(a.prompts[0].max_tokens, 77);
    cr_expect_str_eq(a.prompts[1].json, "[1,2,3]");
    cr_expect_eq(a.prompts[1].token_count, 3);
    cr_expect_eq(a.prompts[1].max_tokens, 4);
    cr_expect_eq(a.prompts[2].max_tokens, 9);
    cr_expect_str_eq(a.prompts[3].json, a.prompts[0].json);
    cr_expect_str_eq(a.prompts[4].json, a.prompts[1].json);
    dataset_fini(&a);
}

Test(dataset, sharegpt_keeps_what_the_studys_filter_keeps)
{
#define TURNS(q, a) "{\"conversations\":[{\"value\":\"" q "\"},{\"value\":\"" a "\"}]}"
    const char *text = " [" TURNS("too short", "a b c d") "," TURNS("a b c d", "x y z") ", " TURNS(
        "q one two three",
        "a one two three four") ","
                                "{\"conversations\":[{\"value\":\"alone with no answer\"}]}," TURNS(
                                    "q [1] ] three \\\" \\\\", "b one two three") "]\n";
    const dataset_config c = config_of(DATASET_SHAREGPT, 2);
    dataset a;
    cr_assert_eq(parse(&c, text, &a), MOE_OK, "%s", eb.text);
    cr_expect_eq(a.repeated, 0);
    cr_expect_str_eq(a.prompts[0].json, "\"q one two three\"");
    cr_expect_eq(a.prompts[0].token_count, 4);
    cr_expect_eq(a.prompts[0].max_tokens, 5);
    cr_expect_str_eq(a.prompts[1].json, "\"q [1] ] three \\\" \\\\\"");
    cr_expect_eq(a.prompts[1].max_tokens, 4);
    dataset_fini(&a);

    dataset_config limited = c; /* the filter is of the whole answer all the same */
    limited.output_max = 3;
    cr_assert_eq(parse(&limited, text, &a), MOE_OK, "%s", eb.text);
    cr_expect_str_eq(a.prompts[0].json, "\"q one two three\"");
    cr_expect(a.prompts[0].max_tokens == 3 && a.prompts[1].max_tokens == 3);
    dataset_fini(&a);

    /* 1024 tokens are still kept, 1025 are not; neither is a sum above 2048. */
    char *words = malloc(9000);
    const size_t kept[][3] = {{1024, 1024, 1}, {1025, 4, 0}, {1024, 1025, 0}, {4, 2044, 1}};
    for (size_t k = 0; k < 4; k++) {
        char *at = words + sprintf(words, "[{\"conversations\":[{\"value\":\"w");
        for (size_t i = 1; i < kept[k][0]; i++) {
            at = stpcpy(at, " w");
        }
        at = stpcpy(at, "\"},{\"value\":\"w");
        for (size_t i = 1; i < kept[k][1]; i++) {
            at = stpcpy(at, " w");
        }
        strcpy(at, "\"}]}]");
        dataset_config one = config_of(DATASET_SHAREGPT, 1);
        cr_expect_eq(parse(&one, words, &a), kept[k][2] ? MOE_OK : MOE_ENOTFOUND, "case %zu", k);
        dataset_fini(&a);
    }
    free(words);
}

Test(dataset, prefix_repetition_has_as_many_prefixes_as_asked_for)
{
    dataset_config c = config_of(DATASET_PREFIX_REPETITION, 60);
    c.prefix_len = 8;
    c.prefix_count = 3;
    dataset a;
    cr_assert_eq(dataset_load(&c, &a, &eb), MOE_OK);
    char *seen[4] = {NULL};
    size_t kinds = 0;
    for (size_t i = 0; i < 60; i++) {
        char *end = a.prompts[i].json;
        for (int k = 0; k < 8; k++) {
            end = strchr(end + 1, ',');
        }
        cr_expect_eq(a.prompts[i].token_count, 18);
        *end = '\0';
        size_t k = 0;
        while (k < kinds && strcmp(seen[k], a.prompts[i].json) != 0)
            k++;
        cr_assert_lt(k, 3);
        if (k == kinds) seen[kinds++] = a.prompts[i].json;
    }
    cr_expect_eq(kinds, 3);
    dataset_fini(&a);
    c.prefix_count = 0;
    cr_expect_eq(dataset_load(&c, &a, &eb), MOE_ERANGE);
}

#define TURN(text) "{\"value\":\"" text "\"}"
#define Q(n) TURN("q" n " two three four")
#define A(n) TURN("a" n " two three four five")

Test(dataset, multi_turn_makes_a_request_of_each_question)
{
    const char *text = "[{\"conversations\":[" Q("1") "," A("1") "," Q("2") "," A("2") "," Q(
        "3") "]},"
             "{\"conversations\":[" TURN("short") "," A(
                 "x") "]},"
                      "{\"conversations\":[" Q("4") "," A("4") "," Q("5") "," A("5") "," TURN(
                          "hm") ","
                                "" A("6") "," TURN("") "," A("7") "]}]";
    static const struct {
        const char *json;
        uint32_t turn;
    } want[] = {{"\"q1 two three four\"", 0},
                {"\"q2 two three four\"", 1},
                {"\"q4 two three four\"", 0},
                {"\"q5 two three four\"", 1},
                {"\"hm\"", 2},
                {"\"q1 two three four\"", 0},
                {"\"q2 two three four\"", 1}};
    dataset_config c = config_of(DATASET_MULTI_TURN, 7);
    c.think_s = 0.5;
    dataset a, b;
    cr_assert_eq(parse(&c, text, &a), MOE_OK, "%s", eb.text);
    for (size_t i = 0; i < 7; i++) {
        const prompt *p = &a.prompts[i];
        cr_expect_str_eq(p->json, want[i].json, "%zu: %s", i, p->json);
        cr_expect_eq(p->turn, want[i].turn, "%zu", i);
        cr_expect_eq(p->max_tokens, 5);
        cr_expect_eq(p->token_count, p->turn ? -1 : 4);
        cr_expect_eq(p->think_ns > 0, p->turn > 0);
    }
    cr_expect_eq(a.repeated, 2);
    c.turn_max = 1;
    c.count = 2;
    cr_assert_eq(parse(&c, text, &b), MOE_OK);
    cr_expect_str_eq(b.prompts[1].json, "\"q4 two three four\"");
    dataset_fini(&a);
    dataset_fini(&b);
}

Test(dataset, a_session_ends_where_it_would_grow_too_long)
{
    char *text = malloc(40000), *at = text;
    at = stpcpy(at, "[{\"conversations\":[");
    for (int turn = 0; turn < 8; turn++) {
        at = stpcpy(at, turn ? ",{\"value\":\"w" : "{\"value\":\"w");
        for (int i = 1; i < 500; i++) {
            at = stpcpy(at, " w");
        }
        at = stpcpy(at, "\"}");
    }
    strcpy(at, "]}]");
    const dataset_config c = config_of(DATASET_MULTI_TURN, 3);
    dataset a;
    cr_assert_eq(parse(&c, text, &a), MOE_OK, "%s", eb.text);
    cr_expect(a.prompts[0].turn == 0 && a.prompts[1].turn == 1 && a.prompts[2].turn == 0);
    dataset_fini(&a);
    free(text);
}

#define OF(domain, n) "{\"domain\":\"" domain "\",\"conversations\":[" Q(n) "," A(n) "]}"

Test(dataset, expert_skew_takes_domains_as_often_as_asked)
{
    const char *text = "[" OF("a", "1") "," OF("b", "2") "," OF("c", "3") "," OF(
        "a", "4") ","
                  "{\"domain\":\"b\",\"conversations\":[" TURN("short") "," A("5") "]}]";
    static const struct {
        dataset_skew skew;
        int64_t hot;
        double alpha;
        const char *order;
        double share[3]; /* of the domains in their order */
    } cases[] = {
        {DATASET_SKEW_UNIFORM, 0, 0, NULL, {1. / 3, 1. / 3, 1. / 3}},
        {DATASET_SKEW_KHOT, 1, 0, NULL, {1, 0, 0}},
        {DATASET_SKEW_KHOT, 2, 0, "c,b", {0.5, 0.5, 0}},
        {DATASET_SKEW_ZIPF, 0, 1, "b,a,c", {6. / 11, 3. / 11, 2. / 11}},
        {DATASET_SKEW_ZIPF, 0, 0, NULL, {1. / 3, 1. / 3, 1. / 3}},
    };
    enum { N = 3000 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dataset_config c = config_of(DATASET_EXPERT_SKEW, N);
        c.skew = cases[i].skew;
        c.skew_hot = cases[i].hot;
        c.skew_alpha = cases[i].alpha;
        c.domains = cases[i].order;
        dataset a;
        cr_assert_eq(parse(&c, text, &a), MOE_OK, "case %zu: %s", i, eb.text);
        cr_assert_eq(a.domain_count, 3);
        size_t times[3] = {0};
        for (size_t p = 0; p < N; p++) {
            times[a.prompts[p].domain]++;
        }
        for (size_t d = 0; d < 3; d++) {
            cr_expect_float_eq((double)times[d] / N, cases[i].share[d], 0.04, "case %zu, %s: %zu",
                               i, a.domains[d], times[d]);
        }
        cr_expect_geq(a.repeated, N - 4);
        if (cases[i].order != NULL) cr_expect_eq(a.domains[0][0], cases[i].order[0]);
        dataset_fini(&a);
    }
}

Test(dataset, expert_skew_says_what_it_lacks)
{
    static const struct {
        const char *text, *domains, *want;
        int64_t hot;
        moe_err err;
    } cases[] = {
        {"[" OF("a", "1") "]", NULL, "set.file: 2 hot domains: the file has 1", 2, MOE_ERANGE},
        {"[" OF("a", "1") "]", "z", "no usable entry of domain \"z\"", 1, MOE_ENOTFOUND},
        {"[" OF("a", "1") "]", "a,,b", "domains \"a,,b\"", 1, MOE_EINVAL},
        {"[" OF("a", "1") ",{\"conversations\":[]}]", NULL, "set.file: entry 2: has no \"domain\"",
         1, MOE_EINVAL},
        {"[" OF("a", "1") ",{\"domain\":3}]", NULL, "entry 2: domain must be", 1, MOE_EINVAL},
        {"[" OF("a", "1") ",3]", NULL, "entry 2: must be a JSON object", 1, MOE_EINVAL},
        {"[]", NULL, "none of its 0 entries", 1, MOE_ENOTFOUND},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dataset_config c = config_of(DATASET_EXPERT_SKEW, 2);
        c.skew = DATASET_SKEW_KHOT;
        c.skew_hot = cases[i].hot;
        c.domains = cases[i].domains;
        dataset a;
        cr_expect_eq(parse(&c, cases[i].text, &a), cases[i].err, "case %zu: %s", i, eb.text);
        cr_expect(strstr(eb.text, cases[i].want), "case %zu: %s", i, eb.text);
        cr_expect(a.prompts == NULL && a.domain_count == 0);
    }
}

/* As a server with the demo tokenizer would count, as far as the filter is concerned. */
static moe_err
count_quarter_bytes(void *ctx, const char *text, int64_t *count, errbuf *e)
{
    (void)ctx;
    (void)e;
    *count = (int64_t)strlen(text) / 4 + 4;
    return MOE_OK;
}

Test(dataset, the_sets_that_ship_are_usable_to_the_last_entry)
{
    static const struct {
        const char *file;
        size_t count, domains;
    } sets[] = {{"loadgen/data/study50.json", 50, 5}, {"loadgen/data/domains.json", 135, 5}};
    for (size_t i = 0; i < 2; i++) {
        char path[1000];
        dataset_config c = config_of(DATASET_SHAREGPT, sets[i].count);
        c.count_tokens = count_quarter_bytes;
        c.path = test_path(path, sizeof path, sets[i].file);
        dataset a;
        cr_assert_eq(dataset_load(&c, &a, &eb), MOE_OK, "%s", eb.text);
        cr_expect_eq(a.repeated, 0, "%s", path);
        dataset_fini(&a);
        c.kind = DATASET_EXPERT_SKEW;
        cr_assert_eq(dataset_load(&c, &a, &eb), MOE_OK, "%s", eb.text);
        cr_expect_eq(a.domain_count, sets[i].domains);
        dataset_fini(&a);
    }
}

Test(dataset, errors_name_the_file_and_the_line_or_entry)
{
    static const struct {
        dataset_kind kind;
        const char *text, *want;
        moe_err err;
    } cases[] = {
        {DATASET_CUSTOM, "{\"prompt\":\"a\"}\n\n{\"prompt\":", "set.file: line 3: not JSON",
         MOE_EINVAL},
        {DATASET_CUSTOM, "{\"prompt\":7}", "set.file: line 1: prompt must be", MOE_EINVAL},
        {DATASET_CUSTOM, "{\"prompt\":\"\"}", "set.file: line 1: prompt must be", MOE_EINVAL},
        {DATASET_CUSTOM, "{\"prompt\":[]}", "prompt must not be empty", MOE_EINVAL},
        {DATASET_CUSTOM, "{\"prompt\":[1,-2]}", "prompt[1] must be a token id", MOE_EINVAL},
        {DATASET_CUSTOM, "{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens must be", MOE_EINVAL},
        {DATASET_CUSTOM, "[1]", "set.file: line 1: must be a JSON object", MOE_EINVAL},
        {DATASET_CUSTOM, "\n  \n", "set.file: none of its 0 entries", MOE_ENOTFOUND},
        {DATASET_SHAREGPT, "{}", "set.file: not a JSON array", MOE_EINVAL},
        {DATASET_SHAREGPT, "", "set.file: not a JSON array", MOE_EINVAL},
        {DATASET_SHAREGPT, "[{\"a\":\"b]\"}", "does not end", MOE_EINVAL},
        {DATASET_SHAREGPT, "[{\"a\":\"b", "does not end", MOE_EINVAL},
        {DATASET_SHAREGPT, "[]x", "more text after", MOE_EINVAL},
        {DATASET_SHAREGPT, "[]", "none of its 0 entries", MOE_ENOTFOUND},
        {DATASET_SHAREGPT, "[{\"conversations\":[]},]", "set.file: entry 2: not JSON", MOE_EINVAL},
        {DATASET_SHAREGPT, "[{\"id\":1}]", "entry 1: conversations must be", MOE_EINVAL},
        {DATASET_SHAREGPT, "[{\"conversations\":[{\"value\":\"a\"},3]}]", "conversations[1]",
         MOE_EINVAL},
        {DATASET_SHAREGPT, "[" TURNS("unreachable", "a") "]", "set.file: entry 1: server is gone",
         MOE_ECLOSED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const dataset_config c = config_of(cases[i].kind, 3);
        dataset a;
        cr_expect_eq(parse(&c, cases[i].text, &a), cases[i].err, "case %zu: %s", i, eb.text);
        cr_expect(strstr(eb.text, cases[i].want) != NULL, "case %zu: %s", i, eb.text);
        cr_expect(a.prompts == NULL && a.count == 0);
    }
    dataset_config c = config_of(DATASET_CUSTOM, 1);
    dataset a;
    cr_expect_eq(dataset_load(&c, &a, &eb), MOE_EINVAL);
    c.path = "/nonexistent/prompts.jsonl";
    cr_expect_eq(dataset_load(&c, &a, &eb), MOE_ENOTFOUND);
    cr_expect(strstr(eb.text, c.path));
}

Test(dataset, a_shuffle_keeps_every_entry_and_is_the_seeds)
{
    const char *lines = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
    entries a, b;
    cr_assert_eq(entries_from_lines(lines, strlen(lines), &a, &eb), MOE_OK);
    cr_assert_eq(entries_from_lines(lines, strlen(lines), &b, &eb), MOE_OK);
    entries_shuffle(&a, 4);
    entries_shuffle(&b, 4);
    unsigned seen = 0;
    bool moved = false;
    for (size_t i = 0; i < 9; i++) {
        cr_expect_eq(a.at[i].number, b.at[i].number);
        cr_expect_eq((size_t)(a.at[i].text[0] - '0'), a.at[i].number);
        seen |= 1u << a.at[i].number;
        moved = moved || a.at[i].number != i + 1;
    }
    cr_expect_eq(seen, 0x3feu);
    cr_expect(moved);
    entries_fini(&a);
    entries_fini(&b);
}
