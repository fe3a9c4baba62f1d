#include "frontend/logprobs_text.h"

#include <math.h>
#include <string.h>

#include "frontend/utf8.h"

/* JSON has no infinity; this is what OpenAI prints for a probability of zero. */
#define LOGPROB_FLOOR (-9999.0)

void
logprobs_text_init(logprobs_text *l, size_t max)
{
    strbuf_init(&l->tokens, max);
    strbuf_init(&l->values, max);
    strbuf_init(&l->tops, max);
    strbuf_init(&l->offsets, max);
}

void
logprobs_text_fini(logprobs_text *l)
{
    strbuf_fini(&l->tokens);
    strbuf_fini(&l->values);
    strbuf_fini(&l->tops);
    strbuf_fini(&l->offsets);
}

void
logprobs_text_reset(logprobs_text *l)
{
    strbuf_reset(&l->tokens);
    strbuf_reset(&l->values);
    strbuf_reset(&l->tops);
    strbuf_reset(&l->offsets);
}

/* The token's text on its own, in `spelling`. */
static void
spell(const tokenizer *tok, uint32_t token, strbuf *spelling)
{
    char copy[TOKENIZER_TOKEN_MAX];
    strbuf_reset(spelling);
    tokenizer_token_bytes(tok, token, spelling);
    const size_t len = spelling->len;
    if (utf8_valid_len(strbuf_text(spelling), len) == len || len > sizeof copy) return;
    memcpy(copy, spelling->text, len);
    strbuf_reset(spelling);
    strbuf_puts(spelling, "bytes:");
    for (size_t i = 0; i < len; i++)
        strbuf_printf(spelling, "\\x%02x", (unsigned char)copy[i]);
}

static void
put_number(strbuf *out, double v)
{
    strbuf_printf(out, "%.9g", isfinite(v) ? v : LOGPROB_FLOOR);
}

/* Is the quoted key, with its colon, in text [len]?  An unescaped quote after nothing or a comma
 * opens a key, since no value holds one. */
static bool
has_key(const char *text, size_t len, const char *key, size_t key_len)
{
    const char *at = text, *end = text + len;
    while ((at = memmem(at, (size_t)(end - at), key, key_len)) != NULL) {
        if (at == text || at[-1] == ',') return true;
        at++;
    }
    return false;
}

/* Append "spelling": value unless the object (from `start` on) names that spelling already: two
 * tokens may look alike, and a key must not come twice.  The more likely one, listed first, stays.
 */
static void
put_top(strbuf *tops, size_t start, const strbuf *spelling, double value)
{
    const size_t before = tops->len;
    strbuf_puts(tops, before == start ? "" : ",");
    const size_t key = tops->len;
    strbuf_json_string(tops, strbuf_text(spelling), spelling->len);
    strbuf_puts(tops, ":");
    if (tops->failed) return;
    if (has_key(tops->text + start, before - start, tops->text + key, tops->len - key)) {
        tops->len = before;
        tops->text[before] = '\0';
        return;
    }
    put_number(tops, value);
}

static void
put_tops(logprobs_text *l, const tokenizer *tok, uint32_t token, const token_logprobs *lp,
         uint32_t top_max, strbuf *spelling)
{
    const uint32_t count = lp->top_count < top_max ? lp->top_count : top_max;
    strbuf_puts(&l->tops, "{");
    const size_t start = l->tops.len;
    bool listed = false;
    for (uint32_t i = 0; i < count; i++) {
        spell(tok, lp->top_ids[i], spelling);
        put_top(&l->tops, start, spelling, lp->top_logprobs[i]);
        listed = listed || lp->top_ids[i] == token;
    }
    if (!listed) {
        spell(tok, token, spelling);
        put_top(&l->tops, start, spelling, lp->logprob);
    }
    strbuf_puts(&l->tops, "}");
}

void
logprobs_text_add(logprobs_text *l, const tokenizer *tok, uint32_t token, const token_logprobs *lp,
                  uint32_t top_max, uint64_t offset)
{
    const char *comma = l->tokens.len == 0 ? "" : ",";
    strbuf spelling;
    strbuf_init(&spelling, 8 * TOKENIZER_TOKEN_MAX);
    spell(tok, token, &spelling);
    strbuf_puts(&l->tokens, comma);
    strbuf_json_string(&l->tokens, strbuf_text(&spelling), spelling.len);
    strbuf_printf(&l->offsets, "%s%llu", comma, (unsigned long long)offset);
    strbuf_puts(&l->values, comma);
    strbuf_puts(&l->tops, comma);
    if (lp == NULL) {
        strbuf_puts(&l->values, "null");
        strbuf_puts(&l->tops, "null");
    } else {
        put_number(&l->values, lp->logprob);
        put_tops(l, tok, token, lp, top_max, &spelling);
    }
    strbuf_fini(&spelling);
}

void
logprobs_text_print(const logprobs_text *l, strbuf *out)
{
    strbuf_puts(out, "{\"tokens\":[");
    strbuf_append(out, strbuf_text(&l->tokens), l->tokens.len);
    strbuf_puts(out, "],\"token_logprobs\":[");
    strbuf_append(out, strbuf_text(&l->values), l->values.len);
    strbuf_puts(out, "],\"top_logprobs\":[");
    strbuf_append(out, strbuf_text(&l->tops), l->tops.len);
    strbuf_puts(out, "],\"text_offset\":[");
    strbuf_append(out, strbuf_text(&l->offsets), l->offsets.len);
    strbuf_puts(out, "]}");
}

size_t
logprobs_text_bytes(const logprobs_text *l)
{
    return l->tokens.len + l->values.len + l->tops.len + l->offsets.len;
}

bool
logprobs_text_failed(const logprobs_text *l)
{
    return l->tokens.failed || l->values.failed || l->tops.failed || l->offsets.failed;
}
