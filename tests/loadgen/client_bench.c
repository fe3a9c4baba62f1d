/* loadgen_bench: how many streamed tokens a second the client takes in, on one core.
 *
 * A server in this process writes streams of prepared events as fast as they are taken; the client
 * is bound to one core, the server's threads to the others (to the same where there is one only).
 * Three shapes: one event a write (several may have gathered by the time the client looks), many
 * events a write, and one event every few milliseconds on each stream, as a server paces them: then
 * each event costs a wake-up, and what counts is the rate per second of CPU time.
 *
 * usage: loadgen_bench [STREAMS [TOKENS_PER_STREAM [REPEATS]]]
 */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "loadgen/client.h"

#define STREAMS_MAX 1024
#define EVENT                                                                                      \
    "data: "                                                                                       \
    "{\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"     \
    "\"model\":\"demo\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,"           \
    "\"finish_reason\":null}]}\n\n"
#define HEAD                                                                                       \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

typedef struct bench_server {
    int listener;
    long tokens;
    enum { ONE_BY_ONE, IN_BULK, PACED } shape;
} bench_server;

#define PACE_NS 2500000 /* 64 streams make 25,600 tokens/s */

static void
bind_to(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (core == 0 || cores == 1) {
        CPU_SET(0, &set);
    } else {
        for (int i = 1; i < cores; i++) {
            CPU_SET(i, &set);
        }
    }
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static bool
put(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes += sent;
        n -= (size_t)sent;
    }
    return true;
}

static void
put_stream(const bench_server *s, int fd)
{
    char chunk[512], end[512], many[64 * sizeof chunk];
    const int n = snprintf(chunk, sizeof chunk, "%zx\r\n" EVENT "\r\n", strlen(EVENT));
    char usage[256];
    const int m = snprintf(usage, sizeof usage,
                           "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,"
                           "\"completion_tokens\":%ld}}\n\ndata: [DONE]\n\n",
                           s->tokens);
    const int e = snprintf(end, sizeof end, "%x\r\n%s\r\n0\r\n\r\n", (unsigned)m, usage);
    for (int i = 0; i < 64; i++) {
        memcpy(many + i * n, chunk, (size_t)n);
    }
    put(fd, HEAD, strlen(HEAD));
    for (long i = 0; i < s->tokens;) {
        const long step = s->shape == IN_BULK && s->tokens - i >= 64 ? 64 : 1;
        if (s->shape == PACED) nanosleep(&(struct timespec){.tv_nsec = PACE_NS}, NULL);
        if (!put(fd, step == 64 ? many : chunk, (size_t)(n * step))) return;
        i += step;
    }
    put(fd, end, (size_t)e);
}

typedef struct peer {
    const bench_server *server;
    int fd;
} peer;

static void *
serve(void *arg)
{
    peer *p = arg;
    char request[4096];
    size_t len = 0;
    bind_to(1);
    while (len + 1 < sizeof request) {
        const ssize_t got = recv(p->fd, request + len, sizeof request - 1 - len, 0);
        if (got <= 0) break;
        len += (size_t)got;
        request[len] = '\0';
        const char *body = strstr(request, "\r\n\r\n");
        if (body != NULL && body[4] != '\0' && request[len - 1] == '}') {
            put_stream(p->server, p->fd);
            break;
        }
    }
    shutdown(p->fd, SHUT_WR);
    while (recv(p->fd, request, sizeof request, 0) > 0) {
    }
    close(p->fd);
    free(p);
    return NULL;
}

static void *
accept_all(void *arg)
{
    const bench_server *s = arg;
    int fd;
    while ((fd = accept(s->listener, NULL, NULL)) >= 0) {
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        peer *p = malloc(sizeof *p);
        if (p == NULL) abort();
        *p = (peer){.server = s, .fd = fd};
        if (pthread_create(&thread, NULL, serve, p) != 0) abort();
        pthread_detach(thread);
    }
    return NULL;
}

static void
measure_once(const char *url, size_t streams, long tokens, const char *shape)
{
    static char ids[] = "[1,2,3]";
    static prompt prompts[STREAMS_MAX];
    static uint64_t at_ns[STREAMS_MAX];
    client_stats stats;
    const client_config config = {.url = url, .model = "demo", .stats = &stats};
    for (size_t i = 0; i < streams; i++) {
        prompts[i] = (prompt){.json = ids, .token_count = 3, .max_tokens = tokens};
    }
    request_record *records = record_array_create(streams);
    errbuf eb = {""};
    if (client_run(&config, prompts, at_ns, streams, records, &eb)) {
        fprintf(stderr, "%s\n", eb.text);
        exit(1);
    }
    double taken = 0;
    for (size_t i = 0; i < streams; i++) {
        taken += (double)records[i].chunk_count;
        if (!records[i].completed)
            fprintf(stderr, "stream %zu: %s\n", i, record_error(&records[i]));
    }
    printf(
        "%-10s %4zu streams: %8.0f tokens/s of wall time, %8.0f tokens/s of CPU time (%.0f %% of "
        "a core)\n",
        shape, streams, taken / ((double)stats.wall_ns / 1e9), taken / ((double)stats.cpu_ns / 1e9),
        100 * (double)stats.cpu_ns / (double)stats.wall_ns);
    fflush(stdout);
    record_array_free(records, streams);
}

int
main(int argc, char **argv)
{
    const size_t streams = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
    const long tokens = argc > 2 ? strtol(argv[2], NULL, 10) : 2000;
    const int repeats = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 3;
    if (streams < 1 || streams > STREAMS_MAX || tokens < 1 || repeats < 1) {
        fprintf(stderr, "usage: loadgen_bench [STREAMS 1..%d [TOKENS_PER_STREAM [REPEATS]]]\n",
                STREAMS_MAX);
        return 2;
    }
    bench_server s = {.tokens = tokens};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    s.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(s.listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(s.listener, 1024) != 0 ||
        getsockname(s.listener, (struct sockaddr *)&at, &len) != 0)
        abort();
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1/completions", ntohs(at.sin_port));
    pthread_t acceptor;
    if (pthread_create(&acceptor, NULL, accept_all, &s) != 0) abort();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    bind_to(0);
    static const char *const shapes[] = {"one by one", "in bulk", "paced"};
    for (int i = 0; i < 3 * repeats; i++) {
        s.shape = i % 3;
        s.tokens = s.shape == PACED ? tokens / 4 + 1 : tokens;
        measure_once(url, streams, s.tokens, shapes[s.shape]);
    }
    shutdown(s.listener, SHUT_RDWR);
    pthread_join(acceptor, NULL);
    close(s.listener);
    curl_global_cleanup();
    return 0;
}
