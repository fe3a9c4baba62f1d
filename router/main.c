/* conclave-router: attention, gating, sampling. Parses options and wires modules. */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/affinity.h"
#include "common/cpu.h"
#include "common/log.h"
#include "common/notify.h"
#include "common/program.h"
#include "proto/control.h"
#include "router/balancer.h"
#include "router/eplb_config.h"
#include "router/follower.h"
#include "router/placement.h"
#include "router/service.h"
#include "router/step_check.h"

#define UPDATE_MS 100
#define HEARTBEAT_MS_MAX 500
/* A worker that lives but does not answer; one whose heartbeats stop is given up sooner. */
#define LAYER_TIMEOUT_MS (600u * 1000)
/* When nobody says how large the KV cache is: room for every sequence at full length, but no more
 * than this. */
#define KV_BYTES_DEFAULT ((size_t)1 << 30)
#define MODEL_LEN_DEFAULT 4096u

static membership *running;
static _Atomic bool stopping;

static void
stop(void)
{
    atomic_store(&stopping, true);
    membership_stop(running);
}

static bool
is_stopping(void)
{
    return atomic_load(&stopping);
}

static void
on_signal(int sig)
{
    (void)sig;
    stop();
}

typedef struct options {
    const char *model, *run_dir, *parallelism, *dtype, *attn_dtype, *kv_dtype, *exchange,
        *transport, *packed_cache, *cpu_affinity, *log_level, *eplb_config, *eplb_policy,
        *routing_trace, *trace;
    int64_t router_id, routers, workers, num_redundant_experts, max_num_seqs,
        max_num_batched_tokens, max_model_len, num_kv_blocks, micro_batches, threads,
        worker_timeout_ms, eplb_move_mbps, spare_slots;
    bool eplb, profile, print_run_id;
    control_options control;
} options;

/* This router's part of a total of the cell: equal parts, the first routers' larger by the rest. */
static uint32_t
share_of(const options *o, int64_t total)
{
    return (uint32_t)(total / o->routers + (o->router_id < total % o->routers));
}

static moe_err
check_shares(const options *o, errbuf *eb)
{
    if (o->router_id >= o->routers)
        return err_set(eb, MOE_ERANGE, "--router-id %lld: --routers is %lld",
                       (long long)o->router_id, (long long)o->routers);
    if (o->max_num_seqs < o->routers || o->max_num_batched_tokens < o->routers)
        return err_set(eb, MOE_ERANGE,
                       "--max-num-seqs %lld and --max-num-batched-tokens %lld are shared by %lld "
                       "routers: each needs one at least",
                       (long long)o->max_num_seqs, (long long)o->max_num_batched_tokens,
                       (long long)o->routers);
    return MOE_OK;
}

static transformer_config
size_transformer(const options *o, const model_config *model)
{
    transformer_config c = {.expert_dtype = dtype_parse(o->dtype),
                            .token_max = share_of(o, o->max_num_batched_tokens),
                            .seq_max = share_of(o, o->max_num_seqs),
                            .micro_batches = (uint32_t)o->micro_batches};
    c.attn_dtype = strcmp(o->attn_dtype, "auto") == 0 ? c.expert_dtype : dtype_parse(o->attn_dtype);
    if (strcmp(o->kv_dtype, "auto") == 0)
        c.kv_dtype = c.attn_dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
    else
        c.kv_dtype = dtype_parse(o->kv_dtype);
    c.max_model_len = (uint32_t)o->max_model_len;
    if (c.max_model_len == 0)
        c.max_model_len =
            model->max_position < MODEL_LEN_DEFAULT ? model->max_position : MODEL_LEN_DEFAULT;
    const uint32_t per_seq = (c.max_model_len + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    c.kv_block_count = (uint32_t)o->num_kv_blocks;
    if (c.kv_block_count == 0) {
        const size_t block =
            kv_block_bytes(c.kv_dtype, model->num_kv_heads, model->head_dim) * model->num_layers;
        size_t count = (size_t)per_seq * c.seq_max;
        if (count * block > KV_BYTES_DEFAULT) count = KV_BYTES_DEFAULT / block;
        if (count < per_seq) count = per_seq;
        c.kv_block_count = (uint32_t)count;
    }
    return c;
}

/* --eplb-config, and the flag for the one of its values that also matters with --eplb off. */
static moe_err
read_eplb_config(const options *o, bool tp, eplb_config *out, errbuf *eb)
{
    *out = eplb_default_config();
    const moe_err err =
        o->eplb_config[0] != '\0' ? eplb_config_parse(o->eplb_config, out, eb) : MOE_OK;
    if (err) return err;
    if (o->num_redundant_experts >= 0)
        out->num_redundant_experts = (uint32_t)o->num_redundant_experts;
    if (tp && out->num_redundant_experts != 0)
        return err_set(eb, MOE_EUNSUPPORTED,
                       "redundant experts: with --parallelism tp every worker has a slice of all");
    if (tp && o->eplb)
        return err_set(eb, MOE_EUNSUPPORTED,
                       "--eplb: with --parallelism tp every worker has a slice of all experts");
    return MOE_OK;
}

static uint64_t
expert_bytes(moe_dtype dtype, const model_config *model)
{
    expert_layout layout;
    expert_layout_init(&layout, dtype, model, 0, model->intermediate_size);
    return layout.slot_bytes;
}

/* Of the first, which is the largest: all experts of all layers. */
static uint64_t
slice_bytes(moe_dtype dtype, const model_config *model, int64_t slices)
{
    uint32_t begin, end;
    expert_layout layout;
    tp_slice(model->intermediate_size, 0, (uint32_t)slices, &begin, &end);
    expert_layout_init(&layout, dtype, model, begin, end);
    return (uint64_t)layout.slot_bytes * model->num_layers * model->num_experts;
}

static moe_err
start_feed(load_feed **out, const options *o, const model_config *model, uint64_t fingerprint,
           const eplb_config *balance, membership *m, errbuf *eb)
{
    return load_feed_start(out,
                           &(load_feed_config){.shape = {.num_layers = model->num_layers,
                                                         .num_experts = model->num_experts,
                                                         .top_k = model->top_k,
                                                         .fingerprint = fingerprint,
                                                         .steps_per_record = 1},
                                               .balance = *balance,
                                               /* One file: of router 0. */
                                               .trace_path = o->router_id ? "" : o->routing_trace,
                                               .bell = membership_changes(m)},
                           eb);
}

static int
serve(const options *o, const run_dir *run, errbuf *eb)
{
    kernel_table kernels;
    kernel_table_init(&kernels, cpu_flags());
    char control_url[RUN_URL_MAX], leader_url[RUN_URL_MAX];
    control_plane control;
    const uint64_t incarnation = incarnation_draw();
    checkpoint *ckpt = NULL;
    pool *threads = NULL;
    transformer *tf = NULL;
    router_end *exchange = NULL;
    stepper *step = NULL;
    load_feed *feed = NULL;
    load_pool *followers = NULL;
    balancer *balance_thread = NULL;
    eplb_policy policy = EPLB_CONCLAVE;
    phases profile = {0};
    trace *traced = NULL;
    router_service *service = NULL;
    transformer_config sizes = {0};
    identity id;

    const bool follows = o->router_id != 0;
    follower *follow = NULL;
    moe_err err = check_shares(o, eb);
    if (!err) err = control_open(&control, &o->control, run, (uint32_t)o->routers, eb);
    if (err) goto done;
    control_router_url(&control, (uint32_t)o->router_id, control_url);
    control_router_url(&control, 0, leader_url);
    err = affinity_apply(o->cpu_affinity, (uint32_t)o->router_id, eb);
    if (!err) err = checkpoint_open(&ckpt, o->model, eb);
    if (!err && o->trace[0] != '\0')
        err = trace_open(&traced,
                         &(trace_config){.path = o->trace,
                                         .role = "router",
                                         .id = (uint32_t)o->router_id,
                                         .thread = "step",
                                         .names = step_phase_names,
                                         .name_count = STEP_PHASES},
                         eb);
    if (err) goto done;
    phases_init(&profile, step_phase_names, STEP_PHASES, o->profile, traced);
    const model_config *model = checkpoint_config(ckpt);
    sizes = size_transformer(o, model);
    if (sizes.max_model_len > model->max_position) {
        err = err_set(eb, MOE_ERANGE, "--max-model-len %u: the model's context is %u tokens",
                      sizes.max_model_len, model->max_position);
        goto done;
    }
    err = pool_create(&threads, (uint32_t)o->threads);
    if (err) {
        err_set(eb, err, "can't start the compute threads (%s)", moe_err_name(err));
        goto done;
    }
    affinity_bind_pool(o->cpu_affinity, threads, 0);
    identity_init(&id, ckpt, &kernels, sizes.expert_dtype, sizes.attn_dtype, sizes.kv_dtype);
    sizes.phases = &profile;
    sizes.packed_cache = (weight_cache){o->packed_cache, id.model.fingerprint};
    err = transformer_create(&tf, ckpt, &kernels, threads, &sizes, eb);
    if (err) goto done;
    const exchange_limits limits = transformer_exchange_limits(tf);
    char part[16];
    snprintf(part, sizeof part, "r%lld-", (long long)o->router_id);
    shm_objects_remove(run->id, part); /* of an earlier life that was killed */
    err = router_end_create(&exchange, &limits, run->id, (uint32_t)o->router_id, incarnation, eb);
    if (err) goto done;

    uint32_t heartbeat_ms = (uint32_t)o->worker_timeout_ms / 4;
    if (heartbeat_ms > HEARTBEAT_MS_MAX) heartbeat_ms = HEARTBEAT_MS_MAX;
    const bool tp = strcmp(o->parallelism, "tp") == 0;
    eplb_config balance;
    err = read_eplb_config(o, tp, &balance, eb);
    if (err) goto done;
    const exchange_choice choice = strcmp(o->exchange, "shm") == 0   ? EXCHANGE_ONLY_SHM
                                   : strcmp(o->exchange, "nng") == 0 ? EXCHANGE_ONLY_NNG
                                                                     : EXCHANGE_AUTO;
    err = membership_create(
        &running,
        &(membership_config){.worker_count = (uint32_t)o->workers,
                             .mode = tp ? WIRE_TP : WIRE_EP,
                             .num_redundant_experts = balance.num_redundant_experts,
                             .expert_bytes = expert_bytes(sizes.expert_dtype, model),
                             .slice_bytes =
                                 tp ? slice_bytes(sizes.expert_dtype, model, o->workers) : 0,
                             .spare_slots = (uint32_t)o->spare_slots,
                             .exchange = choice,
                             .worker_timeout_ms = (uint32_t)o->worker_timeout_ms,
                             .load_timeout_ms = 3600 * 1000,
                             .identity = &id,
                             .limits = limits,
                             .router_end = exchange,
                             .router_id = (uint32_t)o->router_id,
                             .router_incarnation = incarnation,
                             .follows = follows,
                             .shared = o->routers > 1},
        eb);
    if (!err) err = start_feed(&feed, o, model, id.model.fingerprint, &balance, running, eb);
    if (!err && follows)
        err = follower_create(&follow,
                              &(follower_config){.router_url = leader_url,
                                                 .router_id = (uint32_t)o->router_id,
                                                 .router_incarnation = incarnation,
                                                 .identity = &id,
                                                 .limits = limits,
                                                 .mode = tp ? WIRE_TP : WIRE_EP,
                                                 .membership = running,
                                                 .feed = tp ? NULL : feed,
                                                 .stopping = is_stopping},
                              eb);
    if (!err && !follows && o->routers > 1)
        err = load_pool_create(&followers,
                               &(load_pool_config){.num_layers = model->num_layers,
                                                   .num_experts = model->num_experts,
                                                   .step_interval = balance.step_interval,
                                                   .bell = membership_changes(running)},
                               eb);
    if (err) goto done;
    const size_t routed_token_bytes =
        (size_t)model->num_layers * model->top_k * transformer_id_bytes(tf);
    const bool tells_routed = routed_token_bytes * sizes.token_max <= STEP_ROUTED_BYTES_MAX;
    err = stepper_start(
        &step,
        &(stepper_config){.transformer = tf,
                          .membership = running,
                          .feed = feed,
                          .vocab_size = model->vocab_size,
                          .max_num_seqs = sizes.seq_max,
                          .max_num_batched_tokens = sizes.token_max,
                          .max_model_len = sizes.max_model_len,
                          .kv_block_count = sizes.kv_block_count,
                          .layer_timeout_ms = LAYER_TIMEOUT_MS,
                          .incarnation = incarnation,
                          .routed_token_bytes = tells_routed ? (uint32_t)routed_token_bytes : 0,
                          .phases = &profile},
        eb);
    (void)eplb_policy_parse(o->eplb_policy, &policy);
    if (!err && !tp && !follows)
        err = balancer_start(
            &balance_thread,
            &(balancer_config){.membership = running,
                               .stepper = step,
                               .feed = feed,
                               .pool = followers,
                               .num_layers = model->num_layers,
                               .num_experts = model->num_experts,
                               .expert_bytes = expert_bytes(sizes.expert_dtype, model),
                               .enabled = o->eplb,
                               .policy = policy,
                               .balance = balance,
                               .spare_slots = (uint32_t)o->spare_slots,
                               .move_bytes_per_s = (uint64_t)o->eplb_move_mbps * 1000000},
            eb);
    if (err) goto done;
    err = router_service_start(
        &service,
        &(router_service_config){.control_url = control_url,
                                 .incarnation = incarnation,
                                 .identity = &id,
                                 .transformer = tf,
                                 .membership = running,
                                 .stepper = step,
                                 .balancer = balance_thread,
                                 .feed = follows ? NULL : feed,
                                 .pool = followers,
                                 .follows = follows,
                                 .eplb = o->eplb,
                                 .eplb_policy = o->eplb_policy,
                                 .kv_block_count = sizes.kv_block_count,
                                 .max_num_seqs = sizes.seq_max,
                                 .max_num_batched_tokens = sizes.token_max,
                                 .max_model_len = sizes.max_model_len,
                                 .heartbeat_ms = heartbeat_ms,
                                 .routed_id_bytes = tells_routed ? transformer_id_bytes(tf) : 0,
                                 .tensor_parallel = tp,
                                 .on_drain = stop},
        eb);
    if (err) goto done;
    LOG_INFO("router",
             "started kernels=%s dtype=%s attn_dtype=%s kv_dtype=%s kv_blocks=%u max_model_len=%u "
             "threads=%u",
             kernels.tier, dtype_name(sizes.expert_dtype), dtype_name(sizes.attn_dtype),
             dtype_name(sizes.kv_dtype), sizes.kv_block_count, sizes.max_model_len,
             pool_size(threads));
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    notify_manager(NOTIFY_READY);
    while (!atomic_load(&stopping)) {
        if (follows)
            follower_update(follow, UPDATE_MS);
        else
            membership_update(running, UPDATE_MS);
    }
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    notify_manager(NOTIFY_STOPPING);

done:
    if (err) LOG_ERROR("router", "%s", eb->text);
    router_service_stop(service); /* first: its handlers use what follows */
    membership_close(running);
    balancer_stop(balance_thread);
    stepper_stop(step);
    follower_free(follow);
    load_feed_stop(feed);
    load_pool_free(followers);
    membership_free(running);
    router_end_free(exchange);
    if (tf != NULL)
        trace_put_counts(traced, transformer_expert_tokens(tf), checkpoint_config(ckpt)->num_layers,
                         checkpoint_config(ckpt)->num_experts);
    trace_close(traced);
    transformer_free(tf);
    pool_free(threads);
    checkpoint_close(ckpt);
    return err ? 1 : 0;
}

static const char dtype_choices[] = "f32|float32|bf16|bfloat16|int8|int4";
static const char auto_dtype_choices[] = "auto|f32|float32|bf16|bfloat16|int8|int4";

int
main(int argc, char **argv)
{
    options o = {0};
    const flag_spec specs[] = {
        {"model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL, "checkpoint folder"},
        {"run-dir", NULL, FLAG_STRING, &o.run_dir, "./run", 0, 0, NULL, NULL,
         "folder of this fleet: sockets, logs, shared-memory names"},
        {"router-id", NULL, FLAG_INT, &o.router_id, "0", 0, ROUTER_MAX - 1, NULL, NULL,
         "rank of this router; 0 keeps the list of workers and places experts, others follow it"},
        {"routers", "data-parallel-size", FLAG_INT, &o.routers, "1", 1, ROUTER_MAX, NULL, NULL,
         "routers of the cell: each runs attention for sequences of its own"},
        {"workers", NULL, FLAG_INT, &o.workers, "2", 1, WORKER_MAX, NULL, NULL,
         "expert workers to wait for"},
        {"parallelism", NULL, FLAG_CHOICE, &o.parallelism, "ep", 0, 0, "ep|tp", NULL,
         "ep: whole experts on a worker; tp: a slice of every expert on every worker"},
        {"eplb-config", NULL, FLAG_STRING, &o.eplb_config, "", 0, 0, NULL, NULL,
         "JSON with vLLM's keys: window_size, step_interval, num_redundant_experts (replicas in "
         "each "
         "layer, over all workers), log_balancedness"},
        {"eplb", "enable-eplb", FLAG_BOOL, &o.eplb, "false", 0, 0, NULL, NULL,
         "move experts to where the load is, while serving"},
        {"eplb-policy", NULL, FLAG_CHOICE, &o.eplb_policy, "conclave", 0, 0, "conclave|deepseek",
         NULL, "how a placement is found, and when it is adopted"},
        {"eplb-move-mbps", NULL, FLAG_INT, &o.eplb_move_mbps, "100", 0, 1000000, NULL, "MB/s",
         "what moves that are not urgent may read, all workers together; 0 = no limit"},
        {"spare-slots", NULL, FLAG_INT, &o.spare_slots, "0", 0, PLACEMENT_EXPERT_MAX, NULL,
         "experts",
         "room that placements leave in each worker's --expert-memory, through which full workers "
         "exchange experts"},
        {"routing-trace", NULL, FLAG_STRING, &o.routing_trace, "", 0, 0, NULL, NULL,
         "file to write each step's rows per layer and expert to, for conclave-eplb; empty = none"},
        {"num-redundant-experts", NULL, FLAG_INT, &o.num_redundant_experts, "-1", -1,
         PLACEMENT_SLOT_MAX, NULL, "experts", "that key by itself; -1 = as --eplb-config says"},
        {"dtype", NULL, FLAG_CHOICE, &o.dtype, "bf16", 0, 0, dtype_choices, NULL,
         "the experts' weights"},
        {"attn-dtype", NULL, FLAG_CHOICE, &o.attn_dtype, "auto", 0, 0, auto_dtype_choices, NULL,
         "attention and head weights; auto = as --dtype"},
        {"kv-cache-dtype", "kv-dtype", FLAG_CHOICE, &o.kv_dtype, "auto", 0, 0,
         "auto|f32|float32|bf16|bfloat16|int8", NULL,
         "keys and values; auto = bf16, f32 for f32 weights"},
        {"exchange", NULL, FLAG_CHOICE, &o.exchange, "auto", 0, 0, "auto|shm|nng", NULL,
         "how rows travel; auto = shm for workers of this host"},
        {"exchange-transport", NULL, FLAG_CHOICE, &o.transport, "ipc", 0, 0, "ipc|tcp", NULL,
         "accepted for symmetry; workers choose what their nng links run over"},
        {"max-num-seqs", NULL, FLAG_INT, &o.max_num_seqs, "32", 1, 65536, NULL, "sequences",
         "most sequences in one step of all routers together: each has its part"},
        {"max-num-batched-tokens", NULL, FLAG_INT, &o.max_num_batched_tokens, "2048", 1,
         EXCHANGE_TOKEN_MAX, NULL, "tokens", "most tokens in one step, in the same way"},
        {"max-model-len", NULL, FLAG_INT, &o.max_model_len, "0", 0, MODEL_POSITION_MAX, NULL,
         "tokens", "longest prompt and output together; 0 = the model's, at most 4096"},
        {"num-kv-blocks", "num-gpu-blocks-override", FLAG_INT, &o.num_kv_blocks, "0", 0, 1 << 30,
         NULL, "blocks of 16 tokens",
         "size of this router's KV cache; 0 = full length for all, at most 1 GiB"},
        {"micro-batches", NULL, FLAG_INT, &o.micro_batches, "1", 1, MICRO_BATCH_MAX, NULL, NULL,
         "ping-pong pipeline of attention and experts"},
        {"threads", NULL, FLAG_INT, &o.threads, "0", 0, POOL_THREAD_MAX, NULL, NULL,
         "compute threads; 0 = all CPUs"},
        {"worker-timeout-ms", NULL, FLAG_INT, &o.worker_timeout_ms, "1000", 100, 3600000, NULL,
         "ms",
         "a worker whose heartbeats stop for so long is given up; one whose process ends, at once"},
        {"packed-cache", NULL, FLAG_STRING, &o.packed_cache, "", 0, 0, NULL, NULL,
         "folder where packed weights are kept for the next start; empty = none"},
        {"cpu-affinity", NULL, FLAG_STRING, &o.cpu_affinity, "auto", 0, 0, NULL, NULL,
         "CPUs to run on: auto (of several NUMA nodes one, by id), none (all), or a list: 0-3,8"},
        {"profile", NULL, FLAG_BOOL, &o.profile, "false", 0, 0, NULL, NULL,
         "say in the log, every 5 s and at the end, which share of the time each phase takes"},
        {"trace", NULL, FLAG_STRING, &o.trace, "", 0, 0, NULL, NULL,
         "file for a trace of every step, in Chrome's format; empty = none"},
        {"log-level", NULL, FLAG_CHOICE, &o.log_level, "info", 0, 0, "error|warn|info|debug", NULL,
         "what is logged"},
        CONTROL_FLAGS(&o.control),
        {"print-run-id", NULL, FLAG_BOOL, &o.print_run_id, "false", 0, 0, NULL, NULL,
         "print the 16 digits that shared-memory names of --run-dir carry, and exit"},
    };
    const program p = {
        .name = "conclave-router",
        .usage = "conclave-router --model DIR --run-dir DIR --workers N",
        .summary = "Runs attention and gating, holds the KV cache, sends rows to the workers.",
        .specs = specs,
        .spec_count = sizeof specs / sizeof specs[0],
        .model = &o.model,
        .model_optional = &o.print_run_id,
        .run_dir = &o.run_dir,
        .log_level = &o.log_level};
    flags f;
    run_dir run;
    int rc = program_begin(&p, &f, &run, argc, argv);
    if (rc == PROGRAM_GO_ON && o.print_run_id) {
        printf("%s\n", run.id);
        rc = 0;
    } else if (rc == PROGRAM_GO_ON) {
        errbuf eb = {{0}};
        char role[32];
        snprintf(role, sizeof role, "router-%lld", (long long)o.router_id);
        program_log(&p, role);
        rc = serve(&o, &run, &eb);
    }
    flags_fini(&f);
    return rc;
}
