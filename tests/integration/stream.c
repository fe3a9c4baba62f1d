#include "tests/integration/stream.h"

#include <cjson/cJSON.h>
#include <criterion/criterion.h>
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#define TEXT_MAX (1u << 20)

static bool
take_line(stream *s, const char *line)
{
    if (strncmp(line, "data: ", 6) != 0) return true;
    if (strcmp(line + 6, "[DONE]") == 0) {
        s->done = true;
        return true;
    }
    cJSON *event = cJSON_Parse(line + 6);
    const cJSON *choice = cJSON_GetArrayItem(cJSON_GetObjectItem(event, "choices"), 0);
    const cJSON *text = cJSON_GetObjectItem(choice, "text"),
                *error = cJSON_GetObjectItem(event, "error");
    if (text != NULL) strbuf_puts(&s->text, text->valuestring);
    if (error != NULL || event == NULL) snprintf(s->error, sizeof s->error, "%.150s", line);
    cJSON_Delete(event);
    const unsigned events = atomic_fetch_add(&s->events, 1) + 1;
    return s->leave_after == 0 || events < s->leave_after;
}

static size_t
on_bytes(char *bytes, size_t size, size_t count, void *user)
{
    stream *s = user;
    for (size_t i = 0; i < size * count; i++) {
        if (bytes[i] != '\n') {
            strbuf_append(&s->line, bytes + i, 1);
            continue;
        }
        const bool stay = take_line(s, strbuf_text(&s->line));
        strbuf_reset(&s->line);
        if (!stay) {
            s->left = true;
            return 0; /* curl closes the connection */
        }
    }
    return size * count;
}

static void *
stream_main(void *arg)
{
    stream *s = arg;
    CURL *curl = curl_easy_init();
    char url[128];
    snprintf(url, sizeof url, "%s/v1/completions", s->url);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, s->body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 100L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    const CURLcode rc = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &s->status);
    if (rc != CURLE_OK && !s->left)
        snprintf(s->error, sizeof s->error, "%s", curl_easy_strerror(rc));
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return NULL;
}

void
stream_start(stream *s)
{
    strbuf_init(&s->text, TEXT_MAX);
    strbuf_init(&s->line, TEXT_MAX);
    cr_assert_eq(pthread_create(&s->thread, NULL, stream_main, s), 0);
}

void
stream_join(stream *s)
{
    pthread_join(s->thread, NULL);
    strbuf_fini(&s->line);
}

void
stream_fini(stream *s)
{
    strbuf_fini(&s->text);
}
