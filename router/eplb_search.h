/* eplb_search: better hosts for the experts of one layer.
 *
 * step() goes on from what is there, one expert or one exchange of two at a time, always at the
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

/* One step: an expert goes to another worker or gets a replica there, or two change places.  Never
 * makes the slowest worker slower; it may take several steps to make it faster, when several
 * workers are equally slow. Returns false, and changes nothing, when the slowest is within
 * `tolerance` of the ideal time, or no step helps. l is settled before and after.
 *   add_replicas  false: experts change places, but none gets a replica more
 *   price         least that a step must take off a slow worker's time, for each expert moved  */
bool eplb_search_step(eplb_search *s, eplb_layer *l, bool add_replicas, double tolerance,
                      double price);

/* A bound for steps one after the other; ends are reached long before. */
static inline uint32_t
eplb_search_steps_max(const eplb_fleet *fleet)
{
    return 4 * fleet->slot_count + 64;
}

/* Use spare slots, and those of replicas of experts with few rows, for replicas of experts with
 * many rows on workers that have less to shed than reach * sqrt(rows) (eplb_layer_unlucky()). Never
 * makes the slowest slower. */
void eplb_search_loosen(eplb_search *s, eplb_layer *l, double reach);

/* The best solution found from nothing.  l was reset to its loads. */
void eplb_search_fresh(eplb_search *s, eplb_layer *l, double tolerance);

/* Exchange what workers of equal speed host, so that less has to be loaded. */
void eplb_search_relabel(eplb_search *s, eplb_layer *l, const placement *from, uint32_t layer);

#endif
