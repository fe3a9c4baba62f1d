/* conclave-ctl: asks a running router about its fleet, and changes it. */
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conclave.pb-c.h"

#include "common/program.h"
#include "exchange/wire.h"
#include "proto/rpc.h"

#define CALL_TIMEOUT_MS 3000
#define NS_PER_S_F 1e9

/* Router's methods, in the order of conclave.proto. */
enum { METHOD_STATS = 4, METHOD_DRAIN_WORKERS = 6, METHOD_REBALANCE = 7 };

typedef struct options {
    const char *model, *run_dir, *log_level, *drain;
    bool no_model, json, rebalance;
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

static void
add_worker(cJSON *list, const Conclave__WorkerStatus *w)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "id", w->worker_id);
    cJSON_AddNumberToObject(o, "pid", w->pid);
    cJSON_AddStringToObject(o, "state", w->state);
    cJSON_AddStringToObject(o, "backend", w->backend);
    cJSON_AddNumberToObject(o, "slots", w->slots);
    cJSON_AddNumberToObject(o, "experts_hosted", w->experts_hosted);
    cJSON_AddNumberToObject(o, "bytes_hosted", (double)w->bytes_hosted);
    cJSON_AddNumberToObject(o, "memory_bytes", (double)w->memory_bytes);
    cJSON_AddItemToArray(list, o);
}

static void
add_balance(cJSON *to, const Conclave__BalanceStats *b)
{
    cJSON *o = cJSON_AddObjectToObject(to, "eplb");
    cJSON_AddBoolToObject(o, "enabled", b->enabled);
    cJSON_AddStringToObject(o, "policy", b->policy);
    cJSON_AddNumberToObject(o, "balancedness", b->balancedness);
    cJSON_AddNumberToObject(o, "decisions", (double)b->decisions);
    cJSON_AddNumberToObject(o, "adopted", (double)b->adopted);
    cJSON_AddNumberToObject(o, "refused", (double)b->refused);
    cJSON_AddNumberToObject(o, "failed", (double)b->failed);
    cJSON_AddNumberToObject(o, "experts_moved", (double)b->experts_moved);
    cJSON_AddNumberToObject(o, "bytes_moved", (double)b->bytes_moved);
    cJSON_AddNumberToObject(o, "peer_bytes_moved", (double)b->peer_bytes_moved);
    cJSON_AddNumberToObject(o, "peer_failures", (double)b->peer_failures);
    cJSON_AddNumberToObject(o, "move_seconds", (double)b->move_ns / NS_PER_S_F);
    cJSON_AddNumberToObject(o, "repairs", (double)b->repairs);
    cJSON_AddNumberToObject(o, "last_recovery_seconds", (double)b->last_recovery_ns / NS_PER_S_F);
    cJSON_AddNumberToObject(o, "max_recovery_seconds", (double)b->recovery_ns_max / NS_PER_S_F);
    if (!b->any) return;
    cJSON *last = cJSON_AddObjectToObject(o, "last");
    cJSON_AddNumberToObject(last, "seconds_ago", (double)b->last_age_ns / NS_PER_S_F);
    cJSON_AddStringToObject(last, "verdict", b->last_verdict);
    cJSON_AddStringToObject(last, "reason", b->last_text);
    cJSON_AddNumberToObject(last, "gain_seconds", b->last_gain_ns / NS_PER_S_F);
    cJSON_AddNumberToObject(last, "bytes", b->last_bytes);
}

static void
print_json(const Conclave__RouterStats *s)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddBoolToObject(o, "ready", s->ready);
    cJSON_AddStringToObject(o, "detail", s->detail);
    cJSON_AddNumberToObject(o, "epoch", (double)s->epoch);
    cJSON_AddNumberToObject(o, "steps", (double)s->steps);
    cJSON_AddNumberToObject(o, "tokens", (double)s->tokens);
    cJSON_AddNumberToObject(o, "step_seconds", (double)s->step_ns / NS_PER_S_F);
    cJSON_AddNumberToObject(o, "recent_p50_ms", (double)s->recent_p50_ns / 1e6);
    cJSON_AddNumberToObject(o, "recent_p99_ms", (double)s->recent_p99_ns / 1e6);
    cJSON_AddNumberToObject(o, "resends", (double)s->resends);
    cJSON_AddNumberToObject(o, "step_waits", (double)s->step_waits);
    cJSON_AddNumberToObject(o, "workers_lost", (double)s->workers_lost);
    cJSON *workers = cJSON_AddArrayToObject(o, "workers");
    for (size_t i = 0; i < s->n_workers; i++)
        add_worker(workers, s->workers[i]);
    if (s->balance != NULL) add_balance(o, s->balance);
    char *text = cJSON_PrintUnformatted(o);
    if (text != NULL) puts(text);
    free(text);
    cJSON_Delete(o);
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
    moe_err err;
    if (o->rebalance) {
        const Conclave__RebalanceRequest request = CONCLAVE__REBALANCE_REQUEST__INIT;
        err = call(client, METHOD_REBALANCE, &request.base, &response, eb);
    } else if (o->drain[0] != '\0') {
        Conclave__DrainWorkersRequest request = CONCLAVE__DRAIN_WORKERS_REQUEST__INIT;
        request.n_ids = parse_ids(o->drain, ids);
        request.ids = ids;
        if (request.n_ids == 0)
            return err_set(eb, MOE_EINVAL, "--drain: \"%.64s\" is no list of worker ids", o->drain);
        err = call(client, METHOD_DRAIN_WORKERS, &request.base, &response, eb);
    } else {
        const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
        err = call(client, METHOD_STATS, &request.base, &response, eb);
        if (!err && o->json)
            print_json((const void *)response);
        else if (!err)
            print_text((const void *)response);
    }
    rpc_response_free(response);
    return err;
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
        {"drain", NULL, FLAG_STRING, &o.drain, "", 0, 0, NULL, NULL,
         "ids of workers (3,4) that are to go: their experts move first, then they end"},
        {"log-level", NULL, FLAG_CHOICE, &o.log_level, "warn", 0, 0, "error|warn|info|debug", NULL,
         "what is logged"},
    };
    const program p = {.name = "conclave-ctl",
                       .usage = "conclave-ctl --run-dir DIR [--json | --rebalance | --drain IDS]",
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
        rpc_client *client;
        program_log(&p, "ctl");
        run_dir_url(&dir, "router", 0, url);
        moe_err err = rpc_client_open(
            &client, &(rpc_client_options){.url = url, .service = &conclave__router__descriptor},
            &eb);
        if (!err) err = run(&o, client, &eb);
        if (err) fprintf(stderr, "conclave-ctl: %s\n", eb.text);
        rpc_client_close(client);
        rc = err ? 1 : 0;
    }
    flags_fini(&f);
    return rc;
}
