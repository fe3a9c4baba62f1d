/* conclave-worker: hosts experts. Parses options and wires modules. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/affinity.h"
#include "common/cpu.h"
#include "common/log.h"
#include "common/notify.h"
#include "common/program.h"
#include "expert_worker/ffn.h"
#include "expert_worker/service.h"
#include "proto/control.h"

static worker_service *running;

static void
on_signal(int sig)
{
    (void)sig;
    worker_service_stop(running);
}

typedef struct options {
    const char *model, *run_dir, *dtype, *transport, *packed_cache, *cpu_affinity, *log_level,
        *trace, *expert_source;
    int64_t worker_id, threads, expert_memory;
    bool profile;
    control_options control;
} options;

static int
fail(const errbuf *eb)
{
    LOG_ERROR("worker", "%s", eb->text);
    return 1;
}

static int
serve(const options *o, const run_dir *run, errbuf *eb)
{
    const moe_dtype dtype = dtype_parse(o->dtype);
    char control_url[RUN_URL_MAX], router_url[RUN_URL_MAX], link_url[RUN_URL_MAX];
    control_plane control;
    kernel_table kernels;
    kernel_table_init(&kernels, cpu_flags());
    checkpoint *ckpt = NULL;
    pool *compute_pool = NULL, *load_pool = NULL;
    worker_end *exchange = NULL;
    compute *comp = NULL;
    trace *traced = NULL;
    worker_service *service = NULL;
    identity id;
    const uint64_t incarnation = incarnation_draw();
    int rc = 1;

    moe_err err = control_open(&control, &o->control, run, 0, eb);
    if (!err) err = control_worker_url(&control, (uint32_t)o->worker_id, control_url, eb);
    if (err) goto done;
    control_router_url(&control, 0, router_url);
    control_link_url(&control, (uint32_t)o->worker_id, o->transport[0] == 't', link_url);
    err = affinity_apply(o->cpu_affinity, (uint32_t)o->worker_id, eb);
    if (!err) err = checkpoint_open(&ckpt, o->model, eb);
    if (err) goto done;
    identity_init(&id, ckpt, &kernels, dtype, dtype, dtype);
    err = pool_create(&compute_pool, (uint32_t)o->threads);
    if (!err) err = pool_create(&load_pool, (uint32_t)o->threads);
    if (err) {
        err_set(eb, err, "can't start %lld threads (%s)", (long long)o->threads, moe_err_name(err));
        goto done;
    }
    affinity_bind_pool(o->cpu_affinity, compute_pool, (uint32_t)o->worker_id + 1);
    char part[16];
    snprintf(part, sizeof part, "w%lld-", (long long)o->worker_id);
    shm_objects_remove(run->id, part); /* of an earlier life that was killed */
    err = worker_end_create(&exchange, run->id, (uint32_t)o->worker_id, incarnation, link_url, eb);
    if (!err && o->trace[0] != '\0')
        err = trace_open(&traced,
                         &(trace_config){.path = o->trace,
                                         .role = "worker",
                                         .id = (uint32_t)o->worker_id,
                                         .thread = "compute",
                                         .names = ffn_phase_names,
                                         .name_count = FFN_PHASES},
                         eb);
    if (!err) err = compute_start(&comp, exchange, &kernels, compute_pool, o->profile, traced, eb);
    if (!err)
        err = worker_service_create(
            &service,
            &(worker_service_config){.control_url = control_url,
                                     .router_url = router_url,
                                     .worker_id = (uint32_t)o->worker_id,
                                     .incarnation = incarnation,
                                     .dtype = dtype,
                                     .checkpoint = ckpt,
                                     .packed_cache = o->packed_cache,
                                     .memory_bytes = (uint64_t)o->expert_memory,
                                     .source = expert_source_parse(o->expert_source),
                                     .identity = &id,
                                     .exchange = exchange,
                                     .compute = comp,
                                     .load_pool = load_pool},
            eb);
    if (err) goto done;
    LOG_INFO("worker", "started kernels=%s dtype=%s threads=%u", kernels.tier, dtype_name(dtype),
             pool_size(compute_pool));

    running = service;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    notify_manager(NOTIFY_READY);
    err = worker_service_run(service, eb);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    notify_manager(NOTIFY_STOPPING);
    rc = err ? 1 : 0;

done:
    if (err) fail(eb);
    worker_service_free(service);
    compute_stop(comp);
    trace_close(traced);
    worker_end_free(exchange);
    pool_free(load_pool);
    pool_free(compute_pool);
    checkpoint_close(ckpt);
    return rc;
}

int
main(int argc, char **argv)
{
    options o = {0};
    const flag_spec specs[] = {
        {"model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL, "checkpoint folder"},
        {"run-dir", NULL, FLAG_STRING, &o.run_dir, "./run", 0, 0, NULL, NULL,
         "folder of this fleet: sockets, logs, shared-memory names"},
        {"worker-id", NULL, FLAG_INT, &o.worker_id, "0", 0, WORKER_MAX - 1, NULL, NULL,
         "rank of this worker, unique in the fleet"},
        {"dtype", NULL, FLAG_CHOICE, &o.dtype, "bf16", 0, 0, "f32|float32|bf16|bfloat16|int8|int4",
         NULL, "the experts' weights"},
        {"exchange-transport", NULL, FLAG_CHOICE, &o.transport, "ipc", 0, 0, "ipc|tcp", NULL,
         "what nng links of this worker run over"},
        {"threads", NULL, FLAG_INT, &o.threads, "0", 0, POOL_THREAD_MAX, NULL, NULL,
         "compute threads; 0 = all CPUs"},
        {"expert-memory", NULL, FLAG_INT, &o.expert_memory, "0", 0, 1e18, NULL, "bytes",
         "what experts may take here; 0 = no limit"},
        {"packed-cache", NULL, FLAG_STRING, &o.packed_cache, "", 0, 0, NULL, NULL,
         "folder where packed weights are kept for the next start; empty = none"},
        {"expert-source", NULL, FLAG_CHOICE, &o.expert_source, "auto", 0, 0, "auto|disk|peer", NULL,
         "where experts come from that move here while it serves: auto (the packed cache, then a "
         "worker of another host that has them, then the checkpoint), disk (never a worker), peer "
         "(a worker "
         "first)"},
        {"cpu-affinity", NULL, FLAG_STRING, &o.cpu_affinity, "auto", 0, 0, NULL, NULL,
         "CPUs to run on: auto (of several NUMA nodes one, by id), none (all), or a list: 0-3,8"},
        {"profile", NULL, FLAG_BOOL, &o.profile, "false", 0, 0, NULL, NULL,
         "say in the log, every 5 s and at the end, which share of the time each phase takes"},
        {"trace", NULL, FLAG_STRING, &o.trace, "", 0, 0, NULL, NULL,
         "file for a trace of every group, in Chrome's format; empty = none"},
        CONTROL_FLAGS(&o.control),
        {"log-level", NULL, FLAG_CHOICE, &o.log_level, "info", 0, 0, "error|warn|info|debug", NULL,
         "what is logged"},
    };
    const program p = {.name = "conclave-worker",
                       .usage = "conclave-worker --model DIR --run-dir DIR --worker-id N",
                       .summary = "Hosts experts and computes their feed-forward.",
                       .specs = specs,
                       .spec_count = sizeof specs / sizeof specs[0],
                       .model = &o.model,
                       .run_dir = &o.run_dir,
                       .log_level = &o.log_level};
    flags f;
    run_dir run;
    int rc = program_begin(&p, &f, &run, argc, argv);
    if (rc == PROGRAM_GO_ON) {
        char role[32];
        errbuf eb = {{0}};
        snprintf(role, sizeof role, "worker-%lld", (long long)o.worker_id);
        program_log(&p, role);
        rc = serve(&o, &run, &eb);
    }
    flags_fini(&f);
    return rc;
}
