#include "loadgen/progress.h"

#include <unistd.h>

#include "common/clock.h"

#define LINE_INTERVAL_NS (5 * NS_PER_S)

void
progress_init(progress *p, FILE *to)
{
    *p = (progress){.to = to, .rewrite = isatty(fileno(to)) == 1};
}

void
progress_show(void *ctx, const client_progress *state)
{
    progress *p = ctx;
    const bool last = state->completed + state->failed == state->count;
    if (!p->rewrite && !last && state->elapsed_ns - p->shown_ns < LINE_INTERVAL_NS) return;
    p->shown_ns = state->elapsed_ns;

    const double elapsed_s = (double)state->elapsed_ns / (double)NS_PER_S;
    fprintf(p->to, "%s%zu/%zu done, %zu in flight, %zu failed, %.1f s, %.2f req/s%s",
            p->rewrite ? "\r\033[K" : "", state->completed + state->failed, state->count,
            state->active, state->failed, elapsed_s,
            elapsed_s > 0 ? (double)state->completed / elapsed_s : 0,
            p->rewrite && !last ? "" : "\n");
    fflush(p->to);
}
