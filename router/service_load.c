#include "router/service_load.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"

static uint32_t
num_layers(const router_service_config *c)
{
    return c->identity->model.num_layers;
}

static uint64_t
age_ns(uint64_t at_ns)
{
    return at_ns == 0 ? 0 : clock_now_ns() - at_ns;
}

static void
fill_decisions(balance_answer *a)
{
    const balancer_report *r = &a->report;
    Conclave__BalanceStats *out = &a->stats;
    out->decisions = r->decisions;
    out->adopted = r->adopted;
    out->refused = r->refused;
    out->failed = r->failed;
    for (uint32_t v = 0; v <= EPLB_VERDICTS; v++) {
        conclave__verdict_count__init(&a->verdicts[v]);
        a->verdicts[v].verdict = (char *)(uintptr_t)balancer_verdict_name(v);
        a->verdicts[v].count = r->verdicts[v];
        a->pointers[v] = &a->verdicts[v];
    }
    out->n_verdicts = EPLB_VERDICTS + 1;
    out->verdicts = a->pointers;
    out->any = r->last_ns != 0;
    out->last_age_ns = age_ns(r->last_ns);
    out->last_gain_ns = r->last_gain_ns;
    out->last_bytes = r->last_bytes;
    out->last_verdict = a->report.last_verdict;
    out->last_text = a->report.last_text;
    out->any_adopted = r->adopted_ns != 0;
    out->adopted_age_ns = age_ns(r->adopted_ns);
}

void
balance_answer_fill(balance_answer *a, const router_service_config *c)
{
    *a = (balance_answer){0};
    Conclave__BalanceStats *out = &a->stats;
    balancer_get_report(c->balancer, &a->report);
    conclave__balance_stats__init(out);
    out->enabled = c->eplb;
    out->policy = (char *)(uintptr_t)c->eplb_policy;
    out->balancedness = a->report.balancedness;
    fill_decisions(a);
    out->experts_moved = a->report.experts_moved;
    out->bytes_moved = a->report.bytes_moved;
    out->peer_bytes_moved = a->report.peer_bytes_moved;
    out->peer_failures = a->report.peer_failures;
    out->move_ns = a->report.move_ns;
    out->repairs = a->report.repairs;
    out->last_recovery_ns = a->report.last_recovery_ns;
    out->recovery_ns_max = a->report.recovery_ns_max;
    out->recovery_ns = a->report.recovery_ns;
    out->idle_steps = a->report.idle_steps;
    out->step_interval = balancer_step_interval(c->balancer);
    out->overdue = a->report.overdue;
    a->layers = malloc(num_layers(c) * sizeof *a->layers);
    if (a->layers == NULL) return; /* the rest is told without them */
    balancer_get_layers(c->balancer, a->layers);
    out->n_layer_balancedness = num_layers(c);
    out->layer_balancedness = a->layers;
}

void
balance_answer_fini(balance_answer *a)
{
    free(a->layers);
    a->layers = NULL;
}

void
workers_answer_fill(workers_answer *a, const router_service_config *c)
{
    const uint32_t end = membership_worker_end(c->membership);
    a->count = 0;
    for (uint32_t id = 0; id < end; id++) {
        const worker_status w = membership_worker(c->membership, id);
        if (!w.known) continue;
        Conclave__WorkerStatus *out = &a->workers[id];
        conclave__worker_status__init(out);
        out->worker_id = id;
        out->pid = w.pid;
        out->state = (char *)(uintptr_t)w.state;
        out->backend = (char *)(uintptr_t)w.backend;
        out->experts_hosted = w.experts_hosted;
        out->bytes_hosted = w.bytes_hosted;
        out->memory_bytes = w.memory_bytes;
        out->slots = w.slots;
        const worker_load load = transformer_worker_load(c->transformer, id);
        out->rows = load.rows;
        out->busy_ns = load.busy_ns;
        out->wait_ns = load.wait_ns;
        a->pointers[a->count++] = out;
    }
}

void
load_watch_text(const router_service_config *c, char *out, size_t size)
{
    out[0] = '\0';
    if (c->balancer == NULL) return;
    balancer_report r;
    balancer_get_report(c->balancer, &r);
    if (!r.overdue) return;
    snprintf(out, size, "; the load was not looked at for %llu steps, an interval has %u",
             (unsigned long long)r.idle_steps, balancer_step_interval(c->balancer));
}

void
routing_answer(const router_service_config *c, Conclave__RoutingReply_Closure closure, void *data)
{
    const Conclave__ModelIdentity *model = &c->identity->model;
    const size_t cells = (size_t)model->num_layers * model->num_experts;
    Conclave__RoutingReply reply = CONCLAVE__ROUTING_REPLY__INIT;
    uint64_t *rows = calloc(cells, sizeof *rows);
    double *layers = calloc(model->num_layers, sizeof *layers);
    if (rows == NULL || layers == NULL) {
        rpc_fail(data, RPC_RESOURCE_EXHAUSTED, "out of memory");
    } else {
        reply.window_steps = load_feed_take(c->feed, rows);
        reply.num_layers = model->num_layers;
        reply.num_experts = model->num_experts;
        reply.top_k = model->top_k;
        reply.n_rows = cells;
        reply.rows = rows;
        if (c->balancer != NULL) {
            balancer_report r;
            balancer_get_report(c->balancer, &r);
            balancer_get_layers(c->balancer, layers);
            reply.balancedness = r.balancedness;
            reply.n_layer_balancedness = model->num_layers;
            reply.layer_balancedness = layers;
        }
        closure(&reply, data);
    }
    free(rows);
    free(layers);
}
