#include "frontend/fleet_metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/clock.h"
#include "common/futex.h"
#include "frontend/cell.h"
#include "frontend/fleet_tally.h"
#include "proto/fleet_json.h"
#include "proto/methods.h"
#include "proto/rpc.h"

#define ASK_EVERY_MS 1000
#define ASK_TIMEOUT_MS 2000
#define CALL_POLL_MS 50
#define NS_PER_S_F 1e9

enum {
    COUNT_LOST,
    COUNT_RESENDS,
    COUNT_STEP_WAITS,
    COUNT_ADOPTED,
    COUNT_REFUSED,
    COUNT_FAILED,
    COUNT_EXPERTS,
    COUNT_BYTES,
    COUNT_PEER_BYTES,
    COUNT_PEER_FAILURES,
    COUNT_SECONDS,
    COUNT_REPAIRS,
    COUNT_RECOVERY,
    COUNTS
};
static const char *const count_names[COUNTS][2] = {
    [COUNT_LOST] = {"conclave:workers_lost_total", "Workers that were given up"},
    [COUNT_RESENDS] = {"conclave:step_resends_total",
                       "Times that a step went on with replicas of what was lost"},
    [COUNT_STEP_WAITS] = {"conclave:step_waits_total",
                          "Steps that found the fleet not ready while experts moved"},
    [COUNT_ADOPTED] = {"conclave:placements_adopted_total", "Placements adopted"},
    [COUNT_REFUSED] = {"conclave:placements_refused_total",
                       "Looks at the placement that found nothing that pays"},
    [COUNT_FAILED] = {"conclave:placements_failed_total", "Placements not carried out to the end"},
    [COUNT_EXPERTS] = {"conclave:experts_moved_total", "Experts loaded while serving"},
    [COUNT_BYTES] = {"conclave:experts_moved_bytes_total", "Their packed weights"},
    [COUNT_PEER_BYTES] = {"conclave:experts_moved_peer_bytes_total",
                          "Of them, copied from other workers; the rest came from files"},
    [COUNT_PEER_FAILURES] = {"conclave:expert_peer_failures_total",
                             "Experts that a worker was to give and that came from files"},
    [COUNT_SECONDS] = {"conclave:experts_move_seconds_total", "Time in which experts moved"},
    [COUNT_REPAIRS] = {"conclave:repairs_total",
                       "Times that experts were without a host, and over"},
    [COUNT_RECOVERY] = {"conclave:recovery_seconds_total",
                        "From a loss that left experts without a host until all had hosts again"},
};

struct fleet_metrics {
    rpc_client *routers[CELL_ROUTERS_MAX];
    uint32_t router_count;
    pthread_mutex_t lock; /* guards tally */
    fleet_tally *tally;
    pthread_t thread;
    _Atomic bool stopping;
    _Atomic uint32_t bell;
    metric *workers_ready, *epoch, *hosted_bytes, *balancedness, *decision_age, *recovery;
    metric *recovery_max, *adopted_age, *idle_steps, *overdue;
    metric *counts[COUNTS];
    double last[COUNTS]; /* what the counters stand at */
};

static void
read_counts(const Conclave__RouterStats *s, double *now)
{
    static const Conclave__BalanceStats none = CONCLAVE__BALANCE_STATS__INIT;
    const Conclave__BalanceStats *b = s->balance != NULL ? s->balance : &none;
    now[COUNT_LOST] = (double)s->workers_lost;
    now[COUNT_RESENDS] = (double)s->resends;
    now[COUNT_STEP_WAITS] = (double)s->step_waits;
    now[COUNT_ADOPTED] = (double)b->adopted;
    now[COUNT_REFUSED] = (double)b->refused;
    now[COUNT_FAILED] = (double)b->failed;
    now[COUNT_EXPERTS] = (double)b->experts_moved;
    now[COUNT_BYTES] = (double)b->bytes_moved;
    now[COUNT_PEER_BYTES] = (double)b->peer_bytes_moved;
    now[COUNT_PEER_FAILURES] = (double)b->peer_failures;
    now[COUNT_SECONDS] = (double)b->move_ns / NS_PER_S_F;
    now[COUNT_REPAIRS] = (double)b->repairs;
    now[COUNT_RECOVERY] = (double)b->recovery_ns / NS_PER_S_F;
}

static void
record(fleet_metrics *f, const Conclave__RouterStats *s)
{
    double now[COUNTS], hosted = 0;
    uint32_t ready = 0;
    read_counts(s, now);
    for (int i = 0; i < COUNTS; i++) {
        if (now[i] < f->last[i]) f->last[i] = 0; /* another router */
        metric_add(f->counts[i], now[i] - f->last[i]);
        f->last[i] = now[i];
    }
    for (size_t i = 0; i < s->n_workers; i++) {
        const char *state = s->workers[i]->state;
        ready += strcmp(state, "ready") == 0 || strcmp(state, "draining") == 0;
        hosted += (double)s->workers[i]->bytes_hosted;
    }
    metric_set(f->workers_ready, ready);
    metric_set(f->hosted_bytes, hosted);
    metric_set(f->epoch, (double)s->epoch);
    if (s->balance == NULL) return;
    metric_set(f->balancedness, s->balance->balancedness);
    metric_set(f->decision_age, (double)s->balance->last_age_ns / NS_PER_S_F);
    metric_set(f->recovery, (double)s->balance->last_recovery_ns / NS_PER_S_F);
    metric_set(f->recovery_max, (double)s->balance->recovery_ns_max / NS_PER_S_F);
    metric_set(f->adopted_age, (double)s->balance->adopted_age_ns / NS_PER_S_F);
    metric_set(f->idle_steps, (double)s->balance->idle_steps);
    metric_set(f->overdue, s->balance->overdue);
}

/* Router r's answer, or NULL. */
static void
take(fleet_metrics *f, uint32_t r, const Conclave__RouterStats *s)
{
    if (s == NULL) {
        if (r == 0) metric_set(f->workers_ready, 0);
        return;
    }
    if (r == 0) record(f, s);
    pthread_mutex_lock(&f->lock);
    fleet_tally_take(f->tally, r, s);
    pthread_mutex_unlock(&f->lock);
}

/* All routers side by side; one that is away holds up nobody but this round. */
static void
ask_all(fleet_metrics *f)
{
    const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
    const uint64_t until = clock_now_ns() + ASK_TIMEOUT_MS * NS_PER_MS;
    rpc_pending *calls[CELL_ROUTERS_MAX];
    for (uint32_t r = 0; r < f->router_count; r++)
        calls[r] = rpc_call_begin(f->routers[r], ROUTER_STATS, &request.base, ASK_TIMEOUT_MS, NULL);
    for (uint32_t r = 0; r < f->router_count; r++) {
        ProtobufCMessage *response = NULL;
        if (calls[r] == NULL) continue; /* no memory: another time */
        while (!atomic_load(&f->stopping) && clock_now_ns() < until) {
            if (rpc_pending_wait(calls[r], clock_now_ns() + CALL_POLL_MS * NS_PER_MS)) break;
        }
        rpc_pending_finish(calls[r], &response, NULL, NULL);
        take(f, r, (const void *)response);
        rpc_response_free(response);
    }
}

static void *
ask_main(void *arg)
{
    fleet_metrics *f = arg;
    while (!atomic_load(&f->stopping)) {
        ask_all(f);
        if (!atomic_load(&f->stopping))
            futex_sleep_change(&f->bell, 0, clock_now_ns() + ASK_EVERY_MS * NS_PER_MS);
    }
    return NULL;
}

static void
register_all(fleet_metrics *f, metrics *m, const char *labels)
{
    f->workers_ready = metrics_gauge(m, "conclave:workers_ready", labels, "Workers that serve");
    f->epoch = metrics_gauge(m, "conclave:placement_epoch", labels,
                             "Rises whenever other experts or workers serve");
    f->hosted_bytes = metrics_gauge(m, "conclave:experts_hosted_bytes", labels,
                                    "Packed weights of experts on all workers");
    f->balancedness = metrics_gauge(m, "conclave:balancedness", labels,
                                    "Mean rows of a worker over the most, by the window's load");
    f->decision_age = metrics_gauge(m, "conclave:placement_decision_age_seconds", labels,
                                    "Since the last look at the placement; 0: there was none");
    f->recovery = metrics_gauge(m, "conclave:last_recovery_seconds", labels,
                                "How long experts were without a host the last time");
    f->recovery_max = metrics_gauge(m, "conclave:max_recovery_seconds", labels,
                                    "How long they were at most since router 0 started");
    f->adopted_age =
        metrics_gauge(m, "conclave:placement_adopted_age_seconds", labels,
                      "Since a placement was last adopted; 0: none was since router 0 started");
    f->idle_steps = metrics_gauge(m, "conclave:rebalancer_idle_steps", labels,
                                  "Steps since the load was last looked at");
    f->overdue = metrics_gauge(m, "conclave:rebalancer_overdue", labels,
                               "1: with --eplb, those are two intervals or more");
    for (int i = 0; i < COUNTS; i++)
        f->counts[i] = metrics_counter(m, count_names[i][0], labels, count_names[i][1]);
}

static void
release(fleet_metrics *f)
{
    for (uint32_t r = 0; r < CELL_ROUTERS_MAX; r++)
        rpc_client_close(f->routers[r]);
    fleet_tally_free(f->tally);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

moe_err
fleet_metrics_start(fleet_metrics **out, const char *const *router_urls, uint32_t router_count,
                    metrics *m, const char *labels, errbuf *eb)
{
    *out = NULL;
    fleet_metrics *f = calloc(1, sizeof *f);
    if (f == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    pthread_mutex_init(&f->lock, NULL);
    register_all(f, m, labels);
    f->router_count = router_count;
    moe_err err = fleet_tally_create(&f->tally, router_count, labels, eb);
    for (uint32_t r = 0; r < router_count && !err; r++)
        err = rpc_client_open(&f->routers[r],
                              &(rpc_client_options){.url = router_urls[r],
                                                    .service = &conclave__router__descriptor,
                                                    .message_bytes_max = FLEET_REPLY_BYTES_MAX},
                              eb);
    if (!err && pthread_create(&f->thread, NULL, ask_main, f) != 0)
        err = err_set(eb, MOE_EIO, "can't start the thread of the fleet's metrics");
    if (err) {
        release(f);
        return err;
    }
    pthread_setname_np(f->thread, "fleet-metrics");
    *out = f;
    return MOE_OK;
}

void
fleet_metrics_stop(fleet_metrics *f)
{
    if (f == NULL) return;
    atomic_store(&f->stopping, true);
    futex_bump(&f->bell);
    pthread_join(f->thread, NULL);
    release(f);
}

void
fleet_metrics_print(fleet_metrics *f, strbuf *out)
{
    pthread_mutex_lock(&f->lock);
    fleet_tally_print(f->tally, out);
    pthread_mutex_unlock(&f->lock);
}
