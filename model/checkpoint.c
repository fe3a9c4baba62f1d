#include "model/checkpoint.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"
#include "model/shards.h"

#define NAME_MAX_BYTES 128

/* Views lie in the order of the model: those of the whole model, then layer by layer those of the
 * layer, then expert by expert w1, w2, w3. */
#define MODEL_KINDS (TENSOR_HEAD + 1)
#define LAYER_KINDS (TENSOR_GATE - TENSOR_ATTN_NORM + 1)
#define EXPERT_KINDS (TENSOR_W3 - TENSOR_W1 + 1)

struct checkpoint {
    model_config config;
    shard_set shards;
    tensor_view *views; /* [view_count] */
    size_t view_count;
};

static size_t
layer_stride(const model_config *m)
{
    return LAYER_KINDS + (size_t)EXPERT_KINDS * m->num_experts;
}

static size_t
view_index(const model_config *m, tensor_kind kind, uint32_t layer, uint32_t expert)
{
    assert((unsigned)kind < TENSOR_KIND_COUNT);
    if (kind < MODEL_KINDS) return kind;
    assert(layer < m->num_layers);
    const size_t at = MODEL_KINDS + layer * layer_stride(m);
    if (kind < TENSOR_W1) return at + (kind - TENSOR_ATTN_NORM);
    assert(expert < m->num_experts);
    return at + LAYER_KINDS + (size_t)EXPERT_KINDS * expert + (kind - TENSOR_W1);
}

static void
format_name(char *buf, size_t size, tensor_kind kind, uint32_t layer, uint32_t expert)
{
    static const char *const names[TENSOR_KIND_COUNT] = {
        [TENSOR_EMBED] = "model.embed_tokens.weight",
        [TENSOR_FINAL_NORM] = "model.norm.weight",
        [TENSOR_HEAD] = "lm_head.weight",
        [TENSOR_ATTN_NORM] = "input_layernorm.weight",
        [TENSOR_FFN_NORM] = "post_attention_layernorm.weight",
        [TENSOR_Q] = "self_attn.q_proj.weight",
        [TENSOR_K] = "self_attn.k_proj.weight",
        [TENSOR_V] = "self_attn.v_proj.weight",
        [TENSOR_O] = "self_attn.o_proj.weight",
        [TENSOR_GATE] = "block_sparse_moe.gate.weight",
        [TENSOR_W1] = "w1.weight",
        [TENSOR_W2] = "w2.weight",
        [TENSOR_W3] = "w3.weight",
    };
    if (kind < MODEL_KINDS)
        snprintf(buf, size, "%s", names[kind]);
    else if (kind < TENSOR_W1)
        snprintf(buf, size, "model.layers.%" PRIu32 ".%s", layer, names[kind]);
    else
        snprintf(buf, size, "model.layers.%" PRIu32 ".block_sparse_moe.experts.%" PRIu32 ".%s",
                 layer, expert, names[kind]);
}

/* The shape that config.json asks for; returns its rank. */
static uint32_t
expected_shape(const model_config *m, tensor_kind kind, uint64_t shape[2])
{
    const uint32_t q = m->num_heads * m->head_dim, kv = m->num_kv_heads * m->head_dim;
    const struct {
        uint32_t rows, cols; /* cols 0: a vector */
    } shapes[TENSOR_KIND_COUNT] = {
        [TENSOR_EMBED] = {m->vocab_size, m->hidden_size},
        [TENSOR_FINAL_NORM] = {m->hidden_size, 0},
        [TENSOR_HEAD] = {m->vocab_size, m->hidden_size},
        [TENSOR_ATTN_NORM] = {m->hidden_size, 0},
        [TENSOR_FFN_NORM] = {m->hidden_size, 0},
        [TENSOR_Q] = {q, m->hidden_size},
        [TENSOR_K] = {kv, m->hidden_size},
        [TENSOR_V] = {kv, m->hidden_size},
        [TENSOR_O] = {m->hidden_size, q},
        [TENSOR_GATE] = {m->num_experts, m->hidden_size},
        [TENSOR_W1] = {m->intermediate_size, m->hidden_size},
        [TENSOR_W2] = {m->hidden_size, m->intermediate_size},
        [TENSOR_W3] = {m->intermediate_size, m->hidden_size},
    };
    shape[0] = shapes[kind].rows;
    shape[1] = shapes[kind].cols;
    return shape[1] == 0 ? 1 : 2;
}

/* "[128, 64]"; a rank beyond TENSOR_RANK_MAX ends in "...". */
static const char *
format_shape(char *buf, size_t size, const uint64_t *shape, uint32_t rank)
{
    size_t at = (size_t)snprintf(buf, size, "[");
    for (uint32_t i = 0; i < rank && at < size; i++) {
        if (i == TENSOR_RANK_MAX) {
            at += (size_t)snprintf(buf + at, size - at, ", ...");
            break;
        }
        at += (size_t)snprintf(buf + at, size - at, "%s%" PRIu64, i ? ", " : "", shape[i]);
    }
    if (at < size) snprintf(buf + at, size - at, "]");
    return buf;
}

static moe_err
check_view(const safetensors_entry *e, const char *path, const uint64_t *want, uint32_t want_rank,
           errbuf *eb)
{
    bool same = e->rank == want_rank;
    for (uint32_t i = 0; same && i < want_rank; i++) {
        same = e->shape[i] == want[i];
    }
    if (same) return MOE_OK;
    char has[128], asked[128];
    return err_set(eb, MOE_EINVAL, "%s: tensor %s has shape %s, config.json asks for %s", path,
                   e->name, format_shape(has, sizeof has, e->shape, e->rank),
                   format_shape(asked, sizeof asked, want, want_rank));
}

static bool
parse_dtype(tensor_dtype *out, const char *text)
{
    static const char *const names[] = {
        [TENSOR_F32] = "F32", [TENSOR_F16] = "F16", [TENSOR_BF16] = "BF16"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], text) != 0) continue;
        *out = (tensor_dtype)i;
        return true;
    }
    return false;
}

static moe_err
resolve(checkpoint *c, tensor_kind kind, uint32_t layer, uint32_t expert, errbuf *eb)
{
    tensor_view *v = &c->views[view_index(&c->config, kind, layer, expert)];
    if (kind == TENSOR_HEAD && c->config.tie_word_embeddings) {
        *v = c->views[TENSOR_EMBED];
        return MOE_OK;
    }
    char name[NAME_MAX_BYTES];
    const shard *where;
    format_name(name, sizeof name, kind, layer, expert);
    const safetensors_entry *e = shards_find(&c->shards, name, &where);
    if (e == NULL)
        return err_set(eb, MOE_ENOTFOUND, "%s: tensor %s is missing", c->shards.source, name);

    uint64_t want[2];
    const uint32_t want_rank = expected_shape(&c->config, kind, want);
    const moe_err err = check_view(e, where->path, want, want_rank, eb);
    if (err) return err;
    if (!parse_dtype(&v->dtype, e->dtype))
        return err_set(eb, MOE_EUNSUPPORTED,
                       "%s: tensor %s has dtype %s, only F32, F16 and BF16 are read", where->path,
                       name, e->dtype);
    v->name = e->name;
    v->file = where->path;
    v->rank = want_rank;
    memcpy(v->shape, e->shape, sizeof v->shape);
    v->data = (const char *)where->map + e->begin;
    v->bytes = (size_t)(e->end - e->begin);
    return MOE_OK;
}

static moe_err
resolve_layer(checkpoint *c, uint32_t layer, errbuf *eb)
{
    moe_err err = MOE_OK;
    for (int kind = TENSOR_ATTN_NORM; !err && kind <= TENSOR_GATE; kind++) {
        err = resolve(c, (tensor_kind)kind, layer, 0, eb);
    }
    for (uint32_t expert = 0; !err && expert < c->config.num_experts; expert++) {
        for (int kind = TENSOR_W1; !err && kind <= TENSOR_W3; kind++) {
            err = resolve(c, (tensor_kind)kind, layer, expert, eb);
        }
    }
    return err;
}

static moe_err
resolve_all(checkpoint *c, errbuf *eb)
{
    c->view_count = MODEL_KINDS + c->config.num_layers * layer_stride(&c->config);
    c->views = calloc(c->view_count, sizeof c->views[0]);
    if (c->views == NULL)
        return err_set(eb, MOE_ENOMEM, "%s: no memory for %zu tensors", c->shards.source,
                       c->view_count);
    moe_err err = MOE_OK;
    for (int kind = 0; !err && kind < MODEL_KINDS; kind++) {
        err = resolve(c, (tensor_kind)kind, 0, 0, eb);
    }
    for (uint32_t layer = 0; !err && layer < c->config.num_layers; layer++) {
        err = resolve_layer(c, layer, eb);
    }
    return err;
}

moe_err
checkpoint_open(checkpoint **out, const char *dir, errbuf *eb)
{
    *out = NULL;
    checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "%s: no memory to open it", dir);
    moe_err err = model_config_load(&c->config, dir, eb);
    if (!err) err = shards_open(&c->shards, dir, eb);
    if (!err) err = resolve_all(c, eb);
    if (err) {
        checkpoint_close(c);
        return err;
    }
    *out = c;
    return MOE_OK;
}

void
checkpoint_close(checkpoint *c)
{
    if (c == NULL) return;
    free(c->views);
    shards_close(&c->shards);
    free(c);
}

const model_config *
checkpoint_config(const checkpoint *c)
{
    return &c->config;
}

const tensor_view *
checkpoint_tensor(const checkpoint *c, tensor_kind kind, uint32_t layer, uint32_t expert)
{
    return &c->views[view_index(&c->config, kind, layer, expert)];
}

/* The sizes, and the numbers that enter the arithmetic.  Not the special ids: they are the
 * frontend's alone. */
static uint64_t
hash_config(uint64_t seed, const model_config *m)
{
    const uint32_t sizes[] = {
        m->vocab_size, m->hidden_size,  m->intermediate_size, m->num_layers,
        m->num_heads,  m->num_kv_heads, m->head_dim,          m->num_experts,
        m->top_k,      m->max_position, m->sliding_window,    m->tie_word_embeddings,
    };
    seed = hash_bytes(seed, sizes, sizeof sizes);
    seed = hash_bytes(seed, &m->rms_norm_eps, sizeof m->rms_norm_eps);
    return hash_bytes(seed, &m->rope_theta, sizeof m->rope_theta);
}

/* 64 bytes at the start, at the end and at six places between: eight pages a tensor, so that the
 * fingerprint of a large model reads megabytes, not all of it. */
#define SAMPLES 8
#define SAMPLE_BYTES 64

static uint64_t
hash_view(uint64_t seed, const tensor_view *v)
{
    seed = hash_bytes(seed, v->name, strlen(v->name));
    seed = hash_combine(seed, v->dtype);
    for (uint32_t i = 0; i < v->rank; i++) {
        seed = hash_combine(seed, v->shape[i]);
    }
    if (v->bytes <= (size_t)SAMPLES * SAMPLE_BYTES) return hash_bytes(seed, v->data, v->bytes);
    for (size_t i = 0; i < SAMPLES; i++) {
        const size_t at = (v->bytes - SAMPLE_BYTES) / (SAMPLES - 1) * i;
        const size_t last = v->bytes - SAMPLE_BYTES;
        seed =
            hash_bytes(seed, (const char *)v->data + (i == SAMPLES - 1 ? last : at), SAMPLE_BYTES);
    }
    return seed;
}

/* Read-ahead would turn each sample into a hundred kilobytes. */
static void
advise(const checkpoint *c, int advice)
{
    for (size_t i = 0; i < c->shards.count; i++) {
        const shard *s = &c->shards.shards[i];
        if (s->map != NULL) (void)madvise((void *)(uintptr_t)s->map, s->bytes, advice);
    }
}

uint64_t
checkpoint_fingerprint(const checkpoint *c)
{
    uint64_t hash = hash_config(0, &c->config);
    advise(c, MADV_RANDOM);
    for (size_t i = 0; i < c->view_count; i++) {
        hash = hash_view(hash, &c->views[i]);
    }
    advise(c, MADV_NORMAL);
    advise(c, MADV_DONTNEED); /* each sample mapped the pages around it as well */
    return hash;
}

moe_err
checkpoint_stamp(const checkpoint *c, uint64_t *out, errbuf *eb)
{
    uint64_t hash = 0;
    *out = 0;
    for (size_t i = 0; i < c->shards.count; i++) {
        const char *path = c->shards.shards[i].path;
        struct stat st;
        if (stat(path, &st) != 0) return err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
        const char *slash = strrchr(path, '/');
        const char *name = slash ? slash + 1 : path; /* a folder may be moved */
        hash = hash_bytes(hash, name, strlen(name));
        hash = hash_combine(hash, (uint64_t)st.st_size);
        hash = hash_combine(hash, (uint64_t)st.st_mtim.tv_sec);
        hash = hash_combine(hash, (uint64_t)st.st_mtim.tv_nsec);
    }
    *out = hash;
    return MOE_OK;
}

/* The bytes of rows [begin, end), in whole pages: those that only touch the range too, or only
 * those that lie inside it, since a neighbour may still be reading the others. */
static void
advise_rows(const tensor_view *t, uint64_t begin, uint64_t end, bool outward, int advice)
{
    assert(begin <= end && end <= t->shape[0]);
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), row = t->bytes / t->shape[0];
    uintptr_t from = (uintptr_t)t->data + begin * row, to = (uintptr_t)t->data + end * row;
    from = (outward ? from : from + page - 1) / page * page;
    to = (outward ? to + page - 1 : to) / page * page;
    if (from < to) (void)madvise((void *)from, to - from, advice);
}

void
tensor_will_read(const tensor_view *t, uint64_t begin, uint64_t end)
{
    advise_rows(t, begin, end, true, MADV_WILLNEED);
}

void
tensor_was_read(const tensor_view *t, uint64_t begin, uint64_t end)
{
    advise_rows(t, begin, end, false, MADV_DONTNEED);
}
