#include "loadgen/server.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/strbuf.h"
#include "loadgen/openai.h"

#define ANSWER_BYTES_MAX (64u << 20)
#define REQUEST_BYTES_MAX (64u << 20)
#define URL_BYTES_MAX 2048
#define CALL_TIMEOUT_S 60L

struct server {
    CURL *easy; /* one handle, so that one connection serves all calls */
    struct curl_slist *headers;
    char base_url[URL_BYTES_MAX];
    strbuf request, answer;
};

moe_err
server_open(server **out, const char *base_url, const char *api_key, errbuf *eb)
{
    *out = NULL;
    size_t len = strlen(base_url);
    while (len > 0 && base_url[len - 1] == '/')
        len--;
    if (len == 0 || len >= URL_BYTES_MAX - 64)
        return err_set(eb, MOE_EINVAL, "base URL: must be 1..%d bytes", URL_BYTES_MAX - 64);

    server *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "server: out of memory");
    memcpy(s->base_url, base_url, len);
    strbuf_init(&s->request, REQUEST_BYTES_MAX);
    strbuf_init(&s->answer, ANSWER_BYTES_MAX);
    s->easy = curl_easy_init();
    s->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (api_key != NULL) {
        strbuf_printf(&s->request, "Authorization: Bearer %s", api_key);
        curl_slist_append(s->headers, strbuf_text(&s->request));
    }
    if (s->easy == NULL || s->headers == NULL) {
        server_close(s);
        return err_set(eb, MOE_ENOMEM, "server: out of memory");
    }
    *out = s;
    return MOE_OK;
}

void
server_close(server *s)
{
    if (s == NULL) return;
    curl_easy_cleanup(s->easy);
    curl_slist_free_all(s->headers);
    strbuf_fini(&s->request);
    strbuf_fini(&s->answer);
    free(s);
}

static size_t
on_bytes(char *bytes, size_t size, size_t n, void *ctx)
{
    server *s = ctx;
    strbuf_append(&s->answer, bytes, size * n);
    return s->answer.failed ? 0 : size * n;
}

/* GET, or POST of s->request when post is set.  On MOE_OK *out is the parsed answer. */
static moe_err
call(server *s, const char *path, bool post, cJSON **out, errbuf *eb)
{
    *out = NULL;
    char url[URL_BYTES_MAX], reason[CURL_ERROR_SIZE] = "";
    snprintf(url, sizeof url, "%s%s", s->base_url, path);
    strbuf_reset(&s->answer);
    if (post && s->request.failed) return err_set(eb, MOE_ENOMEM, "%s: request too long", url);

    curl_easy_reset(s->easy); /* keeps the connection */
    curl_easy_setopt(s->easy, CURLOPT_URL, url);
    curl_easy_setopt(s->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(s->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_TIMEOUT, CALL_TIMEOUT_S);
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, s->headers);
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->easy, CURLOPT_ERRORBUFFER, reason);
    if (post) {
        curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)s->request.len);
        curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, strbuf_text(&s->request));
    }
    const CURLcode code = curl_easy_perform(s->easy);
    long status = 0;
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_setopt(s->easy, CURLOPT_ERRORBUFFER, NULL);
    if (code != CURLE_OK)
        return err_set(eb, MOE_ECLOSED, "%s: %s", url, *reason ? reason : curl_easy_strerror(code));
    if (status != 200) {
        char text[MOE_ERR_TEXT_MAX];
        openai_error_text(strbuf_text(&s->answer), s->answer.len, text, sizeof text);
        return err_set(eb, MOE_EINVAL, "%s: HTTP %ld: %s", url, status, text);
    }
    const moe_err err = json_parse(strbuf_text(&s->answer), s->answer.len, out, eb);
    return err ? err_wrap(eb, err, "%s", url) : MOE_OK;
}

moe_err
server_get_model(server *s, char **out, errbuf *eb)
{
    *out = NULL;
    cJSON *root;
    moe_err err = call(s, "/v1/models", false, &root, eb);
    if (err) return err;
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "data");
    const cJSON *first = cJSON_IsArray(list) ? list->child : NULL;
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(first, "id");
    if (!cJSON_IsString(id))
        err = err_set(eb, MOE_EINVAL, "%s/v1/models names no model: give --model", s->base_url);
    else if ((*out = strdup(id->valuestring)) == NULL)
        err = err_set(eb, MOE_ENOMEM, "model name: out of memory");
    cJSON_Delete(root);
    return err;
}

moe_err
server_count_tokens(server *s, const char *model, const char *text, int64_t *count, errbuf *eb)
{
    strbuf_reset(&s->request);
    strbuf_puts(&s->request, "{\"model\":");
    strbuf_json_string(&s->request, model, strlen(model));
    /* llama.cpp's server has another name for it, and answers without a count. */
    strbuf_puts(&s->request, ",\"add_special\":true,\"content\":");
    strbuf_json_string(&s->request, text, strlen(text));
    strbuf_puts(&s->request, ",\"prompt\":");
    strbuf_json_string(&s->request, text, strlen(text));
    strbuf_puts(&s->request, "}");

    cJSON *root;
    moe_err err = call(s, "/tokenize", true, &root, eb);
    if (err) return err;
    int64_t value = -1;
    err = json_get_i64(root, "count", 0, INT32_MAX, &value, eb);
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(root, "tokens");
    if (!err && value < 0 && cJSON_IsArray(tokens)) value = cJSON_GetArraySize(tokens);
    if (!err && value < 0) err = err_set(eb, MOE_EINVAL, "the answer has no count");
    if (err)
        err_wrap(eb, err, "%s/tokenize", s->base_url);
    else
        *count = value;
    cJSON_Delete(root);
    return err;
}

moe_err
server_get_routed_experts(server *s, const char *model, const char *prompt_json, routed_ids *out,
                          errbuf *eb)
{
    *out = (routed_ids){0};
    strbuf_reset(&s->request);
    strbuf_puts(&s->request, "{\"model\":");
    strbuf_json_string(&s->request, model, strlen(model));
    strbuf_puts(&s->request, ",\"max_tokens\":1,\"temperature\":0,\"return_routed_experts\":true,"
                             "\"prompt\":");
    strbuf_puts(&s->request, prompt_json);
    strbuf_puts(&s->request, "}");
    cJSON *root;
    moe_err err = call(s, "/v1/completions", true, &root, eb);
    if (err) return err;
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(root, "choices");
    const cJSON *first = cJSON_IsArray(choices) ? choices->child : NULL;
    const cJSON *routed = cJSON_GetObjectItemCaseSensitive(first, "routed_experts");
    if (!cJSON_IsString(routed))
        err = err_set(eb, MOE_EUNSUPPORTED,
                      "%s/v1/completions does not tell which experts a prompt used "
                      "(return_routed_experts)",
                      s->base_url);
    else
        err = routed_ids_read(routed->valuestring, strlen(routed->valuestring), out, eb);
    if (err && err != MOE_EUNSUPPORTED) err_wrap(eb, err, "routed_experts");
    cJSON_Delete(root);
    return err;
}

moe_err
server_get_version(server *s, char **out, errbuf *eb)
{
    *out = NULL;
    cJSON *root;
    const moe_err err = call(s, "/version", false, &root, eb);
    if (err) return err;
    *out = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    return *out ? MOE_OK : err_set(eb, MOE_ENOMEM, "version: out of memory");
}
