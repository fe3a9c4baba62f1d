#include "router/service.h"

#include <stdio.h>
#include <stdlib.h>

#include "proto/rpc.h"
#include "router/fleet_share.h"
#include "router/service_load.h"

#define MESSAGE_BYTES_MAX (64u << 20)
#define DETAIL_BYTES 400

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

/* The fleet's state, and what is amiss with the balancer. */
static void
write_detail(const router_service_config *c, const membership_status *status,
             char out[DETAIL_BYTES])
{
    char watch[DETAIL_BYTES - sizeof status->detail];
    load_watch_text(c, watch, sizeof watch);
    snprintf(out, DETAIL_BYTES, "%s%s", status->detail, watch);
}

static void
on_health(Conclave__Router_Service *rpc, const Conclave__HealthRequest *request,
          Conclave__HealthReply_Closure closure, void *data)
{
    (void)request;
    const router_service_config *c = &self_of(rpc)->config;
    membership_status status;
    membership_get_status(c->membership, &status);
    char detail[DETAIL_BYTES];
    write_detail(c, &status, detail);
    Conclave__HealthReply reply = CONCLAVE__HEALTH_REPLY__INIT;
    reply.ready = status.ready;
    reply.detail = detail;
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
    reply.routed_id_bytes = c->routed_id_bytes;
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
    char detail[DETAIL_BYTES];
    write_detail(c, &status, detail);
    reply.ready = status.ready;
    reply.detail = detail;
    reply.epoch = status.epoch;
    reply.step_waits = membership_step_waits(c->membership);
    reply.workers_lost = membership_losses(c->membership);
    balance_answer balance = {0};
    if (c->balancer != NULL) {
        balance_answer_fill(&balance, c);
        reply.balance = &balance.stats;
    }
    workers_answer workers;
    workers_answer_fill(&workers, c);
    reply.n_workers = workers.count;
    reply.workers = workers.pointers;
    closure(&reply, data);
    balance_answer_fini(&balance);
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
    moe_err err = fleet_on_request(c->membership, request, &answer, &eb);
    if (!err && c->pool != NULL) err = load_pool_note(c->pool, request, &eb);
    if (err)
        rpc_fail_err(data, err, &eb);
    else
        closure(&answer->reply, data);
    fleet_answer_free(answer);
}

static void
on_placement(Conclave__Router_Service *rpc, const Conclave__PlacementRequest *request,
             Conclave__PlacementReply_Closure closure, void *data)
{
    (void)request;
    errbuf eb = {{0}};
    placement_answer *answer;
    const moe_err err = fleet_tell_placement(self_of(rpc)->config.membership, &answer, &eb);
    if (err)
        rpc_fail_err(data, err, &eb);
    else
        closure(&answer->reply, data);
    placement_answer_free(answer);
}

static void
on_routing(Conclave__Router_Service *rpc, const Conclave__RoutingRequest *request,
           Conclave__RoutingReply_Closure closure, void *data)
{
    (void)request;
    const router_service_config *c = &self_of(rpc)->config;
    if (c->feed == NULL)
        rpc_fail(data, RPC_FAILED_PRECONDITION, "router 0 has the window");
    else
        routing_answer(c, closure, data);
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
