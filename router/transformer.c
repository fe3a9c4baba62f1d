#include "router/transformer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "router/transformer_impl.h"

#define HEAD_ROWS 64     /* logits computed at a time */
#define ROWS_PER_ITEM 16 /* row operations, attention */
#define TILES_PER_ITEM 8 /* products */
#define GEMM_ROWS 256    /* rows of one product item */
#define PARALLEL_MIN                                                                               \
    500000u /* multiply-adds below which waking threads costs more than it gives                   \
             */

const char *const step_phase_names[STEP_PHASES] = {
    "idle",      "prepare", "embed",   "norm",     "qkv",  "rope_store",
    "attention", "pack",    "project", "ffn_norm", "gate", "dispatch",
    "wait",      "combine", "head",    "sample",   "reply"};

static void *
array(size_t count, size_t bytes)
{
    const size_t total = (count * bytes + 63) / 64 * 64 + 64;
    void *p = aligned_alloc(64, total);
    if (p != NULL) memset(p, 0, total);
    return p;
}

static void
fill_rope(transformer *tf)
{
    const uint32_t half = tf->config.head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        const float inv_freq =
            1.0f / (float)pow(tf->config.rope_theta, (double)(2 * i) / tf->config.head_dim);
        for (uint32_t pos = 0; pos < tf->limits.max_model_len; pos++) {
            const float angle = (float)pos * inv_freq;
            tf->rope_cos[(size_t)pos * half + i] = (float)cos((double)angle);
            tf->rope_sin[(size_t)pos * half + i] = (float)sin((double)angle);
        }
    }
}

exchange_limits
transformer_exchange_limits(const transformer *tf)
{
    return (exchange_limits){.micro_batch_max = tf->limits.micro_batches,
                             .token_max = tf->limits.token_max,
                             .num_layers = tf->config.num_layers,
                             .num_experts = tf->config.num_experts,
                             .top_k = tf->config.top_k,
                             .hidden = tf->config.hidden_size,
                             .dtype = tf->limits.expert_dtype};
}

static moe_err
allocate(transformer *tf, errbuf *eb)
{
    const model_config *c = &tf->config;
    const uint32_t q_width = c->num_heads * c->head_dim, t = tf->limits.token_max;
    tf->hidden_stride = pad_k(c->hidden_size);
    const size_t act_h = act_row_bytes(tf->limits.attn_dtype, c->hidden_size);
    const size_t act_q = act_row_bytes(tf->limits.attn_dtype, q_width);
    tf->act_stride = act_h > act_q ? act_h : act_q;
    tf->gate_stride = round_up_u32(c->num_experts, TILE_N);
    tf->logits_stride = round_up_u32(c->vocab_size, TILE_N);
    tf->scratch_stride = round_up_u32((uint32_t)attn_scratch_floats(c->head_dim), 16);

    tf->kv_block_stride = kv_block_bytes(tf->limits.kv_dtype, c->num_kv_heads, c->head_dim);
    tf->kv_bytes = tf->kv_block_stride * tf->limits.kv_block_count * c->num_layers;
    void *kv = mmap(NULL, tf->kv_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (kv == MAP_FAILED)
        return err_set(eb, MOE_ENOMEM, "no memory for a KV cache of %zu bytes", tf->kv_bytes);
    madvise(kv, tf->kv_bytes, MADV_HUGEPAGE);
    tf->kv = kv;

    const size_t rope = (size_t)tf->limits.max_model_len * (c->head_dim / 2);
    tf->rope_cos = array(rope, sizeof(float));
    tf->rope_sin = array(rope, sizeof(float));
    tf->x = array((size_t)t * c->hidden_size, sizeof(float));
    tf->normed = array(t * tf->hidden_stride, sizeof(float));
    tf->act = array(t, tf->act_stride);
    tf->qkv = array((size_t)t * tf->weights.qkv_width, sizeof(float));
    tf->attn = array((size_t)t * q_width, sizeof(float));
    tf->proj = array(t * tf->hidden_stride, sizeof(float));
    tf->gate_logits = array(t * tf->gate_stride, sizeof(float));
    tf->topk_ids = array((size_t)t * c->top_k, sizeof(uint32_t));
    tf->topk_weights = array((size_t)t * c->top_k, sizeof(float));
    tf->row_seq = array(t, sizeof(uint32_t));
    tf->row_pos = array(t, sizeof(uint32_t));
    tf->row_index = array(t, sizeof(uint32_t));
    tf->wanted = array(t, sizeof(bool));
    tf->logits = array(HEAD_ROWS * tf->logits_stride, sizeof(float));
    tf->scratch = array(pool_size(tf->pool) * tf->scratch_stride, sizeof(float));
    tf->expert_tokens = array((size_t)c->num_layers * c->num_experts, sizeof(uint64_t));
    tf->expert_rows = array(c->num_experts, sizeof(uint32_t));
    tf->worker_rows = array(WORKER_MAX, sizeof(uint64_t));
    if (!tf->rope_cos || !tf->rope_sin || !tf->x || !tf->normed || !tf->act || !tf->qkv ||
        !tf->attn || !tf->proj || !tf->gate_logits || !tf->topk_ids || !tf->topk_weights ||
        !tf->row_seq || !tf->row_pos || !tf->row_index || !tf->wanted || !tf->logits ||
        !tf->scratch || !tf->expert_tokens || !tf->expert_rows || !tf->worker_rows)
        return err_set(eb, MOE_ENOMEM, "no memory for the buffers of %u tokens a step", t);
    return MOE_OK;
}

moe_err
transformer_create(transformer **out, const checkpoint *c, const kernel_table *kernels, pool *p,
                   const transformer_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->token_max == 0 || config->token_max > EXCHANGE_TOKEN_MAX || config->seq_max == 0 ||
        config->max_model_len == 0 || config->max_model_len > MODEL_POSITION_MAX ||
        config->kv_block_count == 0 || config->micro_batches == 0 ||
        config->micro_batches > MICRO_BATCH_MAX)
        return err_set(eb, MOE_ERANGE, "a limit of the step is zero or too large");

    transformer *tf = calloc(1, sizeof *tf);
    if (tf == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    tf->config = *checkpoint_config(c);
    tf->limits = *config;
    tf->phases = config->phases != NULL ? config->phases : &phases_off;
    tf->kernels = kernels;
    tf->pool = p;
    moe_err err =
        router_weights_load(&tf->weights, c, config->attn_dtype, config->packed_cache, p, eb);
    if (!err) err = allocate(tf, eb);
    const exchange_limits limits = transformer_exchange_limits(tf);
    for (uint32_t m = 0; m < config->micro_batches && !err; m++) {
        err = dispatch_plan_create(&tf->batches[m].plan, &limits, WORKER_MAX);
        if (err) err_set(eb, err, "no memory for a dispatch plan");
    }
    if (!err) {
        /* No worker has an expert twice. */
        const uint64_t slots = (uint64_t)limits.num_experts * WORKER_MAX;
        err = replica_choice_create(
            &tf->choice, limits.num_experts, WORKER_MAX,
            slots < PLACEMENT_SLOT_MAX ? (uint32_t)slots : PLACEMENT_SLOT_MAX, REPLICA_ROWS_MIN);
        if (err) err_set(eb, err, "no memory for the choice of replicas");
    }
    if (err) {
        transformer_free(tf);
        return err;
    }
    fill_rope(tf);
    *out = tf;
    return MOE_OK;
}

void
transformer_free(transformer *tf)
{
    if (tf == NULL) return;
    void *const owned[] = {tf->rope_cos,    tf->rope_sin,     tf->x,
                           tf->normed,      tf->act,          tf->qkv,
                           tf->attn,        tf->proj,         tf->gate_logits,
                           tf->topk_ids,    tf->topk_weights, tf->row_seq,
                           tf->row_pos,     tf->row_index,    tf->wanted,
                           tf->logits,      tf->scratch,      tf->expert_tokens,
                           tf->expert_rows, tf->worker_rows};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
    for (uint32_t m = 0; m < MICRO_BATCH_MAX; m++) {
        dispatch_plan_free(tf->batches[m].plan);
    }
    replica_choice_free(tf->choice);
    if (tf->kv != NULL) munmap(tf->kv, tf->kv_bytes);
    router_weights_unload(&tf->weights);
    free(tf);
}

void
transformer_bind_thread(const transformer *tf)
{
    pool_bind_caller(tf->pool);
}

uint32_t
transformer_id_bytes(const transformer *tf)
{
    return tf->config.num_experts <= 256 ? 1 : 2;
}

const uint64_t *
transformer_expert_tokens(const transformer *tf)
{
    return tf->expert_tokens;
}

/* ---- running a phase over the pool ---- */

static void
run_items(transformer *tf, pool_fn *fn, uint32_t items, uint64_t work)
{
    if (items > 1 && work >= PARALLEL_MIN) {
        pool_run(tf->pool, fn, tf, items);
    } else {
        for (uint32_t i = 0; i < items; i++) {
            fn(tf, i, 0);
        }
    }
}

static void
gemm_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    gemm_args g = tf->job.gemm;
    const uint32_t row0 = item / tf->job.tile_items * GEMM_ROWS;
    g.tile_begin = item % tf->job.tile_items * TILES_PER_ITEM;
    g.tile_end = g.tile_begin + TILES_PER_ITEM;
    if (g.tile_end > tf->job.tile_total) g.tile_end = tf->job.tile_total;
    g.a = (const char *)g.a + row0 * g.a_stride;
    g.out += row0 * g.out_stride;
    g.m = g.m - row0 < GEMM_ROWS ? g.m - row0 : GEMM_ROWS;
    tf->job.gemm_fn(&g);
}

/* out rows [m] = activation rows [m] times w [n, k]. */
static void
multiply(transformer *tf, moe_dtype dtype, const void *w, uint32_t n, uint32_t k, const void *a,
         size_t a_stride, uint32_t m, float *out, size_t out_stride)
{
    if (m == 0) return;
    tf->job.gemm = (gemm_args){
        .w = w, .k = k, .a = a, .a_stride = a_stride, .m = m, .out = out, .out_stride = out_stride};
    tf->job.gemm_fn = tf->kernels->gemm[dtype];
    tf->job.tile_total = tile_count(n);
    tf->job.tile_items = (tf->job.tile_total + TILES_PER_ITEM - 1) / TILES_PER_ITEM;
    run_items(tf, gemm_item, tf->job.tile_items * ((m + GEMM_ROWS - 1) / GEMM_ROWS),
              (uint64_t)m * n * k);
}

void
transformer_job_rows(const transformer *tf, uint32_t item, uint32_t *begin, uint32_t *end)
{
    const uint32_t stop = tf->job.first + tf->job.count;
    *begin = tf->job.first + item * ROWS_PER_ITEM;
    *end = *begin + ROWS_PER_ITEM < stop ? *begin + ROWS_PER_ITEM : stop;
}

void
transformer_run_rows(transformer *tf, pool_fn *fn, uint32_t first, uint32_t count,
                     uint64_t work_per_row)
{
    tf->job.first = first;
    tf->job.count = count;
    run_items(tf, fn, (count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, count * work_per_row);
}

/* ---- the parts of a layer ---- */

static void
norm_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const uint32_t h = tf->config.hidden_size;
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *y = tf->normed + t * tf->hidden_stride;
        tf->kernels->rmsnorm(tf->x + (size_t)t * h, tf->job.norm_weight, tf->config.rms_norm_eps, h,
                             y);
        tf->kernels->act_pack(tf->limits.attn_dtype, y, h, tf->act + t * tf->act_stride);
    }
}

static char *
kv_block(const transformer *tf, uint32_t layer, uint32_t block)
{
    return tf->kv + ((size_t)layer * tf->limits.kv_block_count + block) * tf->kv_block_stride;
}

static void
rope_store_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const model_config *c = &tf->config;
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *row = tf->qkv + (size_t)t * tf->weights.qkv_width;
        const uint32_t pos = tf->row_pos[t];
        const float *cosines = tf->rope_cos + (size_t)pos * (c->head_dim / 2);
        const float *sines = tf->rope_sin + (size_t)pos * (c->head_dim / 2);
        float *k = row + tf->weights.k_column, *v = row + tf->weights.v_column;
        tf->kernels->rope(row, c->num_heads, c->head_dim, cosines, sines);
        tf->kernels->rope(k, c->num_kv_heads, c->head_dim, cosines, sines);
        const uint32_t *table = tf->job.seqs[tf->row_seq[t]].block_table;
        tf->kernels->kv_store(tf->limits.kv_dtype,
                              kv_block(tf, tf->job.layer, table[pos / KV_BLOCK_TOKENS]),
                              pos % KV_BLOCK_TOKENS, c->num_kv_heads, c->head_dim, k, v);
    }
}

/* How many rows from t on (below end) belong to one sequence at consecutive positions. */
static uint32_t
run_length(const transformer *tf, uint32_t t, uint32_t end)
{
    uint32_t n = 1;
    while (t + n < end && tf->row_seq[t + n] == tf->row_seq[t] &&
           tf->row_pos[t + n] == tf->row_pos[t] + n) {
        n++;
    }
    return n;
}

static void
attention_item(void *arg, uint32_t item, uint32_t thread)
{
    transformer *tf = arg;
    const model_config *c = &tf->config;
    const uint32_t kv_head = item % c->num_kv_heads, q_width = c->num_heads * c->head_dim;
    uint32_t begin, end;
    transformer_job_rows(tf, item / c->num_kv_heads, &begin, &end);
    for (uint32_t t = begin, n; t < end; t += n) {
        n = run_length(tf, t, end);
        const attn_args args = {
            .kv_dtype = tf->limits.kv_dtype,
            .blocks = kv_block(tf, tf->job.layer, 0),
            .block_stride = tf->kv_block_stride,
            .block_table = tf->job.seqs[tf->row_seq[t]].block_table,
            .heads = c->num_heads,
            .kv_heads = c->num_kv_heads,
            .head_dim = c->head_dim,
            .window = c->sliding_window,
            .scale = 1.0f / sqrtf((float)c->head_dim),
            .first_pos = tf->row_pos[t],
            .rows = n,
            .kv_head = kv_head,
            .q = tf->qkv + (size_t)t * tf->weights.qkv_width,
            .q_stride = tf->weights.qkv_width,
            .out = tf->attn + (size_t)t * q_width,
            .out_stride = q_width,
            .scratch = tf->scratch + thread * tf->scratch_stride,
        };
        tf->kernels->attention(&args);
    }
}

static void
pack_attn_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const uint32_t q_width = tf->config.num_heads * tf->config.head_dim;
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        tf->kernels->act_pack(tf->limits.attn_dtype, tf->attn + (size_t)t * q_width, q_width,
                              tf->act + t * tf->act_stride);
    }
}

/* Add the projection, norm, and write the rows the workers will read. */
static void
ffn_norm_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const uint32_t h = tf->config.hidden_size;
    const size_t row_bytes = act_row_bytes(tf->limits.expert_dtype, h);
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *x = tf->x + (size_t)t * h, *y = tf->normed + t * tf->hidden_stride;
        tf->kernels->row_add(x, tf->proj + t * tf->hidden_stride, h);
        tf->kernels->rmsnorm(x, tf->job.norm_weight, tf->config.rms_norm_eps, h, y);
        tf->kernels->act_pack(tf->limits.expert_dtype, y, h,
                              (char *)tf->job.norm_rows + (t - tf->job.first) * row_bytes);
    }
}

static void
gate_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const uint32_t k = tf->config.top_k;
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        tf->kernels->gate_topk(tf->gate_logits + t * tf->gate_stride, tf->config.num_experts, k,
                               tf->topk_ids + (size_t)t * k, tf->topk_weights + (size_t)t * k);
    }
}

/* Move the rows somebody wants to the front of the micro-batch; returns how many.  Only what the
 * rest of the layer reads moves. */
static uint32_t
keep_wanted(transformer *tf, const micro_batch *mb)
{
    const uint32_t h = tf->config.hidden_size, width = tf->weights.qkv_width;
    uint32_t to = mb->first;
    for (uint32_t t = mb->first; t < mb->first + mb->count; t++) {
        if (!tf->wanted[t]) continue;
        if (to != t) {
            memcpy(tf->x + (size_t)to * h, tf->x + (size_t)t * h, h * sizeof(float));
            memcpy(tf->qkv + (size_t)to * width, tf->qkv + (size_t)t * width,
                   width * sizeof(float));
            tf->row_seq[to] = tf->row_seq[t];
            tf->row_pos[to] = tf->row_pos[t];
            tf->row_index[to] = tf->row_index[t];
        }
        to++;
    }
    return to - mb->first;
}

static void
attend(transformer *tf, uint32_t m, uint32_t layer, uint64_t step)
{
    micro_batch *mb = &tf->batches[m];
    const model_config *c = &tf->config;
    const layer_weights *w = &tf->weights.layers[layer];
    const uint32_t h = c->hidden_size, q_width = c->num_heads * c->head_dim;

    tf->job.layer = layer;
    tf->job.norm_weight = w->attn_norm;
    phases_set_place(tf->phases, step, layer, m, mb->count);
    phase_enter(tf->phases, PHASE_NORM);
    transformer_run_rows(tf, norm_item, mb->first, mb->count, 4u * h);
    phase_enter(tf->phases, PHASE_QKV);
    multiply(tf, tf->limits.attn_dtype, w->qkv, tf->weights.qkv_width, h,
             tf->act + mb->first * tf->act_stride, tf->act_stride, mb->count,
             tf->qkv + (size_t)mb->first * tf->weights.qkv_width, tf->weights.qkv_width);
    phase_enter(tf->phases, PHASE_ROPE_STORE);
    transformer_run_rows(tf, rope_store_item, mb->first, mb->count, 4u * tf->weights.qkv_width);

    if (layer + 1 == c->num_layers) mb->count = keep_wanted(tf, mb);
    uint64_t context = 0;
    for (uint32_t t = mb->first; t < mb->first + mb->count; t++) {
        context += tf->row_pos[t] + 1;
    }
    phase_enter(tf->phases, PHASE_ATTENTION);
    tf->job.first = mb->first;
    tf->job.count = mb->count;
    run_items(tf, attention_item, (mb->count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM * c->num_kv_heads,
              2 * context * q_width);
    phase_enter(tf->phases, PHASE_PACK);
    transformer_run_rows(tf, pack_attn_item, mb->first, mb->count, 4u * q_width);
    phase_enter(tf->phases, PHASE_PROJECT);
    multiply(tf, tf->limits.attn_dtype, w->o, h, q_width, tf->act + mb->first * tf->act_stride,
             tf->act_stride, mb->count, tf->proj + mb->first * tf->hidden_stride,
             tf->hidden_stride);
}

/* Note the chosen experts of the rows whose sequences ask for it. */
static void
note_routed(transformer *tf, const micro_batch *mb, uint32_t layer)
{
    const uint32_t k = tf->config.top_k, bytes = transformer_id_bytes(tf);
    const size_t token_bytes = (size_t)tf->config.num_layers * k * bytes;
    for (uint32_t t = mb->first; t < mb->first + mb->count; t++) {
        const step_seq *q = &tf->job.seqs[tf->row_seq[t]];
        if (q->routed == NULL) continue;
        uint8_t *out =
            q->routed + (tf->row_pos[t] - q->start_pos) * token_bytes + (size_t)layer * k * bytes;
        for (uint32_t j = 0; j < k; j++, out += bytes) {
            const uint32_t id = tf->topk_ids[(size_t)t * k + j];
            out[0] = (uint8_t)id;
            if (bytes == 2) out[1] = (uint8_t)(id >> 8);
        }
    }
}

static moe_err
gate_and_dispatch(transformer *tf, const expert_fleet *fleet, uint32_t m, uint32_t layer,
                  uint64_t step, step_times *times, uint32_t *lost, errbuf *eb)
{
    micro_batch *mb = &tf->batches[m];
    const model_config *c = &tf->config;
    const layer_weights *w = &tf->weights.layers[layer];
    if (mb->count == 0) return MOE_OK;

    phases_set_place(tf->phases, step, layer, m, mb->count);
    tf->job.norm_weight = w->ffn_norm;
    tf->job.norm_rows = router_end_rows(fleet->exchange, m);
    phase_enter(tf->phases, PHASE_FFN_NORM);
    transformer_run_rows(tf, ffn_norm_item, mb->first, mb->count, 8u * c->hidden_size);
    phase_enter(tf->phases, PHASE_GATE);
    multiply(tf, DTYPE_F32, w->gate, c->num_experts, c->hidden_size,
             tf->normed + mb->first * tf->hidden_stride, tf->hidden_stride * sizeof(float),
             mb->count, tf->gate_logits + mb->first * tf->gate_stride, tf->gate_stride);
    transformer_run_rows(tf, gate_item, mb->first, mb->count, 16u * c->num_experts);
    if (tf->job.routed) note_routed(tf, mb, layer);

    phase_enter(tf->phases, PHASE_DISPATCH);
    mb->layer = layer;
    mb->attempt = 0;
    const moe_err err = expert_dispatch(tf, fleet, m, step, lost, eb);
    const uint32_t *counts = dispatch_plan_expert_counts(mb->plan);
    for (uint32_t e = 0; e < c->num_experts; e++) {
        tf->expert_tokens[(size_t)layer * c->num_experts + e] += counts[e];
    }
    return expert_resend(tf, fleet, step, err, times, lost, eb);
}

/* ---- a step ---- */

/* Does somebody want the logits of token i? */
static bool
has_logits(const step_seq *q, uint32_t i)
{
    return q->want_all || (q->want_last && i + 1 == q->token_count);
}

static moe_err
lay_out_rows(transformer *tf, const step_seq *seqs, uint32_t count, uint32_t *row_count, errbuf *eb)
{
    const bool probing = tf->job.probe != NULL;
    uint32_t t = 0;
    tf->job.routed = false;
    for (uint32_t s = 0; s < count; s++) {
        const step_seq *q = &seqs[s];
        tf->job.routed = tf->job.routed || q->routed != NULL;
        if (q->token_count > tf->limits.token_max - t)
            return err_set(eb, MOE_ERANGE, "more than %u tokens in a step", tf->limits.token_max);
        if (q->token_count > tf->limits.max_model_len ||
            q->start_pos > tf->limits.max_model_len - q->token_count)
            return err_set(eb, MOE_EINVAL, "sequence %u: positions %u + %u exceed %u", s,
                           q->start_pos, q->token_count, tf->limits.max_model_len);
        for (uint32_t i = 0; i < q->token_count; i++, t++) {
            if (q->tokens[i] >= tf->config.vocab_size)
                return err_set(eb, MOE_EINVAL, "sequence %u: token id %u is not below %u", s,
                               q->tokens[i], tf->config.vocab_size);
            tensor_read_f32(tf->weights.embed, (size_t)q->tokens[i] * tf->config.hidden_size,
                            tf->config.hidden_size, tf->x + (size_t)t * tf->config.hidden_size);
            tf->row_seq[t] = s;
            tf->row_pos[t] = q->start_pos + i;
            tf->row_index[t] = t;
            tf->wanted[t] = probing || q->routed != NULL || has_logits(q, i);
        }
    }
    *row_count = t;
    return MOE_OK;
}

static void
split_batches(transformer *tf, uint32_t rows)
{
    const uint32_t m = tf->limits.micro_batches < rows ? tf->limits.micro_batches : rows;
    tf->batch_count = m;
    for (uint32_t i = 0; i < m; i++) {
        const uint32_t begin = (uint32_t)((uint64_t)rows * i / m);
        tf->batches[i].first = begin;
        tf->batches[i].count = (uint32_t)((uint64_t)rows * (i + 1) / m) - begin;
        tf->batches[i].pending = false;
    }
}

/* Rows that went through the last layer only to tell their experts need no head. */
static void
keep_logits(transformer *tf, const step_seq *seqs, micro_batch *mb)
{
    const uint32_t h = tf->config.hidden_size;
    uint32_t to = mb->first;
    for (uint32_t t = mb->first; t < mb->first + mb->count; t++) {
        const step_seq *q = &seqs[tf->row_seq[t]];
        if (!has_logits(q, tf->row_pos[t] - q->start_pos)) continue;
        if (to != t) {
            memcpy(tf->x + (size_t)to * h, tf->x + (size_t)t * h, h * sizeof(float));
            tf->row_seq[to] = tf->row_seq[t];
            tf->row_pos[to] = tf->row_pos[t];
        }
        to++;
    }
    mb->count = to - mb->first;
}

static void
compute_logits(transformer *tf, const step_seq *seqs, logits_fn *on_logits, void *user)
{
    const uint32_t h = tf->config.hidden_size;
    for (uint32_t m = 0; m < tf->batch_count; m++) {
        micro_batch *mb = &tf->batches[m];
        if (tf->job.routed && tf->job.probe == NULL) keep_logits(tf, seqs, mb);
        tf->job.norm_weight = tf->weights.final_norm;
        transformer_run_rows(tf, norm_item, mb->first, mb->count, 4u * h);
        for (uint32_t done = 0; done < mb->count; done += HEAD_ROWS) {
            phase_enter(tf->phases, PHASE_HEAD);
            const uint32_t first = mb->first + done;
            const uint32_t n = mb->count - done < HEAD_ROWS ? mb->count - done : HEAD_ROWS;
            multiply(tf, tf->limits.attn_dtype, tf->weights.head, tf->config.vocab_size, h,
                     tf->act + first * tf->act_stride, tf->act_stride, n, tf->logits,
                     tf->logits_stride);
            phase_enter(tf->phases, PHASE_SAMPLE);
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t s = tf->row_seq[first + i];
                on_logits(user, s, tf->row_pos[first + i] - seqs[s].start_pos,
                          tf->logits + i * tf->logits_stride);
            }
        }
    }
}

moe_err
transformer_step(transformer *tf, const expert_fleet *fleet, uint64_t step, const step_seq *seqs,
                 uint32_t count, logits_fn *on_logits, void *user, const transformer_probe *probe,
                 step_times *times, uint32_t *lost_worker, errbuf *eb)
{
    const uint32_t layers = tf->config.num_layers;
    uint32_t rows = 0;
    *times = (step_times){0};
    *lost_worker = UINT32_MAX;
    if (count > tf->limits.seq_max)
        return err_set(eb, MOE_ERANGE, "%u sequences in a step, at most %u", count,
                       tf->limits.seq_max);
    phases_set_place(tf->phases, step, TRACE_NO_LAYER, 0, 0);
    phase_enter(tf->phases, PHASE_EMBED);
    tf->job.seqs = seqs;
    tf->job.probe = probe;
    moe_err err = lay_out_rows(tf, seqs, count, &rows, eb);
    if (err || rows == 0) return err;
    tf->job.step_rows = rows;
    split_batches(tf, rows);

    /* Ping-pong: a micro-batch's attention of the next layer runs while the others' rows are with
     * the workers. */
    for (uint32_t l = 0; l <= layers && !err; l++) {
        for (uint32_t m = 0; m < tf->batch_count && !err; m++) {
            if (l > 0) err = expert_combine(tf, fleet, m, l - 1, step, times, lost_worker, eb);
            if (l == layers || err) continue;
            attend(tf, m, l, step);
            err = gate_and_dispatch(tf, fleet, m, l, step, times, lost_worker, eb);
        }
    }
    if (err) {
        /* One that was too late is not waited for a second time. */
        if (err == MOE_ETIMEDOUT) router_end_give_up(fleet->exchange, *lost_worker);
        expert_settle(fleet);
        return err;
    }
    phases_set_place(tf->phases, step, TRACE_NO_LAYER, 0, rows);
    compute_logits(tf, seqs, on_logits, user);
    return MOE_OK;
}
