/* placement: the linear start, what check() refuses, loads and balancedness by hand, and the
 * difference of two placements, also of fleets of different sizes. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/placement.h"

TestSuite(placement, .timeout = 60);

static placement *
make(uint32_t layers, uint32_t experts, uint32_t workers, const uint32_t *slot_counts)
{
    placement *p = NULL;
    errbuf eb;
    cr_assert_eq(placement_create(&p, layers, experts, workers, slot_counts, &eb), MOE_OK, "%s",
                 eb.text);
    return p;
}

Test(placement, linear_gives_equal_runs_and_leaves_the_rest_empty)
{
    for (uint32_t workers = 1; workers <= 9; workers++) {
        for (uint32_t experts = 1; experts <= 20; experts++) {
            uint32_t counts[9];
            for (uint32_t w = 0; w < workers; w++)
                counts[w] = (experts + workers - 1) / workers + 1;
            placement *p = make(2, experts, workers, counts);
            cr_assert_eq(placement_set_linear(p, NULL), MOE_OK);
            cr_assert_eq(placement_check(p, true, NULL), MOE_OK);
            for (uint32_t e = 0; e < experts; e++) {
                uint32_t n;
                cr_assert_eq(placement_hosts(p, 1, e, &n)[0], e * workers / experts);
                cr_assert_eq(n, 1);
            }
            placement_free(p);
        }
    }
}

Test(placement, linear_keeps_unequal_capacities)
{
    errbuf eb;
    for (uint64_t seed = 0; seed < 300; seed++) {
        uint32_t counts[7], sum = 0;
        for (uint32_t w = 0; w < 7; w++)
            sum += counts[w] = (uint32_t)(hash_combine(seed, w) % 6);
        if (sum == 0) continue;
        placement *p = make(1, sum, 7, counts); /* every slot is needed */
        cr_assert_eq(placement_set_linear(p, NULL), MOE_OK);
        cr_assert_eq(placement_check(p, true, &eb), MOE_OK, "%s", eb.text);
        placement_free(p);
        p = make(1, sum + 1, 7, counts);
        cr_assert_eq(placement_set_linear(p, &eb), MOE_ERANGE);
        placement_free(p);
    }
}

Test(placement, spare_slots_are_filled_with_replicas_of_the_neighbours)
{
    placement *p = make(1, 4, 2, (uint32_t[]){3, 4});
    cr_assert_eq(placement_set_linear(p, NULL), MOE_OK);
    placement_fill_spare(p);
    cr_expect_arr_eq(p->slots, ((uint32_t[]){0, 1, 2, 2, 3, 0, 1}), 7 * sizeof(uint32_t));
    cr_expect_eq(placement_check(p, true, NULL), MOE_OK);
    placement_free(p);

    errbuf eb;
    for (uint64_t seed = 0; seed < 300; seed++) {
        uint32_t counts[5], sum = 0;
        for (uint32_t w = 0; w < 5; w++)
            sum += counts[w] = (uint32_t)(hash_combine(seed, w) % 9);
        if (sum < 7) continue;
        p = make(2, 7, 5, counts);
        cr_assert_eq(placement_set_linear(p, NULL), MOE_OK);
        placement_fill_spare(p);
        cr_assert_eq(placement_check(p, true, &eb), MOE_OK, "%s", eb.text);
        for (uint32_t w = 0; w < 5; w++) { /* empty only where nothing is left to take */
            uint32_t hosted = 0;
            for (uint32_t e = 0; e < 7; e++)
                hosted += placement_is_host(p, 1, e, w);
            cr_assert_eq(hosted, counts[w] < 7 ? counts[w] : 7);
        }
        placement_free(p);
    }
}

Test(placement, create_refuses_sizes_that_are_none)
{
    const uint32_t counts[] = {1, PLACEMENT_SLOT_MAX};
    placement *p;
    cr_expect_eq(placement_create(&p, 0, 1, 1, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, PLACEMENT_LAYER_MAX + 1, 1, 1, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, 1, 0, 1, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, 1, PLACEMENT_EXPERT_MAX + 1, 1, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, 1, 1, 0, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, 1, 1, PLACEMENT_WORKER_MAX + 1, counts, NULL), MOE_ERANGE);
    cr_expect_eq(placement_create(&p, 1, 1, 2, counts, NULL), MOE_ERANGE);
    cr_expect_null(p);
    placement_free(NULL);
}

/* Two workers of three slots; expert 0 on both, expert 1 twice on worker 1. */
static placement *
by_hand(void)
{
    static const uint32_t slots[] = {0, 2, PLACEMENT_EMPTY, 1, 0, 1};
    placement *p = make(1, 3, 2, (uint32_t[]){3, 3});
    memcpy(p->slots, slots, sizeof slots);
    placement_index(p);
    placement_set_even_shares(p);
    return p;
}

Test(placement, lists_hosts_once_and_rising)
{
    placement *p = by_hand();
    uint32_t n;
    const uint32_t *hosts = placement_hosts(p, 0, 0, &n);
    cr_expect(n == 2 && hosts[0] == 0 && hosts[1] == 1);
    hosts = placement_hosts(p, 0, 1, &n);
    cr_expect(n == 1 && hosts[0] == 1);
    hosts = placement_hosts(p, 0, 2, &n);
    cr_expect(n == 1 && hosts[0] == 0);
    cr_expect(placement_is_host(p, 0, 1, 1) && !placement_is_host(p, 0, 1, 0));
    cr_expect_not(placement_is_host(p, 0, 1, 2));

    placement *c = NULL;
    cr_assert_eq(placement_clone(&c, p, NULL), MOE_OK);
    p->slots[1] = p->slots[3] = p->slots[5] = PLACEMENT_EMPTY;
    placement_index(p);
    placement_hosts(p, 0, 1, &n);
    cr_expect_eq(n, 0);
    cr_expect_eq(placement_check(c, false, NULL), MOE_OK, "a clone changed with its original");
    placement_free(c);
    placement_free(p);
}

Test(placement, check_names_what_is_wrong)
{
    errbuf eb;
    placement *p = by_hand();
    cr_expect_eq(placement_check(p, false, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(placement_check(p, true, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "layer 0: worker 1 has expert 1 twice");
    p->slots[1] = PLACEMENT_EMPTY;
    cr_expect_eq(placement_check(p, false, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "layer 0: expert 2 is on no worker");
    p->slots[1] = 3;
    cr_expect_eq(placement_check(p, false, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "layer 0 worker 0: there is no expert 3");
    p->slots[1] = 2;
    p->shares[0] = 0.75f;
    cr_expect_eq(placement_check(p, false, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "layer 0 expert 0: shares add up to 1.25");
    p->shares[0] = 1.5f;
    p->shares[4] = -0.5f;
    cr_expect_eq(placement_check(p, false, &eb), MOE_EINVAL);
    placement_free(p);
}

/* Worker 0: 10/2 + 4 = 9 rows, worker 1: 10/2 + 6 = 11. */
Test(placement, balancedness_is_mean_over_most)
{
    placement *p = by_hand();
    const uint64_t rows[] = {10, 6, 4}, none[] = {0, 0, 0};
    double out[2];
    placement_worker_rows(p, 0, rows, out);
    cr_expect(out[0] == 9 && out[1] == 11);
    cr_expect_eq(placement_balancedness(p, rows, NULL, out), 10.0 / 11);
    cr_expect_eq(placement_balancedness(p, none, NULL, out), 1);
    /* Speeds 1 and 3: times 9 and 11/3, the ideal is 20/4. */
    const double speeds[] = {1, 3};
    cr_expect_eq(placement_balancedness(p, rows, speeds, out), 5.0 / 9);
    placement_free(p);
}

Test(placement, balancedness_sums_over_layers)
{
    placement *p = make(2, 2, 2, (uint32_t[]){1, 1});
    const uint64_t rows[] = {30, 10, 5, 5};
    double out[2];
    cr_assert_eq(placement_set_linear(p, NULL), MOE_OK);
    cr_expect_eq(placement_balancedness(p, rows, NULL, out), (20.0 + 5) / (30 + 5));
    placement_free(p);
}

Test(placement, the_difference_is_what_workers_load_and_let_go)
{
    static const uint32_t slots[] = {2, 0, 1, PLACEMENT_EMPTY, 1, 2, 0};
    placement *from = by_hand(), *to = make(1, 3, 3, (uint32_t[]){4, 1, 2});
    placement_diff d;
    errbuf eb;
    memcpy(to->slots, slots, sizeof slots);
    placement_index(to);

    cr_assert_eq(placement_diff_init(&d, from, to, &eb), MOE_OK);
    const placement_change moves[] = {{0, 1, 0}, {0, 2, 2}, {0, 0, 2}}, drops[] = {{0, 0, 1}};
    cr_assert_eq(d.move_count, 3);
    cr_assert_eq(d.drop_count, 1);
    cr_expect_arr_eq(d.moves, moves, sizeof moves);
    cr_expect_arr_eq(d.drops, drops, sizeof drops);
    placement_diff_fini(&d);

    /* The other way round the two lists change places. */
    cr_assert_eq(placement_diff_init(&d, to, from, &eb), MOE_OK);
    cr_expect(d.move_count == 1 && d.drop_count == 3);
    placement_diff_fini(&d);
    cr_assert_eq(placement_diff_init(&d, to, to, &eb), MOE_OK);
    cr_expect(d.move_count == 0 && d.drop_count == 0);
    placement_diff_fini(&d);

    placement *other = make(2, 3, 2, (uint32_t[]){3, 3});
    cr_expect_eq(placement_diff_init(&d, from, other, &eb), MOE_EINVAL);
    placement_free(other);
    placement_free(from);
    placement_free(to);
}
