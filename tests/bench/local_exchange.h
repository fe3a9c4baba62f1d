/* local_exchange: router_end's functions (exchange/router_end.h) without an exchange: the one
 * "worker" is a call on the step thread.
 *
 * Linked into a program it takes the place of the exchange library's router_end.c; so it defines
 * every function of that header, and the transformer runs as it is.  Rows are written once and
 * results read once, as over shared memory, but nobody is woken and nothing is copied.
 *
 * Threads: the step thread.
 */
#ifndef MOE_TESTS_BENCH_LOCAL_EXCHANGE_H
#define MOE_TESTS_BENCH_LOCAL_EXCHANGE_H

#include "exchange/router_end.h"
#include "expert_worker/ffn.h"

/* store and f are borrowed.  One micro-batch, expert parallel, worker 0.
 *   MOE_ENOMEM  */
moe_err local_exchange_create(router_end **out, const exchange_limits *limits,
                              const expert_store *store, ffn *f, errbuf *eb);

#endif
