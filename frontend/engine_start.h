/* engine_start: the real engine's life: connect to the router, run steps, stop.
 *
 * Apart from engine.h so that tests of the HTTP API can put another engine behind that header.
 *
 * Threads: start and stop from one thread.
 */
#ifndef MOE_FRONTEND_ENGINE_START_H
#define MOE_FRONTEND_ENGINE_START_H

#include "frontend/engine.h"

typedef struct engine_config {
    const char *router_url;
    uint32_t max_waiting; /* sequences queued or waiting */
    bool prefix_caching;
    uint64_t model_fingerprint; /* 0 = don't compare */
    uint32_t vocab_size;
    const uint32_t *eos_ids; /* [eos_count], copied */
    uint32_t eos_count;
    metrics *metrics;   /* may be NULL */
    const char *labels; /* of its metrics; may be NULL */
} engine_config;

/* Start the engine's thread; it waits for the router by itself.  Until the router has answered,
 * max_model_len is 0 and submits are refused. */
moe_err engine_start(engine **out, const engine_config *config, errbuf *eb);
/* End every sequence with FINISH_ABORT, then join.  Submits fail from now on; the object stays
 * valid until engine_free(). */
void engine_stop(engine *e);
void engine_free(engine *e); /* after stop; accepts NULL */

/* A router that can't serve this frontend (another model or version): set once, never cleared. NULL
 * = none. */
const char *engine_refusal(engine *e);

#endif
