#include "router/service.h"

#include <stdlib.h>

#include "common/clock.h"
#include "proto/rpc.h"
#include "router/fleet_share.h"

#define MESSAGE_BYTES_MAX (64u << 20)

struct router_service {
    router_service_config config;
    Conclave__Router_Service rpc;
    rpc_server *server;
};

static router_service *
self_of(Conclave__Router_Service *rpc)
{
    return (router_service *)(void *)((char *)rpc - offsetof(router_service, rpc));
}

static void
on_health(Conclave__Router_Service *rpc, const Conclave__HealthRequest *request,
          Conclave__HealthReply_Closure closure, void *data)
{
    (void)request;
    const router_service_config *c = &self_of(rpc)->config;
    membership_status status;
    membership_get_status(c->membership, &status);
    Conclave__HealthReply reply = CONCLAVE__HEALTH_REPLY__INIT;
    reply.ready = status.ready;
    reply.detail = status.detail;
    reply.incarnation = c->incarnation;
    reply.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    reply.model = (Conclave__ModelIdentity *)(uintptr_t)&c->identity->model;
    reply.numeric = (Conclave__NumericClass *)(uintptr_t)&c->identity->numeric;
    reply.kv_block_count = c->kv_block_count;
    reply.kv_block_tokens = KV_BLOCK_TOKENS;
    reply.max_num_seqs = c->max_num_seqs;
    reply.max_num_batched_tokens = c->max_num_batched_tokens;
    reply.max_model_len = c->max_model_len;
    reply.worker_count = status.workers;
    reply.workers_ready = status.workers_ready;
    reply.parallelism = (char *)(uintptr_t)(c->tensor_parallel ? "tp" : "ep");
    reply.epoch = status.epoch;
    closure(&reply, data);
}

static void
on_register_worker(Conclave__Router_Service *rpc, const Conclave__RegisterRequest *request,
                   Conclave__RegisterReply_Closure closure, void *data)
{
    const router_service_config *c = &self_of(rpc)->config;
    errbuf eb = {{0}};
    if (c->follows) {
        rpc_fail(data, RPC_UNAVAILABLE, "workers register with router 0");
        return;
    }
    const moe_err err = membership_on_register(c->membership, request, &eb);
    if (err == MOE_EMISMATCH || err == MOE_ERANGE) {
        rpc_fail(data, RPC_FAILED_PRECONDITION, "%s", eb.text);
        return;
    }
    if (err) {
        rpc_fail_err(data, err, &eb);
        return;
    }
    Conclave__RegisterReply reply = CONCLAVE__REGISTER_REPLY__INIT;
    reply.heartbeat_ms = c->heartbeat_ms;
    reply.router_incarnation = c->incarnation;
    closure(&reply, data);
}

static void
on_heartbeat(Conclave__Router_Service *rpc, const Conclave__HeartbeatRequest *request,
             Conclave__HeartbeatReply_Closure closure, void *data)
{
    Conclave__HeartbeatReply reply = CONCLAVE__HEARTBEAT_REPLY__INIT;
    reply.known = membership_on_heartbeat(self_of(rpc)->config.membership, request->worker_id,
                                          request->incarnation);
    closure(&reply, data);
}

static void
on_step(Conclave__Router_Service *rpc, const Conclave__StepRequest *request,
        Conclave__StepReply_Closure closure, void *data)
{
    (void)closure; /* the step thread answers */
    stepper_submit(self_of(rpc)->config.stepper, request, data);
}

/* texts lives as long as *out. */
static void
fill_balance(const router_service_config *c, balancer_report *texts, Conclave__BalanceStats *out)
{
    balancer_get_report(c->balancer, texts);
    conclave__balance_stats__init(out);
    out->enabled = c->eplb;
    out->policy = (char *)(uintptr_t)c->eplb_policy;
    out->balancedness = texts->balancedness;
    out->decisions = texts->decisions;
    out->adopted = texts->adopted;
    out->refused = texts->refused;
    out->failed = texts->failed;
    out->experts_moved = texts->experts_moved;
    out->bytes_moved = texts->bytes_moved;
    out->peer_bytes_moved = texts->peer_bytes_moved;
    out->peer_failures = texts->peer_failures;
    out->move_ns = texts->move_ns;
    out->repairs = texts->repairs;
    out->last_recovery_ns = texts->last_recovery_ns;
    out->recovery_ns_max = texts->recovery_ns_max;
    out->any = texts->last_ns != 0;
    if (out->any) out->last_age_ns = clock_now_ns() - texts->last_ns;
    out->last_gain_ns = texts->last_gain_ns;
    out->last_bytes = texts->last_bytes;
    out->last_verdict = texts->last_verdict;
    out->last_text = texts->last_text;
}

static void
on_stats(Conclave__Router_Service *rpc, const Conclave__StatsRequest *request,
         Conclave__RouterStats_Closure closure, void *data)
{
    (void)request;
    const router_service_config *c = &self_of(rpc)->config;
    stepper_stats stats;
    stepper_get_stats(c->stepper, &stats);
    Conclave__RouterStats reply = CONCLAVE__ROUTER_STATS__INIT;
    reply.steps = stats.steps;
    reply.tokens = stats.tokens;
    reply.step_ns = stats.step_ns;
    reply.expert_wait_ns = stats.expert_wait_ns;
    reply.resends = stats.resends;
    reply.recent_p50_ns = stats.recent_p50_ns;
    reply.recent_p99_ns = stats.recent_p99_ns;
    membership_status status;
    membership_get_status(c->membership, &status);
    reply.ready = status.ready;
    reply.detail = status.detail;
    reply.epoch = status.epoch;
    reply.step_waits = membership_step_waits(c->membership);
    reply.workers_lost = membership_losses(c->membership);
    Conclave__BalanceStats balance;
    balancer_report texts;
    if (c->balancer != NULL) {
        fill_balance(c, &texts, &balance);
        reply.balance = &balance;
    }

    Conclave__WorkerStatus workers[WORKER_MAX], *pointers[WORKER_MAX];
    const uint32_t end = membership_worker_end(c->membership);
    for (uint32_t id = 0; id < end; id++) {
        const worker_status w = membership_worker(c->membership, id);
        if (!w.known) continue;
        conclave__worker_status__init(&workers[id]);
        workers[id].worker_id = id;
        workers[id].pid = w.pid;
        workers[id].state = (char *)(uintptr_t)w.state;
        workers[id].backend = (char *)(uintptr_t)w.backend;
        workers[id].experts_hosted = w.experts_hosted;
        workers[id].bytes_hosted = w.bytes_hosted;
        workers[id].memory_bytes = w.memory_bytes;
        workers[id].slots = w.slots;
        pointers[reply.n_workers++] = &workers[id];
    }
    reply.workers = pointers;
    closure(&reply, data);
}

static void
on_drain(Conclave__Router_Service *rpc, const Conclave__DrainRequest *request,
         Conclave__DrainReply_Closure closure, void *data)
{
    (void)request;
    Conclave__DrainReply reply = CONCLAVE__DRAIN_REPLY__INIT;
    closure(&reply, data);
    self_of(rpc)->config.on_drain();
}

static void
on_drain_workers(Conclave__Router_Service *rpc, const Conclave__DrainWorkersRequest *request,
                 Conclave__DrainWorkersReply_Closure closure, void *data)
{
    errbuf eb = {{0}};
    Conclave__DrainWorkersReply reply = CONCLAVE__DRAIN_WORKERS_REPLY__INIT;
    const moe_err err =
        membership_drain(self_of(rpc)->config.membership, request->ids, request->n_ids, &eb);
    if (err)
        rpc_fail_err(data, err, &eb);
    else
        closure(&reply, data);
}

static void
on_rebalance(Conclave__Router_Service *rpc, const Conclave__RebalanceRequest *request,
             Conclave__RebalanceReply_Closure closure, void *data)
{
    (void)request;
    Conclave__RebalanceReply reply = CONCLAVE__REBALANCE_REPLY__INIT;
    balancer *b = self_of(rpc)->config.balancer;
    if (b == NULL) {
        rpc_fail(data, RPC_UNIMPLEMENTED,
                 "with --parallelism tp every worker has a slice of all experts");
        return;
    }
    balancer_rebalance(b);
    closure(&reply, data);
}

static void
on_fleet(Conclave__Router_Service *rpc, const Conclave__FleetRequest *request,
         Conclave__FleetReply_Closure closure, void *data)
{
    const router_service_config *c = &self_of(rpc)->config;
    errbuf eb = {{0}};
    fleet_answer *answer = NULL;
    if (c->follows) {
        rpc_fail(data, RPC_FAILED_PRECONDITION, "this is not router 0");
        return;
    }
    const moe_err err = fleet_on_request(c->membership, request, &answer, &eb);
    if (err)
        rpc_fail_err(data, err, &eb);
    else
        closure(&answer->reply, data);
    fleet_answer_free(answer);
}

moe_err
router_service_start(router_service **out, const router_service_config *config, errbuf *eb)
{
    *out = NULL;
    router_service *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->config = *config;
    s->rpc = (Conclave__Router_Service)CONCLAVE__ROUTER__INIT(on_);
    const moe_err err =
        rpc_server_start(&s->server,
                         &(rpc_server_options){.url = config->control_url,
                                               .service = &s->rpc.base,
                                               .message_bytes_max = MESSAGE_BYTES_MAX,
                                               .concurrency = 16},
                         eb);
    if (err) {
        free(s);
        return err;
    }
    *out = s;
    return MOE_OK;
}

void
router_service_stop(router_service *s)
{
    if (s == NULL) return;
    rpc_server_stop(s->server);
    free(s);
}
