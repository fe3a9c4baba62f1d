/* load_feed: what a step's load becomes: sums for who plans, records of a trace. */
#include <criterion/criterion.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "router/load_feed.h"
#include "router/routing_stats.h"

#define CELLS 6u /* 2 layers of 3 experts */

static load_feed *feed;
static _Atomic uint32_t bell;
static char path[64];
static errbuf eb;

static load_feed_config config;

static void
setup(void)
{
    snprintf(path, sizeof path, "/tmp/conclave-feed-XXXXXX");
    close(mkstemp(path));
    atomic_store(&bell, 0);
    config = (load_feed_config){
        .shape = {.num_layers = 2, .num_experts = 3, .top_k = 2, .steps_per_record = 1},
        .balance = {.window_size = 4, .step_interval = 20},
        .bell = &bell};
}

static void
teardown(void)
{
    load_feed_stop(feed);
    feed = NULL;
    unlink(path);
}

TestSuite(load_feed, .init = setup, .fini = teardown, .timeout = 30);

static void
start(void)
{
    cr_assert_eq(load_feed_start(&feed, &config, &eb), MOE_OK, "%s", eb.text);
}

/* Expert i gets i rows in every step. */
static void
add(uint64_t step)
{
    static uint64_t totals[CELLS];
    for (uint32_t i = 0; i < CELLS; i++)
        totals[i] += i;
    load_feed_add(feed, step, totals);
}

Test(load_feed, leaves_the_windows_sums_and_says_when_an_interval_is_over)
{
    uint64_t rows[CELLS];
    start();
    cr_expect_eq(load_feed_take(feed, rows), 0);
    for (uint64_t step = 0; step < 19; step++)
        add(step);
    cr_expect_eq(load_feed_take(feed, rows), 4);
    for (uint32_t i = 0; i < CELLS; i++)
        cr_expect_eq(rows[i], 4 * i);
    cr_expect_not(load_feed_is_due(feed));
    cr_expect_eq(atomic_load(&bell), 0);
    add(19);
    cr_expect_eq(atomic_load(&bell), 1);
    cr_expect(load_feed_is_due(feed));
    cr_expect_not(load_feed_is_due(feed), "it is due once");
}

Test(load_feed, leaves_the_windows_parts_when_an_interval_is_over)
{
    uint64_t rows[ROUTING_PARTS * CELLS];
    start();
    for (uint64_t step = 0; step < 19; step++)
        add(step);
    cr_expect_eq(load_feed_take_parts(feed, rows), 0);
    add(19);
    add(20);
    cr_assert_eq(load_feed_take_parts(feed, rows), 4, "a window of 4 steps");
    for (uint32_t i = 0; i < 4 * CELLS; i++)
        cr_expect_eq(rows[i], i % CELLS);
}

/* Read the trace: its steps are `steps`, rising; returns how many records there are. */
static uint32_t
read_trace(uint64_t *steps, uint32_t max)
{
    routing_trace t;
    routing_trace_record record;
    uint32_t counts[CELLS], n = 0;
    char *bytes;
    size_t len;
    cr_assert_eq(file_read(path, 1u << 20, &bytes, &len, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(routing_trace_open(&t, bytes, len, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(t.header.num_experts, 3);
    while (routing_trace_next(&t, &record, counts, &eb) == MOE_OK && n < max) {
        steps[n++] = record.first_step;
        for (uint32_t i = 0; i < CELLS && n > 1; i++)
            cr_expect_eq(counts[i], i, "step %llu", (unsigned long long)record.first_step);
    }
    free(bytes);
    return n;
}

Test(load_feed, writes_every_step_to_the_trace_also_when_steps_are_counted_anew)
{
    static const uint64_t given[] = {1, 2, 3, 1, 2, 9}, want[] = {1, 2, 3, 4, 5, 9};
    uint64_t steps[8];
    config.trace_path = path;
    start();
    for (uint32_t i = 0; i < 6; i++)
        add(given[i]);
    load_feed_stop(feed);
    feed = NULL;
    cr_assert_eq(read_trace(steps, 8), 6);
    cr_expect_arr_eq(steps, want, sizeof want);
}

Test(load_feed, leaves_out_steps_rather_than_wait_for_the_disk)
{
    static uint64_t steps[20000];
    config.trace_path = path;
    start();
    for (uint64_t step = 1; step <= 10000; step++)
        add(step);
    load_feed_stop(feed);
    feed = NULL;
    const uint32_t n = read_trace(steps, 20000);
    cr_expect_geq(n, LOAD_FEED_RING);
    cr_expect_leq(n, 10000);
}

Test(load_feed, refuses_what_its_parts_refuse)
{
    config.trace_path = "/no/such/folder/trace";
    cr_expect_eq(load_feed_start(&feed, &config, &eb), MOE_EIO);
    cr_expect_null(feed);
    config.trace_path = "";
    config.balance.window_size = 0;
    cr_expect_eq(load_feed_start(&feed, &config, &eb), MOE_ERANGE);
    load_feed_stop(NULL);
}
