#include "frontend/detok.h"

#include <string.h>

#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

void
detok_init(detok *d, const tokenizer *tok, bool skip_special)
{
    *d = (detok){.tok = tok, .skip_special = skip_special, .at_start = true};
}

/* out is NULL while the prompt is taken in. */
static void
send(strbuf *out, const char *text, size_t len)
{
    if (out != NULL) strbuf_append(out, text, len);
}

void
detok_flush(detok *d, strbuf *out)
{
    for (; d->waiting_count > 0; d->waiting_count--) {
        send(out, REPLACEMENT, sizeof REPLACEMENT - 1);
    }
}

static void
push_byte(detok *d, uint8_t byte, strbuf *out)
{
    d->waiting[d->waiting_count++] = (char)byte;
    while (d->waiting_count > 0) {
        uint32_t code_point;
        const int n = utf8_decode(d->waiting, d->waiting_count, &code_point);
        if (n == 0) return;
        if (n > 0) { /* it was unfinished before, so that this byte is its last */
            send(out, d->waiting, d->waiting_count);
            d->waiting_count = 0;
            return;
        }
        send(out, REPLACEMENT, sizeof REPLACEMENT - 1);
        d->waiting_count--;
        memmove(d->waiting, d->waiting + 1, d->waiting_count);
    }
}

static void
push_piece(detok *d, const token *t, strbuf *out)
{
    if (out == NULL) return;
    const char *text = d->tok->text + t->offset;
    const bool drops = d->at_start && d->tok->strip_prefix && t->kind == TOKEN_PIECE &&
                       t->len >= TOKENIZER_SPACE_LEN &&
                       memcmp(text, TOKENIZER_SPACE, TOKENIZER_SPACE_LEN) == 0;
    strbuf_append(out, d->tok->shown + t->shown + drops, (size_t)t->shown_len - drops);
}

static moe_err
push(detok *d, uint32_t id, strbuf *out)
{
    if (id >= d->tok->token_count) return MOE_ERANGE;
    const token *t = &d->tok->tokens[id];
    if (t->kind == TOKEN_BYTE) {
        push_byte(d, t->byte, out);
    } else {
        detok_flush(d, out);
        if (t->kind == TOKEN_SPECIAL && d->skip_special) return MOE_OK; /* still at the start */
        push_piece(d, t, out);
    }
    d->at_start = false;
    return MOE_OK;
}

moe_err
detok_prompt(detok *d, const uint32_t *ids, size_t n)
{
    moe_err err = MOE_OK;
    for (size_t i = 0; i < n && !err; i++) {
        err = push(d, ids[i], NULL);
    }
    return err;
}

moe_err
detok_push(detok *d, uint32_t id, strbuf *out)
{
    return push(d, id, out);
}

moe_err
tokenizer_decode(const tokenizer *tok, const uint32_t *ids, size_t n, bool skip_special,
                 strbuf *out)
{
    detok d;
    moe_err err = MOE_OK;
    detok_init(&d, tok, skip_special);
    for (size_t i = 0; i < n && !err; i++) {
        err = push(&d, ids[i], out);
    }
    if (!err) detok_flush(&d, out);
    return err;
}
