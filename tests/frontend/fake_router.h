/* fake_router: a Router service without a model, for tests of the engine.
 *
 * The next token is a hash of all tokens before it, so that a lost, repeated or misplaced token
 * changes everything after it.  Like the real router it keeps each slot's history, and refuses a
 * request that does not follow from what it knows.
 *
 * Threads: every function from any thread.
 */
#ifndef MOE_TESTS_FRONTEND_FAKE_ROUTER_H
#define MOE_TESTS_FRONTEND_FAKE_ROUTER_H

#include <pthread.h>
#include <stdbool.h>

#include "conclave.pb-c.h"
#include "proto/rpc.h"
#include "router/step_check.h"

#define FAKE_SEQS_MAX 16
#define FAKE_LEN_MAX 256
#define FAKE_TOKENS_MAX 256
#define FAKE_VOCAB 1000u
#define FAKE_STEPS_MAX 4

/* How an answer is spoiled. */
typedef enum fake_spoil {
    SPOIL_NOTHING,
    SPOIL_SLOT,
    SPOIL_COUNT,
    SPOIL_TOKEN,
    SPOIL_NOT_SAMPLED,
    SPOIL_NO_LOGPROBS,
    SPOIL_TOP_ID,
    SPOIL_STEP,
    SPOIL_PROMPT_LOGPROBS,
    SPOIL_ROUTED,
    SPOIL_COUNT_OF_KINDS
} fake_spoil;

/* A call that waits to be answered. */
typedef struct fake_step {
    rpc_call *call;
    const Conclave__StepRequest *request;
} fake_step;

typedef struct fake_slot {
    bool used, sampled;
    uint32_t last_sampled;
    uint32_t known, block_count;
    int32_t num_logprobs;
    uint32_t history[FAKE_LEN_MAX];
} fake_slot;

typedef struct fake_router {
    Conclave__Router_Service base; /* first: methods get a pointer to it */
    rpc_server *server;
    char url[128];
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    /* What Health says. */
    uint64_t incarnation, fingerprint;
    const char *version;
    bool ready;
    uint32_t max_num_seqs, max_num_batched_tokens, max_model_len, kv_block_count;
    /* What becomes of steps. */
    bool hold;                      /* keep calls instead of answering */
    rpc_status fail;                /* answer the next step so, without having looked at it */
    fake_spoil spoil;               /* of the next answer */
    uint32_t lose_every;            /* every so many steps are computed, but answered as lost */
    fake_step held[FAKE_STEPS_MAX]; /* in the order of steps */
    uint32_t held_count;
    step_order order;
    uint32_t steps, refused; /* counts; refused: requests that broke a rule */
    uint32_t computed;       /* steps that were answered well */
    char refusal[128];
    fake_slot slots[FAKE_SEQS_MAX];
} fake_router;

/* A router of 4 sequences, 16 tokens a step, 64 of context, 64 blocks of 4; not serving yet. */
void fake_router_init(fake_router *r);
void fake_router_serve(fake_router *r);
/* Ends the service as a killed process does; a held call is lost. */
void fake_router_kill(fake_router *r);
/* A new life: another incarnation, nothing known. */
void fake_router_restart(fake_router *r);
void fake_router_forget(fake_router *r); /* the same, not serving yet */

void fake_router_hold(fake_router *r);      /* from the next step on */
void fake_router_wait_held(fake_router *r); /* until a step is held */
void fake_router_pass(fake_router *r);      /* answer the oldest held one, hold the next */
void fake_router_release(fake_router *r);   /* answer those held, hold no more */

/* It is of FAKE_LAYERS layers, with FAKE_TOP_K experts for each token: all of them
 * fake_router_expert() of the tokens up to it. */
#define FAKE_LAYERS 2u
#define FAKE_TOP_K 2u
uint8_t fake_router_expert(const uint32_t *history, uint32_t count);

/* The token that follows history [count]. */
uint32_t fake_router_next(const uint32_t *history, uint32_t count);

#endif
