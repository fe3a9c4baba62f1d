/* choice: one sequence of a completion, from the engine's tokens to the text a client sees.
 *
 * Tokens become text as soon as they are whole characters; text is held back only while it could be
 * the beginning of a stop string.  What is ready gathers in `text` and `logprobs` until somebody
 * takes it: at each token of a stream, or once at the end.
 *
 * Threads: one at a time (the engine's, then whoever prints the answer).
 */
#ifndef MOE_FRONTEND_CHOICE_H
#define MOE_FRONTEND_CHOICE_H

#include "frontend/completion_request.h"
#include "frontend/detok.h"
#include "frontend/engine.h"
#include "frontend/logprobs_text.h"
#include "frontend/routed_experts.h"
#include "frontend/stop_matcher.h"

#define CHOICE_HEAD_BYTES 32

typedef struct choice {
    const completion_request *request; /* borrowed */
    const completion_prompt *prompt;   /* borrowed */
    const tokenizer *tok;              /* borrowed */
    gen_params params;                 /* handed to the engine */
    char head[CHOICE_HEAD_BYTES];      /* what each chunk of it begins with */
    uint8_t head_len;
    detok detok;
    stop_matcher stop;
    strbuf piece;           /* scratch: the text of one token */
    uint64_t chars;         /* code points decoded so far: the next token's text offset */
    strbuf text;            /* ready, not taken */
    logprobs_text logprobs; /* ready, not taken */
    routed_experts routed;  /* of all tokens so far; printed at the end */
    uint32_t completion_tokens;
    uint32_t cached_tokens; /* prompt tokens that came from the prefix cache */
    finish_reason finish;   /* FINISH_NONE while it goes on */
    bool stopped_by_token;  /* finish is FINISH_STOP because of one of stop_token_ids: last_token */
    uint32_t last_token;
} choice;

/* The choice-th of its prompt's choices.  text_max bounds each text that gathers. */
void choice_init(choice *c, const completion_request *request, const completion_prompt *prompt,
                 const tokenizer *tok, uint32_t index, uint32_t choice_of_prompt, size_t text_max);
void choice_fini(choice *c);

/* Take in an event of its sequence.  Returns true if the sequence ends with it, because the engine
 * says so or because a stop string was met. */
bool choice_push(choice *c, const gen_event *event);

/* Append {"index":..,"text":..,"logprobs":..,"finish_reason":..,"stop_reason":..} with what is
 * ready, and take it.  If it was asked for, "routed_experts" is added once the choice has ended. */
void choice_take(choice *c, strbuf *out);

size_t choice_ready_bytes(const choice *c);
/* Did a text outgrow its bound, or memory run out? */
bool choice_failed(const choice *c);

const char *finish_reason_name(finish_reason finish);

#endif
