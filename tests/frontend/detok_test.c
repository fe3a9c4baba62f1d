/* detok: text and pieces equal to the golden ones, and what its header promises for any ids. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/detok.h"
#include "frontend/utf8.h"
#include "tests/frontend/tokenizer_golden.h"

TestSuite(detok, .timeout = 60);

static const char *
string_of(const cJSON *item, const char *key)
{
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(item, key);
    cr_assert(cJSON_IsString(text), "%s", key);
    return text->valuestring;
}

static void
check_case(const golden_tokenizer *g, const cJSON *item)
{
    const int number = cJSON_GetObjectItemCaseSensitive(item, "id")->valueint;
    const bool skip = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(item, "skip_special_tokens"));
    size_t prompt_count, count;
    uint32_t *prompt = golden_ids(cJSON_GetObjectItemCaseSensitive(item, "prompt"), &prompt_count);
    uint32_t *ids = golden_ids(cJSON_GetObjectItemCaseSensitive(item, "ids"), &count);
    const cJSON *piece = cJSON_GetObjectItemCaseSensitive(item, "pieces")->child;
    strbuf sent, all;
    detok d;

    strbuf_init(&sent, 1 << 20);
    strbuf_init(&all, 1 << 20);
    detok_init(&d, g->tok, skip);
    cr_assert_eq(detok_prompt(&d, prompt, prompt_count), MOE_OK);
    for (size_t i = 0; i < count; i++, piece = piece->next) {
        strbuf_reset(&sent);
        cr_assert_eq(detok_push(&d, ids[i], &sent), MOE_OK);
        cr_assert(cJSON_IsString(piece));
        cr_expect_str_eq(strbuf_text(&sent), piece->valuestring, "%s %s: case %d, id %zu", g->name,
                         g->format, number, i);
        strbuf_append(&all, strbuf_text(&sent), sent.len);
    }
    strbuf_reset(&sent);
    detok_flush(&d, &sent);
    cr_expect_str_eq(strbuf_text(&sent), string_of(item, "flush"), "%s %s: case %d, flush", g->name,
                     g->format, number);
    strbuf_append(&all, strbuf_text(&sent), sent.len);
    cr_expect_str_eq(strbuf_text(&all), string_of(item, "text"), "%s %s: case %d", g->name,
                     g->format, number);

    if (prompt_count == 0) {
        strbuf_reset(&sent);
        cr_expect_eq(tokenizer_decode(g->tok, ids, count, skip, &sent), MOE_OK);
        cr_expect_str_eq(strbuf_text(&sent), string_of(item, "text"), "%s %s: case %d, whole",
                         g->name, g->format, number);
    }
    strbuf_fini(&sent);
    strbuf_fini(&all);
    free(prompt);
    free(ids);
}

Test(detok, sends_what_the_golden_cases_send_at_every_step)
{
    golden_set set;
    size_t checked = 0;
    cJSON *root = golden_json("tokenizer/decode.json");
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        const cJSON *item;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(root, "cases"))
        {
            if (strcmp(string_of(item, "tokenizer"), set.items[i].name) != 0) continue;
            check_case(&set.items[i], item);
            checked++;
        }
    }
    fprintf(stderr, "detok: %zu cases x formats\n", checked);
    cr_expect_gt(checked, (size_t)0);
    golden_free(&set);
    cJSON_Delete(root);
}

Test(detok, decoding_gives_back_every_golden_string)
{
    golden_set set;
    cJSON *root = golden_json("tokenizer/strings.json");
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        const cJSON *item;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(root, "cases"))
        {
            size_t len, count;
            strbuf want, got;
            char *text = golden_text(item, &len);
            uint32_t *ids = NULL;
            strbuf_init(&want, 1 << 20);
            strbuf_init(&got, 1 << 20);
            tokenizer_append_unescaped(text, len, &want); /* U+2581 can't come back */
            cr_assert_eq(tokenizer_encode(set.items[i].tok, text, len, TOKENIZER_ADD_BOS, &ids,
                                          &count, NULL),
                         MOE_OK);
            cr_assert_eq(tokenizer_decode(set.items[i].tok, ids, count, true, &got), MOE_OK);
            cr_expect(got.len == want.len &&
                          memcmp(strbuf_text(&got), strbuf_text(&want), got.len) == 0,
                      "%.60s", text);
            strbuf_fini(&want);
            strbuf_fini(&got);
            free(ids);
            free(text);
        }
    }
    golden_free(&set);
    cJSON_Delete(root);
}

/* Ids among which bytes and special tokens are frequent. */
static uint32_t
draw_id(uint64_t *rng, const tokenizer *tok)
{
    *rng = hash_mix(*rng);
    const uint32_t below = *rng & 1 ? 259u : tokenizer_vocab_size(tok);
    return (uint32_t)(*rng >> 8) %
           (below < tokenizer_vocab_size(tok) ? below : tokenizer_vocab_size(tok));
}

Test(detok, every_text_sent_is_valid_utf8_whatever_the_ids)
{
    enum { ROUNDS = 200, IDS = 50 };
    golden_set set;
    uint64_t rng = 1;
    golden_load(&set);
    for (size_t round = 0; round < ROUNDS; round++) {
        const tokenizer *tok = set.items[round % set.count].tok;
        uint32_t ids[IDS];
        strbuf sent, all;
        detok d;
        strbuf_init(&sent, 1 << 16);
        strbuf_init(&all, 1 << 16);
        detok_init(&d, tok, round & 1);
        for (size_t i = 0; i < IDS; i++) {
            ids[i] = draw_id(&rng, tok);
            const size_t before = sent.len;
            cr_assert_eq(detok_push(&d, ids[i], &sent), MOE_OK);
            cr_assert_eq(utf8_valid_len(strbuf_text(&sent) + before, sent.len - before),
                         sent.len - before);
            cr_assert_lt(d.waiting_count, 4);
        }
        detok_flush(&d, &sent);
        cr_assert_eq(tokenizer_decode(tok, ids, IDS, round & 1, &all), MOE_OK);
        cr_expect_str_eq(strbuf_text(&sent), strbuf_text(&all));
        strbuf_fini(&sent);
        strbuf_fini(&all);
    }
    golden_free(&set);
}

Test(detok, refuses_an_id_outside_the_vocabulary_and_goes_on)
{
    golden_set set;
    golden_load(&set);
    const tokenizer *tok = set.items[0].tok;
    const uint32_t outside = tokenizer_vocab_size(tok);
    strbuf sent;
    detok d;
    strbuf_init(&sent, 100);
    detok_init(&d, tok, true);
    cr_expect_eq(detok_prompt(&d, (const uint32_t[]){1, UINT32_MAX}, 2), MOE_ERANGE);
    cr_expect_eq(detok_push(&d, outside, &sent), MOE_ERANGE);
    cr_expect_eq(tokenizer_decode(tok, &outside, 1, true, &sent), MOE_ERANGE);
    cr_expect_eq(sent.len, (size_t)0);
    uint32_t a = tokenizer_token_id(tok, "a", 1);
    cr_expect_eq(detok_push(&d, a, &sent), MOE_OK);
    cr_expect_str_eq(strbuf_text(&sent), "a");
    strbuf_fini(&sent);
    golden_free(&set);
}

Test(detok, token_bytes_are_what_the_token_adds_to_a_text)
{
    golden_set set;
    golden_load(&set);
    for (size_t i = 0; i < set.count; i++) {
        const tokenizer *tok = set.items[i].tok;
        strbuf sb;
        strbuf_init(&sb, 1 << 10);
        tokenizer_token_bytes(tok, tokenizer_token_id(tok, "<0xFF>", 6), &sb);
        tokenizer_token_bytes(tok, tokenizer_token_id(tok, TOKENIZER_SPACE "a", 4), &sb);
        tokenizer_token_bytes(tok, tokenizer_eos_id(tok), &sb);
        tokenizer_token_bytes(tok, tokenizer_vocab_size(tok), &sb);
        cr_expect_str_eq(strbuf_text(&sb), "\xff a</s>");
        strbuf_fini(&sb);
    }
    golden_free(&set);
}
