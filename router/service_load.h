/* service_load: replies of Router's RPCs about the load and what is made of it: each worker's, the
 * balancer's, the window's.
 *
 * Threads: any.
 */
#ifndef MOE_ROUTER_SERVICE_LOAD_H
#define MOE_ROUTER_SERVICE_LOAD_H

#include "conclave.pb-c.h"

#include "router/service.h"

/* RouterStats.balance and all it points to. */
typedef struct balance_answer {
    Conclave__BalanceStats stats;
    balancer_report report; /* what the texts are borrowed from */
    Conclave__VerdictCount verdicts[EPLB_VERDICTS + 1];
    Conclave__VerdictCount *pointers[EPLB_VERDICTS + 1];
    double *layers; /* [L]; owned */
} balance_answer;

/* The router has a balancer.  Free with balance_answer_fini(). */
void balance_answer_fill(balance_answer *a, const router_service_config *c);
void balance_answer_fini(balance_answer *a);

/* RouterStats.workers and all it points to. */
typedef struct workers_answer {
    size_t count;
    Conclave__WorkerStatus workers[WORKER_MAX];
    Conclave__WorkerStatus *pointers[WORKER_MAX];
} workers_answer;

/* Texts are static. */
void workers_answer_fill(workers_answer *a, const router_service_config *c);

/* What health says beside the fleet's state: that the load is not looked at, "" if it is. */
void load_watch_text(const router_service_config *c, char *out, size_t size);

/* Answer a call of Router.Routing. */
void routing_answer(const router_service_config *c, Conclave__RoutingReply_Closure closure,
                    void *data);

#endif
