/* transformer_impl: what the files of transformer share.
 *
 *   transformer.c      the step and the router's own arithmetic
 *   expert_dispatch.c  rows to the workers and back, and what happens when one is lost on the way
 *
 * Threads: the step thread, as transformer.h; items of a phase run on the pool.
 */
#ifndef MOE_ROUTER_TRANSFORMER_IMPL_H
#define MOE_ROUTER_TRANSFORMER_IMPL_H

#include "router/replica_choice.h"
#include "router/transformer.h"
#include "router/weights.h"

/* The rows of one micro-batch: x rows [first, first + count).  In the last layer, wanted rows are
 * moved to the front of the range. */
typedef struct micro_batch {
    uint32_t first, count;
    dispatch_plan *plan;
    bool pending; /* rows are with the workers */
    uint32_t layer, attempt;
} micro_batch;

/* worker_load, while it grows: only the step thread adds. */
typedef struct load_counts {
    _Atomic uint64_t rows, busy_ns, wait_ns;
} load_counts;

struct transformer {
    model_config config;
    transformer_config limits;
    const kernel_table *kernels;
    pool *pool;
    router_weights weights;

    char *kv; /* [L][kv_block_count][kv_block_stride] */
    size_t kv_bytes, kv_block_stride;
    float *rope_cos, *rope_sin; /* [max_model_len][head_dim / 2] */

    /* Rows of the step, all [token_max]. */
    float *x;           /* [H] residual stream */
    float *normed;      /* [hidden_stride] */
    char *act;          /* [act_stride] activation rows for the next product */
    float *qkv;         /* [qkv_width] */
    float *attn;        /* [heads * head_dim] */
    float *proj;        /* [hidden_stride] */
    float *gate_logits; /* [gate_stride] */
    uint32_t *topk_ids; /* [K] */
    float *topk_weights;
    uint32_t *row_seq, *row_pos, *row_index; /* sequence, position, place in the step's rows */
    bool *wanted;
    float *logits;  /* [HEAD_ROWS][logits_stride] */
    float *scratch; /* [threads][scratch_stride] attention's */
    size_t hidden_stride, act_stride, gate_stride, logits_stride, scratch_stride;

    phases *phases;

    micro_batch batches[MICRO_BATCH_MAX];
    uint32_t batch_count;
    uint64_t *expert_tokens; /* [L * E] */
    replica_choice *choice;
    uint32_t *expert_rows; /* [E] of the micro-batch that is dispatched */
    uint64_t *worker_rows; /* [WORKER_MAX] chosen so far */
    load_counts loads[WORKER_MAX];

    /* The phase being run by the pool. */
    struct {
        const step_seq *seqs;
        const transformer_probe *probe;
        uint32_t layer, first, count;
        uint32_t step_rows; /* T */
        const expert_fleet *fleet;
        uint32_t micro_batch;
        gemm_args gemm;
        gemm_fn *gemm_fn;
        uint32_t tile_total, tile_items;
        const float *norm_weight;
        void *norm_rows; /* the exchange's token rows */
        bool routed;     /* some sequence has step_seq.routed */
    } job;
};

/* Run fn for the rows first .. first + count - 1, a range of them an item; an item asks for its
 * range with job_rows(). */
void transformer_run_rows(transformer *tf, pool_fn *fn, uint32_t first, uint32_t count,
                          uint64_t work_per_row);
void transformer_job_rows(const transformer *tf, uint32_t item, uint32_t *begin, uint32_t *end);

/* Send micro-batch m, whose rows are in place and whose experts are chosen, to the workers.
 *   MOE_ECLOSED, MOE_EBUSY  as router_end_post(); *lost names the worker
 *   others                  no dispatch plan  */
moe_err expert_dispatch(transformer *tf, const expert_fleet *fleet, uint32_t m, uint64_t step,
                        uint32_t *lost, errbuf *eb);
/* Give what lost workers owe to others: every micro-batch that is under way is sent anew, by a plan
 * without them.  err is what happened, *lost whom it happened to; MOE_OK if the step can go on. */
moe_err expert_resend(transformer *tf, const expert_fleet *fleet, uint64_t step, moe_err err,
                      step_times *times, uint32_t *lost, errbuf *eb);
/* After an error: nothing may be in flight when the rows are used again. */
void expert_settle(const expert_fleet *fleet);
/* Wait for micro-batch m's results, and add them to x. */
moe_err expert_combine(transformer *tf, const expert_fleet *fleet, uint32_t m, uint32_t layer,
                       uint64_t step, step_times *times, uint32_t *lost, errbuf *eb);

#endif
