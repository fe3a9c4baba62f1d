/* logprobs_text: the "logprobs" object of a completion's choice, as JSON text that grows token by
 * token.
 *
 *   {"tokens": [...], "token_logprobs": [...], "top_logprobs": [...], "text_offset": [...]}
 *
 * A token is spelled as its text on its own; bytes that are not UTF-8 as "bytes:\xe2\x80", as
 * OpenAI does.  Offsets count characters (code points).
 *
 * Threads: one at a time.
 */
#ifndef MOE_FRONTEND_LOGPROBS_TEXT_H
#define MOE_FRONTEND_LOGPROBS_TEXT_H

#include "common/strbuf.h"
#include "frontend/engine.h"
#include "frontend/tokenizer.h"

typedef struct logprobs_text {
    strbuf tokens, values, tops, offsets; /* lists without their brackets */
} logprobs_text;

/* max: bytes of each of the four lists. */
void logprobs_text_init(logprobs_text *l, size_t max);
void logprobs_text_fini(logprobs_text *l);
void logprobs_text_reset(logprobs_text *l);

/* Add a token.  logprobs NULL: unknown (the first token of a prompt), printed as null.  At most
 * top_max of its alternatives are listed, and always the token itself. */
void logprobs_text_add(logprobs_text *l, const tokenizer *tok, uint32_t token,
                       const token_logprobs *logprobs, uint32_t top_max, uint64_t offset);

void logprobs_text_print(const logprobs_text *l, strbuf *out);
size_t logprobs_text_bytes(const logprobs_text *l);
bool logprobs_text_failed(const logprobs_text *l);

#endif
