/* engine: runs sequences through the cell's schedulers and routers, and hands out their tokens.
 *
 * One thread takes submissions and aborts from bounded queues, gives each sequence to a router,
 * plans that router's steps, and gives every sampled token to the sequence's sink.  Routers step
 * independently of each other.  If one is gone the thread waits for it, or gives its sequences to
 * the others, and replays: a sink sees a pause, not an error.
 *
 * Threads: submit, abort, and the getters from any thread.  Sinks run on the engine's thread: they
 * must be quick, must not block, and must not call engine_submit().
 */
#ifndef MOE_FRONTEND_ENGINE_H
#define MOE_FRONTEND_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/metrics.h"
#include "frontend/gen_params.h"
#include "frontend/scheduler.h"

typedef struct engine engine;

typedef struct token_logprobs {
    float logprob; /* of the token itself, unmodified distribution */
    uint32_t rank; /* 1 = most likely */
    uint32_t top_count;
    uint32_t top_ids[GEN_LOGPROBS_MAX]; /* most likely first */
    float top_logprobs[GEN_LOGPROBS_MAX];
} token_logprobs;

typedef enum gen_event_kind {
    GEN_PROMPT_LOGPROBS, /* one prompt token's logprobs, positions 1, 2, ... in order, before any
                            GEN_TOKEN */
    GEN_ROUTED,          /* gen_params.routed_experts: what tokens from `position` on used; again
                            for positions that had to be computed again, with the same ids */
    GEN_TOKEN,           /* one sampled token; finish may be set with it */
    GEN_FINISH           /* the end without a token: abort or error */
} gen_event_kind;

typedef struct gen_event {
    gen_event_kind kind;
    uint32_t position; /* of the token in the sequence */
    uint32_t token;
    const token_logprobs *logprobs; /* NULL unless asked for; borrowed for the call */
    const uint8_t *routed;  /* GEN_ROUTED: [routed_count][num_layers][top_k] ids; borrowed */
    uint32_t routed_count;  /* tokens */
    finish_reason finish;   /* not FINISH_NONE on the last event of the sequence */
    uint32_t cached_tokens; /* prompt tokens taken from the prefix cache */
    const char *error;      /* FINISH_ERROR: why; borrowed for the call */
    bool unserved; /* FINISH_ERROR: there was nobody to run it; asked again later it may work */
} gen_event;

/* Returns true to end the sequence after this token (a stop string was met); ignored when finish is
 * set. After an event with finish set, or after returning true, the sink is not called again and
 * `user` may be freed. */
typedef bool gen_sink(void *user, const gen_event *event);

/* Queue a sequence.  Exactly one last event follows a successful submit, whatever happens.
 *   prompt  [prompt_len] copied;  params  borrowed until the last event
 *   MOE_EBUSY    the queue is full
 *   MOE_ERANGE   see scheduler_add()
 *   MOE_ECLOSED  the engine is stopping  */
moe_err engine_submit(engine *e, const uint32_t *prompt, uint32_t prompt_len,
                      const gen_params *params, gen_sink *sink, void *user, seq_id *out,
                      errbuf *eb);

/* Reserve room for count sequences at once, so that a request of several choices is queued whole or
 * refused whole.  Each later engine_submit() of the request uses one reservation;
 * engine_unreserve() gives unused ones back.  MOE_EBUSY as above. */
moe_err engine_reserve(engine *e, uint32_t count);
void engine_unreserve(engine *e, uint32_t count);

/* Ask for a sequence's end; its last event (FINISH_ABORT) comes unless it ended meanwhile. */
void engine_abort(engine *e, seq_id id);

/* Does any router serve?  detail (may be NULL) says what is awaited. */
bool engine_ready(engine *e, char *detail, size_t detail_size);
/* Is a new sequence welcome?  While a router serves, and through an outage that is shorter than
 * sequences wait for one; not before the first router has served.  detail as above. */
bool engine_takes(engine *e, char *detail, size_t detail_size);
uint32_t engine_max_model_len(const engine *e);
/* What GEN_ROUTED tells of each token; id_bytes 0 before a router was met, and if it tells nothing.
 */
routing_shape engine_routing(const engine *e);

#endif
