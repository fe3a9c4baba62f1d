#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "frontend/admin_impl.h"
#include "frontend/admin_request.h"
#include "proto/fleet_json.h"
#include "proto/methods.h"

#define CALL_POLL_MS 50

/* ---- router 0 ---- */

static int
http_status(rpc_status status)
{
    switch (status) {
    case RPC_INVALID_ARGUMENT: return 400;
    case RPC_NOT_FOUND: return 404;
    case RPC_RESOURCE_EXHAUSTED:
    case RPC_FAILED_PRECONDITION: return 409;
    case RPC_UNIMPLEMENTED: return 501;
    case RPC_UNAVAILABLE:
    case RPC_DEADLINE_EXCEEDED:
    case RPC_CANCELLED: return 503;
    default: return 500;
    }
}

static bool
is_stopping(void *arg)
{
    const admin_context *c = arg;
    return atomic_load(c->stopping);
}

/* NULL with *error set, else the answer, owned: rpc_response_free(). */
static ProtobufCMessage *
ask(const admin_context *c, router_method method, const ProtobufCMessage *request, api_error *error)
{
    ProtobufCMessage *response;
    rpc_status status;
    errbuf eb = {{0}};
    if (rpc_call_watched(c->router, method, request, ADMIN_CALL_TIMEOUT_MS, is_stopping,
                         (void *)(uintptr_t)c, CALL_POLL_MS, &response, &status, &eb) == MOE_OK)
        return response;
    api_error_set(error, http_status(status), NULL, "router 0: %s", eb.text);
    return NULL;
}

static moe_err
to_json(router_method method, const ProtobufCMessage *reply, cJSON **out, errbuf *eb)
{
    switch (method) {
    case ROUTER_PLACEMENT: return fleet_json_placement((const void *)reply, out, eb);
    case ROUTER_ROUTING: return fleet_json_routing((const void *)reply, out, eb);
    default: return fleet_json_stats((const void *)reply, out, eb);
    }
}

/* ---- reading ---- */

/* The router's reply to a call, as JSON. */
static int
show(const admin_context *c, router_method method, const ProtobufCMessage *request, strbuf *out,
     api_error *error)
{
    ProtobufCMessage *reply = ask(c, method, request, error);
    if (reply == NULL) return 0;
    errbuf eb = {{0}};
    cJSON *root;
    const moe_err err = to_json(method, reply, &root, &eb);
    rpc_response_free(reply);
    char *text = err ? NULL : fleet_json_text(root);
    cJSON_Delete(root);
    if (text != NULL)
        strbuf_puts(out, text);
    else
        api_error_set(error, 500, NULL, "router 0: %s", err ? eb.text : "out of memory");
    const bool good = text != NULL;
    free(text);
    return good ? 200 : 0;
}

static int
get_status(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    (void)body;
    const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
    return show(c, ROUTER_STATS, &request.base, out, error);
}

static int
get_placement(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    (void)body;
    const Conclave__PlacementRequest request = CONCLAVE__PLACEMENT_REQUEST__INIT;
    return show(c, ROUTER_PLACEMENT, &request.base, out, error);
}

static int
get_routing(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    (void)body;
    const Conclave__RoutingRequest request = CONCLAVE__ROUTING_REQUEST__INIT;
    return show(c, ROUTER_ROUTING, &request.base, out, error);
}

/* ---- changing ---- */

/* deploy/conclave watches what it started: worker-N.drained says that the worker's end is meant.
 * True if this call made the mark. */
static bool
mark(const admin_context *c, uint32_t id, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/worker-%u.pid", c->run_dir, id);
    if (access(path, F_OK) != 0) return false;
    snprintf(path, PATH_MAX, "%s/worker-%u.drained", c->run_dir, id);
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EEXIST) LOG_WARN("admin", "can't write %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return fd >= 0;
}

static bool
drain(const admin_context *c, uint32_t *ids, size_t count, api_error *error)
{
    bool marked[WORKER_MAX];
    char path[PATH_MAX];
    for (size_t i = 0; i < count; i++)
        marked[i] = mark(c, ids[i], path);
    Conclave__DrainWorkersRequest request = CONCLAVE__DRAIN_WORKERS_REQUEST__INIT;
    request.n_ids = count;
    request.ids = ids;
    ProtobufCMessage *response = ask(c, ROUTER_DRAIN_WORKERS, &request.base, error);
    rpc_response_free(response);
    /* Without an answer it may be carried out all the same: then the marks stay. */
    for (size_t i = 0; i < count && response == NULL && error->status != 503; i++) {
        snprintf(path, sizeof path, "%s/worker-%u.drained", c->run_dir, ids[i]);
        if (marked[i]) unlink(path);
    }
    return response != NULL;
}

static void
print_ids(const uint32_t *ids, size_t count, strbuf *out)
{
    for (size_t i = 0; i < count; i++)
        strbuf_printf(out, i == 0 ? "%u" : ",%u", ids[i]);
}

static int
post_drain(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    uint32_t ids[WORKER_MAX];
    size_t count;
    if (!admin_read_drain(strbuf_text(body), body->len, ids, &count, error)) return 0;
    if (!drain(c, ids, count, error)) return 0;
    strbuf_puts(out, "{\"draining\":[");
    print_ids(ids, count, out);
    strbuf_puts(out, "]}");
    return 202;
}

static int
post_rebalance(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    if (!admin_read_nothing(strbuf_text(body), body->len, error)) return 0;
    const Conclave__RebalanceRequest request = CONCLAVE__REBALANCE_REQUEST__INIT;
    ProtobufCMessage *response = ask(c, ROUTER_REBALANCE, &request.base, error);
    if (response == NULL) return 0;
    rpc_response_free(response);
    strbuf_puts(out, "{\"status\":\"accepted\"}");
    return 202;
}

/* Only downwards: this process can't start others. */
static int
post_scale(const admin_context *c, const strbuf *body, strbuf *out, api_error *error)
{
    uint32_t want, live, ids[WORKER_MAX];
    if (!admin_read_scale(strbuf_text(body), body->len, &want, error)) return 0;
    const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
    ProtobufCMessage *response = ask(c, ROUTER_STATS, &request.base, error);
    if (response == NULL) return 0;
    const size_t count = admin_surplus((const void *)response, want, ids, &live);
    rpc_response_free(response);
    if (live < want) {
        api_error_set(error, 501, "workers",
                      "there are %u workers, and this server starts none: start more with "
                      "\"deploy/conclave scale %u\" or whatever started these; they take part as "
                      "soon as they register",
                      live, want);
        return 0;
    }
    if (count != 0 && !drain(c, ids, count, error)) return 0;
    strbuf_printf(out, "{\"workers\":%u,\"draining\":[", want);
    print_ids(ids, count, out);
    strbuf_puts(out, "]}");
    return count != 0 ? 202 : 200;
}

/* ---- the table ---- */

static const admin_route routes[] = {
    {"/admin/status", "GET", get_status},         {"/admin/placement", "GET", get_placement},
    {"/admin/routing", "GET", get_routing},       {"/admin/drain", "POST", post_drain},
    {"/admin/rebalance", "POST", post_rebalance}, {"/admin/scale", "POST", post_scale},
};

const admin_route *
admin_route_find(const char *path, const char *method, const char **allow)
{
    *allow = NULL;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(routes[i].path, path) != 0) continue;
        if (strcmp(routes[i].method, method) == 0) return &routes[i];
        *allow = routes[i].method;
    }
    return NULL;
}
