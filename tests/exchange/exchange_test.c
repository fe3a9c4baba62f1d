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
