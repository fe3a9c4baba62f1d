/* conclave-ctl: asks a running router about its fleet, and changes it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/program.h"
#include "exchange/wire.h"
#include "proto/control.h"
#include "proto/fleet_json.h"
#include "proto/methods.h"
#include "proto/rpc.h"

#define CALL_TIMEOUT_MS 3000
#define NS_PER_S_F 1e9

typedef struct options {
    const char *model, *run_dir, *log_level, *drain;
    bool no_model, json, rebalance, placement, routing;
    control_options control;
} options;

/* "3,4,5" into out [WORKER_MAX]; returns how many, 0: not a list. */
static size_t
parse_ids(const char *text, uint32_t *out)
{
    size_t count = 0;
    for (const char *at = text; count < WORKER_MAX; at++) {
        char *end;
        const unsigned long id = strtoul(at, &end, 10);
        if (end == at || *at < '0' || *at > '9' || id >= WORKER_MAX) return 0;
        out[count++] = (uint32_t)id;
        at = end;
        if (*at == '\0') return count;
        if (*at != ',') return 0;
    }
    return 0;
}

/* Takes root. */
static moe_err
print_json(cJSON *root, errbuf *eb)
{
    char *text = fleet_json_text(root);
    cJSON_Delete(root);
    if (text == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    puts(text);
    free(text);
    return MOE_OK;
}

static void
print_text(const Conclave__RouterStats *s)
{
    const double seconds = (double)s->step_ns / NS_PER_S_F;
    printf("%-8s %-10s %-7s %6s %8s %14s %14s\n", "worker", "state", "link", "slots", "experts",
           "bytes", "memory");
    for (size_t i = 0; i < s->n_workers; i++) {
        const Conclave__WorkerStatus *w = s->workers[i];
        char memory[24] = "unlimited";
        if (w->memory_bytes != 0) snprintf(memory, sizeof memory, "%" PRIu64, w->memory_bytes);
        printf("%-8u %-10s %-7s %6u %8u %14" PRIu64 " %14s\n", w->worker_id, w->state, w->backend,
               w->slots, w->experts_hosted, w->bytes_hosted, memory);
    }
    printf("%s; epoch %" PRIu64 ", %" PRIu64 " steps, %.1f tokens/s in steps, %" PRIu64
           " workers lost, %" PRIu64 " resends, %" PRIu64 " steps waited for a move\n",
           s->detail, s->epoch, s->steps, seconds > 0 ? (double)s->tokens / seconds : 0,
           s->workers_lost, s->resends, s->step_waits);
    printf("the last steps took %.2f ms, p99 %.2f ms\n", (double)s->recent_p50_ns / 1e6,
           (double)s->recent_p99_ns / 1e6);
    const Conclave__BalanceStats *b = s->balance;
    if (b == NULL) return;
    printf("eplb %s (%s): balancedness %.3f; %" PRIu64 " decisions, %" PRIu64 " adopted, %" PRIu64
           " refused, %" PRIu64 " failed; %" PRIu64 " experts (%.1f MB, %.1f MB of them from other "
           "workers) moved in %.2f s\n",
           b->enabled ? "on" : "off", b->policy, b->balancedness, b->decisions, b->adopted,
           b->refused, b->failed, b->experts_moved, (double)b->bytes_moved / 1e6,
           (double)b->peer_bytes_moved / 1e6, (double)b->move_ns / NS_PER_S_F);
    if (b->any)
        printf("last decision %.1f s ago: %s: %s\n", (double)b->last_age_ns / NS_PER_S_F,
               b->last_verdict, b->last_text);
    if (b->repairs != 0)
        printf("%" PRIu64 " times experts were without a host, the last for %.3f s, at most %.3f "
               "s\n",
               b->repairs, (double)b->last_recovery_ns / NS_PER_S_F,
               (double)b->recovery_ns_max / NS_PER_S_F);
}

static moe_err
call(rpc_client *client, unsigned method, const ProtobufCMessage *request,
     ProtobufCMessage **response, errbuf *eb)
{
    return rpc_call_sync(client, method, request, CALL_TIMEOUT_MS, response, NULL, eb);
}

static moe_err
run(const options *o, rpc_client *client, errbuf *eb)
{
    uint32_t ids[WORKER_MAX];
    ProtobufCMessage *response = NULL;
    cJSON *root = NULL;
    moe_err err;
    if (o->rebalance) {
        const Conclave__RebalanceRequest request = CONCLAVE__REBALANCE_REQUEST__INIT;
        err = call(client, ROUTER_REBALANCE, &request.base, &response, eb);
    } else if (o->drain[0] != '\0') {
        Conclave__DrainWorkersRequest request = CONCLAVE__DRAIN_WORKERS_REQUEST__INIT;
        request.n_ids = parse_ids(o->drain, ids);
        request.ids = ids;
        if (request.n_ids == 0)
            return err_set(eb, MOE_EINVAL, "--drain: \"%.64s\" is no list of worker ids", o->drain);
        err = call(client, ROUTER_DRAIN_WORKERS, &request.base, &response, eb);
    } else if (o->placement) {
        const Conclave__PlacementRequest request = CONCLAVE__PLACEMENT_REQUEST__INIT;
        err = call(client, ROUTER_PLACEMENT, &request.base, &response, eb);
        if (!err) err = fleet_json_placement((const void *)response, &root, eb);
    } else if (o->routing) {
        const Conclave__RoutingRequest request = CONCLAVE__ROUTING_REQUEST__INIT;
        err = call(client, ROUTER_ROUTING, &request.base, &response, eb);
        if (!err) err = fleet_json_routing((const void *)response, &root, eb);
    } else {
        const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
        err = call(client, ROUTER_STATS, &request.base, &response, eb);
        if (!err && o->json)
            err = fleet_json_stats((const void *)response, &root, eb);
        else if (!err)
            print_text((const void *)response);
    }
    rpc_response_free(response);
    return root == NULL ? err : print_json(root, eb);
}

int
main(int argc, char **argv)
{
    options o = {.no_model = true, .model = ""};
    const flag_spec specs[] = {
        {"run-dir", NULL, FLAG_STRING, &o.run_dir, "./run", 0, 0, NULL, NULL,
         "folder of the fleet"},
        {"json", NULL, FLAG_BOOL, &o.json, "false", 0, 0, NULL, NULL, "print one line of JSON"},
        {"rebalance", NULL, FLAG_BOOL, &o.rebalance, "false", 0, 0, NULL, NULL,
         "look at the placement of experts now, and adopt whatever is better"},
        {"placement", NULL, FLAG_BOOL, &o.placement, "false", 0, 0, NULL, NULL,
         "print which workers host which experts, as JSON"},
        {"routing", NULL, FLAG_BOOL, &o.routing, "false", 0, 0, NULL, NULL,
         "print the tokens of each layer's experts in the window, as JSON"},
        {"drain", NULL, FLAG_STRING, &o.drain, "", 0, 0, NULL, NULL,
         "ids of workers (3,4) that are to go: their experts move first, then they end"},
        CONTROL_FLAGS(&o.control),
        {"log-level", NULL, FLAG_CHOICE, &o.log_level, "warn", 0, 0, "error|warn|info|debug", NULL,
         "what is logged"},
    };
    const program p = {.name = "conclave-ctl",
                       .usage = "conclave-ctl --run-dir DIR [--json | --placement | --routing | "
                                "--rebalance | --drain IDS]",
                       .summary = "Shows a running fleet's workers and experts, and changes them.",
                       .specs = specs,
                       .spec_count = sizeof specs / sizeof specs[0],
                       .model = &o.model,
                       .model_optional = &o.no_model,
                       .run_dir = &o.run_dir,
                       .log_level = &o.log_level};
    flags f;
    run_dir dir;
    int rc = program_begin(&p, &f, &dir, argc, argv);
    if (rc == PROGRAM_GO_ON) {
        errbuf eb = {{0}};
        char url[RUN_URL_MAX];
        rpc_client *client = NULL;
        control_plane control;
        program_log(&p, "ctl");
        moe_err err = control_open(&control, &o.control, &dir, 0, &eb);
        if (!err) {
            control_router_url(&control, 0, url);
            err = rpc_client_open(&client,
                                  &(rpc_client_options){.url = url,
                                                        .service = &conclave__router__descriptor,
                                                        .message_bytes_max = FLEET_REPLY_BYTES_MAX},
                                  &eb);
        }
        if (!err) err = run(&o, client, &eb);
        if (err) fprintf(stderr, "conclave-ctl: %s\n", eb.text);
        rpc_client_close(client);
        rc = err ? 1 : 0;
    }
    flags_fini(&f);
    return rc;
}
