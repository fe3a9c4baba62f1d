/* mini_fleet: a transformer and its workers in one process, over the real exchange, for tests.
 *
 * What the processes do with RPC is done here by direct calls: load experts, make links.  One
 * sequence owns the KV cache's blocks in order (block i of sequence s is s * blocks_per_seq + i).
 *
 * Failures abort the test (cr_assert).
 */
#ifndef MOE_TESTS_SUPPORT_MINI_FLEET_H
#define MOE_TESTS_SUPPORT_MINI_FLEET_H

#include "expert_worker/compute.h"
#include "router/transformer.h"

#define MINI_WORKERS_MAX 8

typedef struct mini_options {
    const char *model_dir;
    moe_dtype expert_dtype, attn_dtype, kv_dtype;
    enum wire_mode mode;
    uint32_t workers;   /* 0 = 1 */
    uint32_t redundant; /* slots of a layer beyond its experts, filled with replicas */
    exchange_backend backend;
    bool tcp;               /* nng: tcp instead of ipc */
    uint32_t token_max;     /* 0 = 512 */
    uint32_t max_model_len; /* 0 = 1024 */
    uint32_t seq_max;       /* 0 = 4 */
    uint32_t micro_batches; /* 0 = 1 */
    uint32_t threads;       /* 0 = 1 */
    unsigned cpu_flags;     /* of all kernels; UINT_MAX = this machine's */
} mini_options;

typedef struct mini_fleet {
    mini_options options;
    checkpoint *checkpoint;
    const model_config *config;
    kernel_table kernels;
    pool *router_pool, *worker_pools[MINI_WORKERS_MAX];
    transformer *transformer;
    router_end *router;
    worker_end *workers[MINI_WORKERS_MAX];
    compute *computes[MINI_WORKERS_MAX];
    placement *placement; /* WIRE_EP */
    expert_fleet fleet;
    uint32_t blocks_per_seq;
    uint32_t *block_tables; /* [seq_max][blocks_per_seq] */
    uint64_t step;
    char dir[64];
} mini_fleet;

void mini_fleet_start(mini_fleet *m, const mini_options *options);
void mini_fleet_stop(mini_fleet *m);

/* A sequence's part of a step, with the block table of sequence number s. */
step_seq mini_seq(const mini_fleet *m, uint32_t s, const uint32_t *tokens, uint32_t start,
                  uint32_t count);

/* Run one step; asserts that it succeeds. */
void mini_step(mini_fleet *m, const step_seq *seqs, uint32_t count, logits_fn *on_logits,
               void *user, const transformer_probe *probe);

/* Logits of every position of one sequence, fed in chunks of `chunk` tokens (0 = token_max) as
 * sequence s. logits  [count][V] */
void mini_logits(mini_fleet *m, uint32_t s, const uint32_t *tokens, uint32_t count, uint32_t chunk,
                 float *logits);

/* Greedy continuation: out [steps]; gaps [steps] may be NULL. */
void mini_greedy(mini_fleet *m, uint32_t s, const uint32_t *prompt, uint32_t count, uint32_t steps,
                 uint32_t *out);

#endif
