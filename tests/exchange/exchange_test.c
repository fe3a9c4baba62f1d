/* exchange: routers and workers end to end, over each backend. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "tests/exchange/fleet.h"

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"

static const exchange_limits small = {.micro_batch_max = 4,
                                      .token_max = 33,
                                      .num_layers = 3,
                                      .num_experts = 11,
                                      .top_k = 3,
                                      .hidden = 70,
                                      .dtype = DTYPE_INT8};

static fleet f;

static void
quiet(void)
{
    log_init("test", LOG_LEVEL_ERROR);
}

TestSuite(exchange, .init = quiet, .timeout = 120);

/* Steps over all micro-batches, posted together, of both modes and changing sizes. */
static void
run_steps(router_end *re, uint32_t steps)
{
    test_batch *batches = calloc(MICRO_BATCH_MAX, sizeof *batches);
    cr_assert_not_null(batches);
    for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
        batch_init(&batches[mb], &f);
    }
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t sizes[] = {f.limits.token_max, 1, 2, f.limits.token_max / 2};
        for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
            batch_draw(&batches[mb], &f, re, step % 4 == 3 ? WIRE_TP : WIRE_EP, mb,
                       sizes[(mb + step) % 4], step * 16 + mb);
            batch_post(&batches[mb], &f, re);
        }
        for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
            batch_wait_and_check(&batches[mb], &f, re);
        }
    }
    for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
        batch_fini(&batches[mb]);
    }
    free(batches);
}

static void
run_fleets(enum link_choice choice, moe_dtype dtype)
{
    const uint32_t worker_counts[] = {1, 2, 3, 5, 8};
    for (size_t i = 0; i < sizeof worker_counts / sizeof worker_counts[0]; i++) {
        exchange_limits limits = small;
        limits.dtype = dtype;
        fleet_init(&f, &limits);
        fleet_add_workers(&f, worker_counts[i], choice);
        fleet_start(&f);
        router_end *re = fleet_router(&f, 0, 7);
        fleet_connect_all(&f, re, choice);
        run_steps(re, 12);
        router_end_free(re);
        fleet_fini(&f);
    }
}

Test(exchange, brings_every_row_home_over_shared_memory)
{
    run_fleets(ALL_SHM, DTYPE_INT8);
}

Test(exchange, brings_every_row_home_over_ipc)
{
    run_fleets(ALL_IPC, DTYPE_F32);
}

Test(exchange, brings_every_row_home_over_tcp)
{
    run_fleets(ALL_TCP, DTYPE_INT8);
}

Test(exchange, brings_every_row_home_over_a_mix_of_backends)
{
    run_fleets(MIXED, DTYPE_BF16);
}

Test(exchange, serves_several_routers_from_one_set_of_workers)
{
    enum { ROUTERS = 4 };
    router_end *routers[ROUTERS];
    test_batch *batches = calloc(ROUTERS, sizeof *batches);
    cr_assert_not_null(batches);
    fleet_init(&f, &small);
    fleet_add_workers(&f, 2, MIXED);
    fleet_start(&f);
    for (uint32_t r = 0; r < ROUTERS; r++) {
        routers[r] = fleet_router(&f, r, 70 + r);
        fleet_connect_all(&f, routers[r], r % 2 ? ALL_IPC : ALL_SHM);
        batch_init(&batches[r], &f);
    }
    for (uint32_t step = 0; step < 20; step++) {
        for (uint32_t r = 0; r < ROUTERS; r++) {
            batch_draw(&batches[r], &f, routers[r], WIRE_EP, step % 4, 1 + (step + r) % 33,
                       step * 100 + r);
            batch_post(&batches[r], &f, routers[r]);
        }
        for (uint32_t r = 0; r < ROUTERS; r++) {
            batch_wait_and_check(&batches[r], &f, routers[r]);
        }
    }
    for (uint32_t r = 0; r < ROUTERS; r++) {
        batch_fini(&batches[r]);
        router_end_free(routers[r]);
    }
    free(batches);
    fleet_fini(&f);
}

/* More pending dispatches than one take has room for: the next take finds the rest. */
Test(exchange, takes_what_is_left_when_a_take_was_full)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_SHM);
    router_end *re = fleet_router(&f, 0, 7);
    fleet_connect(&f, re, 0, EXCHANGE_SHM);
    test_batch *batches = calloc(MICRO_BATCH_MAX, sizeof *batches);
    cr_assert_not_null(batches);
    for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
        batch_init(&batches[mb], &f);
        batch_draw(&batches[mb], &f, re, WIRE_EP, mb, 5, mb);
        batch_post(&batches[mb], &f, re);
    }
    worker_end *we = f.workers[0].we;
    uint32_t served = 0;
    while (served < MICRO_BATCH_MAX) {
        cr_assert(worker_end_wait(we, clock_now_ns() + NS_PER_S));
        served += worker_serve(we);
    }
    for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
        batch_wait_and_check(&batches[mb], &f, re);
        batch_fini(&batches[mb]);
    }
    free(batches);
    worker_serve(we); /* nothing: so the next wait sleeps until its deadline */
    cr_expect_not(worker_end_wait(we, clock_now_ns() + 1));
    router_end_free(re);
    fleet_fini(&f);
}

Test(exchange, sends_nothing_for_an_empty_list)
{
    errbuf eb;
    uint32_t missing;
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_SHM);
    router_end *re = fleet_router(&f, 0, 7);
    fleet_connect(&f, re, 0, EXCHANGE_SHM);
    const wire_hdr h = {.token_count = 0};
    const dispatch_list empty = {0};
    cr_expect_eq(router_end_post(re, 0, &h, &empty), MOE_OK);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK);
    cr_expect_null(router_end_result(re, 0, 0));
    cr_expect_null(router_end_result_hdr(re, 0, 0));
    router_end_free(re);
    fleet_fini(&f);
}

Test(exchange, stop_ends_a_wait_for_good)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_SHM);
    fleet_start(&f);
    fleet_stop(&f); /* joins the thread, which waited without a deadline */
    cr_expect_not(worker_end_wait(f.workers[0].we, 0));
    fleet_fini(&f);
}
