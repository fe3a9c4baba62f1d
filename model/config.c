#include "model/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"

#define CONFIG_FILE_MAX (1u << 20)
#define ID_NONE UINT32_MAX

static const cJSON *
find(const cJSON *root, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(root, key);
}

static bool
is_null_or_absent(const cJSON *item)
{
    return item == NULL || cJSON_IsNull(item);
}

static moe_err
require_u32(const cJSON *root, const char *key, uint32_t min, uint32_t max, uint32_t *out,
            errbuf *eb)
{
    if (is_null_or_absent(find(root, key))) return err_set(eb, MOE_EINVAL, "%s is missing", key);
    return json_get_u32(root, key, min, max, out, eb);
}

static moe_err
check_architecture(const cJSON *root, errbuf *eb)
{
    const cJSON *type = find(root, "model_type"), *list = find(root, "architectures");
    const char *seen = cJSON_IsString(type) ? type->valuestring : "unnamed";
    if (strcmp(seen, "mixtral") == 0) return MOE_OK;
    if (!cJSON_IsArray(list)) list = NULL;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item)) continue;
        if (strcmp(item->valuestring, "MixtralForCausalLM") == 0) return MOE_OK;
        if (!cJSON_IsString(type)) seen = item->valuestring;
    }
    return err_set(eb, MOE_EUNSUPPORTED,
                   "architecture %.80s is not supported, only MixtralForCausalLM", seen);
}

/* Things that change the arithmetic and that this system does not compute. */
static moe_err
check_forms(const cJSON *root, errbuf *eb)
{
    const char *act = "silu";
    bool bias = false;
    moe_err err = json_get_string(root, "hidden_act", &act, eb);
    if (!err) err = json_get_bool(root, "attention_bias", &bias, eb);
    if (err) return err;
    if (strcmp(act, "silu") != 0)
        return err_set(eb, MOE_EUNSUPPORTED, "hidden_act %.80s is not supported, only silu", act);
    if (bias) return err_set(eb, MOE_EUNSUPPORTED, "attention_bias true is not supported");
    if (!is_null_or_absent(find(root, "rope_scaling")))
        return err_set(eb, MOE_EUNSUPPORTED, "rope_scaling is not supported, it must be null");
    if (!is_null_or_absent(find(root, "quantization_config")))
        return err_set(eb, MOE_EUNSUPPORTED,
                       "quantization_config: weights that are stored quantized are not supported");
    return MOE_OK;
}

/* transformers 5 moved rope_theta into rope_parameters, with the type beside it. */
static moe_err
parse_rope(model_config *c, const cJSON *root, errbuf *eb)
{
    const double unset = -1;
    double outer = unset, inner = unset, rotary = 1;
    moe_err err = json_get_double(root, "rope_theta", 1, 1e15, &outer, eb);
    if (err) return err;

    const cJSON *params = find(root, "rope_parameters");
    if (!is_null_or_absent(params)) {
        if (!cJSON_IsObject(params))
            return err_set(eb, MOE_EINVAL, "rope_parameters must be an object");
        const char *type = "default";
        err = json_get_string(params, "type", &type, eb);
        if (!err) err = json_get_string(params, "rope_type", &type, eb);
        if (!err) err = json_get_double(params, "rope_theta", 1, 1e15, &inner, eb);
        if (!err) err = json_get_double(params, "partial_rotary_factor", 0, 1, &rotary, eb);
        if (err) return err_wrap(eb, err, "rope_parameters");
        if (strcmp(type, "default") != 0 || rotary != 1)
            return err_set(eb, MOE_EUNSUPPORTED,
                           "rope_parameters: rope_type %.80s with partial_rotary_factor %g is not "
                           "supported, only default with 1",
                           type, rotary);
    }
    if (outer != unset && inner != unset && outer != inner)
        return err_set(eb, MOE_EINVAL, "rope_theta %g contradicts rope_parameters.rope_theta %g",
                       outer, inner);
    c->rope_theta = inner != unset ? inner : outer != unset ? outer : 1e6;
    return MOE_OK;
}

static moe_err
add_eos(model_config *c, const cJSON *item, errbuf *eb)
{
    if (!json_is_int(item, 0, (int64_t)c->vocab_size - 1))
        return err_set(eb, MOE_EINVAL,
                       "eos_token_id must be an integer from 0 to %u, or a list of such",
                       c->vocab_size - 1);
    const uint32_t id = (uint32_t)item->valuedouble;
    for (uint32_t i = 0; i < c->eos_count; i++) {
        if (c->eos_ids[i] == id) return MOE_OK;
    }
    if (c->eos_count == MODEL_EOS_MAX)
        return err_set(eb, MOE_EINVAL, "eos_token_id holds more than %d ids", MODEL_EOS_MAX);
    c->eos_ids[c->eos_count++] = id;
    return MOE_OK;
}

static moe_err
parse_eos(model_config *c, const cJSON *root, errbuf *eb)
{
    const cJSON *eos = find(root, "eos_token_id"), *item;
    if (is_null_or_absent(eos)) return MOE_OK;
    if (!cJSON_IsArray(eos)) return add_eos(c, eos, eb);
    cJSON_ArrayForEach(item, eos)
    {
        const moe_err err = add_eos(c, item, eb);
        if (err) return err;
    }
    return MOE_OK;
}

/* As in MixtralConfig, an absent key means <s> = 1 and </s> = 2, while null means none. */
static moe_err
parse_special_ids(model_config *c, const cJSON *root, errbuf *eb)
{
    const cJSON *bos = find(root, "bos_token_id");
    c->bos_id = bos == NULL && c->vocab_size > 1 ? 1 : ID_NONE;
    moe_err err = json_get_u32(root, "bos_token_id", 0, c->vocab_size - 1, &c->bos_id, eb);
    if (err) return err;
    if (find(root, "eos_token_id") == NULL && c->vocab_size > 2) c->eos_ids[c->eos_count++] = 2;
    return parse_eos(c, root, eb);
}

static moe_err
parse_sizes(model_config *c, const cJSON *root, errbuf *eb)
{
    double eps = 1e-5;
    moe_err err = require_u32(root, "vocab_size", 1, MODEL_VOCAB_MAX, &c->vocab_size, eb);
    if (!err) err = require_u32(root, "hidden_size", 1, MODEL_DIM_MAX, &c->hidden_size, eb);
    if (!err)
        err = require_u32(root, "intermediate_size", 1, MODEL_DIM_MAX, &c->intermediate_size, eb);
    if (!err) err = require_u32(root, "num_hidden_layers", 1, MODEL_LAYER_MAX, &c->num_layers, eb);
    if (!err) err = require_u32(root, "num_attention_heads", 1, MODEL_DIM_MAX, &c->num_heads, eb);
    if (err) return err;

    const cJSON *kv = find(root, "num_key_value_heads");
    c->num_kv_heads = kv == NULL ? 8 : c->num_heads; /* MixtralConfig: null means one each */
    c->num_experts = 8;
    c->top_k = 2;
    c->max_position = 4096 * 32;
    err = json_get_u32(root, "num_key_value_heads", 1, MODEL_DIM_MAX, &c->num_kv_heads, eb);
    if (!err) err = json_get_u32(root, "head_dim", 1, MODEL_DIM_MAX, &c->head_dim, eb);
    if (!err)
        err = json_get_u32(root, "num_local_experts", 1, MODEL_EXPERT_MAX, &c->num_experts, eb);
    if (!err) err = json_get_u32(root, "num_experts_per_tok", 1, MODEL_TOPK_MAX, &c->top_k, eb);
    if (!err)
        err = json_get_u32(root, "max_position_embeddings", 1, MODEL_POSITION_MAX, &c->max_position,
                           eb);
    if (!err) err = json_get_u32(root, "sliding_window", 1, INT32_MAX, &c->sliding_window, eb);
    if (!err) err = json_get_double(root, "rms_norm_eps", 1e-12, 1, &eps, eb);
    if (!err) err = json_get_bool(root, "tie_word_embeddings", &c->tie_word_embeddings, eb);
    c->rms_norm_eps = (float)eps;
    return err;
}

/* Sizes that are each within their limits, taken together; fills head_dim when it wasn't given. */
static moe_err
check_sizes(model_config *c, errbuf *eb)
{
    if (c->num_heads % c->num_kv_heads != 0)
        return err_set(eb, MOE_EINVAL,
                       "num_key_value_heads %u does not divide num_attention_heads %u",
                       c->num_kv_heads, c->num_heads);
    if (c->head_dim == 0) {
        if (c->hidden_size % c->num_heads != 0)
            return err_set(eb, MOE_EINVAL,
                           "num_attention_heads %u does not divide hidden_size %u, and head_dim "
                           "is not given",
                           c->num_heads, c->hidden_size);
        c->head_dim = c->hidden_size / c->num_heads;
    }
    if (c->head_dim % 2 != 0)
        return err_set(eb, MOE_EINVAL, "head_dim %u is odd, rotary embedding needs pairs",
                       c->head_dim);
    if ((uint64_t)c->num_heads * c->head_dim > MODEL_DIM_MAX)
        return err_set(eb, MOE_EINVAL, "num_attention_heads %u times head_dim %u exceeds %u",
                       c->num_heads, c->head_dim, MODEL_DIM_MAX);
    if (c->top_k > c->num_experts)
        return err_set(eb, MOE_EINVAL, "num_experts_per_tok %u exceeds num_local_experts %u",
                       c->top_k, c->num_experts);
    return MOE_OK;
}

static moe_err
parse_object(const char *json, size_t len, cJSON **root, errbuf *eb)
{
    const moe_err err = json_parse(json, len, root, eb);
    if (err) return err;
    if (cJSON_IsObject(*root)) return MOE_OK;
    cJSON_Delete(*root);
    *root = NULL;
    return err_set(eb, MOE_EINVAL, "not a JSON object");
}

moe_err
model_config_parse(model_config *out, const char *json, size_t len, errbuf *eb)
{
    *out = (model_config){.bos_id = ID_NONE};
    model_config c = *out;
    cJSON *root;
    moe_err err = parse_object(json, len, &root, eb);
    if (err) return err;

    err = check_architecture(root, eb);
    if (!err) err = check_forms(root, eb);
    if (!err) err = parse_sizes(&c, root, eb);
    if (!err) err = check_sizes(&c, eb);
    if (!err) err = parse_rope(&c, root, eb);
    if (!err) err = parse_special_ids(&c, root, eb);
    cJSON_Delete(root);
    if (!err) *out = c;
    return err;
}

static moe_err
join_path(char **out, const char *dir, const char *file, errbuf *eb)
{
    if (asprintf(out, "%s/%s", dir, file) >= 0) return MOE_OK;
    *out = NULL;
    return err_set(eb, MOE_ENOMEM, "%s/%s: no memory for the path", dir, file);
}

/* Stop ids of DIR/generation_config.json join those of config.json; the file may be absent. */
static moe_err
load_generation(model_config *c, const char *dir, errbuf *eb)
{
    char *path = NULL, *text = NULL;
    size_t len = 0;
    cJSON *root = NULL;
    moe_err err = join_path(&path, dir, "generation_config.json", eb);
    if (err) return err;
    err = file_read(path, CONFIG_FILE_MAX, &text, &len, eb);
    if (err) {
        free(path);
        return err == MOE_ENOTFOUND ? MOE_OK : err;
    }
    err = parse_object(text, len, &root, eb);
    if (!err) err = parse_eos(c, root, eb);
    if (err) err_wrap(eb, err, "%s", path);
    cJSON_Delete(root);
    free(text);
    free(path);
    return err;
}

moe_err
model_config_load(model_config *out, const char *dir, errbuf *eb)
{
    *out = (model_config){.bos_id = ID_NONE};
    model_config c;
    char *path = NULL, *text = NULL;
    size_t len = 0;
    moe_err err = join_path(&path, dir, "config.json", eb);
    if (err) return err;
    err = file_read(path, CONFIG_FILE_MAX, &text, &len, eb);
    if (!err) {
        err = model_config_parse(&c, text, len, eb);
        if (err) err_wrap(eb, err, "%s", path);
    }
    free(text);
    free(path);
    if (!err) err = load_generation(&c, dir, eb);
    if (!err) *out = c;
    return err;
}
