/* Workers that are killed while requests run.  With replicas of all experts nobody notices: no
 * request fails, no step fails, and the answers are those of a fleet that nothing happened to. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet_events.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 12u : 40u)
#define ROOM "--max-model-len=672 --max-num-batched-tokens=128 "

static fleet f;
static request_set requests;
static answer_set want;

TestSuite(failure, .timeout = 200, .fini = fleet_clean_up);

static void
ask_reference(void)
{
    requests_make(&requests, REQUEST_COUNT, 11);
    fleet_start(&f, &(fleet_options){.router_flags = ROOM});
    requests_ask_together(&requests, f.url, &want);
    fleet_stop(&f);
}

static void
wait_count(const char *name, const char *text, uint32_t count)
{
    for (uint64_t since = 0; fleet_count_log(&f, name, text) < count;)
        fleet_pause(&since, text);
}

/* Each round, one worker dies while all requests run, and is started again behind them. */
static void
survive(const char *exchange)
{
    char flags[256];
    snprintf(flags, sizeof flags, ROOM "--num-redundant-experts=8 --worker-timeout-ms=1000 %s",
             exchange);
    fleet_start(&f, &(fleet_options){.workers = 3, .router_flags = flags});
    for (uint32_t round = 0; round < (FLEET_QUICK ? 1u : 3u); round++) {
        answer_set got;
        requests_ask_begin(&requests, f.url);
        fleet_kill(fleet_worker(&f, round));
        wait_count("router-0", "worker lost", round + 1);
        fleet_start_worker(&f, round);
        requests_ask_end(&requests, &got);
        answers_expect_equal(&got, &want, exchange);
        answers_free(&got);
        wait_count("router-0", "worker ready", 4 + round);
    }
    cr_expect_eq(fleet_count_log(&f, "router-0", "step failed"), 0, "a step failed");
    fleet_stop(&f);
}

Test(failure, nobody_notices_the_death_of_a_worker_whose_experts_have_replicas)
{
    ask_reference();
    survive("--exchange=shm");
    survive("--exchange=nng");
    answers_free(&want);
    requests_free(&requests);
}
