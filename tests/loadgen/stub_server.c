#include "stub_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"

#define CONNECTIONS_MAX 256
#define REQUEST_BYTES_MAX 65536

#define CHUNK(text) "data: {\"choices\":[{\"text\":\"" text "\",\"finish_reason\":null}]}\n\n"
#define USAGE(n)                                                                                   \
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":" n "}}\n\n"
#define DONE "data: [DONE]\n\n"

typedef struct connection {
    struct stub_server *server;
    int fd; /* closed by stop, so that its number stays this connection's */
    pthread_t thread;
} connection;

struct stub_server {
    int listener;
    char url[64];
    pthread_t thread;
    const stub_answer *script;
    size_t script_count;

    pthread_mutex_t lock; /* guards what follows */
    size_t requests, open, peak;
    size_t stall_at;
    uint64_t stall_ns, stall_start_ns, stall_end_ns;
    char *bodies[CONNECTIONS_MAX];
    connection connections[CONNECTIONS_MAX];
    size_t connection_count;
};

static bool
put(int fd, const char *text, size_t n)
{
    while (n > 0) {
        const ssize_t sent = send(fd, text, n, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        text += sent;
        n -= (size_t)sent;
    }
    return true;
}

/* One chunk of a chunked body. */
static void
put_chunk(int fd, const char *text, bool dribble)
{
    char all[1000];
    const int n = snprintf(all, sizeof all, "%zx\r\n%s\r\n", strlen(text), text);
    for (int i = 0; dribble && i < n; i++) {
        if (!put(fd, all + i, 1)) return;
    }
    if (!dribble) put(fd, all, (size_t)n);
}

static void
put_answer(int fd, const char *status, const char *json)
{
    char all[1000];
    const int n = snprintf(all, sizeof all,
                           "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: "
                           "%zu\r\nConnection: close\r\n\r\n%s",
                           status, strlen(json), json);
    put(fd, all, (size_t)n);
}

static void
flood(int fd)
{
    char block[4096];
    memset(block, 'x', sizeof block);
    put(fd, "fffffff\r\n", 9);
    while (put(fd, block, sizeof block)) {
    }
}

/* Returns whether the stream still needs its end: the last bytes that a client waits for. */
static bool
complete(int fd, stub_answer answer)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                               "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    const bool dribble = answer == STUB_DRIBBLE;
    char byte;
    if (answer == STUB_NO_ANSWER) return false;
    if (answer == STUB_500) {
        put_answer(fd, "500 Oops", "{\"error\":{\"message\":\"it broke\"}}");
        return false;
    }
    if (answer == STUB_429) {
        put_answer(fd, "429 Too Many Requests", "{\"error\":{\"message\":\"queue full\"}}");
        return false;
    }
    put(fd, head, sizeof head - 1);
    if (answer == STUB_FLOOD) {
        flood(fd);
        return false;
    }
    put_chunk(fd, ": hello\n\n", dribble);
    if (answer == STUB_EMPTY) {
        put_chunk(fd, USAGE("0") DONE, false);
    } else {
        put_chunk(fd, CHUNK(" a"), dribble);
        if (answer == STUB_CUT) return false;
        if (answer == STUB_HANG) {
            return recv(fd, &byte, 1, 0) > 0;
        }
        if (answer == STUB_ERROR_EVENT)
            put_chunk(fd, "data: {\"error\":{\"message\":\"worker lost\"}}\n\n", false);
        put_chunk(fd, CHUNK(" b"), dribble);
        put_chunk(fd, answer == STUB_OTHER ? CHUNK(" d") : CHUNK(" c"), dribble);
        put_chunk(fd, USAGE("3"), dribble);
        if (answer != STUB_NO_DONE) put_chunk(fd, DONE, dribble);
    }
    return true;
}

/* Reads headers and body into request [REQUEST_BYTES_MAX]; returns the body, or NULL. */
static char *
read_request(int fd, char *request)
{
    size_t len = 0, want = 0;
    char *body = NULL;
    while (len + 1 < REQUEST_BYTES_MAX) {
        const ssize_t got = recv(fd, request + len, REQUEST_BYTES_MAX - 1 - len, 0);
        if (got <= 0) return NULL;
        len += (size_t)got;
        request[len] = '\0';
        if (body == NULL && (body = strstr(request, "\r\n\r\n")) != NULL) {
            body += 4;
            const char *length = strcasestr(request, "content-length:");
            want = length && length < body ? strtoul(length + 15, NULL, 10) : 0;
        }
        if (body != NULL && (size_t)(request + len - body) >= want) return body;
    }
    return NULL;
}

static void
tokenize(int fd, const char *body)
{
    int words = 1;
    const char *text = strstr(body, "\"prompt\":");
    for (; text != NULL && *text != '\0'; text++) {
        words += *text == ' ';
    }
    char json[64];
    snprintf(json, sizeof json, "{\"count\":%d,\"max_model_len\":64,\"tokens\":[]}", words);
    put_answer(fd, "200 OK", json);
}

/* Until the stall that is on, if one is, is over. */
static void
wait_for_stall(stub_server *s)
{
    pthread_mutex_lock(&s->lock);
    const uint64_t end = s->stall_end_ns;
    pthread_mutex_unlock(&s->lock);
    const struct timespec ts = {.tv_sec = (time_t)(end / NS_PER_S),
                                .tv_nsec = (long)(end % NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0) {
    }
}

static void
serve_completion(stub_server *s, int fd, const char *body)
{
    pthread_mutex_lock(&s->lock);
    const size_t index = s->requests++;
    if (index < CONNECTIONS_MAX) s->bodies[index] = strdup(body);
    if (++s->open > s->peak) s->peak = s->open;
    if (s->stall_ns != 0 && index == s->stall_at) {
        s->stall_start_ns = clock_now_ns();
        s->stall_end_ns = s->stall_start_ns + s->stall_ns;
    }
    pthread_mutex_unlock(&s->lock);
    wait_for_stall(s);

    const bool unfinished = complete(fd, s->script[index % s->script_count]);

    /* Not open any more before the client can know it, or its next request would count too. */
    pthread_mutex_lock(&s->lock);
    s->open--;
    pthread_mutex_unlock(&s->lock);
    if (unfinished) put(fd, "0\r\n\r\n", 5);
}

static void
put_metrics(stub_server *s, int fd)
{
    char text[300];
    snprintf(text, sizeof text,
             "# TYPE stub_requests_total counter\n"
             "stub_requests_total %zu\n"
             "stub_constant{a=\"b c\"} 7\n"
             "stub_seconds_bucket{le=\"1\"} 3\n",
             stub_server_requests(s));
    put_answer(fd, "200 OK", text);
}

static void *
serve(void *arg)
{
    connection *c = arg;
    char *request = malloc(REQUEST_BYTES_MAX);
    char *body = request ? read_request(c->fd, request) : NULL;
    if (body != NULL) {
        if (strncmp(request, "POST /v1/completions ", 21) == 0)
            serve_completion(c->server, c->fd, body);
        else if (strncmp(request, "GET /v1/models ", 15) == 0)
            put_answer(c->fd, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"stub\"}]}");
        else if (strncmp(request, "GET /metrics ", 13) == 0)
            put_metrics(c->server, c->fd);
        else if (strncmp(request, "POST /tokenize ", 15) == 0)
            tokenize(c->fd, body);
        else
            put_answer(c->fd, "404 Not Found", "{}");
    }
    free(request);
    shutdown(c->fd, SHUT_RDWR);
    return NULL;
}

static void *
accept_all(void *arg)
{
    stub_server *s = arg;
    int fd;
    while ((fd = accept(s->listener, NULL, NULL)) >= 0) {
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_mutex_lock(&s->lock);
        connection *c = &s->connections[s->connection_count];
        *c = (connection){.server = s, .fd = fd};
        if (s->connection_count == CONNECTIONS_MAX - 1 ||
            pthread_create(&c->thread, NULL, serve, c) != 0)
            close(fd);
        else
            s->connection_count++;
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

stub_server *
stub_server_start(const stub_answer *script, size_t count)
{
    stub_server *s = calloc(1, sizeof *s);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    if (s == NULL) abort();
    s->script = script;
    s->script_count = count;
    pthread_mutex_init(&s->lock, NULL);
    s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->listener < 0 || bind(s->listener, (struct sockaddr *)&at, sizeof at) != 0 ||
        listen(s->listener, 128) != 0 ||
        getsockname(s->listener, (struct sockaddr *)&at, &len) != 0 ||
        pthread_create(&s->thread, NULL, accept_all, s) != 0)
        abort();
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%d", ntohs(at.sin_port));
    return s;
}

void
stub_server_stop(stub_server *s)
{
    shutdown(s->listener, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->listener);
    for (size_t i = 0; i < s->connection_count; i++) {
        shutdown(s->connections[i].fd, SHUT_RDWR);
        pthread_join(s->connections[i].thread, NULL);
        close(s->connections[i].fd);
    }
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        free(s->bodies[i]);
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void
stub_server_set_stall(stub_server *s, size_t at, uint64_t stall_ns)
{
    pthread_mutex_lock(&s->lock);
    s->stall_at = at;
    s->stall_ns = stall_ns;
    pthread_mutex_unlock(&s->lock);
}

void
stub_server_get_stall(stub_server *s, uint64_t *start_ns, uint64_t *end_ns)
{
    pthread_mutex_lock(&s->lock);
    *start_ns = s->stall_start_ns;
    *end_ns = s->stall_end_ns;
    pthread_mutex_unlock(&s->lock);
}

const char *
stub_server_url(const stub_server *s)
{
    return s->url;
}

static size_t
read_locked(stub_server *s, const size_t *value)
{
    pthread_mutex_lock(&s->lock);
    const size_t copy = *value;
    pthread_mutex_unlock(&s->lock);
    return copy;
}

size_t
stub_server_requests(stub_server *s)
{
    return read_locked(s, &s->requests);
}

size_t
stub_server_peak(stub_server *s)
{
    return read_locked(s, &s->peak);
}

const char *
stub_server_body(stub_server *s, size_t i)
{
    pthread_mutex_lock(&s->lock);
    const char *body = i < CONNECTIONS_MAX ? s->bodies[i] : NULL;
    pthread_mutex_unlock(&s->lock);
    return body;
}
