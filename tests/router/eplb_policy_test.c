/* eplb_policy: what every placement of `conclave` promises, on random instances, against DeepSeek's
 * on the same slots; when nothing is adopted; workers that come, go, and differ. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/eplb_policy.h"
#include "router/replica_choice.h"
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
        cr_assert_eq(out->next->slot_first[i + 1] - out->next->slot_first[i],
                     w->in.slot_counts[i]);
    const double balance =
        placement_balancedness(out->next, w->rows, w->in.speeds, scratch);
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
            const uint64_t kinds[] = {100000 / (e + 1), 1000, e == hot ? 5000 : 0, 0,
                                      below(4), below(100000), 1u << below(20)};
            w->rows[l * w->experts + (e * 7 + hot) % w->experts] = 0;
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

        const eplb_outcome ours = decide(&w.in);
        check_valid(&w, &ours, "seed", seed);
        w.in.policy = EPLB_DEEPSEEK;
        const eplb_outcome theirs = decide(&w.in);
        cr_assert(ours.balancedness_after >= theirs.balancedness_after - 1e-6,
                  "seed %lu: %u experts, %u workers, %u slots: %.6f < %.6f", (unsigned long)seed,
                  experts, workers, slots, ours.balancedness_after, theirs.balancedness_after);
        cr_assert(ours.balancedness_after >= ours.balancedness_before);
        better += ours.balancedness_after > theirs.balancedness_after + 1e-6;
        eplb_outcome ours_again = ours, theirs_again = theirs;
        eplb_outcome_fini(&ours_again);
        eplb_outcome_fini(&theirs_again);
        placement_free(w.current);
    }
    cr_log_info("better than deepseek in %u of 10000", better);
}
