#include <math.h>

#include "loadgen/dataset_impl.h"

#define TOKEN_ID_MAX 0x7fffffff
#define PREFIX_COUNT_MAX (1 << 20)

moe_err
dataset_check_vocab(const dataset_config *c, errbuf *eb)
{
    if (c->vocab_first < 0 || c->vocab_end <= c->vocab_first || c->vocab_end > TOKEN_ID_MAX)
        return err_set(eb, MOE_ERANGE, "random ids from %lld to below %lld: no such range",
                       (long long)c->vocab_first, (long long)c->vocab_end);
    return MOE_OK;
}

static moe_err
check(const dataset_config *c, errbuf *eb)
{
    if (c->input_len < 0 || c->prefix_len < 0 || c->input_len + c->prefix_len < 1 ||
        c->input_len > DATASET_TOKENS_MAX || c->prefix_len > DATASET_TOKENS_MAX)
        return err_set(eb, MOE_ERANGE, "random prompts of %lld + %lld tokens: must be 1..%u",
                       (long long)c->prefix_len, (long long)c->input_len, DATASET_TOKENS_MAX);
    if (c->random_output_len < 1 || c->random_output_len > DATASET_TOKENS_MAX)
        return err_set(eb, MOE_ERANGE, "random answers of %lld tokens: must be 1..%u",
                       (long long)c->random_output_len, DATASET_TOKENS_MAX);
    if (!(c->range_ratio >= 0 && c->range_ratio < 1))
        return err_set(eb, MOE_ERANGE, "range ratio %g: must be within 0..1", c->range_ratio);
    return dataset_check_vocab(c, eb);
}

static int64_t
draw_length(rng *r, int64_t len, double ratio, int64_t min)
{
    const int64_t low = (int64_t)floor((double)len * (1 - ratio));
    const int64_t high = (int64_t)ceil((double)len * (1 + ratio));
    const int64_t drawn = low + (int64_t)rng_below(r, (uint64_t)(high - low) + 1);
    return drawn < min ? min : drawn;
}

void
dataset_draw_ids(rng *r, const dataset_config *c, int64_t count, strbuf *out)
{
    const uint64_t range = (uint64_t)(c->vocab_end - c->vocab_first);
    for (int64_t i = 0; i < count; i++) {
        if (out->len > 1) strbuf_puts(out, ",");
        strbuf_printf(out, "%lld", (long long)c->vocab_first + (long long)rng_below(r, range));
    }
}

/* A prompt of a prefix, drawn by its generator, and the ids of prompt number i. */
static moe_err
add(const dataset_config *c, rng *lengths, rng *prefix, dataset *out, errbuf *eb)
{
    /* With a prefix the rest may be empty; without one a prompt has at least one token. */
    const int64_t own = draw_length(lengths, c->input_len, c->range_ratio, !c->prefix_len);
    const int64_t answer = draw_length(lengths, c->random_output_len, c->range_ratio, 1);
    rng ids;
    strbuf json;
    strbuf_init(&json, PROMPT_BYTES_MAX);
    strbuf_puts(&json, "[");
    dataset_draw_ids(prefix, c, c->prefix_len, &json);
    /* A stream for each prompt: prompt i stays what it is when other lengths change. */
    rng_init(&ids, c->seed + 1 + out->count, RNG_TOKENS);
    dataset_draw_ids(&ids, c, own, &json);
    strbuf_puts(&json, "]");
    const moe_err err = dataset_add(out, &json, c->prefix_len + own, answer, eb);
    strbuf_fini(&json);
    return err;
}

moe_err
dataset_make_random(const dataset_config *c, dataset *out, errbuf *eb)
{
    rng lengths, prefix;
    rng_init(&lengths, c->seed, RNG_LENGTHS);
    moe_err err = check(c, eb);
    while (!err && out->count < c->count) {
        rng_init(&prefix, c->seed, RNG_TOKENS);
        err = add(c, &lengths, &prefix, out, eb);
    }
    return err;
}

moe_err
dataset_make_prefix_repetition(const dataset_config *c, dataset *out, errbuf *eb)
{
    rng lengths, prefix, choice;
    rng_init(&lengths, c->seed, RNG_LENGTHS);
    rng_init(&choice, c->seed, RNG_SHUFFLE);
    moe_err err = check(c, eb);
    if (!err && (c->prefix_count < 1 || c->prefix_count > PREFIX_COUNT_MAX))
        err = err_set(eb, MOE_ERANGE, "%lld prefixes: must be 1..%d", (long long)c->prefix_count,
                      PREFIX_COUNT_MAX);
    while (!err && out->count < c->count) {
        const uint64_t which = rng_below(&choice, (uint64_t)c->prefix_count);
        rng_init(&prefix, c->seed + which, RNG_BLOCKS);
        err = add(c, &lengths, &prefix, out, eb);
    }
    return err;
}
