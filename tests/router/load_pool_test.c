/* load_pool: sums over routers' windows; who is gone, began anew or tells nonsense. */
#include <criterion/criterion.h>

#include <string.h>

#include "router/fleet_share.h"
#include "router/load_pool.h"
#include "router/routing_stats.h"
#include "tests/router/shifted_clock.h"

#define CELLS 6u /* 2 layers of 3 experts */
#define INTERVAL 10u

static load_pool *loads;
static _Atomic uint32_t bell;
static errbuf eb;

static void
setup(void)
{
    atomic_store(&bell, 0);
    cr_assert_eq(load_pool_create(&loads,
                                  &(load_pool_config){.num_layers = 2,
                                                      .num_experts = 3,
                                                      .step_interval = INTERVAL,
                                                      .bell = &bell},
                                  &eb),
                 MOE_OK, "%s", eb.text);
}

static void
teardown(void)
{
    load_pool_free(loads);
}

TestSuite(load_pool, .init = setup, .fini = teardown, .timeout = 30);

/* Each expert has `rows`; count 0: nothing new. */
static moe_err
tell(uint32_t router, uint64_t life, uint64_t steps, uint64_t rows, size_t count)
{
    uint64_t window[CELLS + 1];
    Conclave__FleetRequest q = CONCLAVE__FLEET_REQUEST__INIT;
    for (uint32_t i = 0; i <= CELLS; i++)
        window[i] = rows;
    q.router_id = router;
    q.incarnation = life;
    q.steps = steps;
    q.window_steps = (uint32_t)steps;
    q.window_rows = window;
    q.n_window_rows = count;
    return load_pool_note(loads, &q, &eb);
}

/* Router 0 has one row everywhere, of 5 steps. */
static void
expect_sum(uint64_t want, uint32_t want_steps)
{
    uint64_t rows[CELLS];
    for (uint32_t i = 0; i < CELLS; i++)
        rows[i] = 1;
    cr_expect_eq(load_pool_add(loads, rows, 5), want_steps);
    for (uint32_t i = 0; i < CELLS; i++)
        cr_expect_eq(rows[i], want);
}

Test(load_pool, adds_up_what_routers_told_last)
{
    expect_sum(1, 5);
    cr_assert_eq(tell(1, 100, 3, 10, CELLS), MOE_OK);
    expect_sum(11, 5);
    cr_assert_eq(tell(ROUTER_MAX - 1, 200, 8, 100, CELLS), MOE_OK);
    expect_sum(111, 8);
    cr_assert_eq(tell(1, 100, 4, 20, CELLS), MOE_OK);
    cr_assert_eq(tell(1, 100, 0, 0, 0), MOE_OK);
    expect_sum(121, 8);
}

Test(load_pool, forgets_who_is_silent_and_what_an_earlier_life_told)
{
    tell(1, 100, 3, 10, CELLS);
    tell(2, 200, 3, 100, CELLS);
    shifted_clock_advance_ms(FOLLOWER_TIMEOUT_MS - 100);
    tell(2, 200, 0, 0, 0);
    expect_sum(111, 5);
    shifted_clock_advance_ms(200);
    expect_sum(101, 5);
    tell(2, 201, 0, 0, 0);
    expect_sum(1, 5);
    tell(1, 100, 0, 0, 0);
    expect_sum(11, 5);
}

Test(load_pool, refuses_what_is_no_load)
{
    tell(1, 100, 3, 10, CELLS);
    cr_expect_eq(tell(1, 100, 4, 1, CELLS - 1), MOE_EINVAL);
    cr_expect_eq(tell(1, 100, 4, 1, CELLS + 1), MOE_EINVAL);
    cr_expect_eq(tell(1, 100, ROUTING_WINDOW_MAX + 1, 1, CELLS), MOE_EINVAL);
    cr_expect_eq(tell(1, 100, 4, 1ull << 48, CELLS), MOE_EINVAL);
    cr_expect_neq(eb.text[0], '\0');
    expect_sum(11, 5);
    load_pool *none;
    const load_pool_config bad = {.num_layers = 0, .num_experts = 3};
    cr_expect_eq(load_pool_create(&none, &bad, &eb), MOE_ERANGE);
    cr_expect_null(none);
}

Test(load_pool, rings_once_when_followers_step_and_router_0_does_not)
{
    tell(1, 100, INTERVAL, 1, CELLS);
    load_pool_looked(loads);
    tell(1, 100, 3 * INTERVAL - 1, 1, CELLS);
    cr_expect(!load_pool_is_due(loads) && atomic_load(&bell) == 0);
    tell(1, 100, 3 * INTERVAL, 1, CELLS);
    tell(1, 100, 3 * INTERVAL + 1, 1, CELLS);
    cr_expect(load_pool_is_due(loads));
    cr_expect_eq(atomic_load(&bell), 1);
    load_pool_looked(loads);
    cr_expect(!load_pool_is_due(loads));
}
