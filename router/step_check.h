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

/* What the rules depend on. */
typedef struct step_rules {
    uint32_t vocab_size;
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;
    uint32_t max_model_len;
    uint32_t kv_block_count;
    uint64_t incarnation; /* of this router */
} step_rules;

/* What is known of one sequence's slot. */
typedef struct slot_state {
    bool used;
    uint32_t known;       /* tokens at positions 0 .. known-1 were fed */
    uint32_t block_count; /* of its block table */
} slot_state;

/*   slots      [max_num_seqs] states before the step
 *   seen       [max_num_seqs] scratch
 *   last_step  number of the step before; 0 = none.  Step 1 may always come: the frontend starts
 * over Errors name the slot, the field and the values: MOE_ECLOSED  the step counts on another
 * incarnation's KV cache MOE_ERANGE   more sequences or tokens than a step may have MOE_EINVAL
 * anything else  */
moe_err step_check(const step_rules *rules, const slot_state *slots, bool *seen, uint64_t last_step,
                   const Conclave__StepRequest *request, errbuf *eb);

#endif
