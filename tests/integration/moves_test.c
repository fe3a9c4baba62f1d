/* Experts that move while requests run: a rebalance, workers that die without replicas, that come
 * and that are drained.  No request fails, the answers are those of a fleet that nothing happened
 * to, no step waits for a move, and nothing is left behind. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 24u : 40u)
#define ROOM "--max-model-len=672 --max-num-batched-tokens=128 "
#define OUT_BYTES 16384

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

/* ---- what the router says of itself ---- */

static int
ctl(const char *flags, char *out)
{
    return fleet_run(&f, "ctl", flags, out, OUT_BYTES);
}

static double
stat_of(const char *key)
{
    char out[OUT_BYTES], quoted[64];
    cr_assert_eq(ctl("--json", out), 0, "%s", out);
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(out, quoted);
    cr_assert_not_null(at, "no %s in %s", key, out);
    return strtod(at + strlen(quoted), NULL);
}

/* "ready", "absent", ... into state [16]; returns what it hosts. */
static uint32_t
worker_state(uint32_t id, char *state)
{
    char out[OUT_BYTES], text[32];
    cr_assert_eq(ctl("--json", out), 0, "%s", out);
    snprintf(text, sizeof text, "{\"id\":%u,", id);
    snprintf(state, 16, "absent");
    const char *at = strstr(out, text);
    if (at == NULL) return 0;
    cr_assert_eq(sscanf(strstr(at, "\"state\":\""), "\"state\":\"%15[a-z]", state), 1);
    return (uint32_t)strtoul(strstr(at, "\"experts_hosted\":") + 17, NULL, 10);
}

static void
wait_hosting(uint32_t id)
{
    char state[16];
    for (uint64_t since = 0; worker_state(id, state) == 0 || strcmp(state, "ready") != 0;)
        fleet_pause(&since, "a worker to host experts");
}

static void
wait_at_least(const char *key, double value)
{
    for (uint64_t since = 0; stat_of(key) < value;)
        fleet_pause(&since, key);
}

/* Until the frontend's metric is what the router says, which may still change. */
static void
wait_metric(const char *name, const char *key)
{
    for (uint64_t since = 0; fleet_metric(&f, name) != stat_of(key);)
        fleet_pause(&since, name);
}

/* ---- what happens to the fleet ---- */

static void
rebalance(void)
{
    char out[OUT_BYTES];
    const double decisions = stat_of("decisions");
    cr_assert_eq(ctl("--rebalance", out), 0, "%s", out);
    wait_at_least("decisions", decisions + 1);
}

static void
kill_worker(uint32_t id)
{
    char name[16];
    const double lost = stat_of("workers_lost"), repairs = stat_of("repairs");
    snprintf(name, sizeof name, "worker-%u", id);
    fleet_process *p = fleet_find(&f, name);
    kill(p->pid, SIGKILL);
    cr_expect_eq(fleet_wait_exit(p), 128 + SIGKILL);
    wait_at_least("workers_lost", lost + 1);
    wait_at_least("repairs", repairs + 1);
}

/* It hangs until it was given up; then it goes on, and is a new one. */
static void
stop_worker(uint32_t id)
{
    char name[16];
    const double lost = stat_of("workers_lost"), repairs = stat_of("repairs");
    snprintf(name, sizeof name, "worker-%u", id);
    fleet_process *p = fleet_find(&f, name);
    kill(p->pid, SIGSTOP);
    wait_at_least("workers_lost", lost + 1);
    wait_at_least("repairs", repairs + 1);
    kill(p->pid, SIGCONT);
    wait_hosting(id);
}

static void
add_worker(uint32_t id)
{
    fleet_start_worker(&f, id);
    wait_hosting(id);
}

static void
drain_worker(uint32_t id)
{
    char out[OUT_BYTES], flags[32], name[16];
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(ctl(flags, out), 0, "%s", out);
    snprintf(name, sizeof name, "worker-%u", id);
    cr_expect_eq(fleet_wait_exit(fleet_find(&f, name)), 0);
}

/* One is lost while the experts of another are on their way. */
static void
drain_worker_and_kill_the_next(uint32_t id)
{
    char out[OUT_BYTES], flags[32], name[16];
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(ctl(flags, out), 0, "%s", out);
    kill_worker(id + 1);
    snprintf(name, sizeof name, "worker-%u", id);
    cr_expect_eq(fleet_wait_exit(fleet_find(&f, name)), 0);
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
    const double resends = stat_of("resends");
    const uint32_t failed = fleet_count_log(&f, "router-0", "step failed");
    during_requests(what, happens, id);
    cr_expect_eq(stat_of("resends"), resends, "%s: a step had to be resent", what);
    cr_expect_eq(fleet_count_log(&f, "router-0", "step failed"), failed, "%s: a step failed", what);
}

/* Until that has moved something: at first experts lie in order of their numbers, which is not
 * where the load wants them. */
static void
rebalance_until_moved(uint32_t id)
{
    (void)id;
    const double adopted = stat_of("adopted");
    for (uint64_t since = 0; stat_of("adopted") == adopted;) {
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
    printf("steps while %s: median %.2f ms, p99 %.2f ms\n", when, stat_of("recent_p50_ms"),
           stat_of("recent_p99_ms"));
}

/* Where experts came from: not from peers when that is forbidden; and else, if peers are to be
 * asked first, whenever one of them had it, which a dead worker's experts have not. */
static void
expect_sources(const char *source)
{
    const double moved = stat_of("bytes_moved"), copied = stat_of("peer_bytes_moved");
    const bool disk = strstr(source, "disk") != NULL;
    printf(
        "%s: %.0f bytes moved, %.0f of them from peers, %.0f experts that peers failed to give\n",
        source, moved, copied, stat_of("peer_failures"));
    cr_expect(disk ? copied == 0 : copied > 0);
    cr_expect_leq(copied, moved);
    if (disk) cr_expect_eq(stat_of("peer_failures"), 0);
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

    cr_expect_eq(stat_of("step_waits"), 0, "a step waited for a move");
    expect_sources(source);
    printf("%s: without a host for at most %.3f s\n", exchange, stat_of("max_recovery_seconds"));
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
    char out[OUT_BYTES], flags[32];
    const uint32_t before =
        fleet_count_log(&f, others[0], copied) + fleet_count_log(&f, others[1], copied);
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(ctl(flags, out), 0, "%s", out);
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
    cr_expect_eq(stat_of("peer_bytes_moved"), 0, "a move was done before it died");
    cr_expect_eq(stat_of("step_waits"), 0);
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
