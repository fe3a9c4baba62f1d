/* The determinism contract at the level of logits: whatever the batch, the chunking, the workers,
 * the backend, the threads and (for f32, int8 and int4) the CPU's tier, the same bits.  Tensor
 * parallel agrees within rounding. */
#include <criterion/criterion.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu.h"
#include "common/hash.h"
#include "tests/support/mini_fleet.h"
#include "tests/support/paths.h"

#define TOKENS 70

TestSuite(determinism, .timeout = 300);

static uint32_t tokens[TOKENS];
static uint32_t vocab; /* of the golden checkpoint "base" */

static mini_options
base_options(char *dir, size_t size, moe_dtype dtype)
{
    golden_path(dir, size, "models/base");
    return (mini_options){.model_dir = dir,
                          .expert_dtype = dtype,
                          .attn_dtype = dtype,
                          .kv_dtype = dtype < DTYPE_INT8 ? dtype : DTYPE_INT8,
                          .max_model_len = 128,
                          .token_max = 256,
                          .cpu_flags = UINT_MAX};
}

/* Logits of all positions, with the prompt fed in chunks. */
static float *
run_alone(const mini_options *o, uint32_t chunk)
{
    mini_fleet m;
    mini_fleet_start(&m, o);
    vocab = m.config->vocab_size;
    for (uint32_t i = 0; i < TOKENS; i++) {
        tokens[i] = (uint32_t)(hash_mix(i) % vocab);
    }
    float *logits = malloc((size_t)TOKENS * vocab * sizeof *logits);
    mini_logits(&m, 0, tokens, TOKENS, chunk, logits);
    mini_fleet_stop(&m);
    return logits;
}

static bool
same_bits(const float *a, const float *b)
{
    return memcmp(a, b, sizeof(float) * TOKENS * vocab) == 0;
}

static void
expect_same(const float *want, const mini_options *o, uint32_t chunk, const char *what)
{
    float *got = run_alone(o, chunk);
    cr_expect(same_bits(want, got), "%s changed the bits (%s)", what, dtype_name(o->expert_dtype));
    free(got);
}

Test(determinism, workers_chunks_threads_and_micro_batches_change_nothing)
{
    char dir[512];
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        mini_options o = base_options(dir, sizeof dir, (moe_dtype)dtype);
        float *want = run_alone(&o, 0);
        expect_same(want, &o, 1, "feeding one token at a time");
        expect_same(want, &o, 7, "feeding 7 tokens at a time");
        expect_same(want, &o, 64, "feeding 64 tokens at a time");
        for (uint32_t w = 2; w <= 8; w += w == 3 ? 2 : w == 5 ? 3 : 1) {
            o.workers = w; /* 2, 3, 5, 8: more workers than experts too */
            expect_same(want, &o, 0, "the number of workers");
        }
        o.workers = 3;
        o.threads = 3;
        expect_same(want, &o, 0, "threads");
        o.micro_batches = 4;
        expect_same(want, &o, 33, "micro-batches");
        free(want);
    }
}

Test(determinism, exchange_backends_carry_the_same_bits)
{
    char dir[512];
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        mini_options o = base_options(dir, sizeof dir, (moe_dtype)dtype);
        o.workers = 2;
        float *want = run_alone(&o, 0);
        o.backend = EXCHANGE_NNG;
        expect_same(want, &o, 16, "nng over ipc");
        o.tcp = true;
        o.micro_batches = 2;
        expect_same(want, &o, 16, "nng over tcp");
        free(want);
    }
}

Test(determinism, replicas_change_nothing)
{
    char dir[512];
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        mini_options o = base_options(dir, sizeof dir, (moe_dtype)dtype);
        float *want = run_alone(&o, 0);
        const uint32_t workers[] = {2, 3, 5};
        for (size_t i = 0; i < sizeof workers / sizeof workers[0]; i++) {
            o.workers = workers[i];
            for (o.redundant = 1; o.redundant <= 8; o.redundant += 7) {
                expect_same(want, &o, 0, "replicas");
                o.micro_batches = 2;
                expect_same(want, &o, 23, "replicas, with chunks and micro-batches");
                o.micro_batches = 1;
            }
        }
        free(want);
    }
}

Test(determinism, tiers_agree_for_f32_int8_and_int4)
{
    char dir[512];
    if ((cpu_flags() & CPU_AVX2) == 0) cr_skip_test("this machine has no AVX2 tier to compare");
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        if (dtype == DTYPE_BF16) continue; /* rounds as its tier does */
        mini_options o = base_options(dir, sizeof dir, (moe_dtype)dtype);
        float *want = run_alone(&o, 0);
        o.cpu_flags = 0;
        expect_same(want, &o, 0, "the reference tier");
        o.cpu_flags = CPU_AVX2;
        expect_same(want, &o, 0, "the AVX2 tier");
        free(want);
    }
}

typedef struct batch_sink {
    float *rows; /* [4][V] last logits of each sequence */
} batch_sink;

static void
keep_rows(void *user, uint32_t seq, uint32_t t, const float *logits)
{
    (void)t;
    const batch_sink *s = user;
    memcpy(s->rows + (size_t)seq * vocab, logits, vocab * sizeof(float));
}

Test(determinism, company_in_a_batch_changes_nothing)
{
    char dir[512];
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        mini_options o = base_options(dir, sizeof dir, (moe_dtype)dtype);
        float *alone = run_alone(&o, 0);
        o.workers = 2;
        mini_fleet m;
        mini_fleet_start(&m, &o);
        float *rows = malloc(4 * vocab * sizeof *rows);
        batch_sink sink = {rows};
        uint32_t known[4] = {0};
        /* Four sequences with the same tokens at different paces; each last logits row is known
         * from the lonely run. */
        while (known[0] < TOKENS) {
            step_seq seqs[4];
            uint32_t which[4], count = 0;
            for (uint32_t s = 0; s < 4; s++) {
                uint32_t n = 1 + 5 * s;
                if (n > TOKENS - known[s]) n = TOKENS - known[s];
                if (n == 0) continue;
                seqs[count] = mini_seq(&m, s, tokens, known[s], n);
                seqs[count].want_last = true;
                which[count++] = s;
                known[s] += n;
            }
            mini_step(&m, seqs, count, keep_rows, &sink, NULL);
            for (uint32_t i = 0; i < count; i++) {
                const float *want = alone + (size_t)(known[which[i]] - 1) * vocab;
                cr_assert_eq(memcmp(rows + (size_t)i * vocab, want, vocab * sizeof(float)), 0,
                             "%s: sequence %u at position %u", dtype_name((moe_dtype)dtype),
                             which[i], known[which[i]] - 1);
            }
        }
        mini_fleet_stop(&m);
        free(rows);
        free(alone);
    }
}

static void
ignore_logits(void *user, uint32_t seq, uint32_t t, const float *logits)
{
    (void)seq, (void)logits;
    uint32_t *count = user;
    count[0]++;
    count[1] = t;
}

/* The prompt in chunks beside another sequence, which does not ask; then what was told is compared
 * with what the gate chose for all rows, and the statistics with both. */
static void
expect_routed(const mini_options *o, uint32_t chunk)
{
    mini_fleet m;
    mini_fleet_start(&m, o);
    const uint32_t layers = m.config->num_layers, k = m.config->top_k, e = m.config->num_experts;
    const size_t token_ids = (size_t)layers * k;
    uint8_t *routed = malloc(TOKENS * token_ids);
    uint32_t *chosen = malloc(TOKENS * token_ids * sizeof *chosen);
    memset(routed, 0xee, TOKENS * token_ids);
    cr_assert_eq(transformer_id_bytes(m.transformer), 1);
    float *with = malloc(2 * vocab * sizeof *with), *without = with + vocab;
    batch_sink sink = {with};
    for (uint32_t at = 0, n; at < TOKENS; at += n) {
        n = TOKENS - at < chunk ? TOKENS - at : chunk;
        step_seq seq = mini_seq(&m, 0, tokens, at, n);
        seq.routed = routed + at * token_ids;
        seq.want_last = at + n == TOKENS;
        mini_step(&m, &seq, 1, keep_rows, &sink, NULL);
    }
    uint64_t *counts = calloc((size_t)layers * e, sizeof *counts);
    for (size_t i = 0; i < TOKENS * token_ids; i++)
        counts[i % token_ids / k * e + routed[i]]++;
    cr_expect_eq(
        memcmp(counts, transformer_expert_tokens(m.transformer), layers * e * sizeof *counts), 0,
        "the statistics say otherwise");
    step_seq both[] = {mini_seq(&m, 1, tokens, 0, 5), mini_seq(&m, 2, tokens, 0, TOKENS)};
    uint8_t *again = malloc(TOKENS * token_ids);
    uint32_t told[2] = {0};
    both[1].routed = again;
    mini_step(&m, both, 2, ignore_logits, told, NULL);
    cr_expect_eq(told[0], 0, "nobody asked for logits");
    cr_expect_eq(memcmp(routed, again, TOKENS * token_ids), 0, "company changed what is told");

    const transformer_probe probe = {.gate_ids = chosen};
    step_seq whole = mini_seq(&m, 3, tokens, 0, TOKENS);
    whole.want_last = true;
    sink.rows = without;
    mini_step(&m, &whole, 1, keep_rows, &sink, &probe);
    for (uint32_t t = 0; t < TOKENS; t++) {
        for (size_t i = 0; i < token_ids; i++)
            cr_assert_eq(routed[t * token_ids + i], chosen[(i / k * TOKENS + t) * k + i % k],
                         "token %u, %zu", t, i);
    }
    if (o->mode == WIRE_EP)
        cr_expect_eq(memcmp(with, without, vocab * sizeof *with), 0, "asking changed the bits");
    mini_fleet_stop(&m);
    free(routed);
    free(again);
    free(chosen);
    free(counts);
    free(with);
}

Test(determinism, tells_the_experts_that_each_token_used)
{
    char dir[512];
    mini_options o = base_options(dir, sizeof dir, DTYPE_F32);
    float *want = run_alone(&o, 0); /* fills tokens */
    free(want);
    o.workers = 2;
    expect_routed(&o, TOKENS);
    expect_routed(&o, 9);
    o.micro_batches = 3;
    expect_routed(&o, 1);
    expect_routed(&o, 33);
    o.mode = WIRE_TP;
    expect_routed(&o, 33);
}

Test(determinism, tensor_parallel_agrees_within_rounding)
{
    char dir[512];
    mini_options o = base_options(dir, sizeof dir, DTYPE_F32);
    float *want = run_alone(&o, 0);
    o.mode = WIRE_TP;
    const uint32_t workers[] = {1, 2, 3, 5};
    for (size_t i = 0; i < sizeof workers / sizeof workers[0]; i++) {
        o.workers = workers[i];
        float *got = run_alone(&o, 0), worst = 0;
        for (size_t j = 0; j < (size_t)TOKENS * vocab; j++) {
            const float d = fabsf(got[j] - want[j]);
            if (!(d <= worst)) worst = d;
        }
        printf("tp of %u workers: largest logit difference %.2g\n", o.workers, (double)worst);
        cr_expect_leq(worst, 1e-3f);
        float *again = run_alone(&o, 9);
        cr_expect(same_bits(got, again), "tp of %u workers is not repeatable", o.workers);
        free(again);
        free(got);
    }
    fflush(stdout);
    free(want);
}
