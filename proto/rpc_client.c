/* Design notes
 *
 * A client has `concurrency` call slots and at most one connection:
 *
 *     FREE -> QUEUED -> SENT -> FREE
 *
 * A queued call is sent when the connection has room for it, in the order of the calls, and from
 * then on belongs to that connection: when it is lost, so is the call.  Calls that are still queued
 * wait for the next one.  Whoever takes a slot out of the queue, or out of SENT, ends its call.
 *
 * With a secret, a connection's first call makes it prove itself by the handshake of rpc_auth.h;
 * calls stay queued meanwhile.  A refusal ends them; the next call tries again.
 *
 * The keeper is the client's one thread: it dials, frees lost connections, and ends calls whose
 * deadline passed.  What it waits for is in `wake_ns`, so that a new call wakes it only when its
 * deadline is earlier.
 *
 * client->mutex guards slots, queue and connection.  It is never held while a callback is called;
 * nng's functions called under it don't block and run none of our callbacks on this thread.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "proto/rpc_client_impl.h"

#define CONCURRENCY_DEFAULT 16

/* ---- the keeper ---- */

static void
complete_expired(call_slot *list, bool connected)
{
    while (list != NULL) {
        char text[128];
        call_slot *slot = list;
        list = slot->next;
        const bool sent = slot->frame == NULL;
        snprintf(text, sizeof text, "deadline of %u ms passed%s", (unsigned)slot->timeout_ms,
                 sent        ? ""
                 : connected ? ", not sent"
                             : ", no connection");
        client_complete_error(slot, RPC_DEADLINE_EXCEEDED, text);
    }
}

static void
drop_lost_conn_locked(rpc_client *c)
{
    char text[MOE_ERR_TEXT_MAX + 64];
    uint64_t next_ns;
    rpc_conn *conn = c->conn;
    call_slot *list = client_claim_locked(c, CALLS_SENT, &next_ns);
    snprintf(text, sizeof text, "connection lost before the reply came%s", c->farewell);
    c->farewell[0] = '\0';
    c->conn = NULL;
    c->lost = false;
    pthread_mutex_unlock(&c->mutex);
    client_complete_all(list, RPC_UNAVAILABLE, text);
    rpc_conn_free(conn);
    pthread_mutex_lock(&c->mutex);
    free(c->proof_frame);
    c->proof_frame = NULL;
    c->dial_at_ns = clock_now_ns() + c->backoff_ms * NS_PER_MS;
}

static void
dial_locked(rpc_client *c)
{
    c->dialling = true;
    c->backoff_ms = c->backoff_ms * 2 < RECONNECT_MS_MAX ? c->backoff_ms * 2 : RECONNECT_MS_MAX;
    nng_stream_dialer_dial(c->dialer, c->dial_aio);
}

static void
on_dialled(void *arg)
{
    rpc_client *c = arg;
    const rpc_conn_owner owner = client_conn_owner(c);
    rpc_conn *conn = NULL;
    if (nng_aio_result(c->dial_aio) == 0)
        rpc_conn_open(&conn, nng_aio_get_output(c->dial_aio, 0), &owner);
    pthread_mutex_lock(&c->mutex);
    c->dialling = false;
    c->dial_at_ns = clock_now_ns() + c->backoff_ms * NS_PER_MS;
    if (conn != NULL) {
        c->conn = conn;
        c->proof = UNPROVED;
        atomic_store(&c->connected, true);
        rpc_conn_start_locked(conn);
    }
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->mutex);
}

/* Until wake_ns at the latest. */
static void
sleep_locked(rpc_client *c, uint64_t wake_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(wake_ns / NS_PER_S),
                                   .tv_nsec = (long)(wake_ns % NS_PER_S)};
    c->wake_ns = wake_ns;
    if (wake_ns == UINT64_MAX)
        pthread_cond_wait(&c->wake, &c->mutex);
    else
        pthread_cond_timedwait(&c->wake, &c->mutex, &until);
    c->wake_ns = 0;
}

static void
keep_locked(rpc_client *c)
{
    while (!c->closing) {
        uint64_t wake_ns;
        call_slot *expired = client_claim_locked(c, CALLS_EXPIRED, &wake_ns);
        const bool to_dial = c->conn == NULL && !c->dialling;
        if (expired != NULL) {
            const bool connected = c->conn != NULL;
            pthread_mutex_unlock(&c->mutex);
            complete_expired(expired, connected);
            pthread_mutex_lock(&c->mutex);
        } else if (c->lost) {
            drop_lost_conn_locked(c);
        } else if (to_dial && clock_now_ns() >= c->dial_at_ns) {
            dial_locked(c);
        } else {
            if (to_dial && c->dial_at_ns < wake_ns) wake_ns = c->dial_at_ns;
            sleep_locked(c, wake_ns);
        }
    }
}

static void *
keeper_main(void *arg)
{
    rpc_client *c = arg;
    uint64_t next_ns;
    pthread_mutex_lock(&c->mutex);
    keep_locked(c);
    pthread_mutex_unlock(&c->mutex);

    nng_aio_stop(c->dial_aio); /* from here on, conn is only changed below */
    pthread_mutex_lock(&c->mutex);
    call_slot *list = client_claim_locked(c, CALLS_ALL, &next_ns);
    rpc_conn *conn = c->conn;
    c->conn = NULL;
    pthread_mutex_unlock(&c->mutex);
    client_complete_all(list, RPC_CANCELLED, "this client is closing");
    /* The dialer goes first: the stream holds on to it, and releases it on a thread of nng's. */
    nng_stream_dialer_free(c->dialer);
    c->dialer = NULL;
    rpc_conn_free(conn); /* waits for callbacks that are still running */
    return NULL;
}

/* ---- open and close ---- */

static void
client_free(rpc_client *c)
{
    if (c->dialer != NULL) nng_stream_dialer_free(c->dialer);
    nng_aio_free(c->dial_aio);
    free(c->proof_frame);
    free(c->slots);
    pthread_cond_destroy(&c->freed);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->mutex);
    explicit_bzero(&c->secret, sizeof c->secret);
    free(c);
}

static void
init_locks(rpc_client *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->wake, &attr);
    pthread_cond_init(&c->freed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&c->mutex, NULL);
}

static moe_err
client_create(rpc_client **out, const rpc_client_options *opt)
{
    rpc_client *c = calloc(1, sizeof *c);
    if (c == NULL) return MOE_ENOMEM;
    init_locks(c);
    c->lost_bell = opt->lost_bell;
    c->service = (ProtobufCService){.descriptor = opt->service, .invoke = client_stub_invoke};
    snprintf(c->url, sizeof c->url, "%s", opt->url);
    c->fingerprint = rpc_service_fingerprint(opt->service);
    c->message_bytes_max =
        opt->message_bytes_max != 0 ? opt->message_bytes_max : RPC_MESSAGE_BYTES_DEFAULT;
    c->unpacked_bytes_max = opt->unpacked_bytes_max != 0 ? opt->unpacked_bytes_max
                                                         : 4 * c->message_bytes_max + (1u << 20);
    c->default_timeout_ms =
        opt->default_timeout_ms != 0 ? opt->default_timeout_ms : RPC_TIMEOUT_MS_DEFAULT;
    c->concurrency = opt->concurrency != 0 ? opt->concurrency : CONCURRENCY_DEFAULT;
    c->backoff_ms = RECONNECT_MS_MIN;
    c->queue_end = &c->queue;
    c->slots = calloc(c->concurrency, sizeof *c->slots);
    *out = c;
    if (c->slots == NULL) return MOE_ENOMEM;
    for (unsigned i = c->concurrency; i-- > 0;) {
        c->slots[i] = (call_slot){.client = c, .next = c->free_slots};
        c->free_slots = &c->slots[i];
    }
    return MOE_OK;
}

bool
rpc_client_connected(const rpc_client *c)
{
    return atomic_load(&c->connected);
}

uint32_t
rpc_client_losses(const rpc_client *c)
{
    return atomic_load(&c->losses);
}

const char *
rpc_client_url(const rpc_client *c)
{
    return c->url;
}

static moe_err
start_dialling(rpc_client *c, errbuf *eb)
{
    int rc = nng_stream_dialer_alloc(&c->dialer, c->url);
    if (rc == 0) rc = nng_aio_alloc(&c->dial_aio, on_dialled, c);
    if (rc != 0)
        return err_set(eb, rc == NNG_ENOMEM ? MOE_ENOMEM : MOE_EIO, "can't dial %s: %s", c->url,
                       nng_strerror(rc));
    /* Of tcp; ipc knows neither. */
    nng_stream_dialer_set_bool(c->dialer, NNG_OPT_TCP_NODELAY, true);
    nng_stream_dialer_set_bool(c->dialer, NNG_OPT_TCP_KEEPALIVE, true);

    sigset_t all, old;
    sigfillset(&all); /* signals are for the threads that know them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    c->keeper_started = pthread_create(&c->keeper, NULL, keeper_main, c) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!c->keeper_started) return err_set(eb, MOE_EIO, "can't dial %s: no thread", c->url);
    pthread_setname_np(c->keeper, "rpc-client");
    return MOE_OK;
}

static moe_err
check_options(const rpc_client_options *opt, errbuf *eb)
{
    const moe_err err = rpc_url_check(opt->url, eb);
    if (err != MOE_OK) return err;
    if (opt->message_bytes_max > RPC_MESSAGE_BYTES_MAX || opt->concurrency > RPC_CONCURRENCY_MAX ||
        opt->default_timeout_ms > RPC_TIMEOUT_MS_MAX)
        return err_set(eb, MOE_ERANGE, "%s: an option is outside its limits", opt->url);
    return rpc_service_check(opt->service, eb);
}

moe_err
rpc_client_open(rpc_client **out, const rpc_client_options *opt, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_options(opt, eb);
    if (err != MOE_OK) return err;

    rpc_client *c = NULL;
    err = client_create(&c, opt);
    if (err == MOE_ENOMEM) err_set(eb, err, "%s: out of memory", opt->url);
    if (err == MOE_OK) err = rpc_secret_set_own(&c->secret, opt->secret, opt->secret_bytes, eb);
    if (err == MOE_OK &&
        getrandom(&c->incarnation, sizeof c->incarnation, 0) != (ssize_t)sizeof c->incarnation)
        err = err_set(eb, MOE_EIO, "no random numbers from the system");
    if (err == MOE_OK) {
        c->incarnation |= 1; /* never 0 */
        err = start_dialling(c, eb);
    }
    if (err != MOE_OK) {
        rpc_client_close(c);
        return err;
    }
    *out = c;
    return MOE_OK;
}

void
rpc_client_close(rpc_client *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_signal(&c->wake);
    pthread_cond_broadcast(&c->freed);
    pthread_mutex_unlock(&c->mutex);

    if (c->keeper_started) pthread_join(c->keeper, NULL);
    pthread_mutex_lock(&c->mutex);
    while (c->waiting != 0)
        pthread_cond_wait(&c->freed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    client_free(c);
}
