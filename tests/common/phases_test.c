/* phases: time lands in the phase that was entered, and a report starts afresh. */
#include <criterion/criterion.h>

#include <string.h>

#include "common/phases.h"

static const char *const names[] = {"idle", "first", "second"};

static void
pass(uint64_t ns)
{
    const uint64_t end = clock_now_ns() + ns;
    while (clock_now_ns() < end) {
    }
}

Test(phases, time_lands_in_the_phase_that_was_entered)
{
    phases p;
    phases_init(&p, names, 3, true, NULL);
    const uint64_t start = p.since_ns;
    phase_enter(&p, 1);
    pass(200000);
    phase_enter(&p, 2);
    phase_enter(&p, 1);
    pass(100000);
    phases_end_round(&p, "test", 7);
    cr_expect_geq(p.ns[1], 300000);
    cr_expect_eq(p.ns[0] + p.ns[1] + p.ns[2], p.since_ns - start,
                 "no time is lost or counted twice");
    cr_expect_eq(p.rounds, 1);
    cr_expect_eq(p.items, 7);
    cr_expect_eq(p.current, 0);
    phases_report(&p, "test");
    cr_expect_eq(p.rounds, 0);
    cr_expect_eq(p.ns[1], 0);
}

Test(phases, off_nothing_is_counted)
{
    phases p;
    phases_init(&p, names, 3, false, NULL);
    phase_enter(&p, 1);
    phases_end_round(&p, "test", 1);
    cr_expect_eq(p.rounds + p.ns[0] + p.ns[1], 0);
    cr_expect_eq(p.current, 0);
}
