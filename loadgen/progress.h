/* progress: a running line about a running load, on standard error.
 *
 * On a terminal one line is rewritten several times a second; elsewhere a line is added every few
 * seconds, so that a log stays readable.
 *
 * Threads: one at a time.
 */
#ifndef MOE_LOADGEN_PROGRESS_H
#define MOE_LOADGEN_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "loadgen/client.h"

typedef struct progress {
    FILE *to;
    bool rewrite; /* `to` is a terminal */
    uint64_t shown_ns;
} progress;

void progress_init(progress *p, FILE *to);

/* For client_config.on_progress, with a progress as ctx. */
void progress_show(void *ctx, const client_progress *state);

#endif
