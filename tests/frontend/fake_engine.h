/* fake_engine: stands in for the engine at link time, so that the HTTP side can be tested alone.
 *
 * One thread hands each sequence one token a round, as the real engine's steps do.  Tokens follow
 * from the prompt (and from seed and choice unless the request is greedy), or from a reply that the
 * test has set.  A test can hold the tokens back and let them through one by one, so that nothing
 * here depends on time.
 *
 * Threads: any, but for start and stop.
 */
#ifndef MOE_TESTS_FRONTEND_FAKE_ENGINE_H
#define MOE_TESTS_FRONTEND_FAKE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "frontend/engine.h"

#define FAKE_SEQUENCES_MAX 1024

typedef struct fake_engine_options {
    uint32_t vocab_size;
    uint32_t max_model_len;
    uint32_t queue_max;    /* sequences at a time; 0 = FAKE_SEQUENCES_MAX */
    const uint32_t *reply; /* [reply_count] tokens of every sequence, then eos; NULL = made up */
    uint32_t reply_count;
    uint32_t eos;
    uint32_t fail_at;     /* end with an error instead of this token (1 = the first); 0 = never */
    uint32_t refuse_from; /* this submission and later ones fail (1 = the first); 0 = none */
    uint32_t cached_tokens;
    bool deaf;             /* aborts are noted, but change nothing until fake_engine_heed() */
    bool held;             /* begin with fake_engine_hold() */
    const char *unready;   /* engine_ready()'s detail, false; NULL = ready */
    routing_shape routing; /* engine_routing() */
} fake_engine_options;

engine *fake_engine_start(const fake_engine_options *options);
/* End all sequences with FINISH_ABORT, and take no more. */
void fake_engine_stop(engine *e);
void fake_engine_free(engine *e); /* stops it first, if need be */

/* The i-th of the experts (layer by layer) that the token at a position is said to use. */
uint8_t fake_engine_expert(uint32_t position, uint32_t i);

/* From now on tokens come only as allowed: `rounds` more tokens for every sequence. */
void fake_engine_hold(engine *e);
void fake_engine_allow(engine *e, uint32_t rounds);
void fake_engine_unhold(engine *e);
void fake_engine_heed(engine *e);
void fake_engine_set_ready(engine *e, bool ready);

/* Wait until so many sequences were submitted, aborted, or are still there (running), or 20 s have
 * passed: false. */
bool fake_engine_wait_submitted(engine *e, uint32_t count);
bool fake_engine_wait_aborted(engine *e, uint32_t count);
bool fake_engine_wait_running(engine *e, uint32_t count);
uint32_t fake_engine_reserved(engine *e);
/* What the latest sequence was submitted with. */
gen_params fake_engine_last_params(engine *e);
uint32_t fake_engine_last_prompt(engine *e, uint32_t *ids, uint32_t max);

#endif
