/* balancer: what it makes of a fleet that changes and of a load that is uneven.  The workers are
 * fake_workers, which host what they are told and remember it; a thread stands for the router's
 * control thread. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/run_dir.h"
#include "router/balancer.h"
#include "tests/router/fake_worker.h"

#define WORKERS 4
#define LAYERS 2u
#define EXPERTS 4u
#define ALL (LAYERS * EXPERTS)
#define BYTES 100u /* of an expert */

static membership *m;
static router_end *exchange;
static load_feed *feed;
static balancer *b;
static run_dir run;
static identity id;
static membership_config config;
static balancer_config balance;
static fake_worker workers[WORKERS];
static pthread_t control;
static _Atomic bool stopping;
static errbuf eb;

static const exchange_limits limits = {.micro_batch_max = 1,
                                       .token_max = 8,
                                       .num_layers = LAYERS,
                                       .num_experts = EXPERTS,
                                       .top_k = 2,
                                       .hidden = 16,
                                       .dtype = DTYPE_F32};

static void
setup(void)
{
    char dir[64] = "/tmp/conclave-balance-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_create(&exchange, &limits, run.id, 0, 7, &eb), MOE_OK, "%s", eb.text);
    conclave__model_identity__init(&id.model);
    conclave__numeric_class__init(&id.numeric);
    snprintf(id.host_id, sizeof id.host_id, "here");
    config = (membership_config){.mode = WIRE_EP,
                                 .expert_bytes = BYTES,
                                 .worker_timeout_ms = 60000,
                                 .load_timeout_ms = 3600 * 1000,
                                 .identity = &id,
                                 .limits = limits,
                                 .router_end = exchange,
                                 .router_incarnation = 7};
    balance = (balancer_config){.num_layers = LAYERS,
                                .num_experts = EXPERTS,
                                .expert_bytes = BYTES,
                                .policy = EPLB_CONCLAVE,
                                .balance = eplb_default_config()};
    memset(workers, 0, sizeof workers);
    atomic_store(&stopping, false);
}

static void
teardown(void)
{
    atomic_store(&stopping, true);
    membership_stop(m);
    pthread_join(control, NULL);
    membership_close(m);
    balancer_stop(b);
    load_feed_stop(feed);
    membership_free(m);
    for (uint32_t w = 0; w < WORKERS; w++)
        fake_worker_kill(&workers[w]);
    router_end_free(exchange);
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(balancer, .init = setup, .fini = teardown, .timeout = 60);

static void *
control_main(void *arg)
{
    (void)arg;
    while (!atomic_load(&stopping))
        membership_update(m, 20);
    return NULL;
}

static void
tick(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static void
add_worker(uint32_t w, uint64_t memory)
{
    fake_worker_start(&workers[w], &(fake_worker_config){.id = w,
                                                         .incarnation = 100 + w,
                                                         .run = run.id,
                                                         .dir = run.path,
                                                         .identity = &id,
                                                         .limits = limits});
    workers[w].memory_bytes = memory;
    const Conclave__RegisterRequest r = fake_worker_request(&workers[w]);
    cr_assert_eq(membership_on_register(m, &r, &eb), MOE_OK, "%s", eb.text);
}

static bool
is_ready(void)
{
    membership_status s;
    membership_get_status(m, &s);
    return s.ready;
}

static void
start_fleet(uint32_t count, uint64_t memory)
{
    config.worker_count = count;
    cr_assert_eq(membership_create(&m, &config, &eb), MOE_OK, "%s", eb.text);
    const load_feed_config fc = {
        .shape = {.num_layers = LAYERS, .num_experts = EXPERTS, .top_k = 2, .steps_per_record = 1},
        .balance = balance.balance,
        .bell = membership_changes(m)};
    cr_assert_eq(load_feed_start(&feed, &fc, &eb), MOE_OK, "%s", eb.text);
    balance.membership = m;
    balance.feed = feed;
    cr_assert_eq(balancer_start(&b, &balance, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(pthread_create(&control, NULL, control_main, NULL), 0);
    for (uint32_t w = 0; w < count; w++)
        add_worker(w, memory);
    while (!is_ready()) /* or the test's time runs out */
        tick();
}

static uint32_t
hosted(uint32_t w)
{
    pthread_mutex_lock(&workers[w].lock);
    const uint32_t count = workers[w].hosted_count;
    pthread_mutex_unlock(&workers[w].lock);
    return count;
}

/* Until a worker hosts so many, by its own word and the router's. */
static void
wait_hosted(uint32_t w, uint32_t count)
{
    while (hosted(w) != count || membership_worker(m, w).experts_hosted != count)
        tick();
}

/* Every expert has a host that has really been told to host it. */
static void
expect_all_hosted(void)
{
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    for (uint32_t i = 0; i < ALL; i++) {
        uint32_t count;
        const uint32_t *hosts = placement_hosts(fleet.placement, i / EXPERTS, i % EXPERTS, &count);
        cr_expect_geq(count, 1, "expert %u", i);
        for (uint32_t h = 0; h < count; h++) {
            pthread_mutex_lock(&workers[hosts[h]].lock);
            cr_expect(workers[hosts[h]].hosted[i], "worker %u, expert %u", hosts[h], i);
            pthread_mutex_unlock(&workers[hosts[h]].lock);
        }
    }
    membership_leave(m);
    cr_expect_eq(membership_step_waits(m), 0);
}

static balancer_report
report(void)
{
    balancer_report r;
    balancer_get_report(b, &r);
    return r;
}

Test(balancer, has_survivors_host_what_a_lost_worker_did)
{
    start_fleet(3, 0);
    const uint32_t lost = hosted(1);
    fake_worker_kill(&workers[1]);
    while (report().repairs == 0)
        tick();
    cr_expect(is_ready());
    expect_all_hosted();
    cr_expect_eq(hosted(0) + hosted(2), ALL);
    cr_expect_eq(report().experts_moved, lost, "others moved, too");
    cr_expect_eq(workers[0].loads, 1, "nobody loads anew what it has");
}

Test(balancer, says_how_much_memory_is_short_and_recovers_when_a_worker_comes)
{
    start_fleet(2, 5 * BYTES); /* 2 slots of 2 layers */
    fake_worker_kill(&workers[1]);
    membership_status s;
    do {
        tick();
        membership_get_status(m, &s);
    } while (strstr(s.detail, "memory is 400 bytes short") == NULL);
    cr_expect_not(s.ready);
    add_worker(3, 4 * BYTES);
    while (!is_ready())
        tick();
    expect_all_hosted();
    wait_hosted(3, 4);
    cr_expect_leq(workers[0].hosted_most, 5);
}

Test(balancer, makes_new_replicas_when_a_lost_worker_stays_away)
{
    config.num_redundant_experts = balance.balance.num_redundant_experts = EXPERTS;
    balance.return_ms = 50;
    start_fleet(3, 0);
    fake_worker_kill(&workers[1]);
    wait_hosted(0, ALL);
    wait_hosted(2, ALL);
    expect_all_hosted();
    cr_expect_eq(report().repairs, 0, "no expert was without a host");
    fake_worker_kill(&workers[2]);
    while (membership_worker(m, 2).slots != 0)
        tick();
    expect_all_hosted();
    add_worker(3, 0); /* all that it hosts are replicas */
    wait_hosted(3, ALL);
    expect_all_hosted();
}

Test(balancer, gives_a_new_worker_its_part_and_takes_it_back_before_it_goes)
{
    start_fleet(2, 0);
    add_worker(2, 0);
    while (membership_worker(m, 2).experts_hosted == 0)
        tick();
    expect_all_hosted();
    wait_hosted(2, membership_worker(m, 2).experts_hosted);
    cr_expect_eq(membership_drain(m, (uint32_t[]){0, 2}, 2, &eb), MOE_OK, "%s", eb.text);
    while (membership_worker(m, 0).known || membership_worker(m, 2).known)
        tick();
    expect_all_hosted();
    cr_expect_eq(workers[0].drains, 1);
    cr_expect_eq(workers[2].drains, 1);
    wait_hosted(1, ALL);
}

/* All rows go to the experts of worker 0. */
static void
feed_skewed(uint32_t steps)
{
    static uint64_t totals[ALL];
    for (uint32_t s = 0; s < steps; s++) {
        for (uint32_t i = 0; i < ALL; i++)
            totals[i] += i % EXPERTS < 2 ? 1000 : 10;
        load_feed_add(feed, s, totals);
    }
}

static void
expect_balanced(uint32_t most)
{
    while (report().adopted == 0)
        tick();
    expect_all_hosted();
    cr_expect_str_eq(report().last_verdict, "adopted");
    while (report().balancedness < 0.9)
        tick();
    for (uint32_t w = 0; w < 2; w++) {
        wait_hosted(w, ALL / 2);
        cr_expect_leq(workers[w].hosted_most, most);
    }
}

Test(balancer, moves_what_is_asked_for_much_to_where_little_is)
{
    balance.enabled = true;
    balance.balance.step_interval = 40;
    start_fleet(2, 0);
    feed_skewed(39);
    cr_expect_eq(report().decisions, 0);
    feed_skewed(1);
    expect_balanced(ALL);
}

Test(balancer, moves_in_stages_where_memory_holds_one_expert_more)
{
    start_fleet(2, 5 * BYTES);
    feed_skewed(40);
    cr_expect_eq(report().decisions, 0, "it is switched off");
    balancer_rebalance(b);
    expect_balanced(5);
}

Test(balancer, does_not_use_a_copy_that_is_another_one)
{
    start_fleet(2, 0);
    feed_skewed(40);
    pthread_mutex_lock(&workers[1].lock);
    workers[1].spoil_hashes = true;
    pthread_mutex_unlock(&workers[1].lock);
    balancer_rebalance(b);
    while (report().failed == 0)
        tick();
    cr_expect_eq(report().adopted, 0);
    for (uint32_t w = 0; w < 2; w++)
        wait_hosted(w, ALL / 2);
    expect_all_hosted();
}

static void
hold_workers(bool hold)
{
    for (uint32_t w = 0; w < 2; w++) {
        if (hold)
            pthread_mutex_lock(&workers[w].lock);
        else
            pthread_mutex_unlock(&workers[w].lock);
    }
}

Test(balancer, is_overdue_when_it_has_not_looked_at_the_load_for_two_intervals)
{
    balance.enabled = true;
    balance.balance.step_interval = 40;
    start_fleet(2, 0);
    cr_expect_not(report().overdue);
    feed_skewed(39);
    while (report().balancedness > 0.9) /* until it has seen the window */
        tick();
    hold_workers(true); /* who is asked to host something does not answer */
    feed_skewed(1);
    while (report().decisions == 0)
        tick();
    feed_skewed(79);
    cr_expect_eq(report().idle_steps, 79);
    cr_expect_not(report().overdue);
    feed_skewed(1);
    cr_expect(report().overdue);
    hold_workers(false);
    while (report().overdue)
        tick();
    cr_expect_eq(report().verdicts[EPLB_ADOPTED], 1);
    cr_expect_neq(report().adopted_ns, 0);
}

Test(balancer, is_never_overdue_when_it_is_off_and_counts_what_came_of_its_looks)
{
    balance.balance.step_interval = 40;
    start_fleet(2, 0);
    feed_skewed(400);
    cr_expect_not(report().overdue);
    balancer_rebalance(b);
    expect_balanced(ALL);
    cr_expect_eq(report().verdicts[EPLB_ADOPTED], 1);
    balancer_rebalance(b);
    while (report().decisions < 2)
        tick();
    uint64_t sum = 0;
    for (uint32_t v = 0; v <= BALANCER_FAILED; v++)
        sum += report().verdicts[v];
    cr_expect_eq(sum, report().decisions);
    double layers[LAYERS];
    balancer_get_layers(b, layers);
    for (uint32_t l = 0; l < LAYERS; l++)
        cr_expect(layers[l] > 0.9 && layers[l] <= 1, "%g", layers[l]);
}
