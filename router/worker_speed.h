/* worker_speed: how fast workers are beside each other, from what they measured themselves.
 *
 * A worker's work is the rows it multiplied and the weights it read for them, a read counting as
 * REPLICA_ROWS_MIN rows: a worker with more rows for each read is not faster for that.  Its rate is
 * work by busy time since the look before; its speed is that beside the median of all workers.
 *
 * Speeds decide where experts go, so they must not follow noise.  Workers of one host share its
 * cores, and whoever else wants them makes now one, now the other seem half as fast: they are
 * measured together, as one.  Rates are smoothed over looks, and speeds move in steps of sqrt(2),
 * but only when the smoothed speed is a factor of 1.68 (one and a half steps) from what it was
 * taken for, and not before WORKER_SPEED_LOOKS looks.
 *
 * Threads: plain data; one owner.
 */
#ifndef MOE_ROUTER_WORKER_SPEED_H
#define MOE_ROUTER_WORKER_SPEED_H

#include <stdbool.h>
#include <stdint.h>

/* Least busy time between two looks for the second to count. */
#define WORKER_SPEED_BUSY_NS 20000000u
#define WORKER_SPEED_LOOKS 4

/* A worker's own counters, since it began. */
typedef struct worker_work {
    uint64_t incarnation;
    uint64_t rows, reads; /* multiplied; experts of dispatches */
    uint64_t busy_ns;
} worker_work;

/* What is known of one worker; {0} at first. */
typedef struct worker_speed {
    worker_work last;
    uint64_t work, busy_ns; /* since the look before; 0: not known */
    double smooth;          /* log2 of the speed */
    uint32_t looks;         /* that went into it */
    int32_t half_octaves;
} worker_speed;

/* A look at one worker.  One with another incarnation begins anew. */
void worker_speed_note(worker_speed *s, const worker_work *now);

/* After all were noted: workers [count] that are known are compared.
 *   hosts    [count] equal for workers of one host
 *   speeds   [count] out: powers of sqrt(2); 1 for who is not known
 *   scratch  [count]  */
void worker_speed_compare(worker_speed *workers, uint32_t count, const uint32_t *hosts,
                          double *speeds, double *scratch);

#endif
