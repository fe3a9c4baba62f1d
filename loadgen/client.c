#include "loadgen/client.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/strbuf.h"
#include "loadgen/openai.h"
#include "loadgen/schedule.h"
#include "loadgen/sse.h"

#define EVENT_BYTES_MAX (1u << 20)
#define REQUEST_BYTES_MAX (32u << 20)
#define REFUSAL_BYTES_MAX (16u << 10)
#define CONNECT_TIMEOUT_MS 30000L
#define TICK_MS 250
/* How many requests to start before the network gets a turn: the first of a burst must not wait
 * until the last one's body is written. */
#define START_BATCH 16

typedef struct transfer transfer;
struct transfer {
    CURL *easy;
    request_record *record;
    sse_parser sse;
    strbuf history;  /* the prompt of a later turn: the session so far */
    strbuf scratch;  /* one answer of it, escaped */
    strbuf body;     /* the request */
    strbuf refusal;  /* the start of an answer that is not 200 */
    uint64_t now_ns; /* arrival of the bytes being parsed */
    char reason[CURL_ERROR_SIZE];
    bool in_multi;
    transfer *next_free;
};

typedef struct client {
    const client_config *config;
    const prompt *prompts;
    request_record *records;
    size_t count;
    schedule due;

    CURLM *multi;
    struct curl_slist *headers;
    transfer **transfers; /* [transfer_count], at most one for each request in flight */
    size_t transfer_count, transfer_max;
    transfer *idle;

    uint64_t start_ns, tick_ns;
    uint64_t free_ns; /* when the last request ended while all places were taken */
    client_stats stats;
    client_progress progress;
} client;

static void
on_event(void *ctx, const char *data, size_t len)
{
    transfer *t = ctx;
    openai_event_read(data, len, t->now_ns, t->record);
}

/* Returning fewer bytes than given makes libcurl end the transfer. */
static size_t
on_bytes(char *bytes, size_t size, size_t n, void *ctx)
{
    transfer *t = ctx;
    const size_t len = size * n;
    t->now_ns = clock_now_ns();
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
        const size_t room = t->refusal.max - t->refusal.len;
        strbuf_append(&t->refusal, bytes, len < room ? len : room);
        return len;
    }
    if (sse_feed(&t->sse, bytes, len, on_event, t))
        record_fail(t->record, "stream: a line or event is longer than %u bytes", EVENT_BYTES_MAX);
    return t->record->failed ? 0 : len;
}

static void
transfer_free(transfer *t)
{
    if (t == NULL) return;
    curl_easy_cleanup(t->easy);
    sse_fini(&t->sse);
    strbuf_fini(&t->history);
    strbuf_fini(&t->scratch);
    strbuf_fini(&t->body);
    strbuf_fini(&t->refusal);
    free(t);
}

static transfer *
transfer_create(const client *c)
{
    transfer *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    sse_init(&t->sse, EVENT_BYTES_MAX);
    strbuf_init(&t->history, REQUEST_BYTES_MAX);
    strbuf_init(&t->scratch, REQUEST_BYTES_MAX);
    strbuf_init(&t->body, REQUEST_BYTES_MAX);
    strbuf_init(&t->refusal, REFUSAL_BYTES_MAX);
    t->easy = curl_easy_init();
    if (t->easy == NULL) return transfer_free(t), NULL;

    curl_easy_setopt(t->easy, CURLOPT_URL, c->config->url);
    curl_easy_setopt(t->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(t->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(t->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, (long)c->config->timeout_ms);
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->reason);
    return t;
}

/* An idle transfer, or a new one; NULL when out of memory. */
static transfer *
transfer_take(client *c)
{
    transfer *t = c->idle;
    if (t != NULL) {
        c->idle = t->next_free;
        return t;
    }
    t = transfer_create(c);
    if (t != NULL) c->transfers[c->transfer_count++] = t;
    return t;
}

/* The turn after a completed one is due when its user has thought; after a failed one there is
 * nothing to go on from, and every later turn of the session fails. */
static void
finish(client *c, request_record *record)
{
    for (bool first = true;; first = false) {
        const size_t next = (size_t)(record - c->records) + 1;
        record_finish(record, clock_now_ns());
        if (record->completed)
            c->progress.completed++;
        else
            c->progress.failed++;
        if (first) c->progress.chunks += record->chunk_count;
        if (next == c->count || !schedule_is_turn(&c->due, next)) return;
        if (record->completed) {
            schedule_add(&c->due, next, record->end_ns - c->start_ns + c->prompts[next].think_ns);
            return;
        }
        record = &c->records[next];
        record->scheduled_ns = record->ready_ns = clock_now_ns();
        record_fail(record, "an earlier turn of its session failed");
        c->progress.sent++;
    }
}

/* JSON text of the prompt of a request: for a later turn, the strings of the session's prompts and
 * answers as one string.  NULL when it is too long. */
static const char *
write_prompt(const client *c, transfer *t, size_t index)
{
    if (!schedule_is_turn(&c->due, index)) return c->prompts[index].json;
    size_t first = index;
    while (schedule_is_turn(&c->due, first))
        first--;
    strbuf_reset(&t->history);
    strbuf_puts(&t->history, "\"");
    for (size_t i = first; i <= index; i++) {
        const char *json = c->prompts[i].json; /* without its quotes */
        strbuf_append(&t->history, json + 1, strlen(json) - 2);
        if (i == index) break;
        const strbuf *answer = &c->records[i].text;
        strbuf_reset(&t->scratch);
        strbuf_json_string(&t->scratch, strbuf_text(answer), answer->len);
        if (t->scratch.failed) return NULL;
        strbuf_append(&t->history, t->scratch.text + 1, t->scratch.len - 2);
    }
    strbuf_puts(&t->history, "\"");
    return t->history.failed ? NULL : t->history.text;
}

/* False when memory or the limit on a body's size is used up. */
static bool
write_body(const client *c, transfer *t, size_t index)
{
    const prompt *p = &c->prompts[index];
    const openai_request request = {
        .model = c->config->model,
        .prompt_json = write_prompt(c, t, index),
        .max_tokens = p->max_tokens,
        .temperature = c->config->temperature,
        .seed = c->config->seed + index,
        .ignore_eos = c->config->ignore_eos,
    };
    if (request.prompt_json == NULL) return false;
    strbuf_reset(&t->body);
    openai_request_write(&request, &t->body);
    return !t->body.failed;
}

static void
start_request(client *c, schedule_item item)
{
    request_record *record = &c->records[item.index];
    record->scheduled_ns = c->start_ns + item.due_ns;
    record->ready_ns = record->scheduled_ns > c->free_ns ? record->scheduled_ns : c->free_ns;
    c->progress.sent++;

    transfer *t = transfer_take(c);
    if (t == NULL) {
        record_fail(record, "out of memory");
        finish(c, record);
        return;
    }
    t->record = record;
    t->reason[0] = '\0';
    sse_reset(&t->sse);
    strbuf_reset(&t->refusal);
    const bool written = write_body(c, t, item.index);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body.len);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, strbuf_text(&t->body));

    record->send_ns = clock_now_ns();
    t->in_multi = written && curl_multi_add_handle(c->multi, t->easy) == CURLM_OK;
    if (!t->in_multi) {
        record_fail(record, "the request could not be built");
        finish(c, record);
        t->next_free = c->idle;
        c->idle = t;
        return;
    }
    c->progress.active++;
}

/* Is the time over for which the load is held? */
static bool
is_over(const client *c)
{
    return c->config->hold_ns > 0 && clock_now_ns() - c->start_ns >= c->config->hold_ns;
}

/* Returns whether more requests are due at once. */
static bool
start_due(client *c)
{
    schedule_item next;
    for (int started = 0; !is_over(c) && schedule_peek(&c->due, &next); started++) {
        if (c->progress.active >= c->transfer_max) return false;
        if (c->start_ns + next.due_ns > clock_now_ns()) return false;
        if (started == START_BATCH) return true;
        schedule_pop(&c->due);
        start_request(c, next);
    }
    return false;
}

static void
end_transfer(client *c, transfer *t)
{
    curl_multi_remove_handle(c->multi, t->easy);
    t->in_multi = false;
    if (c->progress.active == c->transfer_max) c->free_ns = clock_now_ns();
    finish(c, t->record);
    c->progress.active--;
    t->next_free = c->idle;
    c->idle = t;
}

static void
collect(client *c)
{
    int left;
    CURLMsg *msg;
    while ((msg = curl_multi_info_read(c->multi, &left)) != NULL) {
        if (msg->msg != CURLMSG_DONE) continue;
        const CURLcode code = msg->data.result;
        char *private = NULL;
        long status = 0;
        curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &private);
        curl_easy_getinfo(msg->easy_handle, CURLINFO_RESPONSE_CODE, &status);
        transfer *t = (transfer *)private;
        t->record->http_status = (int)status;
        if (code != CURLE_OK) {
            record_fail(t->record, "%s", *t->reason ? t->reason : curl_easy_strerror(code));
        } else if (status != 200) {
            char text[MOE_ERR_TEXT_MAX];
            openai_error_text(strbuf_text(&t->refusal), t->refusal.len, text, sizeof text);
            record_fail(t->record, "HTTP %ld: %s", status, text);
        }
        end_transfer(c, t);
    }
}

static void
abandon(client *c, const char *why)
{
    for (size_t i = 0; i < c->transfer_count; i++) {
        transfer *t = c->transfers[i];
        if (!t->in_multi) continue;
        record_fail(t->record, "%s", why);
        end_transfer(c, t);
    }
    for (size_t i = 0; i < c->count; i++) {
        request_record *record = &c->records[i];
        if (record->scheduled_ns != 0) continue; /* started, or failed with its session */
        record->scheduled_ns = record->ready_ns =
            schedule_is_turn(&c->due, i) ? clock_now_ns() : c->start_ns + c->due.arrivals_ns[i];
        c->progress.sent++;
        record_fail(record, "%s before it was sent", why);
        finish(c, record);
    }
}

/* How long nothing needs doing unless the network says so.  Rounded down: a request is never
 * started late because a timer counts whole milliseconds. */
static int
idle_ms(const client *c)
{
    schedule_item next;
    if (c->progress.active >= c->transfer_max || is_over(c) || !schedule_peek(&c->due, &next))
        return TICK_MS;
    const uint64_t due = c->start_ns + next.due_ns, now = clock_now_ns();
    if (due <= now) return 0;
    const uint64_t wait_ms = (due - now) / NS_PER_MS;
    return wait_ms < TICK_MS ? (int)wait_ms : TICK_MS;
}

static void
tick(client *c, bool last)
{
    const uint64_t now = clock_now_ns();
    if (c->config->on_progress == NULL || (!last && now - c->tick_ns < TICK_MS * NS_PER_MS)) return;
    c->tick_ns = now;
    c->progress.elapsed_ns = now - c->start_ns;
    c->config->on_progress(c->config->progress_ctx, &c->progress);
}

static bool
is_done(const client *c)
{
    return c->progress.completed + c->progress.failed == c->count ||
           (c->progress.active == 0 && is_over(c));
}

static void
count_round(client *c, uint64_t *since_ns)
{
    const uint64_t now = clock_now_ns();
    if (now - *since_ns > c->stats.round_max_ns) c->stats.round_max_ns = now - *since_ns;
    c->stats.rounds++;
    *since_ns = now;
}

static moe_err
loop(client *c, errbuf *eb)
{
    uint64_t since_ns = clock_now_ns();
    while (!is_done(c)) {
        if (c->config->stop != NULL && *c->config->stop) {
            abandon(c, "interrupted");
            break;
        }
        const bool more = start_due(c);
        int running;
        CURLMcode code = curl_multi_perform(c->multi, &running);
        collect(c);
        if (code == CURLM_OK && !is_done(c)) {
            tick(c, false);
            count_round(c, &since_ns);
            if (!more) code = curl_multi_poll(c->multi, NULL, 0, idle_ms(c), NULL);
            since_ns = clock_now_ns();
        }
        if (code != CURLM_OK) {
            abandon(c, curl_multi_strerror(code));
            return err_set(eb, MOE_EINTERNAL, "client: %s", curl_multi_strerror(code));
        }
    }
    tick(c, true);
    return MOE_OK;
}

static moe_err
set_up(client *c)
{
    const uint32_t limit = c->config->concurrency_max;
    c->transfer_max = limit == 0 || limit > c->count ? c->count : limit;
    c->transfers = calloc(c->transfer_max + 1, sizeof *c->transfers);
    c->multi = curl_multi_init();
    if (c->transfers == NULL || c->multi == NULL) return MOE_ENOMEM;
    /* Keep a connection for each request in flight; one request a connection at a time. */
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)c->transfer_max);
    curl_multi_setopt(c->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);

    static const char *const lines[] = {"Content-Type: application/json",
                                        "Accept: text/event-stream", "Expect:"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct curl_slist *grown = curl_slist_append(c->headers, lines[i]);
        if (grown == NULL) return MOE_ENOMEM;
        c->headers = grown;
    }
    if (c->config->api_key == NULL) return MOE_OK;
    strbuf line;
    strbuf_init(&line, 16384);
    strbuf_printf(&line, "Authorization: Bearer %s", c->config->api_key);
    const bool added = !line.failed && curl_slist_append(c->headers, line.text) != NULL;
    strbuf_fini(&line);
    return added ? MOE_OK : MOE_ENOMEM;
}

static uint64_t
thread_cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

moe_err
client_run(const client_config *config, const prompt *prompts, const uint64_t *arrivals_ns,
           size_t count, request_record *records, errbuf *eb)
{
    client c = {.config = config,
                .prompts = prompts,
                .records = records,
                .count = count,
                .progress.count = count};
    const uint64_t cpu_ns = thread_cpu_ns();
    moe_err err = schedule_init(&c.due, prompts, arrivals_ns, count);
    if (!err) err = set_up(&c);
    c.start_ns = c.tick_ns = clock_now_ns();
    if (err) {
        err_set(eb, err, "client: out of memory");
        abandon(&c, "out of memory");
    } else {
        err = loop(&c, eb);
    }
    c.stats.wall_ns = clock_now_ns() - c.start_ns;
    c.stats.cpu_ns = thread_cpu_ns() - cpu_ns;
    c.stats.sent = c.progress.sent;
    if (config->stats != NULL) *config->stats = c.stats;
    for (size_t i = 0; i < c.transfer_count; i++) {
        transfer_free(c.transfers[i]);
    }
    free(c.transfers);
    schedule_fini(&c.due);
    curl_multi_cleanup(c.multi);
    curl_slist_free_all(c.headers);
    return err;
}
