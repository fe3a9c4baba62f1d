#include "frontend/completion_request.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/hash.h"
#include "common/json.h"
#include "frontend/detok.h"
#include "frontend/json_fields.h"
#include "frontend/utf8.h"

/* A parse in progress. */
typedef struct parser {
    completion_request *out;
    const completion_limits *limits;
    const cJSON *root;
    api_error *error;
    uint32_t max_tokens; /* 0 = not given */
    bool has_seed;
    int64_t seed;
} parser;

static bool
read_sampling(parser *p)
{
    gen_params *g = &p->out->params;
    int64_t top_k = 0;
    if (!field_number(p->root, "temperature", 0, false, COMPLETION_TEMPERATURE_MAX, &g->temperature,
                      p->error) ||
        !field_number(p->root, "top_p", 0, true, 1, &g->top_p, p->error) ||
        !field_number(p->root, "min_p", 0, false, 1, &g->min_p, p->error) ||
        !field_number(p->root, "presence_penalty", -2, false, 2, &g->presence_penalty, p->error) ||
        !field_number(p->root, "frequency_penalty", -2, false, 2, &g->frequency_penalty,
                      p->error) ||
        !field_number(p->root, "repetition_penalty", 0, true, COMPLETION_REPETITION_PENALTY_MAX,
                      &g->repetition_penalty, p->error) ||
        !field_int(p->root, "top_k", -1, INT32_MAX, &top_k, p->error))
        return false;
    g->top_k = (int32_t)top_k;

    const cJSON *seed = field_get(p->root, "seed");
    p->has_seed = seed != NULL;
    /* JSON numbers are doubles here: seeds beyond 2^53 are rounded, always the same way.  The
     * largest double below 2^63 keeps the conversion defined. */
    return field_int(p->root, "seed", INT64_MIN, INT64_MAX - 1023, &p->seed, p->error);
}

static bool
read_lengths(parser *p)
{
    gen_params *g = &p->out->params;
    int64_t max_tokens = 0, min_tokens = 0, n = 1, best_of = 0, logprobs = -1;
    if (!field_int(p->root, "max_tokens", 1, INT32_MAX, &max_tokens, p->error) ||
        !field_int(p->root, "min_tokens", 0, INT32_MAX, &min_tokens, p->error) ||
        !field_int(p->root, "n", 1, GEN_CHOICES_MAX, &n, p->error) ||
        !field_int(p->root, "best_of", 1, GEN_CHOICES_MAX, &best_of, p->error) ||
        !field_int(p->root, "logprobs", 0, GEN_LOGPROBS_MAX, &logprobs, p->error))
        return false;
    if (best_of != 0 && best_of != n)
        return api_error_set(p->error, 400, "best_of",
                             "best_of %lld is not supported: it must equal n, which is %lld",
                             (long long)best_of, (long long)n);
    const int64_t most = max_tokens != 0 ? max_tokens : COMPLETION_MAX_TOKENS_DEFAULT;
    if (min_tokens > most)
        return api_error_set(p->error, 400, "min_tokens",
                             "min_tokens %lld must not be above max_tokens, which is %lld",
                             (long long)min_tokens, (long long)most);
    p->max_tokens = (uint32_t)max_tokens;
    p->out->n = (uint32_t)n;
    g->min_tokens = (uint32_t)min_tokens;
    g->num_logprobs = (int32_t)logprobs;
    return true;
}

/* Named as vLLM and SGLang do. */
static bool
read_routed(parser *p)
{
    completion_request *r = p->out;
    int64_t start = 0;
    if (!field_bool(p->root, "return_routed_experts", &r->params.routed_experts, p->error) ||
        !field_int(p->root, "routed_experts_prompt_start", 0, INT32_MAX, &start, p->error))
        return false;
    r->routed_start = (uint32_t)start;
    r->routing = p->limits->routing;
    if (!r->params.routed_experts || p->limits->routing.id_bytes != 0) return true;
    return api_error_set(p->error, 400, "return_routed_experts",
                         "return_routed_experts is not offered here: a step of this server may "
                         "have more tokens than a router can report on");
}

static bool
read_switches(parser *p)
{
    completion_request *r = p->out;
    char shown[FIELD_SHOWN_MAX];
    if (!field_bool(p->root, "echo", &r->echo, p->error) ||
        !field_bool(p->root, "stream", &r->stream, p->error) ||
        !field_bool(p->root, "ignore_eos", &r->params.ignore_eos, p->error) ||
        !field_bool(p->root, "skip_special_tokens", &r->skip_special, p->error) ||
        !field_bool(p->root, "include_stop_str_in_output", &r->include_stop, p->error))
        return false;
    r->params.prompt_logprobs = r->echo && r->params.num_logprobs >= 0;
    if (!read_routed(p)) return false;

    if (field_get(p->root, "suffix") != NULL)
        return api_error_set(p->error, 400, "suffix",
                             "suffix is not supported: this model does not fill in the middle");

    const cJSON *options = field_get(p->root, "stream_options");
    if (options == NULL) return true;
    if (!cJSON_IsObject(options))
        return api_error_set(p->error, 400, "stream_options",
                             "stream_options must be an object, not %s",
                             field_show(options, shown));
    if (!r->stream)
        return api_error_set(p->error, 400, "stream_options",
                             "stream_options is only allowed when stream is true");
    if (!field_bool(options, "include_usage", &r->include_usage, p->error) ||
        !field_bool(options, "continuous_usage_stats", &r->continuous_usage, p->error)) {
        p->error->param = "stream_options";
        return false;
    }
    /* As vLLM has it: without include_usage there are no usage figures at all. */
    r->continuous_usage = r->continuous_usage && r->include_usage;
    return true;
}

/* ---- lists ---- */

bool
completion_read_ids(const cJSON *array, const char *name, uint32_t vocab, size_t max,
                    uint32_t **out, uint32_t *count, api_error *error)
{
    char shown[FIELD_SHOWN_MAX];
    *out = NULL;
    *count = 0;
    if (!cJSON_IsArray(array))
        return api_error_set(error, 400, name, "%s must be an array of token ids, not %s", name,
                             field_show(array, shown));
    const size_t size = (size_t)cJSON_GetArraySize(array);
    if (size > max)
        return api_error_set(error, 400, name, "%s has %zu token ids; the limit is %zu", name, size,
                             max);
    uint32_t *ids = malloc((size + 1) * sizeof *ids);
    if (ids == NULL) return field_no_memory(error);
    const cJSON *item;
    uint32_t i = 0;
    cJSON_ArrayForEach(item, array)
    {
        if (!json_is_int(item, 0, (int64_t)vocab - 1)) {
            free(ids);
            return api_error_set(error, 400, name,
                                 "%s: entry %u is %s, but token ids are integers from 0 to %u, the "
                                 "vocabulary's last",
                                 name, i, field_show(item, shown), vocab - 1);
        }
        ids[i++] = (uint32_t)item->valuedouble;
    }
    *out = ids;
    *count = i;
    return true;
}

static bool
add_stop(parser *p, const cJSON *item)
{
    completion_request *r = p->out;
    char shown[FIELD_SHOWN_MAX];
    if (!cJSON_IsString(item))
        return api_error_set(p->error, 400, "stop",
                             "stop must be a string or an array of strings, not %s",
                             field_show(item, shown));
    const size_t len = strlen(item->valuestring);
    if (len == 0 || len > COMPLETION_STOP_BYTES_MAX)
        return api_error_set(p->error, 400, "stop",
                             "a stop string must have 1 to %u bytes, not %zu",
                             COMPLETION_STOP_BYTES_MAX, len);
    if (r->stop_count == COMPLETION_STOPS_MAX)
        return api_error_set(p->error, 400, "stop", "stop has more strings than the limit of %u",
                             COMPLETION_STOPS_MAX);
    char *copy = strdup(item->valuestring);
    if (copy == NULL) return field_no_memory(p->error);
    r->stops[r->stop_count] = copy;
    r->stop_lens[r->stop_count++] = len;
    return true;
}

static bool
read_stops(parser *p)
{
    const cJSON *stop = field_get(p->root, "stop"), *item;
    if (cJSON_IsArray(stop)) {
        cJSON_ArrayForEach(item, stop)
        {
            if (!add_stop(p, item)) return false;
        }
    } else if (stop != NULL && !add_stop(p, stop)) {
        return false;
    }

    const cJSON *ids = field_get(p->root, "stop_token_ids");
    if (ids == NULL) return true;
    uint32_t *list;
    gen_params *g = &p->out->params;
    if (!completion_read_ids(ids, "stop_token_ids", tokenizer_vocab_size(p->limits->tok),
                             GEN_STOP_TOKENS_MAX, &list, &g->stop_token_count, p->error))
        return false;
    memcpy(g->stop_token_ids, list, g->stop_token_count * sizeof *list);
    free(list);
    return true;
}

/* A key of logit_bias: an id in decimal digits. */
static bool
read_bias_id(const char *key, uint32_t vocab, uint32_t *out)
{
    const size_t len = strlen(key);
    if (len == 0 || len > 9 || strspn(key, "0123456789") != len) return false;
    const unsigned long id = strtoul(key, NULL, 10);
    *out = (uint32_t)id;
    return id < vocab;
}

static bool
add_bias(parser *p, const cJSON *item)
{
    completion_request *r = p->out;
    const uint32_t vocab = tokenizer_vocab_size(p->limits->tok);
    char shown[FIELD_SHOWN_MAX];
    uint32_t id;
    if (!read_bias_id(item->string, vocab, &id))
        return api_error_set(p->error, 400, "logit_bias",
                             "logit_bias: the key \"%.40s\" is no token id; ids go from 0 to %u",
                             item->string, vocab - 1);
    const double v = item->valuedouble;
    if (!cJSON_IsNumber(item) || !(v >= -100 && v <= 100))
        return api_error_set(
            p->error, 400, "logit_bias",
            "logit_bias: the value of %u must be a number from -100 to 100, not %s", id,
            field_show(item, shown));
    for (uint32_t i = 0; i < r->params.bias_count; i++) {
        if (r->bias_ids[i] == id)
            return api_error_set(p->error, 400, "logit_bias", "logit_bias names token %u twice",
                                 id);
    }
    r->bias_ids[r->params.bias_count] = id;
    r->bias_values[r->params.bias_count++] = v;
    return true;
}

static bool
read_biases(parser *p)
{
    completion_request *r = p->out;
    const cJSON *bias = field_get(p->root, "logit_bias"), *item;
    char shown[FIELD_SHOWN_MAX];
    if (bias == NULL) return true;
    if (!cJSON_IsObject(bias))
        return api_error_set(p->error, 400, "logit_bias", "logit_bias must be an object, not %s",
                             field_show(bias, shown));
    const int count = cJSON_GetArraySize(bias);
    if (count == 0) return true;
    if (count > GEN_LOGIT_BIAS_MAX)
        return api_error_set(p->error, 400, "logit_bias",
                             "logit_bias has %d entries; the limit is %d", count,
                             GEN_LOGIT_BIAS_MAX);
    r->bias_ids = malloc((size_t)count * sizeof *r->bias_ids);
    r->bias_values = malloc((size_t)count * sizeof *r->bias_values);
    if (r->bias_ids == NULL || r->bias_values == NULL) return field_no_memory(p->error);
    cJSON_ArrayForEach(item, bias)
    {
        if (!add_bias(p, item)) return false;
    }
    r->params.bias_ids = r->bias_ids;
    r->params.bias_values = r->bias_values;
    return true;
}

/* ---- prompts ---- */

/* Check prompt and output against the context, and settle how many tokens may come. */
static bool
fit_prompt(parser *p, completion_prompt *prompt)
{
    const uint64_t context = p->limits->max_model_len;
    const uint64_t least = p->max_tokens != 0 ? p->max_tokens : 1;
    if (prompt->count == 0) return api_error_set(p->error, 400, "prompt", "prompt has no tokens");
    if (prompt->count + least > context)
        return api_error_set(
            p->error, 400, prompt->count >= context ? "prompt" : "max_tokens",
            "the model's maximum context length is %llu tokens, but %llu were asked "
            "for: %u in the prompt and %s%llu to generate",
            (unsigned long long)context, (unsigned long long)(prompt->count + least), prompt->count,
            p->max_tokens != 0 ? "" : "at least ", (unsigned long long)least);
    const uint64_t room = context - prompt->count;
    prompt->max_tokens = p->max_tokens;
    if (p->max_tokens == 0)
        prompt->max_tokens =
            (uint32_t)(room < COMPLETION_MAX_TOKENS_DEFAULT ? room : COMPLETION_MAX_TOKENS_DEFAULT);
    if (p->out->params.min_tokens > prompt->max_tokens)
        return api_error_set(p->error, 400, "min_tokens",
                             "min_tokens %u does not fit: the prompt leaves room for %u tokens",
                             p->out->params.min_tokens, prompt->max_tokens);
    return true;
}

static bool
draw_seed(parser *p, completion_prompt *prompt)
{
    if (p->has_seed) {
        prompt->seed = (uint64_t)p->seed;
        return true;
    }
    if (p->limits->fixed_seed) {
        prompt->seed =
            hash_bytes(p->limits->base_seed, prompt->ids, prompt->count * sizeof *prompt->ids);
        return true;
    }
    if (getrandom(&prompt->seed, sizeof prompt->seed, 0) != (ssize_t)sizeof prompt->seed)
        return api_error_set(p->error, 500, NULL, "no random numbers: %s", strerror(errno));
    return true;
}

static bool
encode_text(parser *p, completion_prompt *prompt, const char *text)
{
    const completion_limits *limits = p->limits;
    const size_t len = strlen(text);
    const uint64_t bytes_max = (uint64_t)limits->max_model_len * limits->token_bytes_max;
    if (len > bytes_max)
        return api_error_set(p->error, 400, "prompt",
                             "the model's maximum context length is %u tokens, but a prompt of %zu "
                             "bytes has at least %zu",
                             limits->max_model_len, len, len / limits->token_bytes_max);
    errbuf eb = {""};
    size_t count;
    const moe_err err =
        tokenizer_encode(limits->tok, text, len, TOKENIZER_ADD_BOS, &prompt->ids, &count, &eb);
    if (err)
        return api_error_set(p->error, err == MOE_ENOMEM ? 500 : 400, "prompt", "prompt: %s",
                             eb.text);
    prompt->count = (uint32_t)count; /* count <= len + 1, which is small */
    if (!p->out->echo) return true;
    prompt->text = strdup(text);
    prompt->text_len = len;
    return prompt->text != NULL || field_no_memory(p->error);
}

static bool
take_ids(parser *p, completion_prompt *prompt, const cJSON *array)
{
    const tokenizer *tok = p->limits->tok;
    if (!completion_read_ids(array, "prompt", tokenizer_vocab_size(tok), SIZE_MAX, &prompt->ids,
                             &prompt->count, p->error))
        return false;
    if (!p->out->echo || prompt->count > p->limits->max_model_len) return true;
    strbuf text;
    strbuf_init(&text, SIZE_MAX / 2);
    tokenizer_decode(tok, prompt->ids, prompt->count, p->out->skip_special, &text);
    strbuf_puts(&text, ""); /* so that there is a text, even an empty one */
    if (text.failed) {
        strbuf_fini(&text);
        return field_no_memory(p->error);
    }
    prompt->text = text.text;
    prompt->text_len = text.len;
    return true;
}

static bool
add_prompt(parser *p, const cJSON *item)
{
    completion_prompt *prompt = &p->out->prompts[p->out->prompt_count++];
    const bool taken = cJSON_IsString(item) ? encode_text(p, prompt, item->valuestring)
                                            : take_ids(p, prompt, item);
    return taken && fit_prompt(p, prompt) && draw_seed(p, prompt);
}

/* [1, 2, 3] is one prompt; ["a", "b"] and [[1], [2]] are two. */
static bool
is_one_prompt(const cJSON *prompt)
{
    return cJSON_IsString(prompt) || (cJSON_IsArray(prompt) && cJSON_IsNumber(prompt->child));
}

static bool
read_prompts(parser *p)
{
    const cJSON *prompt = field_get(p->root, "prompt"), *item;
    char shown[FIELD_SHOWN_MAX];
    if (prompt == NULL) return api_error_set(p->error, 400, "prompt", "prompt is missing");
    if (!cJSON_IsString(prompt) && !cJSON_IsArray(prompt))
        return api_error_set(p->error, 400, "prompt",
                             "prompt must be a string, an array of strings, an array of token ids, "
                             "or an array of such arrays, not %s",
                             field_show(prompt, shown));
    const bool one = is_one_prompt(prompt);
    const size_t count = one ? 1 : (size_t)cJSON_GetArraySize(prompt);
    if (count == 0) return api_error_set(p->error, 400, "prompt", "prompt is an empty array");
    if (count * p->out->n > COMPLETION_SEQUENCES_MAX)
        return api_error_set(p->error, 400, "prompt",
                             "%zu prompts with n = %u are %zu sequences; the limit is %u", count,
                             p->out->n, count * p->out->n, COMPLETION_SEQUENCES_MAX);
    p->out->prompts = calloc(count, sizeof *p->out->prompts);
    if (p->out->prompts == NULL) return field_no_memory(p->error);
    if (one) return add_prompt(p, prompt);

    const bool texts = cJSON_IsString(prompt->child);
    cJSON_ArrayForEach(item, prompt)
    {
        if (texts ? !cJSON_IsString(item) : !cJSON_IsArray(item))
            return api_error_set(
                p->error, 400, "prompt", "prompt: every entry must be %s like the first, not %s",
                texts ? "a string" : "an array of token ids", field_show(item, shown));
        if (!add_prompt(p, item)) return false;
    }
    return true;
}

/* Every choice repeats its prompt, so a short request could ask for a very long answer. */
static bool
check_echo(parser *p)
{
    const completion_request *r = p->out;
    size_t bytes = 0;
    for (uint32_t i = 0; i < r->prompt_count; i++)
        bytes += r->prompts[i].text_len * r->n;
    if (bytes <= COMPLETION_ECHO_BYTES_MAX) return true;
    return api_error_set(p->error, 400, "echo",
                         "echo would repeat %zu bytes of prompts; the limit is %zu", bytes,
                         COMPLETION_ECHO_BYTES_MAX);
}

/* Every choice has what its prompt's tokens used, too. */
static bool
check_routed(parser *p)
{
    const completion_request *r = p->out;
    const routing_shape *shape = &p->limits->routing;
    uint64_t bytes = 0;
    if (!r->params.routed_experts) return true;
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        const completion_prompt *prompt = &r->prompts[i];
        if (r->routed_start > prompt->count)
            return api_error_set(p->error, 400, "routed_experts_prompt_start",
                                 "routed_experts_prompt_start %u must not be above the prompt's "
                                 "%u tokens",
                                 r->routed_start, prompt->count);
        const uint64_t tokens = prompt->count + (uint64_t)prompt->max_tokens - r->routed_start;
        bytes += tokens * r->n * routing_token_bytes(shape);
    }
    if (bytes <= COMPLETION_ROUTED_BYTES_MAX) return true;
    return api_error_set(p->error, 400, "return_routed_experts",
                         "return_routed_experts could give %llu bytes: %u layers of %u experts for "
                         "each token of prompts and answers; the limit is %zu",
                         (unsigned long long)bytes, shape->num_layers, shape->top_k,
                         COMPLETION_ROUTED_BYTES_MAX);
}

/* ---- the whole ---- */

cJSON *
completion_body_parse(const char *body, size_t len, api_error *error)
{
    errbuf eb = {""};
    cJSON *root = NULL;
    const size_t valid = utf8_valid_len(body, len);
    if (valid != len) {
        api_error_set(error, 400, NULL, "the body is not UTF-8: bad byte at offset %zu", valid);
        return NULL;
    }
    const moe_err err = json_parse(body, len, &root, &eb);
    if (err) {
        api_error_set(error, err == MOE_ENOMEM ? 500 : 400, NULL, "the body is %s", eb.text);
        return NULL;
    }
    if (cJSON_IsObject(root)) return root;
    cJSON_Delete(root);
    api_error_set(error, 400, NULL, "the body must be a JSON object");
    return NULL;
}

bool
completion_check_model(const cJSON *root, const char *model, api_error *error)
{
    const cJSON *item = field_get(root, "model");
    char shown[FIELD_SHOWN_MAX];
    if (item == NULL) return true;
    if (!cJSON_IsString(item))
        return api_error_set(error, 400, "model", "model must be a string, not %s",
                             field_show(item, shown));
    if (strcmp(item->valuestring, model) == 0) return true;
    api_error_set(error, 404, "model",
                  "the model \"%.100s\" does not exist; this server has \"%s\"", item->valuestring,
                  model);
    error->code = "model_not_found";
    return false;
}

void
completion_limits_measure(completion_limits *limits)
{
    limits->token_bytes_max = 1;
    const uint32_t vocab = tokenizer_vocab_size(limits->tok);
    for (uint32_t id = 0; id < vocab; id++) {
        size_t len;
        tokenizer_token_text(limits->tok, id, &len);
        if (len > limits->token_bytes_max) limits->token_bytes_max = (uint32_t)len;
    }
}

static void
set_defaults(completion_request *r)
{
    *r = (completion_request){
        .n = 1,
        .skip_special = true,
        .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1},
    };
}

bool
completion_request_parse(completion_request *out, const completion_limits *limits, const char *body,
                         size_t len, api_error *error)
{
    set_defaults(out);
    *error = (api_error){0};
    cJSON *root = completion_body_parse(body, len, error);
    if (root == NULL) return false;
    parser p = {.out = out, .limits = limits, .root = root, .error = error};
    /* The prompt comes last: it is the costly part, and its checks need max_tokens and n. */
    const bool good = completion_check_model(root, limits->model, error) && read_sampling(&p) &&
                      read_lengths(&p) && read_switches(&p) && read_stops(&p) && read_biases(&p) &&
                      read_prompts(&p) && check_echo(&p) && check_routed(&p);
    cJSON_Delete(root);
    if (!good) completion_request_fini(out);
    return good;
}

void
completion_request_fini(completion_request *r)
{
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        free(r->prompts[i].ids);
        free(r->prompts[i].text);
    }
    free(r->prompts);
    for (uint32_t i = 0; i < r->stop_count; i++)
        free(r->stops[i]);
    free(r->bias_ids);
    free(r->bias_values);
    *r = (completion_request){0};
}
