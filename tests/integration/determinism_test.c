/* The promise that a request's tokens and logprobs are the same bits whatever the fleet does: the
 * answers of a fleet with two workers, asked one request at a time, without a prefix cache, are
 * what every other fleet must give, too. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"

#define REQUEST_COUNT (FLEET_QUICK ? 10u : 40u)
#define ROOM "--max-model-len=672 " /* 600 prompt tokens, 48 new ones; 42 blocks */
#define ROUNDS_MAX 4
#define PREEMPTIONS "vllm:num_preemptions_total"

typedef struct variant {
    const char *name;
    fleet_options options;
    bool in_quick;
    uint32_t count; /* of the requests, 0: all; the plain kernels are slow */
    bool ask_twice; /* then the prefix cache must have been used */
    bool expect_preemptions;
} variant;

static fleet f;
static request_set requests;
static answer_set want;

/* Both may be NULL. */
static const char *
join(const char *a, const char *b)
{
    static char joined[4][256];
    static unsigned next;
    char *out = joined[next++ % 4];
    snprintf(out, sizeof joined[0], "%s %s", a == NULL ? "" : a, b == NULL ? "" : b);
    return out;
}

static void
ask_reference(const char *cell_flags, uint32_t count)
{
    requests_make(&requests, count, 5);
    fleet_start(&f, &(fleet_options){.cell_flags = cell_flags,
                                     .router_flags = ROOM,
                                     .frontend_flags = "--enable-prefix-caching=off"});
    requests_ask_alone(&requests, f.url, &want);
    cr_expect_eq(want.cached_tokens, 0);
    answer_set together;
    requests_ask_together(&requests, f.url, &together);
    answers_expect_equal(&together, &want, "all at once");
    answers_free(&together);
    fleet_stop(&f);
}

static void
try_variant(const variant *v, const char *cell_flags)
{
    if (FLEET_QUICK && !v->in_quick) return;
    fleet_options options = v->options;
    options.cell_flags = join(cell_flags, options.cell_flags);
    options.router_flags = join(ROOM, options.router_flags);
    const request_set all = requests;
    const answer_set all_wanted = want;
    if (v->count != 0 && v->count < requests.count) requests.count = want.count = v->count;
    fleet_start(&f, &options);
    /* Whether sequences meet when blocks run out is up to the order in which requests come. */
    for (int round = 0; round <= v->ask_twice || (round < ROUNDS_MAX && v->expect_preemptions &&
                                                  fleet_metric(&f, PREEMPTIONS) == 0);
         round++) {
        answer_set got;
        requests_ask_together(&requests, f.url, &got);
        answers_expect_equal(&got, &want, v->name);
        if (v->ask_twice && round == 1)
            cr_expect_gt(got.cached_tokens, 0, "%s: nothing was cached", v->name);
        answers_free(&got);
    }
    if (v->expect_preemptions)
        cr_expect_gt(fleet_metric(&f, PREEMPTIONS), 0, "%s: nothing was preempted", v->name);
    fleet_stop(&f);
    requests = all;
    want = all_wanted;
}

static void
try_all(const variant *variants, size_t count, const char *cell_flags)
{
    ask_reference(cell_flags, REQUEST_COUNT);
    for (size_t i = 0; i < count; i++)
        try_variant(&variants[i], cell_flags);
    answers_free(&want);
    requests_free(&requests);
}

#define TRY_ALL(variants, cell_flags)                                                              \
    try_all(variants, sizeof(variants) / sizeof(variants)[0], cell_flags)

TestSuite(determinism, .timeout = 280, .fini = fleet_clean_up);

Test(determinism, bf16_answers_are_the_same_for_any_batching)
{
    static const variant variants[] = {
        {.name = "16 tokens a step",
         .options = {.router_flags = "--max-num-batched-tokens=16"},
         .in_quick = true},
        {.name = "2048 tokens a step, asked twice",
         .options = {.router_flags = "--max-num-batched-tokens=2048"},
         .ask_twice = true,
         .in_quick = true},
        {.name = "3 sequences a step", .options = {.router_flags = "--max-num-seqs=3"}},
        {.name = "64 sequences a step",
         .options = {.router_flags = "--max-num-seqs=64 --max-num-batched-tokens=100"}},
        {.name = "few KV blocks",
         .options = {.router_flags = "--num-kv-blocks=44"},
         .ask_twice = true,
         .expect_preemptions = true,
         .in_quick = true},
        {.name = "few KV blocks, no prefix cache",
         .options = {.router_flags = "--num-kv-blocks=44 --max-num-batched-tokens=64",
                     .frontend_flags = "--enable-prefix-caching=off"},
         .expect_preemptions = true},
        {.name = "2 micro-batches",
         .options = {.router_flags = "--micro-batches=2"},
         .in_quick = true},
        {.name = "4 micro-batches", .options = {.router_flags = "--micro-batches=4"}},
        {.name = "1 thread", .options = {.cell_flags = "--threads=1"}},
        {.name = "3 threads", .options = {.cell_flags = "--threads=3"}},
    };
    TRY_ALL(variants, "--dtype=bf16");
}

Test(determinism, bf16_answers_are_the_same_for_any_workers_and_exchange)
{
    static const variant variants[] = {
        {.name = "1 worker", .options = {.workers = 1}},
        {.name = "3 workers", .options = {.workers = 3}, .in_quick = true},
        {.name = "3 workers with 5 redundant experts",
         .options = {.workers = 3, .router_flags = "--num-redundant-experts=5"},
         .in_quick = true},
        {.name = "5 workers", .options = {.workers = 5}},
        {.name = "8 workers", .options = {.workers = 8, .cell_flags = "--threads=1"}},
        {.name = "shm", .options = {.router_flags = "--exchange=shm"}},
        {.name = "nng over IPC",
         .options = {.router_flags = "--exchange=nng", .cell_flags = "--exchange-transport=ipc"},
         .in_quick = true},
        {.name = "nng over TCP, 3 workers, 2 micro-batches",
         .options = {.workers = 3,
                     .router_flags = "--exchange=nng --micro-batches=2",
                     .cell_flags = "--exchange-transport=tcp"}},
    };
    TRY_ALL(variants, "--dtype=bf16");
}

/* Where a class differs in what it computes: weights, caches, row formats. */
static const variant short_list[] = {
    {.name = "16 tokens a step, 3 workers, nng",
     .options = {.workers = 3,
                 .router_flags = "--max-num-batched-tokens=16 --exchange=nng --micro-batches=2"}},
    {.name = "few KV blocks, asked twice",
     .options = {.router_flags = "--num-kv-blocks=44"},
     .ask_twice = true,
     .expect_preemptions = true},
    {.name = "the plain kernels",
     .count = 8,

     .options = {.router_mask = "ref", .worker_masks = {"ref", "ref"}}},
    {.name = "workers with different kernels",
     .count = 8,
     .options = {.workers = 3, .worker_masks = {"ref", NULL, "avx2"}},
     .in_quick = true},
};

Test(determinism, f32_answers_are_the_same_on_every_instruction_set)
{
    TRY_ALL(short_list, "--dtype=f32");
}

Test(determinism, int8_answers_are_the_same_on_every_instruction_set)
{
    TRY_ALL(short_list, "--dtype=int8");
}
