#include "expert_worker/moves.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

#define QUEUE_MAX 16
#define MOVE_NICE 10

typedef enum job_kind { JOB_HOST, JOB_HASH, JOB_RELEASE } job_kind;

static const char *const kind_names[] = {"host", "hash", "release"};

typedef struct job {
    job_kind kind;
    uint64_t move; /* JOB_HOST */
    const void *request;
    rpc_call *call;
    bool cancelled;
} job;

struct moves {
    moves_config config;
    pool *pool;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    job queue[QUEUE_MAX];
    uint32_t queued;
    bool stopping, paused, busy;
    uint64_t current;    /* the move under way */
    _Atomic bool cancel; /* what is under way */
};

static void
quiesce(void *arg)
{
    compute_quiesce(arg);
}

/* With the hashes of experts [count], all of which are hosted; answers the call. */
static moe_err
reply_hashes(const expert_store *s, const uint32_t *experts, size_t count, rpc_call *call,
             errbuf *eb)
{
    Conclave__HostReply reply = CONCLAVE__HOST_REPLY__INIT;
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

static moe_err
host(moves *m, expert_store *s, const job *j, errbuf *eb)
{
    const Conclave__HostRequest *r = j->request;
    const uint64_t start = clock_now_ns();
    store_growth growth = m->config.growth;
    growth.pool = m->pool;
    growth.bytes_per_s = r->bytes_per_s;
    growth.cancel = &m->cancel;
    const uint32_t before = expert_store_count(s);
    const moe_err err = expert_store_host(s, &growth, r->experts, (uint32_t)r->n_experts, eb);
    if (err) return err;
    LOG_INFO("moves", "experts hosted move=%llu experts=%zu new=%u bytes_hosted=%llu ms=%llu",
             (unsigned long long)r->move, r->n_experts, expert_store_count(s) - before,
             (unsigned long long)expert_store_bytes(s),
             (unsigned long long)((clock_now_ns() - start) / NS_PER_MS));
    return reply_hashes(s, r->experts, r->n_experts, j->call, eb);
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
run_job(moves *m, const job *j)
{
    errbuf eb = {{0}};
    moe_err err;
    expert_store *s = compute_store(m->config.compute);
    if (s == NULL) {
        rpc_fail(j->call, RPC_FAILED_PRECONDITION, "nothing was loaded yet");
        return;
    }
    switch (j->kind) {
    case JOB_HOST: err = host(m, s, j, &eb); break;
    case JOB_HASH: {
        const Conclave__HashRequest *r = j->request;
        err = reply_hashes(s, r->experts, r->n_experts, j->call, &eb);
        break;
    }
    default: err = release(m, s, j);
    }
    if (!err) return;
    LOG_WARN("moves", "%s failed move=%llu: %s", kind_names[j->kind], (unsigned long long)j->move,
             eb.text);
    rpc_fail_err(j->call, err, &eb);
}

/* The next job, when there is one and it may run. */
static bool
take_locked(moves *m, job *out)
{
    while (!m->stopping && (m->queued == 0 || m->paused))
        pthread_cond_wait(&m->changed, &m->lock);
    if (m->stopping) return false;
    *out = m->queue[0];
    m->queued--;
    memmove(m->queue, m->queue + 1, m->queued * sizeof m->queue[0]);
    m->busy = true;
    m->current = out->move;
    atomic_store(&m->cancel, out->cancelled);
    return true;
}

static void *
moves_main(void *arg)
{
    moves *m = arg;
    job j;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), MOVE_NICE); /* of this thread alone */
    pthread_mutex_lock(&m->lock);
    while (take_locked(m, &j)) {
        pthread_mutex_unlock(&m->lock);
        run_job(m, &j);
        pthread_mutex_lock(&m->lock);
        m->busy = false;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

moe_err
moves_start(moves **out, const moves_config *config, errbuf *eb)
{
    *out = NULL;
    moves *m = calloc(1, sizeof *m);
    if (m == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    m->config = *config;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    /* One thread, the caller's: the others' cores are for what is being served. */
    moe_err err = pool_create(&m->pool, 1);
    if (!err && pthread_create(&m->thread, NULL, moves_main, m) != 0) err = MOE_EIO;
    if (err) {
        pool_free(m->pool);
        pthread_cond_destroy(&m->changed);
        pthread_mutex_destroy(&m->lock);
        free(m);
        return err_set(eb, err, "can't start the thread of moves");
    }
    pthread_setname_np(m->thread, "moves");
    *out = m;
    return MOE_OK;
}

/* Takes the queue out of the lock's reach before the calls end. */
static void
fail_queued(moves *m, const char *why)
{
    job left[QUEUE_MAX];
    pthread_mutex_lock(&m->lock);
    const uint32_t count = m->queued;
    memcpy(left, m->queue, count * sizeof left[0]);
    m->queued = 0;
    pthread_mutex_unlock(&m->lock);
    for (uint32_t i = 0; i < count; i++)
        rpc_fail(left[i].call, RPC_UNAVAILABLE, "%s", why);
}

void
moves_stop(moves *m)
{
    if (m == NULL) return;
    pthread_mutex_lock(&m->lock);
    m->stopping = true;
    atomic_store(&m->cancel, true);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->thread, NULL);
    fail_queued(m, "this worker is stopping");
    pool_free(m->pool);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static void
enqueue(moves *m, const job *j)
{
    pthread_mutex_lock(&m->lock);
    const bool stopping = m->stopping, room = m->queued < QUEUE_MAX && !stopping;
    if (room) m->queue[m->queued++] = *j;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    if (stopping)
        rpc_fail(j->call, RPC_UNAVAILABLE, "this worker is stopping");
    else if (!room)
        rpc_fail(j->call, RPC_RESOURCE_EXHAUSTED, "%d moves are queued already", QUEUE_MAX);
}

void
moves_host(moves *m, const Conclave__HostRequest *request, rpc_call *call)
{
    enqueue(m, &(job){.kind = JOB_HOST, .move = request->move, .request = request, .call = call});
}

void
moves_hash(moves *m, const Conclave__HashRequest *request, rpc_call *call)
{
    enqueue(m, &(job){.kind = JOB_HASH, .request = request, .call = call});
}

void
moves_release(moves *m, const Conclave__ReleaseRequest *request, rpc_call *call)
{
    enqueue(m, &(job){.kind = JOB_RELEASE, .request = request, .call = call});
}

void
moves_cancel(moves *m, uint64_t move)
{
    pthread_mutex_lock(&m->lock);
    if (m->busy && m->current == move) atomic_store(&m->cancel, true);
    for (uint32_t i = 0; i < m->queued; i++) {
        if (m->queue[i].kind == JOB_HOST && m->queue[i].move == move) m->queue[i].cancelled = true;
    }
    pthread_mutex_unlock(&m->lock);
}

void
moves_pause(moves *m)
{
    pthread_mutex_lock(&m->lock);
    m->paused = true;
    atomic_store(&m->cancel, true);
    while (m->busy)
        pthread_cond_wait(&m->changed, &m->lock);
    pthread_mutex_unlock(&m->lock);
    fail_queued(m, "the experts are loaded anew");
}

void
moves_resume(moves *m)
{
    pthread_mutex_lock(&m->lock);
    m->paused = false;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}
