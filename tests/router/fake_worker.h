/* fake_worker: an expert worker inside a test of the router: a Worker service and the worker's end
 * of the exchange, obeying the test.
 *
 * With a checkpoint it computes what a real worker does; without one it answers every dispatch as
 * not hosted.  Its compute thread can be held in the middle of a dispatch, and let go or lost
 * there.
 *
 * Failures abort the test (cr_assert).
 *
 * Threads: the test's thread calls; `lock` guards what its own threads share.
 */
#ifndef MOE_TESTS_ROUTER_FAKE_WORKER_H
#define MOE_TESTS_ROUTER_FAKE_WORKER_H

#include <pthread.h>
#include <stdbool.h>

#include "conclave.pb-c.h"

#include "exchange/worker_end.h"
#include "expert_worker/ffn.h"
#include "proto/identity.h"
#include "proto/rpc.h"

/* What becomes of a Load. */
typedef enum fake_load { LOAD_OBEYS, LOAD_FAILS, LOAD_HANGS } fake_load;

#define FAKE_EXPERTS_MAX 64

/* Of a small model: 2 layers of 4 experts. */
extern const exchange_limits fake_limits;

typedef struct fake_worker_config {
    uint32_t id;
    uint64_t incarnation;
    const char *run; /* 16 hex digits */
    const char *dir; /* of its sockets */
    const identity *identity;
    exchange_limits limits;
    const checkpoint *checkpoint; /* NULL: it can't compute */
    const kernel_table *kernels;
    moe_dtype dtype;
} fake_worker_config;

typedef struct fake_worker {
    Conclave__Worker_Service base; /* first: handlers get a pointer to it */
    fake_worker_config config;
    char url[128];
    rpc_server *server;
    worker_end *exchange;
    pool *pool;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    expert_store *store;
    ffn *ffn;
    fake_load on_load;
    bool overlong_answer;  /* of Attach */
    bool hold, holding;    /* asked to hold dispatches; one is held */
    bool mute;             /* dispatches are taken and never answered */
    uint32_t deaf;         /* so many pings fail */
    bool spoil_hashes;     /* its copies of experts are not those of others */
    uint64_t memory_bytes; /* what it registers with */
    rpc_call *hung_load;
    uint32_t answered; /* dispatches */
    /* What the last Load asked for. */
    uint32_t loads, attaches, experts_asked, tp_slices /* bit set */, tp_ranks;
    uint64_t epoch_asked;
    /* What it hosts by now, the first FAKE_EXPERTS_MAX ids; and the most at a time. */
    bool hosted[FAKE_EXPERTS_MAX];
    uint32_t hosted_count, hosted_most, hosts, releases, drains, pings;
} fake_worker;

void fake_worker_start(fake_worker *w, const fake_worker_config *config);
/* Ends it as a killed process ends: what it held is never answered. */
void fake_worker_kill(fake_worker *w);

/* What it says to register; texts are borrowed from w. */
Conclave__RegisterRequest fake_worker_request(fake_worker *w);

void fake_worker_forget(fake_worker *w); /* its experts: it answers as not hosting any */

void fake_worker_hold(fake_worker *w, bool hold); /* false lets the held one go on */
void fake_worker_wait_holding(fake_worker *w);    /* until a dispatch is held */
uint32_t fake_worker_answered(fake_worker *w);
void fake_worker_wait_answered(fake_worker *w,
                               uint32_t count); /* until so many were, since start */
void fake_worker_wait_loading(fake_worker *w);  /* until a Load hangs (LOAD_HANGS) */

#endif
