/* Experts that move while requests run: a rebalance, workers that die without replicas, that come
 * and that are drained.  No request fails, the answers are those of a fleet that nothing happened
 * to, no step waits for a move, and nothing is left behind. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet_events.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 24u : 40u)
#define ROOM "--max-model-len=672 --max-num-batched-tokens=128 "

static fleet f;
static request_set requests;
static answer_set want;

TestSuite(moves, .timeout = 280, .fini = fleet_clean_up);

static void
ask_reference(void)
{
    requests_make(&requests, REQUEST_COUNT, 23);
    fleet_start(&f, &(fleet_options){.router_flags = ROOM});
    requests_ask_together(&requests, f.url, &want);
    fleet_stop(&f);
}

/* ---- what happens to the fleet ---- */

/* Until the frontend's metric is what the router says, which may still change. */
static void
wait_metric(const char *name, const char *key)
{
    for (uint64_t since = 0; fleet_metric(&f, name) != fleet_stat(&f, key);)
        fleet_pause(&since, name);
}

static void
rebalance(void)
{
    char said[FLEET_SAID_BYTES];
    const double decisions = fleet_stat(&f, "decisions");
    cr_assert_eq(fleet_ctl(&f, "--rebalance", said), 0, "%s", said);
    fleet_wait_stat(&f, "decisions", decisions + 1);
}

/* How often a worker was lost, and experts were without a host. */
typedef struct losses {
    double workers, repairs;
} losses;

static losses
losses_now(void)
{
    return (losses){fleet_stat(&f, "workers_lost"), fleet_stat(&f, "repairs")};
}

static void
wait_repaired(const losses *before)
{
    fleet_wait_stat(&f, "workers_lost", before->workers + 1);
    fleet_wait_stat(&f, "repairs", before->repairs + 1);
}

static void
kill_worker(uint32_t id)
{
    const losses before = losses_now();
    fleet_kill(fleet_worker(&f, id));
    wait_repaired(&before);
}

/* It hangs until it was given up; then it goes on, and is a new one. */
static void
stop_worker(uint32_t id)
{
    const losses before = losses_now();
    kill(fleet_worker(&f, id)->pid, SIGSTOP);
    wait_repaired(&before);
    kill(fleet_worker(&f, id)->pid, SIGCONT);
    fleet_wait_hosting(&f, id);
}

static void
add_worker(uint32_t id)
{
    fleet_start_worker(&f, id);
    fleet_wait_hosting(&f, id);
}

static void
drain_worker(uint32_t id)
{
    fleet_drain(&f, id);
}

/* One is lost while the experts of another are on their way. */
static void
drain_worker_and_kill_the_next(uint32_t id)
{
    char said[FLEET_SAID_BYTES], flags[32];
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(fleet_ctl(&f, flags, said), 0, "%s", said);
    kill_worker(id + 1);
    cr_expect_eq(fleet_wait_exit(fleet_worker(&f, id)), 0);
}

/* Something happens while all requests run; then and afterwards they are answered as ever. */
static void
during_requests(const char *what, void happens(uint32_t id), uint32_t id)
{
    answer_set got;
    requests_ask_begin(&requests, f.url);
    happens(id);
    requests_ask_end(&requests, &got);
    answers_expect_equal(&got, &want, what);
    answers_free(&got);
}

/* The same for what not even a step may notice. */
static void
during_steps(const char *what, void happens(uint32_t id), uint32_t id)
{
    const double resends = fleet_stat(&f, "resends");
    const uint32_t failed = fleet_count_log(&f, "router-0", "step failed");
    during_requests(what, happens, id);
    cr_expect_eq(fleet_stat(&f, "resends"), resends, "%s: a step had to be resent", what);
    cr_expect_eq(fleet_count_log(&f, "router-0", "step failed"), failed, "%s: a step failed", what);
}

/* Until that has moved something: at first experts lie in order of their numbers, which is not
 * where the load wants them. */
static void
rebalance_until_moved(uint32_t id)
{
    (void)id;
    const double adopted = fleet_stat(&f, "adopted");
    for (uint64_t since = 0; fleet_stat(&f, "adopted") == adopted;) {
        rebalance();
        fleet_pause(&since, "a rebalance that finds something better");
    }
}

static void
rebalance_often(uint32_t times)
{
    for (uint32_t i = 0; i < times; i++)
        rebalance();
}

static void
nothing(uint32_t id)
{
    (void)id;
}

static void
print_step_times(const char *when)
{
    printf("steps while %s: median %.2f ms, p99 %.2f ms\n", when, fleet_stat(&f, "recent_p50_ms"),
           fleet_stat(&f, "recent_p99_ms"));
}

/* Where experts came from: not from peers when that is forbidden; and else, if peers are to be
 * asked first, whenever one of them had it, which a dead worker's experts have not. */
static void
expect_sources(const char *source)
{
    const double moved = fleet_stat(&f, "bytes_moved"), copied = fleet_stat(&f, "peer_bytes_moved");
    const bool disk = strstr(source, "disk") != NULL;
    printf(
        "%s: %.0f bytes moved, %.0f of them from peers, %.0f experts that peers failed to give\n",
        source, moved, copied, fleet_stat(&f, "peer_failures"));
    cr_expect(disk ? copied == 0 : copied > 0);
    cr_expect_leq(copied, moved);
    if (disk) cr_expect_eq(fleet_stat(&f, "peer_failures"), 0);
    wait_metric("conclave:experts_moved_peer_bytes_total", "peer_bytes_moved");
}

static void
go_through_everything(const char *exchange, const char *rate, const char *source)
{
    char flags[512];
    snprintf(flags, sizeof flags, ROOM "--eplb=on %s %s", exchange, rate);
    fleet_start(&f, &(fleet_options){.workers = 3, .router_flags = flags, .worker_flags = source});
    during_steps("nothing", nothing, 0);
    print_step_times("nothing moves");
    during_steps("a rebalance", rebalance_until_moved, 0);
    print_step_times("experts move");
    const uint32_t fds = fleet_count_fds(&f, "router-0");

    during_requests("a death without replicas", kill_worker, 1);
    during_steps("a worker that comes back", add_worker, 1);
    during_steps("a worker more", add_worker, 5);
    during_steps("a worker drained", drain_worker, 0);
    during_steps("another worker drained", drain_worker, 5);
    during_requests("another death", kill_worker, 2);
    during_steps("two workers again", add_worker, 2);
    during_steps("three workers again", add_worker, 0);
    during_requests("a worker that hangs", stop_worker, 1);
    during_requests("a worker drained and one dead", drain_worker_and_kill_the_next, 0);
    during_steps("a worker for the dead one", add_worker, 1);
    during_steps("a rebalance at the end", rebalance_often, 5);

    cr_expect_eq(fleet_stat(&f, "step_waits"), 0, "a step waited for a move");
    expect_sources(source);
    printf("%s: without a host for at most %.3f s\n", exchange,
           fleet_stat(&f, "max_recovery_seconds"));
    wait_metric("conclave:workers_lost_total", "workers_lost");
    wait_metric("conclave:experts_moved_total", "experts_moved");
    for (uint64_t since = 0; fleet_count_fds(&f, "router-0") > fds;)
        fleet_pause(&since, "the router's file descriptors to be closed");
    fleet_stop(&f); /* all still run, and leave nothing, or this fails */
}

/* What it is to hand over is still on its way, at 1 MB/s, when it ends: the others take files. */
static void
drain_worker_and_kill_it(uint32_t id)
{
    static const char *const others[] = {"worker-1", "worker-2"}, copied[] = "are copied from";
    char out[FLEET_SAID_BYTES], flags[32];
    const uint32_t before =
        fleet_count_log(&f, others[0], copied) + fleet_count_log(&f, others[1], copied);
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(fleet_ctl(&f, flags, out), 0, "%s", out);
    for (uint64_t since = 0;
         fleet_count_log(&f, others[0], copied) + fleet_count_log(&f, others[1], copied) == before;)
        fleet_pause(&since, "experts to be copied");
    kill_worker(id);
}

static void
lose_a_peer_that_gives(void)
{
    fleet_start(&f, &(fleet_options){.workers = 3,
                                     .router_flags = ROOM "--eplb-move-mbps=1",
                                     .worker_flags = "--expert-source=peer"});
    during_requests("a peer that dies while it gives", drain_worker_and_kill_it, 0);
    cr_expect_eq(fleet_stat(&f, "peer_bytes_moved"), 0, "a move was done before it died");
    cr_expect_eq(fleet_stat(&f, "step_waits"), 0);
    during_steps("a worker in its place", add_worker, 0);
    fleet_stop(&f);
}

Test(moves, nobody_notices_that_experts_move)
{
    ask_reference();
    go_through_everything("--exchange=shm", "--eplb-move-mbps=0", "--expert-source=peer");
    go_through_everything("--exchange=nng",
                          "--eplb-move-mbps=10 --eplb-config={\"window_size\":100,"
                          "\"step_interval\":50,\"log_balancedness\":true}",
                          "--expert-source=disk");
    lose_a_peer_that_gives();
    answers_free(&want);
    requests_free(&requests);
}
