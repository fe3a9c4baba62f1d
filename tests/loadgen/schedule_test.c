/* schedule: requests come out in the order of their times, whenever those become known. */
#include <stddef.h>

#include <criterion/criterion.h>

#include "loadgen/rng.h"
#include "loadgen/schedule.h"

TestSuite(schedule, .timeout = 10);

#define COUNT 400

static prompt prompts[COUNT];
static uint64_t arrivals_ns[COUNT];

Test(schedule, turns_come_out_by_their_time_between_the_arrivals)
{
    prompts[1].turn = 1;
    prompts[2].turn = 2;
    const uint64_t at[4] = {10, 0, 0, 20};
    schedule s;
    schedule_item next;
    cr_assert_eq(schedule_init(&s, prompts, at, 4), MOE_OK);
    cr_assert(schedule_peek(&s, &next));
    cr_expect(next.index == 0 && next.due_ns == 10);
    schedule_pop(&s);
    cr_assert(schedule_peek(&s, &next));
    cr_expect_eq(next.index, 3);
    schedule_add(&s, 1, 20); /* the same time: the lower index first */
    cr_assert(schedule_peek(&s, &next));
    cr_expect(next.index == 1 && next.due_ns == 20);
    schedule_pop(&s);
    schedule_pop(&s);
    cr_expect(!schedule_peek(&s, &next));
    schedule_add(&s, 2, 5);
    cr_expect(schedule_peek(&s, &next) && next.index == 2);
    schedule_pop(&s);
    cr_expect(!schedule_peek(&s, &next));
    schedule_fini(&s);
}

Test(schedule, any_mix_of_turns_leaves_in_order_and_once)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        rng r;
        schedule s;
        rng_init(&r, seed, RNG_ARRIVALS);
        uint64_t at = 0;
        for (size_t i = 0; i < COUNT; i++) {
            prompts[i].turn = i > 0 && rng_below(&r, 2) ? prompts[i - 1].turn + 1 : 0;
            arrivals_ns[i] = at += rng_below(&r, 50);
        }
        cr_assert_eq(schedule_init(&s, prompts, arrivals_ns, COUNT), MOE_OK);
        bool seen[COUNT] = {false};
        size_t out = 0;
        uint64_t last = 0;
        schedule_item next;
        for (; schedule_peek(&s, &next); out++) {
            schedule_pop(&s);
            cr_assert_geq(next.due_ns, last);
            cr_assert(!seen[next.index]);
            seen[next.index] = true;
            last = next.due_ns;
            if (next.index + 1 < COUNT && prompts[next.index + 1].turn > 0)
                schedule_add(&s, next.index + 1, last + rng_below(&r, 300));
        }
        cr_expect_eq(out, COUNT);
        schedule_fini(&s);
    }
}
