/* engine: what it promises of several routers: the same tokens whatever their number, steps that do
 * not wait for each other, and nobody who notices that one is lost while another serves. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "common/hash.h"
#include "common/log.h"
#include "common/strbuf.h"
#include "frontend/engine_start.h"
#include "tests/frontend/engine_client.h"
#include "tests/support/tsan_nng.h"

#define ROUTERS_MAX 3
#define NEVER_MS 100000u /* longer than any test */

static fake_router routers[ROUTERS_MAX];
static engine *e;
static metrics *m;
static engine_config config;
static errbuf eb;

static void
setup(void)
{
    static const uint32_t eos = 3;
    log_init("test", LOG_LEVEL_ERROR);
    config = (engine_config){.router_timeout_ms = 2000,
                             .move_after_ms = 0,
                             .give_up_after_ms = NEVER_MS,
                             .max_waiting = 64,
                             .prefix_caching = true,
                             .model_fingerprint = 7,
                             .vocab_size = FAKE_VOCAB,
                             .eos_ids = &eos,
                             .eos_count = 1,
                             .labels = "model_name=\"x\""};
    for (uint32_t r = 0; r < ROUTERS_MAX; r++) {
        fake_router_init(&routers[r]);
        routers[r].incarnation += 1000 * r;
        config.router_urls[r] = routers[r].url;
    }
}

static void
stop(void)
{
    if (e != NULL) engine_stop(e);
    engine_free(e);
    e = NULL;
    for (uint32_t r = 0; r < ROUTERS_MAX; r++) {
        if (routers[r].server != NULL) fake_router_kill(&routers[r]);
    }
    metrics_free(m); /* an engine's labels go with it */
    m = NULL;
}

TestSuite(engine_routers, .init = setup, .fini = stop, .timeout = 120);

/* ---- steps that many tests take ---- */

/* A sample of the metrics, "NAME{...router="R"...} VALUE"; router UINT32_MAX: of the cell. */
static double
sample(const char *name, uint32_t router)
{
    strbuf text;
    char want[160];
    if (router == UINT32_MAX)
        snprintf(want, sizeof want, "\n%s{model_name=\"x\"} ", name);
    else
        snprintf(want, sizeof want, "\n%s{model_name=\"x\",router=\"%u\"} ", name, router);
    strbuf_init(&text, 1 << 18);
    metrics_print(m, &text);
    const char *at = strstr(strbuf_text(&text), want);
    const double value = at == NULL ? -1 : strtod(at + strlen(want), NULL);
    strbuf_fini(&text);
    return value;
}

static void
start_engine(uint32_t count)
{
    cr_assert_eq(metrics_create(&m), MOE_OK);
    config.metrics = m;
    config.router_count = count;
    cr_assert_eq(engine_start(&e, &config, &eb), MOE_OK, "%s", eb.text);
}

static void
start(uint32_t count)
{
    for (uint32_t r = 0; r < count; r++) {
        fake_router_serve(&routers[r]);
    }
    start_engine(count);
    for (uint32_t r = 0; r < count; r++) {
        UNTIL(sample("conclave:router_ready", r) == 1);
    }
}

static uint32_t
steps_of(uint32_t router)
{
    pthread_mutex_lock(&routers[router].lock);
    const uint32_t steps = routers[router].computed;
    pthread_mutex_unlock(&routers[router].lock);
    return steps;
}

static void
expect_no_broken_rule(void)
{
    for (uint32_t r = 0; r < ROUTERS_MAX; r++) {
        cr_expect_eq(routers[r].refused, 0, "router %u: %s", r, routers[r].refusal);
    }
}

static uint32_t
count_ended(const client *c, uint32_t count)
{
    uint32_t ended = 0;
    for (uint32_t i = 0; i < count; i++) {
        ended += atomic_load(&c[i].ended);
    }
    return ended;
}

/* ---- tests ---- */

#define CROWD 24

/* All are there before the first step is answered: a fast router could serve one by one. */
static void
hold_all(void)
{
    for (uint32_t r = 0; r < config.router_count; r++) {
        fake_router_hold(&routers[r]);
    }
}

static void
release_all_but(uint32_t held)
{
    for (uint32_t r = 0; r < config.router_count; r++) {
        if (r != held) fake_router_release(&routers[r]);
    }
}

static void
go_crowd(client *c)
{
    for (uint32_t i = 0; i < CROWD; i++) {
        client_init(&c[i], 1 + i % 7 * 5, 4 + i % 5 * 6, i % 6);
        c[i].params->ignore_eos = true;
        c[i].wants_prompt_logprobs = c[i].params->prompt_logprobs = i % 4 == 0;
        if (i % 4 == 0) c[i].params->num_logprobs = 0, c[i].wants_logprobs = true;
        cr_assert_eq(client_submit(e, &c[i]), MOE_OK, "%s", c[i].error);
    }
}

Test(engine_routers, tokens_are_the_same_for_any_number_of_routers)
{
    static client c[ROUTERS_MAX + 1][CROWD];
    for (uint32_t count = 1; count <= ROUTERS_MAX; count++) {
        start(count);
        hold_all();
        go_crowd(c[count]);
        release_all_but(UINT32_MAX);
        for (uint32_t i = 0; i < CROWD; i++) {
            client_expect(&c[count][i], FINISH_LENGTH);
            cr_expect_eq(c[count][i].total, c[1][i].total);
            cr_expect_arr_eq(c[count][i].tokens, c[1][i].tokens, c[1][i].total * sizeof(uint32_t));
        }
        for (uint32_t r = 0; r < count; r++) {
            cr_expect_gt(steps_of(r), 0, "router %u of %u had nothing to do", r, count);
        }
        stop();
        for (uint32_t r = 0; r < count; r++) {
            fake_router_forget(&routers[r]);
        }
    }
    expect_no_broken_rule();
}

Test(engine_routers, a_router_that_is_slow_holds_up_its_own_sequences_only)
{
    start(2);
    hold_all();
    static client c[8];
    for (uint32_t i = 0; i < 8; i++) {
        client_go(e, &c[i], 4, 6, i); /* one in two is router 1's */
    }
    release_all_but(1);
    UNTIL(count_ended(c, 8) == 4);
    fake_router_wait_held(&routers[1]);
    cr_expect_eq(steps_of(1), 0);
    fake_router_release(&routers[1]);
    for (uint32_t i = 0; i < 8; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    expect_no_broken_rule();
}

Test(engine_routers, a_prefix_is_looked_for_on_every_router)
{
    start(3);
    static client first, again[6];
    client_go(e, &first, 41, 2, 77);
    client_expect(&first, FINISH_LENGTH);
    cr_expect_eq(first.cached_tokens, 0);
    for (uint32_t i = 0; i < 6; i++) {
        client_go(e, &again[i], 41, 2, 77);
        client_expect(&again[i], FINISH_LENGTH);
        cr_expect_eq(again[i].cached_tokens, 40);
    }
    cr_expect_eq(sample("conclave:requests_placed_by_prefix_total", UINT32_MAX), 6);
    expect_no_broken_rule();
}

/* Killed in the middle, with two steps in flight. */
static void
kill_in_a_step(uint32_t victim, client *c, uint32_t passes)
{
    hold_all();
    go_crowd(c);
    release_all_but(victim);
    for (uint32_t i = 0; i < passes; i++) {
        fake_router_wait_held(&routers[victim]);
        fake_router_pass(&routers[victim]);
    }
    fake_router_wait_held(&routers[victim]);
    fake_router_kill(&routers[victim]);
}

Test(engine_routers, what_a_dead_router_had_goes_on_with_the_others)
{
    static client c[CROWD];
    for (uint32_t victim = 0; victim < 3; victim++) {
        start(3);
        kill_in_a_step(victim, c, 3 * victim);
        for (uint32_t i = 0; i < CROWD; i++) {
            client_expect(&c[i], FINISH_LENGTH);
        }
        cr_expect(engine_ready(e, NULL, 0), "the others serve");
        cr_expect_gt(sample("conclave:requests_moved_total", UINT32_MAX), 0);
        cr_expect_eq(sample("conclave:router_ready", victim), 0);
        cr_expect_eq(sample("conclave:router_lost_total", victim), 1);

        /* Back again, it takes part again. */
        fake_router_restart(&routers[victim]);
        UNTIL(sample("conclave:router_ready", victim) == 1);
        const uint32_t before = steps_of(victim);
        hold_all();
        go_crowd(c);
        release_all_but(UINT32_MAX);
        for (uint32_t i = 0; i < CROWD; i++) {
            client_expect(&c[i], FINISH_LENGTH);
        }
        cr_expect_gt(steps_of(victim), before);
        stop();
        expect_no_broken_rule();
        setup();
    }
}

Test(engine_routers, a_router_that_is_back_in_time_keeps_its_sequences)
{
    config.move_after_ms = NEVER_MS;
    start(2);
    static client c[CROWD];
    kill_in_a_step(1, c, 2);
    /* Its share waits, the others' does not. */
    UNTIL(sample("conclave:router_requests_waiting", 1) == 4);
    UNTIL(sample("conclave:router_requests_running", 0) +
              sample("conclave:router_requests_waiting", 0) +
              sample("conclave:requests_queued", UINT32_MAX) ==
          0);
    fake_router_restart(&routers[1]);
    for (uint32_t i = 0; i < CROWD; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    cr_expect_eq(sample("conclave:requests_moved_total", UINT32_MAX), 0);
    expect_no_broken_rule();
}

Test(engine_routers, a_router_that_hangs_is_found_by_its_health)
{
    config.router_timeout_ms = 50;
    start(2);
    static client c[CROWD];
    hold_all();
    go_crowd(c);
    release_all_but(1); /* its steps are never answered */
    fake_router_wait_held(&routers[1]);
    pthread_mutex_lock(&routers[1].lock); /* and now nothing is */
    for (uint32_t i = 0; i < CROWD; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    cr_expect_gt(sample("conclave:requests_moved_total", UINT32_MAX), 0);
    pthread_mutex_unlock(&routers[1].lock);
    expect_no_broken_rule();
}

Test(engine_routers, without_any_router_sequences_wait_and_go_on_with_the_first_that_is_back)
{
    start(2);
    static client c[CROWD];
    kill_in_a_step(1, c, 2);
    fake_router_kill(&routers[0]);
    UNTIL(!engine_ready(e, NULL, 0));
    cr_expect(engine_takes(e, NULL, 0), "new ones wait too");
    static client late;
    client_go(e, &late, 5, 3, 99);
    fake_router_restart(&routers[0]);
    client_expect(&late, FINISH_LENGTH);
    for (uint32_t i = 0; i < CROWD; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    expect_no_broken_rule();
}

Test(engine_routers, without_any_router_for_too_long_sequences_end_unserved)
{
    config.give_up_after_ms = 300;
    start(2);
    static client c[CROWD], after;
    hold_all();
    go_crowd(c);
    for (uint32_t r = 0; r < 2; r++) {
        fake_router_wait_held(&routers[r]);
        fake_router_kill(&routers[r]);
    }
    for (uint32_t i = 0; i < CROWD; i++) {
        UNTIL(atomic_load(&c[i].ended) > 0);
        cr_expect_eq(c[i].wrong, 0, "%s", c[i].first_wrong);
        cr_expect_eq(c[i].finish, FINISH_ERROR);
        cr_expect(c[i].unserved);
        cr_expect_not_null(strstr(c[i].error, "no router has served"), "%s", c[i].error);
    }
    cr_expect(!engine_ready(e, NULL, 0));
    cr_expect(!engine_takes(e, NULL, 0));
    fake_router_restart(&routers[1]);
    UNTIL(engine_ready(e, NULL, 0));
    cr_expect(engine_takes(e, NULL, 0));
    client_go(e, &after, 4, 5, 1);
    client_expect(&after, FINISH_LENGTH);
    expect_no_broken_rule();
}

Test(engine_routers, serves_with_the_first_router_that_is_there)
{
    start_engine(2);
    cr_expect(!engine_takes(e, NULL, 0), "nobody has served yet");
    fake_router_serve(&routers[1]);
    UNTIL(engine_ready(e, NULL, 0));
    static client c[2];
    client_go(e, &c[0], 4, 5, 1);
    client_expect(&c[0], FINISH_LENGTH);
    cr_expect_eq(sample("conclave:router_ready", 0), 0);
    fake_router_serve(&routers[0]);
    UNTIL(sample("conclave:router_ready", 0) == 1);
    client_go(e, &c[1], 4, 5, 2);
    client_expect(&c[1], FINISH_LENGTH);
    cr_expect_eq(steps_of(0), 5, "the first of two that are idle");
}

Test(engine_routers, a_router_that_does_not_belong_to_the_others_is_refused_by_its_number)
{
    routers[1].max_model_len = 48;
    fake_router_serve(&routers[0]);
    start_engine(2);
    UNTIL(engine_ready(e, NULL, 0));
    fake_router_serve(&routers[1]);
    UNTIL(engine_refusal(e) != NULL);
    cr_expect_not_null(strstr(engine_refusal(e), "other limits"), "%s", engine_refusal(e));
    cr_expect_not_null(strstr(engine_refusal(e), "router 1"), "%s", engine_refusal(e));
    stop();

    config.router_count = 0;
    cr_expect_eq(engine_start(&e, &config, &eb), MOE_ERANGE);
    config.router_count = CELL_ROUTERS_MAX + 1;
    cr_expect_eq(engine_start(&e, &config, &eb), MOE_ERANGE);
}

Test(engine_routers, steps_lost_by_living_routers_are_run_again_somewhere)
{
    static client c[CROWD];
    for (uint32_t r = 0; r < 3; r++) {
        routers[r].lose_every = 7 + r;
    }
    start(3);
    go_crowd(c);
    for (uint32_t i = 0; i < CROWD; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    expect_no_broken_rule();
}

Test(engine_routers, stopping_ends_every_sequence_of_every_router)
{
    start(3);
    static client c[CROWD];
    for (uint32_t r = 0; r < 3; r++) {
        fake_router_hold(&routers[r]);
    }
    go_crowd(c);
    for (uint32_t r = 0; r < 3; r++) {
        fake_router_wait_held(&routers[r]);
    }
    engine_stop(e);
    for (uint32_t i = 0; i < CROWD; i++) {
        client_check(&c[i], FINISH_ABORT);
    }
    engine_free(e);
    e = NULL;
}
