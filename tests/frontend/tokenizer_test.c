/* tokenizer: ids equal to the golden ones from both formats, small vocabularies worked by hand, and
 * files and texts that must be refused. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"
#include "frontend/word_merge.h"
#include "tests/frontend/tiny_tokenizer.h"
#include "tests/frontend/tokenizer_golden.h"

TestSuite(tokenizer, .timeout = 60);

/* Does the text encode to exactly these ids?  Prints where it does not. */
static bool
encodes_to(const tokenizer *tok, const char *text, size_t len, unsigned flags, const uint32_t *want,
           size_t want_count)
{
    errbuf eb = {{0}};
    uint32_t *ids = NULL;
    size_t count = 0, at = 0;
    const moe_err err = tokenizer_encode(tok, text, len, flags, &ids, &count, &eb);
    while (at < count && at < want_count && ids[at] == want[at]) {
        at++;
    }
    const bool equal = !err && count == want_count && at == count;
    if (!equal)
        fprintf(stderr, "%s: %zu ids, want %zu, they differ at %zu; %.60s\n", moe_err_name(err),
                count, want_count, at, text);
    free(ids);
    return equal;
}

static void
check_reading(const golden_tokenizer *g, const cJSON *item, const cJSON *want, unsigned flags)
{
    size_t len, count;
    char *text = golden_text(item, &len);
    uint32_t *ids = golden_ids(want, &count);
    const int id = cJSON_GetObjectItemCaseSensitive(item, "id")->valueint;
    cr_expect(encodes_to(g->tok, text, len, flags, ids, count), "%s %s: string %d, flags %u",
              g->name, g->format, id, flags);

    memmove(ids + 1, ids, count * sizeof ids[0]);
    ids[0] = tokenizer_bos_id(g->tok);
    cr_expect(encodes_to(g->tok, text, len, flags | TOKENIZER_ADD_BOS, ids, count + 1),
              "%s %s: string %d with bos", g->name, g->format, id);
    free(ids);
    free(text);
}

Test(tokenizer, encodes_every_golden_string_from_both_formats)
{
    golden_set set;
    size_t checked = 0, differing = 0;
    cJSON *root = golden_json("tokenizer/strings.json");
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        const golden_tokenizer *g = &set.items[i];
        const cJSON *item;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(root, "cases"))
        {
            const cJSON *want = cJSON_GetObjectItemCaseSensitive(item, g->name);
            const cJSON *sp = cJSON_GetObjectItemCaseSensitive(want, "sp");
            const cJSON *hf = cJSON_GetObjectItemCaseSensitive(want, "hf");
            cr_assert(sp != NULL, "no ids for %s", g->name);
            check_reading(g, item, sp, 0);
            check_reading(g, item, hf ? hf : sp, TOKENIZER_PARSE_SPECIAL);
            checked++;
            differing += hf != NULL;
        }
    }
    fprintf(stderr, "tokenizer: %zu strings x formats, %zu with special tokens spelled out\n",
            checked, differing);
    cr_expect_gt(checked, (size_t)0);
    cr_expect_gt(differing, (size_t)0);
    golden_free(&set);
    cJSON_Delete(root);
}

Test(tokenizer, merging_word_by_word_equals_merging_the_whole_text)
{
    golden_set set;
    cJSON *root = golden_json("tokenizer/strings.json");
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        golden_tokenizer *g = &set.items[i];
        const cJSON *item;
        memset(g->tok->joins, true, sizeof g->tok->joins);
        word_cache_free(g->tok->words);
        g->tok->words = NULL;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(root, "cases"))
        {
            const cJSON *want = cJSON_GetObjectItemCaseSensitive(item, g->name);
            check_reading(g, item, cJSON_GetObjectItemCaseSensitive(want, "sp"), 0);
        }
    }
    golden_free(&set);
    cJSON_Delete(root);
}

/* The rule as word_merge.h states it, in its plainest form: symbols [n] are merged in place. */
static size_t
merge_plainly(const tokenizer *tok, uint32_t *symbols, size_t n)
{
    for (;;) {
        const bpe_merge *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const bpe_merge *m = tokenizer_find_merge(tok, symbols[i], symbols[i + 1]);
            if (m == NULL || (best != NULL && m->rank >= best->rank)) continue;
            best = m;
            at = i;
        }
        if (best == NULL) return n;
        symbols[at] = best->id;
        n--;
        memmove(symbols + at + 1, symbols + at + 2, (n - at - 1) * sizeof symbols[0]);
    }
}

enum { WILD_LETTERS = 3, WILD_TOKENS = 60, WILD_TEXT = 200 };

static uint32_t
draw(uint64_t *rng, uint32_t below)
{
    *rng = hash_mix(*rng);
    return (uint32_t)(*rng >> 20) % below;
}

/* A vocabulary like no training makes it: of a few letters and the space, any two tokens may merge
 * into another in any order of rank, so that what a text becomes at its end can change what it
 * becomes at its beginning. */
static tokenizer *
wild_tokenizer(uint64_t *rng)
{
    char texts[WILD_TOKENS][64];
    strbuf vocab, merges;
    errbuf eb = {{0}};
    strbuf_init(&vocab, 1 << 16);
    strbuf_init(&merges, 1 << 16);
    uint32_t count = 0, merge_count = 0, pairs[WILD_TOKENS][2];
    for (; count < WILD_LETTERS; count++)
        snprintf(texts[count], sizeof texts[0], "%c", 'a' + (int)count);
    snprintf(texts[count++], sizeof texts[0], TOKENIZER_SPACE);
    for (int tries = 0; tries < 400 && count < WILD_TOKENS; tries++) {
        const uint32_t l = draw(rng, count), r = draw(rng, count);
        char whole[130];
        snprintf(whole, sizeof whole, "%s%s", texts[l], texts[r]);
        bool known = strlen(whole) >= sizeof texts[0];
        for (uint32_t i = 0; i < count; i++)
            known |= strcmp(texts[i], whole) == 0;
        if (known) continue;
        pairs[merge_count][0] = l;
        pairs[merge_count++][1] = r;
        memcpy(texts[count++], whole, strlen(whole) + 1);
    }
    for (uint32_t i = 0; i < count; i++)
        strbuf_printf(&vocab, ",\"%s\":%u", texts[i], 259 + i);
    for (uint32_t i = merge_count; i > 1; i--) { /* the later a token, the longer, but its rank? */
        const uint32_t other = draw(rng, i), l = pairs[i - 1][0], r = pairs[i - 1][1];
        memcpy(pairs[i - 1], pairs[other], sizeof pairs[0]);
        pairs[other][0] = l;
        pairs[other][1] = r;
    }
    for (uint32_t i = 0; i < merge_count; i++)
        strbuf_printf(&merges, "%s[\"%s\",\"%s\"]", i ? "," : "", texts[pairs[i][0]],
                      texts[pairs[i][1]]);
    strbuf json;
    tokenizer *tok = NULL;
    strbuf_init(&json, 1 << 20);
    tiny_write_json(&json,
                    &(tiny_json){.vocab = strbuf_text(&vocab), .merges = strbuf_text(&merges)});
    cr_assert_eq(tokenizer_load_json(&tok, json.text, json.len, &eb), MOE_OK, "%s", eb.text);
    strbuf_fini(&json);
    strbuf_fini(&vocab);
    strbuf_fini(&merges);
    return tok;
}

Test(tokenizer, windows_of_any_size_give_what_merging_plainly_gives)
{
    static const uint32_t windows[] = {WORD_WINDOW_MIN, 7, 16, WORD_WINDOW, 100};
    uint64_t rng = 1;
    for (int round = 0; round < 150; round++) {
        tokenizer *tok = wild_tokenizer(&rng);
        for (int texts = 0; texts < 20; texts++) {
            uint32_t want[WILD_TEXT];
            const uint32_t n = 1 + draw(&rng, WILD_TEXT), kinds = 1 + draw(&rng, WILD_LETTERS);
            for (uint32_t i = 0; i < n; i++)
                want[i] = draw(&rng, 20) == 0 ? UNKNOWN_CHARACTER | 'z' : 259 + draw(&rng, kinds);
            word_merger m;
            uint32_t symbols[WILD_TEXT];
            memcpy(symbols, want, sizeof symbols);
            const size_t want_count = merge_plainly(tok, want, n);
            for (size_t i = 0; i < want_count; i++)
                if (want[i] >= UNKNOWN_CHARACTER) want[i] = 'z' + 3;
            for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
                id_list got = {0};
                word_merger_init(&m, tok);
                m.window = windows[w];
                for (uint32_t i = 0; i < n; i++)
                    cr_assert(word_merger_add(&m, symbols[i]));
                word_merger_finish(&m, &got);
                cr_assert_not(got.failed);
                cr_assert(got.count == want_count &&
                              memcmp(got.ids, want, want_count * sizeof want[0]) == 0,
                          "round %d, window %u: %zu ids, want %zu", round, windows[w], got.count,
                          want_count);
                word_merger_fini(&m);
                free(got.ids);
            }
        }
        tokenizer_free(tok);
    }
}

Test(tokenizer, words_cut_where_no_merge_joins_and_remembered_give_what_merging_plainly_gives)
{
    static const char alphabet[] = "abc  cz";
    uint64_t rng = 7;
    for (int round = 0; round < 150; round++) {
        tokenizer *tok = wild_tokenizer(&rng);
        for (int texts = 0; texts < 40; texts++) { /* short ones come again, from the cache */
            char text[WILD_TEXT];
            uint32_t want[2 * WILD_TEXT];
            const uint32_t n = 1 + draw(&rng, texts % 2 ? 6 : WILD_TEXT - 1);
            size_t count = 0, ids = 0;
            want[count++] = 262; /* the space in front */
            for (size_t i = 0; i < n; i++) {
                text[i] = alphabet[draw(&rng, 7)];
                want[count++] = text[i] == ' '   ? 262
                                : text[i] == 'z' ? UNKNOWN_CHARACTER | 'z'
                                                 : 259u + (uint32_t)(text[i] - 'a');
            }
            ids = merge_plainly(tok, want, count);
            for (size_t i = 0; i < ids; i++)
                if (want[i] >= UNKNOWN_CHARACTER) want[i] = 'z' + 3;
            cr_assert(encodes_to(tok, text, n, 0, want, ids), "round %d: \"%.*s\"", round, (int)n,
                      text);
        }
        tokenizer_free(tok);
    }
}

static char *
repeat(const char *pattern, size_t len)
{
    char *text = malloc(len + 1);
    cr_assert_not_null(text);
    const size_t n = strlen(pattern);
    for (size_t i = 0; i < len; i++) {
        text[i] = pattern[i % n];
    }
    text[len] = '\0';
    return text;
}

Test(tokenizer, encodes_a_megabyte_without_spaces)
{
    static const char *const patterns[] = {
        "a", "abcdefghijklmnopqrstuvwxyz", "<", "<s>", " ", "\xf0\x9f\x98\x80"};
    const size_t len = (size_t)1 << 20;
    golden_set set;
    golden_load(&set);
    for (size_t p = 0; p < sizeof patterns / sizeof patterns[0]; p++) {
        char *text = repeat(patterns[p], len / strlen(patterns[p]) * strlen(patterns[p]));
        for (size_t i = 0; i < set.count; i++) {
            uint32_t *ids = NULL;
            size_t count = 0;
            cr_expect_eq(tokenizer_encode(set.items[i].tok, text, strlen(text),
                                          TOKENIZER_PARSE_SPECIAL, &ids, &count, NULL),
                         MOE_OK);
            cr_expect_gt(count, (size_t)0);
            free(ids);
        }
        free(text);
    }
    golden_free(&set);
}

Test(tokenizer, names_its_tokens)
{
    golden_set set;
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        const tokenizer *tok = set.items[i].tok;
        const uint32_t n = tokenizer_vocab_size(tok);
        size_t len;
        for (uint32_t id = 0; id < n; id++) {
            const char *text = tokenizer_token_text(tok, id, &len);
            cr_assert_not_null(text);
            cr_assert_eq(tokenizer_token_id(tok, text, len), id);
        }
        cr_expect_null(tokenizer_token_text(tok, n, &len));
        cr_expect_eq(tokenizer_token_id(tok, "no such token", 13), TOKENIZER_ID_NONE);
        cr_expect(tokenizer_is_special(tok, tokenizer_bos_id(tok)));
        cr_expect(tokenizer_is_special(tok, tokenizer_eos_id(tok)));
        cr_expect_not(tokenizer_is_special(tok, n - 1));
        cr_expect_not(tokenizer_is_special(tok, n));
        cr_expect_not(tokenizer_is_special(tok, UINT32_MAX));
    }
    golden_free(&set);
}

static moe_err
load_tiny(tokenizer **out, const tiny_json *t, errbuf *eb)
{
    strbuf sb;
    strbuf_init(&sb, 1 << 20);
    tiny_write_json(&sb, t);
    cr_assert_not(sb.failed);
    const moe_err err = tokenizer_load_json(out, sb.text, sb.len, eb);
    strbuf_fini(&sb);
    return err;
}

static tokenizer *
tiny(const tiny_json *t)
{
    tokenizer *tok = NULL;
    errbuf eb = {{0}};
    cr_assert_eq(load_tiny(&tok, t, &eb), MOE_OK, "%s", eb.text);
    return tok;
}

#define VOCAB ",\"\u2581\":259,\"a\":260,\"b\":261,\"ab\":262,\"bb\":263,\"\u2581a\":264"

Test(tokenizer, merges_best_rank_first_and_leftmost_among_equals)
{
    tokenizer *tok =
        tiny(&(tiny_json){.vocab = VOCAB, .merges = "\"b b\",[\"a\",\"b\"],\"\u2581 a\""});
    static const struct {
        const char *text;
        uint32_t ids[8];
        size_t count;
    } cases[] = {
        {"", {0}, 0},
        {"a", {264}, 1},
        {"ab", {259, 262}, 2},        /* ab before _a */
        {"abb", {264, 263}, 2},       /* bb before ab */
        {"abbb", {264, 263, 261}, 3}, /* the left bb */
        {" a", {259, 264}, 2},        /* a prefix in front of a space, too */
        {"a\xe2\x96\x81 b", {264, 259, 259, 261}, 4},
        {"c", {259, 0x63 + 3}, 2}, /* a byte */
        {"\xc3\xa9", {259, 0xc3 + 3, 0xa9 + 3}, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect(
            encodes_to(tok, cases[i].text, strlen(cases[i].text), 0, cases[i].ids, cases[i].count),
            "\"%s\"", cases[i].text);
    }
    const uint32_t nul[] = {264, 3, 261};
    cr_expect(encodes_to(tok, "a\0b", 3, 0, nul, 3));
    tokenizer_free(tok);
}

Test(tokenizer, honours_a_merge_across_a_space)
{
    /* "a_" joins a word with the space behind it, so that words are not independent. */
    tokenizer *tok = tiny(
        &(tiny_json){.vocab = VOCAB ",\"a\u2581\":265", .merges = "\"a \u2581\",\"\u2581 a\""});
    const uint32_t want[] = {259, 265, 261};
    cr_expect(tok->joins['a'][' ']);
    cr_expect_not(tok->joins['b'][' ']);
    cr_expect(encodes_to(tok, "a b", 3, 0, want, 3));
    tokenizer_free(tok);
}

Test(tokenizer, cuts_out_the_longest_special_token_only_when_asked)
{
    tokenizer *tok = tiny(&(tiny_json){.vocab = VOCAB,
                                       .merges = "\"\u2581 a\"",
                                       .added = TINY_ADDED
                                       ",{\"id\":265,\"content\":\"<s>a\",\"special\":true}"
                                       ",{\"id\":266,\"content\":\"b!\",\"special\":false}"});
    const uint32_t cut[] = {264, 265, 265, 266, 264};
    cr_expect(encodes_to(tok, "a<s>a<s>ab!a", 12, TOKENIZER_PARSE_SPECIAL, cut, 5));
    cr_expect(tokenizer_is_special(tok, 265));
    cr_expect_not(tokenizer_is_special(tok, 266));
    const uint32_t bos = 1, plain[] = {259, '<' + 3, 's' + 3, '>' + 3};
    cr_expect(encodes_to(tok, "<s>", 3, 0, plain, 4));
    cr_expect(encodes_to(tok, "<s>", 3, TOKENIZER_PARSE_SPECIAL, &bos, 1));
    tokenizer_free(tok);
}

Test(tokenizer, no_text_becomes_a_special_token_unasked)
{
    /* Even one that is spelled as a single character is bytes in a text. */
    tokenizer *tok =
        tiny(&(tiny_json){.vocab = VOCAB,
                          .merges = "\"\u2581 a\"",
                          .added = TINY_ADDED ",{\"id\":261,\"content\":\"b\",\"special\":true}"});
    const uint32_t plain[] = {264, 'b' + 3}, cut[] = {264, 261};
    cr_expect(encodes_to(tok, "ab", 2, 0, plain, 2));
    cr_expect(encodes_to(tok, "ab", 2, TOKENIZER_PARSE_SPECIAL, cut, 2));
    tokenizer_free(tok);
}

Test(tokenizer, refuses_a_text_that_is_not_utf8_and_names_the_byte)
{
    static const struct {
        const char *text;
        size_t len;
        const char *at;
    } cases[] = {
        {"\x80", 1, "byte 0"},
        {"ab\xff", 3, "byte 2"},
        {"a\xc0\x80", 3, "byte 1"},
        {"\xe2\x82", 2, "byte 0"},
        {"x\xed\xa0\x80", 4, "byte 1"},
        {"\xf4\x90\x80\x80", 4, "byte 0"},
        {"\xc3\xa9\xe0\x9f\xbf", 5, "byte 2"},
    };
    tokenizer *tok = tiny(&(tiny_json){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        errbuf eb = {{0}};
        uint32_t *ids = (uint32_t *)&eb;
        size_t count = 7;
        cr_expect_eq(tokenizer_encode(tok, cases[i].text, cases[i].len, TOKENIZER_ADD_BOS, &ids,
                                      &count, &eb),
                     MOE_EINVAL);
        cr_expect_null(ids);
        cr_expect_eq(count, (size_t)0);
        cr_expect_not_null(strstr(eb.text, cases[i].at), "%s", eb.text);
    }
    tokenizer_free(tok);
}

Test(tokenizer, refuses_a_text_above_the_limit)
{
    tokenizer *tok = tiny(&(tiny_json){0});
    char *text = repeat(" a", TOKENIZER_TEXT_MAX + 1);
    uint32_t *ids = NULL;
    size_t count = 0;
    cr_expect_eq(tokenizer_encode(tok, text, TOKENIZER_TEXT_MAX + 1, 0, &ids, &count, NULL),
                 MOE_ERANGE);
    cr_expect_eq(tokenizer_encode(tok, text, TOKENIZER_TEXT_MAX, 0, &ids, &count, NULL), MOE_OK);
    free(ids);
    free(text);
    tokenizer_free(tok);
}

Test(tokenizer, refuses_a_broken_or_unknown_tokenizer_json_and_says_why)
{
#define BPE "\"type\":\"BPE\",\"byte_fallback\":true,"
    static const struct {
        tiny_json file;
        moe_err err;
        const char *says;
    } cases[] = {
        {{.merges = "\"a b\""}, MOE_EINVAL, "merges[0]: \"a\" and \"b\": the first"},
        {{.vocab = VOCAB, .merges = "\"a b\",\"a x\""}, MOE_EINVAL, "merges[1]: \"a\" and \"x\""},
        {{.vocab = VOCAB, .merges = "\"a a\""}, MOE_EINVAL, "the result"},
        {{.vocab = VOCAB, .merges = "\"a b\",[\"a\",\"b\"]"}, MOE_EINVAL, "merged twice"},
        {{.vocab = VOCAB, .merges = "\"ab\""}, MOE_EINVAL, "not two tokens"},
        {{.vocab = VOCAB, .merges = "\"a b b\""}, MOE_EINVAL, "not two tokens"},
        {{.vocab = VOCAB, .merges = "[\"a\"]"}, MOE_EINVAL, "neither"},
        {{.vocab = VOCAB, .merges = "[\"a\",\"b\",\"b\"]"}, MOE_EINVAL, "neither"},
        {{.vocab = VOCAB, .merges = "7"}, MOE_EINVAL, "neither"},
        {{.vocab = ",\"a\":5"}, MOE_EINVAL, "5 is given twice"},
        {{.vocab = ",\"a\":300"}, MOE_EINVAL, "300 is outside"},
        {{.vocab = ",\"a\":-1"}, MOE_EINVAL, "id must be"},
        {{.vocab = ",\"a\":1.5"}, MOE_EINVAL, "id must be"},
        {{.vocab = ",\"a\":4294967296"}, MOE_EINVAL, "id must be"},
        {{.vocab = ",\"a\":\"x\""}, MOE_EINVAL, "id must be"},
        {{.vocab = ",\"\":259"}, MOE_EINVAL, "empty"},
        {{.vocab = ",\"\xff\":259"}, MOE_EINVAL, "not UTF-8"},
        {{.vocab = ",\"a\":259,\"a\":260"}, MOE_EINVAL, "both spelled \"a\""},
        {{.added = "{\"id\":1,\"content\":\"<x>\",\"special\":true}"}, MOE_EINVAL, "id 1 is"},
        {{.added = "{\"id\":900,\"content\":\"<x>\"}"}, MOE_EINVAL, "900 is outside"},
        {{.added = "{\"id\":259,\"content\":\"<s>\"}"}, MOE_EINVAL, "both spelled"},
        {{.added = "{\"id\":259}"}, MOE_EINVAL, "content"},
        {{.added = "{\"content\":\"x\"}"}, MOE_EINVAL, "id must be"},
        {{.added = "{\"id\":1,\"content\":\"<s>\",\"lstrip\":true}"}, MOE_EUNSUPPORTED, "lstrip"},
        {{.added = "{\"id\":8,\"content\":\"<0x05>\"}"},
         MOE_EUNSUPPORTED,
         "no token for byte 0x05"},
        {{.model = "\"type\":\"Unigram\","}, MOE_EUNSUPPORTED, "Unigram"},
        {{.model = "\"type\":\"BPE\","}, MOE_EUNSUPPORTED, "byte_fallback"},
        {{.model = BPE "\"ignore_merges\":true,"}, MOE_EUNSUPPORTED, "ignore_merges"},
        {{.model = BPE "\"dropout\":0.1,"}, MOE_EUNSUPPORTED, "dropout"},
        {{.model = BPE "\"end_of_word_suffix\":\"x\","}, MOE_EUNSUPPORTED, "end_of_word_suffix"},
        {{.model = BPE "\"vocab\":[],"}, MOE_EINVAL, "vocab"},
        {{.model = BPE "\"merges\":7,"}, MOE_EINVAL, "merges"},
        {{.normalizer = "{\"type\":\"NFKC\"}"}, MOE_EUNSUPPORTED, "NFKC"},
        {{.normalizer = "{\"type\":\"Prepend\",\"prepend\":\"x\"}"}, MOE_EUNSUPPORTED, "Prepend"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":7}"}, MOE_EUNSUPPORTED, "Sequence"},
        {{.normalizer = "7"}, MOE_EUNSUPPORTED, "normalizer"},
        {{.decoder = "null"}, MOE_EUNSUPPORTED, "decoder"},
        {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[]}"}, MOE_EUNSUPPORTED, "decoder"},
        {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"WordPiece\"}]}"},
         MOE_EUNSUPPORTED,
         "WordPiece"},
        {{.more = ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}"}, MOE_EUNSUPPORTED, "Metaspace"},
        {{.more = "]"}, MOE_EINVAL, "not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tokenizer *tok = (tokenizer *)&cases;
        errbuf eb = {{0}};
        cr_expect_eq(load_tiny(&tok, &cases[i].file, &eb), cases[i].err, "case %zu: %s", i,
                     eb.text);
        cr_expect_null(tok);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "case %zu: %s", i, eb.text);
    }
    static const char *const roots[] = {"",
                                        "{}",
                                        "[]",
                                        "7",
                                        "{\"model\":{}}",
                                        "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true}}",
                                        "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"
                                        "\"vocab\":{},\"merges\":[]}}"};
    for (size_t i = 0; i < sizeof roots / sizeof roots[0]; i++) {
        tokenizer *tok = NULL;
        errbuf eb = {{0}};
        cr_expect_neq(tokenizer_load_json(&tok, roots[i], strlen(roots[i]), &eb), MOE_OK);
        cr_expect_neq(eb.text[0], '\0', "%s", roots[i]);
    }
}

typedef struct tiny_piece {
    const char *text;
    float score;
    unsigned type;
} tiny_piece;

/* pieces end with a NULL text. */
static void
write_tiny_model(strbuf *sb, const tiny_piece *pieces)
{
    strbuf_init(sb, 1 << 20);
    tiny_write_model_head(sb);
    for (; pieces->text != NULL; pieces++) {
        tiny_write_piece(sb, pieces->text, pieces->score, pieces->type);
    }
}

static const tiny_piece spaced[] = {{TOKENIZER_SPACE, -9, 1},
                                    {"a", -9, 1},
                                    {"b", -9, 1},
                                    {"aa", -5, 1},
                                    {"ab", -5, 1},
                                    {"bb", -1, 1},
                                    {NULL, 0, 0}};

Test(tokenizer, a_model_file_merges_by_score_and_not_by_id)
{
    strbuf sb;
    tokenizer *tok = NULL;
    errbuf eb = {{0}};
    write_tiny_model(&sb, spaced);
    tiny_write_specs(&sb, 2, true, false);
    cr_assert_eq(tokenizer_load_model(&tok, sb.text, sb.len, &eb), MOE_OK, "%s", eb.text);
    strbuf_fini(&sb);
    const uint32_t abb[] = {259, 260, 264}, aab[] = {259, 262, 261};
    cr_expect(encodes_to(tok, "abb", 3, 0, abb, 3)); /* bb has the best score and the last id */
    cr_expect(encodes_to(tok, "aab", 3, 0, aab, 3)); /* aa and ab are equal: the left one */
    cr_expect_eq(tokenizer_bos_id(tok), 1u);
    cr_expect_eq(tokenizer_eos_id(tok), 2u);
    tokenizer_free(tok);
}

Test(tokenizer, refuses_a_model_file_cut_anywhere)
{
    strbuf sb;
    write_tiny_model(&sb, spaced);
    tiny_write_specs(&sb, 2, true, false);
    for (size_t len = 0; len < sb.len; len++) {
        tokenizer *tok = (tokenizer *)&sb;
        errbuf eb = {{0}};
        char *exact = malloc(len + (len == 0));
        cr_assert_not_null(exact);
        memcpy(exact, sb.text, len);
        cr_expect_neq(tokenizer_load_model(&tok, exact, len, &eb), MOE_OK, "cut at %zu", len);
        cr_expect_null(tok);
        cr_expect_neq(eb.text[0], '\0');
        free(exact);
    }
    strbuf_fini(&sb);
}

Test(tokenizer, refuses_a_broken_or_unknown_model_file_and_says_why)
{
    static const struct {
        tiny_piece pieces[3];
        unsigned model_type;
        bool byte_fallback, remove_extra;
        const char *tail;
        moe_err err;
        const char *says;
    } cases[] = {
        {{{0}}, 1, true, false, "", MOE_EUNSUPPORTED, "model_type"},
        {{{0}}, 2, false, false, "", MOE_EUNSUPPORTED, "byte_fallback"},
        {{{0}}, 2, true, true, "", MOE_EUNSUPPORTED, "remove_extra_whitespaces"},
        {{{0}}, 2, true, false, "\x1a\x03\x12\x01x", MOE_EUNSUPPORTED, "normalization map"},
        {{{0}}, 2, true, false, "\x2a\x03\x12\x01x", MOE_EUNSUPPORTED, "normalization map"},
        {{{0}}, 2, true, false, "\x0b", MOE_EINVAL, "malformed"},     /* a group */
        {{{0}}, 2, true, false, "\x0a\x7f", MOE_EINVAL, "malformed"}, /* past the end */
        {{{0}}, 2, true, false, "\x0a\x02\x0a\x05", MOE_EINVAL, "piece 259"},
        {{{0}},
         2,
         true,
         false,
         "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
         MOE_EINVAL,
         "malformed"},
        {{{"a", 0, 4}}, 2, true, false, "", MOE_EUNSUPPORTED, "user-defined"},
        {{{"a", 0, 5}}, 2, true, false, "", MOE_EUNSUPPORTED, "unused"},
        {{{"a", 0, 9}}, 2, true, false, "", MOE_EINVAL, "unknown type 9"},
        {{{"a", 0, 6}}, 2, true, false, "", MOE_EINVAL, "<0xNN>"},
        {{{"<s>", 0, 1}}, 2, true, false, "", MOE_EINVAL, "both spelled"},
        {{{"a", 0, 1}, {"a", 0, 1}}, 2, true, false, "", MOE_EINVAL, "both spelled"},
        {{{"", 0, 1}}, 2, true, false, "", MOE_EINVAL, "empty"},
        {{{"\xff", 0, 1}}, 2, true, false, "", MOE_EINVAL, "not UTF-8"},
        {{{"a", 0, 1}, {"ab", 0, 1}}, 2, true, false, "", MOE_EUNSUPPORTED, "U+0062"},
        {{{"a", __builtin_nanf(""), 1}}, 2, true, false, "", MOE_EINVAL, "not a number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        strbuf sb;
        tokenizer *tok = NULL;
        errbuf eb = {{0}};
        write_tiny_model(&sb, cases[i].pieces);
        tiny_write_specs(&sb, cases[i].model_type, cases[i].byte_fallback, cases[i].remove_extra);
        strbuf_puts(&sb, cases[i].tail);
        cr_expect_eq(tokenizer_load_model(&tok, sb.text, sb.len, &eb), cases[i].err, "case %zu: %s",
                     i, eb.text);
        cr_expect_null(tok);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "case %zu: %s", i, eb.text);
        strbuf_fini(&sb);
    }
}

static void
write_file(const char *dir, const char *name, const char *bytes, size_t len)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    cr_assert_eq(fwrite(bytes, 1, len, file), len);
    fclose(file);
}

static void
remove_folder(const char *dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model",
                                        "tokenizer_config.json"};
    char path[512];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

Test(tokenizer, loads_a_folder_preferring_json_and_takes_bos_and_eos_from_the_config)
{
    char dir[] = "/tmp/tokenizer_test.XXXXXX";
    tokenizer *tok = NULL;
    errbuf eb = {{0}};
    strbuf sb;
    cr_assert_not_null(mkdtemp(dir));

    cr_expect_eq(tokenizer_load(&tok, dir, &eb), MOE_ENOTFOUND);
    cr_expect_not_null(strstr(eb.text, "neither"));

    write_tiny_model(&sb, spaced);
    tiny_write_specs(&sb, 2, true, false);
    write_file(dir, "tokenizer.model", sb.text, sb.len);
    strbuf_fini(&sb);
    cr_assert_eq(tokenizer_load(&tok, dir, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(tokenizer_vocab_size(tok), 265u);
    tokenizer_free(tok);

    strbuf_init(&sb, 1 << 20);
    tiny_write_json(&sb, &(tiny_json){0});
    write_file(dir, "tokenizer.json", sb.text, sb.len);
    strbuf_fini(&sb);
    const char *config = "{\"bos_token\":{\"content\":\"</s>\"},\"eos_token\":\"<s>\"}";
    write_file(dir, "tokenizer_config.json", config, strlen(config));
    cr_assert_eq(tokenizer_load(&tok, dir, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(tokenizer_vocab_size(tok), 259u);
    cr_expect_eq(tokenizer_bos_id(tok), 2u);
    cr_expect_eq(tokenizer_eos_id(tok), 1u);
    tokenizer_free(tok);

    config = "{\"bos_token\":\"<none>\"}";
    write_file(dir, "tokenizer_config.json", config, strlen(config));
    cr_expect_eq(tokenizer_load(&tok, dir, &eb), MOE_EINVAL);
    cr_expect_null(tok);
    cr_expect_not_null(strstr(eb.text, "<none>"), "%s", eb.text);

    write_file(dir, "tokenizer.json", "{", 1); /* broken is not absent */
    cr_expect_eq(tokenizer_load(&tok, dir, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "tokenizer.json"), "%s", eb.text);
    remove_folder(dir);
}
