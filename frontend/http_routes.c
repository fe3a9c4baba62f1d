/* The routes, and those that answer at once. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/json.h"
#include "frontend/detok.h"
#include "frontend/http_exchange.h"

#define JSON_TYPE "application/json"
#define ANSWER_BYTES_MAX ((size_t)64 << 20)

static enum MHD_Result
answer_and_free(http_exchange *x, int status, const char *type, strbuf *text)
{
    const enum MHD_Result result = http_answer(x, status, type, text);
    strbuf_fini(text);
    return result;
}

static enum MHD_Result
get_health(http_exchange *x)
{
    api_error error;
    char detail[HTTP_DETAIL_BYTES];
    if (!http_ready(x, engine_ready, detail, &error)) return http_refuse(x, &error);
    strbuf text;
    strbuf_init(&text, ANSWER_BYTES_MAX);
    strbuf_puts(&text, "{\"status\":\"ok\",\"detail\":");
    strbuf_json_string(&text, detail, strlen(detail));
    strbuf_puts(&text, "}");
    return answer_and_free(x, 200, JSON_TYPE, &text);
}

static enum MHD_Result
get_version(http_exchange *x)
{
    strbuf text;
    strbuf_init(&text, ANSWER_BYTES_MAX);
    strbuf_puts(&text, "{\"version\":\"" CONCLAVE_VERSION "\"}");
    return answer_and_free(x, 200, JSON_TYPE, &text);
}

static enum MHD_Result
get_models(http_exchange *x)
{
    const http_server *s = x->server;
    strbuf text;
    strbuf_init(&text, ANSWER_BYTES_MAX);
    strbuf_puts(&text, "{\"object\":\"list\",\"data\":[{\"id\":");
    strbuf_json_string(&text, s->config.model, strlen(s->config.model));
    strbuf_printf(&text,
                  ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"conclave\","
                  "\"max_model_len\":%u}]}",
                  (long long)time(NULL), http_limits(s).max_model_len);
    return answer_and_free(x, 200, JSON_TYPE, &text);
}

static enum MHD_Result
get_metrics(http_exchange *x)
{
    const http_config *c = &x->server->config;
    strbuf text;
    strbuf_init(&text, ANSWER_BYTES_MAX);
    if (c->metrics != NULL) metrics_print(c->metrics, &text);
    if (c->more_metrics != NULL) c->more_metrics(c->more_user, &text);
    return answer_and_free(x, 200, "text/plain; version=0.0.4", &text);
}

/* ---- text to ids and back ---- */

static bool
encode_body(http_exchange *x, const cJSON *root, strbuf *text, api_error *error)
{
    const http_server *s = x->server;
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(root, "prompt");
    const cJSON *special = cJSON_GetObjectItemCaseSensitive(root, "add_special_tokens");
    if (!completion_check_model(root, s->config.model, error)) return false;
    if (!cJSON_IsString(prompt))
        return api_error_set(error, 400, "prompt", "prompt must be a string");
    if (special != NULL && !cJSON_IsNull(special) && !cJSON_IsBool(special))
        return api_error_set(error, 400, "add_special_tokens",
                             "add_special_tokens must be true or false");
    errbuf eb = {""};
    uint32_t *ids;
    size_t count;
    const moe_err err =
        tokenizer_encode(s->tok, prompt->valuestring, strlen(prompt->valuestring),
                         cJSON_IsFalse(special) ? 0 : TOKENIZER_ADD_BOS, &ids, &count, &eb);
    if (err)
        return api_error_set(error, err == MOE_ENOMEM ? 500 : 400, "prompt", "prompt: %s", eb.text);
    strbuf_printf(text, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", count,
                  http_limits(s).max_model_len);
    for (size_t i = 0; i < count; i++)
        strbuf_printf(text, i == 0 ? "%u" : ",%u", ids[i]);
    strbuf_puts(text, "]}");
    free(ids);
    return true;
}

static bool
decode_body(http_exchange *x, const cJSON *root, strbuf *text, api_error *error)
{
    const http_server *s = x->server;
    uint32_t *ids, count;
    if (!completion_check_model(root, s->config.model, error)) return false;
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(root, "tokens");
    if (tokens == NULL) return api_error_set(error, 400, "tokens", "tokens is missing");
    if (!completion_read_ids(tokens, "tokens", tokenizer_vocab_size(s->tok), SIZE_MAX, &ids, &count,
                             error))
        return false;
    strbuf prompt;
    strbuf_init(&prompt, ANSWER_BYTES_MAX / 2);
    tokenizer_decode(s->tok, ids, count, false, &prompt);
    strbuf_puts(text, "{\"prompt\":");
    strbuf_json_string(text, strbuf_text(&prompt), prompt.len);
    strbuf_puts(text, "}");
    const bool failed = prompt.failed;
    strbuf_fini(&prompt);
    free(ids);
    return !failed || api_error_set(error, 400, "tokens", "the text is longer than %zu bytes",
                                    ANSWER_BYTES_MAX / 2);
}

typedef bool converter(http_exchange *x, const cJSON *root, strbuf *text, api_error *error);

static enum MHD_Result
convert(http_exchange *x, converter *fn)
{
    api_error error = {0};
    strbuf text;
    cJSON *root = completion_body_parse(strbuf_text(&x->body), x->body.len, &error);
    if (root == NULL) return http_refuse(x, &error);
    strbuf_init(&text, ANSWER_BYTES_MAX);
    const enum MHD_Result result =
        fn(x, root, &text, &error) ? http_answer(x, 200, JSON_TYPE, &text) : http_refuse(x, &error);
    strbuf_fini(&text);
    cJSON_Delete(root);
    return result;
}

static enum MHD_Result
post_tokenize(http_exchange *x)
{
    return convert(x, encode_body);
}

static enum MHD_Result
post_detokenize(http_exchange *x)
{
    return convert(x, decode_body);
}

/* ---- the table ---- */

static const http_route routes[] = {
    {"/v1/completions", "POST", false, http_completion_start},
    {"/v1/models", "GET", false, get_models},
    {"/health", "GET", true, get_health},
    {"/version", "GET", false, get_version},
    {"/metrics", "GET", false, get_metrics},
    {"/tokenize", "POST", false, post_tokenize},
    {"/detokenize", "POST", false, post_detokenize},
};

const http_route *
http_route_find(const char *path, const char *method, const char **allow)
{
    *allow = NULL;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(routes[i].path, path) != 0) continue;
        if (strcmp(routes[i].method, method) == 0) return &routes[i];
        *allow = routes[i].method;
    }
    return NULL;
}
