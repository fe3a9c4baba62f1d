/* router_end: the router's side of the exchange: dispatch rows to workers, collect what they
 * answer.
 *
 * Asynchronous: post, compute something else, then wait.  One dispatch per (worker, micro-batch)
 * may be in flight.
 *
 *   token rows -> router_end_rows(mb)
 *   for each worker: router_end_post(worker, ...)
 *   ... something else ...
 *   router_end_wait(mb)
 *   for each worker: router_end_result(worker, mb)
 *
 * Links of different backends may be mixed.  The compute thread that calls post and wait never
 * allocates and makes no system call but futexes and yields; with nng links an I/O thread of the
 * link moves the bytes. A backend for GPUs fits behind these calls: post takes a plan whose counts
 * may live on the device, wait is a stream wait, buffers are of fixed size.
 *
 * When a worker is lost, wait() names it; settle() then waits for the others, so that no dispatch
 * is in flight, and the layer may be posted anew, to those that are left, with attempt + 1.
 *
 * Threads: create, prepare, complete and free from the control thread; rows, post, wait and result
 * from the step thread; give_up from any thread.  drop from either, never while the other uses that
 * worker: the caller posts to and waits for a worker only between complete() and drop().
 */
#ifndef MOE_EXCHANGE_ROUTER_END_H
#define MOE_EXCHANGE_ROUTER_END_H

#include <stdbool.h>
#include <stdint.h>

#include "exchange/attach.h"
#include "exchange/dispatch_plan.h"

typedef struct router_end router_end;

/* Creates the rows object (shared memory).  run: 16 hex digits naming the fleet.
 *   MOE_ERANGE            limits, router_id >= ROUTER_MAX
 *   MOE_EINVAL            run
 *   MOE_EIO, MOE_ENOMEM  */
moe_err router_end_create(router_end **out, const exchange_limits *limits, const char *run,
                          uint32_t router_id, uint64_t incarnation, errbuf *eb);
/* Drops every link and unlinks every object.  Accepts NULL. */
void router_end_free(router_end *re);

/* Steps 1 and 4 of attach.h.  worker: an index < WORKER_MAX of the caller's choice;
 * worker_incarnation names this life of it.  After an error of complete() the index stays in use
 * until drop().
 *   MOE_EBUSY      prepare: the index is in use
 *   MOE_ERANGE     worker >= WORKER_MAX
 *   MOE_EINVAL     complete: prepare() was not called, or the answer names no object of this run
 *   MOE_EIO        memory, mapping or dialling failed
 *   MOE_ENOTFOUND, MOE_EMISMATCH  complete: no such bell, or not one of ours
 *   MOE_EPERM      complete: the worker closed the connection at the hello
 *   MOE_ETIMEDOUT  complete: the worker did not answer the hello in timeout_ms  */
moe_err router_end_prepare(router_end *re, uint32_t worker, uint64_t worker_incarnation,
                           exchange_backend backend, attach_offer *out, errbuf *eb);
moe_err router_end_complete(router_end *re, uint32_t worker, const attach_answer *answer,
                            uint32_t timeout_ms, errbuf *eb);

/* Say that a worker is lost (it missed its heartbeats): post() and wait() then return MOE_ECLOSED
 * for it.  Shared memory can't tell by itself that its other end died.  Does nothing for an index
 * that is not in use. */
void router_end_give_up(router_end *re, uint32_t worker);

/* Unlink a worker's objects, close its connection, forget what was asked of it; late answers go
 * nowhere. */
void router_end_drop(router_end *re, uint32_t worker);

/* Token rows of a micro-batch: row t at + t * exchange_row_bytes(); write them before post, and not
 * while a dispatch of the micro-batch is in flight. */
void *router_end_rows(router_end *re, uint32_t micro_batch);

/* Send one worker its list.  h: epoch, step, layer, micro_batch, attempt, mode, token_count filled
 * by the caller, the rest here.  An empty list sends nothing, and wait() then expects nothing from
 * this worker.
 *   MOE_ECLOSED  the link is broken, given up, or was never completed
 *   MOE_EBUSY    a dispatch of this micro-batch is still in flight to this worker  */
moe_err router_end_post(router_end *re, uint32_t worker, const wire_hdr *h,
                        const dispatch_list *list);

/* Wait until every worker that was posted to for this micro-batch has answered, or deadline_ns
 * (clock_now_ns() time, 0 = never) passes.  On an error *missing names a worker:
 *   MOE_ETIMEDOUT  the lowest that has not answered
 *   MOE_ECLOSED    one that is lost: every wait() says so until it is dropped
 *   MOE_EINTERNAL  one that refused the dispatch or answered nonsense (eb says); it counts as
 * having answered, so the next wait() goes on with the others  */
moe_err router_end_wait(router_end *re, uint32_t micro_batch, uint64_t deadline_ns,
                        uint32_t *missing, errbuf *eb);

/* After an error of post or wait: wait for the answers that are still on their way, throw them away
 * and forget the workers that are lost, so that no dispatch of any micro-batch is in flight.
 *   MOE_ETIMEDOUT  *missing has not answered: give it up and call again  */
moe_err router_end_settle(router_end *re, uint64_t deadline_ns, uint32_t *missing);

/* After a successful wait, until the next post for this micro-batch: row r at + r *
 * exchange_result_stride().  NULL if nothing was asked of it, or it refused. */
const float *router_end_result(router_end *re, uint32_t worker, uint32_t micro_batch);
/* The result's header (busy_ns, status): a private copy.  NULL if nothing was answered. */
const wire_hdr *router_end_result_hdr(router_end *re, uint32_t worker, uint32_t micro_batch);
/* When wait() found it, in clock_now_ns() time. */
uint64_t router_end_result_ns(const router_end *re, uint32_t worker, uint32_t micro_batch);

#endif
