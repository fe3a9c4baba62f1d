#include "loadgen/scrape.h"

#include <curl/curl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define ANSWER_BYTES_MAX (8u << 20)
#define CALL_TIMEOUT_MS 5000L

struct scrape {
    const char *url;
    CURL *easy;
    struct curl_slist *headers;
    strbuf answer;
    uint64_t interval_ns;
    scrape_result result;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping; /* guarded by lock */
};

/* ---- the text ---- */

static scrape_series *
find_series(scrape_result *r, const char *name, size_t len, size_t hint)
{
    /* An answer lists its series in the same order each time. */
    for (size_t i = 0; i < r->series_count; i++) {
        scrape_series *s = &r->series[(hint + i) % r->series_count];
        if (strncmp(s->name, name, len) == 0 && s->name[len] == '\0') return s;
    }
    return NULL;
}

static moe_err
add_series(scrape_result *r, const char *name, size_t len, scrape_series **out)
{
    *out = NULL;
    if (r->series_count == SCRAPE_SERIES_MAX) return MOE_OK;
    if (r->series == NULL && (r->series = calloc(SCRAPE_SERIES_MAX, sizeof *r->series)) == NULL)
        return MOE_ENOMEM;
    scrape_series *s = &r->series[r->series_count];
    s->name = strndup(name, len);
    s->values = malloc(SCRAPE_SAMPLES_MAX * sizeof *s->values);
    if (s->name == NULL || s->values == NULL) {
        free(s->name);
        free(s->values);
        *s = (scrape_series){0};
        return MOE_ENOMEM;
    }
    for (size_t i = 0; i < SCRAPE_SAMPLES_MAX; i++) {
        s->values[i] = NAN;
    }
    r->series_count++;
    *out = s;
    return MOE_OK;
}

/* Where the name and its labels end: labels may hold blanks and braces within quotes. */
static size_t
name_length(const char *line, size_t len)
{
    bool quoted = false;
    size_t i = 0;
    while (i < len && line[i] != '{' && line[i] != ' ' && line[i] != '\t')
        i++;
    if (i == len || line[i] != '{') return i;
    for (; i < len; i++) {
        if (line[i] == '\\' && quoted) {
            i++;
        } else if (line[i] == '"') {
            quoted = !quoted;
        } else if (line[i] == '}' && !quoted) {
            return i + 1;
        }
    }
    return len;
}

static bool
is_bucket(const char *name, size_t len)
{
    const char *brace = memchr(name, '{', len);
    const size_t bare = brace ? (size_t)(brace - name) : len;
    return bare > 7 && memcmp(name + bare - 7, "_bucket", 7) == 0;
}

static moe_err
parse_line(const char *line, size_t len, size_t sample, size_t hint, scrape_result *out)
{
    char number[64], *end;
    const size_t name_len = name_length(line, len);
    if (len == 0 || *line == '#' || name_len == 0 || name_len >= SCRAPE_NAME_MAX ||
        name_len == len || is_bucket(line, name_len) || memchr(line, '\0', name_len) != NULL)
        return MOE_OK;
    const size_t left = len - name_len;
    snprintf(number, sizeof number, "%.*s", (int)(left < 63 ? left : 63), line + name_len);
    const double value = strtod(number, &end);
    if (end == number) return MOE_OK;
    scrape_series *s = find_series(out, line, name_len, hint);
    const moe_err err = s == NULL ? add_series(out, line, name_len, &s) : MOE_OK;
    if (s != NULL) s->values[sample] = value;
    return err;
}

moe_err
scrape_parse(const char *text, size_t len, size_t sample, scrape_result *out)
{
    moe_err err = MOE_OK;
    const char *at = text, *const end = text + len;
    for (size_t hint = 0; at < end && !err; hint++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline ? newline : end;
        err = parse_line(at, (size_t)(stop - at), sample, hint, out);
        at = stop + 1;
    }
    return err;
}

void
scrape_halve(scrape_result *r)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->sample_count; i += 2, kept++) {
        r->at_ns[kept] = r->at_ns[i];
        for (size_t s = 0; s < r->series_count; s++) {
            r->series[s].values[kept] = r->series[s].values[i];
        }
    }
    for (size_t i = kept; i < r->sample_count; i++) {
        for (size_t s = 0; s < r->series_count; s++) {
            r->series[s].values[i] = NAN;
        }
    }
    r->sample_count = kept;
}

void
scrape_result_fini(scrape_result *r)
{
    for (size_t i = 0; i < r->series_count; i++) {
        free(r->series[i].name);
        free(r->series[i].values);
    }
    free(r->series);
    *r = (scrape_result){0};
}

/* ---- asking ---- */

static size_t
on_bytes(char *bytes, size_t size, size_t n, void *ctx)
{
    strbuf *answer = ctx;
    strbuf_append(answer, bytes, size * n);
    return answer->failed ? 0 : size * n;
}

static void
take_sample(scrape *s)
{
    scrape_result *r = &s->result;
    if (r->sample_count == SCRAPE_SAMPLES_MAX) {
        scrape_halve(r);
        s->interval_ns *= 2;
    }
    strbuf_reset(&s->answer);
    const CURLcode code = curl_easy_perform(s->easy);
    long status = 0;
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
    if (code != CURLE_OK || status != 200) {
        r->failed++;
        if (code != CURLE_OK)
            snprintf(r->error, sizeof r->error, "%s", curl_easy_strerror(code));
        else
            snprintf(r->error, sizeof r->error, "HTTP %ld", status);
        return;
    }
    if (scrape_parse(strbuf_text(&s->answer), s->answer.len, r->sample_count, r) == MOE_OK)
        r->at_ns[r->sample_count++] = clock_now_ns();
}

static bool
wait_interval(scrape *s)
{
    const uint64_t due = clock_now_ns() + s->interval_ns;
    const struct timespec ts = {.tv_sec = (time_t)(due / NS_PER_S),
                                .tv_nsec = (long)(due % NS_PER_S)};
    pthread_mutex_lock(&s->lock);
    int timed_out = 0;
    while (!s->stopping && timed_out == 0)
        timed_out = pthread_cond_timedwait(&s->wake, &s->lock, &ts);
    const bool stopping = s->stopping;
    pthread_mutex_unlock(&s->lock);
    return !stopping;
}

static void *
sample_all(void *arg)
{
    scrape *s = arg;
    while (wait_interval(s))
        take_sample(s);
    return NULL;
}

static void
scrape_free(scrape *s)
{
    scrape_result_fini(&s->result);
    curl_easy_cleanup(s->easy);
    curl_slist_free_all(s->headers);
    strbuf_fini(&s->answer);
    free(s);
}

static moe_err
set_up(scrape *s, const char *api_key)
{
    strbuf_init(&s->answer, ANSWER_BYTES_MAX);
    s->easy = curl_easy_init();
    if (s->easy == NULL) return MOE_ENOMEM;
    curl_easy_setopt(s->easy, CURLOPT_URL, s->url);
    curl_easy_setopt(s->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(s->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_TIMEOUT_MS, CALL_TIMEOUT_MS);
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, &s->answer);
    if (api_key == NULL) return MOE_OK;
    strbuf_printf(&s->answer, "Authorization: Bearer %s", api_key);
    s->headers = curl_slist_append(NULL, strbuf_text(&s->answer));
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, s->headers);
    return s->headers ? MOE_OK : MOE_ENOMEM;
}

moe_err
scrape_start(scrape **out, const char *url, const char *api_key, uint64_t interval_ns, errbuf *eb)
{
    *out = NULL;
    scrape *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "scrape: out of memory");
    s->url = url;
    s->interval_ns = interval_ns;
    if (set_up(s, api_key)) {
        scrape_free(s);
        return err_set(eb, MOE_ENOMEM, "scrape: out of memory");
    }
    take_sample(s);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&s->thread, NULL, sample_all, s) != 0) {
        pthread_mutex_destroy(&s->lock);
        pthread_cond_destroy(&s->wake);
        scrape_free(s);
        return err_set(eb, MOE_EIO, "scrape: no thread");
    }
    *out = s;
    return MOE_OK;
}

void
scrape_stop(scrape *s, scrape_result *out)
{
    *out = (scrape_result){0};
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    take_sample(s);
    *out = s->result;
    s->result = (scrape_result){0};
    scrape_free(s);
}
