/* word_merge: byte-pair merging of one word.
 *
 * The rule: of all neighbours that may merge, those of the lowest rank do, the leftmost among
 * equals, until none may.
 *
 * A short word is merged in place, looking for the lowest rank at every step.  A long one is merged
 * in windows.  Call two tokens compatible if the text of both encodes to just these two; a sequence
 * of tokens is the encoding of its text if and only if all its neighbours are compatible.  (If:
 * take the first merge of the text that joins symbols of two neighbours; up to it their symbols
 * merged as they do alone, so alone they would take the same merge.  Only if: merges on the two
 * sides of a boundary that stays don't see each other.)  The neighbours in an encoded window are
 * compatible.  So a window that begins at a token of the one before, and begins with the same
 * token, goes on where that token stands, whatever comes further right; otherwise the windows are
 * made larger.  That takes linear time for any text and vocabulary worth the name, and O(n log^2 n)
 * for all others.
 *
 * Symbols: a token id, or UNKNOWN_CHARACTER | code point, which merges with nothing.
 *
 * Threads: a merger belongs to one thread at a time; the tokenizer is shared.
 */
#ifndef MOE_FRONTEND_WORD_MERGE_H
#define MOE_FRONTEND_WORD_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frontend/tokenizer.h"

#define UNKNOWN_CHARACTER 0x80000000u
#define WORD_WINDOW 32u    /* symbols merged at a time, unless that turns out too few */
#define WORD_WINDOW_MIN 4u /* a window this short still moves on */
#define WORD_INLINE 64u    /* symbols for which nothing is allocated */

/* A token, and where among the window's symbols it begins. */
typedef struct word_token {
    uint32_t id;
    uint32_t start;
} word_token;

typedef struct word_merger {
    const tokenizer *tok; /* borrowed */
    uint32_t window;      /* >= WORD_WINDOW_MIN; WORD_WINDOW, but for tests */
    uint32_t *symbols;    /* the word in hand, [count], filled by the caller */
    uint32_t count;
    uint32_t capacity;
    word_token *tokens; /* the window in hand */
    uint32_t token_capacity;
    struct word_heap *heap; /* for windows beyond WORD_INLINE; NULL until then */
    uint32_t inline_symbols[WORD_INLINE];
    word_token inline_tokens[WORD_INLINE];
} word_merger;

/* Ids that were encoded. */
typedef struct id_list {
    uint32_t *ids; /* owned */
    size_t count;
    size_t capacity;
    bool failed; /* out of memory */
} id_list;

/* Make room for n more.  false: out of memory, `failed` is set. */
bool id_list_reserve(id_list *list, size_t n);

void word_merger_init(word_merger *m, const tokenizer *tok);
void word_merger_fini(word_merger *m);

/* Append a symbol to the word in hand.  false: out of memory. */
bool word_merger_add(word_merger *m, uint32_t symbol);

/* Merge the word in hand, append its ids, and empty it.  Unknown characters become the tokens of
 * their bytes.  Out of memory: out->failed. */
void word_merger_finish(word_merger *m, id_list *out);

#endif
