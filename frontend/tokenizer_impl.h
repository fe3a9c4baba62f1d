/* tokenizer_impl: what the tokenizer's loaders build and its encoder reads.  Internal to the
 * tokenizer library and its tests.
 *
 * A loader calls, in this order: tokenizer_build_begin, _token for every id, _index, _merges,
 * _merge for each, and _finish; whatever it gets wrong comes back as an error that names the token.
 *
 * Threads: one while building, then as tokenizer.h says.
 */
#ifndef MOE_FRONTEND_TOKENIZER_IMPL_H
#define MOE_FRONTEND_TOKENIZER_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "frontend/tokenizer.h"
#include "frontend/word_cache.h"

#define TOKENIZER_SPACE "\xe2\x96\x81" /* U+2581, a space inside the vocabulary */
#define TOKENIZER_SPACE_LEN ((size_t)3)
#define TOKENIZER_SPACE_CODE 0x2581u
#define TOKENIZER_CACHE_WORDS 16384u /* of 64 bytes */

typedef enum token_kind {
    TOKEN_MISSING = 0, /* only while building */
    TOKEN_PIECE,
    TOKEN_BYTE,
    TOKEN_ADDED,   /* cut out of a text like a special token, printed like a piece */
    TOKEN_SPECIAL, /* control or unknown */
} token_kind;

typedef struct token {
    uint32_t offset; /* into tokenizer.text */
    uint32_t shown;  /* into tokenizer.shown: what the token stands for inside a text */
    uint16_t len;
    uint16_t shown_len;
    uint8_t kind;
    uint8_t byte; /* of a TOKEN_BYTE */
} token;

/* Two neighbouring tokens that may become one. */
typedef struct bpe_merge {
    uint32_t left;
    uint32_t right;
    uint32_t rank; /* lower goes first; equal ranks go from left to right */
    uint32_t id;   /* of the result; TOKENIZER_ID_NONE marks a free slot */
} bpe_merge;

struct tokenizer {
    token *tokens; /* [token_count] */
    uint32_t token_count;
    char *text; /* all spellings, each NUL-terminated */
    size_t text_len;
    size_t text_capacity;
    char *shown;       /* all that tokens stand for */
    uint32_t *by_text; /* open addressing by spelling, [by_text_mask + 1] ids */
    uint32_t by_text_mask;
    bpe_merge *merges; /* open addressing by (left, right), [merge_mask + 1] */
    uint32_t merge_mask;
    uint8_t *merge_filter; /* one bit per hash, [merge_filter_mask + 1] bits; see find_merge */
    uint32_t merge_filter_mask;
    uint32_t merge_count;
    uint32_t merge_max;
    uint32_t *cut; /* [cut_count] TOKEN_ADDED and TOKEN_SPECIAL ids, sorted by spelling */
    uint32_t cut_count;
    bool cut_first[256]; /* does one begin with this byte? */
    uint32_t byte_ids[256];
    uint32_t bos_id;
    uint32_t eos_id;
    bool add_prefix;             /* a space goes in front of every text */
    bool escape_spaces;          /* ' ' is written U+2581 */
    bool strip_prefix;           /* and decoding drops the first one */
    uint32_t space_symbol;       /* of U+2581; see word_merge.h */
    uint32_t ascii_symbols[128]; /* of the character as a text has it: ' ' may be U+2581 */
    word_cache *words;           /* NULL: none */
    /* May a merge join these neighbouring bytes of a text (where ' ' may be U+2581), or are they
     * one character's? */
    bool joins[256][256];
};

/* Room for token_count tokens whose spellings have text_bytes bytes in all. */
moe_err tokenizer_build_begin(tokenizer **out, size_t token_count, size_t text_bytes, errbuf *eb);

/* Say what id is.  A piece spelled <0xNN> is a byte only if kind says so. */
moe_err tokenizer_build_token(tokenizer *tok, uint32_t id, token_kind kind, const char *text,
                              size_t len, errbuf *eb);

/* All ids are told: check that none is missing or spelled twice and that every byte has a token. */
moe_err tokenizer_build_index(tokenizer *tok, errbuf *eb);

/* Room for merge_max merges. */
moe_err tokenizer_build_merges(tokenizer *tok, size_t merge_max, errbuf *eb);
moe_err tokenizer_build_merge(tokenizer *tok, uint32_t left, uint32_t right, uint32_t rank,
                              uint32_t id, errbuf *eb);

/* All else is set (add_prefix, escape_spaces, ...). */
moe_err tokenizer_build_finish(tokenizer *tok, errbuf *eb);

/* The byte that the spelling "<0xNN>" stands for, or -1. */
int tokenizer_byte_of_text(const char *text, size_t len);

/* NULL if the two don't merge.  Most neighbours of a text don't: a filter of one bit per hash,
 * small enough for the second-level cache, says so of nearly all of them. */
const bpe_merge *tokenizer_find_merge(const tokenizer *tok, uint32_t left, uint32_t right);

/* The symbol (word_merge.h) of a character and its spelling. */
uint32_t tokenizer_symbol(const tokenizer *tok, const char *text, size_t len, uint32_t code_point);

/* Length of the longest special or added token spelled at the beginning of text, and its id; 0 if
 * there is none. */
size_t tokenizer_find_cut(const tokenizer *tok, const char *text, size_t len, uint32_t *id);

/* tokenizer_token_bytes() without the copy: borrowed, *len bytes, no NUL.  id < V. */
static inline const char *
tokenizer_shown_bytes(const tokenizer *tok, uint32_t id, size_t *len)
{
    *len = tok->tokens[id].shown_len;
    return tok->shown + tok->tokens[id].shown;
}

/* Append text with U+2581 written as a space. */
void tokenizer_append_unescaped(const char *text, size_t len, strbuf *out);

/* The two formats, from memory (borrowed for the call).  Errors as tokenizer_load. */
moe_err tokenizer_load_json(tokenizer **out, const char *bytes, size_t len, errbuf *eb);
moe_err tokenizer_load_model(tokenizer **out, const char *bytes, size_t len, errbuf *eb);

#endif
