/* step_message: a plan as a StepRequest, and whether a StepReply answers it.
 *
 * A message's parts are sized once for max_num_seqs.  They borrow from the plan and from its
 * sequences (seq_work.user is a sequence), and are needed until the request is packed; of the work,
 * what was asked for is compared with the answer.
 *
 * Threads: the engine's.
 */
#ifndef MOE_FRONTEND_STEP_MESSAGE_H
#define MOE_FRONTEND_STEP_MESSAGE_H

#include "conclave.pb-c.h"

#include "frontend/scheduler.h"

typedef struct step_message {
    Conclave__StepRequest request; /* step, life and incarnation are the caller's to fill */
    Conclave__SeqWork *work;       /* [max_num_seqs], as the next three */
    Conclave__SeqWork **pointers;
    Conclave__SeqInit *inits;
    Conclave__Sampling *samplings;
    uint32_t routed_token_bytes; /* that a result has for each token whose experts were asked for */
} step_message;

/* MOE_ENOMEM: fini() all the same. */
moe_err step_message_init(step_message *m, uint32_t max_num_seqs, uint32_t routed_token_bytes);
void step_message_fini(step_message *m); /* accepts one that is all zero */

/* Fill m->request anew.  A sequence's first work notes on it what came from the prefix cache. */
void step_message_build(step_message *m, const step_plan *plan);

/* Does a reply hold what this message asked for, of sequences that have not ended?  Sinks count on
 * it. */
bool step_message_is_answered(const step_message *m, const step_plan *plan, uint32_t vocab_size,
                              const Conclave__StepReply *reply);

#endif
