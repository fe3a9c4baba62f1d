/* stepper: the router's step thread: StepRequests in, sampled tokens out.
 *
 * Keeps what a sequence's slot needs between two steps and what the frontend can rebuild at any
 * time: the block table, the token history (for penalties), the sampling parameters.  A request
 * that breaks a rule is refused as a whole, before anything is computed.
 *
 * Threads: submit from any thread (RPC handlers); the step thread owns everything else.
 */
#ifndef MOE_ROUTER_STEPPER_H
#define MOE_ROUTER_STEPPER_H

#include "proto/rpc.h"
#include "router/load_feed.h"
#include "router/membership.h"
#include "router/transformer.h"

typedef struct stepper stepper;

typedef struct stepper_config {
    transformer *transformer;
    membership *membership;
    uint32_t vocab_size;
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;
    uint32_t max_model_len;
    uint32_t kv_block_count;
    uint32_t layer_timeout_ms;   /* longest wait for one layer's results; a worker that is dead is
                                    found sooner */
    uint64_t incarnation;        /* of this router */
    uint32_t routed_token_bytes; /* of a token in SeqResult.routed_experts; 0: not told */
    load_feed *feed;             /* gets each step's load; NULL = none */
    phases *phases;              /* as the transformer's; NULL = none */
} stepper_config;

#define STEPPER_RECENT 256u

typedef struct stepper_stats {
    uint64_t steps, tokens, step_ns, expert_wait_ns;
    uint64_t resends; /* times that a step went on with replicas of what was lost */
    uint64_t recent_p50_ns, recent_p99_ns; /* of the last STEPPER_RECENT steps' times; 0: none */
} stepper_stats;

moe_err stepper_start(stepper **out, const stepper_config *config, errbuf *eb);
void stepper_stop(stepper *s); /* pending calls fail as unavailable; accepts NULL */

/* Queue a call of Router.Step; it is answered from the step thread, in the order of lives and
 * steps.  Two steps may be in flight: the second runs right after the first, on the tokens that one
 * sampled. */
void stepper_submit(stepper *s, const Conclave__StepRequest *request, rpc_call *call);

void stepper_get_stats(stepper *s, stepper_stats *out);

#endif
