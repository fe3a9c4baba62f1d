#include "frontend/step_message.h"

#include <stdlib.h>

#include "frontend/sequence.h"

moe_err
step_message_init(step_message *m, uint32_t max_num_seqs, uint32_t routed_token_bytes)
{
    *m = (step_message){.routed_token_bytes = routed_token_bytes,
                        .work = calloc(max_num_seqs, sizeof *m->work),
                        .pointers = calloc(max_num_seqs, sizeof *m->pointers),
                        .inits = calloc(max_num_seqs, sizeof *m->inits),
                        .samplings = calloc(max_num_seqs, sizeof *m->samplings)};
    return m->work && m->pointers && m->inits && m->samplings ? MOE_OK : MOE_ENOMEM;
}

void
step_message_fini(step_message *m)
{
    free(m->work);
    free(m->pointers);
    free(m->inits);
    free(m->samplings);
    *m = (step_message){0};
}

static void
fill_sampling(Conclave__Sampling *out, sequence *q)
{
    const gen_params *p = &q->params;
    conclave__sampling__init(out);
    out->temperature = p->temperature;
    out->top_p = p->top_p;
    out->min_p = p->min_p;
    out->top_k = p->top_k;
    out->presence_penalty = p->presence_penalty;
    out->frequency_penalty = p->frequency_penalty;
    out->repetition_penalty = p->repetition_penalty;
    out->min_tokens = p->min_tokens;
    out->n_stop_token_ids = q->stop_count;
    out->stop_token_ids = q->stop_ids;
    out->n_bias_ids = out->n_bias_values = p->bias_count;
    out->bias_ids = (uint32_t *)(uintptr_t)p->bias_ids;
    out->bias_values = (double *)(uintptr_t)p->bias_values;
    out->num_logprobs = p->num_logprobs;
}

static void
fill_work(step_message *m, uint32_t i, const seq_work *w)
{
    Conclave__SeqWork *out = &m->work[i];
    sequence *q = w->user;
    const uint32_t end = w->start_pos + w->token_count;
    conclave__seq_work__init(out);
    out->slot = w->slot;
    out->start_pos = w->start_pos;
    out->token_is_last_sampled = w->token_is_last_sampled;
    out->n_tokens = w->token_is_last_sampled ? 0 : w->token_count;
    out->tokens = (uint32_t *)(uintptr_t)w->tokens;
    out->block_start = w->block_start;
    out->n_blocks = w->block_count;
    out->blocks = (uint32_t *)(uintptr_t)w->blocks;
    out->sample = w->sample;
    out->routed_experts = q->params.routed_experts;
    out->prompt_logprobs = q->params.prompt_logprobs && w->start_pos + 1 < q->prompt_len &&
                           q->prompt_reported + 1 < q->prompt_len;
    out->has_next_token = out->prompt_logprobs && end < q->prompt_len;
    if (out->has_next_token) out->next_token = w->all_tokens[end];
    if (!w->init) return;

    Conclave__SeqInit *init = &m->inits[i];
    conclave__seq_init__init(init);
    init->seed = q->params.seed;
    init->choice = q->params.choice;
    init->prompt_len = w->prompt_len;
    init->n_cached_tokens = w->start_pos;
    init->cached_tokens = (uint32_t *)(uintptr_t)w->all_tokens;
    init->sampling = &m->samplings[i];
    fill_sampling(init->sampling, q);
    out->init = init;
    if (!q->started) q->cached_tokens = w->start_pos;
    q->started = true;
}

void
step_message_build(step_message *m, const step_plan *plan)
{
    conclave__step_request__init(&m->request);
    m->request.n_work = plan->count;
    m->request.work = m->pointers;
    for (uint32_t i = 0; i < plan->count; i++) {
        m->pointers[i] = &m->work[i];
        fill_work(m, i, &plan->work[i]);
    }
}

static bool
logprobs_fit(const Conclave__TokenLogprobs *l, uint32_t vocab_size)
{
    for (size_t i = 0; i < l->n_top_ids; i++) {
        if (l->top_ids[i] >= vocab_size) return false;
    }
    return true;
}

static bool
result_fits(const seq_work *w, const Conclave__SeqWork *asked, const Conclave__SeqResult *r,
            uint32_t vocab_size, uint32_t routed_token_bytes)
{
    if (r->slot != w->slot) return false;
    const size_t routed = asked->routed_experts ? (size_t)w->token_count * routed_token_bytes : 0;
    if (r->routed_experts.len != routed) return false;
    const size_t prompt_logprobs =
        asked->prompt_logprobs ? asked->n_tokens - 1 + asked->has_next_token : 0;
    if (r->n_prompt_logprobs != prompt_logprobs) return false;
    for (size_t i = 0; i < r->n_prompt_logprobs; i++) {
        if (!logprobs_fit(r->prompt_logprobs[i], vocab_size)) return false;
    }
    if (!w->sample) return true;
    if (!r->sampled || r->token >= vocab_size) return false;
    const sequence *q = w->user;
    if (q->params.num_logprobs >= 0 && r->logprobs == NULL) return false;
    return r->logprobs == NULL || logprobs_fit(r->logprobs, vocab_size);
}

bool
step_message_is_answered(const step_message *m, const step_plan *plan, uint32_t vocab_size,
                         const Conclave__StepReply *reply)
{
    if (reply->step != m->request.step || reply->n_results != plan->count) return false;
    for (uint32_t i = 0; i < plan->count; i++) {
        const seq_work *w = &plan->work[i];
        if (w->user != NULL &&
            !result_fits(w, &m->work[i], reply->results[i], vocab_size, m->routed_token_bytes))
            return false;
    }
    return true;
}
