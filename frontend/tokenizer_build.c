/* The tables behind a tokenizer: built once by a loader, then only read. */
#include "frontend/tokenizer_impl.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/utf8.h"
#include "frontend/word_merge.h"

void
tokenizer_free(tokenizer *tok)
{
    if (tok == NULL) return;
    free(tok->tokens);
    free(tok->text);
    free(tok->by_text);
    free(tok->merges);
    free(tok->merge_filter);
    free(tok->cut);
    free(tok->shown);
    word_cache_free(tok->words);
    free(tok);
}

/* Half-full hash tables: the smallest power of two that is at least twice the entries. */
static uint32_t
table_size(uint32_t entries)
{
    uint32_t size = 2;
    while (size < 2 * (uint64_t)entries) {
        size *= 2;
    }
    return size;
}

moe_err
tokenizer_build_begin(tokenizer **out, size_t token_count, size_t text_bytes, errbuf *eb)
{
    *out = NULL;
    if (token_count == 0) return err_set(eb, MOE_EINVAL, "the vocabulary is empty");
    if (token_count > TOKENIZER_VOCAB_MAX)
        return err_set(eb, MOE_ERANGE, "the vocabulary has %zu tokens, at most %u are supported",
                       token_count, TOKENIZER_VOCAB_MAX);
    assert(text_bytes <= TOKENIZER_FILE_MAX);

    tokenizer *tok = calloc(1, sizeof *tok);
    if (tok == NULL) return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    tok->token_count = (uint32_t)token_count;
    tok->text_capacity = text_bytes + token_count;
    tok->tokens = calloc(token_count, sizeof tok->tokens[0]);
    tok->text = malloc(tok->text_capacity);
    tok->bos_id = TOKENIZER_ID_NONE;
    tok->eos_id = TOKENIZER_ID_NONE;
    if (tok->tokens == NULL || tok->text == NULL) {
        tokenizer_free(tok);
        return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    }
    *out = tok;
    return MOE_OK;
}

moe_err
tokenizer_build_token(tokenizer *tok, uint32_t id, token_kind kind, const char *text, size_t len,
                      errbuf *eb)
{
    if (id >= tok->token_count)
        return err_set(eb, MOE_EINVAL, "token id %u is outside the vocabulary of %u", id,
                       tok->token_count);
    if (tok->tokens[id].kind != TOKEN_MISSING)
        return err_set(eb, MOE_EINVAL, "token id %u is given twice", id);
    if (len == 0) return err_set(eb, MOE_EINVAL, "token %u is empty", id);
    if (len > TOKENIZER_TOKEN_MAX)
        return err_set(eb, MOE_ERANGE, "token %u is spelled in %zu bytes, at most %u are supported",
                       id, len, TOKENIZER_TOKEN_MAX);
    if (utf8_valid_len(text, len) != len)
        return err_set(eb, MOE_EINVAL, "token %u is not UTF-8", id);
    const int byte = kind == TOKEN_BYTE ? tokenizer_byte_of_text(text, len) : 0;
    if (byte < 0) return err_set(eb, MOE_EINVAL, "byte token %u is not spelled <0xNN>", id);
    assert(len + 1 <= tok->text_capacity - tok->text_len);

    tok->tokens[id] = (token){.offset = (uint32_t)tok->text_len,
                              .len = (uint16_t)len,
                              .kind = (uint8_t)kind,
                              .byte = (uint8_t)byte};
    memcpy(tok->text + tok->text_len, text, len);
    tok->text[tok->text_len + len] = '\0';
    tok->text_len += len + 1;
    return MOE_OK;
}

/* The slot of this spelling in by_text: its own, or the free one where it belongs. */
static uint32_t *
text_slot(const tokenizer *tok, const char *text, size_t len)
{
    uint32_t at = (uint32_t)hash_bytes(0, text, len) & tok->by_text_mask;
    for (;; at = (at + 1) & tok->by_text_mask) {
        uint32_t *slot = &tok->by_text[at];
        if (*slot == TOKENIZER_ID_NONE) return slot;
        const token *t = &tok->tokens[*slot];
        if (t->len == len && memcmp(tok->text + t->offset, text, len) == 0) return slot;
    }
}

uint32_t
tokenizer_token_id(const tokenizer *tok, const char *text, size_t len)
{
    return *text_slot(tok, text, len);
}

static int
compare_text(const void *a, const void *b, void *arg)
{
    const tokenizer *tok = arg;
    const token *x = &tok->tokens[*(const uint32_t *)a], *y = &tok->tokens[*(const uint32_t *)b];
    const size_t common = x->len < y->len ? x->len : y->len;
    const int order = memcmp(tok->text + x->offset, tok->text + y->offset, common);
    return order != 0 ? order : (int)x->len - (int)y->len;
}

static moe_err
index_cut(tokenizer *tok, errbuf *eb)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < tok->token_count; id++) {
        count += tok->tokens[id].kind >= TOKEN_ADDED;
    }
    tok->cut = malloc((count + 1) * sizeof tok->cut[0]);
    if (tok->cut == NULL) return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    for (uint32_t id = 0; id < tok->token_count; id++) {
        if (tok->tokens[id].kind < TOKEN_ADDED) continue;
        tok->cut[tok->cut_count++] = id;
        tok->cut_first[(unsigned char)tok->text[tok->tokens[id].offset]] = true;
    }
    qsort_r(tok->cut, tok->cut_count, sizeof tok->cut[0], compare_text, tok);
    return MOE_OK;
}

static moe_err
index_bytes(tokenizer *tok, errbuf *eb)
{
    for (int byte = 0; byte < 256; byte++) {
        tok->byte_ids[byte] = TOKENIZER_ID_NONE;
    }
    for (uint32_t id = 0; id < tok->token_count; id++) {
        const token *t = &tok->tokens[id];
        if (t->kind != TOKEN_BYTE) continue;
        /* <0x0a> beside <0x0A> */
        if (tok->byte_ids[t->byte] != TOKENIZER_ID_NONE)
            return err_set(eb, MOE_EINVAL, "tokens %u and %u are both byte 0x%02X",
                           tok->byte_ids[t->byte], id, t->byte);
        tok->byte_ids[t->byte] = id;
    }
    for (int byte = 0; byte < 256; byte++) {
        if (tok->byte_ids[byte] == TOKENIZER_ID_NONE)
            return err_set(eb, MOE_EUNSUPPORTED,
                           "no token for byte 0x%02X: only vocabularies with all 256 byte tokens "
                           "are supported",
                           byte);
    }
    return MOE_OK;
}

moe_err
tokenizer_build_index(tokenizer *tok, errbuf *eb)
{
    const uint32_t size = table_size(tok->token_count);
    tok->by_text = malloc(size * sizeof tok->by_text[0]);
    if (tok->by_text == NULL) return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    tok->by_text_mask = size - 1;
    for (uint32_t i = 0; i < size; i++) {
        tok->by_text[i] = TOKENIZER_ID_NONE;
    }
    for (uint32_t id = 0; id < tok->token_count; id++) {
        const token *t = &tok->tokens[id];
        if (t->kind == TOKEN_MISSING) return err_set(eb, MOE_EINVAL, "token id %u is missing", id);
        uint32_t *slot = text_slot(tok, tok->text + t->offset, t->len);
        if (*slot != TOKENIZER_ID_NONE)
            return err_set(eb, MOE_EINVAL, "tokens %u and %u are both spelled \"%s\"", *slot, id,
                           tok->text + t->offset);
        *slot = id;
    }
    const moe_err err = index_bytes(tok, eb);
    return err ? err : index_cut(tok, eb);
}

moe_err
tokenizer_build_merges(tokenizer *tok, size_t merge_max, errbuf *eb)
{
    assert(merge_max <= TOKENIZER_FILE_MAX);
    const uint32_t size = table_size((uint32_t)merge_max);
    tok->merges = malloc(size * sizeof tok->merges[0]);
    tok->merge_filter = calloc(size, 1); /* 16 bits or more per merge */
    if (tok->merges == NULL || tok->merge_filter == NULL)
        return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    tok->merge_mask = size - 1;
    tok->merge_filter_mask = 8 * size - 1;
    tok->merge_max = (uint32_t)merge_max;
    for (uint32_t i = 0; i < size; i++) {
        tok->merges[i].id = TOKENIZER_ID_NONE;
    }
    return MOE_OK;
}

static uint64_t
merge_hash(uint32_t left, uint32_t right)
{
    const uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (h ^ h >> 32) * 0xd6e8feb86659fd93u;
}

static bpe_merge *
merge_slot(const tokenizer *tok, uint64_t hash, uint32_t left, uint32_t right)
{
    uint32_t at = (uint32_t)(hash >> 32) & tok->merge_mask;
    for (;; at = (at + 1) & tok->merge_mask) {
        bpe_merge *m = &tok->merges[at];
        if (m->id == TOKENIZER_ID_NONE || (m->left == left && m->right == right)) return m;
    }
}

/* The filter takes other bits of the hash than the table, else neighbours there would share a fate
 * here. */
const bpe_merge *
tokenizer_find_merge(const tokenizer *tok, uint32_t left, uint32_t right)
{
    const uint64_t hash = merge_hash(left, right);
    const uint32_t bit = (uint32_t)(hash >> 16) & tok->merge_filter_mask;
    if ((tok->merge_filter[bit / 8] >> bit % 8 & 1) == 0) return NULL;
    const bpe_merge *m = merge_slot(tok, hash, left, right);
    return m->id == TOKENIZER_ID_NONE ? NULL : m;
}

/* A text has U+2581 as such, or as a space. */
static bool
is_space_piece(const char *text, size_t len)
{
    return len == TOKENIZER_SPACE_LEN && memcmp(text, TOKENIZER_SPACE, len) == 0;
}

/* A merge makes this piece: note that its neighbouring characters may be joined. */
static void
note_joins(tokenizer *tok, const char *text, size_t len)
{
    uint32_t code_point;
    size_t left_len = (size_t)utf8_decode(text, len, &code_point);
    for (size_t at = left_len; at < len;) {
        const char *left = text + at - left_len, *right = text + at;
        const size_t right_len = (size_t)utf8_decode(right, len - at, &code_point);
        const unsigned char a = (unsigned char)right[-1], b = (unsigned char)right[0];
        const bool left_space = is_space_piece(left, left_len);
        const bool right_space = is_space_piece(right, right_len);
        tok->joins[a][b] = true;
        if (left_space) tok->joins[' '][b] = true;
        if (right_space) tok->joins[a][' '] = true;
        if (left_space && right_space) tok->joins[' '][' '] = true;
        at += right_len;
        left_len = right_len;
    }
}

moe_err
tokenizer_build_merge(tokenizer *tok, uint32_t left, uint32_t right, uint32_t rank, uint32_t id,
                      errbuf *eb)
{
    assert(left < tok->token_count && right < tok->token_count && id < tok->token_count);
    assert(tok->merge_count < tok->merge_max);
    const uint64_t hash = merge_hash(left, right);
    const uint32_t bit = (uint32_t)(hash >> 16) & tok->merge_filter_mask;
    bpe_merge *m = merge_slot(tok, hash, left, right);
    if (m->id != TOKENIZER_ID_NONE)
        return err_set(eb, MOE_EINVAL, "\"%s\" and \"%s\" are merged twice",
                       tok->text + tok->tokens[left].offset, tok->text + tok->tokens[right].offset);
    *m = (bpe_merge){.left = left, .right = right, .rank = rank, .id = id};
    tok->merge_filter[bit / 8] |= (uint8_t)(1u << bit % 8);
    tok->merge_count++;
    const token *t = &tok->tokens[id];
    note_joins(tok, tok->text + t->offset, t->len);
    return MOE_OK;
}

uint32_t
tokenizer_symbol(const tokenizer *tok, const char *text, size_t len, uint32_t code_point)
{
    const uint32_t id = tokenizer_token_id(tok, text, len);
    const bool piece = id != TOKENIZER_ID_NONE && tok->tokens[id].kind == TOKEN_PIECE;
    return piece ? id : UNKNOWN_CHARACTER | code_point;
}

static void
index_symbols(tokenizer *tok)
{
    tok->space_symbol =
        tokenizer_symbol(tok, TOKENIZER_SPACE, TOKENIZER_SPACE_LEN, TOKENIZER_SPACE_CODE);
    for (uint32_t c = 0; c < 128; c++) {
        const char text = (char)c;
        tok->ascii_symbols[c] = tokenizer_symbol(tok, &text, 1, c);
    }
    if (tok->escape_spaces) tok->ascii_symbols[' '] = tok->space_symbol;
    for (size_t left = 0; left < 256; left++) {
        for (size_t right = 0x80; right < 0xc0; right++) {
            tok->joins[left][right] = true; /* inside a character */
        }
    }
}

/* What every token stands for inside a text, one after the other. */
static moe_err
index_shown(tokenizer *tok, errbuf *eb)
{
    strbuf shown;
    strbuf_init(&shown, tok->text_len);
    for (uint32_t id = 0; id < tok->token_count; id++) {
        token *t = &tok->tokens[id];
        const size_t before = shown.len;
        if (t->kind == TOKEN_BYTE)
            strbuf_append(&shown, (const char *)&t->byte, 1);
        else if (t->kind == TOKEN_PIECE)
            tokenizer_append_unescaped(tok->text + t->offset, t->len, &shown);
        else
            strbuf_append(&shown, tok->text + t->offset, t->len);
        t->shown = (uint32_t)before;
        t->shown_len = (uint16_t)(shown.len - before);
    }
    tok->shown = shown.text; /* never longer than the spellings: only memory can be short */
    return shown.failed ? err_set(eb, MOE_ENOMEM, "tokenizer: out of memory") : MOE_OK;
}

moe_err
tokenizer_build_finish(tokenizer *tok, errbuf *eb)
{
    index_symbols(tok);
    tok->words = word_cache_create(TOKENIZER_CACHE_WORDS);
    if (tok->words == NULL) return err_set(eb, MOE_ENOMEM, "tokenizer: out of memory");
    return index_shown(tok, eb);
}

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

int
tokenizer_byte_of_text(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* First of cut[from .. to) whose byte at `depth` is at least `least`; all have that many bytes. */
static uint32_t
cut_lower_bound(const tokenizer *tok, uint32_t from, uint32_t to, size_t depth, unsigned least)
{
    while (from < to) {
        const uint32_t middle = from + (to - from) / 2;
        const token *t = &tok->tokens[tok->cut[middle]];
        if ((unsigned char)tok->text[t->offset + depth] < least)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* Walks the sorted spellings as if they were a trie: after `depth` bytes, cut[from .. to) are those
 * that begin with these bytes, the one that ends here (if any) first. */
size_t
tokenizer_find_cut(const tokenizer *tok, const char *text, size_t len, uint32_t *id)
{
    uint32_t from = 0, to = tok->cut_count;
    size_t found = 0;
    for (size_t depth = 0; depth < len && from < to; depth++) {
        const unsigned byte = (unsigned char)text[depth];
        from = cut_lower_bound(tok, from, to, depth, byte);
        to = cut_lower_bound(tok, from, to, depth, byte + 1);
        if (from < to && tok->tokens[tok->cut[from]].len == depth + 1) {
            found = depth + 1;
            *id = tok->cut[from++];
        }
    }
    return found;
}
