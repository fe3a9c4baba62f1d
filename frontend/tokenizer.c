#include "frontend/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"
#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"
#include "frontend/word_merge.h"

/* Design notes.
 *
 * A text is cut into words at every pair of characters that no merge ever joins (joins[][]); words
 * don't see each other, so that each can be looked up in a cache of words, or merged on its own
 * (word_merge).  In prose and source code that gives words of a few letters; a text without such
 * pairs is one word, which takes linear time, too. */

typedef struct encoder {
    const tokenizer *tok;
    word_merger merger;
    id_list out;
} encoder;

static void
emit(encoder *e, uint32_t id)
{
    if (id_list_reserve(&e->out, 1)) e->out.ids[e->out.count++] = id;
}

/* Merge one word; `space`: a U+2581 in front of it. */
static void
merge_word(encoder *e, bool space, const char *text, size_t len)
{
    const tokenizer *tok = e->tok;
    word_merger *m = &e->merger;
    bool added = !space || word_merger_add(m, tok->space_symbol);
    for (size_t at = 0; at < len && added;) {
        const unsigned char c = (unsigned char)text[at];
        if (c < 0x80) {
            added = word_merger_add(m, tok->ascii_symbols[c]);
            at++;
            continue;
        }
        uint32_t code_point = 0;
        const int n = utf8_decode(text + at, len - at, &code_point);
        assert(n > 0); /* checked by the caller */
        added = word_merger_add(m, tokenizer_symbol(tok, text + at, (size_t)n, code_point));
        at += (size_t)n;
    }
    e->out.failed |= !added;
    word_merger_finish(m, &e->out);
}

static void
encode_word(encoder *e, bool space, const char *text, size_t len)
{
    const tokenizer *tok = e->tok;
    /* Only where a ' ' in a text is U+2581 are both the same key. */
    const bool cacheable =
        tok->words != NULL && len + space <= WORD_CACHE_BYTES_MAX && (!space || tok->escape_spaces);
    if (!cacheable) {
        merge_word(e, space, text, len);
        return;
    }
    if (!id_list_reserve(&e->out, WORD_CACHE_IDS_MAX)) return;
    const word_key key = word_cache_key(space, text, len);
    const uint32_t found = word_cache_find(tok->words, &key, e->out.ids + e->out.count);
    e->out.count += found;
    if (found != 0) return;
    const size_t before = e->out.count;
    merge_word(e, space, text, len);
    if (!e->out.failed)
        word_cache_put(tok->words, &key, e->out.ids + before, e->out.count - before);
}

/* A stretch of valid UTF-8 without special tokens to cut out. */
static void
encode_stretch(encoder *e, const char *text, size_t len)
{
    const tokenizer *tok = e->tok;
    bool space = tok->add_prefix;
    for (size_t at = 0; at < len && !e->out.failed;) {
        size_t end = at + 1;
        while (end < len && tok->joins[(unsigned char)text[end - 1]][(unsigned char)text[end]]) {
            end++;
        }
        encode_word(e, space, text + at, end - at);
        space = false;
        at = end;
    }
}

static void
encode_cutting_special(encoder *e, const char *text, size_t len)
{
    size_t from = 0, at = 0;
    while (at < len && !e->out.failed) {
        uint32_t id = 0;
        const size_t n = e->tok->cut_first[(unsigned char)text[at]]
                             ? tokenizer_find_cut(e->tok, text + at, len - at, &id)
                             : 0;
        if (n == 0) {
            at++;
            continue;
        }
        encode_stretch(e, text + from, at - from);
        emit(e, id);
        at += n;
        from = at;
    }
    encode_stretch(e, text + from, len - from);
}

moe_err
tokenizer_encode(const tokenizer *tok, const char *text, size_t len, unsigned flags,
                 uint32_t **ids_out, size_t *count, errbuf *eb)
{
    *ids_out = NULL;
    *count = 0;
    if (len > TOKENIZER_TEXT_MAX)
        return err_set(eb, MOE_ERANGE, "the text has %zu bytes, at most %zu can be encoded", len,
                       TOKENIZER_TEXT_MAX);
    const size_t valid = utf8_valid_len(text, len);
    if (valid != len) return err_set(eb, MOE_EINVAL, "the text is not UTF-8 at byte %zu", valid);

    encoder e;
    e.tok = tok;
    e.out = (id_list){0};
    word_merger_init(&e.merger, tok);
    if ((flags & TOKENIZER_ADD_BOS) && tok->bos_id != TOKENIZER_ID_NONE) emit(&e, tok->bos_id);
    if (flags & TOKENIZER_PARSE_SPECIAL)
        encode_cutting_special(&e, text, len);
    else
        encode_stretch(&e, text, len);
    word_merger_fini(&e.merger);
    if (e.out.failed) {
        free(e.out.ids);
        return err_set(eb, MOE_ENOMEM, "out of memory encoding %zu bytes", len);
    }
    *ids_out = e.out.ids;
    *count = e.out.count;
    return MOE_OK;
}

uint32_t
tokenizer_vocab_size(const tokenizer *tok)
{
    return tok->token_count;
}

uint32_t
tokenizer_bos_id(const tokenizer *tok)
{
    return tok->bos_id;
}

uint32_t
tokenizer_eos_id(const tokenizer *tok)
{
    return tok->eos_id;
}

const char *
tokenizer_token_text(const tokenizer *tok, uint32_t id, size_t *len)
{
    *len = 0;
    if (id >= tok->token_count) return NULL;
    *len = tok->tokens[id].len;
    return tok->text + tok->tokens[id].offset;
}

bool
tokenizer_is_special(const tokenizer *tok, uint32_t id)
{
    return id < tok->token_count && tok->tokens[id].kind == TOKEN_SPECIAL;
}

void
tokenizer_append_unescaped(const char *text, size_t len, strbuf *out)
{
    const char *end = text + len, *space;
    while ((space = memmem(text, (size_t)(end - text), TOKENIZER_SPACE, TOKENIZER_SPACE_LEN))) {
        strbuf_append(out, text, (size_t)(space - text));
        strbuf_append(out, " ", 1);
        text = space + TOKENIZER_SPACE_LEN;
    }
    strbuf_append(out, text, (size_t)(end - text));
}

void
tokenizer_token_bytes(const tokenizer *tok, uint32_t id, strbuf *out)
{
    if (id >= tok->token_count) return;
    size_t len;
    const char *bytes = tokenizer_shown_bytes(tok, id, &len);
    strbuf_append(out, bytes, len);
}

/* A special token's name in tokenizer_config.json: a string, or an object with "content". */
static moe_err
configured_id(const tokenizer *tok, const cJSON *config, const char *key, uint32_t *id, errbuf *eb)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);
    if (cJSON_IsObject(item)) item = cJSON_GetObjectItemCaseSensitive(item, "content");
    if (item == NULL || cJSON_IsNull(item)) return MOE_OK;
    if (!cJSON_IsString(item))
        return err_set(eb, MOE_EINVAL, "%s must be a string or an object with \"content\"", key);
    const char *name = item->valuestring;
    const uint32_t found = tokenizer_token_id(tok, name, strlen(name));
    if (found == TOKENIZER_ID_NONE)
        return err_set(eb, MOE_EINVAL, "%s \"%s\" is not in the vocabulary", key, name);
    *id = found;
    return MOE_OK;
}

static moe_err
read_config(tokenizer *tok, const char *path, errbuf *eb)
{
    char *bytes = NULL;
    size_t len = 0;
    moe_err err = file_read(path, TOKENIZER_FILE_MAX, &bytes, &len, eb);
    if (err) return err == MOE_ENOTFOUND ? MOE_OK : err;
    cJSON *config = NULL;
    err = json_parse(bytes, len, &config, eb);
    free(bytes);
    if (!err) err = configured_id(tok, config, "bos_token", &tok->bos_id, eb);
    if (!err) err = configured_id(tok, config, "eos_token", &tok->eos_id, eb);
    cJSON_Delete(config);
    return err ? err_wrap(eb, err, "%s", path) : MOE_OK;
}

typedef moe_err (*load_fn)(tokenizer **out, const char *bytes, size_t len, errbuf *eb);

static moe_err
load_file(tokenizer **out, const char *path, load_fn load, errbuf *eb)
{
    char *bytes = NULL;
    size_t len = 0;
    moe_err err = file_read(path, TOKENIZER_FILE_MAX, &bytes, &len, eb);
    if (err) return err;
    err = load(out, bytes, len, eb);
    free(bytes);
    return err ? err_wrap(eb, err, "%s", path) : MOE_OK;
}

moe_err
tokenizer_load(tokenizer **out, const char *model_dir, errbuf *eb)
{
    static const struct {
        const char *name;
        load_fn load;
    } formats[] = {{"tokenizer.json", tokenizer_load_json},
                   {"tokenizer.model", tokenizer_load_model}};
    char path[4096];
    moe_err err = MOE_ENOTFOUND;

    *out = NULL;
    if (strlen(model_dir) + 32 > sizeof path)
        return err_set(eb, MOE_ERANGE, "the path of the model's folder is too long");
    for (size_t i = 0; i < sizeof formats / sizeof formats[0] && err == MOE_ENOTFOUND; i++) {
        snprintf(path, sizeof path, "%s/%s", model_dir, formats[i].name);
        err = load_file(out, path, formats[i].load, eb);
    }
    if (err == MOE_ENOTFOUND)
        return err_set(eb, err, "%s: neither tokenizer.json nor tokenizer.model", model_dir);
    if (err) return err;

    snprintf(path, sizeof path, "%s/tokenizer_config.json", model_dir);
    err = read_config(*out, path, eb);
    if (err) {
        tokenizer_free(*out);
        *out = NULL;
    }
    return err;
}
