/* Design notes
 *
 * A connection (a `peer`) hands its frames over one after the other.  A call takes one of the
 * server's `concurrency` slots, which owns the arena that the request is unpacked into:
 *
 *     FREE -> TAKEN -> HANDLING -> FREE
 *                          \-> ABANDONED -> (released by its handler after rpc_server_stop)
 *
 * While no slot is free, peers stand in line with their next call, and are not read meanwhile.
 * Nor is a peer that does not read its replies: they wait in its queue, bounded by bytes.
 *
 * server->mutex guards slots, peers, `stopping` and the memory of replies.  nng's functions called
 * under it don't block and run none of our callbacks on this thread.
 *
 * The keeper is the server's one thread: it frees lost connections, which nng's threads can't do,
 * and accepts again after a failure.
 *
 * The server's memory is counted: one reference for its owner, one for each call that a handler
 * holds.  A peer's: one for its connection, one for each such call.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc_server_impl.h"

#define CONCURRENCY_DEFAULT 8
#define CONNECTION_DEFAULT 256
#define CONNECTION_LIMIT 65536
#define KEPT_REPLY_COUNT 512
#define KEPT_REPLY_BYTES 4096
#define ACCEPT_RETRY_MS 100 /* say, out of descriptors */
#define FLUSH_LIMIT_MS 1000 /* of a stop: a peer that doesn't read its replies loses them */

static void
server_free(rpc_server *s)
{
    for (unsigned i = 0; s->calls != NULL && i < s->concurrency; i++)
        arena_free(s->calls[i].memory);
    free(s->calls);
    rpc_dedup_free(s->seen);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    explicit_bzero(&s->secret, sizeof s->secret);
    free(s);
}

void
server_unref(rpc_server *s)
{
    pthread_mutex_lock(&s->mutex);
    const bool last = --s->references == 0;
    pthread_mutex_unlock(&s->mutex);
    if (last) server_free(s);
}

void
peer_unref_locked(peer *p)
{
    if (--p->references == 0) free(p);
}

/* ---- connections ---- */

/* NULL: refused.  Takes the stream over. */
static peer *
peer_create(rpc_server *s, nng_stream *stream)
{
    peer *p = calloc(1, sizeof *p);
    if (p == NULL || rpc_nonce_make(p->nonce) != MOE_OK) {
        nng_stream_free(stream);
        free(p);
        return NULL;
    }
    p->server = s;
    p->references = 1;
    p->replies_end = &p->replies;
    const rpc_conn_owner owner = peer_conn_owner(p);
    if (rpc_conn_open(&p->conn, stream, &owner) == MOE_OK) return p;
    free(p);
    return NULL;
}

static void
add_peer(rpc_server *s, nng_stream *stream)
{
    peer *p = peer_create(s, stream);
    pthread_mutex_lock(&s->mutex);
    if (p != NULL) {
        p->id = ++s->last_peer_id;
        p->next = s->peers;
        s->peers = p;
        s->peer_count++;
        rpc_conn_start_locked(p->conn);
    }
    const bool refused = p == NULL || s->stopping || s->peer_count > s->connection_max;
    if (refused && p != NULL) rpc_conn_close_locked(p->conn);
    const bool log = refused && !s->stopping;
    pthread_mutex_unlock(&s->mutex);
    if (log) LOG_WARN("rpc", "%s: connection refused, too many", s->url);
}

static void
accept_locked(rpc_server *s)
{
    s->accept_at_ns = 0;
    if (!s->stopping) nng_stream_listener_accept(s->listener, s->acceptor);
}

static void
on_accepted(void *arg)
{
    rpc_server *s = arg;
    const int rc = nng_aio_result(s->acceptor);
    if (rc == 0) add_peer(s, nng_aio_get_output(s->acceptor, 0));
    pthread_mutex_lock(&s->mutex);
    const bool failed = rc != 0 && !s->stopping;
    if (rc == 0) accept_locked(s);
    if (failed) {
        s->accept_at_ns = clock_now_ns() + ACCEPT_RETRY_MS * NS_PER_MS;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    if (failed) LOG_WARN("rpc", "%s: accept: %s", s->url, nng_strerror(rc));
}

/* Give up the connection's reference; its calls' stay. */
static void
free_lost_peer_locked(rpc_server *s, peer **at)
{
    peer *p = *at;
    *at = p->next;
    pthread_mutex_unlock(&s->mutex);
    rpc_conn_free(p->conn);
    pthread_mutex_lock(&s->mutex);
    p->conn = NULL;
    while (p->replies != NULL) {
        rpc_frame *frame = p->replies;
        p->replies = frame->next;
        free(frame);
    }
    s->peer_count--;
    peer_unref_locked(p);
    pthread_cond_broadcast(&s->changed);
}

static bool
free_one_lost_locked(rpc_server *s)
{
    for (peer **at = &s->peers; *at != NULL; at = &(*at)->next) {
        if (!(*at)->lost) continue;
        free_lost_peer_locked(s, at);
        return true;
    }
    return false;
}

/* until_ns 0: no limit.  false: it passed. */
static bool
wait_locked(rpc_server *s, uint64_t until_ns)
{
    if (until_ns == 0) return pthread_cond_wait(&s->changed, &s->mutex) == 0;
    const struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                                   .tv_nsec = (long)(until_ns % NS_PER_S)};
    return pthread_cond_timedwait(&s->changed, &s->mutex, &until) == 0;
}

static void *
keeper_main(void *arg)
{
    rpc_server *s = arg;
    pthread_mutex_lock(&s->mutex);
    while (!s->keeper_ends) {
        if (free_one_lost_locked(s)) continue;
        if (s->accept_at_ns != 0 && clock_now_ns() >= s->accept_at_ns)
            accept_locked(s);
        else
            wait_locked(s, s->accept_at_ns);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- start and stop ---- */

static moe_err
check_options(const rpc_server_options *opt, errbuf *eb)
{
    const moe_err err = rpc_url_check(opt->url, eb);
    if (err != MOE_OK) return err;
    if (opt->message_bytes_max > RPC_MESSAGE_BYTES_MAX || opt->concurrency > RPC_CONCURRENCY_MAX ||
        opt->connection_max > CONNECTION_LIMIT)
        return err_set(eb, MOE_ERANGE, "%s: an option is outside its limits", opt->url);
    return rpc_service_check(opt->service->descriptor, eb);
}

static void
init_locks(rpc_server *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&s->mutex, NULL);
}

static moe_err
server_create(rpc_server **out, const rpc_server_options *opt)
{
    rpc_server *s = calloc(1, sizeof *s);
    *out = s;
    if (s == NULL) return MOE_ENOMEM;
    init_locks(s);
    s->references = 1;
    s->line_end = &s->line;
    snprintf(s->url, sizeof s->url, "%s", opt->url);
    s->service = opt->service;
    s->fingerprint = rpc_service_fingerprint(opt->service->descriptor);
    s->message_bytes_max =
        opt->message_bytes_max != 0 ? opt->message_bytes_max : RPC_MESSAGE_BYTES_DEFAULT;
    s->unpacked_bytes_max = opt->unpacked_bytes_max != 0 ? opt->unpacked_bytes_max
                                                         : 4 * s->message_bytes_max + (1u << 20);
    s->connection_max = opt->connection_max != 0 ? opt->connection_max : CONNECTION_DEFAULT;
    s->concurrency = opt->concurrency != 0 ? opt->concurrency : CONCURRENCY_DEFAULT;
    s->calls = calloc(s->concurrency, sizeof *s->calls);
    if (s->calls == NULL) return MOE_ENOMEM;
    for (unsigned i = s->concurrency; i-- > 0;) {
        rpc_call *call = &s->calls[i];
        const moe_err err = arena_create(&call->memory, s->unpacked_bytes_max);
        if (err != MOE_OK) return err;
        call->server = s;
        call->next_free = s->free_calls;
        s->free_calls = call;
    }
    return rpc_dedup_create(&s->seen, KEPT_REPLY_COUNT + 2 * s->concurrency, KEPT_REPLY_BYTES);
}

/* The url with the port that the system chose. */
static void
resolve_port(rpc_server *s)
{
    int port;
    char *colon = strrchr(s->url, ':');
    if (strncmp(s->url, "tcp", 3) != 0 || colon == NULL || strcmp(colon, ":0") != 0) return;
    if (nng_stream_listener_get_int(s->listener, NNG_OPT_TCP_BOUND_PORT, &port) != 0) return;
    snprintf(colon, sizeof s->url - (size_t)(colon - s->url), ":%d", port);
}

/* nng removes an ipc file that nobody answers on, and ours when it closes. */
static moe_err
server_listen(rpc_server *s, errbuf *eb)
{
    int rc = nng_stream_listener_alloc(&s->listener, s->url);
    if (rc == 0) {
        /* Of these, each transport knows its own. */
        nng_stream_listener_set_bool(s->listener, NNG_OPT_TCP_NODELAY, true);
        nng_stream_listener_set_bool(s->listener, NNG_OPT_TCP_KEEPALIVE, true);
        if (strncmp(s->url, RPC_IPC_PREFIX, strlen(RPC_IPC_PREFIX)) == 0)
            rc = nng_stream_listener_set_int(s->listener, NNG_OPT_IPC_PERMISSIONS, 0600);
    }
    if (rc == 0) rc = nng_aio_alloc(&s->acceptor, on_accepted, s);
    if (rc == 0) rc = nng_stream_listener_listen(s->listener);
    if (rc != 0) return err_set(eb, MOE_EIO, "can't listen on %s: %s", s->url, nng_strerror(rc));
    resolve_port(s);
    return MOE_OK;
}

static moe_err
start_keeper(rpc_server *s, errbuf *eb)
{
    sigset_t all, old;
    sigfillset(&all); /* signals are for the threads that know them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int rc = pthread_create(&s->keeper, NULL, keeper_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) return err_set(eb, MOE_EIO, "%s: no thread", s->url);
    pthread_setname_np(s->keeper, "rpc-server");
    s->keeper_started = true;
    return MOE_OK;
}

moe_err
rpc_server_start(rpc_server **out, const rpc_server_options *opt, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_options(opt, eb);
    if (err != MOE_OK) return err;

    rpc_server *s = NULL;
    err = server_create(&s, opt);
    if (err != MOE_OK) err_set(eb, err, "%s: out of memory", opt->url);
    if (err == MOE_OK) err = rpc_secret_set_own(&s->secret, opt->secret, opt->secret_bytes, eb);
    if (err == MOE_OK) err = server_listen(s, eb);
    if (err == MOE_OK) err = start_keeper(s, eb);
    if (err != MOE_OK) {
        rpc_server_stop(s);
        return err;
    }
    pthread_mutex_lock(&s->mutex);
    accept_locked(s);
    pthread_mutex_unlock(&s->mutex);
    *out = s;
    return MOE_OK;
}

/* Let what was answered go out, then hang up. */
static void
close_peers_locked(rpc_server *s)
{
    const uint64_t until_ns = clock_now_ns() + FLUSH_LIMIT_MS * NS_PER_MS;
    for (peer *p = s->peers; p != NULL; p = p->next) {
        if (!p->lost) rpc_conn_end_locked(p->conn);
    }
    while (s->peer_count != 0 && wait_locked(s, until_ns)) {
    }
    for (peer *p = s->peers; p != NULL; p = p->next) {
        if (!p->lost) rpc_conn_close_locked(p->conn);
    }
    while (s->peer_count != 0)
        wait_locked(s, 0);
}

void
rpc_server_stop(rpc_server *s)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->mutex);
    s->stopping = true;
    pthread_mutex_unlock(&s->mutex);
    if (s->listener != NULL) nng_stream_listener_close(s->listener);
    if (s->acceptor != NULL) nng_aio_stop(s->acceptor);

    pthread_mutex_lock(&s->mutex);
    server_abandon_calls_locked(s);
    close_peers_locked(s);
    s->keeper_ends = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    if (s->keeper_started) pthread_join(s->keeper, NULL);

    if (s->listener != NULL) nng_stream_listener_free(s->listener);
    nng_aio_free(s->acceptor);
    server_unref(s);
}

const char *
rpc_server_url(const rpc_server *s)
{
    return s->url;
}
