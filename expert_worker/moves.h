/* moves: experts that come and go while the worker serves.
 *
 * One thread of low priority does what the router asks, in order: host more experts, tell the
 * hashes of those that are hosted, release some.  Another gives packed weights to workers that are
 * to host what this one does.  The compute thread never waits for either (store.h,
 * compute_quiesce()).
 *
 * Where an expert's weights come from is decided in one place, hosting's load: the packed cache,
 * then a peer that the router named (fetcher.h), then the checkpoint (model/weight_load.h).
 * Reading packed bytes of this host, which are often in the page cache, is cheapest.  A peer on
 * this host has read the same checkpoint, so packing finds it in memory, and costs less than a copy
 * through two processes.  On another host the files may be cold or far away, packing reads two to
 * four times the bytes, and the peer is asked.  --expert-source decides otherwise.
 *
 * Threads: any, but start, stop, pause and resume from one.  Calls are answered from the threads of
 * moves.
 */
#ifndef MOE_EXPERT_WORKER_MOVES_H
#define MOE_EXPERT_WORKER_MOVES_H

#include "conclave.pb-c.h"

#include "expert_worker/compute.h"
#include "expert_worker/fetcher.h"
#include "proto/rpc.h"

typedef struct moves moves;

typedef struct moves_config {
    compute *compute;
    store_growth growth; /* without pool, rate, source and cancel; strings are borrowed */
    expert_source source;
    uint64_t fingerprint; /* of the model */
} moves_config;

/* Since start. */
typedef struct moves_stats {
    uint64_t fetched_bytes; /* from peers */
    uint64_t
        fetch_failures;    /* experts that a peer was to give and that came from files after all */
    uint64_t served_bytes; /* to peers */
} moves_stats;

/* MOE_ENOMEM, MOE_EIO: the thread could not be started. */
moe_err moves_start(moves **out, const moves_config *config, errbuf *eb);
/* What is under way or queued fails as unavailable.  Accepts NULL. */
void moves_stop(moves *m);

/* Queue a call: of Worker.Host, Hash, Release, Fetch.  RPC_FAILED_PRECONDITION before the first
 * load. */
void moves_host(moves *m, const Conclave__HostRequest *request, rpc_call *call);
void moves_hash(moves *m, const Conclave__HashRequest *request, rpc_call *call);
void moves_release(moves *m, const Conclave__ReleaseRequest *request, rpc_call *call);
void moves_fetch(moves *m, const Conclave__FetchRequest *request, rpc_call *call);

/* Host calls of this number, queued or under way, fail soon, and nothing of theirs is hosted. */
void moves_cancel(moves *m, uint64_t move);

/* Between pause and resume nothing touches the store.  What is under way or queued fails: it was
 * meant for the store that is about to be replaced. */
void moves_pause(moves *m);
void moves_resume(moves *m);

void moves_get_stats(const moves *m, moves_stats *out);

#endif
