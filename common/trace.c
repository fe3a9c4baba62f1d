#include "common/trace.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"

#define WRITE_INTERVAL_MS 10
#define WRITER_NICE 10
#define LINE_BYTES_MAX 512
#define STREAM_BYTES (256u << 10)
#define HOST_BYTES 64

struct trace {
    trace_config config;
    bool is_router;
    trace_event *ring;                   /* [TRACE_RING_EVENTS] */
    _Alignas(64) _Atomic uint64_t added; /* by the traced thread */
    uint64_t written_seen;               /* the traced thread's last look at `written` */
    _Atomic uint64_t overrun;            /* lost because the ring was full */
    _Alignas(64) _Atomic uint64_t written;
    uint64_t bytes;       /* of the file */
    _Atomic uint64_t cut; /* lost because it was full */
    FILE *to;
    int pid;
    bool failed; /* writing did; said once */
    uint64_t *counts;
    uint32_t layers, columns;
    pthread_t writer;
    _Atomic uint32_t bell; /* rung once, to stop */
};

/* ---- the traced thread ---- */

void
trace_add(trace *t, const trace_event *event)
{
    const uint64_t at = atomic_load_explicit(&t->added, memory_order_relaxed);
    if (at - t->written_seen >= TRACE_RING_EVENTS) {
        t->written_seen = atomic_load_explicit(&t->written, memory_order_acquire);
        if (at - t->written_seen >= TRACE_RING_EVENTS) {
            atomic_fetch_add_explicit(&t->overrun, 1, memory_order_relaxed);
            return;
        }
    }
    t->ring[at % TRACE_RING_EVENTS] = *event;
    atomic_store_explicit(&t->added, at + 1, memory_order_release);
}

/* ---- the text of an event ---- */

typedef struct line {
    char text[LINE_BYTES_MAX];
    size_t len;
} line;

/* printf would take longer for an event than the event itself. */
static void
put(line *l, const char *text)
{
    const size_t n = strlen(text);
    assert(n <= LINE_BYTES_MAX - l->len);
    memcpy(l->text + l->len, text, n);
    l->len += n;
}

static void
put_u64(line *l, uint64_t v)
{
    char digits[21];
    size_t i = sizeof digits - 1;
    digits[i] = '\0';
    do {
        digits[--i] = (char)('0' + v % 10);
        v /= 10;
    } while (v > 0);
    put(l, digits + i);
}

static void
put_number(line *l, const char *before, uint64_t v)
{
    put(l, before);
    put_u64(l, v);
}

static void
put_us(line *l, const char *before, uint64_t ns)
{
    const char decimals[] = {'.', (char)('0' + ns / 100 % 10), (char)('0' + ns / 10 % 10),
                             (char)('0' + ns % 10), '\0'};
    put_number(l, before, ns / 1000);
    put(l, decimals);
}

static void
put_place(line *l, const trace_place *at)
{
    put_number(l, ",\"args\":{\"step\":", at->step);
    if (at->layer != TRACE_NO_LAYER) {
        put_number(l, ",\"layer\":", at->layer);
        put_number(l, ",\"mb\":", at->micro_batch);
    }
    if (at->rows > 0) put_number(l, ",\"rows\":", at->rows);
}

static void
put_message(line *l, const trace *t, const trace_event *e)
{
    const bool result = e->kind == TRACE_RESULT_SENT || e->kind == TRACE_RESULT_RECEIVED;
    const bool sent = e->kind == TRACE_DISPATCH_SENT || e->kind == TRACE_RESULT_SENT;
    const uint32_t router = t->is_router ? t->config.id : e->peer;
    const uint32_t worker = t->is_router ? e->peer : t->config.id;
    put(l, sent ? "{\"ph\":\"s\",\"name\":" : "{\"ph\":\"f\",\"bp\":\"e\",\"name\":");
    put(l, result ? "\"result\",\"cat\":\"result\",\"id\":\"c"
                  : "\"dispatch\",\"cat\":\"dispatch\",\"id\":\"d");
    const uint64_t parts[] = {router,       worker, e->at.step, e->at.layer, e->at.micro_batch,
                              e->at.attempt};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        put_number(l, i ? "." : "", parts[i]);
    }
    put_number(l, "\",\"pid\":", (uint64_t)t->pid);
    put_us(l, ",\"tid\":1,\"ts\":", e->start_ns);
    put_place(l, &e->at);
    put_number(l, ",\"attempt\":", e->at.attempt);
    put_number(l, ",\"router\":", router);
    put_number(l, ",\"worker\":", worker);
    put_number(l, ",\"bytes\":", e->bytes);
    if (!sent) put_number(l, ",\"sent_ns\":", e->sent_ns);
    if (result) put_number(l, ",\"busy_ns\":", e->busy_ns);
    put(l, "}},\n");
}

static void
put_span(line *l, const trace *t, const trace_event *e)
{
    put(l, "{\"ph\":\"X\",\"name\":\"");
    put(l, e->name < t->config.name_count ? t->config.names[e->name] : "?");
    put_number(l, "\",\"pid\":", (uint64_t)t->pid);
    put_us(l, ",\"tid\":1,\"ts\":", e->start_ns);
    put_us(l, ",\"dur\":", e->end_ns - e->start_ns);
    put_place(l, &e->at);
    put(l, "}},\n");
}

/* ---- the writer ---- */

static void
write_text(trace *t, const char *text, size_t n)
{
    t->bytes += n;
    if (fwrite(text, 1, n, t->to) == n || t->failed) return;
    t->failed = true;
    LOG_WARN("trace", "%s can't be written; events are lost", t->config.path);
}

static void
drain(trace *t)
{
    const uint64_t end = atomic_load_explicit(&t->added, memory_order_acquire);
    for (uint64_t at = atomic_load_explicit(&t->written, memory_order_relaxed); at < end; at++) {
        const trace_event *e = &t->ring[at % TRACE_RING_EVENTS];
        line l = {.len = 0};
        if (t->bytes >= TRACE_FILE_BYTES_MAX) {
            atomic_fetch_add_explicit(&t->cut, 1, memory_order_relaxed);
        } else {
            if (e->kind == TRACE_SPAN)
                put_span(&l, t, e);
            else
                put_message(&l, t, e);
            write_text(t, l.text, l.len);
        }
        atomic_store_explicit(&t->written, at + 1, memory_order_release);
    }
}

static void *
writer_main(void *arg)
{
    trace *t = arg;
    setpriority(PRIO_PROCESS, (id_t)gettid(), WRITER_NICE); /* of this thread, on Linux */
    while (atomic_load(&t->bell) == 0) {
        drain(t);
        futex_sleep_change(&t->bell, 0, clock_now_ns() + WRITE_INTERVAL_MS * NS_PER_MS);
    }
    return NULL;
}

/* The kernel's name for this run of this host: processes with the same one share a clock. */
static void
read_host(char out[HOST_BYTES])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    out[0] = '\0';
    if (f == NULL) return;
    if (fgets(out, HOST_BYTES, f) == NULL) out[0] = '\0';
    out[strcspn(out, "\n\"\\")] = '\0';
    fclose(f);
}

static void
write_head(trace *t)
{
    char text[2 * LINE_BYTES_MAX], host[HOST_BYTES];
    const trace_config *c = &t->config;
    read_host(host);
    const int n = snprintf(
        text, sizeof text,
        "[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{\"name\":\"%s-%u\"}},\n"
        "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":1,\"args\":{\"name\":\"%s\"}},\n"
        "{\"ph\":\"M\",\"name\":\"conclave\",\"pid\":%d,\"args\":{\"role\":\"%s\",\"id\":%u,"
        "\"version\":\"" CONCLAVE_VERSION "\",\"host\":\"%s\",\"start_ns\":%llu}},\n",
        t->pid, c->role, c->id, t->pid, c->thread, t->pid, c->role, c->id, host,
        (unsigned long long)clock_now_ns());
    assert(n > 0 && (size_t)n < sizeof text);
    write_text(t, text, (size_t)n);
}

static void
write_tail(trace *t)
{
    for (uint32_t layer = 0; layer < t->layers; layer++) {
        fprintf(t->to,
                "{\"ph\":\"M\",\"name\":\"experts\",\"pid\":%d,\"args\":{\"layer\":%u,\"tokens\":[",
                t->pid, layer);
        for (uint32_t e = 0; e < t->columns; e++) {
            fprintf(t->to, "%s%llu", e ? "," : "",
                    (unsigned long long)t->counts[(size_t)layer * t->columns + e]);
        }
        fputs("]}},\n", t->to);
    }
    fprintf(t->to,
            "{\"ph\":\"M\",\"name\":\"conclave_end\",\"pid\":%d,\"args\":{\"events\":%llu,"
            "\"lost\":%llu}}\n]\n",
            t->pid, (unsigned long long)atomic_load(&t->written),
            (unsigned long long)trace_lost(t));
}

/* ---- create and free ---- */

static void
release(trace *t)
{
    if (t->to != NULL && fclose(t->to) != 0 && !t->failed)
        LOG_WARN("trace", "%s is not complete: writing failed", t->config.path);
    free(t->counts);
    free(t->ring);
    free((void *)(uintptr_t)t->config.path);
    free(t);
}

moe_err
trace_open(trace **out, const trace_config *config, errbuf *eb)
{
    *out = NULL;
    trace *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (t == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    *t = (trace){.config = *config, .pid = (int)getpid()};
    t->is_router = strcmp(config->role, "router") == 0;
    t->config.path = strdup(config->path);
    t->ring = malloc(TRACE_RING_EVENTS * sizeof *t->ring);
    if (t->config.path == NULL || t->ring == NULL) {
        release(t);
        return err_set(eb, MOE_ENOMEM, "no memory for a trace of %u events", TRACE_RING_EVENTS);
    }
    memset(t->ring, 0, TRACE_RING_EVENTS * sizeof *t->ring); /* so that no add() faults a page in */
    t->to = fopen(config->path, "we");
    if (t->to == NULL) {
        release(t);
        return err_set(eb, MOE_EIO, "--trace: can't write %s", config->path);
    }
    setvbuf(t->to, NULL, _IOFBF, STREAM_BYTES);
    write_head(t);
    if (pthread_create(&t->writer, NULL, writer_main, t) != 0) {
        release(t);
        return err_set(eb, MOE_EIO, "can't start the trace's thread");
    }
    pthread_setname_np(t->writer, "trace");
    *out = t;
    return MOE_OK;
}

void
trace_close(trace *t)
{
    if (t == NULL) return;
    futex_bump(&t->bell);
    pthread_join(t->writer, NULL);
    drain(t);
    write_tail(t);
    const uint64_t lost = trace_lost(t);
    if (lost > 0)
        LOG_WARN("trace", "%llu events of %s were lost", (unsigned long long)lost, t->config.path);
    release(t);
}

void
trace_put_counts(trace *t, const uint64_t *counts, uint32_t layers, uint32_t columns)
{
    if (t == NULL) return;
    const size_t n = (size_t)layers * columns;
    uint64_t *copy = n ? malloc(n * sizeof *copy) : NULL;
    if (copy == NULL) return; /* the file then lacks them */
    memcpy(copy, counts, n * sizeof *copy);
    free(t->counts);
    t->counts = copy;
    t->layers = layers;
    t->columns = columns;
}

uint64_t
trace_lost(const trace *t)
{
    return atomic_load_explicit(&t->overrun, memory_order_relaxed) +
           atomic_load_explicit(&t->cut, memory_order_relaxed);
}
