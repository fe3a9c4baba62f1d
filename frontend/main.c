/* conclave-frontend: HTTP, tokenizer, scheduler. Parses options and wires modules. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/notify.h"
#include "common/program.h"
#include "frontend/admin.h"
#include "frontend/engine_start.h"
#include "frontend/fleet_metrics.h"
#include "frontend/http.h"
#include "model/checkpoint.h"
#include "proto/control.h"

typedef struct options {
    const char *model, *run_dir, *host, *served_name, *api_key, *log_level;
    int64_t port, seed, max_waiting, connections, grace_ms;
    int64_t routers, router_timeout_ms, move_after_ms, give_up_after_s;
    const char *admin_host, *admin_socket, *admin_key;
    int64_t admin_port;
    bool prefix_caching;
    control_options control;
} options;

static const char *
base_name(const char *path, char *buf, size_t size)
{
    snprintf(buf, size, "%s", path);
    size_t n = strlen(buf);
    while (n > 1 && buf[n - 1] == '/')
        buf[--n] = '\0';
    const char *slash = strrchr(buf, '/');
    return slash == NULL || slash[1] == '\0' ? buf : slash + 1;
}

/* Wait for a signal to end, or for the router to turn out to be the wrong one. */
static moe_err
wait_for_end(engine *e, const sigset_t *signals, errbuf *eb)
{
    const struct timespec tick = {.tv_nsec = 200 * 1000 * 1000};
    for (;;) {
        if (sigtimedwait(signals, NULL, &tick) > 0) return MOE_OK;
        const char *refusal = engine_refusal(e);
        if (refusal != NULL) return err_set(eb, MOE_EMISMATCH, "%s", refusal);
    }
}

static void
print_fleet(void *user, strbuf *out)
{
    fleet_metrics_print(user, out);
}

static moe_err
start_admin(admin_server **out, const options *o, const run_dir *run, const char *router_url,
            errbuf *eb)
{
    *out = NULL;
    if (o->admin_key[0] != '\0' && strcmp(o->admin_key, o->api_key) == 0)
        return err_set(eb, MOE_EINVAL,
                       "--admin-api-key is the same as --api-key: who may ask the model must not "
                       "change the fleet");
    const moe_err err = admin_start(out,
                                    &(admin_config){.host = o->admin_host,
                                                    .has_port = o->admin_port >= 0,
                                                    .port = (uint16_t)o->admin_port,
                                                    .socket_path = o->admin_socket,
                                                    .key = o->admin_key,
                                                    .router_url = router_url,
                                                    .run_dir = run->path},
                                    eb);
    if (!err && *out != NULL)
        LOG_INFO("frontend", "admin API port=%u socket=%s", admin_port(*out),
                 o->admin_socket[0] ? o->admin_socket : "none");
    return err;
}

static int
serve(const options *o, const run_dir *run, const sigset_t *signals, errbuf *eb)
{
    char router_urls[CELL_ROUTERS_MAX][RUN_URL_MAX], name_buf[512], labels[600];
    const char *name =
        o->served_name[0] ? o->served_name : base_name(o->model, name_buf, sizeof name_buf);
    snprintf(labels, sizeof labels, "model_name=\"%s\"", name);
    checkpoint *ckpt = NULL;
    tokenizer *tok = NULL;
    metrics *m = NULL;
    engine *e = NULL;
    fleet_metrics *fleet = NULL;
    control_plane control;
    http_server *http = NULL;
    admin_server *admin = NULL;

    if (strpbrk(name, "\"\\\n") != NULL) {
        LOG_ERROR("frontend", "--served-model-name must not hold quotes, backslashes or line ends");
        return 2;
    }
    moe_err err = control_open(&control, &o->control, run, (uint32_t)o->routers, eb);
    if (!err) err = checkpoint_open(&ckpt, o->model, eb);
    if (!err) err = tokenizer_load(&tok, o->model, eb);
    if (!err) err = metrics_create(&m);
    if (err) goto done;
    const model_config *config = checkpoint_config(ckpt);
    engine_config routers = {.router_count = (uint32_t)o->routers,
                             .router_timeout_ms = (uint32_t)o->router_timeout_ms,
                             .move_after_ms = (uint32_t)o->move_after_ms,
                             .give_up_after_ms = (uint32_t)o->give_up_after_s * 1000,
                             .max_waiting = (uint32_t)o->max_waiting,
                             .prefix_caching = o->prefix_caching,
                             .model_fingerprint = checkpoint_fingerprint(ckpt),
                             .vocab_size = config->vocab_size,
                             .eos_ids = config->eos_ids,
                             .eos_count = config->eos_count,
                             .metrics = m,
                             .labels = labels};
    for (uint32_t r = 0; r < routers.router_count; r++) {
        control_router_url(&control, r, router_urls[r]);
        routers.router_urls[r] = router_urls[r];
    }
    err = engine_start(&e, &routers, eb);
    if (!err)
        err = fleet_metrics_start(&fleet, routers.router_urls, routers.router_count, m, labels, eb);
    if (!err) err = start_admin(&admin, o, run, router_urls[0], eb);
    if (err) goto done;
    const char *keys[] = {o->api_key};
    err = http_start(&http,
                     &(http_config){.host = o->host,
                                    .port = (uint16_t)o->port,
                                    .model = name,
                                    .api_keys = keys,
                                    .api_key_count = o->api_key[0] ? 1 : 0,
                                    .connections_max = (uint32_t)o->connections,
                                    .stop_grace_ms = (uint32_t)o->grace_ms,
                                    .fixed_seed = o->seed >= 0,
                                    .base_seed = (uint64_t)o->seed,
                                    .metrics = m,
                                    .more_metrics = print_fleet,
                                    .more_user = fleet},
                     e, tok, eb);
    if (!err) {
        LOG_INFO("frontend", "listening url=http://%s:%u model=%s", o->host, http_port(http), name);
        notify_manager(NOTIFY_READY);
        err = wait_for_end(e, signals, eb);
        notify_manager(NOTIFY_STOPPING);
    }

done:
    if (err) LOG_ERROR("frontend", "%s", eb->text);
    http_stop(http);
    admin_stop(admin);
    fleet_metrics_stop(fleet);
    if (e != NULL) engine_stop(e);
    engine_free(e);
    metrics_free(m);
    tokenizer_free(tok);
    checkpoint_close(ckpt);
    return err ? 1 : 0;
}

int
main(int argc, char **argv)
{
    options o = {0};
    const flag_spec specs[] = {
        {"model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL,
         "checkpoint folder: config.json and the tokenizer are read"},
        {"run-dir", NULL, FLAG_STRING, &o.run_dir, "./run", 0, 0, NULL, NULL,
         "folder of this fleet: sockets, logs"},
        {"host", NULL, FLAG_STRING, &o.host, "127.0.0.1", 0, 0, NULL, NULL, "address to listen on"},
        {"port", NULL, FLAG_INT, &o.port, "8000", 0, 65535, NULL, NULL, "0 = any free port"},
        {"served-model-name", NULL, FLAG_STRING, &o.served_name, "", 0, 0, NULL, NULL,
         "the model's name in the API (default: the folder's name)"},
        {"api-key", NULL, FLAG_STRING, &o.api_key, "", 0, 0, NULL, NULL,
         "required on every route but /health; empty = open"},
        {"admin-port", NULL, FLAG_INT, &o.admin_port, "-1", -1, 65535, NULL, NULL,
         "where the admin API listens; 0 = any free port, -1 = nowhere"},
        {"admin-host", NULL, FLAG_STRING, &o.admin_host, "127.0.0.1", 0, 0, NULL, NULL,
         "address of that port"},
        {"admin-socket", NULL, FLAG_STRING, &o.admin_socket, "", 0, 0, NULL, NULL,
         "path of a Unix socket for the admin API (mode 0600); empty = none"},
        {"admin-api-key", NULL, FLAG_STRING, &o.admin_key, "", 0, 0, NULL, NULL,
         "required by the admin API; an admin port needs one"},
        {"seed", NULL, FLAG_INT, &o.seed, "-1", -1, 9e15, NULL, NULL,
         "requests without a seed get one made from this and their prompt, so that answers repeat; "
         "-1 = a random one each"},
        {"max-waiting-seqs", NULL, FLAG_INT, &o.max_waiting, "1024", 1, 1 << 20, NULL, "sequences",
         "longest queue; then requests are answered 429"},
        {"routers", "data-parallel-size", FLAG_INT, &o.routers, "1", 1, CELL_ROUTERS_MAX, NULL,
         NULL, "routers of the cell: router-0 to router-(N-1)"},
        {"router-timeout-ms", NULL, FLAG_INT, &o.router_timeout_ms, "5000", 100, 600000, NULL, "ms",
         "a router that does not answer a health check for so long is given up"},
        {"router-move-after-ms", NULL, FLAG_INT, &o.move_after_ms, "1000", 0, 3600000, NULL, "ms",
         "how long a lost router's requests wait for it before they go to the others"},
        {"router-give-up-after-s", NULL, FLAG_INT, &o.give_up_after_s, "300", 1, 86400, NULL, "s",
         "how long requests wait when no router serves; then they end with 503"},
        {"max-connections", NULL, FLAG_INT, &o.connections, "1024", 1, 65536, NULL, NULL,
         "open HTTP connections"},
        {"shutdown-grace-ms", NULL, FLAG_INT, &o.grace_ms, "2000", 0, 3600000, NULL, "ms",
         "how long running requests may finish when the process is asked to end"},
        {"enable-prefix-caching", NULL, FLAG_BOOL, &o.prefix_caching, "true", 0, 0, NULL, NULL,
         "share KV blocks of equal prefixes"},
        CONTROL_FLAGS(&o.control),
        {"log-level", NULL, FLAG_CHOICE, &o.log_level, "info", 0, 0, "error|warn|info|debug", NULL,
         "what is logged"},
    };
    const program p = {.name = "conclave-frontend",
                       .usage = "conclave-frontend --model DIR --run-dir DIR --port N",
                       .summary = "Serves OpenAI's completions API; tokenizes, batches, schedules.",
                       .specs = specs,
                       .spec_count = sizeof specs / sizeof specs[0],
                       .model = &o.model,
                       .run_dir = &o.run_dir,
                       .log_level = &o.log_level};
    /* Blocked before any thread starts, so that only sigtimedwait() sees them. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);

    flags f;
    run_dir run;
    int rc = program_begin(&p, &f, &run, argc, argv);
    if (rc == PROGRAM_GO_ON) {
        errbuf eb = {{0}};
        program_log(&p, "frontend");
        rc = serve(&o, &run, &signals, &eb);
    }
    flags_fini(&f);
    return rc;
}
