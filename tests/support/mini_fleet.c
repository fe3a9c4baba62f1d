#include "tests/support/mini_fleet.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "common/cpu.h"
#include "common/run_dir.h"

static void
fill_defaults(mini_options *o)
{
    if (o->workers == 0) o->workers = 1;
    if (o->token_max == 0) o->token_max = 512;
    if (o->max_model_len == 0) o->max_model_len = 1024;
    if (o->seq_max == 0) o->seq_max = 4;
    if (o->micro_batches == 0) o->micro_batches = 1;
    if (o->threads == 0) o->threads = 1;
    if (o->cpu_flags == UINT_MAX) o->cpu_flags = cpu_flags();
}

static void
load_worker(mini_fleet *m, uint32_t w, errbuf *eb)
{
    const model_config *c = m->config;
    const bool tp = m->options.mode == WIRE_TP;
    const uint32_t total = c->num_layers * c->num_experts;
    uint32_t *ids = malloc(total * sizeof *ids), count = 0, begin, end;
    cr_assert_not_null(ids);
    for (uint32_t i = 0; i < total; i++) {
        if (tp || placement_is_host(m->placement, i / c->num_experts, i % c->num_experts, w))
            ids[count++] = i;
    }
    expert_layout layout;
    tp_slice(c->intermediate_size, tp ? w : 0, tp ? m->options.workers : 1, &begin, &end);
    expert_layout_init(&layout, m->options.expert_dtype, c, begin, end);
    expert_store *store;
    cr_assert_eq(expert_store_create(&store, m->checkpoint, &layout, ids, count, m->worker_pools[w],
                                     NULL, eb),
                 MOE_OK, "%s", eb->text);
    cr_assert_eq(compute_load(m->computes[w], 0, store, 1, c->num_experts,
                              m->options.token_max * c->top_k, eb),
                 MOE_OK, "%s", eb->text);
    free(ids);
}

static void
start_worker(mini_fleet *m, uint32_t w, const char *run)
{
    errbuf eb = {{0}};
    char listen[128];
    if (m->options.tcp)
        snprintf(listen, sizeof listen, "tcp://127.0.0.1:0");
    else
        snprintf(listen, sizeof listen, "ipc://%s/w%u", m->dir, w);
    cr_assert_eq(pool_create(&m->worker_pools[w], m->options.threads), MOE_OK);
    cr_assert_eq(worker_end_create(&m->workers[w], run, w, 100 + w, listen, &eb), MOE_OK, "%s",
                 eb.text);
    cr_assert_eq(compute_start(&m->computes[w], m->workers[w], &m->kernels, m->worker_pools[w],
                               false, NULL, &eb),
                 MOE_OK, "%s", eb.text);
    load_worker(m, w, &eb);

    const exchange_limits limits = transformer_exchange_limits(m->transformer);
    attach_offer offer;
    attach_answer answer = {{0}, {0}};
    cr_assert_eq(router_end_prepare(m->router, w, 100 + w, m->options.backend, &offer, &eb), MOE_OK,
                 "%s", eb.text);
    cr_assert_eq(worker_end_attach(m->workers[w], &limits, &offer, &answer, &eb), MOE_OK, "%s",
                 eb.text);
    cr_assert_eq(router_end_complete(m->router, w, &answer, 10000, &eb), MOE_OK, "%s", eb.text);
}

static void
place_experts(mini_fleet *m, errbuf *eb)
{
    const model_config *c = m->config;
    uint32_t slots[MINI_WORKERS_MAX];
    const uint32_t workers = m->options.workers, total = c->num_experts + m->options.redundant;
    if (m->options.mode == WIRE_TP) return;
    for (uint32_t w = 0; w < workers; w++) {
        slots[w] = (total + workers - 1 - w) / workers;
    }
    cr_assert_eq(placement_create(&m->placement, c->num_layers, c->num_experts, workers, slots, eb),
                 MOE_OK, "%s", eb->text);
    cr_assert_eq(placement_set_linear(m->placement, eb), MOE_OK, "%s", eb->text);
    placement_fill_spare(m->placement);
}

void
mini_fleet_start(mini_fleet *m, const mini_options *options)
{
    errbuf eb = {{0}};
    *m = (mini_fleet){.options = *options};
    fill_defaults(&m->options);
    const mini_options *o = &m->options;
    snprintf(m->dir, sizeof m->dir, "/tmp/mini-fleet-XXXXXX");
    cr_assert_not_null(mkdtemp(m->dir));
    run_dir run;
    cr_assert_eq(run_dir_open(&run, m->dir, &eb), MOE_OK, "%s", eb.text);

    cr_assert_eq(checkpoint_open(&m->checkpoint, o->model_dir, &eb), MOE_OK, "%s", eb.text);
    m->config = checkpoint_config(m->checkpoint);
    kernel_table_init(&m->kernels, o->cpu_flags);
    cr_assert_eq(pool_create(&m->router_pool, o->threads), MOE_OK);
    m->blocks_per_seq = (o->max_model_len + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    const transformer_config tc = {.attn_dtype = o->attn_dtype,
                                   .expert_dtype = o->expert_dtype,
                                   .kv_dtype = o->kv_dtype,
                                   .token_max = o->token_max,
                                   .seq_max = o->seq_max,
                                   .max_model_len = o->max_model_len,
                                   .kv_block_count = m->blocks_per_seq * o->seq_max,
                                   .micro_batches = o->micro_batches};
    cr_assert_eq(
        transformer_create(&m->transformer, m->checkpoint, &m->kernels, m->router_pool, &tc, &eb),
        MOE_OK, "%s", eb.text);
    const exchange_limits limits = transformer_exchange_limits(m->transformer);
    cr_assert_eq(router_end_create(&m->router, &limits, run.id, 0, 1, &eb), MOE_OK, "%s", eb.text);

    place_experts(m, &eb);
    m->block_tables = malloc(o->seq_max * m->blocks_per_seq * sizeof(uint32_t));
    for (uint32_t i = 0; i < o->seq_max * m->blocks_per_seq; i++) {
        m->block_tables[i] = i;
    }
    for (uint32_t w = 0; w < o->workers; w++) {
        start_worker(m, w, run.id);
    }
    m->fleet = (expert_fleet){.exchange = m->router,
                              .mode = o->mode,
                              .worker_count = o->workers,
                              .placement = m->placement,
                              .epoch = 1,
                              .timeout_ms = 60000};
}

void
mini_fleet_stop(mini_fleet *m)
{
    router_end_free(m->router);
    for (uint32_t w = 0; w < m->options.workers; w++) {
        compute_stop(m->computes[w]);
        worker_end_free(m->workers[w]);
        pool_free(m->worker_pools[w]);
    }
    transformer_free(m->transformer);
    pool_free(m->router_pool);
    checkpoint_close(m->checkpoint);
    placement_free(m->placement);
    free(m->block_tables);
    rmdir(m->dir);
    *m = (mini_fleet){0};
}

step_seq
mini_seq(const mini_fleet *m, uint32_t s, const uint32_t *tokens, uint32_t start, uint32_t count)
{
    return (step_seq){.start_pos = start,
                      .token_count = count,
                      .tokens = tokens + start,
                      .block_table = m->block_tables + (size_t)s * m->blocks_per_seq};
}

void
mini_step(mini_fleet *m, const step_seq *seqs, uint32_t count, logits_fn *on_logits, void *user,
          const transformer_probe *probe)
{
    errbuf eb = {{0}};
    step_times times;
    uint32_t lost;
    cr_assert_eq(transformer_step(m->transformer, &m->fleet, ++m->step, seqs, count, on_logits,
                                  user, probe, &times, &lost, &eb),
                 MOE_OK, "%s", eb.text);
}

typedef struct logits_sink {
    float *out; /* [..][V] */
    uint32_t vocab, start;
} logits_sink;

static void
copy_logits(void *user, uint32_t seq, uint32_t token_index, const float *logits)
{
    (void)seq;
    const logits_sink *sink = user;
    memcpy(sink->out + (size_t)(sink->start + token_index) * sink->vocab, logits,
           sink->vocab * sizeof(float));
}

void
mini_logits(mini_fleet *m, uint32_t s, const uint32_t *tokens, uint32_t count, uint32_t chunk,
            float *logits)
{
    if (chunk == 0) chunk = m->options.token_max;
    for (uint32_t at = 0; at < count; at += chunk) {
        step_seq seq = mini_seq(m, s, tokens, at, count - at < chunk ? count - at : chunk);
        seq.want_all = true;
        logits_sink sink = {logits, m->config->vocab_size, at};
        mini_step(m, &seq, 1, copy_logits, &sink, NULL);
    }
}

static void
pick_best(void *user, uint32_t seq, uint32_t token_index, const float *logits)
{
    (void)seq;
    (void)token_index;
    const logits_sink *sink = user;
    uint32_t best = 0;
    for (uint32_t i = 1; i < sink->vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    memcpy(sink->out, &best, sizeof best);
}

void
mini_greedy(mini_fleet *m, uint32_t s, const uint32_t *prompt, uint32_t count, uint32_t steps,
            uint32_t *out)
{
    uint32_t *tokens = malloc((count + steps) * sizeof *tokens);
    cr_assert_not_null(tokens);
    memcpy(tokens, prompt, count * sizeof *tokens);
    uint32_t known = 0, total = count;
    for (uint32_t i = 0; i < steps; i++) {
        for (; known < total;) {
            const uint32_t left = total - known;
            const uint32_t n = left < m->options.token_max ? left : m->options.token_max;
            step_seq seq = mini_seq(m, s, tokens, known, n);
            seq.want_last = known + n == total;
            uint32_t best = 0;
            logits_sink sink = {(float *)(void *)&best, m->config->vocab_size, 0};
            mini_step(m, &seq, 1, pick_best, &sink, NULL);
            known += n;
            if (known == total) tokens[total] = out[i] = best;
        }
        total++;
    }
    free(tokens);
}
