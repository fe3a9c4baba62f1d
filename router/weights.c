#include "router/weights.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Rows of the head packed by one work item; a multiple of TILE_N. */
#define HEAD_ROWS_PER_ITEM 1024u

typedef struct load_job {
    router_weights *w;
    const checkpoint *c;
    size_t layer_bytes; /* of one layer's part of the memory */
    size_t norm_bytes, qkv_bytes, o_bytes, gate_bytes;
    char *head;
    _Atomic moe_err err;
} load_job;

static size_t
align64(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static moe_err
pack_whole(void *dst, moe_dtype dtype, const tensor_view *t)
{
    return pack_matrix(dst, dtype, t, 0, (uint32_t)t->shape[0], 0, (uint32_t)t->shape[1]);
}

static moe_err
load_layer(load_job *job, uint32_t l)
{
    router_weights *w = job->w;
    const model_config *config = checkpoint_config(job->c);
    const uint32_t hidden = config->hidden_size;
    layer_weights *layer = &w->layers[l];
    char *at = w->memory + l * job->layer_bytes;

    float *attn_norm = (float *)(void *)at, *ffn_norm = (float *)(void *)(at + job->norm_bytes);
    tensor_read_f32(checkpoint_tensor(job->c, TENSOR_ATTN_NORM, l, 0), 0, hidden, attn_norm);
    tensor_read_f32(checkpoint_tensor(job->c, TENSOR_FFN_NORM, l, 0), 0, hidden, ffn_norm);
    char *qkv = at + 2 * job->norm_bytes, *o = qkv + job->qkv_bytes, *gate = o + job->o_bytes;

    const size_t tile = tile_bytes(w->dtype, hidden);
    moe_err err = pack_whole(qkv, w->dtype, checkpoint_tensor(job->c, TENSOR_Q, l, 0));
    if (!err)
        err = pack_whole(qkv + w->k_column / TILE_N * tile, w->dtype,
                         checkpoint_tensor(job->c, TENSOR_K, l, 0));
    if (!err)
        err = pack_whole(qkv + w->v_column / TILE_N * tile, w->dtype,
                         checkpoint_tensor(job->c, TENSOR_V, l, 0));
    if (!err) err = pack_whole(o, w->dtype, checkpoint_tensor(job->c, TENSOR_O, l, 0));
    if (!err) err = pack_whole(gate, DTYPE_F32, checkpoint_tensor(job->c, TENSOR_GATE, l, 0));
    *layer = (layer_weights){
        .attn_norm = attn_norm, .ffn_norm = ffn_norm, .qkv = qkv, .o = o, .gate = gate};
    return err;
}

static void
load_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    load_job *job = arg;
    const model_config *config = checkpoint_config(job->c);
    moe_err err;
    if (item < config->num_layers) {
        err = load_layer(job, item);
    } else {
        const tensor_view *head = checkpoint_tensor(job->c, TENSOR_HEAD, 0, 0);
        const uint32_t begin = (item - config->num_layers) * HEAD_ROWS_PER_ITEM;
        uint32_t end = begin + HEAD_ROWS_PER_ITEM;
        if (end > config->vocab_size) end = config->vocab_size;
        char *dst = job->head + begin / TILE_N * tile_bytes(job->w->dtype, config->hidden_size);
        err = pack_matrix(dst, job->w->dtype, head, begin, end, 0, config->hidden_size);
    }
    if (err) atomic_store(&job->err, err);
}

moe_err
router_weights_load(router_weights *out, const checkpoint *c, moe_dtype dtype, pool *p, errbuf *eb)
{
    const model_config *config = checkpoint_config(c);
    const uint32_t hidden = config->hidden_size, q = config->num_heads * config->head_dim,
                   kv = config->num_kv_heads * config->head_dim;
    *out = (router_weights){.dtype = dtype, .embed = checkpoint_tensor(c, TENSOR_EMBED, 0, 0)};
    out->k_column = round_up_u32(q, TILE_N);
    out->v_column = out->k_column + round_up_u32(kv, TILE_N);
    out->qkv_width = out->v_column + round_up_u32(kv, TILE_N);

    load_job job = {.w = out, .c = c};
    job.norm_bytes = align64(hidden * sizeof(float));
    job.qkv_bytes = packed_bytes(dtype, out->qkv_width, hidden);
    job.o_bytes = packed_bytes(dtype, hidden, q);
    job.gate_bytes = packed_bytes(DTYPE_F32, config->num_experts, hidden);
    job.layer_bytes = 2 * job.norm_bytes + job.qkv_bytes + job.o_bytes + job.gate_bytes;
    const size_t head_bytes = packed_bytes(dtype, config->vocab_size, hidden);
    out->memory_bytes = config->num_layers * job.layer_bytes + job.norm_bytes + head_bytes;

    out->layers = calloc(config->num_layers, sizeof *out->layers);
    void *map =
        mmap(NULL, out->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map != MAP_FAILED) out->memory = map;
    if (out->layers == NULL || map == MAP_FAILED) {
        const size_t bytes = out->memory_bytes;
        router_weights_unload(out);
        return err_set(eb, MOE_ENOMEM, "no memory for %zu bytes of attention weights", bytes);
    }
    madvise(map, out->memory_bytes, MADV_HUGEPAGE);
    float *final_norm = (float *)(void *)(out->memory + config->num_layers * job.layer_bytes);
    tensor_read_f32(checkpoint_tensor(c, TENSOR_FINAL_NORM, 0, 0), 0, hidden, final_norm);
    out->final_norm = final_norm;
    job.head = (char *)final_norm + job.norm_bytes;
    out->head = job.head;

    const uint32_t head_items = (config->vocab_size + HEAD_ROWS_PER_ITEM - 1) / HEAD_ROWS_PER_ITEM;
    pool_run(p, load_item, &job, config->num_layers + head_items);
    const moe_err err = atomic_load(&job.err);
    if (err) {
        router_weights_unload(out);
        return err_set(eb, err, "an attention or head weight is not finite");
    }
    return MOE_OK;
}

void
router_weights_unload(router_weights *w)
{
    if (w->memory != NULL) munmap(w->memory, w->memory_bytes);
    free(w->layers);
    *w = (router_weights){0};
}
