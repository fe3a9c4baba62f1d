/* router_choice: each rule on a case worked by hand, and what must hold of any options. */
#include <criterion/criterion.h>

#include "common/hash.h"
#include "frontend/router_choice.h"

TestSuite(router_choice, .timeout = 30);

#define CHOOSE(...)                                                                                \
    router_choice((const router_option[]){__VA_ARGS__},                                            \
                  sizeof((const router_option[]){__VA_ARGS__}) / sizeof(router_option))
#define AT(load_, cached_)                                                                         \
    (router_option)                                                                                \
    {                                                                                              \
        .room = true, .blocks = true, .load = (load_), .cached_tokens = (cached_), .capacity = 16  \
    }
#define FULL(cached_)                                                                              \
    (router_option)                                                                                \
    {                                                                                              \
        .cached_tokens = (cached_), .capacity = 16                                                 \
    }

Test(router_choice, the_least_loaded_wins_without_a_prefix_and_the_first_among_equals)
{
    cr_expect_eq(CHOOSE(AT(3, 0), AT(1, 0), AT(2, 0)), 1);
    cr_expect_eq(CHOOSE(AT(2, 0), AT(2, 0), AT(2, 0)), 0);
    cr_expect_eq(CHOOSE(FULL(0), AT(9, 0), AT(9, 0)), 1);
}

Test(router_choice, the_longest_prefix_wins_among_loads_that_are_not_far_apart)
{
    cr_expect_eq(CHOOSE(AT(0, 16), AT(4, 32), AT(4, 48)), 2);
    cr_expect_eq(CHOOSE(AT(4, 32), AT(1, 32)), 1, "of equal prefixes the lesser load");
    cr_expect_eq(CHOOSE(AT(1, 32), AT(1, 32)), 0);
}

Test(router_choice, a_load_far_above_the_least_costs_the_prefix_its_turn)
{
    cr_expect_eq(CHOOSE(AT(0, 0), AT(4, 640)), 1);
    cr_expect_eq(CHOOSE(AT(0, 0), AT(5, 640)), 0, "more than a quarter of the capacity above");
    cr_expect_eq(CHOOSE(AT(0, 0), AT(5, 640), AT(2, 16)), 2, "the next best prefix");
    const router_option small[] = {
        {.room = true, .blocks = true, .load = 0, .capacity = 2},
        {.room = true, .blocks = true, .load = 1, .cached_tokens = 8, .capacity = 2}};
    cr_expect_eq(router_choice(small, 2), 1, "one sequence is never far");
}

Test(router_choice, loads_are_parts_of_capacities)
{
    const router_option uneven[] = {{.room = true, .blocks = true, .load = 2, .capacity = 3},
                                    {.room = true, .blocks = true, .load = 2, .capacity = 4}};
    cr_expect_eq(router_choice(uneven, 2), 1);
}

Test(router_choice, blocks_come_first_and_nobody_is_chosen_to_wait_where_another_may_be_sooner)
{
    router_option some[] = {AT(0, 640), AT(9, 0), AT(1, 640)};
    some[0].blocks = some[2].blocks = false;
    cr_expect_eq(router_choice(some, 3), 1);
    some[1].blocks = false;
    cr_expect_eq(router_choice(some, 3), ROUTER_CHOICE_NONE);
    some[0].room = some[1].room = false;
    cr_expect_eq(router_choice(some, 3), 2, "there is no other to wait for");
}

Test(router_choice, none_is_chosen_without_room)
{
    cr_expect_eq(CHOOSE(FULL(640), FULL(0)), ROUTER_CHOICE_NONE);
    cr_expect_eq(router_choice(NULL, 0), ROUTER_CHOICE_NONE);
    cr_expect_eq(CHOOSE(FULL(640), AT(15, 0)), 1);
}

/* Whoever is chosen has room, and nobody with room has both a longer prefix and no more load, or no
 * shorter a prefix and less load. */
Test(router_choice, nobody_is_better_in_both)
{
    for (uint64_t round = 0; round < 20000; round++) {
        router_option options[8];
        const uint32_t count = 1 + (uint32_t)(hash_combine(round, 0) % 8);
        bool any = false;
        uint32_t rooms = 0;
        for (uint32_t i = 0; i < count; i++) {
            const uint64_t draw = hash_combine(round, i + 1);
            options[i] = (router_option){.room = draw % 4 != 0,
                                         .blocks = draw % 3 != 0,
                                         .load = (uint32_t)(draw >> 8) % 20,
                                         .cached_tokens = (uint32_t)(draw >> 16) % 4 * 16,
                                         .capacity = 20};
            rooms += options[i].room;
            any = any || (options[i].room && options[i].blocks);
        }
        any = any || rooms == 1;
        const uint32_t best = router_choice(options, count);
        cr_assert_eq(best == ROUTER_CHOICE_NONE, !any);
        if (!any) continue;
        cr_assert(best < count && options[best].room);
        for (uint32_t i = 0; i < count; i++) {
            const router_option *o = &options[i], *b = &options[best];
            cr_assert(!o->room || b->blocks || !o->blocks);
            if (!o->room || o->blocks != b->blocks) continue;
            cr_assert(!(o->cached_tokens > b->cached_tokens && o->load <= b->load));
            cr_assert(!(o->cached_tokens >= b->cached_tokens && o->load < b->load));
        }
    }
}
