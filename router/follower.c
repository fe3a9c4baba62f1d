#include "router/follower.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "proto/methods.h"
#include "proto/rpc.h"

#define FLEET_TIMEOUT_MS 2000
#define CALL_POLL_MS 50
#define MESSAGE_BYTES (64u << 20)

struct follower {
    follower_config config;
    rpc_client *client;
    uint64_t told;              /* the last placement's fleet_version, for the log */
    bool anew;                  /* the next answer is to have the placement in any case */
    bool at_once;               /* and is not to be waited for; not twice in a row */
    bool heard;                 /* the last question was answered: what is new is worth a line */
    uint64_t known[WORKER_MAX]; /* lives in the last answer; 0: not there */
    uint64_t *window;           /* [L * E] with a feed */
    uint64_t told_steps;        /* what router 0 knows the load of */
};

moe_err
follower_create(follower **out, const follower_config *config, errbuf *eb)
{
    *out = NULL;
    follower *f = calloc(1, sizeof *f);
    if (f == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    f->config = *config;
    f->heard = true;
    const size_t cells = (size_t)config->limits.num_layers * config->limits.num_experts;
    moe_err err = MOE_OK;
    if (config->feed != NULL && (f->window = calloc(cells, sizeof *f->window)) == NULL)
        err = err_set(eb, MOE_ENOMEM, "out of memory");
    if (!err)
        err = rpc_client_open(&f->client,
                              &(rpc_client_options){.url = config->router_url,
                                                    .service = &conclave__router__descriptor,
                                                    .message_bytes_max = MESSAGE_BYTES},
                              eb);
    if (err) {
        follower_free(f);
        return err;
    }
    *out = f;
    return MOE_OK;
}

void
follower_free(follower *f)
{
    if (f == NULL) return;
    rpc_client_close(f->client);
    free(f->window);
    free(f);
}

/* ---- the placement ---- */

moe_err
follower_read_placement(const Conclave__FleetReply *reply, const exchange_limits *limits,
                        placement **out, errbuf *eb)
{
    *out = NULL;
    if (!reply->has_placement) return MOE_OK;
    uint64_t slot_count = 0;
    if (reply->n_slot_counts == 0 || reply->n_slot_counts > WORKER_MAX)
        return err_set(eb, MOE_EINVAL, "a placement of %zu workers", reply->n_slot_counts);
    for (size_t w = 0; w < reply->n_slot_counts; w++)
        slot_count += reply->slot_counts[w];
    if (slot_count > PLACEMENT_SLOT_MAX || reply->n_slots != slot_count * limits->num_layers)
        return err_set(eb, MOE_EINVAL, "a placement of %zu slots, not %u layers of %llu",
                       reply->n_slots, limits->num_layers, (unsigned long long)slot_count);
    for (size_t i = 0; i < reply->n_slots; i++) {
        if (reply->slots[i] > limits->num_experts)
            return err_set(eb, MOE_EINVAL, "slot %zu holds expert %u of %u", i, reply->slots[i] - 1,
                           limits->num_experts);
    }
    if (reply->n_speeds != reply->n_slot_counts)
        return err_set(eb, MOE_EINVAL, "%zu speeds of %zu workers", reply->n_speeds,
                       reply->n_slot_counts);
    for (size_t w = 0; w < reply->n_speeds; w++) {
        if (reply->speeds[w] == 0 || reply->speeds[w] > PLACEMENT_SPEED_MAX)
            return err_set(eb, MOE_EINVAL, "worker %zu: a speed of %u", w, reply->speeds[w]);
    }
    placement *p;
    const moe_err err = placement_create(&p, limits->num_layers, limits->num_experts,
                                         (uint32_t)reply->n_slot_counts, reply->slot_counts, eb);
    if (err) return err;
    for (size_t i = 0; i < reply->n_slots; i++)
        p->slots[i] = reply->slots[i] == 0 ? PLACEMENT_EMPTY : reply->slots[i] - 1;
    memcpy(p->speeds, reply->speeds, reply->n_speeds * sizeof *p->speeds);
    placement_index(p);
    placement_set_even_shares(p);
    *out = p;
    return MOE_OK;
}

static void
adopt(follower *f, const Conclave__FleetReply *reply)
{
    errbuf eb = {{0}};
    placement *next = NULL;
    moe_err err;
    if (f->config.mode == WIRE_TP) {
        err = membership_follow_slices(f->config.membership, reply->epoch, reply->fleet_version,
                                       reply->slice_workers, reply->n_slice_workers, &eb);
    } else {
        err = follower_read_placement(reply, &f->config.limits, &next, &eb);
        if (!err && next == NULL) return; /* nothing new, or not yet */
        if (!err)
            err = membership_follow(f->config.membership, reply->epoch, reply->fleet_version, next,
                                    &eb);
    }
    if (err)
        LOG_WARN("follower", "the placement can't be used: %s", eb.text);
    else if (f->told != reply->fleet_version)
        LOG_INFO("follower", "new placement epoch=%llu workers=%zu",
                 (unsigned long long)reply->epoch, reply->n_workers);
    f->told = reply->fleet_version;
    f->anew = err != MOE_OK;
}

/* ---- the workers ---- */

/* As if it had registered here. */
static void
register_worker(follower *f, const Conclave__FleetWorker *w)
{
    errbuf eb = {{0}};
    const identity *id = f->config.identity;
    Conclave__RegisterRequest r = CONCLAVE__REGISTER_REQUEST__INIT;
    r.worker_id = w->worker_id;
    r.incarnation = w->incarnation;
    r.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    r.control_url = w->control_url;
    r.host_id = w->host_id;
    r.model = (Conclave__ModelIdentity *)(uintptr_t)&id->model;
    r.numeric = (Conclave__NumericClass *)(uintptr_t)&id->numeric;
    r.pid = w->pid;
    if (membership_on_register(f->config.membership, &r, &eb))
        LOG_WARN("follower", "worker %u can't be used: %s", w->worker_id, eb.text);
    f->anew = true; /* what it hosts is forgotten */
}

static void
take_workers(follower *f, const Conclave__FleetReply *reply)
{
    membership *m = f->config.membership;
    bool forsaken[WORKER_MAX];
    uint64_t lives[WORKER_MAX] = {0};
    for (size_t i = 0; i < reply->n_workers; i++) {
        const Conclave__FleetWorker *w = reply->workers[i];
        if (w->worker_id < WORKER_MAX) lives[w->worker_id] = w->incarnation;
    }
    for (uint32_t id = 0; id < WORKER_MAX; id++)
        forsaken[id] = f->known[id] != lives[id];
    membership_forsake(m, forsaken, WORKER_MAX);
    memcpy(f->known, lives, sizeof lives);
    for (size_t i = 0; i < reply->n_workers; i++) {
        const Conclave__FleetWorker *w = reply->workers[i];
        if (w->worker_id < WORKER_MAX && !membership_on_heartbeat(m, w->worker_id, w->incarnation))
            register_worker(f, w);
    }
}

/* ---- asking ---- */

/* Workers may end while router 0 is awaited. */
static bool
is_stopping(void *arg)
{
    const follower *f = arg;
    membership_update(f->config.membership, 0);
    return f->config.stopping();
}

static moe_err
check_mode(const follower *f, const Conclave__FleetReply *reply, errbuf *eb)
{
    const char *mode = f->config.mode == WIRE_TP ? "tp" : "ep";
    if (strcmp(reply->parallelism, mode) == 0) return MOE_OK;
    return err_set(eb, MOE_EMISMATCH, "it runs with --parallelism %.8s, this one with %s",
                   reply->parallelism, mode);
}

/* Returns the steps that the request tells the load of. */
static uint64_t
tell_load(follower *f, Conclave__FleetRequest *request)
{
    if (f->config.feed == NULL) return 0;
    const uint64_t steps = load_feed_snapshot_steps(f->config.feed);
    if (steps == f->told_steps) return steps;
    request->steps = steps;
    request->window_steps = load_feed_take(f->config.feed, f->window);
    request->window_rows = f->window;
    request->n_window_rows = (size_t)f->config.limits.num_layers * f->config.limits.num_experts;
    return steps;
}

static Conclave__FleetReply *
ask(follower *f)
{
    const identity *id = f->config.identity;
    Conclave__FleetRequest request = CONCLAVE__FLEET_REQUEST__INIT;
    request.router_id = f->config.router_id;
    request.incarnation = f->config.router_incarnation;
    membership_followed(f->config.membership, &request.epoch, &request.fleet_version);
    if (f->anew) request.fleet_version = 0;
    request.version = (char *)(uintptr_t)CONCLAVE_VERSION;
    request.model = (Conclave__ModelIdentity *)(uintptr_t)&id->model;
    request.numeric = (Conclave__NumericClass *)(uintptr_t)&id->numeric;
    const uint64_t steps = tell_load(f, &request);
    ProtobufCMessage *response;
    errbuf eb = {{0}};
    moe_err err = rpc_call_watched(f->client, ROUTER_FLEET, &request.base, FLEET_TIMEOUT_MS,
                                   is_stopping, f, CALL_POLL_MS, &response, NULL, &eb);
    if (!err) err = check_mode(f, (const void *)response, &eb);
    if (err && f->heard && !f->config.stopping())
        LOG_WARN("follower", "router 0 does not tell the fleet, the last one stays: %s", eb.text);
    f->heard = err == MOE_OK;
    f->told_steps = err ? 0 : steps; /* it may be another router 0 by then */
    if (!err) return (Conclave__FleetReply *)(void *)response;
    rpc_response_free(response);
    return NULL;
}

void
follower_update(follower *f, uint32_t wait_ms)
{
    Conclave__FleetReply *reply = ask(f);
    if (reply != NULL) take_workers(f, reply);
    membership_update(f->config.membership, 0);
    if (reply != NULL) adopt(f, reply);
    f->at_once = !f->at_once && f->anew && reply != NULL;
    if (reply != NULL) rpc_response_free(&reply->base);
    membership_update(f->config.membership, f->at_once ? 0 : wait_ms);
}
