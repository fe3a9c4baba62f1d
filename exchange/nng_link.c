#include "exchange/nng_link.h"

#include <errno.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "exchange/link_msg.h"

#define HELLO_MAGIC 0x48564c43u /* "CLVH" */
#define HELLO_TIMEOUT_NS (2 * NS_PER_S)
#define ACCEPT_RETRY_NS (100 * NS_PER_MS)

/* A message is sent as its length (uint64_t) and its bytes. */
#define LENGTH_BYTES sizeof(uint64_t)
/* The message starts on a cache line; its length stands just before. */
#define MESSAGE_OFFSET 64

/* The first 64 bytes each way.  The answer repeats the hello without the key. */
typedef struct hello {
    uint32_t magic;
    uint16_t version; /* WIRE_VERSION */
    uint16_t answer;  /* 0: router's hello, 1: worker's answer */
    uint32_t router_id;
    uint32_t reserved0;
    uint64_t incarnation;
    unsigned char key[EXCHANGE_KEY_BYTES];
    uint64_t reserved[3];
} hello;
static_assert(sizeof(hello) == 64, "hello is part of the wire format");

struct nng_link {
    nng_link_config config;
    bool is_router;
    nng_stream_listener *listener; /* worker; the receiver's until it ends */
    nng_stream *stream;            /* set before the sender starts */
    nng_aio *recv_aio, *send_aio;
    pthread_t receiver, sender;
    bool receiver_started, sender_started;
    _Atomic bool stopping;
    char ipc_path[EXCHANGE_URL_MAX]; /* worker: removed at close; "" for tcp */

    shm_object buffers; /* one message each way, and the marks; touched as far as used */
    char *send_buffer, *recv_buffer;
    size_t recv_max;
    uint64_t *send_marks, *recv_marks;

    /* Per place: the last sequence number whose message was made.  Released by the sender when it
     * has read the place, acquired by the receiver before it stores the next message there. */
    _Atomic uint32_t sent_seq[MICRO_BATCH_MAX];
};

static bool
stopping(const nng_link *nl)
{
    return atomic_load_explicit(&nl->stopping, memory_order_acquire);
}

/* ---- bytes ---- */

static void
set_deadline(nng_aio *aio, uint64_t deadline_ns)
{
    nng_duration ms = NNG_DURATION_INFINITE;
    if (deadline_ns != 0) {
        const uint64_t now = clock_now_ns();
        ms = now >= deadline_ns ? 1 : (nng_duration)((deadline_ns - now) / NS_PER_MS + 1);
    }
    nng_aio_set_timeout(aio, ms);
}

/* Read or write exactly n bytes, or fail with nng's error.  deadline_ns 0: no limit. */
static int
transfer(nng_link *nl, bool reading, void *buf, size_t n, uint64_t deadline_ns)
{
    nng_aio *aio = reading ? nl->recv_aio : nl->send_aio;
    char *at = buf;
    while (n > 0) {
        nng_iov iov = {.iov_buf = at, .iov_len = n};
        nng_aio_set_iov(aio, 1, &iov);
        set_deadline(aio, deadline_ns);
        if (reading)
            nng_stream_recv(nl->stream, aio);
        else
            nng_stream_send(nl->stream, aio);
        nng_aio_wait(aio);
        if (stopping(nl)) return NNG_ECANCELED;
        const int rv = nng_aio_result(aio);
        if (rv != 0) return rv;
        const size_t done = nng_aio_count(aio);
        if (done == 0) return NNG_ECONNSHUT;
        at += done;
        n -= done;
    }
    return 0;
}

/* ---- sending ---- */

static uint32_t
ready_seq(const nng_link *nl, link_place *place)
{
    return atomic_load_explicit(nl->is_router ? &place->request_seq : &place->result_seq,
                                memory_order_acquire);
}

static int
send_place(nng_link *nl, uint32_t micro_batch, uint32_t seq)
{
    const link_memory *m = nl->config.memory;
    link_place *place = link_place_at(m, micro_batch);
    char *message = nl->send_buffer + MESSAGE_OFFSET;
    const uint64_t bytes =
        nl->is_router ? link_msg_write_dispatch(m, &place->request, nl->send_marks, message)
                      : link_msg_write_result(m, &place->result, message);
    memcpy(message - LENGTH_BYTES, &bytes, LENGTH_BYTES);
    atomic_store_explicit(&nl->sent_seq[micro_batch], seq, memory_order_release);
    return transfer(nl, false, message - LENGTH_BYTES, LENGTH_BYTES + bytes, 0);
}

/* Send what is ready.  Returns nng's error; *sent: was there something? */
static int
send_ready(nng_link *nl, bool *sent)
{
    *sent = false;
    for (uint32_t mb = 0; mb < nl->config.memory->limits.micro_batch_max; mb++) {
        const uint32_t seq = ready_seq(nl, link_place_at(nl->config.memory, mb));
        if (seq == atomic_load_explicit(&nl->sent_seq[mb], memory_order_relaxed)) continue;
        const int rv = send_place(nl, mb, seq);
        if (rv != 0) return rv;
        *sent = true;
    }
    return 0;
}

/* Also hang up, so that the other end learns of it and our other thread ends. */
static void
mark_broken(nng_link *nl, const char *why)
{
    nng_stream_close(nl->stream);
    if (!stopping(nl) && !atomic_exchange(nl->config.broken, true))
        LOG_WARN("exchange", "link broke: %s router=%" PRIu32, why, nl->config.router_id);
    futex_bump(nl->config.arrived);
}

static void *
sender_main(void *arg)
{
    nng_link *nl = arg;
    int rv = 0;
    while (rv == 0 && !stopping(nl)) {
        bool sent;
        const uint32_t seen = atomic_load_explicit(nl->config.send_bell, memory_order_acquire);
        rv = send_ready(nl, &sent);
        if (rv == 0 && !sent && !stopping(nl)) futex_wait_change(nl->config.send_bell, seen, 0);
    }
    if (rv != 0) mark_broken(nl, nng_strerror(rv));
    return NULL;
}

/* ---- receiving ---- */

static moe_err
peer_check(const nng_link *nl, const wire_hdr *h, errbuf *eb)
{
    if (h->micro_batch >= nl->config.memory->limits.micro_batch_max)
        return err_set(eb, MOE_EINVAL, "message: micro_batch is %" PRIu32, h->micro_batch);
    if (h->router_id != nl->config.router_id || h->incarnation != nl->config.incarnation)
        return err_set(eb, MOE_EINVAL,
                       "message: router %" PRIu32 " incarnation %016" PRIx64
                       ", this link is of router %" PRIu32 " incarnation %016" PRIx64,
                       h->router_id, h->incarnation, nl->config.router_id, nl->config.incarnation);
    return MOE_OK;
}

/* Worker.  A dispatch that breaks a rule is stored as an empty header, which worker_end_take()
 * refuses, so that the router hears of it; one for a place whose answer is still out would be
 * written under the compute thread's hands, and ends the connection. */
static moe_err
accept_dispatch(nng_link *nl, size_t bytes, errbuf *eb)
{
    const link_memory *m = nl->config.memory;
    const wire_hdr *h = (const wire_hdr *)(const void *)nl->recv_buffer;
    moe_err err = peer_check(nl, h, eb);
    if (err != MOE_OK) return err;

    link_place *place = link_place_at(m, h->micro_batch);
    const uint32_t last = atomic_load_explicit(&place->request_seq, memory_order_relaxed);
    const uint32_t sent = atomic_load_explicit(&nl->sent_seq[h->micro_batch], memory_order_acquire);
    if (last != sent || h->seq == last)
        return err_set(eb, MOE_EINVAL,
                       "dispatch %" PRIu32 " for a place that is at %" PRIu32 ", answered %" PRIu32,
                       h->seq, last, sent);

    if (link_msg_check_dispatch(h, bytes, &m->limits, nl->recv_marks, eb) == MOE_OK) {
        link_msg_store_dispatch(m, h, nl->recv_marks);
    } else {
        LOG_DEBUG("exchange", "dispatch refused: %s", eb->text);
        place->request = (wire_hdr){.seq = h->seq};
    }
    atomic_store_explicit(&place->request_seq, h->seq, memory_order_release);
    return MOE_OK;
}

/* Router.  Only the answer to what was asked last, with as many rows. */
static moe_err
accept_result(nng_link *nl, size_t bytes, errbuf *eb)
{
    const link_memory *m = nl->config.memory;
    const wire_hdr *h = (const wire_hdr *)(const void *)nl->recv_buffer;
    moe_err err = peer_check(nl, h, eb);
    if (err != MOE_OK) return err;
    if ((err = link_msg_check_result(h, bytes, &m->limits, eb)) != MOE_OK) return err;

    link_place *place = link_place_at(m, h->micro_batch);
    const uint32_t asked =
        atomic_load_explicit(&nl->sent_seq[h->micro_batch], memory_order_acquire);
    const uint32_t answered = atomic_load_explicit(&place->result_seq, memory_order_relaxed);
    if (h->seq != asked || asked == answered)
        return err_set(eb, MOE_EINVAL,
                       "result %" PRIu32 " for a place that asked %" PRIu32
                       " and got the answer to %" PRIu32,
                       h->seq, asked, answered);
    link_msg_store_result(m, h);
    atomic_store_explicit(&place->result_seq, h->seq, memory_order_release);
    return MOE_OK;
}

static moe_err
receive_one(nng_link *nl, errbuf *eb)
{
    uint64_t bytes = 0;
    int rv = transfer(nl, true, &bytes, sizeof bytes, 0);
    if (rv == 0) {
        if (bytes < sizeof(wire_hdr) || bytes > nl->recv_max)
            return err_set(eb, MOE_EINVAL, "message of %" PRIu64 " bytes, allowed %zu..%zu", bytes,
                           sizeof(wire_hdr), nl->recv_max);
        rv = transfer(nl, true, nl->recv_buffer, bytes, 0);
    }
    if (rv != 0) return err_set(eb, MOE_ECLOSED, "%s", nng_strerror(rv));
    return nl->is_router ? accept_result(nl, bytes, eb) : accept_dispatch(nl, bytes, eb);
}

static void
receive_all(nng_link *nl)
{
    errbuf eb;
    while (receive_one(nl, &eb) == MOE_OK) {
        futex_bump(nl->config.arrived);
    }
    mark_broken(nl, eb.text);
}

/* ---- hello ---- */

static bool
keys_equal(const unsigned char *a, const unsigned char *b)
{
    unsigned difference = 0; /* look at every byte: the time must not tell how many are right */
    for (size_t i = 0; i < EXCHANGE_KEY_BYTES; i++) {
        difference |= (unsigned)(a[i] ^ b[i]);
    }
    return difference == 0;
}

static hello
hello_of(const nng_link *nl, bool answer)
{
    hello h = {.magic = HELLO_MAGIC,
               .version = WIRE_VERSION,
               .answer = answer,
               .router_id = nl->config.router_id,
               .incarnation = nl->config.incarnation};
    if (!answer) memcpy(h.key, nl->config.key, sizeof h.key);
    return h;
}

static bool
hello_matches(const hello *got, const hello *want)
{
    const bool key = keys_equal(got->key, want->key);
    return key && got->magic == want->magic && got->version == want->version &&
           got->answer == want->answer && got->router_id == want->router_id &&
           got->incarnation == want->incarnation;
}

static bool
hello_accept(nng_link *nl)
{
    const uint64_t deadline = clock_now_ns() + HELLO_TIMEOUT_NS;
    const hello want = hello_of(nl, false);
    hello got, answer = hello_of(nl, true);
    return transfer(nl, true, &got, sizeof got, deadline) == 0 && hello_matches(&got, &want) &&
           transfer(nl, false, &answer, sizeof answer, deadline) == 0;
}

static moe_err
hello_say(nng_link *nl, uint64_t deadline, errbuf *eb)
{
    const hello want = hello_of(nl, true);
    hello mine = hello_of(nl, false), got;
    int rv = transfer(nl, false, &mine, sizeof mine, deadline);
    if (rv == 0) rv = transfer(nl, true, &got, sizeof got, deadline);
    if (rv == NNG_ETIMEDOUT) return err_set(eb, MOE_ETIMEDOUT, "no answer to the hello");
    if (rv != 0) return err_set(eb, MOE_EPERM, "closed at the hello: %s", nng_strerror(rv));
    if (!hello_matches(&got, &want))
        return err_set(eb, MOE_EPERM, "the answer to the hello is of another link or version");
    return MOE_OK;
}

/* ---- connecting ---- */

static int
start_thread(pthread_t *thread, void *(*fn)(void *), nng_link *nl, const char *name)
{
    sigset_t all, old;
    sigfillset(&all); /* signals are for the threads that know them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int rc = pthread_create(thread, NULL, fn, nl);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0) pthread_setname_np(*thread, name);
    return rc;
}

static void
close_listener(nng_link *nl)
{
    if (nl->listener == NULL) return;
    nng_stream_listener_close(nl->listener);
    nng_stream_listener_free(nl->listener);
    nl->listener = NULL;
    if (nl->ipc_path[0] != '\0') unlink(nl->ipc_path);
}

/* Accept until someone says the right hello; false when the link is being closed. */
static bool
accept_peer(nng_link *nl)
{
    while (!stopping(nl)) {
        nng_aio_set_timeout(nl->recv_aio, NNG_DURATION_INFINITE);
        nng_stream_listener_accept(nl->listener, nl->recv_aio);
        nng_aio_wait(nl->recv_aio);
        if (nng_aio_result(nl->recv_aio) != 0) {
            /* Say, out of descriptors: try again a little later. */
            const uint32_t bell = atomic_load(nl->config.send_bell);
            if (!stopping(nl))
                futex_sleep_change(nl->config.send_bell, bell, clock_now_ns() + ACCEPT_RETRY_NS);
            continue;
        }
        nl->stream = nng_aio_get_output(nl->recv_aio, 0);
        if (hello_accept(nl)) return true;
        if (!stopping(nl))
            LOG_WARN("exchange", "connection closed: no valid hello router=%" PRIu32,
                     nl->config.router_id);
        nng_stream_free(nl->stream);
        nl->stream = NULL;
    }
    return false;
}

static void *
receiver_main(void *arg)
{
    nng_link *nl = arg;
    if (!nl->is_router) {
        const bool connected = accept_peer(nl);
        close_listener(nl);
        if (!connected) return NULL;
        if (start_thread(&nl->sender, sender_main, nl, "link-send") != 0) {
            mark_broken(nl, "no thread for the sender");
            return NULL;
        }
        nl->sender_started = true;
    }
    receive_all(nl);
    return NULL;
}

static moe_err
link_create(nng_link **out, const nng_link_config *config, bool is_router, errbuf *eb)
{
    *out = NULL;
    nng_link *nl = calloc(1, sizeof *nl);
    if (nl == NULL) return err_set(eb, MOE_ENOMEM, "nng link: out of memory");
    nl->config = *config;
    nl->is_router = is_router;

    const exchange_limits *l = &config->memory->limits;
    const enum wire_kind sends = is_router ? WIRE_DISPATCH : WIRE_RESULT;
    const enum wire_kind receives = is_router ? WIRE_RESULT : WIRE_DISPATCH;
    const size_t marks = wire_seen_words(l) * sizeof(uint64_t);
    const size_t send_bytes = MESSAGE_OFFSET + (link_msg_bytes_max(l, sends) + 63) / 64 * 64;
    nl->recv_max = link_msg_bytes_max(l, receives);
    const size_t recv_bytes = (nl->recv_max + 63) / 64 * 64;
    moe_err err = shm_object_private(&nl->buffers, send_bytes + recv_bytes + 2 * marks, eb);
    if (err == MOE_OK && (nng_aio_alloc(&nl->recv_aio, NULL, NULL) != 0 ||
                          nng_aio_alloc(&nl->send_aio, NULL, NULL) != 0))
        err = err_set(eb, MOE_ENOMEM, "nng link: out of memory");
    if (err != MOE_OK) {
        nng_link_close(nl);
        return err;
    }
    nl->send_buffer = nl->buffers.base;
    nl->recv_buffer = nl->send_buffer + send_bytes;
    nl->send_marks = (uint64_t *)(void *)(nl->recv_buffer + recv_bytes);
    nl->recv_marks = nl->send_marks + wire_seen_words(l);
    *out = nl;
    return MOE_OK;
}

void
nng_link_close(nng_link *nl)
{
    if (nl == NULL) return;
    atomic_store_explicit(&nl->stopping, true, memory_order_release);
    if (nl->recv_aio != NULL) nng_aio_stop(nl->recv_aio);
    if (nl->send_aio != NULL) nng_aio_stop(nl->send_aio);
    futex_bump(nl->config.send_bell);
    if (nl->receiver_started) pthread_join(nl->receiver, NULL);
    if (nl->sender_started) pthread_join(nl->sender, NULL);
    close_listener(nl);
    if (nl->stream != NULL) {
        nng_stream_close(nl->stream);
        nng_stream_free(nl->stream);
    }
    nng_aio_free(nl->recv_aio);
    nng_aio_free(nl->send_aio);
    shm_object_close(&nl->buffers);
    free(nl);
}

/* tcp://host:0 -> the port that the OS chose. */
static int
write_bound_url(nng_link *nl, const char *url, char bound[EXCHANGE_URL_MAX])
{
    const size_t n = strlen(url);
    if (strncmp(url, "tcp", 3) != 0 || n < 2 || strcmp(url + n - 2, ":0") != 0) {
        snprintf(bound, EXCHANGE_URL_MAX, "%s", url);
        return 0;
    }
    int port = 0;
    const int rv = nng_stream_listener_get_int(nl->listener, NNG_OPT_TCP_BOUND_PORT, &port);
    if (rv == 0) snprintf(bound, EXCHANGE_URL_MAX, "%.*s:%d", (int)(n - 2), url, port);
    return rv;
}

moe_err
nng_link_listen(nng_link **out, const nng_link_config *config, const char *url,
                char bound_url[EXCHANGE_URL_MAX], errbuf *eb)
{
    nng_link *nl;
    moe_err err = link_create(&nl, config, false, eb);
    *out = NULL;
    if (err != MOE_OK) return err;

    int rv = nng_stream_listener_alloc(&nl->listener, url);
    if (rv == 0 && strncmp(url, "ipc://", 6) == 0) {
        snprintf(nl->ipc_path, sizeof nl->ipc_path, "%s", url + 6);
        rv = nng_stream_listener_set_int(nl->listener, NNG_OPT_IPC_PERMISSIONS, 0600);
    }
    if (rv == 0) rv = nng_stream_listener_listen(nl->listener);
    if (rv == 0) rv = write_bound_url(nl, url, bound_url);
    if (rv != 0) {
        err = err_set(eb, MOE_EIO, "listening on %s: %s", url, nng_strerror(rv));
        goto fail;
    }
    if (start_thread(&nl->receiver, receiver_main, nl, "link-recv") != 0) {
        err = err_set(eb, MOE_EIO, "listening on %s: no thread", url);
        goto fail;
    }
    nl->receiver_started = true;
    *out = nl;
    return MOE_OK;
fail:
    nng_link_close(nl);
    return err;
}

static int
dial(nng_link *nl, const char *url, uint64_t deadline)
{
    nng_stream_dialer *dialer;
    int rv = nng_stream_dialer_alloc(&dialer, url);
    if (rv != 0) return rv;
    nng_stream_dialer_set_bool(dialer, NNG_OPT_TCP_KEEPALIVE, true); /* not for ipc: may fail */
    set_deadline(nl->recv_aio, deadline);
    nng_stream_dialer_dial(dialer, nl->recv_aio);
    nng_aio_wait(nl->recv_aio);
    rv = nng_aio_result(nl->recv_aio);
    if (rv == 0) nl->stream = nng_aio_get_output(nl->recv_aio, 0);
    nng_stream_dialer_free(dialer);
    return rv;
}

moe_err
nng_link_dial(nng_link **out, const nng_link_config *config, const char *url, uint32_t timeout_ms,
              errbuf *eb)
{
    nng_link *nl;
    moe_err err = link_create(&nl, config, true, eb);
    *out = NULL;
    if (err != MOE_OK) return err;

    const uint64_t deadline = clock_now_ns() + timeout_ms * NS_PER_MS;
    const int rv = dial(nl, url, deadline);
    if (rv != 0) {
        err = err_set(eb, rv == NNG_ETIMEDOUT ? MOE_ETIMEDOUT : MOE_EIO, "dialling %s: %s", url,
                      nng_strerror(rv));
        goto fail;
    }
    if ((err = hello_say(nl, deadline, eb)) != MOE_OK) {
        err_wrap(eb, err, "%s", url);
        goto fail;
    }
    err = MOE_EIO;
    if (start_thread(&nl->receiver, receiver_main, nl, "link-recv") != 0) goto no_thread;
    nl->receiver_started = true;
    if (start_thread(&nl->sender, sender_main, nl, "link-send") != 0) goto no_thread;
    nl->sender_started = true;
    *out = nl;
    return MOE_OK;
no_thread:
    err_set(eb, err, "dialling %s: no thread", url);
fail:
    nng_link_close(nl);
    return err;
}
