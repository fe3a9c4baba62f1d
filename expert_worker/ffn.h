/* ffn: the experts' arithmetic: w2 ( silu(w1 x) * (w3 x) ) for every row of a group of dispatches.
 *
 * Three phases with a barrier between them: gate/up (SiLU fused), packing of the activations, down.
 * Work items are (expert, range of tiles), claimed dynamically; K is never split, so a row's bits
 * depend on nothing but the row and the expert. Items of one expert from several dispatches are
 * neighbours, so that its weights are read once.
 *
 * Threads: one compute thread calls run(); it uses the pool.  Nothing is allocated after create().
 */
#ifndef MOE_EXPERT_WORKER_FFN_H
#define MOE_EXPERT_WORKER_FFN_H

#include "common/phases.h"
#include "common/pool.h"
#include "exchange/worker_end.h"
#include "expert_worker/store.h"
#include "kernels/table.h"

typedef struct ffn ffn;

/* What a worker's time goes to. */
enum { FFN_IDLE, FFN_GROUP, FFN_GATE_UP, FFN_PACK, FFN_DOWN, FFN_REDUCE, FFN_REPLY, FFN_PHASES };
extern const char *const ffn_phase_names[FFN_PHASES];

/* row_max: rows one run() may hold: token_max * top_k of the largest link.
 *   MOE_ENOMEM  */
moe_err ffn_create(ffn **out, const kernel_table *kernels, pool *p, const expert_layout *layout,
                   uint32_t row_max, uint32_t view_max, uint32_t num_experts);
void ffn_free(ffn *f); /* accepts NULL */

/* Where run() says what it does; borrowed; NULL = nowhere. */
void ffn_set_phases(ffn *f, phases *p);

/* How many of views [count] (those of the first one's layer and part, the first always) fit one
 * run.
 */
uint32_t ffn_group(const ffn *f, const dispatch_view *views, uint32_t count);

/* Compute a group and write its result rows.  WIRE_STATUS_NOT_HOSTED if an expert is not in the
 * store; nothing is written then. */
uint32_t ffn_run(ffn *f, const expert_store *store, const dispatch_view *views, uint32_t count);

#endif
