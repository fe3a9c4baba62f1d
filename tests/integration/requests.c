#include "tests/integration/requests.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/strbuf.h"

#define BODY_BYTES_MAX 65536
#define STREAM_BYTES_MAX ((size_t)8 << 20)
#define FIRST_ORDINARY_TOKEN 259 /* after the special and the byte tokens */
#define VOCAB 4096

static const char *const samplings[] = {
    "\"temperature\":0",
    "\"temperature\":0.8,\"top_p\":0.9",
    "\"temperature\":1.0,\"top_k\":40,\"presence_penalty\":0.5,\"frequency_penalty\":0.3",
    "\"temperature\":0,\"repetition_penalty\":1.2",
    "\"temperature\":1.3,\"min_p\":0.02,\"ignore_eos\":true",
};

static uint64_t
draw(uint64_t *state, uint64_t below)
{
    *state = hash_combine(*state, 1);
    return (*state >> 11) % below;
}

/* Mostly short, some long, the shortest and the longest among them. */
static uint32_t
draw_prompt_len(uint32_t i, uint64_t *state)
{
    if (i == 0) return 1;
    if (i == 1) return 600;
    return 1 + (uint32_t)draw(state, i % 5 == 0 ? 600 : 80);
}

static void
write_prompt(strbuf *body, uint32_t i, uint64_t *state)
{
    uint64_t shared = 77;
    const uint32_t len = draw_prompt_len(i, state);
    for (uint32_t t = 0; t < len; t++) {
        uint64_t *source = i % 3 == 0 && t < 40 ? &shared : state;
        const uint64_t id = FIRST_ORDINARY_TOKEN + draw(source, VOCAB - FIRST_ORDINARY_TOKEN);
        strbuf_printf(body, "%s%u", t == 0 ? "" : ",", (unsigned)id);
    }
}

void
requests_add(request_set *set, const char *body)
{
    cr_assert(set->count < REQUESTS_MAX);
    set->bodies[set->count++] = strdup(body);
}

static void
make(request_set *out, uint32_t count, uint64_t seed, bool mixed)
{
    *out = (request_set){0};
    for (uint32_t i = 0; i < count; i++) {
        strbuf body;
        strbuf_init(&body, BODY_BYTES_MAX);
        strbuf_puts(&body, "{\"prompt\":[");
        write_prompt(&body, i, &seed);
        strbuf_printf(&body, "],\"logprobs\":3,\"seed\":%u,\"max_tokens\":%u,%s%s}", 1000 + i,
                      8 + (unsigned)draw(&seed, 41), samplings[i % 5],
                      mixed && i % 2 == 1 ? ",\"stream\":true" : "");
        cr_assert(!body.failed);
        requests_add(out, body.text);
        strbuf_fini(&body);
    }
}

void
requests_make(request_set *out, uint32_t count, uint64_t seed)
{
    make(out, count, seed, false);
}

void
requests_make_mixed(request_set *out, uint32_t count, uint64_t seed)
{
    make(out, count, seed, true);
}

void
requests_free(request_set *set)
{
    for (uint32_t i = 0; i < set->count; i++)
        free(set->bodies[i]);
    set->count = 0;
}

/* ---- asking ---- */

typedef struct question {
    pthread_t thread;
    const char *url, *body;
    http_reply reply;
} question;

static void *
ask(void *arg)
{
    question *q = arg;
    q->reply = http_call(q->url, "POST", "/v1/completions", q->body, NULL);
    return NULL;
}

static uint32_t
number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at == NULL ? 0 : (uint32_t)strtoul(at + strlen(key), NULL, 10);
}

/* From "choices" to the end, of every event up to [DONE]; NULL if that is missing. */
static char *
join_events(const char *body)
{
    strbuf all;
    strbuf_init(&all, STREAM_BYTES_MAX);
    if (strstr(body, "data: [DONE]\n") == NULL || strstr(body, "{\"error\":") != NULL) return NULL;
    for (const char *at = body; (at = strstr(at, "\"choices\":")) != NULL;) {
        const size_t len = strcspn(at, "\n");
        strbuf_append(&all, at, len);
        at += len;
    }
    return all.text;
}

char *
answer_choices(const http_reply *reply)
{
    if (reply->status != 200) return NULL;
    if (strncmp(reply->content_type, "text/event-stream", 17) == 0) return join_events(reply->body);
    const char *begin = strstr(reply->body, "\"choices\":"),
               *end = strstr(reply->body, ",\"usage\":");
    return begin != NULL && end != NULL ? strndup(begin, (size_t)(end - begin)) : NULL;
}

static void
take_answer(question *q, uint32_t i, answer_set *out)
{
    const char *body = q->reply.body, *usage = strstr(body, ",\"usage\":");
    cr_expect_eq(q->reply.status, 200, "request %u: status %ld, %.300s", i, q->reply.status, body);
    out->choices[i] = answer_choices(&q->reply);
    if (usage != NULL) out->cached_tokens += number_after(usage, "\"cached_tokens\":");
    http_reply_fini(&q->reply);
}

void
requests_ask_alone(const request_set *set, const char *url, answer_set *out)
{
    *out = (answer_set){.count = set->count};
    for (uint32_t i = 0; i < set->count; i++) {
        question q = {.url = url, .body = set->bodies[i]};
        ask(&q);
        take_answer(&q, i, out);
    }
}

static question questions[REQUESTS_MAX];

void
requests_ask_begin(const request_set *set, const char *url)
{
    for (uint32_t i = 0; i < set->count; i++) {
        questions[i] = (question){.url = url, .body = set->bodies[i]};
        cr_assert_eq(pthread_create(&questions[i].thread, NULL, ask, &questions[i]), 0);
    }
}

void
requests_ask_end(const request_set *set, answer_set *out)
{
    *out = (answer_set){.count = set->count};
    for (uint32_t i = 0; i < set->count; i++) {
        pthread_join(questions[i].thread, NULL);
        take_answer(&questions[i], i, out);
    }
}

void
requests_ask_together(const request_set *set, const char *url, answer_set *out)
{
    requests_ask_begin(set, url);
    requests_ask_end(set, out);
}

void
answers_free(answer_set *answers)
{
    for (uint32_t i = 0; i < answers->count; i++)
        free(answers->choices[i]);
    answers->count = 0;
}

void
answers_expect_equal(const answer_set *got, const answer_set *want, const char *what)
{
    cr_assert_eq(got->count, want->count);
    for (uint32_t i = 0; i < got->count; i++) {
        const char *a = got->choices[i], *b = want->choices[i];
        if (a == NULL || b == NULL) {
            cr_expect(false, "%s: request %u has no answer", what, i);
            continue;
        }
        size_t same = 0;
        while (a[same] != '\0' && a[same] == b[same])
            same++;
        const size_t from = same < 60 ? 0 : same - 60;
        cr_expect(a[same] == b[same], "%s: request %u differs at byte %zu: %.120s, not %.120s",
                  what, i, same, a + from, b + from);
    }
}
