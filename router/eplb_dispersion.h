/* eplb_dispersion: by how much workers' rows vary more than chance would have it.
 *
 * If every row chose its expert by itself, a worker's rows would vary like sqrt(rows).  They vary
 * more: tokens of one text choose alike experts, and texts stay for many steps.  What looks uneven
 * in one window is then even in the next, and moving experts after it gains nothing.
 *
 * Measured from sums over parts of the window: Pearson's chi-square of the workers' rows by its
 * degrees of freedom, over all layers, for single parts and for runs of two and four of them; the
 * largest counts, since what lasts longer than a part shows only in longer ones.
 *
 * Threads: pure function.
 */
#ifndef MOE_ROUTER_EPLB_DISPERSION_H
#define MOE_ROUTER_EPLB_DISPERSION_H

#include "router/placement.h"

/* Variance of a worker's rows, in units of what independent rows would have; >= 1, and 1 where
 * nothing can be said (one part, one worker, no memory).
 *   p          whose workers; its shares say how rows of an expert are split
 *   part_rows  [P][L][E] rows of parts that follow one another: routing_stats_parts()  */
double eplb_dispersion(const placement *p, const uint64_t *part_rows, uint32_t part_count);

#endif
