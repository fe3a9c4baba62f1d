/* eplb_search: better hosts for the experts of one layer.
 *
 * improve() goes on from what is there, one expert or one exchange of two at a time, always at the
 * slowest worker: few moves. fresh() starts over, once from DeepSeek's solution for the same slots
 * (its replicas that fall on one worker merged into one with a larger share) and once greedily, and
 * improves both: more moves, but never slower than DeepSeek's. relabel() then gives the workers
 * numbers so that most experts stay where they are.
 *
 * Threads: plain data; one owner.
 */
#ifndef MOE_ROUTER_EPLB_SEARCH_H
#define MOE_ROUTER_EPLB_SEARCH_H

#include "router/eplb_layer.h"

typedef struct eplb_search eplb_search;

/* fleet is borrowed; S >= E.
 *   num_groups, num_nodes  of DeepSeek's hierarchical solution, which is tried beside the global
 *                          one where num_nodes > 1 and the sizes divide; else 1
 *   MOE_ENOMEM  */
moe_err eplb_search_create(eplb_search **out, const eplb_fleet *fleet, uint32_t num_groups,
                           uint32_t num_nodes);
void eplb_search_free(eplb_search *s); /* accepts NULL */

/* Until the slowest worker is within `tolerance` of the ideal time, or no step helps.  Never makes
 * the slowest slower. l is settled before and after.
 *   add_replicas  false: experts change places, but none gets a replica more  */
void eplb_search_improve(eplb_search *s, eplb_layer *l, bool add_replicas, double tolerance);

/* The best solution found from nothing.  l was reset to its loads. */
void eplb_search_fresh(eplb_search *s, eplb_layer *l, double tolerance);

/* Exchange what workers of equal speed host, so that less has to be loaded. */
void eplb_search_relabel(eplb_search *s, eplb_layer *l, const placement *from, uint32_t layer);

#endif
