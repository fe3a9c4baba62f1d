/* routing_stats: rows per layer and expert over the last steps, for balancing.
 *
 * A sliding window of window_size steps: a ring of each step's counts, and their sums, which every
 * new step updates.  Every step_interval steps it is time to look at the placement. Both have
 * vLLM's names and meaning (--eplb-config).
 *
 * The window is also summed up in parts, a few runs of steps: how much they differ says how much of
 * an unevenness is chance (eplb_dispersion.h).
 *
 * Adding a step costs one or two nanoseconds for each layer and expert.  Memory: 4 * window_size *
 * L * E bytes for the ring, and 8 * ROUTING_PARTS * L * E.
 *
 *   L layers   E experts   P parts
 *
 * Threads: one owner; nothing is allocated after create().
 */
#ifndef MOE_ROUTER_ROUTING_STATS_H
#define MOE_ROUTER_ROUTING_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define ROUTING_CELLS_MAX (1u << 22) /* L * E */
#define ROUTING_WINDOW_MAX 1000000u
#define ROUTING_RING_BYTES_MAX (1ull << 32)
#define ROUTING_PARTS 8u

typedef struct routing_stats routing_stats;

/*   MOE_ERANGE  a size is 0 or above its limit
 *   MOE_ENOMEM  the text names the bytes  */
moe_err routing_stats_create(routing_stats **out, uint32_t num_layers, uint32_t num_experts,
                             uint32_t window_size, uint32_t step_interval, errbuf *eb);
void routing_stats_free(routing_stats *s); /* accepts NULL */

/* One step's rows, [L][E].  Returns whether step_interval steps have passed since it last did. */
bool routing_stats_add(routing_stats *s, const uint32_t *counts);

/* The same from counters that only grow (transformer_expert_tokens()): the step's rows are what
 * they grew by, below 2^32, since the call before; the first call takes all of them. */
bool routing_stats_add_totals(routing_stats *s, const uint64_t *totals);

/* The last step that was added, [L][E]; zeros before the first. */
const uint32_t *routing_stats_last(const routing_stats *s);

/* Sums over the window, [L][E]; valid until the next add. */
const uint64_t *routing_stats_rows(const routing_stats *s);
uint32_t routing_stats_window_steps(const routing_stats *s); /* steps in the window now */

/* Sums over the parts of the window that are full, oldest first: [P][L][E] into rows, which has
 * room for ROUTING_PARTS; returns P.  Together they are the window but for its last steps, fewer
 * than a part has, and as many at its beginning. */
uint32_t routing_stats_parts(const routing_stats *s, uint64_t *rows);
uint64_t routing_stats_steps(const routing_stats *s); /* steps added since create */

#endif
