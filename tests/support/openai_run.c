/* The runner of openai_pattern.h: sends the cases' requests and checks what comes back. */
#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "tests/support/openai_pattern.h"

#define WHY_MAX 512
#define CASES_BYTES_MAX (4u << 20)
#define CALL_SECONDS_MAX 60L
#define CHAT_PATH "/v1/chat/completions"
#define COMPLETIONS_PATH "/v1/completions"

/* ---- the client ---- */

/* What an answer is written into. */
typedef struct answer_sink {
    http_reply *reply;
    void (*arrived)(void *arg); /* or NULL */
    void *arg;
} answer_sink;

static size_t
take_body(char *bytes, size_t size, size_t n, void *user)
{
    const answer_sink *sink = user;
    http_reply *r = sink->reply;
    char *grown = realloc(r->body, r->len + size * n + 1);
    if (grown == NULL) return 0;
    r->body = grown;
    memcpy(r->body + r->len, bytes, size * n);
    r->len += size * n;
    r->body[r->len] = '\0';
    if (sink->arrived != NULL) sink->arrived(sink->arg);
    return size * n;
}

static void
copy_header(const char *line, size_t len, const char *name, char *out, size_t size)
{
    const size_t n = strlen(name);
    if (len < n || strncasecmp(line, name, n) != 0) return;
    snprintf(out, size, "%.*s", (int)(len - n), line + n);
    out[strcspn(out, "\r\n")] = '\0';
}

static size_t
take_header(char *line, size_t size, size_t n, void *user)
{
    http_reply *r = user;
    copy_header(line, size * n, "content-type: ", r->content_type, sizeof r->content_type);
    copy_header(line, size * n, "allow: ", r->allow, sizeof r->allow);
    copy_header(line, size * n, "retry-after: ", r->retry_after, sizeof r->retry_after);
    return size * n;
}

http_reply
http_call(const char *base_url, const char *method, const char *path, const char *body,
          const char *key)
{
    return http_call_watched(base_url, method, path, body, key, NULL, NULL);
}

http_reply
http_call_watched(const char *base_url, const char *method, const char *path, const char *body,
                  const char *key, void (*arrived)(void *arg), void *arg)
{
    http_reply r = {0};
    answer_sink sink = {&r, arrived, arg};
    char url[512], authorization[512];
    snprintf(url, sizeof url, "%s%s", base_url, path);
    CURL *curl = curl_easy_init();
    if (curl == NULL) return r;
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (key != NULL) {
        snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", key);
        headers = curl_slist_append(headers, authorization);
    }
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, CALL_SECONDS_MAX);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &sink);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &r);
    if (body != NULL) curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    if (curl_easy_perform(curl) == CURLE_OK)
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &r.status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    if (r.body == NULL) r.body = calloc(1, 1);
    return r;
}

void
http_reply_fini(http_reply *r)
{
    free(r->body);
    *r = (http_reply){0};
}

/* ---- one case ---- */

typedef struct run {
    const openai_target *target;
    const cJSON *golden; /* the case */
    cJSON *request;      /* what is sent; NULL: raw or none */
    http_reply reply;
    cJSON *answer; /* the body; of a stream: an array of its events */
    char why[WHY_MAX];
} run;

static const cJSON *
get(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static const char *
text_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(get(object, key));
    return text == NULL ? "" : text;
}

static double
number_of(const cJSON *object, const char *key, double otherwise)
{
    const cJSON *item = get(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : otherwise;
}

static bool
fail(run *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->why, sizeof r->why, fmt, ap);
    va_end(ap);
    return false;
}

/* $model, and {"repeat_token": t, "count": "$max_model_len+1"}. */
static void
expand(cJSON *request, const openai_target *target)
{
    if (strcmp(text_of(request, "model"), "$model") == 0)
        cJSON_ReplaceItemInObjectCaseSensitive(request, "model", cJSON_CreateString(target->model));
    const cJSON *prompt = get(request, "prompt");
    if (!cJSON_IsObject(prompt)) return;
    const char *plus = strchr(text_of(prompt, "count"), '+');
    const long count = (long)target->max_model_len + (plus == NULL ? 0 : strtol(plus, NULL, 10));
    cJSON *ids = cJSON_CreateArray();
    for (long i = 0; i < count; i++)
        cJSON_AddItemToArray(ids, cJSON_CreateNumber(number_of(prompt, "repeat_token", 5)));
    cJSON_ReplaceItemInObjectCaseSensitive(request, "prompt", ids);
}

/* Turn a chat request into one for completions; false if its fault is one only chat can have. */
static bool
transpose(cJSON *request)
{
    if (!cJSON_IsObject(request)) return true;
    const cJSON *messages = get(request, "messages"), *first = messages ? messages->child : NULL;
    if (cJSON_GetArraySize(messages) != 1 || get(first, "role") == NULL) return false;
    if (get(request, "top_logprobs") != NULL) return false;
    cJSON_AddItemToObject(request, "prompt", cJSON_CreateString(text_of(first, "content")));
    cJSON_DeleteItemFromObjectCaseSensitive(request, "messages");
    return true;
}

static cJSON *
parse_events(const char *body, run *r)
{
    cJSON *events = cJSON_CreateArray();
    for (const char *p = body; *p != '\0';) {
        const char *end = strstr(p, "\n\n");
        const size_t len = end == NULL ? 0 : (size_t)(end - p);
        if (end == NULL || strncmp(p, "data: ", 6) != 0 || memchr(p, '\n', len) != NULL) {
            fail(r, "a stream's event is not one line of data: %.80s", p);
            cJSON_Delete(events);
            return NULL;
        }
        cJSON *event = cJSON_ParseWithLength(p + 6, len - 6);
        if (event == NULL) {
            char raw[64];
            snprintf(raw, sizeof raw, "%.*s", (int)(len - 6), p + 6);
            event = cJSON_CreateString(raw);
        }
        cJSON_AddItemToArray(events, event);
        p = end + 2;
    }
    return events;
}

static bool
event_matches(run *r, const cJSON *step, const cJSON *event, const openai_vars *vars)
{
    const cJSON *raw = get(step, "raw");
    if (raw != NULL)
        return (cJSON_IsString(event) && strcmp(event->valuestring, raw->valuestring) == 0) ||
               fail(r, "expected the event %s", raw->valuestring);
    return openai_match(get(step, "event"), event, vars, r->why, sizeof r->why);
}

/* The events in order; a repeated step takes as many as match. */
static bool
check_stream(run *r)
{
    openai_vars vars = {.model = r->target->model, .same = cJSON_CreateObject()};
    const cJSON *event = r->answer->child, *step;
    bool good = true;
    cJSON_ArrayForEach(step, get(r->golden, "stream"))
    {
        const char *repeat = text_of(step, "repeat");
        unsigned taken = 0;
        while (event != NULL && (taken == 0 || *repeat == '0' || repeat[1] == '+') &&
               event_matches(r, step, event, &vars)) {
            event = event->next;
            taken++;
        }
        if (taken == 0 && *repeat != '0') {
            good = event != NULL || fail(r, "the stream ends too early");
            good = false;
            break;
        }
    }
    if (good && event != NULL) good = fail(r, "the stream goes on after its end");
    cJSON_Delete(vars.same);
    return good;
}

/* ---- rules ---- */

static bool
check_logprobs(run *r, const cJSON *choice, double asked)
{
    const cJSON *logprobs = get(choice, "logprobs"), *top;
    const int count = cJSON_GetArraySize(get(logprobs, "tokens"));
    if (count != (int)number_of(get(r->answer, "usage"), "completion_tokens", -1) ||
        cJSON_GetArraySize(get(logprobs, "token_logprobs")) != count ||
        cJSON_GetArraySize(get(logprobs, "top_logprobs")) != count ||
        cJSON_GetArraySize(get(logprobs, "text_offset")) != count)
        return fail(r, "logprobs do not have completion_tokens entries");
    const cJSON *value = get(logprobs, "token_logprobs")->child;
    cJSON_ArrayForEach(top, get(logprobs, "top_logprobs"))
    {
        const int n = cJSON_GetArraySize(top);
        if (n != (int)asked && n != (int)asked + 1)
            return fail(r, "a top_logprobs has %d entries; %g were asked for", n, asked);
        for (const cJSON *entry = top->child; entry != NULL; entry = entry->next)
            if (number_of(r->request, "temperature", 1) == 0 &&
                entry->valuedouble > value->valuedouble)
                return fail(r, "a greedy token is not the likeliest");
        value = value->next;
    }
    return true;
}

static bool
check_stops(run *r, const cJSON *choice)
{
    const cJSON *stop;
    cJSON_ArrayForEach(stop, get(r->request, "stop"))
    {
        if (strstr(text_of(choice, "text"), stop->valuestring) != NULL)
            return fail(r, "the text has the stop string \"%s\"", stop->valuestring);
    }
    return true;
}

static bool
check_choice(run *r, const cJSON *choice)
{
    const cJSON *prompt = get(r->request, "prompt");
    if (cJSON_IsTrue(get(r->request, "echo")) && cJSON_IsString(prompt) &&
        strncmp(text_of(choice, "text"), prompt->valuestring, strlen(prompt->valuestring)) != 0)
        return fail(r, "the text does not begin with the prompt");
    const double logprobs = number_of(r->request, "logprobs", -1);
    if (logprobs >= 0 && !check_logprobs(r, choice, logprobs)) return false;
    return check_stops(r, choice);
}

static bool
check_completion_rules(run *r)
{
    const cJSON *usage = get(r->answer, "usage"), *choices = get(r->answer, "choices"), *choice;
    const cJSON *prompt = get(r->request, "prompt");
    const double tokens = number_of(usage, "completion_tokens", -1);
    const double most = number_of(r->request, "max_tokens", 16);
    if (tokens > most * cJSON_GetArraySize(choices))
        return fail(r, "%g completion tokens are more than max_tokens allows", tokens);
    if (cJSON_IsArray(prompt) && cJSON_IsNumber(prompt->child) &&
        number_of(usage, "prompt_tokens", -1) != cJSON_GetArraySize(prompt))
        return fail(r, "the prompt's ids were not taken as they are");
    cJSON_ArrayForEach(choice, choices)
    {
        if (!check_choice(r, choice)) return false;
    }
    choice = choices->child;
    if (cJSON_GetArraySize(choices) == 1 && get(r->request, "stop") == NULL &&
        get(r->request, "stop_token_ids") == NULL &&
        (strcmp(text_of(choice, "finish_reason"), "length") == 0) != (tokens == most))
        return fail(r, "finish_reason %s with %g of %g tokens", text_of(choice, "finish_reason"),
                    tokens, most);
    return true;
}

/* The text of a stream's only choice. */
static void
join_text(const cJSON *events, char *out, size_t size)
{
    size_t len = 0;
    const cJSON *event;
    out[0] = '\0';
    cJSON_ArrayForEach(event, events)
    {
        const cJSON *choices = get(event, "choices");
        if (choices == NULL || choices->child == NULL || len >= size) continue;
        len += (size_t)snprintf(out + len, size - len, "%s", text_of(choices->child, "text"));
    }
}

static bool
check_same_without_stream(run *r)
{
    char streamed[4096];
    if (number_of(r->request, "temperature", 1) != 0) return true;
    join_text(r->answer, streamed, sizeof streamed);
    cJSON *request = cJSON_Duplicate(r->request, true);
    cJSON_DeleteItemFromObjectCaseSensitive(request, "stream");
    cJSON_DeleteItemFromObjectCaseSensitive(request, "stream_options");
    char *body = cJSON_PrintUnformatted(request);
    http_reply reply =
        http_call(r->target->base_url, "POST", COMPLETIONS_PATH, body, r->target->api_key);
    cJSON *whole = cJSON_Parse(reply.body);
    const cJSON *choices = get(whole, "choices");
    const bool same = choices != NULL && strcmp(text_of(choices->child, "text"), streamed) == 0;
    cJSON_Delete(whole);
    cJSON_Delete(request);
    free(body);
    http_reply_fini(&reply);
    return same || fail(r, "the stream's text differs from the whole answer's");
}

static bool
check_error_rules(run *r, const char *method)
{
    const char *message = text_of(get(r->answer, "error"), "message");
    if (r->reply.status == 405 && strcmp(method, "GET") == 0 &&
        strstr(r->reply.allow, "POST") == NULL)
        return fail(r, "Allow does not name POST");
    if (r->reply.status == 429 && r->reply.retry_after[0] == '\0') return fail(r, "no Retry-After");
    const cJSON *prompt = get(get(r->golden, "request"), "prompt");
    if (cJSON_IsObject(prompt)) {
        char context[16], length[16];
        snprintf(context, sizeof context, "%u", r->target->max_model_len);
        snprintf(length, sizeof length, "%d", cJSON_GetArraySize(get(r->request, "prompt")));
        if (strstr(message, context) == NULL || strstr(message, length) == NULL)
            return fail(r, "the message does not name %s and %s: %s", context, length, message);
    }
    return true;
}

/* ---- running ---- */

static bool
check_reply(run *r, const char *method, bool completions)
{
    const long want = (long)number_of(r->golden, "status", 0);
    if (r->reply.status != want)
        return fail(r, "status %ld, not %ld: %.200s", r->reply.status, want, r->reply.body);
    const char *type = text_of(get(r->golden, "headers"), "content-type");
    if (strncmp(r->reply.content_type, type, strlen(type)) != 0)
        return fail(r, "content type %s, not %s", r->reply.content_type, type);
    if (get(r->golden, "stream") != NULL) {
        r->answer = parse_events(r->reply.body, r);
        return r->answer != NULL && check_stream(r) &&
               (!completions || check_same_without_stream(r));
    }
    r->answer = cJSON_Parse(r->reply.body);
    const openai_vars vars = {.model = r->target->model,
                              .choices =
                                  (uint32_t)number_of(get(r->golden, "repeat"), "choices", 0)};
    if (!openai_match(get(r->golden, "response"), r->answer, &vars, r->why, sizeof r->why))
        return false;
    if (want >= 400) return check_error_rules(r, method);
    return !completions || check_completion_rules(r);
}

/* Which key to send, and whether the case can be run at all. */
static bool
choose_key(const run *r, const char **key)
{
    const openai_target *t = r->target;
    const char *precondition = text_of(r->golden, "precondition");
    *key = t->api_key;
    if (t->overloaded != (strstr(precondition, "queue is full") != NULL)) return false;
    if (strstr(precondition, "requires a key") == NULL) return true;
    *key = strstr(precondition, "sends none") != NULL ? NULL : "another-key";
    return t->api_key != NULL;
}

/* 1: passed, 0: failed, -1: left out. */
static int
run_case(run *r)
{
    const openai_target *t = r->target;
    const char *path = text_of(r->golden, "path"), *method = text_of(r->golden, "method"), *key;
    const cJSON *raw = get(r->golden, "raw_request"), *request = get(r->golden, "request");
    const bool is_chat = strcmp(path, CHAT_PATH) == 0;
    if (!choose_key(r, &key)) return -1;
    if (!cJSON_IsNull(request)) r->request = cJSON_Duplicate(request, true);
    if (is_chat && !t->chat) {
        if (!t->transpose || number_of(r->golden, "status", 0) < 400 || !transpose(r->request))
            return -1;
        path = COMPLETIONS_PATH;
    }
    expand(r->request, t);
    char *body = r->request != NULL ? cJSON_PrintUnformatted(r->request) : NULL;
    r->reply = http_call(t->base_url, method, path, raw != NULL ? raw->valuestring : body, key);
    free(body);
    return check_reply(r, method, strcmp(path, COMPLETIONS_PATH) == 0);
}

openai_counts
openai_run_cases(const char *path, const openai_target *target)
{
    openai_counts counts = {0};
    char *text = NULL;
    size_t len = 0;
    errbuf eb = {""};
    cJSON *root =
        file_read(path, CASES_BYTES_MAX, &text, &len, &eb) == MOE_OK ? cJSON_Parse(text) : NULL;
    free(text);
    if (root == NULL) {
        target->report(path, eb.text);
        counts.failed++;
        return counts;
    }
    const cJSON *golden;
    cJSON_ArrayForEach(golden, get(root, "cases"))
    {
        run r = {.target = target, .golden = golden};
        const int result = run_case(&r);
        if (result == 0) target->report(text_of(golden, "name"), r.why);
        counts.passed += result == 1;
        counts.failed += result == 0;
        counts.left_out += result < 0;
        cJSON_Delete(r.request);
        cJSON_Delete(r.answer);
        http_reply_fini(&r.reply);
    }
    cJSON_Delete(root);
    return counts;
}
