/* A crowd of clients, many of which leave in the middle: those that stay get whole answers or 429,
 * and when all have gone nothing of theirs is left. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"
#include "tests/integration/fleet.h"
#include "tests/integration/stream.h"

#define CLIENTS 200
#define ANSWER_BYTES_MAX ((size_t)256 << 10)

typedef enum ending { LEFT, COMPLETE, REFUSED, WRONG } ending;

typedef struct client {
    pthread_t thread;
    const char *url;
    uint64_t seed;
    ending end;
    char *answer; /* [ANSWER_BYTES_MAX] */
} client;

static fleet f;
static client clients[CLIENTS];

TestSuite(crowd, .timeout = 200, .fini = fleet_clean_up);

static ending
judge(const char *answer)
{
    if (strncmp(answer, "HTTP/1.1 429 ", 13) == 0) return REFUSED;
    const bool good = strncmp(answer, "HTTP/1.1 200 ", 13) == 0 &&
                      strstr(answer, "data: [DONE]") != NULL &&
                      strstr(answer, "{\"error\":") == NULL;
    return good ? COMPLETE : WRONG;
}

/* One client in three leaves: at once, or after some of the answer. */
static void *
run_client(void *arg)
{
    client *c = arg;
    char body[4096];
    int len = snprintf(body, sizeof body, "{\"prompt\":[300");
    const uint32_t prompt_len = c->seed % 7 == 0 ? 400 : (uint32_t)(c->seed >> 8) % 60;
    for (uint32_t i = 0; i < prompt_len; i++)
        len += snprintf(body + len, sizeof body - (size_t)len, ",%u",
                        (unsigned)(300 + hash_combine(c->seed, i) % 3000));
    snprintf(body + len, sizeof body - (size_t)len,
             "],\"seed\":%u,\"max_tokens\":%u,\"stream\":true,\"ignore_eos\":true,\"n\":%u}",
             (unsigned)(c->seed % 1000), 1 + (unsigned)(c->seed >> 16) % 120,
             c->seed % 5 == 0 ? 2 : 1);
    const int fd = stream_open(c->url, body);
    const bool leaves = (c->seed >> 24) % 3 == 0;
    const size_t room = leaves ? 1 + (c->seed >> 32) % 8000 : ANSWER_BYTES_MAX;
    c->end = WRONG;
    if (fd < 0) return NULL;
    if (!leaves || (c->seed >> 28) % 4 != 0)
        stream_read_until(fd, c->answer, room, leaves ? "never" : "[DONE]");
    /* Whole answers can be shorter than what a client wanted to read. */
    c->end = leaves ? LEFT : judge(c->answer);
    close(fd);
    return NULL;
}

static const char *
end_of(const char *text, size_t bytes)
{
    const size_t len = strlen(text);
    return len < bytes ? text : text + len - bytes;
}

static void
run_crowd(uint64_t seed, uint32_t counts[WRONG + 1])
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i] = (client){.url = f.url, .seed = hash_combine(seed, i)};
        clients[i].answer = calloc(1, ANSWER_BYTES_MAX);
        cr_assert_not_null(clients[i].answer);
        cr_assert_eq(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]), 0);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        counts[clients[i].end]++;
        cr_expect_neq(clients[i].end, WRONG, "client %u: %.300s ... %s", i, clients[i].answer,
                      end_of(clients[i].answer, 600));
        free(clients[i].answer);
    }
}

Test(crowd, a_crowd_that_comes_and_goes_leaves_nothing_behind)
{
    static const char *const gauges[] = {"conclave:kv_blocks_used", "vllm:num_requests_running",
                                         "vllm:num_requests_waiting"};
    const char *flags[] = {"--max-num-seqs=8 --max-model-len=1024 --num-kv-blocks=128",
                           "--max-num-seqs=8 --max-num-batched-tokens=64 --exchange=nng"};
    for (uint32_t round = 0; round < (FLEET_QUICK ? 1 : 2); round++) {
        uint32_t counts[WRONG + 1] = {0};
        fleet_start(&f, &(fleet_options){.workers = 3,
                                         .router_flags = flags[round],
                                         .frontend_flags = "--max-waiting-seqs=40"});
        for (uint32_t i = 0; i < 3; i++)
            cr_expect_eq(fleet_metric(&f, gauges[i]), 0, "%s", gauges[i]);
        const uint32_t fds = fleet_count_fds(&f, "frontend");
        run_crowd(round, counts);
        cr_expect_gt(counts[COMPLETE], 0);
        cr_expect_gt(counts[REFUSED], 0, "the queue was never full");
        for (uint32_t i = 0; i < 3; i++)
            fleet_wait_metric(&f, gauges[i], 0);
        for (uint64_t since = 0; fleet_count_fds(&f, "frontend") > fds;)
            fleet_pause(&since, "the frontend's file descriptors to be closed");
        http_reply r = http_call(f.url, "POST", "/v1/completions", "{\"prompt\":\"a\"}", NULL);
        cr_expect_eq(r.status, 200);
        http_reply_fini(&r);
        fleet_stop(&f); /* all still run, or this fails */
    }
}
