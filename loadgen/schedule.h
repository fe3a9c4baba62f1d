/* schedule: which request is due next.
 *
 * First turns are due at the times that arrivals.h drew or a trace holds.  A later turn of a
 * session becomes due when the turn before it has ended and its user has thought; only the run
 * itself can tell when that is.
 *
 * Threads: one at a time for each schedule.
 */
#ifndef MOE_LOADGEN_SCHEDULE_H
#define MOE_LOADGEN_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "loadgen/dataset.h"

typedef struct schedule_item {
    uint64_t due_ns;
    size_t index;
} schedule_item;

typedef struct schedule {
    const prompt *prompts;
    const uint64_t *arrivals_ns;
    size_t count;
    size_t root;         /* the next first turn; count = none is left */
    schedule_item *heap; /* [turn_count] later turns that are waiting for their time */
    size_t turn_count;
} schedule;

/* prompts and arrivals_ns [count] are borrowed until schedule_fini(); arrivals of first turns never
 * decrease, those of later turns are not read.
 *   MOE_ENOMEM  */
moe_err schedule_init(schedule *s, const prompt *prompts, const uint64_t *arrivals_ns,
                      size_t count);
void schedule_fini(schedule *s);

/* Is prompt i a turn that waits for prompt i - 1? */
bool schedule_is_turn(const schedule *s, size_t i);

/* The earliest request; of equal times the one with the lower index.  False when none is due at a
 * known time.  Times are ns from the start of the run. */
bool schedule_peek(const schedule *s, schedule_item *out);
/* Take away what peek showed. */
void schedule_pop(schedule *s);

/* A later turn's time is known now. */
void schedule_add(schedule *s, size_t index, uint64_t due_ns);

#endif
