/* service: the worker's control plane: register with the router, load experts, make links.
 *
 * RPC handlers only queue; one control thread (the caller of service_run()) does the work, so that
 * a load of minutes blocks nobody's thread; what moves while the worker serves has a thread of its
 * own (moves.h).  The worker registers again whenever the router does
 * not know it.
 *
 * Threads: create, run, free from one thread; stop from any, and from a signal handler.
 */
#ifndef MOE_EXPERT_WORKER_SERVICE_H
#define MOE_EXPERT_WORKER_SERVICE_H

#include "common/run_dir.h"
#include "expert_worker/compute.h"
#include "expert_worker/fetcher.h"
#include "proto/identity.h"

typedef struct worker_service worker_service;

typedef struct worker_service_config {
    const char *control_url; /* where this worker listens; tcp://HOST:0 = any port */
    const char *router_url;  /* of router 0 */
    uint32_t worker_id;
    uint64_t incarnation;
    moe_dtype dtype;
    const checkpoint *checkpoint;
    const char *packed_cache; /* folder of packed weights; NULL or "" = none */
    uint64_t memory_bytes;    /* for experts; 0 = unlimited */
    expert_source source;     /* of experts that come while it serves */
    const identity *identity;
    worker_end *exchange;
    compute *compute;
    pool *load_pool; /* packs; not the compute thread's */
} worker_service_config;

/* All pointers of the config are borrowed until free. */
moe_err worker_service_create(worker_service **out, const worker_service_config *config,
                              errbuf *eb);
/* Serve until worker_service_stop(), or until the router refuses this worker (MOE_EMISMATCH,
 * MOE_EPERM: the text says why). */
moe_err worker_service_run(worker_service *s, errbuf *eb);
void worker_service_stop(worker_service *s);
void worker_service_free(worker_service *s); /* accepts NULL */

#endif
