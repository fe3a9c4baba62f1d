/* tokenizer: text to token ids, for models that use SentencePiece's byte-pair encoding.
 *
 * Text is cut into characters; neighbours are merged, best merge first, leftmost among equals,
 * until no merge applies; a character the vocabulary lacks becomes its UTF-8 bytes as `<0xNN>`
 * tokens. Spaces are written as U+2581 and one is put in front of every text.  The vocabulary comes
 * from tokenizer.json (merges in the order they are listed) or from tokenizer.model (merges by the
 * score of the piece they make); both give the same ids.  What a file asks for beyond this (other
 * normalizers, unigram models, ...) is refused by name, never ignored.
 *
 * Special tokens (<s>, </s>, ...) spelled inside a text are ordinary characters, so that no user
 * can inject one, unless TOKENIZER_PARSE_SPECIAL asks for the reading a rendered chat prompt needs.
 *
 * Symbols: V tokens in the vocabulary, ids 0 .. V - 1.
 *
 * Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units"
 * (ACL 2016); the file formats are SentencePiece's (sentencepiece_model.proto) and Hugging Face
 * tokenizers'.
 *
 * Threads: every function but load and free may be called from any thread.  A loaded tokenizer
 * changes in nothing but its cache of words (1 MiB), which is lock-free.
 */
#ifndef MOE_FRONTEND_TOKENIZER_H
#define MOE_FRONTEND_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/strbuf.h"

#define TOKENIZER_TEXT_MAX ((size_t)8 << 20)  /* bytes of one text; scratch: about 10x */
#define TOKENIZER_FILE_MAX ((size_t)64 << 20) /* bytes of a tokenizer file */
#define TOKENIZER_VOCAB_MAX (1u << 20)        /* tokens */
#define TOKENIZER_TOKEN_MAX 512u              /* bytes of one token's spelling */
#define TOKENIZER_ID_NONE UINT32_MAX

/* tokenizer_encode's flags. */
#define TOKENIZER_ADD_BOS 1u       /* put the bos token in front, if the tokenizer has one */
#define TOKENIZER_PARSE_SPECIAL 2u /* special tokens spelled in the text become those tokens */

typedef struct tokenizer tokenizer;

/* Load model_dir/tokenizer.json or, if there is none, model_dir/tokenizer.model.  bos and eos are
 * those that model_dir/tokenizer_config.json names; without it (or without those keys) the ones of
 * tokenizer.model, or <s> and </s>.
 *
 * On MOE_OK *out is owned by the caller: tokenizer_free().  On error *out is NULL.
 *   MOE_ENOTFOUND     neither file exists
 *   MOE_EINVAL        a file breaks its format's rules
 *   MOE_ERANGE        more than the limits above
 *   MOE_EUNSUPPORTED  a file asks for something that is not done here
 *   MOE_EIO, MOE_ENOMEM  */
moe_err tokenizer_load(tokenizer **out, const char *model_dir, errbuf *eb);

/* Accepts NULL. */
void tokenizer_free(tokenizer *tok);

uint32_t tokenizer_vocab_size(const tokenizer *tok);
/* TOKENIZER_ID_NONE if there is none. */
uint32_t tokenizer_bos_id(const tokenizer *tok);
uint32_t tokenizer_eos_id(const tokenizer *tok);

/* The token as the vocabulary spells it (U+2581 for a space, "<0x0A>" for a byte), NUL-terminated
 * and borrowed from the tokenizer, *len bytes without the NUL.  NULL, and *len 0, if id >= V. */
const char *tokenizer_token_text(const tokenizer *tok, uint32_t id, size_t *len);

/* Append the bytes that the token stands for in the middle of a text: a space for U+2581, the one
 * byte of a byte token (so not always valid UTF-8), a special token as spelled.  Nothing if id >=
 * V. */
void tokenizer_token_bytes(const tokenizer *tok, uint32_t id, strbuf *out);

/* The id of the token spelled exactly so; TOKENIZER_ID_NONE if there is none. */
uint32_t tokenizer_token_id(const tokenizer *tok, const char *text, size_t len);

/* Is it a control token or the unknown token, which no text contains?  false if id >= V. */
bool tokenizer_is_special(const tokenizer *tok, uint32_t id);

/* Encode len bytes of UTF-8 (NUL characters are ordinary) in about linear time.
 *
 * On MOE_OK *ids_out holds *count ids and is owned by the caller: free().  It may be NULL when
 * *count is 0 (the empty text without bos).  On error *ids_out is NULL and *count is 0.
 *   MOE_EINVAL  not UTF-8; the text names the byte offset
 *   MOE_ERANGE  len > TOKENIZER_TEXT_MAX
 *   MOE_ENOMEM  */
moe_err tokenizer_encode(const tokenizer *tok, const char *text, size_t len, unsigned flags,
                         uint32_t **ids_out, size_t *count, errbuf *eb);

#endif
