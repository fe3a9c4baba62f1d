#include "loadgen/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "loadgen/dataset_impl.h"

#define TOKEN_ID_MAX 0x7fffffff

void
dataset_fini(dataset *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->prompts[i].json);
    }
    for (size_t d = 0; d < set->domain_count; d++) {
        free(set->domains[d]);
    }
    free(set->prompts);
    *set = (dataset){0};
}

static moe_err
reserve(const dataset_config *config, dataset *out, errbuf *eb)
{
    *out = (dataset){0};
    if (config->count == 0 || config->count > DATASET_PROMPTS_MAX)
        return err_set(eb, MOE_ERANGE, "%zu prompts: must be 1..%u", config->count,
                       DATASET_PROMPTS_MAX);
    out->prompts = calloc(config->count, sizeof *out->prompts);
    return out->prompts ? MOE_OK : err_set(eb, MOE_ENOMEM, "prompts: out of memory");
}

moe_err
dataset_add(dataset *set, strbuf *json, int64_t token_count, int64_t max_tokens, errbuf *eb)
{
    if (json->failed)
        return err_set(eb, MOE_ERANGE, "the prompt is longer than %u bytes", PROMPT_BYTES_MAX);
    set->prompts[set->count++] =
        (prompt){.json = json->text, .token_count = token_count, .max_tokens = max_tokens};
    strbuf_init(json, PROMPT_BYTES_MAX);
    return MOE_OK;
}

moe_err
dataset_add_copy(dataset *set, size_t i, errbuf *eb)
{
    prompt p = set->prompts[i];
    p.json = strdup(p.json);
    if (p.json == NULL) return err_set(eb, MOE_ENOMEM, "prompts: out of memory");
    set->prompts[set->count++] = p;
    return MOE_OK;
}

/* ---- custom ---- */

/* Copies the ids; a compact copy, so that a file's white space does not travel. */
static moe_err
write_ids(const cJSON *array, strbuf *out, int64_t *count, errbuf *eb)
{
    *count = 0;
    strbuf_puts(out, "[");
    const cJSON *id;
    cJSON_ArrayForEach(id, array)
    {
        if (!json_is_int(id, 0, TOKEN_ID_MAX))
            return err_set(eb, MOE_EINVAL, "prompt[%lld] must be a token id", (long long)*count);
        strbuf_printf(out, "%s%lld", *count ? "," : "", (long long)id->valuedouble);
        ++*count;
    }
    strbuf_puts(out, "]");
    if (*count == 0) return err_set(eb, MOE_EINVAL, "prompt must not be empty");
    return MOE_OK;
}

/* "max_tokens", or one of the other names that data sets use for it. */
static moe_err
read_max_tokens(const cJSON *root, int64_t *out, errbuf *eb)
{
    static const char *const names[] = {"output_tokens", "output_len", "max_tokens"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const moe_err err = json_get_i64(root, names[i], 1, DATASET_TOKENS_MAX, out, eb);
        if (err) return err;
    }
    return MOE_OK;
}

static moe_err
read_custom(const dataset_config *c, const cJSON *root, dataset *out, errbuf *eb)
{
    strbuf json;
    strbuf_init(&json, PROMPT_BYTES_MAX);
    int64_t token_count = -1, max_tokens = c->output_len;
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(root, "prompt");
    moe_err err = read_max_tokens(root, &max_tokens, eb);
    if (!err && cJSON_IsString(text) && *text->valuestring != '\0')
        strbuf_json_string(&json, text->valuestring, strlen(text->valuestring));
    else if (!err && cJSON_IsArray(text))
        err = write_ids(text, &json, &token_count, eb);
    else if (!err)
        err = err_set(eb, MOE_EINVAL, "prompt must be a text or an array of token ids");
    if (!err) err = dataset_add(out, &json, token_count, max_tokens, eb);
    strbuf_fini(&json);
    return err;
}

/* ---- files ---- */

static moe_err
read_entry(const dataset_config *c, const entry *e, dataset *out, errbuf *eb)
{
    cJSON *root;
    moe_err err = json_parse(e->text, e->len, &root, eb);
    if (err) return err;
    if (!cJSON_IsObject(root))
        err = err_set(eb, MOE_EINVAL, "must be a JSON object");
    else if (c->kind == DATASET_CUSTOM)
        err = read_custom(c, root, out, eb);
    else
        err = dataset_read_conversation(c, root, out, eb);
    cJSON_Delete(root);
    return err;
}

static moe_err
read_entries(const dataset_config *c, const entries *list, dataset *out, errbuf *eb)
{
    const char *unit = c->kind == DATASET_CUSTOM ? "line" : "entry";
    for (size_t i = 0; i < list->count && out->count < c->count; i++) {
        const moe_err err = read_entry(c, &list->at[i], out, eb);
        if (err) return err_wrap(eb, err, "%s %zu", unit, list->at[i].number);
    }
    return MOE_OK;
}

static moe_err
repeat(const dataset_config *c, dataset *set, errbuf *eb)
{
    const size_t distinct = set->count;
    while (set->count < c->count) {
        const moe_err err = dataset_add_copy(set, set->count - distinct, eb);
        if (err) return err;
        set->repeated++;
    }
    return MOE_OK;
}

static moe_err
parse_entries(const dataset_config *c, const char *text, size_t len, dataset *out, errbuf *eb)
{
    entries list = {0};
    moe_err err =
        (c->kind == DATASET_CUSTOM ? entries_from_lines : entries_from_array)(text, len, &list, eb);
    if (!err && c->shuffle) entries_shuffle(&list, c->seed);
    if (!err)
        err = c->kind == DATASET_EXPERT_SKEW ? dataset_make_skewed(c, &list, out, eb)
                                             : read_entries(c, &list, out, eb);
    if (!err && out->count == 0)
        err = err_set(eb, MOE_ENOTFOUND, "none of its %zu entries is usable", list.count);
    if (!err) err = repeat(c, out, eb);
    entries_fini(&list);
    return err;
}

moe_err
dataset_parse(const dataset_config *c, const char *name, const char *text, size_t len, dataset *out,
              errbuf *eb)
{
    moe_err err = reserve(c, out, eb);
    if (!err)
        err = c->kind == DATASET_TRACE ? dataset_make_trace(c, text, len, out, eb)
                                       : parse_entries(c, text, len, out, eb);
    if (!err) return MOE_OK;
    dataset_fini(out);
    return err_wrap(eb, err, "%s", name);
}

moe_err
dataset_load(const dataset_config *c, dataset *out, errbuf *eb)
{
    *out = (dataset){0};
    moe_err err;
    if (c->kind == DATASET_RANDOM || c->kind == DATASET_PREFIX_REPETITION) {
        err = reserve(c, out, eb);
        if (!err)
            err = (c->kind == DATASET_RANDOM ? dataset_make_random
                                             : dataset_make_prefix_repetition)(c, out, eb);
        if (err) dataset_fini(out);
        return err;
    }
    if (c->path == NULL) return err_set(eb, MOE_EINVAL, "this data set needs --dataset-path");
    const void *map = NULL;
    size_t len = 0;
    err = file_map(c->path, &map, &len, eb);
    if (err) return err;
    err = dataset_parse(c, c->path, map ? map : "", len, out, eb);
    file_unmap(map, len);
    return err;
}
