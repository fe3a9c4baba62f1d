/* pack_plan: a list of matrices to pack, packed by all threads of a pool.
 *
 * Whole experts or layers are too large as work items: few of them would leave threads idle at the
 * end, and each reads its file at one place at a time.  A plan cuts every matrix into pieces of a
 * few megabytes (whole tiles, so that the bytes are those of pack_matrix()), reads ahead of its
 * threads, and lets go of source pages that were packed: the process grows to about the size of the
 * packed weights, not to that of both.
 *
 * Threads: one at a time; run() uses the pool.
 */
#ifndef MOE_MODEL_PACK_PLAN_H
#define MOE_MODEL_PACK_PLAN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/pool.h"
#include "model/pack.h"

typedef struct pack_plan pack_plan;

/* Room for matrix_max matrices; an expert counts as 2.
 *   MOE_ENOMEM  */
moe_err pack_plan_create(pack_plan **out, uint32_t matrix_max);
void pack_plan_free(pack_plan *plan); /* accepts NULL */

/* Later: pack_matrix() and pack_expert() of the same arguments.  Destinations are borrowed and
 * distinct until run() is over; tensors belong to an open checkpoint. */
void pack_plan_add_matrix(pack_plan *plan, void *dst, moe_dtype dtype, const tensor_view *t,
                          uint32_t row_begin, uint32_t row_end, uint32_t col_begin,
                          uint32_t col_end);
void pack_plan_add_expert(pack_plan *plan, void *slot, const expert_layout *layout,
                          const checkpoint *c, uint32_t layer, uint32_t expert);

/* Pack all of it; given up soon after *cancel becomes true (cancel may be NULL).
 *   MOE_EINVAL   a weight is not finite; the text names the first such tensor and its file
 *   MOE_ECLOSED  cancelled  */
moe_err pack_plan_run(pack_plan *plan, pool *p, const _Atomic bool *cancel, errbuf *eb);

/* Bytes of the checkpoint that run() reads. */
uint64_t pack_plan_source_bytes(const pack_plan *plan);

#endif
