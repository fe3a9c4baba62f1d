/* Several routers: the answers are those of one, under load, and through any router's death. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet_events.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 16u : 48u)
#define ROOM "--max-model-len=672 "

static fleet f;
static request_set requests;
static answer_set want;

TestSuite(routers, .timeout = 280, .fini = fleet_clean_up);

static void
ask_reference(const char *router_flags)
{
    requests_make(&requests, REQUEST_COUNT, 23);
    fleet_start(&f, &(fleet_options){.router_flags = router_flags});
    requests_ask_together(&requests, f.url, &want);
    fleet_stop(&f);
}

static void
ask_and_compare(const char *what)
{
    answer_set got;
    requests_ask_together(&requests, f.url, &got);
    answers_expect_equal(&got, &want, what);
    answers_free(&got);
}

static void
forget_reference(void)
{
    answers_free(&want);
    requests_free(&requests);
}

Test(routers, answers_are_the_same_for_any_number_of_routers)
{
    static const struct {
        const char *name;
        fleet_options options;
        bool in_quick;
    } variants[] = {
        {"2 routers", {.routers = 2, .router_flags = ROOM}, true},
        {"3 routers, 3 workers, nng",
         {.routers = 3, .workers = 3, .router_flags = ROOM "--exchange=nng --micro-batches=2"},
         true},
        {"3 routers, shares of 10 and 100",
         {.routers = 3, .router_flags = ROOM "--max-num-seqs=10 --max-num-batched-tokens=100"},
         false},
        {"2 routers, replicas",
         {.routers = 2, .workers = 3, .router_flags = ROOM "--num-redundant-experts=5"},
         false},
    };
    ask_reference(ROOM);
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        if (FLEET_QUICK && !variants[i].in_quick) continue;
        fleet_start(&f, &variants[i].options);
        ask_and_compare(variants[i].name);
        ask_and_compare(variants[i].name); /* with prefixes cached on one router or another */
        for (uint32_t r = 0; r < variants[i].options.routers; r++)
            cr_expect_gt(fleet_router_metric(&f, "conclave:router_steps_total", r), 0,
                         "%s: router %u had nothing to do", variants[i].name, r);
        fleet_stop(&f);
    }
    forget_reference();
}

Test(routers, tensor_parallel_answers_are_the_same_for_two_routers)
{
    ask_reference(ROOM "--parallelism=tp");
    fleet_start(&f, &(fleet_options){.routers = 2, .router_flags = ROOM "--parallelism=tp"});
    ask_and_compare("tp, 2 routers");
    cr_expect_gt(fleet_router_metric(&f, "conclave:router_steps_total", 1), 0);
    fleet_stop(&f);
    forget_reference();
}

/* Killed under load, and started again behind it. */
static void
survive_router(uint32_t id)
{
    char name[16];
    answer_set got;
    snprintf(name, sizeof name, "router-%u", id);
    const double before = fleet_router_metric(&f, "conclave:router_steps_total", id);
    requests_ask_begin(&requests, f.url);
    for (uint64_t since = 0;
         fleet_router_metric(&f, "conclave:router_steps_total", id) < before + 3;)
        fleet_pause(&since, "steps of the router that is to die");
    fleet_kill(fleet_find(&f, name));
    requests_ask_end(&requests, &got); /* the others alone */
    answers_expect_equal(&got, &want, name);
    answers_free(&got);
    cr_expect_eq(fleet_router_metric(&f, "conclave:router_ready", id), 0);
    fleet_start_router_id(&f, id);
    fleet_wait_router(&f, id);
    ask_and_compare("after its return");
}

Test(routers, nobody_notices_the_death_of_a_router_while_another_serves)
{
    ask_reference(ROOM);
    fleet_start(&f, &(fleet_options){.routers = 2, .router_flags = ROOM});
    survive_router(1);
    survive_router(0);
    fleet_stop(&f);
    forget_reference();
}

/* Each in turn is killed under load, and started again. */
static void
survive_workers(const char *router_flags)
{
    fleet_start(&f, &(fleet_options){.routers = 2, .workers = 3, .router_flags = router_flags});
    for (uint32_t round = 0; round < (FLEET_QUICK ? 1u : 2u); round++) {
        char name[16];
        answer_set got;
        snprintf(name, sizeof name, "worker-%u", round);
        requests_ask_begin(&requests, f.url);
        fleet_kill(fleet_find(&f, name));
        requests_ask_end(&requests, &got);
        answers_expect_equal(&got, &want, name);
        answers_free(&got);
        fleet_start_worker(&f, round);
        ask_and_compare("with the worker back");
    }
    fleet_stop(&f);
}

Test(routers, nobody_notices_the_death_of_a_worker_that_two_routers_use)
{
    ask_reference(ROOM);
    survive_workers(ROOM "--num-redundant-experts=8 --worker-timeout-ms=1000");
    survive_workers(ROOM "--worker-timeout-ms=1000"); /* others load what it alone had */
    forget_reference();
}

Test(routers, shares_that_come_to_nothing_are_refused_with_the_reason)
{
    char out[4096], flags[1024];
    fleet_open(&f, &(fleet_options){0});
    snprintf(flags, sizeof flags, "--model=%s --routers=3 --router-id=1 --max-num-seqs=2", f.model);
    cr_expect_eq(fleet_run(&f, "router", flags, out, sizeof out), 1);
    cr_expect_not_null(strstr(out, "shared by 3 routers"), "%s", out);
    snprintf(flags, sizeof flags, "--model=%s --routers=2 --router-id=2", f.model);
    cr_expect_eq(fleet_run(&f, "router", flags, out, sizeof out), 1);
    cr_expect_not_null(strstr(out, "--router-id 2"), "%s", out);
    fleet_stop(&f);
}
