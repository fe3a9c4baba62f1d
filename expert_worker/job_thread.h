/* job_thread: a thread of low priority that carries out RPC calls, one after the other.
 *
 * Handlers only queue here.  The compute thread never waits for it, and does not share a core with
 * it while it has something to do itself (nice, not a lock).
 *
 * Threads: any, but start, stop, pause and resume from one.  `run` is called on the job's thread.
 */
#ifndef MOE_EXPERT_WORKER_JOB_THREAD_H
#define MOE_EXPERT_WORKER_JOB_THREAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/rpc.h"

#define JOB_QUEUE_MAX 16

/* One call.  Whoever runs it finishes the call. */
typedef struct job {
    int kind;     /* the owner's */
    uint64_t tag; /* for job_thread_cancel(); 0: it can't be cancelled */
    const void *request;
    rpc_call *call;
    bool cancelled; /* before it began */
} job;

typedef struct job_thread job_thread;

typedef struct job_thread_config {
    const char *name;                     /* of the thread, at most 15 characters */
    void (*run)(void *arg, const job *j); /* finishes j->call */
    void *arg;
} job_thread_config;

/* MOE_ENOMEM, MOE_EIO: the thread could not be started. */
moe_err job_thread_start(job_thread **out, const job_thread_config *config, errbuf *eb);
/* What is under way is told to give up; what is queued fails as unavailable.  Accepts NULL. */
void job_thread_stop(job_thread *t);

/* Queue a call; with JOB_QUEUE_MAX waiting it fails as RPC_RESOURCE_EXHAUSTED. */
void job_thread_push(job_thread *t, const job *j);
/* Jobs of this tag, queued or under way, are to give up. */
void job_thread_cancel(job_thread *t, uint64_t tag);
/* For run(): true once what is under way is to give up. */
const _Atomic bool *job_thread_cancelled(const job_thread *t);

/* Between pause and resume nothing runs.  What is under way is told to give up and waited for; what
 * is queued fails as unavailable, with these words. */
void job_thread_pause(job_thread *t, const char *why);
void job_thread_resume(job_thread *t);

#endif
