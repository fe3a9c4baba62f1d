/* router_link: the engine's connection to one router: its health, its steps in flight.
 *
 * The engine's thread drives it and never waits in it:
 *
 *   router_link_poll    takes what has arrived: a step's answer, a health report
 *   router_link_launch  plans a step and asks for it, when one is due
 *
 * Routers step independently: nothing here looks at another one.  Up to STEPS_IN_FLIGHT steps are
 * under way.  A router that is gone, or that does not answer health checks, loses its steps: its
 * sequences wait again, in the scheduler, and run anew once it is back; or the engine recalls them.
 *
 * Threads: the engine's; `shared->lock` is taken here around everything that others look at.
 */
#ifndef MOE_FRONTEND_ROUTER_LINK_H
#define MOE_FRONTEND_ROUTER_LINK_H

#include <pthread.h>
#include <stdatomic.h>

#include "frontend/cell.h"
#include "frontend/engine_metrics.h"
#include "frontend/engine_start.h"

typedef struct router_link router_link;

/* What all links of an engine share; borrowed. */
typedef struct router_link_shared {
    const engine_config *config;
    cell *cell;
    pthread_mutex_t *lock; /* guards the cell, and what router_link_detail() returns */
    _Atomic uint32_t *bell;
    const _Atomic bool *stopping;
    _Atomic uint64_t *routing; /* out: routing_pack() of what routers tell; 0 = none met yet */
    engine_metrics *metrics;
} router_link_shared;

/* Errors as rpc_client_open().  url is copied. */
moe_err router_link_open(router_link **out, uint32_t router, const char *url,
                         const router_link_shared *shared, errbuf *eb);
void router_link_free(router_link *l); /* accepts NULL */

/* True if something was done; else *until_ns is lowered to when to look again, unless the bell
 * rings.  So for both. */
bool router_link_poll(router_link *l, uint64_t *until_ns);
bool router_link_launch(router_link *l, uint64_t *until_ns);

/* Leave every call; its sequences wait in the scheduler. */
void router_link_leave(router_link *l);

bool router_link_ready(const router_link *l);
bool router_link_stepping(const router_link *l); /* a step is under way */
/* When it stopped being ready (clock_now_ns() time); 0 while it is, and before it ever was. */
uint64_t router_link_lost_ns(const router_link *l);

/* What is awaited of it; with the lock, borrowed while it is held. */
const char *router_link_detail(const router_link *l);
/* From any thread: why this frontend can't serve with it; NULL: it can.  Never changes back. */
const char *router_link_refusal(const router_link *l);

#endif
