/* eplb_bench: what balancing costs, at the size of DeepSeek-V3 (58 layers, 256 experts, 288 slots,
 * 36 devices), of Mixtral-8x7B (32 layers, 8 experts, 4 workers) and of models/demo (6 layers).
 *
 * usage: eplb_bench [STEP_MS]
 *
 *   solve    ms of eplb_rebalance_experts() for all layers
 *   decide   ms of eplb_decide() with the policy `conclave`, from the linear placement, and again
 *            from what it adopted
 *   stats    ns of routing_stats_add_totals() per step, and per layer and expert
 *   feed     ns of all that the step thread does for statistics: counting rows, load_feed_add()
 * with its copies for the balancer; the mean over many steps, and its share of the median step if
 * that is given (conclave-bench engine prints it as step_ms) choice   ns of replica_choice_run()
 * per layer, for a step of 256 tokens, top-8 or top-2 plan     ns of dispatch_plan_build() and of
 * dispatch_plan_build_split() for the same rows Where nothing else is said a figure is the fastest
 * of several runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "exchange/dispatch_plan.h"
#include "router/eplb.h"
#include "router/eplb_policy.h"
#include "router/load_feed.h"
#include "router/replica_choice.h"
#include "router/routing_stats.h"
#include "router/routing_synth.h"

#define RUNS 7
#define TOKENS 256u
#define WORKERS_MAX 64

typedef struct size {
    const char *name;
    uint32_t layers, experts, top_k, slots, workers, groups, nodes;
} size;

typedef struct load {
    const size *s;
    uint32_t *counts; /* [L][E] of one step */
    uint64_t *rows;   /* [L][E] of a window */
    float *weights;   /* [L][E] */
    double step_ms;   /* of a fleet; 0: not known */
} load;

static void *
must(void *p)
{
    if (p != NULL) return p;
    fprintf(stderr, "eplb_bench: out of memory\n");
    exit(1);
}

static void
must_be_ok(moe_err err, const char *what)
{
    if (err == MOE_OK) return;
    fprintf(stderr, "eplb_bench: %s: %s\n", what, moe_err_name(err));
    exit(1);
}

static void
load_init(load *l, const size *s)
{
    const size_t n = (size_t)s->layers * s->experts;
    const routing_synth_config c = {.num_layers = s->layers,
                                    .num_experts = s->experts,
                                    .top_k = s->top_k,
                                    .exponent = 1,
                                    .seed = 1};
    routing_synth *gate;
    *l = (load){.s = s,
                .counts = must(calloc(n, sizeof(uint32_t))),
                .rows = must(calloc(n, sizeof(uint64_t))),
                .weights = must(calloc(n, sizeof(float)))};
    must_be_ok(routing_synth_create(&gate, &c, NULL), "synth");
    for (uint32_t step = 0; step < 10; step++) {
        routing_synth_step(gate, TOKENS, l->counts);
        for (size_t i = 0; i < n; i++)
            l->rows[i] += l->counts[i];
    }
    for (size_t i = 0; i < n; i++)
        l->weights[i] = (float)l->rows[i];
    routing_synth_free(gate);
}

static void
load_fini(load *l)
{
    free(l->counts);
    free(l->rows);
    free(l->weights);
}

static void
keep_least(uint64_t *best, uint64_t start)
{
    const uint64_t ns = clock_now_ns() - start;
    if (*best == 0 || ns < *best) *best = ns;
}

static void
bench_solve(const load *l)
{
    const size *s = l->s;
    const eplb_shape shape = {s->layers, s->experts, s->slots, s->groups, s->nodes, s->workers};
    const size_t slots = (size_t)s->layers * s->slots, n = (size_t)s->layers * s->experts;
    uint32_t *out = must(malloc((2 * slots + n) * sizeof *out));
    uint64_t best = 0;
    for (int run = 0; run < RUNS; run++) {
        const uint64_t start = clock_now_ns();
        must_be_ok(
            eplb_rebalance_experts(&shape, l->weights, out, out + slots, out + 2 * slots, NULL),
            "solve");
        keep_least(&best, start);
    }
    printf("  solve    %.2f ms\n", (double)best / 1e6);
    free(out);
}

/* Returns what the policy adopted. */
static placement *
bench_decide(const load *l)
{
    const size *s = l->s;
    uint32_t slot_counts[WORKERS_MAX];
    placement *current, *adopted = NULL;
    for (uint32_t w = 0; w < s->workers; w++)
        slot_counts[w] = s->slots / s->workers;
    must_be_ok(placement_create(&current, s->layers, s->experts, s->workers, slot_counts, NULL),
               "placement");
    must_be_ok(placement_set_linear(current, NULL), "placement");
    eplb_input in = {.policy = EPLB_CONCLAVE,
                     .current = current,
                     .worker_count = s->workers,
                     .slot_counts = slot_counts,
                     .expert_rows = l->rows,
                     .window_steps = 10,
                     .num_groups = s->groups,
                     .num_nodes = 1,
                     .costs = eplb_default_costs()};
    in.costs.interval_steps = 3000;
    in.costs.bytes_per_expert = 1e6;
    for (int pass = 0; pass < 2; pass++) {
        uint64_t best = 0;
        eplb_outcome out = {0};
        for (int run = 0; run < 3; run++) {
            eplb_outcome_fini(&out);
            const uint64_t start = clock_now_ns();
            must_be_ok(eplb_decide(&in, &out, NULL), "decide");
            keep_least(&best, start);
        }
        printf("  decide   %.1f ms: %s\n", (double)best / 1e6, out.text);
        if (pass == 0 && out.next != NULL) in.current = adopted = out.next;
        if (pass != 0) eplb_outcome_fini(&out);
    }
    if (adopted == NULL) return current;
    placement_free(current);
    return adopted;
}

static void
bench_stats(const load *l)
{
    const size *s = l->s;
    const size_t n = (size_t)s->layers * s->experts;
    routing_stats *stats;
    must_be_ok(routing_stats_create(&stats, s->layers, s->experts, 1000, 3000, NULL), "stats");
    uint64_t *totals = must(calloc(n, sizeof *totals)), best = 0;
    for (uint32_t step = 0; step < 2200; step++) {
        for (size_t i = 0; i < n; i++)
            totals[i] += l->counts[i];
        const uint64_t start = clock_now_ns();
        routing_stats_add_totals(stats, totals);
        if (step > 1000) keep_least(&best, start); /* the window is full: rows leave, too */
    }
    printf("  stats    %llu ns a step, %.2f ns for each layer and expert\n",
           (unsigned long long)best, (double)best / (double)n);
    free(totals);
    routing_stats_free(stats);
}

/* All that a step pays for statistics, with vLLM's default window and interval. */
static void
bench_feed(const load *l)
{
    const size_t n = (size_t)l->s->layers * l->s->experts;
    const load_feed_config config = {.shape = {.num_layers = l->s->layers,
                                               .num_experts = l->s->experts,
                                               .top_k = l->s->top_k,
                                               .steps_per_record = 1},
                                     .balance = eplb_default_config()};
    const uint32_t steps = config.balance.step_interval;
    load_feed *feed;
    must_be_ok(load_feed_start(&feed, &config, NULL), "feed");
    uint64_t *totals = must(calloc(n, sizeof *totals)), best = 0;
    for (uint32_t run = 0; run < RUNS; run++) {
        const uint64_t start = clock_now_ns();
        for (uint32_t step = 0; step < steps; step++) {
            for (size_t i = 0; i < n; i++) /* as transformer.c counts, layer by layer */
                totals[i] += l->counts[i];
            load_feed_add(feed, run * steps + step, totals);
        }
        keep_least(&best, start);
    }
    const double ns = (double)best / steps;
    printf("  feed     %.0f ns a step", ns);
    if (l->step_ms > 0)
        printf(": %.4f %% of a step of %g ms", ns / (l->step_ms * 1e6) * 100, l->step_ms);
    printf("\n");
    load_feed_stop(feed);
    free(totals);
}

static void
bench_choice(const load *l, const placement *p)
{
    const size *s = l->s;
    replica_choice *choice;
    uint64_t best = 0, rows[WORKERS_MAX];
    must_be_ok(replica_choice_create(&choice, s->experts, s->workers, s->slots, REPLICA_ROWS_MIN),
               "choice");
    for (int run = 0; run < 50; run++) {
        const uint64_t start = clock_now_ns();
        for (uint32_t layer = 0; layer < s->layers; layer++) {
            memset(rows, 0, sizeof rows);
            replica_choice_run(choice, p, layer, l->counts + (size_t)layer * s->experts, NULL,
                               rows);
        }
        keep_least(&best, start);
    }
    printf("  choice   %.0f ns a layer\n", (double)best / s->layers);
    replica_choice_free(choice);
}

static void
bench_plan(const load *l, const placement *p)
{
    const size *s = l->s;
    const exchange_limits limits = {.micro_batch_max = 1,
                                    .token_max = TOKENS,
                                    .num_layers = s->layers,
                                    .num_experts = s->experts,
                                    .top_k = s->top_k,
                                    .hidden = 64,
                                    .dtype = DTYPE_F32};
    const uint32_t slots = TOKENS * s->top_k;
    dispatch_plan *plan;
    replica_choice *choice;
    uint32_t *ids = must(malloc(slots * sizeof *ids)), n = 0;
    uint32_t *workers = must(malloc(s->experts * sizeof *workers));
    uint64_t whole = 0, split = 0, rows[WORKERS_MAX] = {0};
    for (uint32_t e = 0; e < s->experts; e++) {
        uint32_t hosts;
        workers[e] = placement_hosts(p, 0, e, &hosts)[0];
        for (uint32_t r = 0; r < l->counts[e] && n < slots; r++)
            ids[n++] = e;
    }
    for (uint32_t i = n; i > 1; i--) { /* in no order, as tokens come */
        const uint32_t j = (uint32_t)(hash_mix(i) % i), id = ids[j];
        ids[j] = ids[i - 1];
        ids[i - 1] = id;
    }
    must_be_ok(dispatch_plan_create(&plan, &limits, s->workers), "plan");
    must_be_ok(replica_choice_create(&choice, s->experts, s->workers, s->slots, REPLICA_ROWS_MIN),
               "choice");
    const dispatch_split runs = replica_choice_run(choice, p, 0, l->counts, NULL, rows);
    for (int run = 0; run < 200; run++) {
        uint64_t start = clock_now_ns();
        must_be_ok(dispatch_plan_build(plan, WIRE_EP, workers, s->workers, ids, NULL, TOKENS),
                   "build");
        keep_least(&whole, start);
        start = clock_now_ns();
        must_be_ok(dispatch_plan_build_split(plan, &runs, s->workers, ids, TOKENS), "split");
        keep_least(&split, start);
    }
    printf("  plan     %llu ns whole, %llu ns split, for %u rows\n", (unsigned long long)whole,
           (unsigned long long)split, slots);
    dispatch_plan_free(plan);
    replica_choice_free(choice);
    free(workers);
    free(ids);
}

int
main(int argc, char **argv)
{
    static const size sizes[] = {
        {"58 layers, 256 experts, top-8, 288 slots, 36 workers", 58, 256, 8, 288, 36, 8, 4},
        {"32 layers, 8 experts, top-2, 16 slots, 4 workers", 32, 8, 2, 16, 4, 1, 1},
        {"6 layers, 8 experts, top-2, 16 slots, 4 workers", 6, 8, 2, 16, 4, 1, 1},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        load l;
        printf("%s\n", sizes[i].name);
        load_init(&l, &sizes[i]);
        if (argc > 1) l.step_ms = strtod(argv[1], NULL);
        bench_solve(&l);
        placement *p = bench_decide(&l);
        bench_stats(&l);
        bench_feed(&l);
        bench_choice(&l, p);
        bench_plan(&l, p);
        placement_free(p);
        load_fini(&l);
    }
    return 0;
}
