/* phases: where the time of one thread goes, phase by phase (--profile).
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

#define PHASES_MAX 24
#define PHASES_REPORT_NS (5 * NS_PER_S)

typedef struct phases {
    const char *const *names; /* [count], static */
    uint32_t count;
    bool on;
    uint32_t current;
    uint64_t since_ns, reported_ns;
    uint64_t ns[PHASES_MAX];
    uint64_t rounds, items; /* since the last report: steps and rows, say */
} phases;

/* Switched off: for whoever is given none. */
extern phases phases_off;

/* Begins in phase 0, which should be that of waiting for work. */
void phases_init(phases *p, const char *const *names, uint32_t count, bool on);

static inline void
phase_enter(phases *p, uint32_t phase)
{
    if (!p->on) return;
    const uint64_t now = clock_now_ns();
    p->ns[p->current] += now - p->since_ns;
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
