#include "loadgen/openai.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"

#define TOKENS_MAX (1ll << 40)
#define QUOTED_BYTES_MAX 120

void
openai_request_write(const openai_request *request, strbuf *out)
{
    strbuf_puts(out, "{\"model\":");
    strbuf_json_string(out, request->model, strlen(request->model));
    strbuf_puts(out, ",\"prompt\":");
    strbuf_puts(out, request->prompt_json);
    strbuf_printf(out, ",\"max_tokens\":%lld,\"temperature\":%.9g,\"stream\":true",
                  (long long)request->max_tokens, request->temperature);
    strbuf_puts(out, ",\"stream_options\":{\"include_usage\":true}");
    /* Masked to what a JSON number holds exactly. */
    if (request->temperature > 0)
        strbuf_printf(out, ",\"seed\":%llu", (unsigned long long)(request->seed & 0x7fffffff));
    if (request->ignore_eos) strbuf_puts(out, ",\"ignore_eos\":true");
    strbuf_puts(out, "}");
}

/* The message inside an error object or answer; NULL when there is none. */
static const char *
error_message(const cJSON *root)
{
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(root, "error");
    const cJSON *holder = cJSON_IsObject(error) ? error : root;
    const cJSON *message = cJSON_GetObjectItemCaseSensitive(holder, "message");
    if (cJSON_IsString(message)) return message->valuestring;
    return cJSON_IsString(error) ? error->valuestring : NULL;
}

static void
read_usage(const cJSON *usage, request_record *record)
{
    errbuf eb;
    int64_t prompt = -1, output = -1;
    if (!cJSON_IsObject(usage)) return;
    if (json_get_i64(usage, "prompt_tokens", 0, TOKENS_MAX, &prompt, &eb) ||
        json_get_i64(usage, "completion_tokens", 0, TOKENS_MAX, &output, &eb)) {
        record_fail(record, "usage: %s", eb.text);
        return;
    }
    if (prompt >= 0) record->prompt_tokens = prompt;
    if (output >= 0) record->output_tokens = output;
}

static void
read_choice(const cJSON *choice, uint64_t now_ns, request_record *record)
{
    const char *text = "", *finish = "";
    errbuf eb;
    if (json_get_string(choice, "text", &text, &eb) ||
        json_get_string(choice, "finish_reason", &finish, &eb)) {
        record_fail(record, "stream: %s", eb.text);
        return;
    }
    const bool only_end = *text == '\0' && *finish != '\0' && record->chunk_count != 0;
    if (!only_end) record_add_chunk(record, now_ns);
    record->last_ns = now_ns;
    strbuf_puts(&record->text, text);
    if (*finish != '\0') snprintf(record->finish_reason, RECORD_FINISH_MAX, "%s", finish);
}

void
openai_event_read(const char *data, size_t len, uint64_t now_ns, request_record *record)
{
    if (record->stream_ended) return;
    if (len == 6 && memcmp(data, "[DONE]", 6) == 0) {
        record->stream_ended = true;
        return;
    }
    cJSON *root;
    errbuf eb;
    if (json_parse(data, len, &root, &eb)) {
        record_fail(record, "stream: %s", eb.text);
        return;
    }
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(root, "choices");
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(root, "error");
    if (!cJSON_IsObject(root)) {
        record_fail(record, "stream: an event is no JSON object");
    } else if (error != NULL && !cJSON_IsNull(error)) {
        const char *message = error_message(root);
        record_fail(record, "stream: %s", message ? message : "the server reports an error");
    } else {
        const cJSON *first = cJSON_IsArray(choices) ? choices->child : NULL;
        if (cJSON_IsObject(first)) read_choice(first, now_ns, record);
        read_usage(cJSON_GetObjectItemCaseSensitive(root, "usage"), record);
    }
    cJSON_Delete(root);
}

void
openai_error_text(const char *body, size_t len, char *out, size_t size)
{
    cJSON *root = NULL;
    const char *message = NULL;
    if (json_parse(body, len, &root, NULL) == MOE_OK) message = error_message(root);
    if (message != NULL)
        snprintf(out, size, "%s", message);
    else
        snprintf(out, size, "%.*s", (int)(len < QUOTED_BYTES_MAX ? len : QUOTED_BYTES_MAX), body);
    cJSON_Delete(root);
    for (char *c = out; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20) *c = ' ';
    }
}
