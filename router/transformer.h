/* transformer: one step of the model: embed, attend, gate, dispatch to the experts, combine, head.
 *
 * Holds the router's weights and the KV cache's physical blocks.  It knows no requests: a step is a
 * list of sequences with a start position, tokens and a block table.  Rows are split over up to
 * MICRO_BATCH_MAX micro-batches that run as a ping-pong pipeline: while the workers have one's
 * rows, the next one's attention is computed.
 *
 *   T tokens of the step   H hidden   V vocabulary   E experts   K top-k   L layers
 *
 * The last layer's attention output and feed-forward, and the head, are computed only for positions
 * whose logits somebody wants.
 *
 * Determinism: a row's arithmetic never depends on the other rows (kernels/), and results are added
 * in the gate's top-k order, not in order of arrival, so that it does not matter which replica of
 * an expert computed a row either.
 *
 * Threads: one step thread; it uses the pool.  Nothing is allocated after create().
 */
#ifndef MOE_ROUTER_TRANSFORMER_H
#define MOE_ROUTER_TRANSFORMER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/phases.h"
#include "common/pool.h"
#include "exchange/router_end.h"
#include "kernels/table.h"
#include "model/checkpoint.h"
#include "model/weight_load.h"
#include "router/placement.h"

typedef struct transformer transformer;

typedef struct transformer_config {
    moe_dtype attn_dtype;
    moe_dtype expert_dtype;
    moe_dtype kv_dtype; /* DTYPE_F32, DTYPE_BF16 or DTYPE_INT8 */
    uint32_t token_max; /* tokens of one step */
    uint32_t seq_max;
    uint32_t max_model_len;
    uint32_t kv_block_count;
    uint32_t micro_batches;    /* 1 .. MICRO_BATCH_MAX */
    phases *phases;            /* the step thread's (STEP_PHASES); borrowed; NULL = none */
    weight_cache packed_cache; /* of attention and head weights; a NULL folder: none */
} transformer_config;

/* What a step's time goes to. */
enum {
    PHASE_IDLE,
    PHASE_PREPARE,
    PHASE_EMBED,
    PHASE_NORM,
    PHASE_QKV,
    PHASE_ROPE_STORE,
    PHASE_ATTENTION,
    PHASE_PACK,
    PHASE_PROJECT,
    PHASE_FFN_NORM,
    PHASE_GATE,
    PHASE_DISPATCH,
    PHASE_WAIT,
    PHASE_COMBINE,
    PHASE_HEAD,
    PHASE_SAMPLE,
    PHASE_REPLY,
    STEP_PHASES
};
extern const char *const step_phase_names[STEP_PHASES];

/* A worker is lost: empty its slots, and those of others that are lost too, in the fleet's
 * placement. False: an expert is left without a host, or this router closes; the step then fails.
 */
typedef bool expert_fleet_lost_fn(void *user, uint32_t worker);

/* Where the experts are, and how to reach them; fixed during a step, but for workers that are lost.
 */
typedef struct expert_fleet {
    router_end *exchange;
    enum wire_mode mode;
    uint32_t worker_count; /* WIRE_TP: of slices */
    const uint32_t *links; /* [worker_count] index of each one's link in the exchange; NULL: its own
                              number */
    const placement *placement; /* of worker_count workers, indexed (WIRE_EP); else NULL */
    uint64_t epoch;
    uint32_t timeout_ms;           /* longest wait for one layer's results */
    expert_fleet_lost_fn *on_lost; /* called by the step thread; NULL: a loss fails the step */
    void *user;
} expert_fleet;

/* One sequence's part. */
typedef struct step_seq {
    uint32_t start_pos;
    uint32_t token_count;
    const uint32_t *tokens;      /* [token_count] */
    const uint32_t *block_table; /* covers start_pos + token_count tokens */
    bool want_all;               /* logits of every token, else of the last only if want_last */
    bool want_last;
    uint8_t *routed; /* [token_count][L][K] out: the experts of each token, ids of
                        transformer_id_bytes(), little-endian; NULL: nobody asks */
} step_seq;

/* Called in the order of sequences and tokens.  logits [V], borrowed. */
typedef void logits_fn(void *user, uint32_t seq, uint32_t token_index, const float *logits);

/* What tests look at; any pointer may be NULL. */
typedef struct transformer_probe {
    uint32_t *gate_ids;  /* [L][T][K] */
    float *gate_weights; /* [L][T][K] */
    float *hidden;       /* [L][T][H] residual after each layer */
} transformer_probe;

typedef struct step_times {
    uint64_t expert_wait_ns; /* waiting for workers */
    uint32_t resends;        /* times that a lost worker's part was given to others */
} step_times;

/*   MOE_ERANGE   a limit is 0 or too large
 *   MOE_ENOMEM   weights, cache or buffers don't fit: the text names the bytes
 *   MOE_EINVAL   a weight can't be quantized  */
moe_err transformer_create(transformer **out, const checkpoint *c, const kernel_table *kernels,
                           pool *p, const transformer_config *config, errbuf *eb);
void transformer_free(transformer *tf); /* accepts NULL */

/* The calling thread is the step thread: bind it as the pool is bound (pool_bind_caller()). */
void transformer_bind_thread(const transformer *tf);

/* Limits of the exchange that fits this transformer. */
exchange_limits transformer_exchange_limits(const transformer *tf);

/* Run one step.  seqs [count]; the sum of token_count <= token_max.  Sequences are independent but
 * for blocks they share. A probe makes every row count as wanted in the last layer. On error
 * nothing was sampled; the written KV entries may be garbage and are to be computed again.
 *   MOE_ERANGE  too many sequences or tokens
 *   MOE_EINVAL  a token id >= V, or a position >= max_model_len
 *   MOE_ETIMEDOUT, MOE_ECLOSED, MOE_EINTERNAL  from the exchange, *lost_worker is the link,
 * and on_lost could not replace it.  If it can, what the workers owe is asked for again, of the
 *     others (attempt + 1), and the step goes on with the same bits  */
moe_err transformer_step(transformer *tf, const expert_fleet *fleet, uint64_t step,
                         const step_seq *seqs, uint32_t count, logits_fn *on_logits, void *user,
                         const transformer_probe *probe, step_times *times, uint32_t *lost_worker,
                         errbuf *eb);

/* Bytes of an expert's id in step_seq.routed: 1 or 2. */
uint32_t transformer_id_bytes(const transformer *tf);

/* [L * E] rows per layer and expert since create. */
const uint64_t *transformer_expert_tokens(const transformer *tf);

/* What a worker has done for this router since create.  Any thread. */
typedef struct worker_load {
    uint64_t rows;    /* that it computed */
    uint64_t busy_ns; /* computing them */
    uint64_t wait_ns; /* from when a step had nothing else to do until its results were there.
                         Workers are waited for side by side: the slowest has the most */
} worker_load;
worker_load transformer_worker_load(const transformer *tf, uint32_t worker);

#endif
