/* fetcher: copies experts that a worker is to host from workers that host them (fetch.h).
 *
 * A peer that does not answer in time, refuses, or whose expert has another hash than the router
 * told is not asked again: what it was to give comes from files then, and the log says so.
 *
 * Threads: one.
 */
#ifndef MOE_EXPERT_WORKER_FETCHER_H
#define MOE_EXPERT_WORKER_FETCHER_H

#include "expert_worker/fetch.h"

/* Where experts that are to be hosted come from. */
typedef enum expert_source {
    EXPERT_SOURCE_AUTO, /* the cache of packed weights; what it lacks from a peer on another host;
                           the rest is packed from the checkpoint */
    EXPERT_SOURCE_DISK, /* never from a peer */
    EXPERT_SOURCE_PEER, /* from a peer, though the cache may have it */
} expert_source;

/* "auto" | "disk" | "peer"; anything else is auto. */
expert_source expert_source_parse(const char *name);

typedef struct fetcher fetcher;

typedef struct fetcher_config {
    const Conclave__HostRequest *request; /* borrowed; experts, peers, hashes, bytes_per_s */
    expert_layout layout;
    uint64_t fingerprint;
    bool far_only;              /* ask no peer of this host (ipc://): they read the same files */
    uint32_t block_bytes;       /* at most FETCH_BLOCK_BYTES; 0: that */
    const _Atomic bool *cancel; /* or NULL */
} fetcher_config;

/*   MOE_EINVAL  the request's lists don't fit each other
 *   MOE_ENOMEM  */
moe_err fetcher_create(fetcher **out, const fetcher_config *config, errbuf *eb);
void fetcher_free(fetcher *f); /* accepts NULL */

/* For store_growth.source: arg is the fetcher. */
void fetcher_fill(void *arg, const packed_slot *slots, uint32_t count, bool *done);

/* Bytes that came from peers, and experts that were to come from one and did not. */
void fetcher_get_report(const fetcher *f, uint64_t *bytes, uint32_t *failures);

#endif
