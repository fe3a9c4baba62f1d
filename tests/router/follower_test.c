/* follower: a router's fleet that follows router 0's: the same workers and placement, links of its
 * own, adopted between its own steps.  Router 0 is a membership behind a Fleet call; the workers
 * are fake_workers. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/run_dir.h"
#include "router/fleet_share.h"
#include "router/follower.h"
#include "tests/router/fake_worker.h"

#define WORKERS 2
#define SILENT_MS 60000 /* of real time no test lasts so long */

static run_dir run;
static identity id, other_id;
static fake_worker workers[WORKERS];
static membership *leader, *m; /* router 0's and that of router 1 */
static router_end *leader_end, *end;
static follower *f;
static rpc_server *server;
static Conclave__Router_Service service;
static load_feed *feed;
static uint32_t loads_told; /* questions with a load, and what the last one of them said */
static uint64_t told_steps, told_rows[8];
static errbuf eb;

static void
on_fleet(Conclave__Router_Service *s, const Conclave__FleetRequest *request,
         Conclave__FleetReply_Closure closure, void *data)
{
    (void)s;
    errbuf text = {{0}};
    fleet_answer *answer;
    if (request->n_window_rows != 0) {
        cr_assert_eq(request->n_window_rows, 8);
        loads_told++;
        told_steps = request->steps;
        memcpy(told_rows, request->window_rows, sizeof told_rows);
    }
    const moe_err err = fleet_on_request(leader, request, &answer, &text);
    if (err)
        rpc_fail_err(data, err, &text);
    else
        closure(&answer->reply, data);
    fleet_answer_free(answer);
}

static bool
never(void)
{
    return false;
}

static membership_config
config_of(router_end *re, uint32_t router_id)
{
    return (membership_config){.worker_count = WORKERS,
                               .mode = WIRE_EP,
                               .worker_timeout_ms = SILENT_MS,
                               .load_timeout_ms = SILENT_MS,
                               .identity = &id,
                               .limits = fake_limits,
                               .router_end = re,
                               .router_id = router_id,
                               .router_incarnation = 7 + router_id,
                               .follows = router_id != 0,
                               .shared = true};
}

static void
serve(void)
{
    char url[RUN_URL_MAX];
    run_dir_url(&run, "router", 0, url);
    conclave__router__init(&service, NULL);
    service.fleet = on_fleet;
    cr_assert_eq(
        rpc_server_start(&server, &(rpc_server_options){.url = url, .service = &service.base}, &eb),
        MOE_OK, "%s", eb.text);
}

static void
init_identity(identity *out, uint64_t fingerprint)
{
    conclave__model_identity__init(&out->model);
    out->model.fingerprint = fingerprint;
    conclave__numeric_class__init(&out->numeric);
    snprintf(out->host_id, sizeof out->host_id, "here");
}

static void
create_follower(const identity *own)
{
    char url[RUN_URL_MAX];
    run_dir_url(&run, "router", 0, url);
    const membership_config config = config_of(end, 1);
    cr_assert_eq(membership_create(&m, &config, &eb), MOE_OK, "%s", eb.text);
    const load_feed_config load = {
        .shape = {.num_layers = 2, .num_experts = 4, .top_k = 2, .steps_per_record = 1},
        .balance = {.window_size = 4, .step_interval = 1}};
    cr_assert_eq(load_feed_start(&feed, &load, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(follower_create(&f,
                                 &(follower_config){.router_url = url,
                                                    .router_id = 1,
                                                    .router_incarnation = 8,
                                                    .identity = own,
                                                    .limits = fake_limits,
                                                    .mode = WIRE_EP,
                                                    .membership = m,
                                                    .feed = feed,
                                                    .stopping = never},
                                 &eb),
                 MOE_OK, "%s", eb.text);
}

static void
setup(void)
{
    char dir[64] = "/tmp/conclave-follower-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_create(&leader_end, &fake_limits, run.id, 0, 7, &eb), MOE_OK);
    cr_assert_eq(router_end_create(&end, &fake_limits, run.id, 1, 8, &eb), MOE_OK);
    init_identity(&id, 42);
    init_identity(&other_id, 43);
    memset(workers, 0, sizeof workers);
    const membership_config config = config_of(leader_end, 0);
    cr_assert_eq(membership_create(&leader, &config, &eb), MOE_OK, "%s", eb.text);
    serve();
    create_follower(&id);
}

static void
teardown(void)
{
    follower_free(f);
    load_feed_stop(feed);
    rpc_server_stop(server);
    server = NULL;
    membership_close(m);
    membership_free(m);
    membership_close(leader);
    membership_free(leader);
    for (uint32_t w = 0; w < WORKERS; w++)
        fake_worker_kill(&workers[w]);
    router_end_free(end);
    router_end_free(leader_end);
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(follower, .init = setup, .fini = teardown, .timeout = 60);

/* ---- steps that many tests take ---- */

static void
start_worker(uint32_t w, uint64_t incarnation)
{
    fake_worker_start(&workers[w], &(fake_worker_config){.id = w,
                                                         .incarnation = incarnation,
                                                         .run = run.id,
                                                         .dir = run.path,
                                                         .identity = &id,
                                                         .limits = fake_limits});
    const Conclave__RegisterRequest r = fake_worker_request(&workers[w]);
    cr_assert_eq(membership_on_register(leader, &r, &eb), MOE_OK, "%s", eb.text);
}

static membership_status
status_of(membership *which)
{
    membership_status s;
    membership_get_status(which, &s);
    return s;
}

static void
start_all(void)
{
    for (uint32_t w = 0; w < WORKERS; w++)
        start_worker(w, 100 + w);
    membership_update(leader, 0);
    cr_assert(status_of(leader).ready, "%s", status_of(leader).detail);
    follower_update(f, 0);
    cr_assert(status_of(m).ready, "%s", status_of(m).detail);
}

static uint32_t
count_hosts(const expert_fleet *fleet)
{
    uint32_t count;
    placement_hosts(fleet->placement, 1, 2, &count);
    return count;
}

/* Router 0's: every expert on both workers. */
static void
replicate_all(void)
{
    static const uint32_t slots[] = {4, 4}, all[] = {0, 1, 2, 3, 4, 5, 6, 7};
    placement *p;
    cr_assert_eq(placement_create(&p, 2, 4, 2, slots, &eb), MOE_OK);
    for (uint32_t i = 0; i < 16; i++)
        p->slots[i] = i % 4;
    p->speeds[1] = 2 * PLACEMENT_SPEED_ONE;
    placement_index(p);
    for (uint32_t w = 0; w < WORKERS; w++)
        membership_set_hosted(leader, w, 100 + w, all, 8, true);
    cr_assert_eq(membership_propose(leader, p, &eb), MOE_OK, "%s", eb.text);
}

/* ---- tests ---- */

Test(follower, waits_for_router_0_and_then_has_its_fleet_with_links_of_its_own)
{
    follower_update(f, 0);
    cr_expect(!status_of(m).ready);
    start_worker(0, 100);
    membership_update(leader, 0);
    follower_update(f, 0);
    cr_expect(!status_of(m).ready, "router 0 is not ready either");
    start_worker(1, 101);
    membership_update(leader, 0);
    follower_update(f, 0);
    cr_expect(status_of(m).ready, "%s", status_of(m).detail);
    cr_expect_eq(status_of(m).epoch, status_of(leader).epoch);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(fleet.exchange, end);
    cr_expect_eq(fleet.epoch, status_of(leader).epoch);
    cr_expect_eq(count_hosts(&fleet), 1);
    membership_leave(m);
    for (uint32_t w = 0; w < WORKERS; w++) {
        cr_expect_eq(workers[w].loads, 1, "only router 0 tells workers what to host");
        cr_expect_eq(workers[w].attaches, 2);
    }
}

Test(follower, adopts_a_placement_between_its_own_steps_and_router_0_waits_for_that)
{
    start_all();
    follower_update(f, 0);
    cr_expect(fleet_wait_for_followers(leader, 0), "it has said so");
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    replicate_all();
    follower_update(f, 0);
    follower_update(f, 0);
    cr_expect_eq(count_hosts(&fleet), 1, "a step is under way");
    cr_expect(!fleet_wait_for_followers(leader, 0), "it counts on what was before");
    membership_leave(m);
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(count_hosts(&fleet), 2);
    cr_expect_eq(fleet.placement->speeds[1], 2 * PLACEMENT_SPEED_ONE);
    cr_expect_eq(fleet.epoch, status_of(leader).epoch);
    cr_expect(!fleet_wait_for_followers(leader, 0), "it has not said so yet");
    follower_update(f, 0);
    cr_expect(fleet_wait_for_followers(leader, 0));
    membership_leave(m);
}

Test(follower, tells_the_load_of_its_steps_when_that_is_news)
{
    start_all();
    cr_expect_eq(loads_told, 0, "it has made no step");
    uint64_t totals[8] = {0};
    for (uint64_t step = 1; step <= 6; step++) {
        for (uint64_t i = 0; i < 8; i++)
            totals[i] += i;
        load_feed_add(feed, step, totals);
    }
    follower_update(f, 0);
    follower_update(f, 0);
    cr_expect_eq(loads_told, 1);
    cr_expect_eq(told_steps, 6);
    for (uint64_t i = 0; i < 8; i++)
        cr_expect_eq(told_rows[i], 4 * i, "of a window of 4 steps");
    rpc_server_stop(server);
    follower_update(f, 0);
    serve();
    follower_update(f, 0);
    cr_expect_eq(loads_told, 2, "another router 0 has not heard it");
}

Test(follower, keeps_its_fleet_while_router_0_is_away)
{
    start_all();
    rpc_server_stop(server);
    server = NULL;
    follower_update(f, 0);
    cr_expect(status_of(m).ready);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    membership_leave(m);
    serve();
    replicate_all();
    follower_update(f, 0);
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(count_hosts(&fleet), 2);
    membership_leave(m);
}

Test(follower, gives_up_whom_router_0_gave_up_and_takes_the_next_life)
{
    start_all();
    expert_fleet fleet;
    cr_assert(membership_enter(leader, &fleet));
    membership_lost(leader, 1);
    membership_leave(leader);
    follower_update(f, 0);
    cr_expect(!status_of(m).ready, "worker 1 alone hosts something");
    cr_expect_str_eq(membership_worker(m, 1).state, "lost", "a step may be waiting for it");
    fake_worker_kill(&workers[1]);
    start_worker(1, 201);
    membership_update(leader, 0);
    membership_update(leader, 0);
    cr_assert(status_of(leader).ready, "%s", status_of(leader).detail);
    follower_update(f, 0);
    cr_expect(status_of(m).ready, "%s", status_of(m).detail);
    cr_expect_eq(status_of(m).epoch, status_of(leader).epoch);
    cr_expect_eq(workers[1].attaches, 2);
}

/* Until worker w has been asked so often. */
static void
wait_pings(uint32_t w, uint32_t count)
{
    for (uint32_t asked = 0; asked < count;) {
        membership_update(m, 1);
        pthread_mutex_lock(&workers[w].lock);
        asked = workers[w].pings;
        pthread_mutex_unlock(&workers[w].lock);
    }
}

static void
make_deaf(uint32_t w, uint32_t pings)
{
    pthread_mutex_lock(&workers[w].lock);
    workers[w].deaf = pings;
    pthread_mutex_unlock(&workers[w].lock);
}

Test(follower, gives_up_a_worker_that_hangs_while_router_0_is_away)
{
    start_all();
    replicate_all();
    follower_update(f, 0);
    rpc_server_stop(server);
    server = NULL;
    wait_pings(0, 1);
    wait_pings(1, 1);
    make_deaf(1, UINT32_MAX);
    while (strcmp(membership_worker(m, 1).state, "lost") != 0)
        membership_update(m, 1);
    cr_expect_str_eq(membership_worker(m, 0).state, "ready");
    cr_expect(status_of(m).ready, "replicas of all are left");
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(count_hosts(&fleet), 1);
    membership_leave(m);
}

Test(follower, one_unanswered_question_is_no_death)
{
    start_all();
    wait_pings(1, 1);
    make_deaf(1, 1);
    wait_pings(1, 4);
    cr_expect_str_eq(membership_worker(m, 1).state, "ready");
}

Test(follower, a_worker_that_its_own_step_lost_is_attached_anew)
{
    start_all();
    replicate_all();
    follower_update(f, 0);
    expert_fleet fleet;
    cr_assert(membership_enter(m, &fleet));
    cr_expect(fleet.on_lost(fleet.user, 1), "replicas of all are left");
    cr_expect_eq(count_hosts(&fleet), 1);
    membership_leave(m);
    follower_update(f, SILENT_MS); /* router 0 has it still; asks again at once what it hosts */
    follower_update(f, 0);
    cr_assert(membership_enter(m, &fleet));
    cr_expect_eq(count_hosts(&fleet), 2);
    membership_leave(m);
    cr_expect_eq(workers[1].attaches, 3);
    cr_expect_eq(workers[1].loads, 1);
}

Test(follower, router_0_goes_on_above_the_largest_epoch_that_a_follower_has)
{
    Conclave__FleetRequest q = CONCLAVE__FLEET_REQUEST__INIT;
    q.router_id = 1;
    q.incarnation = 8;
    q.epoch = 40;
    q.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    q.model = &id.model;
    q.numeric = &id.numeric;
    fleet_answer *answer;
    cr_assert_eq(fleet_on_request(leader, &q, &answer, &eb), MOE_OK, "%s", eb.text);
    cr_expect(!answer->reply.has_placement, "nobody is there yet");
    fleet_answer_free(answer);
    start_all();
    cr_expect_gt(status_of(leader).epoch, 40);

    q.router_id = 0;
    cr_expect_eq(fleet_on_request(leader, &q, &answer, &eb), MOE_ERANGE);
    q.router_id = ROUTER_MAX;
    cr_expect_eq(fleet_on_request(leader, &q, &answer, &eb), MOE_ERANGE);
    q.router_id = 1;
    q.model = &other_id.model;
    cr_expect_eq(fleet_on_request(leader, &q, &answer, &eb), MOE_EMISMATCH);
    cr_expect_null(answer);
}

Test(follower, a_router_of_another_model_gets_no_fleet)
{
    start_all();
    follower_free(f);
    load_feed_stop(feed);
    membership_close(m);
    membership_free(m);
    create_follower(&other_id);
    follower_update(f, 0);
    cr_expect(!status_of(m).ready);
    cr_expect_eq(workers[0].attaches, 2, "that of the one before");
}

Test(follower, a_placement_that_is_none_is_refused_with_the_reason)
{
    uint32_t counts[] = {2, 3}, speeds[] = {256, 512}, slots[10] = {1, 2, 3, 4, 0, 4, 3, 2, 1, 0};
    Conclave__FleetReply reply = CONCLAVE__FLEET_REPLY__INIT;
    placement *p = (placement *)(void *)counts;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_OK);
    cr_expect_null(p, "it has none");
    reply.has_placement = true;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    reply.n_slot_counts = 2;
    reply.slot_counts = counts;
    reply.slots = slots;
    reply.n_slots = 9;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    reply.n_slots = 10;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    reply.speeds = speeds;
    reply.n_speeds = 2;
    speeds[0] = 0;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    speeds[0] = PLACEMENT_SPEED_MAX + 1;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "a speed of 65536"), "%s", eb.text);
    speeds[0] = 256;
    cr_assert_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_OK, "%s", eb.text);
    cr_expect(placement_is_host(p, 0, 3, 1));
    cr_expect(placement_is_host(p, 1, 3, 0));
    cr_expect(!placement_is_host(p, 1, 3, 1));
    cr_expect_arr_eq(p->speeds, speeds, sizeof speeds);
    placement_free(p);
    slots[4] = 5;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "expert 4 of 4"), "%s", eb.text);
    slots[4] = 0;
    counts[0] = UINT32_MAX; /* a sum that would wrap */
    counts[1] = 6;
    cr_expect_eq(follower_read_placement(&reply, &fake_limits, &p, &eb), MOE_EINVAL);
    cr_expect_null(p);
}
