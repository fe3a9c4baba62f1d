#include "router/eplb_replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "router/replica_choice.h"
#include "router/routing_stats.h"

/* Sums over layers and records: mean rows of a worker, rows of the busiest, and simulated time. */
typedef struct balance {
    double mean, most, ns;
} balance;

typedef struct replay {
    const replay_config *config;
    uint32_t layers, experts, steps_per_record;
    uint32_t *slot_counts; /* [W] */
    uint64_t *worker_rows; /* [W] */
    uint32_t *reads;       /* [W] experts that it has rows of */
    uint32_t *counts;      /* [L][E] */
    uint64_t *parts;       /* [ROUTING_PARTS][L][E] */
    routing_stats *stats;
    replica_choice *choice;
    placement *linear, *current;
    balance on, off, all_on, all_off; /* of this interval, and of all */
} replay;

static double
balancedness(const balance *b)
{
    return b->most > 0 ? b->mean / b->most : 1;
}

static void
replay_fini(replay *r)
{
    placement_free(r->linear);
    placement_free(r->current);
    replica_choice_free(r->choice);
    routing_stats_free(r->stats);
    free(r->counts);
    free(r->parts);
    free(r->worker_rows);
    free(r->reads);
    free(r->slot_counts);
}

static moe_err
start_placement(replay *r, char *note, errbuf *eb)
{
    const replay_config *c = r->config;
    uint32_t *capacities = malloc(c->worker_count * sizeof *capacities);
    if (capacities == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    errbuf text;
    for (uint32_t w = 0; w < c->worker_count; w++)
        capacities[w] = PLACEMENT_SLOT_MAX;
    moe_err err = eplb_slot_counts(c->policy, r->layers, r->experts, c->redundant, c->worker_count,
                                   capacities, 0, r->slot_counts, &text);
    free(capacities);
    if (err) return err_set(eb, err, "%s", text.text);
    memcpy(note, text.text, sizeof text.text);
    err = placement_create(&r->linear, r->layers, r->experts, c->worker_count, r->slot_counts, eb);
    if (!err) err = placement_set_linear(r->linear, eb);
    if (!err) err = placement_clone(&r->current, r->linear, eb);
    if (!err) placement_fill_spare(r->current);
    return err;
}

static moe_err
replay_init(replay *r, const replay_config *c, const routing_trace *t, char *note, errbuf *eb)
{
    const routing_trace_header *h = &t->header;
    const uint32_t steps = h->steps_per_record;
    *r = (replay){
        .config = c, .layers = h->num_layers, .experts = h->num_experts, .steps_per_record = steps};
    if (c->window_size == 0 || c->step_interval == 0)
        return err_set(eb, MOE_ERANGE, "a window of %u steps, an interval of %u", c->window_size,
                       c->step_interval);
    if (c->worker_count == 0 || c->worker_count > PLACEMENT_WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "%u workers", c->worker_count);
    r->slot_counts = calloc(c->worker_count, sizeof *r->slot_counts);
    r->worker_rows = calloc(c->worker_count, sizeof *r->worker_rows);
    r->reads = calloc(c->worker_count, sizeof *r->reads);
    r->counts = calloc((size_t)r->layers * r->experts, sizeof *r->counts);
    r->parts = calloc((size_t)r->layers * r->experts * ROUTING_PARTS, sizeof *r->parts);
    if (!r->slot_counts || !r->worker_rows || !r->reads || !r->counts || !r->parts)
        return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = start_placement(r, note, eb);
    if (!err)
        err = routing_stats_create(&r->stats, r->layers, r->experts,
                                   (c->window_size + steps - 1) / steps,
                                   (c->step_interval + steps - 1) / steps, eb);
    if (!err && replica_choice_create(&r->choice, r->experts, c->worker_count,
                                      r->linear->slot_count, REPLICA_ROWS_MIN) != MOE_OK)
        err = err_set(eb, MOE_ENOMEM, "out of memory");
    return err;
}

/* A layer whose slowest worker reads and multiplies so much. */
static double
simulate_layer(replay *r, const placement *p, const dispatch_split *split)
{
    const replay_config *c = r->config;
    double slowest = 0;
    memset(r->reads, 0, p->worker_count * sizeof *r->reads);
    for (uint32_t i = 0; i < split->run_first[r->experts]; i++)
        r->reads[split->runs[i].worker] += split->runs[i].row_count != 0;
    for (uint32_t w = 0; w < p->worker_count; w++) {
        const double bytes = r->reads[w] * c->costs.bytes_per_expert;
        const double read = c->read_bytes_per_s > 0 ? bytes / c->read_bytes_per_s * 1e9 : 0;
        const double multiply = (double)r->worker_rows[w] * c->costs.row_ns;
        slowest = fmax(slowest, fmax(read, multiply));
    }
    return slowest;
}

static void
measure(replay *r, const placement *p, balance *b)
{
    for (uint32_t l = 0; l < r->layers; l++) {
        uint64_t sum = 0, most = 0;
        memset(r->worker_rows, 0, p->worker_count * sizeof *r->worker_rows);
        const dispatch_split split = replica_choice_run(
            r->choice, p, l, r->counts + (size_t)l * r->experts, NULL, r->worker_rows);
        b->ns += simulate_layer(r, p, &split);
        for (uint32_t w = 0; w < p->worker_count; w++) {
            sum += r->worker_rows[w];
            if (r->worker_rows[w] > most) most = r->worker_rows[w];
        }
        b->mean += (double)sum / p->worker_count;
        b->most += (double)most;
    }
}

static void
add(balance *sum, balance *part)
{
    sum->mean += part->mean;
    sum->most += part->most;
    sum->ns += part->ns;
    *part = (balance){0};
}

static moe_err
decide(replay *r, uint64_t step, replay_fn *on_interval, void *user, replay_summary *out,
       errbuf *eb)
{
    const replay_config *c = r->config;
    replay_interval interval = {.step = step,
                                .balancedness = balancedness(&r->on),
                                .balancedness_off = balancedness(&r->off)};
    eplb_input in = {.policy = c->policy,
                     .current = r->current,
                     .worker_count = c->worker_count,
                     .slot_counts = r->slot_counts,
                     .expert_rows = routing_stats_rows(r->stats),
                     .window_steps = routing_stats_window_steps(r->stats),
                     .part_rows = r->parts,
                     .part_count = routing_stats_parts(r->stats, r->parts),
                     .num_groups = c->num_groups,
                     .num_nodes = c->num_nodes,
                     .costs = c->costs};
    /* The statistics took each record for a step. */
    in.window_steps *= r->steps_per_record;
    in.costs.interval_steps = c->step_interval;
    const uint64_t start = clock_now_ns();
    const moe_err err = eplb_decide(&in, &interval.outcome, eb);
    if (err) return err;
    const double seconds = (double)(clock_now_ns() - start) / 1e9;
    if (seconds > out->seconds) out->seconds = seconds;
    if (interval.outcome.next != NULL) {
        placement_free(r->current);
        r->current = interval.outcome.next;
        interval.outcome.next = NULL;
        interval.adopted = true;
        out->adopted++;
        out->move_count += interval.outcome.move_count;
        out->move_bytes += interval.outcome.move_bytes;
    }
    out->intervals++;
    add(&r->all_on, &r->on);
    add(&r->all_off, &r->off);
    if (on_interval) on_interval(user, &interval);
    return MOE_OK;
}

moe_err
eplb_replay(routing_trace *t, const replay_config *config, replay_fn *on_interval, void *user,
            replay_summary *out, errbuf *eb)
{
    replay r;
    routing_trace_record record;
    uint64_t records = 0;
    *out = (replay_summary){0};
    moe_err err = replay_init(&r, config, t, out->slots_note, eb);
    while (!err && (err = routing_trace_next(t, &record, r.counts, eb)) == MOE_OK) {
        out->steps += record.step_count;
        records++;
        measure(&r, r.current, &r.on);
        measure(&r, r.linear, &r.off);
        if (routing_stats_add(r.stats, r.counts))
            err = decide(&r, record.first_step + record.step_count - 1, on_interval, user, out, eb);
    }
    if (err == MOE_ECLOSED) out->cut_off = true;
    if (err == MOE_ECLOSED || err == MOE_ENOTFOUND) err = MOE_OK;
    add(&r.all_on, &r.on);
    add(&r.all_off, &r.off);
    out->balancedness = balancedness(&r.all_on);
    out->balancedness_off = balancedness(&r.all_off);
    out->experts_ns = records ? r.all_on.ns / (double)records : 0;
    out->experts_ns_off = records ? r.all_off.ns / (double)records : 0;
    replay_fini(&r);
    return err;
}
