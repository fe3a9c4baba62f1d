/* phases: where the time of one thread goes, phase by phase: as shares in the log (--profile), as
 * single spans in a file (--trace), or both.
 *
 * The thread says which phase it enters; what passes until the next one is added to it.  Off, an
 * entry costs one branch.
 *
 * Threads: one owner.
 */
#ifndef MOE_COMMON_PHASES_H
#define MOE_COMMON_PHASES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/trace.h"

#define PHASES_MAX 24
#define PHASES_REPORT_NS (5 * NS_PER_S)

typedef struct phases {
    const char *const *names; /* [count], static */
    uint32_t count;
    bool on;
    bool logged;   /* else only traced */
    trace *traced; /* borrowed; NULL = not */
    uint32_t current;
    uint64_t since_ns, reported_ns;
    uint64_t ns[PHASES_MAX];
    uint64_t rounds, items; /* since the last report: steps and rows, say */
    trace_place place;      /* what the current phase is about */
    trace_place next_place; /* and those that follow */
} phases;

/* Switched off: for whoever is given none. */
extern phases phases_off;

/* Begins in phase 0, which should be that of waiting for work.  On if it is logged or traced. */
void phases_init(phases *p, const char *const *names, uint32_t count, bool logged, trace *traced);

/* Not for use outside of this header. */
void phases_trace_span(phases *p, uint64_t now);

/* What the phases from the next one on are about: for the trace. */
static inline void
phases_set_place(phases *p, uint64_t step, uint32_t layer, uint32_t micro_batch, uint32_t rows)
{
    if (!p->on) return;
    p->next_place = (trace_place){
        .step = step, .layer = (uint16_t)layer, .micro_batch = (uint8_t)micro_batch, .rows = rows};
}

static inline void
phase_enter(phases *p, uint32_t phase)
{
    if (!p->on) return;
    const uint64_t now = clock_now_ns();
    p->ns[p->current] += now - p->since_ns;
    if (p->traced != NULL) phases_trace_span(p, now);
    p->since_ns = now;
    p->current = phase;
}

/* One round is over.  Every PHASES_REPORT_NS one line goes to the log:
 *   profile rounds=120 items=960 us_per_round=812.4 idle=10.1% attention=22.3% ...
 * shares are of all time since the last line, us_per_round is without phase 0. */
void phases_end_round(phases *p, const char *subsystem, uint64_t items);
/* The same line at once, if there was a round since the last one. */
void phases_report(phases *p, const char *subsystem);

#endif
