/* eplb_policy: what every placement of `conclave` promises, on random instances, against DeepSeek's
 * on the same slots; when nothing is adopted; workers that come, go, and differ. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/eplb_dispersion.h"
#include "router/eplb_policy.h"
#include "router/routing_synth.h"

#define WORKERS 12
#define EXPERTS 64
#define LAYERS 2

TestSuite(eplb_policy, .timeout = 240);

static uint64_t rng;

static uint32_t
below(uint32_t n)
{
    rng = hash_mix(rng);
    return (uint32_t)((rng >> 20) % n);
}

/* Moves cost nothing and counts are exact: whatever is better is adopted. */
static const eplb_costs no_costs = {.row_ns = 1, .noise_sigmas = -1};

/* One decision, and all it needs. */
typedef struct world {
    uint32_t layers, experts, workers;
    uint32_t slots[WORKERS];
    double speeds[WORKERS];
    uint64_t rows[LAYERS * EXPERTS];
    placement *current;
    eplb_input in;
} world;

static void
world_init(world *w, uint32_t layers, uint32_t experts, uint32_t workers, uint32_t slots)
{
    *w = (world){.layers = layers, .experts = experts, .workers = workers};
    for (uint32_t i = 0; i < workers; i++) {
        w->slots[i] = slots;
        w->speeds[i] = 1;
    }
    cr_assert_eq(placement_create(&w->current, layers, experts, workers, w->slots, NULL), MOE_OK);
    cr_assert_eq(placement_set_linear(w->current, NULL), MOE_OK);
    w->in = (eplb_input){.policy = EPLB_CONCLAVE,
                         .current = w->current,
                         .worker_count = workers,
                         .slot_counts = w->slots,
                         .speeds = w->speeds,
                         .expert_rows = w->rows,
                         .window_steps = 100,
                         .num_groups = 1,
                         .num_nodes = 1,
                         .costs = no_costs};
}

static eplb_outcome
decide(const eplb_input *in)
{
    eplb_outcome out;
    errbuf eb;
    cr_assert_eq(eplb_decide(in, &out, &eb), MOE_OK, "%s", eb.text);
    cr_assert(out.text[0] != '\0');
    return out;
}

static void
check_valid(const world *w, const eplb_outcome *out, const char *what, uint64_t seed)
{
    errbuf eb;
    double scratch[WORKERS];
    if (out->next == NULL) return;
    cr_assert_eq(placement_check(out->next, true, &eb), MOE_OK, "%s %lu: %s", what,
                 (unsigned long)seed, eb.text);
    for (uint32_t i = 0; i < w->in.worker_count; i++)
        cr_assert_eq(out->next->slot_first[i + 1] - out->next->slot_first[i], w->in.slot_counts[i]);
    const double balance = placement_balancedness(out->next, w->rows, w->in.speeds, scratch);
    /* Drained workers have no slots, but a speed: only a fleet in full use can be compared. */
    for (uint32_t i = 0; i < w->in.worker_count; i++)
        if (w->in.slot_counts[i] == 0) return;
    cr_assert(fabs(balance - out->balancedness_after) < 1e-5, "%s %lu: %g is predicted, but %g",
              what, (unsigned long)seed, out->balancedness_after, balance);
}

/* Loads of many kinds: falling, equal, one expert only, none, small whole numbers, random. */
static void
draw_rows(world *w)
{
    for (uint32_t l = 0; l < w->layers; l++) {
        const uint32_t kind = below(7), hot = below(w->experts);
        for (uint32_t e = 0; e < w->experts; e++) {
            const uint64_t kinds[] = {100000 / (e + 1), 1000,          e == hot ? 5000 : 0, 0,
                                      below(4),         below(100000), 1u << below(20)};
            w->rows[l * w->experts + e] = kinds[kind];
        }
    }
}

/* A placement with replicas here and there instead of the linear one. */
static void
draw_current(world *w)
{
    if (below(2)) return;
    for (uint32_t l = 0; l < w->layers; l++) {
        for (uint32_t i = 0; i < w->current->slot_count; i++) {
            uint32_t *slot = &w->current->slots[(size_t)l * w->current->slot_count + i];
            if (*slot == PLACEMENT_EMPTY && below(2)) *slot = below(w->experts);
        }
    }
    placement_index(w->current);
    placement_set_even_shares(w->current);
}

Test(eplb_policy, is_never_worse_than_deepseek_on_the_same_slots)
{
    uint32_t better = 0;
    for (uint64_t seed = 0; seed < 10000; seed++) {
        world w;
        rng = seed;
        const uint32_t experts = 1 + below(seed % 10 == 0 ? EXPERTS : 24);
        const uint32_t workers = 1 + below(WORKERS);
        const uint32_t least = (experts + workers - 1) / workers;
        uint32_t slots = least + below(4);
        if (slots > experts) slots = experts;
        world_init(&w, 1 + below(LAYERS), experts, workers, slots);
        draw_rows(&w);
        draw_current(&w);

        eplb_outcome ours = decide(&w.in);
        check_valid(&w, &ours, "seed", seed);
        w.in.policy = EPLB_DEEPSEEK;
        eplb_outcome theirs = decide(&w.in);
        cr_assert(ours.balancedness_after >= theirs.balancedness_after - 1e-6,
                  "seed %lu: %u experts, %u workers, %u slots: %.6f < %.6f", (unsigned long)seed,
                  experts, workers, slots, ours.balancedness_after, theirs.balancedness_after);
        cr_assert(ours.balancedness_after >= ours.balancedness_before);
        better += ours.balancedness_after > theirs.balancedness_after + 1e-6;
        eplb_outcome_fini(&ours);
        eplb_outcome_fini(&theirs);
        placement_free(w.current);
    }
    cr_log_info("better than deepseek in %u of 10000", better);
}

/* Other workers and slots than the current placement has: some are gone, some new, some drained. */
Test(eplb_policy, fits_unequal_workers_that_come_and_go)
{
    for (uint64_t seed = 0; seed < 2000; seed++) {
        world w;
        rng = seed + 1000000;
        const uint32_t experts = 1 + below(24), workers = 1 + below(WORKERS);
        world_init(&w, 1 + below(LAYERS), experts, workers, (experts + workers - 1) / workers + 1);
        draw_rows(&w);
        draw_current(&w);
        w.in.worker_count = 1 + below(WORKERS);
        for (uint32_t i = 0; i < w.in.worker_count; i++) {
            w.speeds[i] = 0.25 * (1 + below(8));
            w.slots[i] = below(2 * experts / w.in.worker_count + 2);
            if (w.slots[i] > experts) w.slots[i] = experts;
        }
        uint32_t sum = 0;
        for (uint32_t i = 0; i < w.in.worker_count; i++)
            sum += w.slots[i];
        if (sum < experts) {
            eplb_outcome out;
            cr_assert_eq(eplb_decide(&w.in, &out, NULL), MOE_ERANGE);
            cr_assert_null(out.next);
        } else {
            eplb_outcome out = decide(&w.in);
            check_valid(&w, &out, "seed", seed);
            cr_assert(out.balancedness_after >= out.balancedness_before);
            if (out.next == NULL) { /* then everything must be able to stay */
                for (uint32_t i = 0; i < workers; i++) {
                    uint32_t hosted = 0;
                    for (uint32_t e = 0; e < experts; e++)
                        hosted += placement_is_host(w.current, 0, e, i);
                    cr_assert(hosted == 0 || (i < w.in.worker_count && hosted <= w.slots[i]));
                }
            }
            eplb_outcome_fini(&out);
        }
        placement_free(w.current);
    }
}

/* Rows of a synthetic gate over some steps. */
static void
count_rows(routing_synth *gate, uint32_t steps, uint32_t tokens, uint64_t *rows, size_t n)
{
    uint32_t counts[LAYERS * EXPERTS];
    memset(rows, 0, n * sizeof *rows);
    for (uint32_t s = 0; s < steps; s++) {
        routing_synth_step(gate, tokens, counts);
        for (size_t i = 0; i < n; i++)
            rows[i] += counts[i];
    }
}

static double
imbalance(const placement *p, const uint64_t *rows)
{
    double scratch[WORKERS];
    return 1 / placement_balancedness(p, rows, NULL, scratch) - 1;
}

/* 64 experts, top-8, Zipf exponent 1, 8 workers, 72 slots: (max - mean) / mean. */
Test(eplb_policy, evens_out_a_zipf_gate_for_the_steps_to_come)
{
    world w;
    routing_synth *gate;
    const routing_synth_config config = {
        .num_layers = 1, .num_experts = 64, .top_k = 8, .exponent = 1, .seed = 1};
    world_init(&w, 1, 64, 8, 9);
    cr_assert_eq(routing_synth_create(&gate, &config, NULL), MOE_OK);
    count_rows(gate, 200, 64, w.rows, 64);
    w.in.costs = eplb_default_costs();
    w.in.costs.bytes_per_expert = 1e6;
    w.in.costs.interval_steps = 3000;
    eplb_outcome out = decide(&w.in);
    cr_assert_eq(out.verdict, EPLB_ADOPTED, "%s", out.text);
    const double before = imbalance(w.current, w.rows);
    uint64_t later[64];
    count_rows(gate, 200, 64, later, 64);
    const double after = imbalance(out.next, later);
    cr_log_info("imbalance %.3f to %.4f, %llu experts moved", before, after,
                (unsigned long long)out.move_count);
    cr_expect_lt(after, 0.12);
    cr_expect_gt(before, 0.12);
    eplb_outcome_fini(&out);
    routing_synth_free(gate);
    placement_free(w.current);
}

/* Two workers with an expert each; rows 60 40, 40 60: expected is 50, so chi-square is 4 * 100 /
 * 50, of one degree of freedom.  Twice that by hand: in the second layer nothing varies. */
Test(eplb_policy, dispersion_is_chi_square_by_its_degrees_of_freedom)
{
    world w;
    world_init(&w, 2, 2, 2, 1);
    const uint64_t parts[] = {60, 40, 50, 50, 40, 60, 50, 50};
    cr_expect_float_eq(eplb_dispersion(w.current, parts, 2), 4, 1e-9);
    cr_expect_eq(eplb_dispersion(w.current, parts, 1), 1, "nothing to compare");
    cr_expect_eq(eplb_dispersion(w.current, parts + 2, 0), 1);
    const uint64_t none[8] = {0};
    cr_expect_eq(eplb_dispersion(w.current, none, 2), 1);
    /* What lasts for two parts shows in runs of two: 110 90, 90 110. */
    const uint64_t slow[] = {55, 45, 50, 50, 55, 45, 50, 50, 45, 55, 50, 50, 45, 55, 50, 50};
    cr_expect_float_eq(eplb_dispersion(w.current, slow, 4), 4 / 2.0, 1e-9);
    placement_free(w.current);
}

/* Even if moves cost nothing: what looks like a gain is chance. */
Test(eplb_policy, adopts_nothing_for_an_even_gate)
{
    for (uint64_t seed = 0; seed < 400; seed++) {
        world w;
        routing_synth *gate;
        rng = seed;
        const uint32_t experts = 8u << below(4), workers = 2 + below(WORKERS - 1);
        const routing_synth_config config = {
            .num_layers = LAYERS, .num_experts = experts, .top_k = 1 + below(4), .seed = seed};
        /* Equal runs of experts; else workers are uneven by themselves. */
        const uint32_t even = experts % workers == 0 ? workers : 8;
        world_init(&w, LAYERS, experts, even, experts / even + below(3));
        cr_assert_eq(routing_synth_create(&gate, &config, NULL), MOE_OK);
        count_rows(gate, 1 + below(50), 1 + below(64), w.rows, (size_t)LAYERS * experts);
        w.in.costs = eplb_default_costs();
        w.in.costs.interval_steps = 3000;
        eplb_outcome out = decide(&w.in);
        cr_expect_null(out.next, "seed %lu: %s", (unsigned long)seed, out.text);
        cr_expect_eq(out.verdict, EPLB_BALANCED);
        eplb_outcome_fini(&out);
        routing_synth_free(gate);
        placement_free(w.current);
    }
}

/* Each part of the window has one busy expert, as if a text of its own: even in the long run. */
static void
draw_texts(world *w, uint64_t *parts, uint32_t part_count, uint32_t rows)
{
    const uint32_t n = w->layers * w->experts;
    memset(w->rows, 0, sizeof w->rows);
    for (uint32_t p = 0; p < part_count; p++) {
        for (uint32_t i = 0; i < n; i++)
            parts[p * n + i] = rows;
        for (uint32_t l = 0; l < w->layers; l++)
            parts[p * n + l * w->experts + below(w->experts)] += 3 * rows;
        for (uint32_t i = 0; i < n; i++)
            w->rows[i] += parts[p * n + i];
    }
}

Test(eplb_policy, adopts_nothing_for_texts_that_come_and_go)
{
    uint32_t misled = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        world w;
        uint64_t parts[8 * LAYERS * EXPERTS];
        rng = seed;
        world_init(&w, LAYERS, 16, 4, 4 + below(2));
        draw_texts(&w, parts, 8, 1000);
        w.in.costs = eplb_default_costs();
        w.in.costs.interval_steps = 3000;
        w.in.part_rows = parts;
        w.in.part_count = 8;
        eplb_outcome out = decide(&w.in);
        cr_expect_null(out.next, "seed %lu: %s", (unsigned long)seed, out.text);
        eplb_outcome_fini(&out);
        w.in.part_count = 0; /* what would be believed without the parts */
        out = decide(&w.in);
        misled += out.next != NULL;
        eplb_outcome_fini(&out);
        placement_free(w.current);
    }
    cr_expect_gt(misled, 100, "the load is even as it is: %u", misled);
}

/* 8 experts on 4 workers; experts 0 and 1, on worker 0, have all the weight. */
static void
skewed(world *w, uint32_t layers, uint32_t slots)
{
    world_init(w, layers, 8, 4, slots);
    for (uint32_t i = 0; i < layers * 8; i++)
        w->rows[i] = i < 2 ? 40000 : 10000;
    w->in.costs = eplb_default_costs();
    w->in.costs.interval_steps = 100;
}

Test(eplb_policy, exchanges_experts_when_there_are_no_spare_slots)
{
    world w;
    skewed(&w, 1, 2);
    eplb_outcome out = decide(&w.in);
    cr_assert_eq(out.verdict, EPLB_ADOPTED, "%s", out.text);
    cr_expect_eq(out.move_count, 2);
    cr_expect_float_eq(out.balancedness_before, 35000.0 / 80000, 1e-9);
    cr_expect_float_eq(out.balancedness_after, 35000.0 / 50000, 1e-9);
    eplb_outcome_fini(&out);
    placement_free(w.current);
}

Test(eplb_policy, weighs_the_gain_against_the_bytes)
{
    world w;
    skewed(&w, 1, 3);
    /* The gain is about 45,000 rows of 1 us. */
    w.in.costs.bytes_per_expert = 1e6; /* 1 ms each */
    eplb_outcome out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_ADOPTED, "%s", out.text);
    cr_expect_gt(out.gain_ns, 1.5 * out.cost_ns);
    cr_expect_eq(out.move_bytes, (double)out.move_count * 1e6);
    eplb_outcome_fini(&out);

    w.in.costs.bytes_per_expert = 1e8;
    out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_TOO_DEAR, "%s", out.text);
    cr_expect_null(out.next);
    cr_expect(out.gain_ns > 0 && out.cost_ns > out.gain_ns);
    cr_expect_eq(out.balancedness_after, out.balancedness_before);
    eplb_outcome_fini(&out);

    /* The price is right, but the interval ends before the bytes are there. */
    w.in.costs.bytes_per_expert = 1e6;
    w.in.costs.step_ns = 50000;
    out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_TOO_DEAR, "%s", out.text);
    eplb_outcome_fini(&out);
    placement_free(w.current);
}

Test(eplb_policy, changes_only_the_layers_that_gain)
{
    world w;
    skewed(&w, 2, 3);
    eplb_outcome out = decide(&w.in);
    cr_assert_eq(out.verdict, EPLB_ADOPTED, "%s", out.text);
    cr_expect_eq(out.layers_changed, 1);
    cr_expect_arr_eq(placement_layer_slots(out.next, 1), placement_layer_slots(w.current, 1),
                     12 * sizeof(uint32_t));
    eplb_outcome_fini(&out);
    placement_free(w.current);
}

Test(eplb_policy, an_adopted_placement_is_left_alone_under_the_same_load)
{
    for (uint64_t seed = 0; seed < 100; seed++) {
        world w;
        rng = seed;
        world_init(&w, LAYERS, 64, 8, 9);
        for (uint32_t i = 0; i < LAYERS * 64; i++)
            w.rows[i] = 1000000 / (1 + below(64));
        w.in.costs = eplb_default_costs();
        w.in.costs.bytes_per_expert = 1e6;
        eplb_outcome first = decide(&w.in);
        cr_assert_eq(first.verdict, EPLB_ADOPTED, "%s", first.text);
        placement_free(w.current);
        w.in.current = w.current = first.next;
        eplb_outcome second = decide(&w.in);
        cr_expect_null(second.next, "seed %lu: %s", (unsigned long)seed, second.text);
        /* One expert becomes hot: few others move. */
        w.rows[5] = w.rows[3] * 2;
        eplb_outcome third = decide(&w.in);
        cr_expect_leq(third.move_count, 20, "seed %lu: %s", (unsigned long)seed, third.text);
        eplb_outcome_fini(&second);
        eplb_outcome_fini(&third);
        placement_free(w.current);
    }
}

Test(eplb_policy, gives_a_faster_worker_more_rows)
{
    world w;
    double rows[2];
    world_init(&w, 1, 12, 2, 12);
    for (uint32_t e = 0; e < 12; e++)
        w.rows[e] = 1000;
    w.speeds[1] = 3;
    eplb_outcome out = decide(&w.in);
    cr_assert_eq(out.verdict, EPLB_ADOPTED);
    placement_worker_rows(out.next, 0, w.rows, rows);
    cr_expect_float_eq(rows[0], 3000, 40);
    cr_expect_float_eq(rows[1], 9000, 40);
    cr_expect(out.next->speeds[0] == PLACEMENT_SPEED_ONE &&
                  out.next->speeds[1] == 3 * PLACEMENT_SPEED_ONE,
              "routers split rows by it");
    eplb_outcome_fini(&out);
    placement_free(w.current);
}

Test(eplb_policy, a_drained_worker_gives_its_experts_away_whatever_it_costs)
{
    world w;
    skewed(&w, 2, 3);
    memset(w.rows, 0, sizeof w.rows);
    w.in.costs.bytes_per_expert = 1e12;
    w.slots[2] = 0;
    eplb_outcome out = decide(&w.in);
    cr_assert_eq(out.verdict, EPLB_REPAIRED, "%s", out.text);
    cr_expect_eq(placement_check(out.next, true, NULL), MOE_OK);
    cr_expect_eq(out.move_count, 4, "two experts in each of two layers");
    eplb_outcome_fini(&out);

    /* New workers change nothing unless that pays. */
    w.slots[2] = w.slots[4] = 3;
    w.speeds[4] = 1;
    w.in.worker_count = 5;
    out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_NO_LOAD, "%s", out.text);
    eplb_outcome_fini(&out);
    placement_free(w.current);
}

Test(eplb_policy, deepseek_adopts_what_differs_and_says_when_nothing_does)
{
    world w;
    skewed(&w, 2, 3);
    w.in.policy = EPLB_DEEPSEEK;
    w.in.costs.bytes_per_expert = 1e12;
    eplb_outcome out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_ADOPTED, "%s", out.text);
    cr_expect_eq(placement_check(out.next, false, NULL), MOE_OK);
    placement_free(w.current);
    w.in.current = w.current = out.next;
    out = decide(&w.in);
    cr_expect_eq(out.verdict, EPLB_UNCHANGED, "%s", out.text);
    cr_expect_null(out.next);
    w.slots[1] = 4;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_EINVAL);
    placement_free(w.current);
}

Test(eplb_policy, refuses_what_is_no_fleet)
{
    world w;
    eplb_outcome out;
    skewed(&w, 1, 2);
    w.speeds[3] = 0;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_EINVAL);
    w.speeds[3] = NAN;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_EINVAL);
    w.speeds[3] = 1;
    w.in.num_nodes = 0;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_ERANGE);
    w.in.num_nodes = 1;
    w.slots[3] = 1;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_ERANGE);
    w.in.worker_count = 0;
    cr_expect_eq(eplb_decide(&w.in, &out, NULL), MOE_ERANGE);
    placement_free(w.current);
}

Test(eplb_policy, slots_are_dealt_out_as_the_policy_wants_them)
{
    errbuf eb;
    uint32_t slots[4];
    const uint32_t roomy[] = {9, 9, 9, 9}, mixed[] = {2, 9, 0, 9}, small[] = {1, 2, 0, 2};
    cr_assert_eq(eplb_slot_counts(EPLB_CONCLAVE, 2, 8, 2, 4, roomy, 0, slots, &eb), MOE_OK);
    cr_expect_arr_eq(slots, ((uint32_t[]){3, 3, 2, 2}), sizeof slots);
    cr_expect_str_eq(eb.text, "");
    cr_assert_eq(eplb_slot_counts(EPLB_DEEPSEEK, 2, 8, 2, 4, roomy, 0, slots, &eb), MOE_OK);
    cr_expect_arr_eq(slots, ((uint32_t[]){3, 3, 3, 3}), sizeof slots);
    cr_expect_str_eq(eb.text, "10 slots were rounded up to 12, a multiple of the workers");
    cr_assert_eq(eplb_slot_counts(EPLB_CONCLAVE, 2, 8, 2, 4, mixed, 0, slots, &eb), MOE_OK);
    cr_expect_arr_eq(slots, ((uint32_t[]){2, 4, 0, 4}), sizeof slots);
    /* More slots than experts on a worker are of no use. */
    cr_assert_eq(eplb_slot_counts(EPLB_CONCLAVE, 2, 3, 20, 4, roomy, 0, slots, &eb), MOE_OK);
    cr_expect_arr_eq(slots, ((uint32_t[]){3, 3, 3, 3}), sizeof slots);
    cr_expect_str_eq(eb.text, "only 12 of 23 slots are of use or have memory");
    cr_expect_eq(eplb_slot_counts(EPLB_CONCLAVE, 2, 8, 2, 4, small, 1000, slots, &eb), MOE_ENOMEM);
    cr_expect_str_eq(eb.text,
                     "the workers' memory is short of 3 slots in each of 2 layers (6000 bytes)");
    cr_expect_eq(eplb_slot_counts(EPLB_DEEPSEEK, 2, 8, 2, 4, mixed, 1000, slots, &eb), MOE_ENOMEM);
    cr_expect_eq(eplb_slot_counts(EPLB_CONCLAVE, 2, 8, UINT32_MAX, 4, roomy, 0, slots, &eb),
                 MOE_ERANGE);
}

Test(eplb_policy, names_are_what_users_write)
{
    eplb_policy p;
    cr_expect(eplb_policy_parse("deepseek", &p) && p == EPLB_DEEPSEEK);
    cr_expect(eplb_policy_parse("conclave", &p) && p == EPLB_CONCLAVE);
    cr_expect_not(eplb_policy_parse("Conclave", &p));
    cr_expect_str_eq(eplb_policy_name(EPLB_DEEPSEEK), "deepseek");
    cr_expect_str_eq(eplb_verdict_name(EPLB_TOO_DEAR), "too_dear");
}
