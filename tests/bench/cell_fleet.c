#include "proto/methods.h"
#include "tests/bench/cell.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conclave.pb-c.h"

#include "common/clock.h"
#include "common/file.h"
#include "common/run_dir.h"
#include "exchange/link.h"
#include "kernels/packed.h"
#include "proto/rpc.h"
#include "tests/bench/process.h"

#define WORKERS_MAX 64
#define STEP_TIMEOUT_MS (600u * 1000)
#define HEALTH_TIMEOUT_MS 2000
#define HEALTH_PAUSE_MS 20
#define START_TIMEOUT_NS (600 * NS_PER_S)
#define END_PATIENCE_MS 20000
#define STEP_MESSAGE_BYTES (64u << 20)
#define LOG_BYTES_MAX ((size_t)16 << 20)
#define LOG_TAIL 300

const bool cell_is_local = false;

struct cell {
    cell_options options;
    char dir[32];
    run_dir run;
    process processes[1 + WORKERS_MAX];
    uint32_t process_count;
    rpc_client *router;
    uint64_t incarnation, step;
    rpc_pending *calls[CELL_STEPS]; /* a ring */
    uint32_t call_counts[CELL_STEPS], first_call, call_count;
    uint32_t *blocks; /* [seq_max * blocks_per_seq] 0, 1, 2, ... */
    Conclave__SeqWork *work;
    Conclave__SeqWork **pointers;
    Conclave__SeqInit *inits;
    Conclave__Sampling *samplings;
};

/* ---- processes ---- */

static void
log_path(const cell *c, const char *name, char *out, size_t size)
{
    snprintf(out, size, "%s/%s.log", c->run.path, name);
}

/* Put the end of a process's log behind what eb says. */
static moe_err
with_log(const cell *c, const char *name, moe_err err, errbuf *eb)
{
    char path[160], *text = NULL;
    size_t len = 0;
    log_path(c, name, path, sizeof path);
    if (file_read(path, LOG_BYTES_MAX, &text, &len, NULL) != MOE_OK) return err;
    errbuf before = *eb;
    err_set(eb, err, "%.180s: %s", before.text, text + (len > LOG_TAIL ? len - LOG_TAIL : 0));
    free(text);
    return err;
}

static moe_err
start_process(cell *c, const char *name, command *words, errbuf *eb)
{
    char path[160];
    log_path(c, name, path, sizeof path);
    const moe_err err = process_start(&c->processes[c->process_count], name, words, path, eb);
    if (!err) c->process_count++;
    command_fini(words);
    return err;
}

static moe_err
start_router(cell *c, errbuf *eb)
{
    const cell_options *o = &c->options;
    command words = {0};
    command_add(&words, "%s/conclave-router", o->bin_dir);
    command_add(&words, "--run-dir=%s", c->run.path);
    command_add(&words, "--model=%s", o->model);
    command_add(&words, "--workers=%u", o->workers);
    command_add(&words, "--dtype=%s", o->dtype);
    command_add(&words, "--attn-dtype=%s", o->attn_dtype);
    command_add(&words, "--kv-cache-dtype=%s", o->kv_dtype);
    command_add(&words, "--parallelism=%s", o->parallelism);
    command_add(&words, "--exchange=%s", o->exchange);
    command_add(&words, "--threads=%u", o->threads);
    command_add(&words, "--max-num-seqs=%u", o->seq_max);
    command_add(&words, "--max-num-batched-tokens=%u", o->token_max);
    command_add(&words, "--max-model-len=%u", o->model_len);
    command_add(&words, "--num-kv-blocks=%u", o->blocks_per_seq * o->seq_max);
    command_add_words(&words, o->router_flags);
    return start_process(c, "router-0", &words, eb);
}

static moe_err
start_worker(cell *c, uint32_t id, errbuf *eb)
{
    const cell_options *o = &c->options;
    command words = {0};
    char name[32];
    snprintf(name, sizeof name, "worker-%u", id);
    command_add(&words, "%s/conclave-worker", o->bin_dir);
    command_add(&words, "--run-dir=%s", c->run.path);
    command_add(&words, "--model=%s", o->model);
    command_add(&words, "--worker-id=%u", id);
    command_add(&words, "--dtype=%s", o->dtype);
    command_add(&words, "--threads=%u", o->threads);
    command_add_words(&words, o->worker_flags);
    return start_process(c, name, &words, eb);
}

/* MOE_OK, *ready: whether it serves. */
static moe_err
ask_health(cell *c, bool *ready, errbuf *eb)
{
    const Conclave__HealthRequest request = CONCLAVE__HEALTH_REQUEST__INIT;
    ProtobufCMessage *response;
    const moe_err err = rpc_call_sync(c->router, ROUTER_HEALTH, &request.base, HEALTH_TIMEOUT_MS,
                                      &response, NULL, eb);
    *ready = false;
    if (err) return MOE_OK; /* it may not listen yet */
    const Conclave__HealthReply *h = (const void *)response;
    *ready = h->ready;
    c->incarnation = h->incarnation;
    rpc_response_free(response);
    return MOE_OK;
}

static moe_err
wait_ready(cell *c, errbuf *eb)
{
    const uint64_t deadline = clock_now_ns() + START_TIMEOUT_NS;
    for (bool ready = false;;) {
        ask_health(c, &ready, eb);
        if (ready) return MOE_OK;
        for (uint32_t i = 0; i < c->process_count; i++) {
            if (process_running(&c->processes[i])) continue;
            err_set(eb, MOE_ECLOSED, "%s ended", c->processes[i].name);
            return with_log(c, c->processes[i].name, MOE_ECLOSED, eb);
        }
        if (process_interrupted()) return err_set(eb, MOE_ECLOSED, "interrupted");
        if (clock_now_ns() > deadline)
            return err_set(eb, MOE_ETIMEDOUT, "the fleet is not ready: %s", eb->text);
        poll(NULL, 0, HEALTH_PAUSE_MS);
    }
}

/* ---- life ---- */

static moe_err
allocate(cell *c, errbuf *eb)
{
    const uint32_t n = c->options.seq_max;
    const uint32_t blocks = n * c->options.blocks_per_seq;
    c->blocks = malloc(blocks * sizeof *c->blocks);
    c->work = calloc(n, sizeof *c->work);
    c->pointers = calloc(n, sizeof *c->pointers);
    c->inits = calloc(n, sizeof *c->inits);
    c->samplings = calloc(n, sizeof *c->samplings);
    if (!c->blocks || !c->work || !c->pointers || !c->inits || !c->samplings)
        return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < blocks; i++)
        c->blocks[i] = i;
    return MOE_OK;
}

static moe_err
start_all(cell *c, errbuf *eb)
{
    char url[RUN_URL_MAX];
    run_dir_url(&c->run, "router", 0, url);
    moe_err err = start_router(c, eb);
    for (uint32_t w = 0; w < c->options.workers && !err; w++)
        err = start_worker(c, w, eb);
    if (err) return err;
    err = rpc_client_open(&c->router,
                          &(rpc_client_options){.url = url,
                                                .service = &conclave__router__descriptor,
                                                .message_bytes_max = STEP_MESSAGE_BYTES},
                          eb);
    return err ? err : wait_ready(c, eb);
}

moe_err
cell_open(cell **out, const cell_options *options, errbuf *eb)
{
    *out = NULL;
    if (options->workers > WORKERS_MAX)
        return err_set(eb, MOE_ERANGE, "more than %d workers", WORKERS_MAX);
    cell *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    c->options = *options;
    snprintf(c->dir, sizeof c->dir, "/tmp/conclave-bench-XXXXXX");
    moe_err err = mkdtemp(c->dir) == NULL ? err_set(eb, MOE_EIO, "can't make a folder in /tmp")
                                          : run_dir_open(&c->run, c->dir, eb);
    if (!err) err = allocate(c, eb);
    if (!err) err = start_all(c, eb);
    if (err) {
        cell_close(c);
        return err;
    }
    *out = c;
    return MOE_OK;
}

/* The folder is this cell's own: made by mkdtemp, holding what its processes left. */
static void
remove_run_dir(const cell *c)
{
    char path[400];
    DIR *dir = opendir(c->run.path);
    if (dir == NULL) return;
    for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", c->run.path, d->d_name);
        if (d->d_name[0] != '.') unlink(path);
    }
    closedir(dir);
    rmdir(c->run.path);
}

void
cell_close(cell *c)
{
    if (c == NULL) return;
    rpc_client_close(c->router);
    for (uint32_t i = 0; i < c->process_count; i++)
        process_end(&c->processes[i], END_PATIENCE_MS);
    if (c->run.id[0] != '\0') {
        shm_objects_remove(c->run.id, "");
        remove_run_dir(c);
    }
    free(c->blocks);
    free(c->work);
    free(c->pointers);
    free(c->inits);
    free(c->samplings);
    free(c);
}

/* ---- steps ---- */

static void
fill_init(cell *c, uint32_t i, const cell_work *w)
{
    Conclave__SeqWork *out = &c->work[i];
    conclave__sampling__init(&c->samplings[i]);
    c->samplings[i].top_p = 1;
    c->samplings[i].repetition_penalty = 1;
    c->samplings[i].num_logprobs = -1;
    conclave__seq_init__init(&c->inits[i]);
    c->inits[i].prompt_len = w->prompt_len;
    c->inits[i].sampling = &c->samplings[i];
    out->init = &c->inits[i];
    out->n_blocks = c->options.blocks_per_seq;
    out->blocks = c->blocks + (size_t)w->slot * c->options.blocks_per_seq;
}

static void
fill_work(cell *c, uint32_t i, const cell_work *w)
{
    Conclave__SeqWork *out = &c->work[i];
    conclave__seq_work__init(out);
    out->slot = w->slot;
    out->start_pos = w->start_pos;
    out->token_is_last_sampled = w->last_sampled;
    out->n_tokens = w->last_sampled ? 0 : w->count;
    out->tokens = (uint32_t *)(uintptr_t)w->tokens;
    out->sample = w->sample;
    if (w->first) fill_init(c, i, w);
    c->pointers[i] = out;
}

moe_err
cell_begin(cell *c, const cell_work *work, uint32_t count, errbuf *eb)
{
    Conclave__StepRequest request = CONCLAVE__STEP_REQUEST__INIT;
    request.step = ++c->step;
    request.router_incarnation = c->incarnation;
    request.n_work = count;
    request.work = c->pointers;
    for (uint32_t i = 0; i < count; i++)
        fill_work(c, i, &work[i]);
    const uint32_t at = (c->first_call + c->call_count) % CELL_STEPS;
    c->call_counts[at] = count;
    c->calls[at] = rpc_call_begin(c->router, ROUTER_STEP, &request.base, STEP_TIMEOUT_MS, NULL);
    if (c->calls[at] == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    c->call_count++;
    return MOE_OK;
}

moe_err
cell_end(cell *c, uint32_t *sampled, cell_times *times, errbuf *eb)
{
    ProtobufCMessage *response;
    const uint32_t count = c->call_counts[c->first_call];
    rpc_pending *call = c->calls[c->first_call];
    c->first_call = (c->first_call + 1) % CELL_STEPS;
    c->call_count--;
    rpc_pending_wait(call, 0);
    moe_err err = rpc_pending_finish(call, &response, NULL, eb);
    if (err) return with_log(c, "router-0", err, eb);
    const Conclave__StepReply *reply = (const void *)response;
    if (reply->n_results != count)
        err = err_set(eb, MOE_EINTERNAL, "the router answered %zu of %u sequences",
                      reply->n_results, count);
    for (uint32_t i = 0; i < count && !err; i++)
        sampled[i] = reply->results[i]->token;
    *times = (cell_times){reply->step_ns, reply->expert_wait_ns};
    rpc_response_free(response);
    return err;
}
