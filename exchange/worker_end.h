/* worker_end: the worker's side of the exchange: take dispatches of any router, answer with rows.
 *
 *   while (worker_end_wait()) {
 *       n = worker_end_take(views)
 *       compute all views of one layer together
 *       worker_end_reply(each)
 *   }
 *
 * Threads: attach and detach from the control thread; wait, take, reply from the compute thread.  A
 * link that is detached while a view of it is being computed is unmapped after that view's reply.
 */
#ifndef MOE_EXCHANGE_WORKER_END_H
#define MOE_EXCHANGE_WORKER_END_H

#include <stdbool.h>
#include <stdint.h>

#include "exchange/attach.h"

typedef struct worker_end worker_end;

/* One dispatch, checked (wire_hdr_check, wire_dispatch_check); all pointers borrowed until its
 * reply.  A router that breaks the protocol may still change weights and rows while they are read:
 * any value of theirs must be safe to compute with. */
typedef struct dispatch_view {
    wire_hdr hdr;               /* a private copy: the peer can't change it any more */
    const wire_expert *experts; /* [hdr.expert_count]; private copies, as are the row slots */
    const uint32_t *row_slots;  /* [hdr.row_count] */
    const float *weights;       /* [hdr.row_count] for WIRE_TP, else NULL */
    const void *rows;           /* token row t at + t * row_bytes */
    size_t row_bytes;
    float *results;       /* WIRE_EP: row i for row slot i; WIRE_TP: row t for token t */
    size_t result_stride; /* floats */
    uint32_t link_index;  /* for worker_end_reply() */
    uint32_t part;        /* of what this worker hosts: with TP the slice, else 0 */
    uint32_t top_k;
} dispatch_view;

/* Creates the bell object (shared memory).  run: 16 hex digits naming the fleet.  nng_listen: where
 * nng links listen, "ipc://RUN/worker-0" (a suffix is added per link) or "tcp://127.0.0.1:0" (port
 * 0: the OS chooses one per link); NULL: shm only.
 *   MOE_ERANGE  worker_id >= WORKER_MAX
 *   MOE_EINVAL  run, or nng_listen is too long
 *   MOE_EIO, MOE_ENOMEM  */
moe_err worker_end_create(worker_end **out, const char *run, uint32_t worker_id,
                          uint64_t incarnation, const char *nng_listen, errbuf *eb);
/* No other thread may be in a call.  Accepts NULL. */
void worker_end_free(worker_end *we);

/* Step 3 of attach.h.  expected: this worker's own view of the limits (micro_batch_max and
 * token_max are the router's to choose).  A link of the same router_id and part is replaced.  On an
 * error the old link stays. MOE_ERANGE        the offer's limits MOE_EINVAL        the offer's
 * router_id or backend, or it names no object of this run MOE_EMISMATCH     layers, experts, top-k,
 * hidden or dtype differ; an object of another size MOE_EBUSY         all links are in use
 *   MOE_EUNSUPPORTED  an nng link, but nng_listen is NULL
 *   MOE_EIO, MOE_ENOTFOUND  mapping or listening failed  */
moe_err worker_end_attach(worker_end *we, const exchange_limits *expected,
                          const attach_offer *offer, attach_answer *answer, errbuf *eb);
/* Forget a router's links, or all routers' links for a part.  Does nothing when there are none. */
void worker_end_detach(worker_end *we, uint32_t router_id);
void worker_end_detach_part(worker_end *we, uint32_t part);

/* Sleep until something may have arrived (true), or deadline_ns passes (clock_now_ns() time, 0 =
 * never), or worker_end_stop() was called (false). */
bool worker_end_wait(worker_end *we, uint64_t deadline_ns);
/* From any thread, async-signal-safe.  For good. */
void worker_end_stop(worker_end *we);

/* Take up to max pending dispatches; returns how many.  Each needs its worker_end_reply().  One
 * that fails its checks is answered WIRE_STATUS_REFUSED here and logged (at most once a second). */
uint32_t worker_end_take(worker_end *we, dispatch_view *out, uint32_t max);

/* Publish the results of a view (status: wire_status; anything but OK sends no rows). */
void worker_end_reply(worker_end *we, const dispatch_view *view, uint32_t status, uint64_t busy_ns);

#endif
