#include "router/worker_speed.h"

#include <math.h>
#include <stdlib.h>

#include "router/replica_choice.h"

#define SMOOTHING 0.25 /* weight of the last look */
#define OCTAVES_MOST 8
/* Half octaves from what it was taken for. */
#define LEAVE 1.5

void
worker_speed_note(worker_speed *s, const worker_work *now)
{
    if (s->last.incarnation != now->incarnation || now->busy_ns < s->last.busy_ns) {
        *s = (worker_speed){.last = {.incarnation = now->incarnation}};
    }
    const uint64_t busy = now->busy_ns - s->last.busy_ns;
    s->work = s->busy_ns = 0;
    if (busy < WORKER_SPEED_BUSY_NS) return; /* the next look sees more */
    s->work = now->rows - s->last.rows + REPLICA_ROWS_MIN * (now->reads - s->last.reads);
    s->busy_ns = busy;
    s->last = *now;
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void
follow(worker_speed *s, double speed)
{
    const double now = fmin(fmax(log2(speed), -OCTAVES_MOST), OCTAVES_MOST);
    s->smooth = s->looks == 0 ? now : s->smooth + SMOOTHING * (now - s->smooth);
    s->looks++;
    if (s->looks < WORKER_SPEED_LOOKS || fabs(2 * s->smooth - s->half_octaves) < LEAVE) return;
    s->half_octaves = (int32_t)lround(2 * s->smooth);
}

/* Work by ns of a worker's host; 0: not known. */
static double
host_rate(const worker_speed *workers, uint32_t count, const uint32_t *hosts, uint32_t host)
{
    double work = 0, busy = 0;
    for (uint32_t w = 0; w < count; w++) {
        if (hosts[w] != host) continue;
        work += (double)workers[w].work;
        busy += (double)workers[w].busy_ns;
    }
    return busy > 0 ? work / busy : 0;
}

void
worker_speed_compare(worker_speed *workers, uint32_t count, const uint32_t *hosts, double *speeds,
                     double *scratch)
{
    uint32_t known = 0;
    for (uint32_t w = 0; w < count; w++) {
        speeds[w] = workers[w].work > 0 ? host_rate(workers, count, hosts, hosts[w]) : 0;
        if (speeds[w] > 0) scratch[known++] = speeds[w];
    }
    qsort(scratch, known, sizeof *scratch, compare_doubles);
    const double median = known ? (scratch[(known - 1) / 2] + scratch[known / 2]) / 2 : 1;
    for (uint32_t w = 0; w < count; w++) {
        if (speeds[w] > 0) follow(&workers[w], speeds[w] / median);
        speeds[w] = exp2(workers[w].half_octaves / 2.0);
    }
}
