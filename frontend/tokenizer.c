#include "frontend/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"
#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"

/* Design notes.
 *
 * Merging keeps the symbols of a text in a doubly linked list and the candidate merges in a heap of
 * (rank, position) words.  A candidate is checked when it is popped: if the pair that now begins at
 * its position has the same rank, the merge is due; if not, the pair it was made for is gone.
 *
 * No merge of a usual vocabulary joins a word with the space after it, so a text can be merged word
 * by word with the same result (words_independent): the heap stays in the cache.  A text without
 * spaces, or a vocabulary where that does not hold, is one long word: O(n log n). */

/* A symbol is a token, a character the vocabulary lacks (no merge has such an id), or merged away.
 */
#define UNKNOWN_CHARACTER 0x80000000u
#define MERGED_AWAY UINT32_MAX
#define NO_SYMBOL UINT32_MAX

typedef struct symbol {
    uint32_t id;
    uint32_t previous;
    uint32_t next;
} symbol;

typedef struct encoder {
    const tokenizer *tok;
    symbol *symbols; /* the word in hand */
    uint32_t symbol_count;
    uint32_t symbol_capacity;
    uint64_t *heap; /* rank << 32 | position */
    uint32_t heap_count;
    uint32_t heap_capacity;
    uint32_t *ids; /* the result */
    size_t id_count;
    size_t id_capacity;
    bool failed; /* out of memory */
} encoder;

static void
emit(encoder *e, uint32_t id)
{
    if (e->id_count == e->id_capacity) {
        const size_t capacity = e->id_capacity ? e->id_capacity * 2 : 64;
        uint32_t *ids = realloc(e->ids, capacity * sizeof ids[0]);
        if (ids == NULL) {
            e->failed = true;
            return;
        }
        e->ids = ids;
        e->id_capacity = capacity;
    }
    e->ids[e->id_count++] = id;
}

static void
heap_push(encoder *e, uint64_t word)
{
    assert(e->heap_count < e->heap_capacity);
    uint32_t at = e->heap_count++;
    while (at > 0 && e->heap[(at - 1) / 2] > word) {
        e->heap[at] = e->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    e->heap[at] = word;
}

static uint64_t
heap_pop(encoder *e)
{
    const uint64_t top = e->heap[0], last = e->heap[--e->heap_count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= e->heap_count) break;
        if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child]) child++;
        if (e->heap[child] >= last) break;
        e->heap[at] = e->heap[child];
        at = child;
    }
    e->heap[at] = last;
    return top;
}

/* The merge of the symbol at this position with its right neighbour; NULL if there is none. */
static const bpe_merge *
merge_at(const encoder *e, uint32_t at)
{
    const symbol *s = &e->symbols[at];
    if (s->id == MERGED_AWAY || s->next == NO_SYMBOL) return NULL;
    return tokenizer_find_merge(e->tok, s->id, e->symbols[s->next].id);
}

static void
push_candidate(encoder *e, uint32_t at)
{
    const bpe_merge *m = merge_at(e, at);
    if (m != NULL) heap_push(e, (uint64_t)m->rank << 32 | at);
}

/* Each merge takes one candidate and brings at most two, so that 2n are never exceeded. */
static bool
heap_reserve(encoder *e)
{
    const uint32_t need = 2 * e->symbol_count;
    e->heap_count = 0;
    if (need <= e->heap_capacity) return true;
    free(e->heap);
    e->heap = malloc(need * sizeof e->heap[0]);
    e->heap_capacity = e->heap ? need : 0;
    e->failed |= e->heap == NULL;
    return e->heap != NULL;
}

static void
merge_word(encoder *e)
{
    for (uint32_t i = 0; i + 1 < e->symbol_count; i++) {
        push_candidate(e, i);
    }
    while (e->heap_count > 0) {
        const uint64_t word = heap_pop(e);
        const uint32_t at = (uint32_t)word;
        const bpe_merge *m = merge_at(e, at);
        if (m == NULL || m->rank != word >> 32) continue;
        symbol *s = &e->symbols[at], *right = &e->symbols[s->next];
        s->id = m->id;
        s->next = right->next;
        right->id = MERGED_AWAY;
        if (s->next != NO_SYMBOL) e->symbols[s->next].previous = at;
        if (s->previous != NO_SYMBOL) push_candidate(e, s->previous);
        push_candidate(e, at);
    }
}

static void
emit_symbol(encoder *e, uint32_t id)
{
    if (id < UNKNOWN_CHARACTER) {
        emit(e, id);
        return;
    }
    unsigned char bytes[4];
    const int n = utf8_encode(id & ~UNKNOWN_CHARACTER, bytes);
    for (int i = 0; i < n; i++) {
        emit(e, e->tok->byte_ids[bytes[i]]);
    }
}

/* The word in hand is complete: merge it, append its ids, begin the next. */
static void
end_word(encoder *e)
{
    if (e->failed || e->symbol_count == 0 || !heap_reserve(e)) return;
    e->symbols[e->symbol_count - 1].next = NO_SYMBOL;
    merge_word(e);
    for (uint32_t at = 0; at != NO_SYMBOL; at = e->symbols[at].next) {
        emit_symbol(e, e->symbols[at].id);
    }
    e->symbol_count = 0;
}

static void
add_symbol(encoder *e, uint32_t code_point, const char *text, size_t len)
{
    if (e->symbol_count == e->symbol_capacity) {
        const uint32_t capacity = e->symbol_capacity ? e->symbol_capacity * 2 : 64;
        symbol *symbols = realloc(e->symbols, capacity * sizeof symbols[0]);
        if (symbols == NULL) {
            e->failed = true;
            return;
        }
        e->symbols = symbols;
        e->symbol_capacity = capacity;
    }
    uint32_t id = tokenizer_token_id(e->tok, text, len);
    if (id == TOKENIZER_ID_NONE || e->tok->tokens[id].kind != TOKEN_PIECE)
        id = UNKNOWN_CHARACTER | code_point;
    const uint32_t at = e->symbol_count++;
    e->symbols[at] = (symbol){.id = id, .previous = at ? at - 1 : NO_SYMBOL, .next = at + 1};
}

/* A stretch of valid UTF-8 without special tokens to cut out. */
static void
encode_stretch(encoder *e, const char *text, size_t len)
{
    if (len == 0) return;
    bool after_space = false;
    if (e->tok->add_prefix) {
        add_symbol(e, TOKENIZER_SPACE_CODE, TOKENIZER_SPACE, TOKENIZER_SPACE_LEN);
        after_space = true;
    }
    for (size_t at = 0; at < len && !e->failed;) {
        uint32_t code_point = 0;
        const int n = utf8_decode(text + at, len - at, &code_point);
        assert(n > 0); /* checked by the caller */
        const char *spelling = text + at;
        size_t spelling_len = (size_t)n;
        if (code_point == ' ' && e->tok->escape_spaces) {
            code_point = TOKENIZER_SPACE_CODE;
            spelling = TOKENIZER_SPACE;
            spelling_len = TOKENIZER_SPACE_LEN;
        }
        const bool space = code_point == TOKENIZER_SPACE_CODE;
        if (space && !after_space && e->tok->words_independent) end_word(e);
        after_space = space;
        add_symbol(e, code_point, spelling, spelling_len);
        at += (size_t)n;
    }
    end_word(e);
}

static void
encode_cutting_special(encoder *e, const char *text, size_t len)
{
    size_t from = 0, at = 0;
    while (at < len && !e->failed) {
        uint32_t id = 0;
        const size_t n = tokenizer_find_cut(e->tok, text + at, len - at, &id);
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

    encoder e = {.tok = tok};
    if ((flags & TOKENIZER_ADD_BOS) && tok->bos_id != TOKENIZER_ID_NONE) emit(&e, tok->bos_id);
    if (flags & TOKENIZER_PARSE_SPECIAL)
        encode_cutting_special(&e, text, len);
    else
        encode_stretch(&e, text, len);
    free(e.symbols);
    free(e.heap);
    if (e.failed) {
        free(e.ids);
        return err_set(eb, MOE_ENOMEM, "out of memory encoding %zu bytes", len);
    }
    *ids_out = e.ids;
    *count = e.id_count;
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
    const token *t = &tok->tokens[id];
    const char *text = tok->text + t->offset;
    if (t->kind == TOKEN_BYTE)
        strbuf_append(out, (const char *)&t->byte, 1);
    else if (t->kind == TOKEN_PIECE)
        tokenizer_append_unescaped(text, t->len, out);
    else
        strbuf_append(out, text, t->len);
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
