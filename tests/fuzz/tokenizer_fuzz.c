/* Fuzz target: the bytes as tokenizer.json, as tokenizer.model, and as a text that must come back
 * from encoding and decoding. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/detok.h"
#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"
#include "tests/frontend/tiny_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char sample_text[] = "a<s>ab  abb\xc3\xa9\xf0\x9f\x98\x80 </s>\n";

static void
check(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Encoding must succeed and be decodable; true to the text when the tokenizer is known to be. */
static void
round_trip(const tokenizer *tok, const char *text, size_t len, bool faithful)
{
    strbuf want, got;
    strbuf_init(&want, (size_t)1 << 22);
    strbuf_init(&got, (size_t)1 << 26);
    tokenizer_append_unescaped(text, len, &want);
    for (unsigned flags = 0; flags < 4; flags++) {
        uint32_t *ids = NULL;
        size_t count = 0;
        check(tokenizer_encode(tok, text, len, flags, &ids, &count, NULL) == MOE_OK, "encode");
        strbuf_reset(&got);
        check(tokenizer_decode(tok, ids, count, true, &got) == MOE_OK, "decode");
        check(utf8_valid_len(strbuf_text(&got), got.len) == got.len, "not UTF-8");
        if (faithful && !(flags & TOKENIZER_PARSE_SPECIAL))
            check(got.len == want.len &&
                      memcmp(strbuf_text(&got), strbuf_text(&want), got.len) == 0,
                  "the text did not come back");
        free(ids);
    }
    strbuf_fini(&want);
    strbuf_fini(&got);
}

static void
try_loader(moe_err (*load)(tokenizer **, const char *, size_t, errbuf *), const char *bytes,
           size_t len)
{
    tokenizer *tok = NULL;
    errbuf eb = {{0}};
    const moe_err err = load(&tok, bytes, len, &eb);
    check((err == MOE_OK) == (tok != NULL), "result and error disagree");
    check(err == MOE_OK || eb.text[0] != '\0', "an error without a text");
    if (tok != NULL) round_trip(tok, sample_text, sizeof sample_text - 1, false);
    tokenizer_free(tok);
}

static tokenizer *
fixed_tokenizer(void)
{
    tokenizer *tok = NULL;
    errbuf eb = {{0}};
    strbuf sb;
    strbuf_init(&sb, 1 << 16);
    tiny_write_json(&sb,
                    &(tiny_json){.vocab = ",\"\u2581\":259,\"\u2581\u2581\":260,\"a\":261,"
                                          "\"e\":262,\"ae\":263,\"\u2581a\":264,\"aeae\":265",
                                 .merges = "\"a e\",\"ae ae\",\"\u2581 a\",\"\u2581 \u2581\""});
    check(tokenizer_load_json(&tok, sb.text, sb.len, &eb) == MOE_OK, eb.text);
    strbuf_fini(&sb);
    return tok;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tokenizer *fixed;
    const char *bytes = (const char *)data;
    if (fixed == NULL) fixed = fixed_tokenizer();
    try_loader(tokenizer_load_json, bytes, size);
    try_loader(tokenizer_load_model, bytes, size);

    /* The text up to the first byte that is wrong, which must be refused. */
    const size_t valid = utf8_valid_len(bytes, size);
    uint32_t *ids = NULL;
    size_t count = 0;
    check(valid == size ||
              tokenizer_encode(fixed, bytes, size, 0, &ids, &count, NULL) == MOE_EINVAL,
          "a text that is not UTF-8 was accepted");
    round_trip(fixed, bytes, valid, true);
    return 0;
}
