/* membership: who may join, when the fleet is ready, and who is given up.  The workers are
 * fake_workers: real RPC, real links, no arithmetic.  Time is moved by hand. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/run_dir.h"
#include "router/membership.h"
#include "tests/router/fake_worker.h"
#include "tests/router/shifted_clock.h"

#define WORKERS 3
#define SILENT_MS 60000 /* of real time no test lasts so long */

static membership *m;
static router_end *exchange;
static run_dir run;
static identity id;
static membership_config config;
static fake_worker workers[WORKERS];
static errbuf eb;

static void
setup(void)
{
    char dir[64] = "/tmp/conclave-members-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_create(&exchange, &fake_limits, run.id, 0, 7, &eb), MOE_OK, "%s",
                 eb.text);
    conclave__model_identity__init(&id.model);
    id.model.fingerprint = 42;
    conclave__numeric_class__init(&id.numeric);
    snprintf(id.host_id, sizeof id.host_id, "here");
    config = (membership_config){.worker_count = WORKERS,
                                 .mode = WIRE_EP,
                                 .worker_timeout_ms = SILENT_MS,
                                 .load_timeout_ms = 3600 * 1000,
                                 .identity = &id,
                                 .limits = fake_limits,
                                 .router_end = exchange,
                                 .router_incarnation = 7};
    memset(workers, 0, sizeof workers);
}

static void
teardown(void)
{
    membership_close(m);
    membership_free(m);
    m = NULL;
    for (uint32_t w = 0; w < WORKERS; w++) {
        fake_worker_kill(&workers[w]);
    }
    router_end_free(exchange);
    exchange = NULL;
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(membership, .init = setup, .fini = teardown, .timeout = 60);

/* ---- steps that many tests take ---- */

static void
create(uint32_t worker_count)
{
    config.worker_count = worker_count;
    cr_assert_eq(membership_create(&m, &config, &eb), MOE_OK, "%s", eb.text);
}

/* In a place of the array of its own, so that two lives of one id may exist at once. */
static void
start_worker_at(uint32_t place, uint32_t w, uint64_t incarnation)
{
    fake_worker_start(&workers[place], &(fake_worker_config){.id = w,
                                                             .incarnation = incarnation,
                                                             .run = run.id,
                                                             .dir = run.path,
                                                             .identity = &id,
                                                             .limits = fake_limits});
}

static void
start_worker(uint32_t w, uint64_t incarnation)
{
    start_worker_at(w, w, incarnation);
}

static void
join(uint32_t w)
{
    const Conclave__RegisterRequest r = fake_worker_request(&workers[w]);
    cr_assert_eq(membership_on_register(m, &r, &eb), MOE_OK, "%s", eb.text);
}

static membership_status
status(void)
{
    membership_status s;
    membership_get_status(m, &s);
    return s;
}

static void
expect_detail(const char *text)
{
    const membership_status s = status();
    cr_expect_str_eq(s.detail, text);
    cr_expect_eq(s.ready, strcmp(text, "ready") == 0);
}

static void
expect_state(uint32_t w, const char *state)
{
    cr_expect_str_eq(membership_worker(m, w).state, state, "worker %u is %s, not %s", w,
                     membership_worker(m, w).state, state);
}

/* A cell whose workers are all there; their incarnations are 100 + id. */
static void
start_ready(uint32_t worker_count)
{
    create(worker_count);
    for (uint32_t w = 0; w < worker_count; w++) {
        start_worker(w, 100 + w);
        join(w);
    }
    membership_update(m, 0);
    expect_detail("ready");
}

static void
expect_refused(const Conclave__RegisterRequest *r, moe_err code, const char *text)
{
    eb.text[0] = '\0';
    cr_expect_eq(membership_on_register(m, r, &eb), code, "%s: %s", text, eb.text);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" is not said: %s", text, eb.text);
    expect_state(0, "absent");
}

/* ---- who may join ---- */

Test(membership, refuses_a_cell_without_workers_and_one_too_many)
{
    config.worker_count = 0;
    cr_expect_eq(membership_create(&m, &config, &eb), MOE_ERANGE);
    cr_expect_null(m);
    config.worker_count = WORKER_MAX + 1;
    cr_expect_eq(membership_create(&m, &config, &eb), MOE_ERANGE);
    config.worker_count = WORKER_MAX;
    cr_expect_eq(membership_create(&m, &config, &eb), MOE_OK);
}

Test(membership, refuses_workers_that_do_not_fit_and_says_why)
{
    create(2);
    start_worker(0, 100);
    const Conclave__RegisterRequest good = fake_worker_request(&workers[0]);

    Conclave__RegisterRequest r = good;
    r.worker_id = WORKER_MAX;
    expect_refused(&r, MOE_ERANGE, "worker 256: this cell has workers 0 to 255");
    r.worker_id = UINT32_MAX;
    expect_refused(&r, MOE_ERANGE, "4294967295");

    Conclave__ModelIdentity other = id.model;
    other.fingerprint = 43;
    r = good;
    r.model = &other;
    expect_refused(&r, MOE_EMISMATCH, "worker 0 serves another model");
    r.model = NULL;
    expect_refused(&r, MOE_EINVAL, "does not say which model");

    r = good;
    r.version = (char *)(uintptr_t) "0.0.0-other";
    expect_refused(&r, MOE_EMISMATCH, "version 0.0.0-other");

    char url[RPC_URL_MAX + 1];
    memset(url, 'x', sizeof url);
    url[RPC_URL_MAX] = '\0';
    r = good;
    r.control_url = url;
    expect_refused(&r, MOE_EINVAL, "control_url is longer than");
    url[RPC_URL_MAX - 1] = '\0'; /* the longest that fits */
    cr_expect_eq(membership_on_register(m, &r, &eb), MOE_OK, "%s", eb.text);
}

Test(membership, refuses_a_second_worker_of_an_id_while_the_first_is_alive)
{
    create(2);
    start_worker(0, 100);
    join(0);
    join(0); /* the same life may say it again */
    Conclave__RegisterRequest r = fake_worker_request(&workers[0]);
    r.incarnation = 200;
    r.pid = 77;
    shifted_clock_advance_ms(SILENT_MS - 1000);
    cr_expect_eq(membership_on_register(m, &r, &eb), MOE_EBUSY);
    cr_expect_not_null(strstr(eb.text, "worker 0 (pid 1000) is alive"), "%s", eb.text);
    shifted_clock_advance_ms(2000); /* now the first has been silent for too long */
    cr_expect_eq(membership_on_register(m, &r, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(membership_worker(m, 0).pid, 77);
    cr_expect_not(membership_on_heartbeat(m, 0, 100), "the first life is still known");
    cr_expect(membership_on_heartbeat(m, 0, 200));
}

Test(membership, shares_memory_only_with_workers_of_its_own_host)
{
    const struct {
        exchange_choice choice;
        const char *host, *backend; /* NULL: refused */
    } cases[] = {{EXCHANGE_AUTO, "here", "shm"},
                 {EXCHANGE_AUTO, "there", "nng"},
                 {EXCHANGE_ONLY_NNG, "here", "nng"},
                 {EXCHANGE_ONLY_SHM, "here", "shm"},
                 {EXCHANGE_ONLY_SHM, "there", NULL}};
    start_worker(0, 100);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        config.exchange = cases[i].choice;
        create(1);
        Conclave__RegisterRequest r = fake_worker_request(&workers[0]);
        r.host_id = (char *)(uintptr_t)cases[i].host;
        const moe_err err = membership_on_register(m, &r, &eb);
        cr_expect_eq(err, cases[i].backend != NULL ? MOE_OK : MOE_EMISMATCH);
        if (!err) {
            membership_update(m, 0);
            expect_detail("ready");
            cr_expect_str_eq(membership_worker(m, 0).backend, cases[i].backend);
        } else {
            cr_expect_not_null(strstr(eb.text, "worker 0 is on another host"), "%s", eb.text);
        }
        membership_free(m);
        m = NULL;
    }
}

/* ---- heartbeats ---- */

Test(membership, knows_the_heartbeats_of_registered_workers_only)
{
    create(2);
    start_worker(0, 100);
    cr_expect_not(membership_on_heartbeat(m, 0, 0), "nobody has registered");
    cr_expect_not(membership_on_heartbeat(m, 0, 100));
    join(0);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    cr_expect_not(membership_on_heartbeat(m, 0, 101), "another life");
    cr_expect_not(membership_on_heartbeat(m, 1, 100), "another worker");
    cr_expect_not(membership_on_heartbeat(m, 2, 100), "no worker of this cell");
    cr_expect_not(membership_on_heartbeat(m, UINT32_MAX, 100));
}

Test(membership, gives_up_a_worker_that_falls_silent_and_takes_it_back)
{
    start_ready(2);
    for (int i = 0; i < 3; i++) { /* heartbeats keep both alive for longer than the limit */
        shifted_clock_advance_ms(SILENT_MS * 2 / 3);
        cr_expect(membership_on_heartbeat(m, 0, 100));
        cr_expect(membership_on_heartbeat(m, 1, 101));
        membership_update(m, 0);
        expect_detail("ready");
    }
    shifted_clock_advance_ms(SILENT_MS + 1000);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    membership_update(m, 0);
    expect_detail("1 of 2 workers are ready; worker 1 is lost");
    cr_expect_not(membership_on_heartbeat(m, 1, 101), "it must be told to register again");

    join(1);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(status().epoch, 2);
}

Test(membership, gives_up_a_worker_that_falls_silent_before_the_others_came)
{
    create(2);
    start_worker(0, 100);
    join(0);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    membership_update(m, 0);
    expect_detail("0 of 2 workers are ready; worker 0 is lost");
    cr_expect_eq(workers[0].loads, 0);
}

/* The check reads the clock, then takes the lock: a heartbeat may come in between. */
Test(membership, takes_a_heartbeat_later_than_its_own_clock_for_a_sign_of_life)
{
    start_ready(1);
    shifted_clock_advance_ms(5000);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    shifted_clock_advance_ms(-5000);
    membership_update(m, 0);
    expect_detail("ready");
    Conclave__RegisterRequest r = fake_worker_request(&workers[0]);
    r.incarnation = 200;
    cr_expect_eq(membership_on_register(m, &r, &eb), MOE_EBUSY, "an alive worker was replaced");
}

/* ---- becoming ready ---- */

Test(membership, is_ready_when_all_workers_are_there_and_says_who_is_missing)
{
    create(3);
    expect_detail("0 of 3 workers are ready; worker 0 is absent");
    for (uint32_t w = 0; w < 3; w++) {
        start_worker(w, 100 + w);
    }
    join(2);
    join(0);
    membership_update(m, 0);
    expect_detail("0 of 3 workers are ready; worker 0 is registered");
    cr_expect_eq(workers[0].loads, 0, "nothing is loaded before the placement is known");
    expert_fleet fleet;
    cr_expect_not(membership_enter(m, &fleet));
    cr_expect_eq(status().epoch, 0);

    join(1);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(status().epoch, 1);
    cr_expect_eq(status().workers_ready, 3);
    cr_assert(membership_enter(m, &fleet));
    membership_leave(m);
    cr_expect_eq(fleet.epoch, 1);
    cr_expect_eq(fleet.worker_count, 3);
    cr_expect_eq(fleet.exchange, exchange);
    /* Every expert is asked of the worker that the placement names: 4 experts over 3 workers. */
    uint32_t asked[3] = {0};
    for (uint32_t l = 0; l < fake_limits.num_layers; l++) {
        for (uint32_t e = 0; e < fake_limits.num_experts; e++) {
            uint32_t count;
            const uint32_t *hosts = placement_hosts(fleet.placement, l, e, &count);
            cr_assert_eq(count, 1);
            asked[hosts[0]]++;
        }
    }
    for (uint32_t w = 0; w < 3; w++) {
        cr_expect_eq(workers[w].experts_asked, asked[w]);
        cr_expect_eq(workers[w].epoch_asked, 1);
        cr_expect_eq(workers[w].tp_ranks, 1);
        const worker_status s = membership_worker(m, w);
        cr_expect_eq(s.experts_hosted, asked[w]);
        cr_expect_eq(s.bytes_hosted, 1000 + asked[w]);
        cr_expect_eq(s.pid, 1000 + w);
        cr_expect_str_eq(s.backend, "shm");
    }
}

Test(membership, fills_redundant_slots_with_replicas)
{
    config.num_redundant_experts = 2;
    start_ready(3);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    membership_leave(m);
    uint32_t asked = 0, hosted = 0;
    for (uint32_t w = 0; w < 3; w++)
        asked += workers[w].experts_asked;
    for (uint32_t l = 0; l < fake_limits.num_layers; l++) {
        for (uint32_t e = 0; e < fake_limits.num_experts; e++) {
            uint32_t count;
            placement_hosts(fleet.placement, l, e, &count);
            cr_expect_geq(count, 1);
            hosted += count;
        }
    }
    cr_expect_eq(hosted, fake_limits.num_layers * (fake_limits.num_experts + 2));
    cr_expect_eq(asked, hosted, "a worker was not asked for what the placement says");
}

Test(membership, asks_every_worker_for_its_slice_of_all_experts_under_tp)
{
    config.mode = WIRE_TP;
    start_ready(3);
    for (uint32_t w = 0; w < 3; w++) {
        cr_expect_eq(workers[w].experts_asked, 8);
        cr_expect_eq(workers[w].tp_slices, 1u << w);
        cr_expect_eq(workers[w].tp_ranks, 3);
    }
}

/* ---- slices of workers that are lost, and that come ---- */

static void
start_slices(uint32_t count)
{
    config.mode = WIRE_TP;
    config.slice_bytes = 100;
    start_ready(count);
}

static void
lose_worker(uint32_t w)
{
    fake_worker_kill(&workers[w]);
    while (strcmp(membership_worker(m, w).state, "lost") != 0)
        membership_update(m, 5);
}

/* What the worker was last told to host, as a bit set. */
static void
wait_slices(uint32_t w, uint32_t set)
{
    while (true) {
        pthread_mutex_lock(&workers[w].lock);
        const uint32_t now = workers[w].tp_slices;
        pthread_mutex_unlock(&workers[w].lock);
        if (now == set) return;
        membership_update(m, 5); /* or the test's time runs out */
    }
}

static uint32_t
loads_of(uint32_t w)
{
    pthread_mutex_lock(&workers[w].lock);
    const uint32_t loads = workers[w].loads;
    pthread_mutex_unlock(&workers[w].lock);
    return loads;
}

Test(membership, gives_a_lost_slice_to_a_spare_and_leaves_the_others_alone)
{
    start_slices(2);
    const uint64_t epoch = status().epoch;
    start_worker(2, 102);
    join(2);
    membership_update(m, 0);
    expect_state(2, "ready");
    cr_expect_eq(workers[2].loads, 0, "a spare has nothing");
    lose_worker(1);
    wait_slices(2, 1u << 1);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_gt(status().epoch, epoch);
    cr_expect_eq(workers[0].loads, 1);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(fleet.worker_count, 2, "as many as there are slices");
    cr_expect_neq(fleet.links[0], fleet.links[1]);
    membership_leave(m);
}

Test(membership, has_a_survivor_take_a_slice_over_and_hand_it_back)
{
    start_slices(3);
    lose_worker(1);
    wait_slices(0, 1u << 0 | 1u << 1);
    membership_update(m, 0);
    expect_detail("ready");
    lose_worker(2);
    wait_slices(0, 7);
    membership_update(m, 0);
    expect_detail("ready");
    const uint32_t loads = loads_of(0);
    start_worker(1, 201);
    join(1);
    while (loads_of(0) == loads)
        membership_update(m, 5);
    expect_detail("ready");
    uint32_t both = workers[0].tp_slices | workers[1].tp_slices;
    cr_expect_eq(both, 7);
    cr_expect_eq(workers[0].tp_slices & workers[1].tp_slices, 0, "one has given a slice back");
    cr_expect_eq(__builtin_popcount(workers[0].tp_slices), 2);
}

Test(membership, gives_a_slice_back_to_a_worker_that_was_only_silent)
{
    start_slices(2);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    wait_slices(0, 3);
    membership_update(m, 0);
    expect_detail("ready");
    expect_state(1, "lost");
    cr_expect_not(membership_on_heartbeat(m, 1, 101));
    const uint32_t attaches = workers[1].attaches;
    join(1);
    while (loads_of(0) != 3) /* a second slice, and one again */
        membership_update(m, 5);
    cr_expect_eq(workers[0].tp_slices | workers[1].tp_slices, 3);
    cr_expect_eq(workers[0].tp_slices & workers[1].tp_slices, 0);
    cr_expect_gt(workers[1].attaches, attaches, "its old link is not used again");
    expect_detail("ready");
}

Test(membership, keeps_to_the_memory_of_survivors_and_says_what_is_short)
{
    config.mode = WIRE_TP;
    config.slice_bytes = 100;
    create(2);
    for (uint32_t w = 0; w < 2; w++) {
        start_worker(w, 100 + w);
        workers[w].memory_bytes = 199;
        join(w);
    }
    membership_update(m, 0);
    expect_detail("ready");
    lose_worker(0);
    for (int i = 0; i < 3; i++)
        membership_update(m, 5);
    cr_expect_not(status().ready);
    cr_expect_not_null(strstr(status().detail, "memory is 100 bytes short"), "%s", status().detail);
    cr_expect_eq(workers[1].loads, 1);
    start_worker(2, 102); /* any id will do */
    join(2);
    wait_slices(2, 1u << 0);
    membership_update(m, 0);
    expect_detail("ready");
}

Test(membership, tries_again_when_a_survivor_can_not_load_a_slice)
{
    start_slices(2);
    pthread_mutex_lock(&workers[0].lock);
    workers[0].on_load = LOAD_FAILS;
    pthread_mutex_unlock(&workers[0].lock);
    lose_worker(1);
    while (loads_of(0) == 1)
        membership_update(m, 5);
    expect_state(0, "ready");
    cr_expect_not(status().ready);
    pthread_mutex_lock(&workers[0].lock);
    workers[0].on_load = LOAD_OBEYS;
    pthread_mutex_unlock(&workers[0].lock);
    shifted_clock_advance_ms(2000);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    while (!status().ready)
        membership_update(m, 5);
    cr_expect_eq(workers[0].tp_slices, 3);
}

Test(membership, lets_workers_without_experts_be_ready)
{
    config.limits.num_experts = 2;
    start_ready(3);
    cr_expect_eq(workers[0].experts_asked + workers[1].experts_asked + workers[2].experts_asked, 4);
}

Test(membership, raises_the_epoch_when_a_replacement_is_there_and_reloads_nobody_else)
{
    start_ready(2);
    for (uint64_t life = 1; life <= 3; life++) {
        fake_worker_kill(&workers[1]);
        shifted_clock_advance_ms(SILENT_MS + 1000);
        cr_expect(membership_on_heartbeat(m, 0, 100));
        start_worker(1, 200 + life);
        join(1);
        expect_detail("1 of 2 workers are ready; worker 1 is registered");
        membership_update(m, 0);
        expect_detail("ready");
        cr_expect_eq(status().epoch, 1 + life);
        cr_expect_eq(workers[1].epoch_asked, 1 + life);
        cr_expect_eq(workers[0].loads, 1);
    }
}

Test(membership, gives_a_worker_that_can_not_be_brought_up_another_try)
{
    create(2);
    for (uint32_t w = 0; w < 2; w++) {
        start_worker(w, 100 + w);
        join(w);
    }
    workers[1].on_load = LOAD_FAILS;
    membership_update(m, 0);
    expect_detail("1 of 2 workers are ready; worker 1 is lost");
    cr_expect_not(membership_on_heartbeat(m, 1, 101));

    workers[1].on_load = LOAD_OBEYS;
    workers[1].overlong_answer = true; /* of Attach */
    join(1);
    membership_update(m, 0);
    expect_detail("1 of 2 workers are ready; worker 1 is lost");
    cr_expect_eq(workers[1].attaches, 1);

    workers[1].overlong_answer = false;
    join(1);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(workers[0].loads, 1);
    cr_expect_eq(status().epoch, 1);
}

/* ---- a load that takes long ---- */

static void *
update_main(void *arg)
{
    membership_update(arg, 0);
    return NULL;
}

/* One worker of two is ready, the other loads for ever; update() runs in *thread. */
static void
start_hanging(pthread_t *thread)
{
    create(2);
    for (uint32_t w = 0; w < 2; w++) {
        start_worker(w, 100 + w);
        join(w);
    }
    workers[1].on_load = LOAD_HANGS;
    cr_assert_eq(pthread_create(thread, NULL, update_main, m), 0);
    fake_worker_wait_loading(&workers[1]);
    membership_status s;
    do { /* both load at once: the other may not be done yet */
        membership_get_status(m, &s);
    } while (s.workers_ready == 0);
}

Test(membership, answers_while_a_worker_loads)
{
    pthread_t thread;
    start_hanging(&thread);
    expect_detail("1 of 2 workers are ready; worker 1 is loading");
    cr_expect(membership_on_heartbeat(m, 1, 101));
    expert_fleet fleet;
    cr_expect_not(membership_enter(m, &fleet));
    membership_stop(m);
    pthread_join(thread, NULL);
}

Test(membership, stops_while_a_worker_loads)
{
    pthread_t thread;
    start_hanging(&thread);
    membership_stop(m);
    pthread_join(thread, NULL); /* else the test's time runs out */
    membership_update(m, 3600 * 1000);
}

Test(membership, leaves_a_load_whose_worker_has_fallen_silent)
{
    pthread_t thread;
    start_hanging(&thread);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    pthread_join(thread, NULL);
    expect_state(1, "lost");
}

Test(membership, leaves_a_load_whose_worker_was_replaced_and_brings_up_the_new_one)
{
    pthread_t thread;
    start_hanging(&thread);
    shifted_clock_advance_ms(SILENT_MS - 1000);
    cr_expect(membership_on_heartbeat(m, 0, 100));
    shifted_clock_advance_ms(2000);
    start_worker_at(2, 1, 201);
    join(2);
    pthread_join(thread, NULL);
    expect_state(1, "registered");
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(workers[2].loads, 1);
}

/* ---- steps ---- */

/* Ask worker 0 for one row. */
static moe_err
post(void)
{
    static const wire_expert expert = {0, 1};
    static const uint32_t slot = 0;
    const wire_hdr hdr = {.epoch = 1, .token_count = 1};
    const dispatch_list list = {
        .experts = &expert, .expert_count = 1, .row_slots = &slot, .row_count = 1};
    memset(router_end_rows(exchange, 0), 0, exchange_row_bytes(&fake_limits));
    return router_end_post(exchange, 0, &hdr, &list);
}

typedef struct waiting_step {
    pthread_t thread;
    bool entered;
    moe_err result;
} waiting_step;

static void *
step_main(void *arg)
{
    waiting_step *step = arg;
    expert_fleet fleet;
    uint32_t missing;
    step->entered = membership_enter(m, &fleet);
    if (!step->entered) return NULL;
    step->result = post();
    if (step->result == MOE_OK) step->result = router_end_wait(exchange, 0, 0, &missing, NULL);
    router_end_settle(exchange, 0, &missing);
    if (step->result != MOE_OK) membership_lost(m, 0);
    membership_leave(m);
    return NULL;
}

/* A step that waits for worker 0, on a thread of its own. */
static void
start_step(waiting_step *step)
{
    fake_worker_hold(&workers[0], true);
    cr_assert_eq(pthread_create(&step->thread, NULL, step_main, step), 0);
    fake_worker_wait_holding(&workers[0]);
}

static void
expect_step_lost(waiting_step *step)
{
    pthread_join(step->thread, NULL); /* else the test's time runs out */
    cr_expect(step->entered);
    cr_expect_eq(step->result, MOE_ECLOSED);
}

Test(membership, close_ends_a_step_that_waits_and_lets_no_other_begin)
{
    start_ready(2);
    waiting_step step;
    expert_fleet fleet;
    start_step(&step);
    membership_close(m);
    expect_step_lost(&step);
    cr_expect_not(membership_enter(m, &fleet));
    cr_expect_not(status().ready);
    membership_close(NULL);
    membership_free(NULL);
}

Test(membership, ends_a_step_that_waits_for_a_silent_worker)
{
    start_ready(2);
    waiting_step step;
    start_step(&step);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    cr_expect(membership_on_heartbeat(m, 1, 101));
    membership_update(m, 0);
    expect_step_lost(&step);
    expect_detail("1 of 2 workers are ready; worker 0 is lost");
}

Test(membership, ends_a_step_that_waits_for_a_worker_that_was_replaced)
{
    start_ready(1);
    waiting_step step;
    start_step(&step);
    shifted_clock_advance_ms(SILENT_MS + 1000);
    Conclave__RegisterRequest r = fake_worker_request(&workers[0]);
    r.incarnation = 200;
    cr_assert_eq(membership_on_register(m, &r, &eb), MOE_OK, "%s", eb.text);
    expect_step_lost(&step);
    expect_state(0, "registered"); /* the step's loss was the first life's */
}

Test(membership, forgets_a_worker_that_a_step_found_lost_until_it_registers_again)
{
    start_ready(2);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    membership_lost(m, UINT32_MAX); /* a step that failed of itself names nobody */
    membership_lost(m, 2);
    expect_detail("ready");
    membership_lost(m, 1);
    cr_expect_eq(post(), MOE_OK, "the other worker's link was closed");
    uint32_t missing;
    router_end_settle(exchange, 0, &missing);
    membership_leave(m);
    expect_detail("1 of 2 workers are ready; worker 1 is lost");
    cr_expect_not(membership_enter(m, &fleet));
    cr_expect_not(membership_on_heartbeat(m, 1, 101));

    join(1);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(workers[1].attaches, 2, "it needs a new link");
    cr_assert(membership_enter(m, &fleet));
    membership_leave(m);
    cr_expect_eq(fleet.epoch, 2);
}

/* ---- another placement ---- */

/* Every expert on both workers. */
static placement *
everything_on_both(void)
{
    static const uint32_t slots[] = {4, 4};
    placement *p;
    cr_assert_eq(
        placement_create(&p, fake_limits.num_layers, fake_limits.num_experts, 2, slots, &eb),
        MOE_OK);
    for (uint32_t i = 0; i < fake_limits.num_layers * 8; i++)
        p->slots[i] = i % 4;
    placement_index(p);
    return p;
}

static void
set_all_hosted(uint32_t w)
{
    static const uint32_t all[] = {0, 1, 2, 3, 4, 5, 6, 7};
    membership_set_hosted(m, w, 100 + w, all, 8, true);
}

static uint32_t
count_hosts(const expert_fleet *fleet)
{
    uint32_t count;
    placement_hosts(fleet->placement, 1, 2, &count);
    return count;
}

static void *
propose_main(void *arg)
{
    errbuf text;
    *(moe_err *)arg = membership_propose(m, everything_on_both(), &text);
    return NULL;
}

Test(membership, adopts_a_placement_between_two_steps)
{
    start_ready(2);
    set_all_hosted(0);
    set_all_hosted(1);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    const placement *before = fleet.placement;
    pthread_t thread;
    moe_err proposed = MOE_EINTERNAL;
    cr_assert_eq(pthread_create(&thread, NULL, propose_main, &proposed), 0);
    fleet_view view;
    do { /* or the test's time runs out */
        cr_assert_eq(membership_look(m, &view, &eb), MOE_OK);
        fleet_view_fini(&view);
        cr_assert_eq(view.epoch, 1, "a step is under way, and its placement has changed");
    } while (!view.proposed);
    cr_expect_eq(count_hosts(&fleet), 1);
    membership_leave(m);
    pthread_join(thread, NULL);
    cr_expect_eq(proposed, MOE_OK);
    cr_assert(membership_enter(m, &fleet));
    cr_expect_neq(fleet.placement, before);
    cr_expect_eq(count_hosts(&fleet), 2);
    cr_expect_eq(fleet.epoch, 2);
    membership_leave(m);
    cr_expect_eq(membership_step_waits(m), 0);
}

Test(membership, refuses_a_placement_that_names_what_is_not_there)
{
    start_ready(2);
    set_all_hosted(0);
    cr_expect_eq(membership_propose(m, everything_on_both(), &eb), MOE_ECLOSED);
    membership_set_hosted(m, 1, 999, (uint32_t[]){0, 1, 2, 3, 4, 5, 6, 7}, 8, true);
    cr_expect_eq(membership_propose(m, everything_on_both(), &eb), MOE_ECLOSED,
                 "it was another life that hosts this");
    set_all_hosted(1);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    membership_lost(m, 1);
    membership_leave(m);
    cr_expect_eq(membership_propose(m, everything_on_both(), &eb), MOE_ECLOSED, "one is lost");
    cr_expect_eq(status().epoch, 1);
}

Test(membership, names_what_is_hosted_beyond_the_placement)
{
    uint32_t surplus[8];
    start_ready(2);
    cr_expect_eq(membership_surplus(m, 0, surplus), 0);
    set_all_hosted(0);
    cr_assert_eq(membership_surplus(m, 0, surplus), 4);
    cr_expect_arr_eq(surplus, ((uint32_t[]){2, 3, 6, 7}), 4 * sizeof surplus[0]);
    membership_set_hosted(m, 0, 100, surplus, 4, false);
    cr_expect_eq(membership_surplus(m, 0, surplus), 0);
    cr_expect_eq(membership_worker(m, 0).experts_hosted, 4);
}

Test(membership, counts_steps_that_wait_for_a_move)
{
    expert_fleet fleet;
    start_ready(2);
    membership_set_moving(m, true);
    cr_assert(membership_enter(m, &fleet));
    membership_leave(m);
    cr_expect_eq(membership_step_waits(m), 0);
    membership_set_hosted(m, 0, 100, (uint32_t[]){0}, 1, false); /* what the placement names */
    cr_expect_not(membership_enter(m, &fleet));
    cr_expect_eq(membership_step_waits(m), 1);
    membership_set_moving(m, false);
    cr_expect_not(membership_enter(m, &fleet));
    membership_set_moving(m, true);
    membership_lost(m, 1);
    cr_expect_not(membership_enter(m, &fleet), "it waits for a worker that was lost");
    cr_expect_eq(membership_step_waits(m), 1);
}

Test(membership, begins_with_as_many_slots_as_memory_has_and_names_what_is_short)
{
    config.expert_bytes = 100;
    create(2);
    for (uint32_t w = 0; w < 2; w++) {
        start_worker(w, 100 + w);
        workers[w].memory_bytes = w == 0 ? 200 : 500; /* 1 slot of 2 layers, and 2 */
        join(w);
    }
    membership_update(m, 0);
    cr_expect_not_null(strstr(status().detail, "memory is 200 bytes short"), "%s", status().detail);
    cr_expect_eq(workers[0].loads, 0);

    start_worker(2, 102); /* one more than the cell begins with */
    join(2);
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(workers[0].experts_asked, 2);
}

Test(membership, notices_at_once_that_a_workers_connection_has_ended)
{
    start_ready(2);
    fake_worker_kill(&workers[1]);
    while (strcmp(membership_worker(m, 1).state, "ready") == 0) /* or the test's time runs out */
        membership_update(m, 1000);
    expect_state(1, "lost");
    cr_expect_eq(membership_losses(m), 1);
    expect_state(0, "ready");
}

Test(membership, drains_only_workers_that_the_others_have_memory_for)
{
    config.expert_bytes = 100;
    create(3);
    for (uint32_t w = 0; w < 3; w++) {
        start_worker(w, 100 + w);
        workers[w].memory_bytes = 400; /* half of all experts */
        join(w);
    }
    membership_update(m, 0);
    expect_detail("ready");
    cr_expect_eq(membership_drain(m, (uint32_t[]){1, 2}, 2, &eb), MOE_ENOMEM);
    cr_expect_not_null(strstr(eb.text, "400 bytes short"), "%s", eb.text);
    cr_expect_eq(membership_drain(m, (uint32_t[]){3}, 1, &eb), MOE_ENOTFOUND);
    cr_expect_eq(membership_drain(m, (uint32_t[]){2}, 1, &eb), MOE_OK, "%s", eb.text);
    expect_state(2, "draining");
    cr_expect_eq(membership_drain(m, (uint32_t[]){1}, 1, &eb), MOE_ENOMEM);
    membership_dismiss(m, 2, 999);
    expect_state(2, "draining");
    membership_dismiss(m, 2, 102);
    expect_state(2, "absent");
    cr_expect_not(membership_worker(m, 2).known);
    config.mode = WIRE_TP;
    membership_free(m);
    create(2);
    cr_expect_eq(membership_drain(m, (uint32_t[]){1}, 1, &eb), MOE_EUNSUPPORTED);
}
