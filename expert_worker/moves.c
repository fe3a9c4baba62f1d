#include "expert_worker/moves.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "expert_worker/job_thread.h"

enum { JOB_HOST, JOB_HASH, JOB_RELEASE, JOB_FETCH };

static const char *const kind_names[] = {"host", "hash", "release"};

struct moves {
    moves_config config;
    pool *pool;
    job_thread *jobs;    /* host, hash, release */
    job_thread *fetches; /* of its own: two workers may copy from each other */
    char *block;         /* [FETCH_BLOCK_BYTES] that thread's */
    _Atomic uint64_t fetched_bytes, fetch_failures, served_bytes;
};

static void
quiesce(void *arg)
{
    compute_quiesce(arg);
}

/* Adds the hashes of experts [count], all of which are hosted, and answers the call. */
static moe_err
reply_hashes(const expert_store *s, const uint32_t *experts, size_t count,
             Conclave__HostReply reply, rpc_call *call, errbuf *eb)
{
    reply.hashes = malloc((count + 1) * sizeof *reply.hashes);
    if (reply.hashes == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = MOE_OK;
    for (size_t i = 0; i < count && !err; i++) {
        if (!expert_store_hash(s, experts[i], &reply.hashes[i]))
            err = err_set(eb, MOE_ENOTFOUND, "expert %u is not hosted", experts[i]);
    }
    reply.n_hashes = count;
    reply.bytes = count * expert_store_layout(s)->slot_bytes;
    if (!err) rpc_reply(call, &reply.base);
    free(reply.hashes);
    return err;
}

/* The peers that a request names, if they are to be asked; NULL: they are not. */
static moe_err
make_fetcher(const moves *m, const expert_store *s, const Conclave__HostRequest *r, fetcher **out,
             errbuf *eb)
{
    *out = NULL;
    if (m->config.source == EXPERT_SOURCE_DISK || r->n_peers == 0) return MOE_OK;
    return fetcher_create(out,
                          &(fetcher_config){.request = r,
                                            .layout = *expert_store_layout(s),
                                            .fingerprint = m->config.fingerprint,
                                            .far_only = m->config.source == EXPERT_SOURCE_AUTO,
                                            .cancel = job_thread_cancelled(m->jobs)},
                          eb);
}

static void
note_fetches(moves *m, fetcher *f, Conclave__HostReply *reply)
{
    if (f == NULL) return;
    fetcher_get_report(f, &reply->peer_bytes, &reply->peer_failures);
    atomic_fetch_add(&m->fetched_bytes, reply->peer_bytes);
    atomic_fetch_add(&m->fetch_failures, reply->peer_failures);
}

static moe_err
host(moves *m, expert_store *s, const job *j, errbuf *eb)
{
    const Conclave__HostRequest *r = j->request;
    const uint64_t start = clock_now_ns();
    const uint32_t before = expert_store_count(s);
    Conclave__HostReply reply = CONCLAVE__HOST_REPLY__INIT;
    fetcher *f;
    moe_err err = make_fetcher(m, s, r, &f, eb);
    if (err) return err;
    store_growth growth = m->config.growth;
    growth.pool = m->pool;
    growth.bytes_per_s = r->bytes_per_s;
    growth.cancel = job_thread_cancelled(m->jobs);
    if (f != NULL)
        growth.source = (weight_source){fetcher_fill, f, m->config.source == EXPERT_SOURCE_PEER};
    err = expert_store_host(s, &growth, r->experts, (uint32_t)r->n_experts, eb);
    note_fetches(m, f, &reply);
    fetcher_free(f);
    if (err) return err;
    LOG_INFO("moves",
             "experts hosted move=%llu experts=%zu new=%u bytes_hosted=%llu peer_bytes=%llu "
             "peer_failures=%u ms=%llu",
             (unsigned long long)r->move, r->n_experts, expert_store_count(s) - before,
             (unsigned long long)expert_store_bytes(s), (unsigned long long)reply.peer_bytes,
             reply.peer_failures, (unsigned long long)((clock_now_ns() - start) / NS_PER_MS));
    return reply_hashes(s, r->experts, r->n_experts, reply, j->call, eb);
}

static moe_err
release(moves *m, expert_store *s, const job *j)
{
    const Conclave__ReleaseRequest *r = j->request;
    compute_set_epoch(m->config.compute, r->epoch);
    expert_store_release(s, r->experts, (uint32_t)r->n_experts, quiesce, m->config.compute);
    LOG_INFO("moves", "experts released epoch=%llu experts=%zu bytes_hosted=%llu",
             (unsigned long long)r->epoch, r->n_experts, (unsigned long long)expert_store_bytes(s));
    Conclave__ReleaseReply reply = CONCLAVE__RELEASE_REPLY__INIT;
    reply.bytes_hosted = expert_store_bytes(s);
    rpc_reply(j->call, &reply.base);
    return MOE_OK;
}

static void
run_job(void *arg, const job *j)
{
    moves *m = arg;
    errbuf eb = {{0}};
    moe_err err;
    expert_store *s = compute_store(m->config.compute, 0);
    if (s == NULL) {
        rpc_fail(j->call, RPC_FAILED_PRECONDITION, "nothing was loaded yet");
        return;
    }
    switch (j->kind) {
    case JOB_HOST: err = host(m, s, j, &eb); break;
    case JOB_HASH: {
        const Conclave__HashRequest *r = j->request;
        const Conclave__HostReply reply = CONCLAVE__HOST_REPLY__INIT;
        err = reply_hashes(s, r->experts, r->n_experts, reply, j->call, &eb);
        break;
    }
    default: err = release(m, s, j);
    }
    if (!err) return;
    LOG_WARN("moves", "%s failed move=%llu: %s", kind_names[j->kind], (unsigned long long)j->tag,
             eb.text);
    rpc_fail_err(j->call, err, &eb);
}

static void
run_fetch(void *arg, const job *j)
{
    moves *m = arg;
    expert_store *s = compute_store(m->config.compute, 0);
    if (s == NULL)
        rpc_fail(j->call, RPC_FAILED_PRECONDITION, "nothing was loaded yet");
    else
        atomic_fetch_add(&m->served_bytes,
                         fetch_serve(s, m->config.fingerprint, j->request, m->block, j->call));
}

moe_err
moves_start(moves **out, const moves_config *config, errbuf *eb)
{
    *out = NULL;
    moves *m = calloc(1, sizeof *m);
    if (m == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    m->config = *config;
    m->block = malloc(FETCH_BLOCK_BYTES);
    /* One thread, the caller's: the others' cores are for what is being served. */
    moe_err err = m->block == NULL ? MOE_ENOMEM : pool_create(&m->pool, 1);
    if (err) err_set(eb, err, "can't start the thread of moves");
    if (!err) err = job_thread_start(&m->jobs, &(job_thread_config){"moves", run_job, m}, eb);
    if (!err)
        err = job_thread_start(&m->fetches, &(job_thread_config){"fetches", run_fetch, m}, eb);
    if (err) {
        moves_stop(m);
        return err;
    }
    *out = m;
    return MOE_OK;
}

void
moves_stop(moves *m)
{
    if (m == NULL) return;
    job_thread_stop(m->jobs);
    job_thread_stop(m->fetches);
    pool_free(m->pool);
    free(m->block);
    free(m);
}

void
moves_host(moves *m, const Conclave__HostRequest *request, rpc_call *call)
{
    job_thread_push(m->jobs, &(job){JOB_HOST, request->move, request, call, false});
}

void
moves_hash(moves *m, const Conclave__HashRequest *request, rpc_call *call)
{
    job_thread_push(m->jobs, &(job){JOB_HASH, 0, request, call, false});
}

void
moves_release(moves *m, const Conclave__ReleaseRequest *request, rpc_call *call)
{
    job_thread_push(m->jobs, &(job){JOB_RELEASE, 0, request, call, false});
}

void
moves_fetch(moves *m, const Conclave__FetchRequest *request, rpc_call *call)
{
    job_thread_push(m->fetches, &(job){JOB_FETCH, 0, request, call, false});
}

void
moves_cancel(moves *m, uint64_t move)
{
    job_thread_cancel(m->jobs, move);
}

void
moves_pause(moves *m)
{
    job_thread_pause(m->jobs, "the experts are loaded anew");
    job_thread_pause(m->fetches, "the experts are loaded anew");
}

void
moves_resume(moves *m)
{
    job_thread_resume(m->jobs);
    job_thread_resume(m->fetches);
}

void
moves_get_stats(const moves *m, moves_stats *out)
{
    *out = (moves_stats){.fetched_bytes = atomic_load(&m->fetched_bytes),
                         .fetch_failures = atomic_load(&m->fetch_failures),
                         .served_bytes = atomic_load(&m->served_bytes)};
}
