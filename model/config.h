/* config: the sizes of a Mixtral-shaped model, from a checkpoint's config.json.
 *
 *   H hidden_size   I intermediate_size   E num_experts   K top_k   L num_layers   V vocab_size
 *
 * Source: Hugging Face's MixtralConfig; both the older spelling (rope_theta, torch_dtype) and that
 * of transformers 5 (rope_parameters, dtype) are read.
 *
 * Threads: plain data.
 */
#ifndef MOE_MODEL_CONFIG_H
#define MOE_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define MODEL_EXPERT_MAX 512
#define MODEL_TOPK_MAX 8
#define MODEL_LAYER_MAX 1024
#define MODEL_EOS_MAX 8
#define MODEL_DIM_MAX (1u << 20) /* hidden, intermediate, heads * head_dim */
#define MODEL_VOCAB_MAX (1u << 24)
#define MODEL_POSITION_MAX (1u << 24)

typedef struct model_config {
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t intermediate_size; /* of one expert */
    uint32_t num_layers;
    uint32_t num_heads;
    uint32_t num_kv_heads; /* divides num_heads */
    uint32_t head_dim;     /* even; given, or hidden_size / num_heads */
    uint32_t num_experts;
    uint32_t top_k;
    uint32_t max_position;   /* max_position_embeddings, tokens */
    uint32_t sliding_window; /* 0 = none */
    float rms_norm_eps;
    double rope_theta;
    bool tie_word_embeddings;
    uint32_t bos_id;                 /* UINT32_MAX = none */
    uint32_t eos_ids[MODEL_EOS_MAX]; /* from config.json and generation_config.json */
    uint32_t eos_count;
} model_config;

/* Parse the text of a config.json.  An absent key takes MixtralConfig's default, except those five
 * sizes without which there is no model: they must be given.  On error *out holds zeros.
 *   MOE_EINVAL        not JSON, a key missing, of the wrong type or outside its limits, sizes that
 *                     contradict each other; the text names the key
 *   MOE_EUNSUPPORTED  another architecture, activation, rope type or attention form than this
 *                     system computes
 *   MOE_ENOMEM  */
moe_err model_config_parse(model_config *out, const char *json, size_t len, errbuf *eb);

/* Read DIR/config.json and, if present, DIR/generation_config.json (its eos_token_id, joined to
 * that of config.json).  As above, the text beginning with the file's path, and
 *   MOE_ENOTFOUND  no config.json
 *   MOE_ERANGE     a file of more than 1 MiB
 *   MOE_EIO        a file that can't be read  */
moe_err model_config_load(model_config *out, const char *dir, errbuf *eb);

#endif
