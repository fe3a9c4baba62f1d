#include "router/worker_speed.h"

#include <math.h>
#include <stdlib.h>

#include "router/replica_choice.h"

#define SMOOTHING 0.5 /* weight of the last look */
#define OCTAVES_MOST 8
/* Of half an octave, beyond which a step is left. */
#define LEAVE 0.8

void
worker_speed_note(worker_speed *s, const worker_work *now)
{
    if (s->last.incarnation != now->incarnation || now->busy_ns < s->last.busy_ns) {
        *s = (worker_speed){.last = {.incarnation = now->incarnation}};
    }
    const uint64_t busy = now->busy_ns - s->last.busy_ns;
    s->rate = 0;
    if (busy < WORKER_SPEED_BUSY_NS) return; /* the next look sees more */
    const uint64_t work =
        now->rows - s->last.rows + REPLICA_ROWS_MIN * (now->reads - s->last.reads);
    s->rate = (double)work / (double)busy;
    s->last = *now;
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void
follow(worker_speed *s, double median)
{
    const double now = fmin(fmax(log2(s->rate / median), -OCTAVES_MOST), OCTAVES_MOST);
    s->smooth = s->looks == 0 ? now : s->smooth + SMOOTHING * (now - s->smooth);
    s->looks++;
    if (s->looks < 2 || fabs(2 * s->smooth - s->half_octaves) < LEAVE) return;
    s->half_octaves = (int32_t)lround(2 * s->smooth);
}

void
worker_speed_compare(worker_speed *workers, uint32_t count, double *speeds, double *scratch)
{
    uint32_t known = 0;
    for (uint32_t w = 0; w < count; w++) {
        if (workers[w].rate > 0) scratch[known++] = workers[w].rate;
    }
    qsort(scratch, known, sizeof *scratch, compare_doubles);
    for (uint32_t w = 0; w < count; w++) {
        if (workers[w].rate > 0)
            follow(&workers[w], (scratch[(known - 1) / 2] + scratch[known / 2]) / 2);
        speeds[w] = exp2(workers[w].half_octaves / 2.0);
    }
}
