#include "loadgen/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"
#include "common/strbuf.h"
#include "loadgen/entries.h"
#include "loadgen/rng.h"

#define PROMPT_BYTES_MAX (16u << 20)
#define TOKEN_ID_MAX 0x7fffffff
#define SHAREGPT_PROMPT_MIN 4
#define SHAREGPT_PROMPT_MAX 1024
#define SHAREGPT_ANSWER_MIN 4
#define SHAREGPT_SUM_MAX 2048

void
dataset_fini(dataset *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->prompts[i].json);
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

/* Takes over the text of `json`, which is empty afterwards. */
static moe_err
add_prompt(dataset *set, strbuf *json, int64_t token_count, int64_t max_tokens, errbuf *eb)
{
    if (json->failed)
        return err_set(eb, MOE_ERANGE, "the prompt is longer than %u bytes", PROMPT_BYTES_MAX);
    set->prompts[set->count++] =
        (prompt){.json = json->text, .token_count = token_count, .max_tokens = max_tokens};
    strbuf_init(json, PROMPT_BYTES_MAX);
    return MOE_OK;
}

/* ---- random ---- */

static moe_err
check_random(const dataset_config *c, errbuf *eb)
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
    if (c->vocab_first < 0 || c->vocab_end <= c->vocab_first || c->vocab_end > TOKEN_ID_MAX)
        return err_set(eb, MOE_ERANGE, "random ids from %lld to below %lld: no such range",
                       (long long)c->vocab_first, (long long)c->vocab_end);
    return MOE_OK;
}

static int64_t
draw_length(rng *r, int64_t len, double ratio, int64_t min)
{
    const int64_t low = (int64_t)floor((double)len * (1 - ratio));
    const int64_t high = (int64_t)ceil((double)len * (1 + ratio));
    const int64_t drawn = low + (int64_t)rng_below(r, (uint64_t)(high - low) + 1);
    return drawn < min ? min : drawn;
}

static void
draw_ids(rng *r, const dataset_config *c, int64_t count, strbuf *out)
{
    const uint64_t range = (uint64_t)(c->vocab_end - c->vocab_first);
    for (int64_t i = 0; i < count; i++) {
        if (out->len > 1) strbuf_puts(out, ",");
        strbuf_printf(out, "%lld", (long long)c->vocab_first + (long long)rng_below(r, range));
    }
}

static moe_err
make_random(const dataset_config *c, dataset *out, errbuf *eb)
{
    rng lengths, ids;
    rng_init(&lengths, c->seed, RNG_LENGTHS);
    for (size_t i = 0; i < c->count; i++) {
        /* With a prefix the rest may be empty; without one a prompt has at least one token. */
        const int64_t own = draw_length(&lengths, c->input_len, c->range_ratio, !c->prefix_len);
        const int64_t answer = draw_length(&lengths, c->random_output_len, c->range_ratio, 1);
        strbuf json;
        strbuf_init(&json, PROMPT_BYTES_MAX);
        strbuf_puts(&json, "[");
        rng_init(&ids, c->seed, RNG_TOKENS);
        draw_ids(&ids, c, c->prefix_len, &json);
        /* A stream for each prompt: prompt i stays what it is when other lengths change. */
        rng_init(&ids, c->seed + 1 + i, RNG_TOKENS);
        draw_ids(&ids, c, own, &json);
        strbuf_puts(&json, "]");
        const moe_err err = add_prompt(out, &json, c->prefix_len + own, answer, eb);
        strbuf_fini(&json);
        if (err) return err;
    }
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
    if (!err) err = add_prompt(out, &json, token_count, max_tokens, eb);
    strbuf_fini(&json);
    return err;
}

/* ---- sharegpt ---- */

static moe_err
read_turn(const cJSON *turns, int index, const char **out, errbuf *eb)
{
    const cJSON *value =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(turns, index), "value");
    if (!cJSON_IsString(value))
        return err_set(eb, MOE_EINVAL, "conversations[%d] must be an object with a text \"value\"",
                       index);
    *out = value->valuestring;
    return MOE_OK;
}

static moe_err
read_sharegpt(const dataset_config *c, const cJSON *root, dataset *out, errbuf *eb)
{
    const cJSON *turns = cJSON_GetObjectItemCaseSensitive(root, "conversations");
    if (turns == NULL) turns = cJSON_GetObjectItemCaseSensitive(root, "conversation");
    if (!cJSON_IsArray(turns))
        return err_set(eb, MOE_EINVAL, "conversations must be an array of turns");
    if (cJSON_GetArraySize(turns) < 2) return MOE_OK;

    const char *question, *answer;
    int64_t prompt_len = 0, answer_len = 0;
    moe_err err = read_turn(turns, 0, &question, eb);
    if (!err) err = read_turn(turns, 1, &answer, eb);
    if (!err) err = c->count_tokens(c->count_ctx, question, &prompt_len, eb);
    if (err || prompt_len < SHAREGPT_PROMPT_MIN || prompt_len > SHAREGPT_PROMPT_MAX) return err;
    err = c->count_tokens(c->count_ctx, answer, &answer_len, eb);
    if (c->output_len > 0) answer_len = c->output_len;
    if (err || answer_len < SHAREGPT_ANSWER_MIN || prompt_len + answer_len > SHAREGPT_SUM_MAX)
        return err;

    strbuf json;
    strbuf_init(&json, PROMPT_BYTES_MAX);
    strbuf_json_string(&json, question, strlen(question));
    err = add_prompt(out, &json, prompt_len, answer_len, eb);
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
        err = read_sharegpt(c, root, out, eb);
    cJSON_Delete(root);
    return err;
}

static moe_err
repeat(const dataset_config *c, dataset *set, errbuf *eb)
{
    const size_t distinct = set->count;
    while (set->count < c->count) {
        prompt p = set->prompts[set->count - distinct];
        p.json = strdup(p.json);
        if (p.json == NULL) return err_set(eb, MOE_ENOMEM, "prompts: out of memory");
        set->prompts[set->count++] = p;
        set->repeated++;
    }
    return MOE_OK;
}

moe_err
dataset_parse(const dataset_config *c, const char *name, const char *text, size_t len, dataset *out,
              errbuf *eb)
{
    const bool lines = c->kind == DATASET_CUSTOM;
    entries list = {0};
    moe_err err = reserve(c, out, eb);
    if (!err) err = (lines ? entries_from_lines : entries_from_array)(text, len, &list, eb);
    if (err) err_wrap(eb, err, "%s", name);
    if (!err && c->shuffle) entries_shuffle(&list, c->seed);
    for (size_t i = 0; !err && i < list.count && out->count < c->count; i++) {
        err = read_entry(c, &list.at[i], out, eb);
        if (err) err_wrap(eb, err, "%s: %s %zu", name, lines ? "line" : "entry", list.at[i].number);
    }
    if (!err && out->count == 0)
        err = err_set(eb, MOE_ENOTFOUND, "%s: none of its %zu entries is usable", name, list.count);
    if (!err) err = repeat(c, out, eb);
    entries_fini(&list);
    if (err) dataset_fini(out);
    return err;
}

moe_err
dataset_load(const dataset_config *c, dataset *out, errbuf *eb)
{
    *out = (dataset){0};
    moe_err err;
    if (c->kind == DATASET_RANDOM) {
        err = check_random(c, eb);
        if (!err) err = reserve(c, out, eb);
        if (!err) err = make_random(c, out, eb);
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
