/* engine_start: the real engine's life: connect to the routers, run steps, stop.
 *
 * Apart from engine.h so that tests of the HTTP API can put another engine behind that header.
 *
 * Threads: start and stop from one thread.
 */
#ifndef MOE_FRONTEND_ENGINE_START_H
#define MOE_FRONTEND_ENGINE_START_H

#include "frontend/cell.h"
#include "frontend/engine.h"

typedef struct engine_config {
    const char *router_urls[CELL_ROUTERS_MAX]; /* [router_count] */
    uint32_t router_count;
    uint32_t router_timeout_ms; /* a router that does not answer a health check by then is lost */
    uint32_t move_after_ms;     /* what a lost router had goes to the others then */
    uint32_t give_up_after_ms;  /* with no router at all for so long, sequences end unserved */
    uint32_t max_waiting;       /* sequences queued or waiting, in the cell */
    bool prefix_caching;
    uint64_t model_fingerprint; /* 0 = don't compare */
    uint32_t vocab_size;
    const uint32_t *eos_ids; /* [eos_count], copied */
    uint32_t eos_count;
    metrics *metrics;   /* may be NULL; not to be printed any more after engine_free() */
    const char *labels; /* of its metrics; may be NULL; borrowed for their life */
} engine_config;

/* Start the engine's thread; it waits for the routers by itself.  Until one has answered,
 * max_model_len is 0 and submits are refused.
 *   MOE_ERANGE  router_count, eos_count */
moe_err engine_start(engine **out, const engine_config *config, errbuf *eb);
/* End every sequence with FINISH_ABORT, then join.  Submits fail from now on; the object stays
 * valid until engine_free(). */
void engine_stop(engine *e);
void engine_free(engine *e); /* after stop; accepts NULL */

/* A router that can't serve this frontend (another model, version or limits): set once, never
 * cleared.  NULL = none. */
const char *engine_refusal(engine *e);

#endif
