/* openai: the two texts exchanged with /v1/completions: the request's body and a stream's event.
 *
 * Source: OpenAI's completions API, with `ignore_eos` and prompts of token ids as in vLLM.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_OPENAI_H
#define MOE_LOADGEN_OPENAI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/strbuf.h"
#include "loadgen/record.h"

typedef struct openai_request {
    const char *model;
    const char *prompt_json; /* JSON text: a string, or an array of token ids */
    int64_t max_tokens;
    double temperature;
    uint64_t seed; /* sent only when temperature > 0 */
    bool ignore_eos;
} openai_request;

/* Append the body of a streaming request that asks for its usage. */
void openai_request_write(const openai_request *request, strbuf *out);

/* Enter one event of the stream, data [len] with a NUL after it, received at now_ns.
 *
 * An event with a choice is a chunk of tokens, even with empty text (a token can end within a
 * character).  One exception: empty text with a finish_reason after other chunks only marks the
 * end; it moves last_ns but is no chunk, since a gap to it is no gap between tokens.  What is no
 * JSON object, or carries an error, fails the record. */
void openai_event_read(const char *data, size_t len, uint64_t now_ns, request_record *record);

/* The message of an error answer: error.message or message of a JSON body, else the start of the
 * text itself, on one line.  out [size]. */
void openai_error_text(const char *body, size_t len, char *out, size_t size);

#endif
