#include "router/weights.h"

#include <stdlib.h>

/* The memory as the cache sees it: so many bytes a slot. */
#define CACHE_SLOT_BYTES ((size_t)4 << 20)
/* A layer: q, k, v, o, gate. */
#define LAYER_MATRICES 5u

/* The memory: layer by layer { attn_norm, ffn_norm, qkv, o, gate }, then final_norm, then head.
 * The cache holds these bytes: another order is another PACKED_PACK_VERSION. */
typedef struct load_job {
    router_weights *w;
    const checkpoint *c;
    size_t layer_bytes; /* of one layer's part of the memory */
    size_t norm_bytes, qkv_bytes, o_bytes, gate_bytes, head_bytes;
    size_t total_bytes;
} load_job;

static size_t
align64(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static void
measure(load_job *job)
{
    const model_config *config = checkpoint_config(job->c);
    router_weights *w = job->w;
    const uint32_t hidden = config->hidden_size, q = config->num_heads * config->head_dim,
                   kv = config->num_kv_heads * config->head_dim;
    w->k_column = round_up_u32(q, TILE_N);
    w->v_column = w->k_column + round_up_u32(kv, TILE_N);
    w->qkv_width = w->v_column + round_up_u32(kv, TILE_N);
    job->norm_bytes = align64(hidden * sizeof(float));
    job->qkv_bytes = packed_bytes(w->dtype, w->qkv_width, hidden);
    job->o_bytes = packed_bytes(w->dtype, hidden, q);
    job->gate_bytes = packed_bytes(DTYPE_F32, config->num_experts, hidden);
    job->layer_bytes = 2 * job->norm_bytes + job->qkv_bytes + job->o_bytes + job->gate_bytes;
    job->head_bytes = packed_bytes(w->dtype, config->vocab_size, hidden);
    job->total_bytes = config->num_layers * job->layer_bytes + job->norm_bytes + job->head_bytes;
}

static void
place(load_job *job)
{
    router_weights *w = job->w;
    char *at = w->memory.bytes;
    for (uint32_t l = 0; l < checkpoint_config(job->c)->num_layers; l++, at += job->layer_bytes) {
        char *qkv = at + 2 * job->norm_bytes;
        w->layers[l] =
            (layer_weights){.attn_norm = (const float *)(const void *)at,
                            .ffn_norm = (const float *)(const void *)(at + job->norm_bytes),
                            .qkv = qkv,
                            .o = qkv + job->qkv_bytes,
                            .gate = qkv + job->qkv_bytes + job->o_bytes};
    }
    w->final_norm = (const float *)(const void *)at;
    w->head = at + job->norm_bytes;
}

/* The memory is ours until the load is over; then it is constant. */
static void *
writable(const void *p)
{
    return (void *)(uintptr_t)p;
}

static void
add_whole(pack_plan *plan, const void *dst, moe_dtype dtype, const tensor_view *t)
{
    pack_plan_add_matrix(plan, writable(dst), dtype, t, 0, (uint32_t)t->shape[0], 0,
                         (uint32_t)t->shape[1]);
}

static void
plan_layer(const load_job *job, pack_plan *plan, uint32_t l)
{
    const router_weights *w = job->w;
    const layer_weights *layer = &w->layers[l];
    const uint32_t hidden = checkpoint_config(job->c)->hidden_size;
    const size_t tile = tile_bytes(w->dtype, hidden);
    const char *qkv = layer->qkv;
    tensor_read_f32(checkpoint_tensor(job->c, TENSOR_ATTN_NORM, l, 0), 0, hidden,
                    writable(layer->attn_norm));
    tensor_read_f32(checkpoint_tensor(job->c, TENSOR_FFN_NORM, l, 0), 0, hidden,
                    writable(layer->ffn_norm));
    add_whole(plan, qkv, w->dtype, checkpoint_tensor(job->c, TENSOR_Q, l, 0));
    add_whole(plan, qkv + w->k_column / TILE_N * tile, w->dtype,
              checkpoint_tensor(job->c, TENSOR_K, l, 0));
    add_whole(plan, qkv + w->v_column / TILE_N * tile, w->dtype,
              checkpoint_tensor(job->c, TENSOR_V, l, 0));
    add_whole(plan, layer->o, w->dtype, checkpoint_tensor(job->c, TENSOR_O, l, 0));
    add_whole(plan, layer->gate, DTYPE_F32, checkpoint_tensor(job->c, TENSOR_GATE, l, 0));
}

/* weight_plan_fn: everything, the norms at once since they are small. */
static moe_err
plan_all(void *arg, pack_plan **out, const bool *done, errbuf *eb)
{
    (void)done;
    const load_job *job = arg;
    const model_config *config = checkpoint_config(job->c);
    if (pack_plan_create(out, config->num_layers * LAYER_MATRICES + 1))
        return err_set(eb, MOE_ENOMEM, "no memory for a plan of %u layers", config->num_layers);
    for (uint32_t l = 0; l < config->num_layers; l++) {
        plan_layer(job, *out, l);
    }
    tensor_read_f32(checkpoint_tensor(job->c, TENSOR_FINAL_NORM, 0, 0), 0, config->hidden_size,
                    writable(job->w->final_norm));
    add_whole(*out, job->w->head, job->w->dtype, checkpoint_tensor(job->c, TENSOR_HEAD, 0, 0));
    return MOE_OK;
}

static moe_err
load(load_job *job, weight_cache cache, pool *p, errbuf *eb)
{
    const model_config *config = checkpoint_config(job->c);
    router_weights *w = job->w;
    const uint32_t count = (uint32_t)(w->memory.size / CACHE_SLOT_BYTES);
    packed_slot *slots = malloc(count * sizeof *slots);
    if (slots == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        slots[i] = (packed_slot){.slot = i, .bytes = w->memory.bytes + i * CACHE_SLOT_BYTES};
    }
    const weight_load request = {.what = "attention and head",
                                 .checkpoint = job->c,
                                 .cache = cache,
                                 .key = {.role = PACKED_ROUTER,
                                         .dtype = w->dtype,
                                         .num_layers = config->num_layers,
                                         .num_experts = config->num_experts,
                                         .slot_count = count,
                                         .slot_bytes = CACHE_SLOT_BYTES},
                                 .slots = slots,
                                 .count = count,
                                 .whole = true,
                                 .plan = plan_all,
                                 .arg = job,
                                 .pool = p};
    const moe_err err = weight_load_run(&request, &w->fill, eb);
    free(slots);
    return err;
}

moe_err
router_weights_load(router_weights *out, const checkpoint *c, moe_dtype dtype, weight_cache cache,
                    pool *p, errbuf *eb)
{
    *out = (router_weights){.dtype = dtype, .embed = checkpoint_tensor(c, TENSOR_EMBED, 0, 0)};
    load_job job = {.w = out, .c = c};
    measure(&job);
    const size_t slots = (job.total_bytes + CACHE_SLOT_BYTES - 1) / CACHE_SLOT_BYTES;
    moe_err err = region_create(&out->memory, slots * CACHE_SLOT_BYTES, p, eb);
    if (err) err_wrap(eb, err, "attention and head weights");
    if (!err) {
        out->layers = calloc(checkpoint_config(c)->num_layers, sizeof *out->layers);
        if (out->layers == NULL) err = err_set(eb, MOE_ENOMEM, "out of memory");
    }
    if (!err) {
        place(&job);
        err = load(&job, cache, p, eb);
    }
    if (err) router_weights_unload(out);
    return err;
}

void
router_weights_unload(router_weights *w)
{
    packed_fill_stop(w->fill);
    region_free(&w->memory);
    free(w->layers);
    *w = (router_weights){0};
}
