/* router_end: the router's side of the exchange: dispatch rows to workers, combine what comes back.
 *
 * Asynchronous: post, compute something else, then wait.  One dispatch per (worker, micro-batch)
 * may be in flight.
 *
 *   float rows -> router_end_rows(mb) ; for each worker: router_end_post() ; ... ;
 * router_end_wait(mb) ; router_end_result()
 *
 * Links of different backends may be mixed.  The compute thread that calls post and wait never
 * allocates and makes no system call but futexes; with nng links an I/O thread of the link moves
 * the bytes. A backend for GPUs fits behind these calls: post takes a plan whose counts may live on
 * the device, wait is a stream wait, buffers are of fixed size.
 *
 * Threads: prepare, complete and drop from the control thread; rows, post, wait and result from the
 * step thread.  A worker index is being changed by one of them at a time: the caller posts to a
 * worker only between complete() and drop().
 */
#ifndef MOE_EXCHANGE_ROUTER_END_H
#define MOE_EXCHANGE_ROUTER_END_H

#include <stdbool.h>
#include <stdint.h>

#include "exchange/attach.h"
#include "exchange/dispatch_plan.h"

typedef struct router_end router_end;

/* run: 16 hex digits naming the fleet.  Creates the rows object (shared memory). */
moe_err router_end_create(router_end **out, const exchange_limits *limits, const char *run,
                          uint32_t router_id, uint64_t incarnation, errbuf *eb);
/* Drops every link and unlinks every object.  Accepts NULL. */
void router_end_free(router_end *re);

/* Steps 1 and 4 of attach.h.  worker: an index < WORKER_MAX of the caller's choice;
 * worker_incarnation names this life of it. MOE_EBUSY      prepare: the index is in use MOE_EIO
 * memory, mapping or dialling failed MOE_ETIMEDOUT  complete: the worker did not answer the hello
 * in timeout_ms  */
moe_err router_end_prepare(router_end *re, uint32_t worker, uint64_t worker_incarnation,
                           exchange_backend backend, attach_offer *out, errbuf *eb);
moe_err router_end_complete(router_end *re, uint32_t worker, const attach_answer *answer,
                            uint32_t timeout_ms, errbuf *eb);
/* Give a worker up: unlink its objects, close its connection; late answers go nowhere. */
void router_end_drop(router_end *re, uint32_t worker);

/* Token rows of a micro-batch: row t at + t * exchange_row_bytes(); write them before post. */
void *router_end_rows(router_end *re, uint32_t micro_batch);

/* Send one worker its list.  h: epoch, step, layer, micro_batch, attempt, mode, token_count filled
 * by the caller, the rest here.  An empty list sends nothing, and wait() then expects nothing from
 * this worker. MOE_ECLOSED  the link is broken (nng)  */
moe_err router_end_post(router_end *re, uint32_t worker, const wire_hdr *h,
                        const dispatch_list *list);

/* Wait until every worker that was posted to for this micro-batch has answered, or deadline_ns
 * (clock_now_ns() time, 0 = never) passes. MOE_ETIMEDOUT  *missing names the lowest worker that has
 * not answered MOE_ECLOSED    *missing names a worker whose connection broke MOE_EINTERNAL *missing
 * names a worker that refused the dispatch (wire_status in eb)  */
moe_err router_end_wait(router_end *re, uint32_t micro_batch, uint64_t deadline_ns,
                        uint32_t *missing, errbuf *eb);

/* After a successful wait, until the next post for this micro-batch: row r at + r *
 * exchange_result_stride().  NULL if nothing was asked of it. */
const float *router_end_result(router_end *re, uint32_t worker, uint32_t micro_batch);
/* The result's header (busy_ns, send times). */
const wire_hdr *router_end_result_hdr(router_end *re, uint32_t worker, uint32_t micro_batch);

#endif
