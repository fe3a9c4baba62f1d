#include "frontend/sequence.h"

#include <stdlib.h>

sequence *
sequence_create(uint32_t prompt_len, const gen_params *params, const uint32_t *eos_ids,
                uint32_t eos_count, gen_sink *sink, void *user)
{
    sequence *q = calloc(1, sizeof *q);
    if (q == NULL) return NULL;
    q->sink = sink;
    q->user = user;
    q->params = *params;
    q->prompt_len = prompt_len;
    for (uint32_t i = 0; i < params->stop_token_count && i < GEN_STOP_TOKENS_MAX; i++) {
        q->stop_ids[q->stop_count++] = params->stop_token_ids[i];
    }
    for (uint32_t i = 0; i < eos_count && !params->ignore_eos; i++) {
        if (q->stop_count < GEN_STOP_TOKENS_MAX) q->stop_ids[q->stop_count++] = eos_ids[i];
    }
    return q;
}

static void
end_with(sequence *q, gen_event event)
{
    event.kind = GEN_FINISH;
    event.cached_tokens = q->cached_tokens;
    q->sink(q->user, &event);
    free(q);
}

void
sequence_end(sequence *q, finish_reason reason, const char *error)
{
    end_with(q, (gen_event){.finish = reason, .error = error});
}

void
sequence_end_unserved(sequence *q, const char *error)
{
    end_with(q, (gen_event){.finish = FINISH_ERROR, .error = error, .unserved = true});
}

static void
read_logprobs(const Conclave__TokenLogprobs *from, token_logprobs *to)
{
    size_t n = from->n_top_ids < from->n_top_logprobs ? from->n_top_ids : from->n_top_logprobs;
    if (n > GEN_LOGPROBS_MAX) n = GEN_LOGPROBS_MAX;
    *to = (token_logprobs){
        .logprob = (float)from->logprob, .rank = from->rank, .top_count = (uint32_t)n};
    for (size_t i = 0; i < n; i++) {
        to->top_ids[i] = from->top_ids[i];
        to->top_logprobs[i] = (float)from->top_logprobs[i];
    }
}

void
sequence_tell_prompt_logprobs(sequence *q, const seq_work *w, const Conclave__SeqResult *result)
{
    for (size_t i = 0; i < result->n_prompt_logprobs; i++) {
        const uint32_t position = w->start_pos + 1 + (uint32_t)i;
        if (position >= q->prompt_len) return;
        if (position <= q->prompt_reported) continue; /* computed again after a preemption */
        token_logprobs logprobs;
        read_logprobs(result->prompt_logprobs[i], &logprobs);
        const gen_event event = {.kind = GEN_PROMPT_LOGPROBS,
                                 .position = position,
                                 .token = w->all_tokens[position],
                                 .logprobs = &logprobs,
                                 .cached_tokens = q->cached_tokens};
        q->sink(q->user, &event);
        q->prompt_reported = position;
    }
}

void
sequence_tell_routed(sequence *q, const seq_work *w, const Conclave__SeqResult *result)
{
    if (!q->params.routed_experts) return;
    const gen_event event = {.kind = GEN_ROUTED,
                             .position = w->start_pos,
                             .routed = result->routed_experts.data,
                             .routed_count = w->token_count,
                             .cached_tokens = q->cached_tokens};
    q->sink(q->user, &event);
}

bool
sequence_tell_token(sequence *q, const seq_work *w, const Conclave__SeqResult *result,
                    finish_reason finish)
{
    token_logprobs logprobs;
    gen_event event = {.kind = GEN_TOKEN,
                       .position = w->start_pos + w->token_count,
                       .token = result->token,
                       .finish = finish,
                       .cached_tokens = q->cached_tokens};
    if (result->logprobs != NULL) {
        read_logprobs(result->logprobs, &logprobs);
        event.logprobs = &logprobs;
    }
    return q->sink(q->user, &event);
}
