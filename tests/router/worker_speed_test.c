/* worker_speed: steps of sqrt(2), held against noise; rows for each read do not count as speed. */
#include <criterion/criterion.h>

#include <math.h>

#include "common/hash.h"
#include "router/replica_choice.h"
#include "router/worker_speed.h"

#define WORKERS 4
#define LOOK_NS 1000000000.0

TestSuite(worker_speed, .timeout = 30);

static worker_speed workers[WORKERS];
static worker_work work[WORKERS];
static double speeds[WORKERS];
static uint32_t hosts[WORKERS] = {0, 1, 2, 3};

/* Every worker is busy for a second; rates[w]: how fast, 1 a row a us; rows for each read. */
static void
look(const double *rates, double rows_per_read)
{
    double scratch[WORKERS];
    for (uint32_t w = 0; w < WORKERS; w++) {
        const double units = LOOK_NS * rates[w] / 1000;
        const double reads = units / (rows_per_read + REPLICA_ROWS_MIN);
        work[w].incarnation = 5;
        work[w].busy_ns += (uint64_t)LOOK_NS;
        work[w].reads += (uint64_t)reads;
        work[w].rows += (uint64_t)(reads * rows_per_read);
        worker_speed_note(&workers[w], &work[w]);
    }
    worker_speed_compare(workers, WORKERS, hosts, speeds, scratch);
}

static void
expect_speeds(double a, double b, double c, double d)
{
    const double want[] = {a, b, c, d};
    for (uint32_t w = 0; w < WORKERS; w++)
        cr_expect_float_eq(speeds[w], want[w], 1e-9, "worker %u: %g", w, speeds[w]);
}

Test(worker_speed, is_beside_the_median_and_is_not_believed_at_once)
{
    const double rates[] = {1, 1, 0.5, 2};
    for (int i = 1; i < WORKER_SPEED_LOOKS; i++) {
        look(rates, 10);
        expect_speeds(1, 1, 1, 1);
    }
    look(rates, 10);
    expect_speeds(1, 1, 0.5, 2);
}

Test(worker_speed, does_not_follow_noise)
{
    for (uint64_t step = 0; step < 1000; step++) {
        double rates[WORKERS];
        for (uint32_t w = 0; w < WORKERS; w++)
            rates[w] = 0.7 + 0.6 * (double)(hash_combine(step, w) % 1000) / 1000;
        look(rates, 10);
        expect_speeds(1, 1, 1, 1);
    }
}

Test(worker_speed, stays_in_its_step_at_the_border_of_two)
{
    const double slow[] = {1, 1, 1, 1.3}, fast[] = {1, 1, 1, 1.5};
    const double far[] = {1, 1, 1, 2};
    for (int i = 0; i < 10; i++)
        look(i % 2 ? slow : fast, 10);
    expect_speeds(1, 1, 1, 1);
    for (int i = 0; i < 10; i++)
        look(far, 10);
    expect_speeds(1, 1, 1, 2);
    for (int i = 0; i < 10; i++)
        look(i % 2 ? slow : fast, 10);
    expect_speeds(1, 1, 1, 2);
    const double between[] = {1, 1, 1, 1.1};
    for (int i = 0; i < 10; i++)
        look(between, 10);
    expect_speeds(1, 1, 1, 1);
}

/* 0.5 and 1.5 beside each other are one of 1. */
Test(worker_speed, workers_of_one_host_are_measured_together)
{
    const double rates[] = {0.5, 1.5, 1, 0.4};
    hosts[1] = 0;
    for (int i = 0; i < 2 * WORKER_SPEED_LOOKS; i++)
        look(rates, 10);
    expect_speeds(1, 1, 1, exp2(-1.5));
}

Test(worker_speed, more_rows_for_each_read_are_no_speed)
{
    double scratch[WORKERS];
    for (int i = 0; i < 2 * WORKER_SPEED_LOOKS; i++) {
        for (uint32_t w = 0; w < WORKERS; w++) {
            const uint64_t rows = w == 3 ? 24 : 4; /* of each read; a read takes 8 us, a row 1 */
            work[w].incarnation = 5;
            work[w].reads += 1000;
            work[w].rows += 1000 * rows;
            work[w].busy_ns += 1000 * (rows + 8) * 10000;
            worker_speed_note(&workers[w], &work[w]);
        }
        worker_speed_compare(workers, WORKERS, hosts, speeds, scratch);
    }
    expect_speeds(1, 1, 1, 1);
}

Test(worker_speed, a_worker_begins_anew_with_another_incarnation_and_idle_ones_stay)
{
    const double rates[] = {1, 1, 0.5, 1};
    double scratch[WORKERS];
    for (int i = 0; i < WORKER_SPEED_LOOKS; i++)
        look(rates, 10);
    expect_speeds(1, 1, 0.5, 1);
    for (uint32_t w = 0; w < WORKERS; w++)
        worker_speed_note(&workers[w], &work[w]); /* nothing was done since */
    worker_speed_compare(workers, WORKERS, hosts, speeds, scratch);
    expect_speeds(1, 1, 0.5, 1);
    work[2] = (worker_work){.incarnation = 6, .busy_ns = 30000000, .rows = 30000};
    worker_speed_note(&workers[2], &work[2]);
    worker_speed_compare(workers, WORKERS, hosts, speeds, scratch);
    expect_speeds(1, 1, 1, 1);
    worker_speed_compare(workers, 0, hosts, speeds, scratch);
}
