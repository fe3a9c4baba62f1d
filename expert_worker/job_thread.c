#include "expert_worker/job_thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define JOB_NICE 10

struct job_thread {
    job_thread_config config;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    job queue[JOB_QUEUE_MAX];
    uint32_t queued;
    bool stopping, paused, busy;
    uint64_t current;    /* tag of what is under way */
    _Atomic bool cancel; /* what is under way */
};

/* The next job, when there is one and it may run. */
static bool
take_locked(job_thread *t, job *out)
{
    while (!t->stopping && (t->queued == 0 || t->paused))
        pthread_cond_wait(&t->changed, &t->lock);
    if (t->stopping) return false;
    *out = t->queue[0];
    t->queued--;
    memmove(t->queue, t->queue + 1, t->queued * sizeof t->queue[0]);
    t->busy = true;
    t->current = out->tag;
    atomic_store(&t->cancel, out->cancelled);
    return true;
}

static void *
job_main(void *arg)
{
    job_thread *t = arg;
    job j;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), JOB_NICE); /* of this thread alone */
    pthread_mutex_lock(&t->lock);
    while (take_locked(t, &j)) {
        pthread_mutex_unlock(&t->lock);
        t->config.run(t->config.arg, &j);
        pthread_mutex_lock(&t->lock);
        t->busy = false;
        pthread_cond_broadcast(&t->changed);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

moe_err
job_thread_start(job_thread **out, const job_thread_config *config, errbuf *eb)
{
    *out = NULL;
    job_thread *t = calloc(1, sizeof *t);
    if (t == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    t->config = *config;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    if (pthread_create(&t->thread, NULL, job_main, t) != 0) {
        pthread_cond_destroy(&t->changed);
        pthread_mutex_destroy(&t->lock);
        free(t);
        return err_set(eb, MOE_EIO, "can't start the thread \"%s\"", config->name);
    }
    pthread_setname_np(t->thread, config->name);
    *out = t;
    return MOE_OK;
}

/* Takes the queue out of the lock's reach before the calls end. */
static void
fail_queued(job_thread *t, const char *why)
{
    job left[JOB_QUEUE_MAX];
    pthread_mutex_lock(&t->lock);
    const uint32_t count = t->queued;
    memcpy(left, t->queue, count * sizeof left[0]);
    t->queued = 0;
    pthread_mutex_unlock(&t->lock);
    for (uint32_t i = 0; i < count; i++)
        rpc_fail(left[i].call, RPC_UNAVAILABLE, "%s", why);
}

void
job_thread_stop(job_thread *t)
{
    if (t == NULL) return;
    pthread_mutex_lock(&t->lock);
    t->stopping = true;
    atomic_store(&t->cancel, true);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    fail_queued(t, "this worker is stopping");
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void
job_thread_push(job_thread *t, const job *j)
{
    pthread_mutex_lock(&t->lock);
    const bool stopping = t->stopping, room = t->queued < JOB_QUEUE_MAX && !stopping;
    if (room) t->queue[t->queued++] = *j;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    if (stopping)
        rpc_fail(j->call, RPC_UNAVAILABLE, "this worker is stopping");
    else if (!room)
        rpc_fail(j->call, RPC_RESOURCE_EXHAUSTED, "%d calls for \"%s\" are queued already",
                 JOB_QUEUE_MAX, t->config.name);
}

void
job_thread_cancel(job_thread *t, uint64_t tag)
{
    if (tag == 0) return;
    pthread_mutex_lock(&t->lock);
    if (t->busy && t->current == tag) atomic_store(&t->cancel, true);
    for (uint32_t i = 0; i < t->queued; i++) {
        if (t->queue[i].tag == tag) t->queue[i].cancelled = true;
    }
    pthread_mutex_unlock(&t->lock);
}

const _Atomic bool *
job_thread_cancelled(const job_thread *t)
{
    return &t->cancel;
}

void
job_thread_pause(job_thread *t, const char *why)
{
    pthread_mutex_lock(&t->lock);
    t->paused = true;
    atomic_store(&t->cancel, true);
    while (t->busy)
        pthread_cond_wait(&t->changed, &t->lock);
    pthread_mutex_unlock(&t->lock);
    fail_queued(t, why);
}

void
job_thread_resume(job_thread *t)
{
    pthread_mutex_lock(&t->lock);
    t->paused = false;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}
