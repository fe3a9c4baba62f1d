/* sequence: what the engine keeps of one sequence from its submission to its last event, and how
 * its sink hears of it.
 *
 * Threads: create from any thread; the rest on the engine's, with no lock held: sinks are called.
 */
#ifndef MOE_FRONTEND_SEQUENCE_H
#define MOE_FRONTEND_SEQUENCE_H

#include "conclave.pb-c.h"

#include "frontend/engine.h"

#define SEQUENCE_EOS_MAX 8

typedef struct sequence {
    seq_id id;
    gen_sink *sink;
    void *user;
    gen_params params; /* own copy: the caller's may be gone once the sink has its last event, but
                          the scheduler looks at them once more */
    uint32_t prompt_len;
    uint32_t prompt_reported; /* prompt positions whose logprobs were handed out: next is + 1 */
    uint32_t cached_tokens;
    bool started;
    uint32_t stop_count;
    /* What min_tokens forbids: stop tokens and end-of-sequence. */
    uint32_t stop_ids[GEN_STOP_TOKENS_MAX + SEQUENCE_EOS_MAX];
} sequence;

/* eos_ids [eos_count], at most SEQUENCE_EOS_MAX.  NULL: out of memory.  Ended by sequence_end(), or
 * freed with free() when its sink has had its last event or was never called. */
sequence *sequence_create(uint32_t prompt_len, const gen_params *params, const uint32_t *eos_ids,
                          uint32_t eos_count, gen_sink *sink, void *user);

/* Hand out its last event and free it.  error: why, with FINISH_ERROR; else NULL. */
void sequence_end(sequence *q, finish_reason reason, const char *error);
/* The same, with FINISH_ERROR: nobody was there to run it. */
void sequence_end_unserved(sequence *q, const char *error);

/* Hand out what a step's result says of its prompt's tokens; what was told before is left out. */
void sequence_tell_prompt_logprobs(sequence *q, const seq_work *w,
                                   const Conclave__SeqResult *result);

/* Hand out which experts the step's tokens used, if that was asked for. */
void sequence_tell_routed(sequence *q, const seq_work *w, const Conclave__SeqResult *result);

/* Hand out the sampled token; `finish` if it is the last.  Returns whether the sink wants the
 * sequence ended. */
bool sequence_tell_token(sequence *q, const seq_work *w, const Conclave__SeqResult *result,
                         finish_reason finish);

#endif
