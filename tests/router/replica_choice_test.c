/* replica_choice: cases worked by hand; every row is assigned once, to a host; how far from the
 * best possible split the result is; and that a dispatch plan takes what comes out. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/replica_choice.h"

#define WORKERS 8
#define EXPERTS 24

TestSuite(replica_choice, .timeout = 60);

/* slots: workers one after the other, all of equal length. */
static placement *
place(uint32_t experts, uint32_t workers, uint32_t per_worker, const uint32_t *slots)
{
    uint32_t counts[WORKERS];
    placement *p;
    for (uint32_t w = 0; w < workers; w++)
        counts[w] = per_worker;
    cr_assert_eq(placement_create(&p, 1, experts, workers, counts, NULL), MOE_OK);
    memcpy(p->slots, slots, workers * per_worker * sizeof *slots);
    placement_index(p);
    placement_set_even_shares(p);
    return p;
}

static replica_choice *
make(uint32_t run_min)
{
    replica_choice *c;
    cr_assert_eq(replica_choice_create(&c, EXPERTS, WORKERS, 128, run_min), MOE_OK);
    return c;
}

static void
expect_runs(const dispatch_split *split, uint32_t expert, const dispatch_run *want, uint32_t count)
{
    const uint32_t first = split->run_first[expert];
    cr_assert_eq(split->run_first[expert + 1] - first, count, "expert %u", expert);
    for (uint32_t i = 0; i < count; i++) {
        const dispatch_run *got = &split->runs[first + i];
        cr_expect(got->worker == want[i].worker && got->row_count == want[i].row_count,
                  "expert %u run %u: %u rows to %u", expert, i, got->row_count, got->worker);
    }
}

/* Expert 0 on all of three workers, experts 1, 2, 3 on one each. */
static const uint32_t shared[] = {0, 1, 0, 2, 0, 3};

Test(replica_choice, fills_the_workers_up_to_one_level)
{
    placement *p = place(4, 3, 2, shared);
    replica_choice *c = make(1);
    uint64_t rows[3] = {0};
    dispatch_split s = replica_choice_run(c, p, 0, (uint32_t[]){10, 2, 9, 4}, NULL, rows);
    /* 2, 9, 4 and ten more: 8, 9, 8. */
    expect_runs(&s, 0, (dispatch_run[]){{0, 6}, {1, 0}, {2, 4}}, 3);
    expect_runs(&s, 2, (dispatch_run[]){{1, 9}}, 1);
    cr_expect(rows[0] == 8 && rows[1] == 9 && rows[2] == 8);

    /* What workers have already counts; what division drops goes to the first. */
    memcpy(rows, (uint64_t[]){6, 0, 0}, sizeof rows);
    s = replica_choice_run(c, p, 0, (uint32_t[]){11, 0, 0, 0}, NULL, rows);
    expect_runs(&s, 0, (dispatch_run[]){{0, 0}, {1, 6}, {2, 5}}, 3);
    expect_runs(&s, 1, NULL, 0);
    replica_choice_free(c);
    placement_free(p);
}

Test(replica_choice, gives_faster_workers_more)
{
    placement *p = place(4, 3, 2, shared);
    replica_choice *c = make(1);
    uint64_t rows[3] = {0};
    const dispatch_split s =
        replica_choice_run(c, p, 0, (uint32_t[]){40, 0, 0, 10}, (uint32_t[]){1, 3, 1}, rows);
    expect_runs(&s, 0, (dispatch_run[]){{0, 10}, {1, 30}, {2, 0}}, 3);
    replica_choice_free(c);
    placement_free(p);
}

Test(replica_choice, cuts_no_run_shorter_than_the_least)
{
    placement *p = place(4, 3, 2, shared);
    replica_choice *c = make(4);
    uint64_t rows[3] = {0};
    dispatch_split s = replica_choice_run(c, p, 0, (uint32_t[]){9, 0, 0, 0}, NULL, rows);
    expect_runs(&s, 0, (dispatch_run[]){{0, 5}, {1, 4}, {2, 0}}, 3);
    memset(rows, 0, sizeof rows);
    s = replica_choice_run(c, p, 0, (uint32_t[]){3, 1, 0, 0}, NULL, rows);
    expect_runs(&s, 0, (dispatch_run[]){{0, 0}, {1, 3}, {2, 0}}, 3);
    replica_choice_free(c);
    placement_free(p);
}

/* Experts 0 .. 7 on workers e and e + 1: only the chain lets rows get from one end to the other. */
Test(replica_choice, moves_rows_along_chains)
{
    const uint32_t slots[] = {0, 7, 1, 0, 2, 1, 3, 2, 4, 3, 5, 4, 6, 5, 7, 6};
    placement *p = place(8, 8, 2, slots);
    replica_choice *c = make(1);
    uint64_t rows[8] = {0};
    replica_choice_run(c, p, 0, (uint32_t[]){160, 80, 80, 80, 80, 80, 80, 0}, NULL, rows);
    for (uint32_t w = 0; w < 8; w++)
        cr_expect(rows[w] >= 60 && rows[w] <= 100, "worker %u: %lu", w, (unsigned long)rows[w]);
    replica_choice_free(c);
    placement_free(p);
}

typedef struct instance {
    placement *p;
    uint32_t counts[EXPERTS];
    uint32_t total;
} instance;

/* Every expert somewhere, every worker with two slots for replicas; loads fall like 1 / rank. */
static instance
draw(uint64_t seed)
{
    instance in = {0};
    uint32_t slots[WORKERS * 5];
    for (uint32_t w = 0; w < WORKERS; w++) {
        for (uint32_t i = 0; i < 3; i++)
            slots[w * 5 + i] = w * 3 + i;
        for (uint32_t i = 3; i < 5; i++) {
            const uint32_t e = (uint32_t)(hash_combine(seed, w * 5 + i) % EXPERTS);
            slots[w * 5 + i] =
                e / 3 == w || (i == 4 && e == slots[w * 5 + 3]) ? PLACEMENT_EMPTY : e;
        }
    }
    in.p = place(EXPERTS, WORKERS, 5, slots);
    for (uint32_t e = 0; e < EXPERTS; e++) {
        in.counts[e] = (uint32_t)(hash_combine(seed, 100 + e) % (600 / (e + 1) + 1));
        in.total += in.counts[e];
    }
    return in;
}

/* The smallest possible maximum, times 1 + 1e-6: rows as fractions, refilled until nothing moves.
 */
static double
best_maximum(const instance *in)
{
    double rows[WORKERS] = {0}, part[EXPERTS][WORKERS] = {{0}};
    for (uint32_t pass = 0; pass < 400; pass++) {
        for (uint32_t e = 0; e < EXPERTS; e++) {
            uint32_t n;
            const uint32_t *hosts = placement_hosts(in->p, 0, e, &n);
            double level = 0;
            for (uint32_t i = 0; i < n; i++)
                rows[hosts[i]] -= part[e][hosts[i]];
            /* The level is the largest of those of the k lowest hosts that lie above them. */
            double low = 0, high = 1e9;
            for (uint32_t bit = 0; bit < 60; bit++) {
                double poured = 0;
                level = (low + high) / 2;
                for (uint32_t i = 0; i < n; i++)
                    if (rows[hosts[i]] < level) poured += level - rows[hosts[i]];
                if (poured > in->counts[e])
                    high = level;
                else
                    low = level;
            }
            for (uint32_t i = 0; i < n; i++) {
                const double has = rows[hosts[i]];
                part[e][hosts[i]] = has < level ? level - has : 0;
                rows[hosts[i]] += part[e][hosts[i]];
            }
        }
    }
    double most = 0;
    for (uint32_t w = 0; w < WORKERS; w++)
        if (rows[w] > most) most = rows[w];
    return most;
}

static void
check_split(const instance *in, const dispatch_split *split, const uint64_t *rows)
{
    uint64_t sums[WORKERS] = {0};
    for (uint32_t e = 0; e < EXPERTS; e++) {
        uint32_t sum = 0;
        for (uint32_t r = split->run_first[e]; r < split->run_first[e + 1]; r++) {
            const dispatch_run *run = &split->runs[r];
            cr_assert(placement_is_host(in->p, 0, e, run->worker));
            sum += run->row_count;
            sums[run->worker] += run->row_count;
        }
        cr_assert_eq(sum, in->counts[e]);
    }
    cr_assert_arr_eq(sums, rows, sizeof sums);
}

Test(replica_choice, assigns_every_row_to_a_host_and_comes_close_to_the_best)
{
    double excess = 0, worst = 0;
    const uint32_t instances = 200;
    replica_choice *c = make(1);
    for (uint64_t seed = 0; seed < instances; seed++) {
        instance in = draw(seed);
        uint64_t rows[WORKERS] = {0}, again[WORKERS] = {0};
        dispatch_split split = replica_choice_run(c, in.p, 0, in.counts, NULL, rows);
        check_split(&in, &split, rows);
        replica_choice_run(c, in.p, 0, in.counts, NULL, again);
        cr_assert_arr_eq(rows, again, sizeof rows, "the same step, another choice");

        uint64_t most = 0;
        for (uint32_t w = 0; w < WORKERS; w++)
            if (rows[w] > most) most = rows[w];
        const double over = (double)most / best_maximum(&in) - 1;
        excess += over / instances;
        if (over > worst) worst = over;
        placement_free(in.p);
    }
    cr_log_info("above the best maximum: %.3f %% on average, %.2f %% at worst", 100 * excess,
                100 * worst);
    cr_expect_lt(excess, 0.0025);
    replica_choice_free(c);
}

/* A choice goes into a plan as it is, and no row is lost. */
Test(replica_choice, a_dispatch_plan_takes_the_choice)
{
    const exchange_limits l = {.micro_batch_max = 1,
                               .token_max = 64,
                               .num_layers = 1,
                               .num_experts = EXPERTS,
                               .top_k = 2,
                               .hidden = 64,
                               .dtype = DTYPE_F32};
    dispatch_plan *plan;
    uint32_t ids[128], counts[EXPERTS];
    replica_choice *c = make(2);
    cr_assert_eq(dispatch_plan_create(&plan, &l, WORKERS), MOE_OK);
    for (uint64_t seed = 0; seed < 50; seed++) {
        instance in = draw(seed);
        for (uint32_t t = 0; t < 64; t++) {
            ids[2 * t] = (uint32_t)(hash_combine(seed, t) % 6);
            ids[2 * t + 1] = 6 + (uint32_t)(hash_combine(seed, 64 + t) % (EXPERTS - 6));
        }
        uint64_t rows[WORKERS] = {0};
        cr_assert_eq(dispatch_plan_count(plan, ids, 64, counts), MOE_OK);
        const dispatch_split split = replica_choice_run(c, in.p, 0, counts, NULL, rows);
        cr_assert_eq(dispatch_plan_build_split(plan, &split, WORKERS, ids, 64), MOE_OK);
        for (uint32_t w = 0; w < WORKERS; w++)
            cr_assert_eq(dispatch_plan_list(plan, w).row_count, rows[w]);
        placement_free(in.p);
    }
    dispatch_plan_free(plan);
    replica_choice_free(c);
}

Test(replica_choice, create_refuses_sizes_that_are_none)
{
    replica_choice *c = (replica_choice *)shared;
    cr_expect_eq(replica_choice_create(&c, 0, 1, 1, 1), MOE_ERANGE);
    cr_expect_null(c);
    cr_expect_eq(replica_choice_create(&c, 1, 0, 1, 1), MOE_ERANGE);
    cr_expect_eq(replica_choice_create(&c, 1, 1, 0, 1), MOE_ERANGE);
    cr_expect_eq(replica_choice_create(&c, 1, 1, 1, 0), MOE_ERANGE);
    replica_choice_free(NULL);
}
