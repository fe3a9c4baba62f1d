/* fleet_tally: figures of several routers, added up and printed. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "exchange/wire.h"
#include "frontend/fleet_tally.h"

#define ROUTERS 2

static fleet_tally *tally;
static errbuf eb;

static void
setup(void)
{
    cr_assert_eq(fleet_tally_create(&tally, ROUTERS, "model_name=\"m\"", &eb), MOE_OK);
}

static void
teardown(void)
{
    fleet_tally_free(tally);
    tally = NULL;
}

TestSuite(fleet_tally, .init = setup, .fini = teardown, .timeout = 10);

/* One worker's word of a router. */
static void
take(uint32_t router, uint32_t id, uint64_t rows, uint64_t busy_ns, uint64_t wait_ns)
{
    Conclave__WorkerStatus w = CONCLAVE__WORKER_STATUS__INIT, *list[] = {&w};
    Conclave__RouterStats s = CONCLAVE__ROUTER_STATS__INIT;
    w.worker_id = id;
    w.rows = rows;
    w.busy_ns = busy_ns;
    w.wait_ns = wait_ns;
    w.slots = 4;
    w.bytes_hosted = 1000;
    s.n_workers = 1;
    s.workers = list;
    fleet_tally_take(tally, router, &s);
}

static void
expect_printed(const char *const *lines, size_t count, bool there)
{
    strbuf out;
    strbuf_init(&out, 1 << 20);
    fleet_tally_print(tally, &out);
    for (size_t i = 0; i < count; i++)
        cr_expect_eq(strstr(strbuf_text(&out), lines[i]) != NULL, there, "%s in %s", lines[i],
                     strbuf_text(&out));
    strbuf_fini(&out);
}

#define EXPECT(there, ...)                                                                         \
    expect_printed((const char *const[]){__VA_ARGS__},                                             \
                   sizeof(const char *const[]){__VA_ARGS__} / sizeof(char *), there)

Test(fleet_tally, adds_up_what_routers_say_of_a_worker)
{
    take(0, 3, 10, 1500000000, 250000000);
    take(1, 3, 5, 500000000, 0);
    EXPECT(true, "# TYPE conclave:worker_rows_total counter\n",
           "conclave:worker_rows_total{model_name=\"m\",worker=\"3\"} 15\n",
           "conclave:worker_busy_seconds_total{model_name=\"m\",worker=\"3\"} 2\n",
           "conclave:worker_wait_seconds_total{model_name=\"m\",worker=\"3\"} 0.25\n",
           "conclave:worker_slots{model_name=\"m\",worker=\"3\"} 4\n",
           "conclave:worker_hosted_bytes{model_name=\"m\",worker=\"3\"} 1000\n");
}

Test(fleet_tally, goes_on_rising_when_a_router_starts_anew)
{
    take(0, 0, 10, 0, 0);
    take(0, 0, 12, 0, 0);
    take(0, 0, 3, 0, 0);
    EXPECT(true, "worker_rows_total{model_name=\"m\",worker=\"0\"} 15\n");
}

Test(fleet_tally, shows_workers_that_router_0_knows_now)
{
    take(0, 0, 10, 0, 0);
    take(0, 1, 20, 0, 0);
    take(1, 2, 30, 0, 0);
    EXPECT(true, "worker=\"1\"} 20\n");
    EXPECT(false, "worker=\"0\"", "worker=\"2\"");
    take(0, WORKER_MAX, 1, 0, 0);
    EXPECT(false, "worker=\"");
}

Test(fleet_tally, tells_each_layers_balancedness_and_each_verdict)
{
    Conclave__VerdictCount v[3] = {CONCLAVE__VERDICT_COUNT__INIT, CONCLAVE__VERDICT_COUNT__INIT,
                                   CONCLAVE__VERDICT_COUNT__INIT};
    Conclave__VerdictCount *list[] = {&v[0], &v[1], &v[2]};
    static char dear[] = "too_dear", adopted[] = "adopted", quoted[] = "\"} 1\nx{";
    v[0].verdict = dear;
    v[1].verdict = adopted;
    v[2].verdict = quoted;
    v[0].count = v[2].count = 7;
    double layers[] = {0.5, 1};
    Conclave__BalanceStats b = CONCLAVE__BALANCE_STATS__INIT;
    b.n_verdicts = 3;
    b.verdicts = list;
    b.n_layer_balancedness = 2;
    b.layer_balancedness = layers;
    Conclave__RouterStats s = CONCLAVE__ROUTER_STATS__INIT;
    s.balance = &b;
    fleet_tally_take(tally, 0, &s);
    fleet_tally_take(tally, 1, &s); /* only router 0 balances */
    EXPECT(true, "conclave:layer_balancedness{model_name=\"m\",layer=\"0\"} 0.5\n",
           "conclave:layer_balancedness{model_name=\"m\",layer=\"1\"} 1\n",
           "conclave:placement_decisions_total{model_name=\"m\",verdict=\"too_dear\"} 7\n",
           "verdict=\"adopted\"} 0\n");
    EXPECT(false, "x{");
    v[0].count = 2;
    fleet_tally_take(tally, 0, &s);
    EXPECT(true, "verdict=\"too_dear\"} 9\n");
}
