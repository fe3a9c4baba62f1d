/* fleet: routers and workers of the exchange as threads of one test process.
 *
 * The workers compute expected_value(), a function of a row's bytes and the expert that tells every
 * mix-up of rows, tokens and experts.
 */
#ifndef MOE_TESTS_EXCHANGE_FLEET_H
#define MOE_TESTS_EXCHANGE_FLEET_H

#include <pthread.h>

#include "exchange/router_end.h"
#include "exchange/worker_end.h"

#define FLEET_WORKER_MAX 8

typedef struct test_worker {
    worker_end *we;
    pthread_t thread;
    bool running;
    _Atomic uint32_t served; /* dispatches answered */
} test_worker;

typedef struct fleet {
    char run[17];
    char folder[64]; /* of the ipc sockets */
    exchange_limits limits;
    uint32_t worker_count;
    test_worker workers[FLEET_WORKER_MAX];
} fleet;

enum link_choice { ALL_SHM, ALL_IPC, ALL_TCP, MIXED };

/* Every function fails the test on an error. */
void fleet_init(fleet *f, const exchange_limits *limits);
/* Makes worker_ends without threads; nng links listen on tcp where choice says so, else on ipc. */
void fleet_add_workers(fleet *f, uint32_t count, enum link_choice choice);
void fleet_start(fleet *f); /* a compute thread per worker */
void fleet_stop(fleet *f);  /* ends the threads; the worker_ends stay */
/* Stops, frees, and asserts that nothing is left in /dev/shm and in the folder. */
void fleet_fini(fleet *f);

router_end *fleet_router(fleet *f, uint32_t router_id, uint64_t incarnation);
void fleet_connect(fleet *f, router_end *re, uint32_t worker, exchange_backend backend);
void fleet_connect_all(fleet *f, router_end *re, enum link_choice choice);

/* Objects of this run in /dev/shm. */
unsigned fleet_object_count(const fleet *f);

/* One micro-batch of one layer: made from a seed, posted, waited for and checked. */
typedef struct test_batch {
    wire_hdr hdr;
    dispatch_plan *plan;
    uint32_t topk_ids[1024];
    float topk_weights[1024];
    uint32_t expert_worker[64];
} test_batch;

void batch_init(test_batch *b, const fleet *f);
void batch_fini(test_batch *b);
/* Draw choices and row bytes; the rows go to the router's memory. */
void batch_draw(test_batch *b, const fleet *f, router_end *re, enum wire_mode mode,
                uint32_t micro_batch, uint32_t token_count, uint64_t seed);
void batch_post(test_batch *b, const fleet *f, router_end *re);
void batch_wait_and_check(test_batch *b, const fleet *f, router_end *re);

/* What an expert makes of a token row, at column j. */
float expected_value(const void *row, size_t row_bytes, uint32_t expert, uint32_t j);

/* Answer what is pending now, without a thread; returns how many. */
uint32_t worker_serve(worker_end *we);

#endif
