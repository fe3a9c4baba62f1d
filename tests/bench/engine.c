/* engine: prefill and batched decode of a router and its workers, without HTTP and tokenizer.
 *
 * What the tests are called:
 *   ppN   tokens per second of one prompt of N tokens in one go; its last token is sampled
 *   bN    tokens per second of N sequences together, each one token a step, after a prompt of
 *         --decode-prompt tokens each
 *   tgN   the same of one sequence of N tokens that begins with one token (--tg N)
 *
 * Sequences are fed random tokens of their own, also while they decode, so that they choose
 * different experts; what the model sampled is hashed: equal seeds must give equal hashes whatever
 * runs the engine.  Of every run of steps the first few are not counted. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/file.h"
#include "common/log.h"
#include "kernels/attention.h"
#include "model/config.h"
#include "tests/bench/bench.h"
#include "tests/bench/cell.h"
#include "tests/bench/machine.h"
#include "tests/bench/process.h"

#define BATCHES_MAX 16
#define BATCH_MAX 1024
#define WARM_STEPS 3

typedef struct engine_options {
    bench_options common;
    const char *model, *batch, *bin_dir;
    int64_t prefill, decode, decode_prompt, tg, workers, threads, token_max, seed;
    bool feed_sampled;
    cell_options cell;
} engine_options;

typedef struct engine_bench {
    const engine_options *o;
    report out;
    cell *cell;
    uint32_t vocab;
    uint64_t random;
    cell_work *work;   /* [seq_max] */
    uint32_t *tokens;  /* [seq_max][model_len] */
    uint32_t *sampled; /* [seq_max] */
} engine_bench;

/* One quantity over its repeats. */
typedef struct track {
    result rate;
    samples step_ms; /* a repeat's median each */
    samples steps;   /* of this repeat, in ms; the first SAMPLES_MAX */
    uint64_t hash, wall_ns, step_ns, wait_ns;
} track;

static uint32_t *
tokens_of(const engine_bench *b, uint32_t seq)
{
    return b->tokens + (size_t)seq * b->o->cell.model_len;
}

static void
note_tokens(track *t, const uint32_t *sampled, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        t->hash = hash_combine(t->hash, sampled[i]);
}

/* The oldest step's end; since_ns: when the one before it ended, or it began. */
static moe_err
end_step(engine_bench *b, uint32_t count, uint64_t since_ns, track *t, bool counted, errbuf *eb)
{
    cell_times times;
    if (process_interrupted()) return err_set(eb, MOE_ECLOSED, "interrupted");
    const moe_err err = cell_end(b->cell, b->sampled, &times, eb);
    const uint64_t ns = clock_now_ns() - since_ns;
    if (err || t == NULL) return err;
    note_tokens(t, b->sampled, count);
    if (!counted) return MOE_OK;
    t->wall_ns += ns;
    t->step_ns += times.step_ns;
    t->wait_ns += times.expert_wait_ns;
    samples_add(&t->steps, (double)ns / 1e6);
    return MOE_OK;
}

static moe_err
step(engine_bench *b, uint32_t count, track *t, errbuf *eb)
{
    const uint64_t start = clock_now_ns();
    const moe_err err = cell_begin(b->cell, b->work, count, eb);
    return err ? err : end_step(b, count, start, t, true, eb);
}

/* Fresh random tokens for `count` sequences, as many as a sequence can have. */
static void
draw_tokens(engine_bench *b, uint32_t count)
{
    const size_t n = (size_t)count * b->o->cell.model_len;
    for (size_t i = 0; i < n; i++)
        b->tokens[i] = (uint32_t)((b->random = hash_mix(b->random)) % b->vocab);
}

/* Feed the prompts of sequences 0 .. count-1, in steps as large as they may be. */
static moe_err
feed_prompts(engine_bench *b, uint32_t count, uint32_t prompt, track *t, errbuf *eb)
{
    const uint32_t room = (uint32_t)b->o->token_max;
    uint32_t seq = 0, at = 0;
    while (seq < count) {
        uint32_t used = 0, n = 0;
        while (seq < count && used < room) {
            const uint32_t left = prompt - at, take = left < room - used ? left : room - used;
            b->work[n++] = (cell_work){.slot = seq,
                                       .first = at == 0,
                                       .prompt_len = prompt,
                                       .start_pos = at,
                                       .tokens = tokens_of(b, seq) + at,
                                       .count = take,
                                       .sample = take == left};
            used += take;
            at += take;
            if (at < prompt) continue;
            at = 0;
            seq++;
        }
        const moe_err err = step(b, n, t, eb);
        if (err) return err;
    }
    return MOE_OK;
}

static void
end_repeat(track *t, double rate)
{
    samples_add(&t->rate.values, rate);
    samples_add(&t->step_ms, samples_median(&t->steps));
    t->steps.count = 0;
}

static moe_err
measure_prefill(engine_bench *b, track *t, errbuf *eb)
{
    const uint32_t prompt = (uint32_t)b->o->prefill;
    draw_tokens(b, 1);
    t->wall_ns = 0;
    const moe_err err = feed_prompts(b, 1, prompt, t, eb);
    if (!err) end_repeat(t, prompt / ((double)t->wall_ns / 1e9));
    return err;
}

static moe_err
begin_decode(engine_bench *b, uint32_t batch, uint32_t pos, errbuf *eb)
{
    for (uint32_t i = 0; i < batch; i++) {
        b->work[i] = (cell_work){.slot = i,
                                 .start_pos = pos,
                                 .tokens = tokens_of(b, i) + pos,
                                 .count = 1,
                                 .last_sampled = b->o->feed_sampled,
                                 .sample = true};
    }
    return cell_begin(b->cell, b->work, batch, eb);
}

/* As the frontend does, one step runs ahead of the answers. */
static moe_err
measure_decode(engine_bench *b, uint32_t batch, uint32_t prompt, uint32_t decode, track *t,
               errbuf *eb)
{
    const uint32_t steps = decode + WARM_STEPS;
    draw_tokens(b, batch);
    moe_err err = feed_prompts(b, batch, prompt, NULL, eb);
    uint64_t wall = 0, since = clock_now_ns();
    if (!err) err = begin_decode(b, batch, prompt, eb);
    for (uint32_t s = 0; s < steps && !err; s++) {
        if (s + 1 < steps) err = begin_decode(b, batch, prompt + s + 1, eb);
        if (err) break;
        const uint64_t before = t->wall_ns;
        err = end_step(b, batch, since, t, s >= WARM_STEPS, eb);
        since = clock_now_ns();
        wall += t->wall_ns - before;
    }
    if (!err) end_repeat(t, (double)batch * decode / ((double)wall / 1e9));
    return err;
}

static void
report_track(engine_bench *b, track *t)
{
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)t->hash);
    result_number(&t->rate, "step_ms", samples_median(&t->step_ms));
    result_number(&t->rate, "wait_share", (double)t->wait_ns / (double)(t->step_ns + 1));
    result_number(&t->rate, "rpc_share",
                  1 - (double)t->step_ns /
                          (double)(t->wall_ns > t->step_ns ? t->wall_ns : t->step_ns + 1));
    result_text(&t->rate, "tokens", hash);
    result_number(&t->rate, "workers", (double)b->o->workers);
    result_text(&t->rate, "dtype", b->o->cell.dtype);
    report_result(&b->out, &t->rate);
}

static void
track_init(track *t, const char *kind, uint32_t n)
{
    *t = (track){
        .rate = {.unit = "tok/s"},
    };
    snprintf(t->rate.test, sizeof t->rate.test, "%s%u", kind, n);
}

/* All quantities once, then all again: what drifts, drifts for all of them. */
static moe_err
measure(engine_bench *b, const uint32_t *batches, uint32_t count, errbuf *eb)
{
    const engine_options *o = b->o;
    track tracks[BATCHES_MAX + 2];
    track_init(&tracks[0], "pp", (uint32_t)o->prefill);
    track_init(&tracks[1], "tg", (uint32_t)o->tg);
    for (uint32_t i = 0; i < count; i++)
        track_init(&tracks[2 + i], "b", batches[i]);

    track warm;
    track_init(&warm, "warm", 0);
    moe_err err = MOE_OK;
    if (o->prefill > 0) err = measure_prefill(b, &warm, eb);
    uint64_t prefill_wall = 0;
    for (int64_t r = 0; r < o->common.repeat && !err; r++) {
        if (o->prefill > 0) {
            err = measure_prefill(b, &tracks[0], eb);
            prefill_wall += tracks[0].wall_ns;
        }
        if (!err && o->tg > 0) err = measure_decode(b, 1, 1, (uint32_t)o->tg, &tracks[1], eb);
        for (uint32_t i = 0; i < count && !err; i++)
            err = measure_decode(b, batches[i], (uint32_t)o->decode_prompt, (uint32_t)o->decode,
                                 &tracks[2 + i], eb);
    }
    tracks[0].wall_ns = prefill_wall;
    for (uint32_t i = 0; i < count + 2 && !err; i++) {
        if (tracks[i].rate.values.count > 0) report_track(b, &tracks[i]);
    }
    return err;
}

static moe_err
run(engine_options *o, const uint32_t *batches, uint32_t count, errbuf *eb)
{
    engine_bench b = {.o = o,
                      .out = {.out = stdout, .bench = "engine", .json = o->common.json},
                      .random = (uint64_t)o->seed};
    model_config config;
    moe_err err = model_config_load(&config, o->model, eb);
    if (err) return err;
    b.vocab = config.vocab_size;
    b.work = calloc(o->cell.seq_max, sizeof *b.work);
    b.tokens = calloc((size_t)o->cell.seq_max * o->cell.model_len, sizeof *b.tokens);
    b.sampled = calloc(o->cell.seq_max, sizeof *b.sampled);
    if (!b.work || !b.tokens || !b.sampled)
        err = err_set(eb, MOE_ENOMEM, "out of memory");
    else
        err = cell_open(&b.cell, &o->cell, eb);
    if (!err) err = measure(&b, batches, count, eb);
    cell_close(b.cell);
    free(b.work);
    free(b.tokens);
    free(b.sampled);
    return err;
}

/* Limits that fit what is to be measured, and no more. */
static void
size_cell(engine_options *o, const uint32_t *batches, uint32_t count)
{
    uint32_t len = (uint32_t)(o->decode_prompt + o->decode) + WARM_STEPS;
    if (len < o->prefill + 1) len = (uint32_t)o->prefill + 1;
    if (o->tg > 0 && len < o->tg + 1 + WARM_STEPS) len = (uint32_t)o->tg + 1 + WARM_STEPS;
    o->cell.seq_max = 1;
    for (uint32_t i = 0; i < count; i++) {
        if (batches[i] > o->cell.seq_max) o->cell.seq_max = batches[i];
    }
    o->cell.blocks_per_seq = (len + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    o->cell.model_len = o->cell.blocks_per_seq * KV_BLOCK_TOKENS;
    o->cell.token_max = (uint32_t)o->token_max;
    o->cell.model = o->model;
    o->cell.bin_dir = o->bin_dir;
    o->cell.workers = (uint32_t)o->workers;
    o->cell.threads = (uint32_t)o->threads;
}

static int
bad_option(const char *text)
{
    fprintf(stderr, "conclave-bench engine: %s\n", text);
    return 2;
}

/* `--workers 0` is another program, whose transformer has no exchange. */
static int
become_colocated(const char *bin_dir, char **argv)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/conclave-bench-colocated", bin_dir);
    execv(path, argv);
    return bench_fail("engine", "conclave-bench-colocated is not beside this program");
}

static int
start(engine_options *o, int argc, char **argv)
{
    uint32_t batches[BATCHES_MAX], count = 0;
    if (o->model == NULL) return bad_option("--model is missing");
    if (!file_is_folder(o->model)) return bad_option("--model: no such folder");
    if (strcmp(o->batch, "none") != 0) {
        count = machine_numbers(o->batch, BATCH_MAX, batches, BATCHES_MAX);
        if (count == 0) return bad_option("--batch: must be numbers of 1..1024 with commas");
    }
    for (uint32_t i = 0; i < count; i++) {
        if (batches[i] == 0) return bad_option("--batch: 0 sequences");
    }
    if (o->common.compare != NULL) return bench_compare("engine", &o->common, argc, argv);
    char own[4096];
    bench_bin_dir(own, sizeof own);
    if (o->bin_dir == NULL) o->bin_dir = own;
    if (o->workers == 0 && !cell_is_local) return become_colocated(o->bin_dir, argv);
    if (o->workers == 0 && strcmp(o->cell.parallelism, "ep") != 0)
        return bad_option("--workers 0 has nothing to slice: --parallelism ep");
    if (o->workers != 0 && cell_is_local) return bad_option("this program is for --workers 0");
    process_catch_signals();
    size_cell(o, batches, count);
    errbuf eb = {{0}};
    return run(o, batches, count, &eb) == MOE_OK ? 0 : bench_fail("engine", eb.text);
}

static const char dtypes[] = "f32|float32|bf16|bfloat16|int8|int4";
static const char auto_dtypes[] = "auto|f32|float32|bf16|bfloat16|int8|int4";

int
bench_engine(int argc, char **argv)
{
    engine_options o = {0};
    const flag_spec specs[] = {
        BENCH_SPECS(o.common, "3"),
        BENCH_COMPARE_SPECS(o.common),
        {"model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL, "checkpoint folder"},
        {"dtype", NULL, FLAG_CHOICE, &o.cell.dtype, "bf16", 0, 0, dtypes, NULL,
         "the experts' weights"},
        {"attn-dtype", NULL, FLAG_CHOICE, &o.cell.attn_dtype, "auto", 0, 0, auto_dtypes, NULL,
         "attention and head weights; auto = as --dtype"},
        {"kv-cache-dtype", "kv-dtype", FLAG_CHOICE, &o.cell.kv_dtype, "auto", 0, 0,
         "auto|f32|float32|bf16|bfloat16|int8", NULL, "keys and values"},
        {"workers", NULL, FLAG_INT, &o.workers, "1", 0, 64, NULL, NULL,
         "expert workers; 0 = router and experts in one process, without an exchange"},
        {"parallelism", NULL, FLAG_CHOICE, &o.cell.parallelism, "ep", 0, 0, "ep|tp", NULL,
         "how experts are spread over workers"},
        {"exchange", NULL, FLAG_CHOICE, &o.cell.exchange, "auto", 0, 0, "auto|shm|nng", NULL,
         "how rows travel"},
        {"prefill", NULL, FLAG_INT, &o.prefill, "512", 0, 1 << 20, NULL, "tokens",
         "the prompt of the prefill test; 0 = leave it out"},
        {"decode", NULL, FLAG_INT, &o.decode, "128", 1, 1 << 20, NULL, "tokens",
         "steps of the decode tests"},
        {"decode-prompt", NULL, FLAG_INT, &o.decode_prompt, "128", 1, 1 << 20, NULL, "tokens",
         "what each sequence has in its context when it begins to decode"},
        {"batch", NULL, FLAG_STRING, &o.batch, "1,8,32,64", 0, 0, NULL, NULL,
         "sequences that decode together, a test for each; none = leave them out"},
        {"tg", NULL, FLAG_INT, &o.tg, "0", 0, 1 << 20, NULL, "tokens",
         "also decode so many tokens of one sequence that has no prompt"},
        {"feed-sampled", NULL, FLAG_BOOL, &o.feed_sampled, "false", 0, 0, NULL, NULL,
         "feed what the model sampled instead of random tokens"},
        {"max-num-batched-tokens", NULL, FLAG_INT, &o.token_max, "2048", 1, 1 << 20, NULL, "tokens",
         "most tokens in one step"},
        {"threads", NULL, FLAG_INT, &o.threads, "0", 0, POOL_THREAD_MAX, NULL, NULL,
         "compute threads of each process; 0 = all CPUs"},
        {"seed", NULL, FLAG_INT, &o.seed, "1", 0, 9e15, NULL, NULL, "of the random tokens"},
        {"bin-dir", NULL, FLAG_STRING, &o.bin_dir, NULL, 0, 0, NULL, NULL,
         "where conclave-router and conclave-worker are (default: beside this program)"},
        {"router-flags", NULL, FLAG_STRING, &o.cell.router_flags, NULL, 0, 0, NULL, NULL,
         "more options of the router, separated by spaces"},
        {"worker-flags", NULL, FLAG_STRING, &o.cell.worker_flags, NULL, 0, 0, NULL, NULL,
         "more options of every worker"},
    };
    flags f;
    log_init("bench", LOG_LEVEL_ERROR);
    int rc = bench_parse(&f, "engine", "Measures router and workers without HTTP.", specs,
                         sizeof specs / sizeof specs[0], argc, argv);
    if (rc == BENCH_GO_ON) rc = start(&o, argc, argv);
    flags_fini(&f);
    return rc;
}
