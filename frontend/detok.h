/* detok: token ids back to text, as they are generated.
 *
 * After each id the caller gets the text that is certain by then, so that a stream never has to
 * take anything back:
 *   - a byte token waits until its character is complete; a byte that can't be part of a valid
 *     character any more becomes U+FFFD, one per byte, at the first step where that is certain;
 *   - U+2581 is a space; the one the tokenizer put in front of the text is dropped, that is, when
 * the first token of prompt and output together is a piece beginning with it (skipped special
 * tokens don't count, printed ones do: "<s> Hello");
 *   - special tokens are skipped, or printed as spelled; either way they end a waiting character.
 * All texts together are valid UTF-8 and equal tokenizer_decode() of all ids.
 *
 * Source: SentencePiece's decoder, and its rule for bytes that are not UTF-8.
 *
 * Threads: a detok belongs to one thread at a time; the tokenizer is shared.
 */
#ifndef MOE_FRONTEND_DETOK_H
#define MOE_FRONTEND_DETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/strbuf.h"
#include "frontend/tokenizer.h"

/* Plain data: copy it to fork a sequence, drop it without ceremony. */
typedef struct detok {
    const tokenizer *tok; /* borrowed; outlives this */
    bool skip_special;
    bool at_start; /* nothing yet but skipped special tokens */
    uint8_t waiting_count;
    char waiting[4]; /* the beginning of a character */
} detok;

void detok_init(detok *d, const tokenizer *tok, bool skip_special);

/* Take in the prompt, whose text was shown before: ids [n].  A character that the prompt leaves
 * unfinished is sent when the output completes it.
 *   MOE_ERANGE  an id is not in the vocabulary (the ids before it are taken in)  */
moe_err detok_prompt(detok *d, const uint32_t *ids, size_t n);

/* Append to out the text to send after this id; it may be empty.
 *   MOE_ERANGE  the id is not in the vocabulary; nothing changes  */
moe_err detok_push(detok *d, uint32_t id, strbuf *out);

/* The sequence ends: append what was still waiting.  The detok can be used on. */
void detok_flush(detok *d, strbuf *out);

/* Append the text of a whole sequence, ids [n].
 *   MOE_ERANGE  an id is not in the vocabulary (the text before it is appended)  */
moe_err tokenizer_decode(const tokenizer *tok, const uint32_t *ids, size_t n, bool skip_special,
                         strbuf *out);

#endif
