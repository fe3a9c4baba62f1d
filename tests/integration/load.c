#include "tests/integration/load.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"

/* A part of a stream has come. */
typedef struct arrival {
    uint64_t ns;
    uint64_t stream;
} arrival;

typedef struct client {
    load *load;
    pthread_t thread;
    uint64_t asked, failures, seed;
    char first_failure[512];
    arrival *arrivals; /* [arrival_count], in order */
    size_t arrival_count, arrival_room;
} client;

struct load {
    const request_set *requests;
    const answer_set *want;
    const char *url;
    _Atomic bool ending;
    uint32_t client_count;
    client clients[LOAD_CLIENTS_MAX];
};

static void
on_arrived(void *arg)
{
    client *c = arg;
    if (c->arrival_count == c->arrival_room) {
        const size_t room = c->arrival_room == 0 ? 1024 : 2 * c->arrival_room;
        arrival *grown = realloc(c->arrivals, room * sizeof *grown);
        if (grown == NULL) return; /* a measurement less */
        c->arrivals = grown;
        c->arrival_room = room;
    }
    c->arrivals[c->arrival_count++] = (arrival){clock_now_ns(), c->asked};
}

static void
judge(client *c, uint32_t i, const http_reply *r)
{
    char *got = answer_choices(r);
    const char *want = c->load->want->choices[i];
    const bool good = got != NULL && want != NULL && strcmp(got, want) == 0;
    if (!good && c->failures++ == 0) {
        size_t same = 0;
        while (got != NULL && want != NULL && got[same] != '\0' && got[same] == want[same])
            same++;
        if (got == NULL)
            snprintf(c->first_failure, sizeof c->first_failure, "request %u: status %ld: %.300s", i,
                     r->status, r->body);
        else
            snprintf(c->first_failure, sizeof c->first_failure,
                     "request %u differs at byte %zu: %.150s, not %.150s", i, same, got + same,
                     want == NULL ? "" : want + same);
    }
    free(got);
}

static void *
client_main(void *arg)
{
    client *c = arg;
    const load *l = c->load;
    for (; !atomic_load(&l->ending); c->asked++) {
        c->seed = hash_combine(c->seed, 1);
        const uint32_t i = (uint32_t)((c->seed >> 11) % l->requests->count);
        const char *body = l->requests->bodies[i];
        const bool stream = strstr(body, "\"stream\":true") != NULL;
        http_reply r = http_call_watched(l->url, "POST", "/v1/completions", body, NULL,
                                         stream ? on_arrived : NULL, c);
        judge(c, i, &r);
        http_reply_fini(&r);
    }
    return NULL;
}

load *
load_start(const request_set *requests, const answer_set *want, const char *url, uint32_t clients,
           uint64_t seed)
{
    load *l = calloc(1, sizeof *l);
    if (l == NULL) abort();
    l->requests = requests;
    l->want = want;
    l->url = url;
    l->client_count = clients < LOAD_CLIENTS_MAX ? clients : LOAD_CLIENTS_MAX;
    for (uint32_t i = 0; i < l->client_count; i++) {
        client *c = &l->clients[i];
        c->load = l;
        c->seed = hash_combine(seed, i);
        if (pthread_create(&c->thread, NULL, client_main, c) != 0) abort();
    }
    return l;
}

void
load_end(load *l)
{
    atomic_store(&l->ending, true);
    for (uint32_t i = 0; i < l->client_count; i++)
        pthread_join(l->clients[i].thread, NULL);
}

void
load_free(load *l)
{
    if (l == NULL) return;
    for (uint32_t i = 0; i < l->client_count; i++)
        free(l->clients[i].arrivals);
    free(l);
}

void
load_get_report(const load *l, load_report *out)
{
    *out = (load_report){0};
    for (uint32_t i = 0; i < l->client_count; i++) {
        const client *c = &l->clients[i];
        if (c->failures != 0 && out->failures == 0)
            memcpy(out->first_failure, c->first_failure, sizeof out->first_failure);
        out->answers += c->asked;
        out->failures += c->failures;
    }
}

uint64_t
load_longest_wait(const load *l, uint64_t since_ns)
{
    uint64_t longest = 0;
    for (uint32_t i = 0; i < l->client_count; i++) {
        const client *c = &l->clients[i];
        size_t next = 0;
        while (next < c->arrival_count && c->arrivals[next].ns < since_ns)
            next++;
        if (next == 0 || next == c->arrival_count) continue;
        const arrival *a = &c->arrivals[next];
        if (a[-1].stream != a->stream) continue; /* it had ended */
        if (a->ns - since_ns > longest) longest = a->ns - since_ns;
    }
    return longest;
}
