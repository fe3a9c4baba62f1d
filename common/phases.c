#include "common/phases.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"

phases phases_off;

void
phases_init(phases *p, const char *const *names, uint32_t count, bool logged, trace *traced)
{
    assert(count > 0 && count <= PHASES_MAX);
    *p = (phases){.names = names,
                  .count = count,
                  .on = logged || traced != NULL,
                  .logged = logged,
                  .traced = traced};
    p->since_ns = p->reported_ns = clock_now_ns();
}

/* Waiting for work (phase 0) is the gap between two spans. */
void
phases_trace_span(phases *p, uint64_t now)
{
    if (p->current != 0) {
        trace_add(p->traced, &(trace_event){.kind = TRACE_SPAN,
                                            .name = (uint8_t)p->current,
                                            .at = p->place,
                                            .start_ns = p->since_ns,
                                            .end_ns = now});
    }
    p->place = p->next_place;
}

void
phases_report(phases *p, const char *subsystem)
{
    if (!p->logged || p->rounds == 0) return;
    uint64_t total = 0;
    for (uint32_t i = 0; i < p->count; i++)
        total += p->ns[i];
    char text[PHASES_MAX * 32] = "";
    size_t len = 0;
    for (uint32_t i = 0; i < p->count && total > 0 && len < sizeof text; i++) {
        if (p->ns[i] == 0) continue;
        len += (size_t)snprintf(text + len, sizeof text - len, " %s=%.1f%%", p->names[i],
                                100.0 * (double)p->ns[i] / (double)total);
    }
    LOG_INFO(subsystem, "profile rounds=%llu items=%llu us_per_round=%.1f%s",
             (unsigned long long)p->rounds, (unsigned long long)p->items,
             (double)(total - p->ns[0]) / 1e3 / (double)p->rounds, text);
    memset(p->ns, 0, sizeof p->ns);
    p->rounds = p->items = 0;
    p->reported_ns = clock_now_ns();
}

void
phases_end_round(phases *p, const char *subsystem, uint64_t items)
{
    if (!p->on) return;
    phase_enter(p, 0);
    p->rounds++;
    p->items += items;
    if (p->logged && p->since_ns - p->reported_ns >= PHASES_REPORT_NS) phases_report(p, subsystem);
}
