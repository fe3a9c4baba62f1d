/* series: what each second holds, worked by hand. */
#include <stddef.h>

#include <criterion/criterion.h>

#include "common/clock.h"
#include "loadgen/series.h"

TestSuite(series, .timeout = 10);

static uint64_t
ms(uint64_t t)
{
    return 5000 * NS_PER_S + t * NS_PER_MS;
}

Test(series, each_second_holds_what_happened_in_it)
{
    request_record *r = record_array_create(3);
    r[0].scheduled_ns = ms(0);
    r[0].send_ns = ms(100);
    record_add_chunk(&r[0], ms(300));
    record_add_chunk(&r[0], ms(2200));
    r[0].last_ns = r[0].end_ns = ms(2200);
    r[0].output_tokens = 4;
    r[0].completed = true;
    r[1].scheduled_ns = ms(1150);
    r[1].send_ns = ms(1200);
    record_add_chunk(&r[1], ms(1300));
    r[1].last_ns = r[1].end_ns = ms(1300);
    r[1].output_tokens = 1;
    r[1].completed = true;
    r[2].scheduled_ns = r[2].send_ns = ms(1300);
    r[2].end_ns = ms(1400);
    series s;
    cr_assert_eq(series_build(r, 3, &s, NULL), MOE_OK);
    cr_assert_eq(s.count, 3); /* seconds from 100 ms on */
    cr_expect_eq(s.interval_ns, NS_PER_S);
    const series_point *p = s.points;
    cr_expect(p[0].due == 1 && p[0].sent == 1 && p[0].in_flight == 1 && p[0].first_tokens == 1);
    cr_expect(p[0].output_tokens == 2 && p[0].completed == 0 && p[0].sched_ttft_sum == 300);
    cr_expect(p[1].due == 2 && p[1].sent == 2 && p[1].completed == 1 && p[1].failed == 1);
    cr_expect_eq(p[1].in_flight, 2);
    cr_expect(p[1].ttft_sum == 100 && p[1].sched_ttft_sum == 150 && p[1].measured == 1);
    cr_expect(p[2].completed == 1 && p[2].output_tokens == 2 && p[2].in_flight == 1);
    series_fini(&s);
    record_array_free(r, 3);
}

Test(series, a_long_run_gets_wider_intervals_and_an_unsent_one_none)
{
    request_record *r = record_array_create(1);
    series s;
    cr_assert_eq(series_build(r, 1, &s, NULL), MOE_OK);
    cr_expect_eq(s.count, 0);
    r[0].scheduled_ns = r[0].send_ns = ms(0);
    r[0].end_ns = ms(0) + 3ull * SERIES_POINTS_MAX * NS_PER_S;
    cr_assert_eq(series_build(r, 1, &s, NULL), MOE_OK);
    cr_expect_leq(s.count, SERIES_POINTS_MAX);
    cr_expect_eq(s.points[s.count - 1].failed, 1);
    series_fini(&s);
    record_array_free(r, 1);
}
