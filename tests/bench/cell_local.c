#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/cpu.h"
#include "router/sampler.h"
#include "router/transformer.h"
#include "tests/bench/cell.h"
#include "tests/bench/local_exchange.h"

const bool cell_is_local = true;

/* A step that was run when it was begun. */
typedef struct done_step {
    uint32_t *sampled; /* [seq_max] */
    uint32_t count;
    cell_times times;
    moe_err err;
} done_step;

struct cell {
    cell_options options;
    checkpoint *checkpoint;
    pool *pool;
    transformer *transformer;
    expert_store *store;
    ffn *ffn;
    router_end *exchange;
    sampler *sampler;
    kernel_table kernels;
    placement *placement; /* all on worker 0 */
    uint32_t *blocks;     /* [seq_max * blocks_per_seq] 0, 1, 2, ... */
    step_seq *seqs;       /* [seq_max] */
    uint64_t step;
    uint32_t *last;             /* [seq_max] what each slot sampled last */
    done_step done[CELL_STEPS]; /* a ring */
    uint32_t first_done, done_count;
    /* Of the step being run. */
    uint32_t *sampled;
    const cell_work *work;
};

static transformer_config
sizes_of(const cell_options *o)
{
    transformer_config t = {.expert_dtype = dtype_parse(o->dtype),
                            .token_max = o->token_max,
                            .seq_max = o->seq_max,
                            .max_model_len = o->model_len,
                            .kv_block_count = o->blocks_per_seq * o->seq_max,
                            .micro_batches = 1};
    t.attn_dtype = strcmp(o->attn_dtype, "auto") == 0 ? t.expert_dtype : dtype_parse(o->attn_dtype);
    if (strcmp(o->kv_dtype, "auto") == 0)
        t.kv_dtype = t.attn_dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
    else
        t.kv_dtype = dtype_parse(o->kv_dtype);
    return t;
}

static moe_err
load_experts(cell *c, const transformer_config *sizes, errbuf *eb)
{
    const model_config *m = checkpoint_config(c->checkpoint);
    const uint32_t total = m->num_layers * m->num_experts;
    uint32_t *ids = malloc(total * sizeof *ids);
    if (ids == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < total; i++)
        ids[i] = i;
    expert_layout layout;
    expert_layout_init(&layout, sizes->expert_dtype, m, 0, m->intermediate_size);
    moe_err err =
        placement_create(&c->placement, m->num_layers, m->num_experts, 1, &m->num_experts, eb);
    if (!err) err = placement_set_linear(c->placement, eb);
    if (!err)
        err = expert_store_create(&c->store, c->checkpoint, &layout, ids, total, c->pool, NULL, eb);
    free(ids);
    if (err) return err;
    err = ffn_create(&c->ffn, &c->kernels, c->pool, &layout, sizes->token_max * m->top_k, 1,
                     m->num_experts);
    return err ? err_set(eb, err, "no memory for the rows of a step") : MOE_OK;
}

static moe_err
allocate(cell *c, errbuf *eb)
{
    const uint32_t blocks = c->options.blocks_per_seq * c->options.seq_max;
    c->blocks = malloc(blocks * sizeof *c->blocks);
    c->seqs = calloc(c->options.seq_max, sizeof *c->seqs);
    c->last = calloc(c->options.seq_max, sizeof *c->last);
    bool whole = c->blocks != NULL && c->seqs != NULL && c->last != NULL;
    for (uint32_t i = 0; i < CELL_STEPS; i++) {
        c->done[i].sampled = calloc(c->options.seq_max, sizeof *c->done[i].sampled);
        whole = whole && c->done[i].sampled != NULL;
    }
    if (!whole) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < blocks; i++)
        c->blocks[i] = i;
    const uint32_t vocab = checkpoint_config(c->checkpoint)->vocab_size;
    const moe_err err = sampler_create(&c->sampler, vocab);
    return err ? err_set(eb, err, "no memory for a sampler of %u tokens", vocab) : MOE_OK;
}

static moe_err
build(cell *c, errbuf *eb)
{
    const transformer_config sizes = sizes_of(&c->options);
    kernel_table_init(&c->kernels, cpu_flags());
    moe_err err = checkpoint_open(&c->checkpoint, c->options.model, eb);
    if (err) return err;
    if (pool_create(&c->pool, c->options.threads) != MOE_OK)
        return err_set(eb, MOE_EIO, "can't start %u threads", c->options.threads);
    err = transformer_create(&c->transformer, c->checkpoint, &c->kernels, c->pool, &sizes, eb);
    if (!err) err = load_experts(c, &sizes, eb);
    if (err) return err;
    const exchange_limits limits = transformer_exchange_limits(c->transformer);
    err = local_exchange_create(&c->exchange, &limits, c->store, c->ffn, eb);
    return err ? err : allocate(c, eb);
}

moe_err
cell_open(cell **out, const cell_options *options, errbuf *eb)
{
    *out = NULL;
    cell *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    c->options = *options;
    const moe_err err = build(c, eb);
    if (err) {
        cell_close(c);
        return err;
    }
    *out = c;
    return MOE_OK;
}

void
cell_close(cell *c)
{
    if (c == NULL) return;
    router_end_free(c->exchange);
    transformer_free(c->transformer);
    ffn_free(c->ffn);
    expert_store_free(c->store);
    sampler_free(c->sampler);
    pool_free(c->pool);
    checkpoint_close(c->checkpoint);
    placement_free(c->placement);
    free(c->blocks);
    free(c->seqs);
    free(c->last);
    for (uint32_t i = 0; i < CELL_STEPS; i++)
        free(c->done[i].sampled);
    free(c);
}

static void
on_logits(void *user, uint32_t seq, uint32_t token_index, const float *logits)
{
    cell *c = user;
    const cell_work *w = &c->work[seq];
    sampling_params greedy = sampler_default_params();
    (void)token_index;
    greedy.temperature = 0;
    c->sampled[seq] = sampler_sample(c->sampler, &greedy, logits, w->tokens, w->count, w->count,
                                     w->start_pos + w->count);
}

moe_err
cell_begin(cell *c, const cell_work *work, uint32_t count, errbuf *eb)
{
    const expert_fleet fleet = {.exchange = c->exchange,
                                .mode = WIRE_EP,
                                .worker_count = 1,
                                .placement = c->placement,
                                .epoch = 1,
                                .timeout_ms = 600000};
    done_step *d = &c->done[(c->first_done + c->done_count++) % CELL_STEPS];
    for (uint32_t i = 0; i < count; i++) {
        c->seqs[i] =
            (step_seq){.start_pos = work[i].start_pos,
                       .token_count = work[i].count,
                       .tokens = work[i].last_sampled ? &c->last[work[i].slot] : work[i].tokens,
                       .block_table = c->blocks + (size_t)work[i].slot * c->options.blocks_per_seq,
                       .want_last = work[i].sample};
    }
    c->work = work;
    c->sampled = d->sampled;
    d->count = count;
    step_times st;
    uint32_t lost;
    const uint64_t start = clock_now_ns();
    d->err = transformer_step(c->transformer, &fleet, ++c->step, c->seqs, count, on_logits, c, NULL,
                              &st, &lost, eb);
    d->times = (cell_times){clock_now_ns() - start, st.expert_wait_ns};
    for (uint32_t i = 0; i < count; i++)
        c->last[work[i].slot] = d->sampled[i];
    return d->err;
}

moe_err
cell_end(cell *c, uint32_t *sampled, cell_times *times, errbuf *eb)
{
    (void)eb;
    const done_step *d = &c->done[c->first_done];
    c->first_done = (c->first_done + 1) % CELL_STEPS;
    c->done_count--;
    memcpy(sampled, d->sampled, d->count * sizeof *sampled);
    *times = d->times;
    return d->err;
}
