/* Chaos: under a mixed load, every few seconds something happens to the fleet: a worker is killed,
 * or hangs for a while, one is added, one drained, experts are placed anew, a router is killed.
 * No request fails, every answer is the one of a fleet that nothing happened to, and when it is
 * quiet again nothing is left behind.
 *
 * CONCLAVE_CHAOS_SECONDS: how long it goes on for each fleet; CONCLAVE_CHAOS_SEED: what happens. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "tests/integration/fleet_events.h"
#include "tests/integration/load.h"
#include "tests/integration/two_hosts.h"

#define SECONDS_DEFAULT (FLEET_QUICK ? 12u : 10u)
#define REQUEST_COUNT 40u
#define CLIENTS (FLEET_QUICK ? 4u : 8u)
#define ROOM "--max-model-len=672 --max-num-batched-tokens=128 --worker-timeout-ms=1000 "
#define FIRST_WORKERS 3u
#define WORKERS_MAX 5u
#define FAR_FROM 2u /* of two hosts: workers from here on are on the second */
#define CELL_PORT 7411
#define BETWEEN_MS 800u /* two events: so long, and up to twice that */
#define HANG_MS 3000u
#define CUT_MS 3000u    /* or a tenth of that, of which nobody need hear */
#define RESTART_MS 300u /* a supervisor's */
#define EVENTS_MAX 4096u

typedef enum event_kind {
    KILL_WORKER,
    HANG_WORKER,
    KILL_ROUTER,
    ADD_WORKER,
    DRAIN_WORKER,
    REBALANCE,
    CUT_LINK,
    EVENT_KINDS
} event_kind;

static const char *const kind_names[EVENT_KINDS] = {
    "worker killed",  "worker hangs", "router killed", "worker added",
    "worker drained", "rebalance",    "link cut"};

typedef struct event {
    event_kind kind;
    uint32_t id;
    uint64_t ns; /* clock_now_ns() time */
} event;

typedef enum hand_state { AWAY, RUNNING, DEAD, HANGING, LEAVING } hand_state;

/* What was done to a process, and when the next thing is due. */
typedef struct hand {
    hand_state state;
    uint64_t due_ns;
} hand;

typedef struct chaos_fleet {
    const char *name;
    uint32_t routers;
    const char *router_flags;
    bool two_hosts;
} chaos_fleet;

static fleet f;
static request_set requests;
static answer_set want;
static load *clients;
static hand workers[WORKERS_MAX], routers[FLEET_ROUTERS_MAX];
static two_hosts hosts = {.netns = -1};
static uint64_t link_due_ns; /* when it is mended; 0: it is not cut */
static char secret[64], cell_flags[256], near_flags[64], far_flags[64];
static event events[EVENTS_MAX];
static uint32_t event_count;
static uint64_t dice;

static void
clean_up(void)
{
    for (uint32_t id = 0; id < WORKERS_MAX; id++) {
        const fleet_process *p = fleet_worker(&f, id);
        if (p != NULL && p->pid != 0) kill(p->pid, SIGCONT);
    }
    fleet_clean_up();
    two_hosts_remove(&hosts);
    if (secret[0] != '\0') unlink(secret);
}

TestSuite(chaos, .timeout = 3 * 3600, .fini = clean_up);

static uint32_t
number_of(const char *variable, uint32_t otherwise)
{
    const char *text = getenv(variable);
    return text == NULL || text[0] == '\0' ? otherwise : (uint32_t)strtoul(text, NULL, 10);
}

static uint32_t
draw(uint32_t below)
{
    dice = hash_combine(dice, 1);
    return (uint32_t)((dice >> 11) % below);
}

/* ---- what happens ---- */

static uint32_t
count_workers(hand_state state)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < WORKERS_MAX; id++)
        count += workers[id].state == state;
    return count;
}

static uint64_t
in_ms(uint64_t ms)
{
    return clock_now_ns() + ms * NS_PER_MS;
}

static void
note(event_kind kind, uint32_t id)
{
    cr_assert_lt(event_count, EVENTS_MAX);
    events[event_count++] = (event){kind, id, clock_now_ns()};
}

static uint32_t
draw_running_worker(void)
{
    uint32_t id;
    do {
        id = draw(WORKERS_MAX);
    } while (workers[id].state != RUNNING);
    return id;
}

/* False: router 0 is away, or refuses. */
static bool
ask_router(const char *flags)
{
    char said[FLEET_SAID_BYTES];
    return routers[0].state == RUNNING && fleet_ctl(&f, flags, said) == 0;
}

static bool
kill_worker(void)
{
    const uint32_t id = draw_running_worker();
    note(KILL_WORKER, id);
    fleet_kill(fleet_worker(&f, id));
    workers[id] = (hand){DEAD, in_ms(RESTART_MS)};
    return true;
}

static bool
hang_worker(void)
{
    const uint32_t id = draw_running_worker();
    note(HANG_WORKER, id);
    kill(fleet_worker(&f, id)->pid, SIGSTOP);
    workers[id] = (hand){HANGING, in_ms(HANG_MS)};
    return true;
}

static bool
rebalance(void)
{
    if (!ask_router("--rebalance")) return false;
    note(REBALANCE, 0);
    return true;
}

/* The last one goes, so that a router that starts again finds workers 0 to N-1. */
static bool
drain_worker(void)
{
    uint32_t id = WORKERS_MAX - 1;
    while (workers[id].state == AWAY)
        id--;
    if (workers[id].state != RUNNING) return false;
    note(DRAIN_WORKER, id);
    workers[id] = (hand){LEAVING, 0};
    return true;
}

static bool
add_worker(void)
{
    uint32_t id = 0;
    while (id < WORKERS_MAX && workers[id].state != AWAY)
        id++;
    if (id == WORKERS_MAX || count_workers(LEAVING) != 0) return false;
    note(ADD_WORKER, id);
    fleet_start_worker(&f, id);
    workers[id].state = RUNNING;
    return true;
}

static bool
kill_router(void)
{
    const uint32_t id = draw(f.options.routers);
    char name[16];
    for (uint32_t r = 0; r < f.options.routers; r++) {
        if (routers[r].state != RUNNING) return false;
    }
    note(KILL_ROUTER, id);
    snprintf(name, sizeof name, "router-%u", id);
    fleet_kill(fleet_find(&f, name));
    routers[id] = (hand){DEAD, in_ms(RESTART_MS)};
    return true;
}

/* The far host's workers are out of reach for a while. */
static bool
cut_link(void)
{
    if (f.options.far_netns == 0 || link_due_ns != 0 || workers[FAR_FROM].state != RUNNING)
        return false;
    note(CUT_LINK, FAR_FROM);
    two_hosts_connect(&hosts, false);
    link_due_ns = in_ms(draw(3) == 0 ? CUT_MS / 10 : CUT_MS);
    return true;
}

/* False: not now. */
static bool
happen(event_kind kind)
{
    static bool (*const act[EVENT_KINDS])(void) = {
        kill_worker, hang_worker, kill_router, add_worker, drain_worker, rebalance, cut_link};
    const bool takes_one = kind == KILL_WORKER || kind == HANG_WORKER || kind == DRAIN_WORKER;
    return (!takes_one || count_workers(RUNNING) >= 2) && act[kind]();
}

/* ---- what a supervisor does ---- */

static void
look_after_worker(uint32_t id, uint64_t now)
{
    hand *h = &workers[id];
    fleet_process *p = fleet_worker(&f, id);
    if (h->state == LEAVING && !fleet_is_running(p)) {
        cr_expect_eq(fleet_wait_exit(p), 0, "%s: drained", p->name);
        h->state = AWAY;
    }
    if (now < h->due_ns) return;
    if (h->state == DEAD) {
        fleet_start_worker(&f, id);
        h->state = RUNNING;
    } else if (h->state == HANGING) {
        kill(p->pid, SIGCONT);
        h->state = RUNNING;
    } else if (h->state == LEAVING) { /* again and again: a router that starts anew forgets */
        char flags[32];
        snprintf(flags, sizeof flags, "--drain=%u", id);
        (void)ask_router(flags);
        h->due_ns = in_ms(500);
    }
}

static void
look_after_router(uint32_t id, uint64_t now)
{
    hand *h = &routers[id];
    if (h->state != DEAD || now < h->due_ns) return;
    f.options.workers = WORKERS_MAX - count_workers(AWAY) - count_workers(LEAVING);
    fleet_start_router_id(&f, id);
    h->state = RUNNING;
}

static bool
look_after_all(void)
{
    const uint64_t now = clock_now_ns();
    if (link_due_ns != 0 && now >= link_due_ns) {
        two_hosts_connect(&hosts, true);
        link_due_ns = 0;
    }
    bool calm = link_due_ns == 0;
    for (uint32_t id = 0; id < WORKERS_MAX; id++) {
        look_after_worker(id, now);
        calm = calm && (workers[id].state == RUNNING || workers[id].state == AWAY);
    }
    for (uint32_t r = 0; r < f.options.routers; r++) {
        look_after_router(r, now);
        calm = calm && routers[r].state == RUNNING;
    }
    for (uint32_t i = 0; i < f.process_count; i++)
        cr_assert(f.processes[i].pid == 0 || fleet_is_running(&f.processes[i]) ||
                      strncmp(f.processes[i].name, "worker", 6) == 0,
                  "%s ended", f.processes[i].name);
    return calm;
}

/* ---- how long streams paused ---- */

/* When the first line of the log that holds text, at or after from_ms (wall clock), was written;
 * UINT64_MAX: never. */
static uint64_t
said_at_ms(const char *log, const char *text, uint64_t from_ms)
{
    for (const char *line = log; line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n'), *at = strstr(line, text);
        struct tm tm = {0};
        unsigned ms;
        if (at == NULL) return UINT64_MAX;
        if ((end == NULL || at < end) &&
            sscanf(line, "%d-%d-%dT%d:%d:%d.%uZ", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
                   &tm.tm_min, &tm.tm_sec, &ms) == 7) {
            tm.tm_year -= 1900;
            tm.tm_mon -= 1;
            const uint64_t said = (uint64_t)timegm(&tm) * 1000 + ms;
            if (said >= from_ms) return said;
        }
        line = end == NULL ? NULL : end + 1;
    }
    return UINT64_MAX;
}

/* clock_now_ns() time + this = wall clock. */
static int64_t
wall_clock_offset_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec - (int64_t)clock_now_ns();
}

/* When somebody noticed; 0: nobody said so. */
static uint64_t
detected_ns(const event *e)
{
    char text[64], name[16];
    const int64_t offset = wall_clock_offset_ns();
    const uint64_t from_ms = (uint64_t)((int64_t)e->ns + offset) / 1000000;
    uint64_t first_ms = UINT64_MAX;
    if (e->kind == KILL_ROUTER) {
        if (f.options.routers > 1)
            snprintf(text, sizeof text, "router %u is not serving", e->id);
        else
            snprintf(text, sizeof text, "the router is not serving");
        char *log = fleet_log(&f, "frontend");
        first_ms = said_at_ms(log, text, from_ms);
        free(log);
    }
    snprintf(text, sizeof text, " worker=%u pid", e->id);
    for (uint32_t r = 0; r < f.options.routers && e->kind != KILL_ROUTER; r++) {
        snprintf(name, sizeof name, "router-%u", r);
        char *log = fleet_log(&f, name);
        const uint64_t ms = said_at_ms(log, text, from_ms);
        if (ms < first_ms) first_ms = ms;
        free(log);
    }
    return first_ms == UINT64_MAX ? 0 : (uint64_t)((int64_t)(first_ms * 1000000) - offset);
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void
print_recovery(const char *fleet_name, event_kind kind)
{
    static double waits[EVENTS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < event_count; i++) {
        const uint64_t since = events[i].kind == kind ? detected_ns(&events[i]) : 0;
        const uint64_t wait = since == 0 ? 0 : load_longest_wait(clients, since);
        if (wait != 0) waits[count++] = (double)wait / 1e9;
    }
    if (count == 0) return;
    qsort(waits, count, sizeof waits[0], compare_doubles);
    printf("%s: %s %u times; from detection until every stream went on: p50 %.3f s, max %.3f s\n",
           fleet_name, kind_names[kind], count, waits[count / 2], waits[count - 1]);
}

/* ---- what is left ---- */

typedef struct footprint {
    uint32_t fds[FLEET_PROCESSES_MAX], shm_objects;
} footprint;

static void
take_footprint(footprint *out)
{
    out->shm_objects = fleet_count_shm(&f);
    for (uint32_t i = 0; i < f.process_count; i++)
        out->fds[i] = f.processes[i].pid == 0 ? 0 : fleet_count_fds(&f, f.processes[i].name);
}

static void
wait_footprint(const footprint *before)
{
    static const char *const gauges[] = {"conclave:kv_blocks_used", "vllm:num_requests_running",
                                         "vllm:num_requests_waiting"};
    for (size_t i = 0; i < sizeof gauges / sizeof gauges[0]; i++)
        fleet_wait_metric(&f, gauges[i], 0);
    for (uint64_t since = 0; fleet_count_shm(&f) > before->shm_objects;)
        fleet_pause(&since, "shared memory to be freed");
    for (uint32_t i = 0; i < f.process_count; i++) {
        const fleet_process *p = &f.processes[i];
        char what[64];
        snprintf(what, sizeof what, "file descriptors of %s to be closed", p->name);
        for (uint64_t since = 0; p->pid != 0 && fleet_count_fds(&f, p->name) > before->fds[i];)
            fleet_pause(&since, what);
    }
}

/* Everybody runs, and the workers are those of the beginning. */
static void
calm_down(void)
{
    for (uint64_t since = 0; !look_after_all();)
        fleet_pause(&since, "all processes to run");
    for (uint32_t id = 0; id < FIRST_WORKERS; id++) {
        if (workers[id].state == AWAY) fleet_start_worker(&f, id);
        workers[id].state = RUNNING;
    }
    for (uint32_t r = 0; r < f.options.routers; r++)
        fleet_wait_router(&f, r);
    for (uint32_t id = WORKERS_MAX; id-- > FIRST_WORKERS;) {
        if (workers[id].state == RUNNING) workers[id] = (hand){LEAVING, 0};
    }
    for (uint64_t since = 0; !look_after_all();)
        fleet_pause(&since, "workers to leave");
    for (uint32_t id = 0; id < FIRST_WORKERS; id++)
        fleet_wait_hosting(&f, id);
}

/* ---- the test ---- */

/* One of each kind in an order of chance, then the next one of each; what can't be now comes last,
 * or not at all. */
static void
happen_next(bool left[EVENT_KINDS])
{
    const uint32_t from = draw(EVENT_KINDS);
    for (uint32_t i = 0; i < EVENT_KINDS; i++) {
        const event_kind kind = (event_kind)((from + i) % EVENT_KINDS);
        if (!left[kind] || !happen(kind)) continue;
        left[kind] = false;
        return;
    }
    for (uint32_t i = 0; i < EVENT_KINDS; i++)
        left[i] = true;
}

static void
go_wild(uint64_t end_ns)
{
    bool left[EVENT_KINDS] = {false};
    uint64_t due_ns = in_ms(BETWEEN_MS);
    while (clock_now_ns() < end_ns) {
        uint64_t since = 0;
        look_after_all();
        if (clock_now_ns() < due_ns) {
            fleet_pause(&since, "the next event");
            continue;
        }
        happen_next(left);
        due_ns = in_ms(BETWEEN_MS + draw(BETWEEN_MS));
    }
}

static void
survive(const chaos_fleet *c, uint32_t seed)
{
    const uint32_t seconds = number_of("CONCLAVE_CHAOS_SECONDS", SECONDS_DEFAULT);
    footprint before;
    load_report report;
    printf("%s: %u s of chaos, seed %u\n", c->name, seconds, seed);
    fflush(stdout);
    dice = seed;
    event_count = 0;
    const fleet_options options = {.workers = FIRST_WORKERS,
                                   .routers = c->routers,
                                   .router_flags = c->router_flags,
                                   .cell_flags = c->two_hosts ? cell_flags : NULL,
                                   .frontend_flags = c->two_hosts ? cell_flags : NULL,
                                   .ctl_flags = c->two_hosts ? cell_flags : NULL,
                                   .worker_flags = c->two_hosts ? near_flags : NULL,
                                   .far_worker_flags = far_flags,
                                   .far_from = FAR_FROM,
                                   .far_netns = c->two_hosts ? hosts.netns : 0,
                                   .errors_expected = true};
    fleet_start(&f, &options);
    for (uint32_t id = 0; id < WORKERS_MAX; id++)
        workers[id] = (hand){id < FIRST_WORKERS ? RUNNING : AWAY, 0};
    for (uint32_t r = 0; r < c->routers; r++)
        routers[r] = (hand){RUNNING, 0};
    take_footprint(&before);

    clients = load_start(&requests, &want, f.url, CLIENTS, seed);
    go_wild(clock_now_ns() + seconds * NS_PER_S);
    for (uint64_t since = 0; !look_after_all();)
        fleet_pause(&since, "all processes to run");
    load_end(clients);
    load_get_report(clients, &report);
    cr_expect_eq(report.failures, 0, "%s: %llu of %llu requests failed: %s", c->name,
                 (unsigned long long)report.failures, (unsigned long long)report.answers,
                 report.first_failure);
    calm_down();
    wait_footprint(&before);
    printf("%s: %u events, %llu answers, %llu failed\n", c->name, event_count,
           (unsigned long long)report.answers, (unsigned long long)report.failures);
    for (event_kind kind = KILL_WORKER; kind <= KILL_ROUTER; kind++)
        print_recovery(c->name, kind);
    print_recovery(c->name, CUT_LINK);
    fflush(stdout);
    load_free(clients);
    clients = NULL;
    fleet_stop(&f);
}

static void
survive_all(const chaos_fleet *fleets, size_t count)
{
    const uint32_t seed = number_of("CONCLAVE_CHAOS_SEED", 1);
    requests_make_mixed(&requests, REQUEST_COUNT, 31);
    fleet_start(&f, &(fleet_options){.router_flags = ROOM});
    requests_ask_together(&requests, f.url, &want);
    fleet_stop(&f);
    for (size_t i = 0; i < count; i++)
        survive(&fleets[i], seed + (uint32_t)i);
    answers_free(&want);
    requests_free(&requests);
}

Test(chaos, no_request_notices_what_happens_to_the_fleet)
{
    static const chaos_fleet fleets[] = {
        {"1 router, no replicas", 1, ROOM "--eplb=on", false},
        {"2 routers, replicas", 2, ROOM "--eplb=on --num-redundant-experts=8", false},
    };
    survive_all(fleets, sizeof fleets / sizeof fleets[0]);
}

static void
write_cell_flags(void)
{
    static const char text[] = "the secret of the cell of this test";
    snprintf(secret, sizeof secret, "/tmp/conclave-secret-XXXXXX");
    const int fd = mkstemp(secret);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, sizeof text - 1), (ssize_t)(sizeof text - 1));
    close(fd);
    snprintf(cell_flags, sizeof cell_flags,
             "--router-urls=tcp://%s:%d,tcp://%s:%d --cluster-secret-file=%s", hosts.near,
             CELL_PORT, hosts.near, CELL_PORT + 1, secret);
    snprintf(near_flags, sizeof near_flags, "--control-host=%s", hosts.near);
    snprintf(far_flags, sizeof far_flags, "--control-host=%s", hosts.far);
}

Test(chaos, no_request_notices_what_happens_between_two_hosts)
{
    static const chaos_fleet fleets[] = {{"2 hosts, 2 routers, replicas", 2,
                                          ROOM "--eplb=on --num-redundant-experts=8 --exchange=nng",
                                          true}};
    char why[128];
    if (!two_hosts_make(&hosts, why, sizeof why)) cr_skip_test("%s", why);
    write_cell_flags();
    survive_all(fleets, sizeof fleets / sizeof fleets[0]);
}
