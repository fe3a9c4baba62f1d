/* engine_client: sequences as a client of the engine sees them, each checked for its exact events:
 * prompt logprobs once and in order, then tokens, each once and each the one that a fake_router
 * gives, the experts of every token before what is sampled after it, and exactly one last event.
 *
 * Threads: the test's submits; events come on the engine's.
 */
#ifndef MOE_TESTS_FRONTEND_ENGINE_CLIENT_H
#define MOE_TESTS_FRONTEND_ENGINE_CLIENT_H

#include <criterion/criterion.h>

#include <sched.h>
#include <stdatomic.h>

#include "common/clock.h"
#include "frontend/engine.h"
#include "tests/frontend/fake_router.h"

/* Look at something until it is so; fails the test after a minute. */
#define UNTIL(condition)                                                                           \
    do {                                                                                           \
        const uint64_t until_ = clock_now_ns() + (60 * NS_PER_S);                                  \
        while (!(condition)) {                                                                     \
            cr_assert_lt(clock_now_ns(), until_, "waited for %s", #condition);                     \
            sched_yield();                                                                         \
        }                                                                                          \
    } while (0)

typedef struct client {
    seq_id id;
    gen_params *params; /* freed with the last event, as a caller may */
    uint32_t prompt_len, max_tokens;
    uint32_t total; /* prompt and output so far */
    uint32_t tokens[FAKE_LEN_MAX];
    uint32_t prompt_logprobs;
    uint32_t stop_after; /* tokens; 0 = never: the sink asks for the end */
    uint32_t cached_tokens;
    uint32_t routed; /* positions whose experts were told */
    bool wants_logprobs, wants_prompt_logprobs, wants_routed;
    finish_reason finish;
    bool unserved;
    char error[128]; /* of submit, or of the last event */
    uint32_t wrong;  /* events that broke a promise */
    char first_wrong[96];
    _Atomic uint32_t heard; /* events */
    _Atomic uint32_t ended; /* last events */
} client;

/* An engine's sink; user is a client. */
bool client_sink(void *user, const gen_event *ev);

/* A prompt drawn from the seed. */
void client_init(client *c, uint32_t prompt_len, uint32_t max_tokens, uint64_t seed);
/* error is set after an error, and no event comes. */
moe_err client_submit(engine *e, client *c);
/* Both; fails the test after an error. */
void client_go(engine *e, client *c, uint32_t prompt_len, uint32_t max_tokens, uint64_t seed);

/* It has ended, and so; no promise was broken. */
void client_check(const client *c, finish_reason finish);
/* Wait for that. */
void client_expect(client *c, finish_reason finish);

#endif
