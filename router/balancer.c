#include "router/balancer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "router/capacity.h"
#include "router/routing_stats.h"
#include "router/worker_speed.h"

#define BALANCE_NICE 10
/* What is timed (a lost worker that stays away, a retry, the balancedness that is told) is looked
 * at so often; all else rings a bell. */
#define TICK_MS 1000
#define LOG_TICK_MS 100
#define RETRY_NS (NS_PER_S) /* after a change that failed; at once when the fleet changes */
/* No gain is as large: only what has to move moves. */
#define GAIN_NONE 1e9

struct balancer {
    balancer_config config;
    pthread_t thread;
    mover *mover;
    fleet_view view;
    uint64_t *rows;      /* [L * E] of the window */
    uint64_t *part_rows; /* [ROUTING_PARTS][L * E] of its parts */
    uint32_t window_steps, part_count;
    uint64_t losses;   /* when the change under way was planned */
    uint64_t retry_ns; /* no change to the fleet is tried before */
    uint32_t retry_changes;
    bool surplus; /* some may be hosted that no placement names */
    uint32_t surplus_changes;
    uint64_t uncovered_ns; /* since when experts are without a host; 0: they are not */
    worker_speed workers[WORKER_MAX];
    double speeds[WORKER_MAX]; /* of worker_speed_compare() */
    stepper_stats last_steps;
    uint64_t logged_steps;

    _Atomic bool stopping, forced;
    _Atomic uint64_t looked_steps; /* load_feed_steps() when it last looked at the load */
    pthread_mutex_t lock;          /* guards what follows */
    balancer_report report;
    double *layers; /* [L] balancedness */
};

/* mover's: is there something better to do than this change? */
static bool
is_vain(void *arg)
{
    const balancer *b = arg;
    return atomic_load(&b->stopping) || membership_losses(b->config.membership) != b->losses;
}

/* ---- planning ---- */

static bool
is_usable(const member *m)
{
    return m->ready && !m->draining;
}

/* Slots of each worker; those that can't be used have none. */
static moe_err
count_slots(balancer *b, eplb_policy policy, uint32_t *slot_counts, errbuf *eb)
{
    uint32_t capacities[WORKER_MAX];
    uint64_t memory[WORKER_MAX];
    bool usable[WORKER_MAX];
    const balancer_config *c = &b->config;
    const capacity_rule rule = {.expert_bytes = c->expert_bytes,
                                .num_layers = c->num_layers,
                                .num_experts = c->num_experts,
                                .spare_slots = c->spare_slots};
    for (uint32_t w = 0; w < b->view.worker_end; w++) {
        memory[w] = b->view.members[w].memory_bytes;
        usable[w] = is_usable(&b->view.members[w]);
    }
    membership_set_shortfall(c->membership,
                             capacity_fill(&rule, b->view.worker_end, memory, usable, capacities));
    return eplb_slot_counts(policy, b->config.num_layers, b->config.num_experts,
                            b->config.balance.num_redundant_experts, b->view.worker_end, capacities,
                            (double)b->config.expert_bytes, slot_counts, eb);
}

static double
measure_step_ns(balancer *b)
{
    if (b->config.stepper == NULL) return 0;
    stepper_stats now;
    stepper_get_stats(b->config.stepper, &now);
    const uint64_t steps = now.steps - b->last_steps.steps;
    const double ns =
        steps == 0 ? 0 : (double)(now.step_ns - b->last_steps.step_ns) / (double)steps;
    b->last_steps = now;
    return ns;
}

/* The first worker of its host. */
static uint32_t
host_of(const balancer *b, uint32_t w)
{
    const member *members = b->view.members;
    uint32_t first = 0;
    while (strcmp(members[first].host_id, members[w].host_id) != 0)
        first++;
    return first;
}

/* Ask workers what they measured, and compare them.  Returns the ns of a row, the mean over those
 * that answer; 0: not known. */
static double
measure_workers(balancer *b)
{
    double sum = 0, scratch[WORKER_MAX];
    uint32_t count = 0, hosts[WORKER_MAX];
    errbuf eb;
    for (uint32_t w = 0; w < b->view.worker_end; w++) {
        worker_work work;
        hosts[w] = host_of(b, w);
        b->workers[w].work = b->workers[w].busy_ns = 0;
        if (!b->view.members[w].ready) continue;
        if (mover_ask_work(b->mover, &b->view.members[w], &work, &eb) || work.rows == 0) continue;
        worker_speed_note(&b->workers[w], &work);
        sum += (double)work.busy_ns / (double)work.rows;
        count++;
    }
    worker_speed_compare(b->workers, b->view.worker_end, hosts, b->speeds, scratch);
    return count == 0 ? 0 : sum / count;
}

static eplb_costs
costs_now(balancer *b)
{
    eplb_costs c = eplb_default_costs();
    const double row_ns = measure_workers(b);
    if (row_ns > 0) c.row_ns = row_ns;
    c.step_ns = measure_step_ns(b);
    c.bytes_per_expert = (double)b->config.expert_bytes;
    if (b->config.move_bytes_per_s != 0) c.move_bytes_per_s = (double)b->config.move_bytes_per_s;
    c.interval_steps = b->config.balance.step_interval;
    return c;
}

static moe_err
decide(balancer *b, eplb_policy policy, const eplb_costs *costs, eplb_outcome *out, errbuf *eb)
{
    uint32_t slot_counts[WORKER_MAX];
    moe_err err = count_slots(b, policy, slot_counts, eb);
    if (err) return err;
    const eplb_input in = {.policy = policy,
                           .current = b->view.home,
                           .worker_count = b->view.worker_end,
                           .slot_counts = slot_counts,
                           .speeds = b->speeds,
                           .expert_rows = b->rows,
                           .window_steps = b->window_steps,
                           .part_rows = b->part_rows,
                           .part_count = b->part_count,
                           .num_groups = 1,
                           .num_nodes = 1,
                           .costs = *costs};
    return eplb_decide(&in, out, eb);
}

/* ---- carrying it out ---- */

/* o: NULL if no decision came about. */
static void
note(balancer *b, const char *text, const eplb_outcome *o)
{
    const uint32_t verdict = o != NULL ? o->verdict : BALANCER_FAILED;
    pthread_mutex_lock(&b->lock);
    balancer_report *r = &b->report;
    r->decisions++;
    r->verdicts[verdict]++;
    r->last_ns = clock_now_ns();
    r->last_gain_ns = o != NULL ? o->gain_ns : 0;
    r->last_bytes = o != NULL ? o->move_bytes : 0;
    snprintf(r->last_verdict, sizeof r->last_verdict, "%s", balancer_verdict_name(verdict));
    snprintf(r->last_text, sizeof r->last_text, "%s", text);
    pthread_mutex_unlock(&b->lock);
}

static moe_err
carry_out(balancer *b, const eplb_outcome *o, uint64_t bytes_per_s, bool repair)
{
    move_report moved;
    errbuf eb = {{0}};
    membership_set_moving(b->config.membership, !repair);
    const moe_err err = mover_run(b->mover, o->next, bytes_per_s, &moved, &eb);
    membership_set_moving(b->config.membership, false);
    b->surplus = true;
    pthread_mutex_lock(&b->lock);
    b->report.experts_moved += moved.experts;
    b->report.bytes_moved += moved.bytes;
    b->report.peer_bytes_moved += moved.peer_bytes;
    b->report.peer_failures += moved.peer_failures;
    b->report.move_ns += moved.ns;
    if (err) {
        b->report.failed++;
    } else {
        b->report.adopted++;
        b->report.adopted_ns = clock_now_ns();
    }
    pthread_mutex_unlock(&b->lock);
    if (!err) futex_bump(membership_changes(b->config.membership)); /* look what it is like now */
    if (err)
        LOG_WARN("eplb", "the placement was not changed to the end (%s): %s", moe_err_name(err),
                 eb.text);
    else
        LOG_INFO(
            "eplb",
            "placement adopted experts_moved=%llu bytes=%llu peer_bytes=%llu stages=%u ms=%llu "
            "step_waits=%llu",
            (unsigned long long)moved.experts, (unsigned long long)moved.bytes,
            (unsigned long long)moved.peer_bytes, moved.stages,
            (unsigned long long)(moved.ns / NS_PER_MS),
            (unsigned long long)membership_step_waits(b->config.membership));
    return err;
}

static void
note_recovery(balancer *b)
{
    const uint64_t ns = clock_now_ns() - b->uncovered_ns;
    b->uncovered_ns = 0;
    pthread_mutex_lock(&b->lock);
    b->report.repairs++;
    b->report.last_recovery_ns = ns;
    b->report.recovery_ns += ns;
    if (ns > b->report.recovery_ns_max) b->report.recovery_ns_max = ns;
    pthread_mutex_unlock(&b->lock);
    LOG_INFO("eplb", "all experts have hosts again recovery_ms=%llu",
             (unsigned long long)(ns / NS_PER_MS));
}

/* ---- the fleet changed ---- */

static uint32_t
slots_of(const placement *p, uint32_t w)
{
    uint32_t count = 0;
    if (w >= p->worker_count) return 0;
    for (uint32_t l = 0; l < p->num_layers; l++) {
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++)
            count += placement_layer_slots(p, l)[s] != PLACEMENT_EMPTY;
    }
    return count;
}

/* Why the placement no longer fits those who are there; NULL: it does. */
static const char *
reason_to_fit(balancer *b)
{
    uint32_t slot_counts[WORKER_MAX];
    errbuf eb;
    const fleet_view *v = &b->view;
    const uint64_t now = clock_now_ns();
    if (!v->covered) return "experts are without a host";
    bool counted = false;
    for (uint32_t w = 0; w < v->worker_end; w++) {
        const member *m = &v->members[w];
        if (m->missing && now > m->lost_ns + b->config.return_ms * NS_PER_MS)
            return "a lost worker did not come back";
        const uint32_t slots = slots_of(v->home, w);
        if (m->ready && m->draining && slots != 0) return "a worker is to be drained";
        if (!is_usable(m) || slots != 0) continue;
        if (!counted && count_slots(b, EPLB_CONCLAVE, slot_counts, &eb)) return NULL;
        counted = true;
        if (slot_counts[w] != 0) return "a worker hosts nothing yet";
    }
    return NULL;
}

/* The placement in force on workers with these slots, which hold all that it names there. */
static moe_err
copy_home(const balancer *b, const uint32_t *slot_counts, placement **out, errbuf *eb)
{
    const placement *home = b->view.home;
    const moe_err err = placement_create(out, home->num_layers, home->num_experts,
                                         b->view.worker_end, slot_counts, eb);
    for (uint32_t w = 0; w < home->worker_count && !err; w++) {
        for (uint32_t l = 0; l < home->num_layers; l++) {
            const uint32_t *from = placement_layer_slots(home, l);
            uint32_t *to = (*out)->slots + (size_t)l * (*out)->slot_count + (*out)->slot_first[w];
            for (uint32_t s = home->slot_first[w]; s < home->slot_first[w + 1]; s++) {
                if (from[s] != PLACEMENT_EMPTY) *to++ = from[s];
            }
        }
    }
    if (err) return err;
    placement_set_speeds(*out, b->speeds);
    placement_index(*out);
    return MOE_OK;
}

/* Slots that are empty get replicas: those of a worker that is gone, or a new one's.  With few
 * moves the policy leaves them empty. */
static moe_err
fill_slots(balancer *b, eplb_outcome *o, errbuf *eb)
{
    uint32_t slot_counts[WORKER_MAX];
    moe_err err = MOE_OK;
    if (o->next == NULL) {
        err = count_slots(b, EPLB_CONCLAVE, slot_counts, eb);
        if (!err) err = copy_home(b, slot_counts, &o->next, eb);
    }
    if (!err) placement_fill_spare(o->next);
    return err;
}

static uint64_t
last_loss_ns(const fleet_view *v)
{
    uint64_t last = 0;
    for (uint32_t w = 0; w < v->worker_end; w++) {
        if (v->members[w].lost_ns > last) last = v->members[w].lost_ns;
    }
    return last != 0 ? last : clock_now_ns();
}

static void
fit(balancer *b, const char *reason)
{
    eplb_outcome out = {0};
    errbuf eb = {{0}};
    eplb_costs costs = eplb_default_costs();
    costs.gain_min = GAIN_NONE;
    costs.bytes_per_expert = (double)b->config.expert_bytes;
    const bool repair = !b->view.covered;
    b->retry_changes = atomic_load(membership_changes(b->config.membership));
    b->retry_ns = clock_now_ns() + RETRY_NS;
    moe_err err = decide(b, EPLB_CONCLAVE, &costs, &out, &eb);
    if (!err) err = fill_slots(b, &out, &eb);
    const char *text = err ? eb.text : out.text;
    LOG_INFO("eplb", "%s: %s", reason, text);
    note(b, text, err ? NULL : &out);
    if (!err && carry_out(b, &out, repair ? 0 : b->config.move_bytes_per_s, repair) == MOE_OK)
        b->retry_ns = 0;
    eplb_outcome_fini(&out);
}

/* Those that are to go and host nothing more are told to end. */
static void
end_drained(balancer *b)
{
    errbuf eb;
    for (uint32_t w = 0; w < b->view.worker_end; w++) {
        const member *m = &b->view.members[w];
        if (!m->draining || (m->ready && slots_of(b->view.home, w) != 0)) continue;
        if (m->ready && mover_end_worker(b->mover, m, &eb))
            LOG_WARN("eplb", "worker %u was not told to end: %s", w, eb.text);
        membership_dismiss(b->config.membership, w, m->incarnation);
        LOG_INFO("eplb", "worker drained worker=%u", w);
    }
}

/* ---- the load changed ---- */

/* Of all layers, and of each by itself. */
static double
measure_balancedness(balancer *b)
{
    double scratch[WORKER_MAX], speeds[WORKER_MAX];
    const placement *p = b->view.home;
    placement_set_even_shares(b->view.home);
    for (uint32_t w = 0; w < p->worker_count; w++) /* ids that nobody has don't count */
        speeds[w] = p->slot_first[w + 1] > p->slot_first[w] ? 1 : 0;
    const double value = placement_balancedness(p, b->rows, speeds, scratch);
    pthread_mutex_lock(&b->lock);
    b->report.balancedness = value;
    for (uint32_t l = 0; l < p->num_layers; l++)
        b->layers[l] = placement_layer_balancedness(p, l, b->rows + (size_t)l * p->num_experts,
                                                    speeds, scratch);
    pthread_mutex_unlock(&b->lock);
    return value;
}

/* Those whose speed is not 1, as "worker 2: 0.71", for the log. */
static void
tell_speeds(const balancer *b, char *out, size_t size)
{
    size_t len = 0;
    out[0] = '\0';
    for (uint32_t w = 0; w < b->view.worker_end && len < size; w++) {
        if (b->speeds[w] == 1) continue;
        len += (size_t)snprintf(out + len, size - len, "%sworker %u: %.2f",
                                len ? ", " : " speeds=", w, b->speeds[w]);
    }
}

static void
rebalance(balancer *b, bool forced)
{
    eplb_outcome out = {0};
    errbuf eb = {{0}};
    eplb_costs costs = costs_now(b);
    if (forced) {
        costs.gain_min = 0;
        costs.hysteresis = 0;
        costs.noise_sigmas = -1;
    }
    const moe_err err = decide(b, b->config.policy, &costs, &out, &eb);
    const char *text = err ? eb.text : out.text;
    char speeds[256];
    tell_speeds(b, speeds, sizeof speeds);
    LOG_INFO("eplb", "decision verdict=%s policy=%s forced=%d window_steps=%u%s: %s",
             balancer_verdict_name(err ? BALANCER_FAILED : out.verdict),
             eplb_policy_name(b->config.policy), forced, b->window_steps, speeds, text);
    note(b, text, err ? NULL : &out);
    if (!err && out.next != NULL) {
        carry_out(b, &out, b->config.move_bytes_per_s, false);
    } else {
        pthread_mutex_lock(&b->lock);
        b->report.refused++;
        pthread_mutex_unlock(&b->lock);
    }
    eplb_outcome_fini(&out);
}

/* Of the window; every LOG_TICK_MS at most. */
static void
log_balancedness(balancer *b, double value)
{
    stepper_stats s = {0};
    if (!b->config.balance.log_balancedness || b->config.stepper == NULL) return;
    stepper_get_stats(b->config.stepper, &s);
    if (s.steps == b->logged_steps) return;
    b->logged_steps = s.steps;
    LOG_INFO("eplb", "balancedness=%.4f window_steps=%u steps=%llu", value, b->window_steps,
             (unsigned long long)s.steps);
}

static void
look_at_load(balancer *b)
{
    log_balancedness(b, measure_balancedness(b));
    const bool forced = atomic_exchange(&b->forced, false);
    bool due = load_feed_is_due(b->config.feed);
    if (b->config.pool != NULL) due = load_pool_is_due(b->config.pool) || due;
    if (!forced && !(due && b->config.enabled)) return;
    atomic_store(&b->looked_steps, load_feed_steps(b->config.feed));
    if (b->config.pool != NULL) load_pool_looked(b->config.pool);
    b->part_count = load_feed_take_parts(b->config.feed, b->part_rows);
    rebalance(b, forced);
}

/* ---- the thread ---- */

static void
look(balancer *b)
{
    errbuf eb;
    b->losses = membership_losses(b->config.membership);
    if (membership_look(b->config.membership, &b->view, &eb)) return;
    b->window_steps = load_feed_take(b->config.feed, b->rows);
    if (b->config.pool != NULL)
        b->window_steps = load_pool_add(b->config.pool, b->rows, b->window_steps);
    if (b->view.started) {
        if (!b->view.covered && b->uncovered_ns == 0) b->uncovered_ns = last_loss_ns(&b->view);
        if (b->view.covered && b->uncovered_ns != 0) note_recovery(b);
        end_drained(b);
        const char *reason = reason_to_fit(b);
        const bool wait = clock_now_ns() < b->retry_ns &&
                          b->retry_changes == atomic_load(membership_changes(b->config.membership));
        if (reason != NULL && !wait)
            fit(b, reason);
        else if (reason == NULL)
            look_at_load(b);
    }
    fleet_view_fini(&b->view);
    /* What a failed change or a worker's return has left behind. */
    const uint32_t changes = atomic_load(membership_changes(b->config.membership));
    if (!b->surplus && changes == b->surplus_changes) return;
    b->surplus_changes = changes;
    b->surplus = !mover_release_surplus(b->mover);
}

static uint32_t
tick_ms(const balancer *b)
{
    if (b->config.balance.log_balancedness) return LOG_TICK_MS;
    return b->config.return_ms < TICK_MS ? b->config.return_ms : TICK_MS;
}

static void *
balance_main(void *arg)
{
    balancer *b = arg;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), BALANCE_NICE); /* of this thread alone */
    _Atomic uint32_t *changes = membership_changes(b->config.membership);
    while (!atomic_load(&b->stopping)) {
        const uint32_t seen = atomic_load(changes);
        look(b);
        if (!atomic_load(&b->stopping))
            futex_sleep_change(changes, seen, clock_now_ns() + tick_ms(b) * NS_PER_MS);
    }
    return NULL;
}

static void
release(balancer *b)
{
    mover_free(b->mover);
    pthread_mutex_destroy(&b->lock);
    free(b->rows);
    free(b->part_rows);
    free(b->layers);
    free(b);
}

moe_err
balancer_start(balancer **out, const balancer_config *config, errbuf *eb)
{
    *out = NULL;
    balancer *b = calloc(1, sizeof *b);
    if (b == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    b->config = *config;
    b->surplus = true;
    for (uint32_t w = 0; w < WORKER_MAX; w++)
        b->speeds[w] = 1;
    if (b->config.return_ms == 0) b->config.return_ms = BALANCER_RETURN_MS;
    pthread_mutex_init(&b->lock, NULL);
    const size_t cells = (size_t)config->num_layers * config->num_experts;
    b->rows = calloc(cells, sizeof *b->rows);
    b->part_rows = calloc(cells * ROUTING_PARTS, sizeof *b->part_rows);
    b->layers = calloc(config->num_layers, sizeof *b->layers);
    for (uint32_t l = 0; l < config->num_layers && b->layers != NULL; l++)
        b->layers[l] = 1; /* as without any load */
    moe_err err = b->rows != NULL && b->part_rows != NULL && b->layers != NULL
                      ? MOE_OK
                      : err_set(eb, MOE_ENOMEM, "out of memory");
    if (!err)
        err = mover_create(&b->mover,
                           &(mover_config){.membership = config->membership,
                                           .num_layers = config->num_layers,
                                           .num_experts = config->num_experts,
                                           .expert_bytes = config->expert_bytes,
                                           .give_up = is_vain,
                                           .arg = b},
                           eb);
    if (!err && pthread_create(&b->thread, NULL, balance_main, b) != 0)
        err = err_set(eb, MOE_EIO, "can't start the balancer's thread");
    if (err) {
        release(b);
        return err;
    }
    pthread_setname_np(b->thread, "balance");
    *out = b;
    return MOE_OK;
}

void
balancer_stop(balancer *b)
{
    if (b == NULL) return;
    atomic_store(&b->stopping, true);
    futex_bump(membership_changes(b->config.membership));
    pthread_join(b->thread, NULL);
    release(b);
}

void
balancer_rebalance(balancer *b)
{
    atomic_store(&b->forced, true);
    futex_bump(membership_changes(b->config.membership));
}

void
balancer_get_report(balancer *b, balancer_report *out)
{
    pthread_mutex_lock(&b->lock);
    *out = b->report;
    pthread_mutex_unlock(&b->lock);
    /* In this order: a look that falls between the two makes it less, not more. */
    const uint64_t steps = load_feed_steps(b->config.feed), looked = atomic_load(&b->looked_steps);
    out->idle_steps = steps > looked ? steps - looked : 0;
    out->overdue = b->config.enabled && out->idle_steps >= (uint64_t)BALANCER_OVERDUE_INTERVALS *
                                                               b->config.balance.step_interval;
}

void
balancer_get_layers(balancer *b, double *out)
{
    pthread_mutex_lock(&b->lock);
    memcpy(out, b->layers, b->config.num_layers * sizeof *out);
    pthread_mutex_unlock(&b->lock);
}

uint32_t
balancer_step_interval(const balancer *b)
{
    return b->config.balance.step_interval;
}

const char *
balancer_verdict_name(uint32_t verdict)
{
    return verdict < EPLB_VERDICTS ? eplb_verdict_name((eplb_verdict)verdict) : "failed";
}
