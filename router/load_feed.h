/* load_feed: the load of each step on its way from the step thread to who plans and who records.
 *
 * The step thread adds a step's rows to a sliding window (routing_stats.h) and, every few steps,
 * leaves a copy of the window's sums, and when an interval is over, of those of its parts.  With a
 * trace, each step's rows also go through a ring of
 * LOAD_FEED_RING steps to a thread that writes them (routing_trace.h); when the disk is slower,
 * steps are left out of the trace, and counted.
 *
 *   L layers   E experts
 *
 * Threads: add() from the step thread, which it never blocks and where it allocates nothing; take()
 * and the rest from any.
 */
#ifndef MOE_ROUTER_LOAD_FEED_H
#define MOE_ROUTER_LOAD_FEED_H

#include "router/eplb_config.h"
#include "router/routing_trace.h"

#define LOAD_FEED_RING 256u

typedef struct load_feed load_feed;

typedef struct load_feed_config {
    routing_trace_header shape; /* steps_per_record, too */
    eplb_config balance;
    const char *trace_path; /* NULL or "": none */
    _Atomic uint32_t *bell; /* bumped when step_interval steps have passed */
} load_feed_config;

/*   MOE_ERANGE, MOE_ENOMEM, MOE_EIO  as routing_stats_create(), routing_trace_create()  */
moe_err load_feed_start(load_feed **out, const load_feed_config *config, errbuf *eb);
void load_feed_stop(load_feed *f); /* closes the trace; accepts NULL */

/* One step is over: totals [L * E] rows since the start of the process. */
void load_feed_add(load_feed *f, uint64_t step, const uint64_t *totals);

/* The window's sums as they were left last, rows [L * E]; returns the steps in them, 0: none. */
uint32_t load_feed_take(load_feed *f, uint64_t *rows);
/* Steps since the start of the process: all of them, and those before the sums were left last. */
uint64_t load_feed_steps(const load_feed *f);
uint64_t load_feed_snapshot_steps(load_feed *f);
/* Sums over the window's parts as the last interval that is over left them, oldest first: rows
 * [ROUTING_PARTS][L * E]; returns how many parts, 0: no interval is over. */
uint32_t load_feed_take_parts(load_feed *f, uint64_t *rows);
/* Have step_interval steps passed since this last said so? */
bool load_feed_is_due(load_feed *f);

#endif
