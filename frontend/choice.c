#include "frontend/choice.h"

#include <stdio.h>
#include <string.h>

#define PIECE_BYTES_MAX (8 * TOKENIZER_TOKEN_MAX)

const char *
finish_reason_name(finish_reason finish)
{
    switch (finish) {
    case FINISH_STOP: return "stop";
    case FINISH_LENGTH: return "length";
    case FINISH_ABORT: return "abort";
    case FINISH_ERROR: return "error";
    case FINISH_NONE: break;
    }
    return NULL;
}

static uint64_t
count_chars(const char *text, size_t len)
{
    uint64_t count = 0;
    for (size_t i = 0; i < len; i++)
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

static uint32_t
logprobs_asked(const choice *c)
{
    return c->params.num_logprobs < 0 ? 0 : (uint32_t)c->params.num_logprobs;
}

void
choice_init(choice *c, const completion_request *request, const completion_prompt *prompt,
            const tokenizer *tok, uint32_t index, uint32_t choice_of_prompt, size_t text_max)
{
    *c = (choice){.request = request, .prompt = prompt, .tok = tok, .params = request->params};
    c->head_len = (uint8_t)snprintf(c->head, sizeof c->head, "{\"index\":%u,\"text\":", index);
    c->params.seed = prompt->seed;
    c->params.choice = choice_of_prompt;
    c->params.max_tokens = prompt->max_tokens;
    detok_init(&c->detok, tok, request->skip_special);
    stop_matcher_init(&c->stop, request->stops, request->stop_lens, request->stop_count,
                      request->include_stop);
    strbuf_init(&c->piece, PIECE_BYTES_MAX);
    strbuf_init(&c->text, text_max);
    logprobs_text_init(&c->logprobs, text_max);
    if (c->params.routed_experts)
        routed_experts_init(&c->routed, &request->routing, request->routed_start,
                            prompt->count + prompt->max_tokens);

    if (request->echo) strbuf_append(&c->text, prompt->text, prompt->text_len);
    /* With prompt logprobs the prompt's tokens go through detok one by one as their events come:
     * only so does each get its offset.  The first has no event. */
    if (c->params.prompt_logprobs) {
        logprobs_text_add(&c->logprobs, tok, prompt->ids[0], NULL, 0, 0);
        detok_push(&c->detok, prompt->ids[0], &c->piece);
        c->chars = count_chars(strbuf_text(&c->piece), c->piece.len);
    } else {
        detok_prompt(&c->detok, prompt->ids, prompt->count);
    }
}

void
choice_fini(choice *c)
{
    stop_matcher_fini(&c->stop);
    strbuf_fini(&c->piece);
    strbuf_fini(&c->text);
    logprobs_text_fini(&c->logprobs);
    routed_experts_fini(&c->routed);
}

static void
push_prompt_logprobs(choice *c, const gen_event *event)
{
    logprobs_text_add(&c->logprobs, c->tok, event->token, event->logprobs, logprobs_asked(c),
                      c->chars);
    strbuf_reset(&c->piece);
    detok_push(&c->detok, event->token, &c->piece);
    c->chars += count_chars(strbuf_text(&c->piece), c->piece.len);
}

/* Send text on, through the stop strings if they count yet.  True if one was met. */
static bool
push_text(choice *c, bool stops_count)
{
    const char *text = strbuf_text(&c->piece);
    c->chars += count_chars(text, c->piece.len);
    if (stops_count) return stop_matcher_push(&c->stop, text, c->piece.len, &c->text);
    strbuf_append(&c->text, text, c->piece.len);
    return false;
}

static bool
is_stop_token(const choice *c, uint32_t token)
{
    for (uint32_t i = 0; i < c->params.stop_token_count; i++) {
        if (c->params.stop_token_ids[i] == token) return true;
    }
    return false;
}

/* The token's text, and whether a stop string was met in it. */
static bool
push_token(choice *c, const gen_event *event)
{
    c->completion_tokens++;
    c->last_token = event->token;
    if (c->params.num_logprobs >= 0)
        logprobs_text_add(&c->logprobs, c->tok, event->token, event->logprobs, logprobs_asked(c),
                          c->chars);
    strbuf_reset(&c->piece);
    /* The token that ends a sequence is no part of its text, unless the client wants stops shown.
     */
    if (event->finish != FINISH_STOP || c->request->include_stop)
        detok_push(&c->detok, event->token, &c->piece);
    return push_text(c, c->completion_tokens > c->params.min_tokens);
}

static void
end_text(choice *c)
{
    strbuf_reset(&c->piece);
    detok_flush(&c->detok, &c->piece);
    if (push_text(c, true))
        c->finish = FINISH_STOP;
    else
        stop_matcher_flush(&c->stop, &c->text);
}

bool
choice_push(choice *c, const gen_event *event)
{
    if (event->cached_tokens > c->cached_tokens) c->cached_tokens = event->cached_tokens;
    if (event->kind == GEN_PROMPT_LOGPROBS) {
        if (c->params.prompt_logprobs) push_prompt_logprobs(c, event);
    } else if (event->kind == GEN_ROUTED) {
        routed_experts_put(&c->routed, event->position, event->routed, event->routed_count);
    } else if (event->kind == GEN_TOKEN && push_token(c, event)) {
        c->finish = FINISH_STOP;
        return true;
    }
    if (event->finish == FINISH_NONE) return false;
    c->finish = event->finish;
    c->stopped_by_token =
        event->kind == GEN_TOKEN && event->finish == FINISH_STOP && is_stop_token(c, event->token);
    end_text(c);
    return true;
}

static void
print_stop_reason(const choice *c, strbuf *out)
{
    if (c->stop.matched >= 0)
        strbuf_json_string(out, c->stop.stops[c->stop.matched], c->stop.lens[c->stop.matched]);
    else if (c->stopped_by_token)
        strbuf_printf(out, "%u", c->last_token);
    else
        strbuf_puts(out, "null");
}

/* What follows the text. */
static void
print_rest(const choice *c, strbuf *out)
{
    static const char usual[] = ",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}";
    if (c->params.num_logprobs < 0 && c->finish == FINISH_NONE) {
        strbuf_append(out, usual, sizeof usual - 1);
        return;
    }
    strbuf_puts(out, ",\"logprobs\":");
    if (c->params.num_logprobs >= 0)
        logprobs_text_print(&c->logprobs, out);
    else
        strbuf_puts(out, "null");
    const char *finish = finish_reason_name(c->finish);
    if (finish == NULL)
        strbuf_puts(out, ",\"finish_reason\":null");
    else
        strbuf_printf(out, ",\"finish_reason\":\"%s\"", finish);
    strbuf_puts(out, ",\"stop_reason\":");
    print_stop_reason(c, out);
    if (c->params.routed_experts && c->finish != FINISH_NONE) {
        strbuf_puts(out, ",\"routed_experts\":");
        /* The last token was sampled, and nothing computed from it. */
        routed_experts_print(&c->routed, c->prompt->count + c->completion_tokens - 1, out);
    }
    strbuf_puts(out, "}");
}

void
choice_take(choice *c, strbuf *out)
{
    strbuf_append(out, c->head, c->head_len);
    strbuf_json_string(out, strbuf_text(&c->text), c->text.len);
    print_rest(c, out);
    strbuf_reset(&c->text);
    logprobs_text_reset(&c->logprobs);
}

size_t
choice_ready_bytes(const choice *c)
{
    return c->text.len + logprobs_text_bytes(&c->logprobs);
}

bool
choice_failed(const choice *c)
{
    return c->text.failed || logprobs_text_failed(&c->logprobs) || c->stop.held.failed ||
           c->routed.failed;
}
