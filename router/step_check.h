/* step_check: does a StepRequest keep the rules?  Asked before anything is changed, so that a
 * refused step leaves no trace.
 *
 * Threads: the step thread.
 */
#ifndef MOE_ROUTER_STEP_CHECK_H
#define MOE_ROUTER_STEP_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "conclave.pb-c.h"

#include "common/err.h"

#define STEP_STOP_TOKENS_MAX 64
#define STEP_BIAS_MAX 1024
/* Most bytes of SeqResult.routed_experts in a reply.  A router whose steps could have more does not
 * offer them. */
#define STEP_ROUTED_BYTES_MAX (32u << 20)

/* What the rules depend on. */
typedef struct step_rules {
    uint32_t vocab_size;
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;
    uint32_t max_model_len;
    uint32_t kv_block_count;
    bool routed_experts; /* SeqWork.routed_experts may be set */
} step_rules;

/* What is known of one sequence's slot. */
typedef struct slot_state {
    bool used;
    uint32_t known;       /* tokens at positions 0 .. known-1 were fed */
    uint32_t block_count; /* of its block table */
    bool sampled;         /* its last step sampled a token, which the next may name as such */
} slot_state;

/* Where the frontend's steps have got to. */
typedef struct step_order {
    uint64_t client; /* rpc_call_incarnation() of the frontend; 0 = none yet */
    uint64_t life;   /* StepRequest.life */
    uint64_t step;   /* the last one taken */
    bool failed;     /* and it failed: only a new life may follow */
} step_order;

/* Has it overtaken the step before it, which must be on its way? */
bool step_order_overtook(const step_order *order, uint64_t client,
                         const Conclave__StepRequest *request);

/* Is this step's turn now, by a router of this incarnation?
 *   MOE_ECLOSED  it counts on another incarnation's KV cache (the router has started again since),
 *                is left over from an older life, or follows a step that failed
 *   MOE_EINVAL   a repeat or a gap, or a life that does not begin with step 1  */
moe_err step_order_check(const step_order *order, uint64_t incarnation, uint64_t client,
                         const Conclave__StepRequest *request, errbuf *eb);

/*   slots  [max_num_seqs] states before the step
 *   seen   [max_num_seqs] scratch
 * Errors name the slot, the field and the values:
 *   MOE_ERANGE   more sequences or tokens than a step may have
 *   MOE_EINVAL   anything else  */
moe_err step_check(const step_rules *rules, const slot_state *slots, bool *seen,
                   const Conclave__StepRequest *request, errbuf *eb);

/* How many tokens a sequence's work feeds. */
static inline uint32_t
step_work_tokens(const Conclave__SeqWork *work)
{
    return work->token_is_last_sampled ? 1 : (uint32_t)work->n_tokens;
}

#endif
