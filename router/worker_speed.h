/* worker_speed: how fast workers are beside each other, from what they measured themselves.
 *
 * A worker's work is the rows it multiplied and the weights it read for them, a read counting as
 * REPLICA_ROWS_MIN rows: a worker with more rows for each read is not faster for that.  Its rate is
 * work by busy time since the look before; its speed is that beside the median of all workers.
 *
 * Speeds decide where experts go, so they must not follow noise.  Rates are smoothed over looks,
 * and speeds move in steps of a factor of sqrt(2): one is left only when the smoothed speed is well
 * beyond half a step, and not before the second look.
 *
 * Threads: plain data; one owner.
 */
#ifndef MOE_ROUTER_WORKER_SPEED_H
#define MOE_ROUTER_WORKER_SPEED_H

#include <stdbool.h>
#include <stdint.h>

/* Least busy time between two looks for the second to count. */
#define WORKER_SPEED_BUSY_NS 20000000u

/* A worker's own counters, since it began. */
typedef struct worker_work {
    uint64_t incarnation;
    uint64_t rows, reads; /* multiplied; experts of dispatches */
    uint64_t busy_ns;
} worker_work;

/* What is known of one worker; {0} at first. */
typedef struct worker_speed {
    worker_work last;
    double rate;    /* work by ns since the look before; 0: not known */
    double smooth;  /* log2 of the speed */
    uint32_t looks; /* that went into it */
    int32_t half_octaves;
} worker_speed;

/* A look at one worker.  One with another incarnation begins anew. */
void worker_speed_note(worker_speed *s, const worker_work *now);

/* After all were noted: workers [count] whose rate is known are compared.
 *   speeds   [count] out: powers of sqrt(2); 1 for who is not known
 *   scratch  [count]  */
void worker_speed_compare(worker_speed *workers, uint32_t count, double *speeds, double *scratch);

#endif
