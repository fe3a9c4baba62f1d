#include "router/step_check.h"

#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "router/sampler.h"

static moe_err
check_sampling(const Conclave__Sampling *p, errbuf *eb)
{
    if (p == NULL) return err_set(eb, MOE_EINVAL, "init without sampling parameters");
    if (p->n_stop_token_ids > STEP_STOP_TOKENS_MAX || p->n_bias_ids > STEP_BIAS_MAX ||
        p->n_bias_ids != p->n_bias_values)
        return err_set(eb, MOE_EINVAL,
                       "%zu stop tokens, %zu and %zu bias entries: too many, or uneven",
                       p->n_stop_token_ids, p->n_bias_ids, p->n_bias_values);
    const double numbers[] = {
        p->temperature,       p->top_p, p->min_p, p->presence_penalty, p->frequency_penalty,
        p->repetition_penalty};
    bool finite = true;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        finite = finite && isfinite(numbers[i]);
    }
    for (size_t i = 0; i < p->n_bias_values; i++) {
        finite = finite && !isnan(p->bias_values[i]); /* infinite ones forbid or force a token */
    }
    if (!finite || p->num_logprobs > (int32_t)SAMPLER_TOP_MAX)
        return err_set(eb, MOE_EINVAL,
                       "a sampling parameter is not finite, or num_logprobs %d is above %u",
                       p->num_logprobs, SAMPLER_TOP_MAX);
    return MOE_OK;
}

static moe_err
check_ids(const step_rules *rules, uint32_t slot, const char *what, const uint32_t *ids,
          size_t count, errbuf *eb)
{
    for (size_t i = 0; i < count; i++) {
        if (ids[i] >= rules->vocab_size)
            return err_set(eb, MOE_EINVAL, "slot %u: %s id %u is not below %u", slot, what, ids[i],
                           rules->vocab_size);
    }
    return MOE_OK;
}

static moe_err
check_blocks(const step_rules *rules, const slot_state *slot, const Conclave__SeqWork *w,
             errbuf *eb)
{
    const uint32_t have = w->init ? 0 : slot->block_count;
    const uint32_t blocks_max = (rules->max_model_len + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    if (w->n_blocks > 0 && (w->block_start > have || w->n_blocks > blocks_max - w->block_start))
        return err_set(eb, MOE_EINVAL,
                       "slot %u: %zu blocks from index %u on do not follow %u known ones", w->slot,
                       w->n_blocks, w->block_start, have);
    for (size_t i = 0; i < w->n_blocks; i++) {
        if (w->blocks[i] >= rules->kv_block_count)
            return err_set(eb, MOE_EINVAL, "slot %u: block %u is not below %u", w->slot,
                           w->blocks[i], rules->kv_block_count);
    }
    const uint64_t covered = w->n_blocks > 0 ? w->block_start + w->n_blocks : have;
    const uint64_t end = (uint64_t)w->start_pos + step_work_tokens(w);
    if (end > rules->max_model_len || covered * KV_BLOCK_TOKENS < end)
        return err_set(eb, MOE_EINVAL, "slot %u: %llu blocks do not cover positions up to %llu",
                       w->slot, (unsigned long long)covered, (unsigned long long)end);
    return MOE_OK;
}

static moe_err
check_work(const step_rules *rules, const slot_state *slot, const Conclave__SeqWork *w, errbuf *eb)
{
    if (step_work_tokens(w) == 0)
        return err_set(eb, MOE_EINVAL, "slot %u: work without tokens", w->slot);
    if (w->routed_experts && !rules->routed_experts)
        return err_set(eb, MOE_EINVAL, "slot %u: this router tells no routed_experts", w->slot);
    if (w->token_is_last_sampled && (w->n_tokens > 0 || w->init != NULL || !slot->sampled))
        return err_set(eb, MOE_EINVAL,
                       "slot %u: no token was sampled that could be fed, or others are given",
                       w->slot);
    if (w->init != NULL) {
        const moe_err err = check_sampling(w->init->sampling, eb);
        if (err) return err;
        if (w->init->n_cached_tokens != w->start_pos || w->init->prompt_len > rules->max_model_len)
            return err_set(eb, MOE_EINVAL, "slot %u: %zu cached tokens, but the work starts at %u",
                           w->slot, w->init->n_cached_tokens, w->start_pos);
    } else if (!slot->used || w->start_pos != slot->known) {
        return err_set(eb, MOE_EINVAL, "slot %u: work at position %u, but %u are known", w->slot,
                       w->start_pos, slot->used ? slot->known : 0);
    }
    if (w->has_next_token && w->next_token >= rules->vocab_size)
        return err_set(eb, MOE_EINVAL, "slot %u: next_token %u is not below %u", w->slot,
                       w->next_token, rules->vocab_size);
    moe_err err = check_ids(rules, w->slot, "token", w->tokens, w->n_tokens, eb);
    if (!err && w->init != NULL)
        err = check_ids(rules, w->slot, "cached token", w->init->cached_tokens,
                        w->init->n_cached_tokens, eb);
    if (err) return err;
    return check_blocks(rules, slot, w, eb);
}

bool
step_order_overtook(const step_order *order, uint64_t client, const Conclave__StepRequest *request)
{
    const bool known = order->client == client;
    if (known && request->life == order->life)
        return !order->failed && request->step == order->step + 2;
    return request->step == 2 && !(known && request->life < order->life);
}

moe_err
step_order_check(const step_order *order, uint64_t incarnation, uint64_t client,
                 const Conclave__StepRequest *request, errbuf *eb)
{
    if (request->router_incarnation != incarnation)
        return err_set(eb, MOE_ECLOSED, "the step counts on another router's KV cache");
    const bool known = order->client == client;
    if (known && request->life < order->life)
        return err_set(eb, MOE_ECLOSED, "the frontend has started over since this step");
    const bool same_life = known && request->life == order->life;
    if (same_life && order->failed)
        return err_set(eb, MOE_ECLOSED, "step %llu failed, and this one counts on it",
                       (unsigned long long)order->step);
    const uint64_t expected = same_life ? order->step + 1 : 1;
    if (request->step != expected)
        return err_set(eb, MOE_EINVAL, "step %llu came where step %llu is due",
                       (unsigned long long)request->step, (unsigned long long)expected);
    return MOE_OK;
}

moe_err
step_check(const step_rules *rules, const slot_state *slots, bool *seen,
           const Conclave__StepRequest *request, errbuf *eb)
{
    if (request->n_work > rules->max_num_seqs)
        return err_set(eb, MOE_ERANGE, "%zu sequences in a step, at most %u", request->n_work,
                       rules->max_num_seqs);
    memset(seen, 0, rules->max_num_seqs * sizeof *seen);
    uint64_t tokens = 0;
    for (size_t i = 0; i < request->n_work; i++) {
        const Conclave__SeqWork *w = request->work[i];
        if (w->slot >= rules->max_num_seqs)
            return err_set(eb, MOE_EINVAL, "slot %u is not below %u", w->slot, rules->max_num_seqs);
        if (seen[w->slot]) return err_set(eb, MOE_EINVAL, "slot %u is named twice", w->slot);
        seen[w->slot] = true;
        const moe_err err = check_work(rules, &slots[w->slot], w, eb);
        if (err) return err;
        tokens += step_work_tokens(w);
    }
    if (tokens > rules->max_num_batched_tokens)
        return err_set(eb, MOE_ERANGE, "%llu tokens in a step, at most %u",
                       (unsigned long long)tokens, rules->max_num_batched_tokens);
    return MOE_OK;
}
