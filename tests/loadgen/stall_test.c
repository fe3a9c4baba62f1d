/* A server that pauses once: what each way of measuring makes of it.
 *
 * Nothing here depends on how fast the machine is: the server begins no answer within its pause, so
 * a request that was due in it has waited at least until the pause's end, by the same clock. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/client.h"
#include "loadgen/measure.h"
#include "stub_server.h"

TestSuite(stall, .timeout = 60);

#define COUNT 200
#define GAP_NS (10 * NS_PER_MS)
#define STALL_NS (2 * NS_PER_S)
#define STALL_AT 40
#define PLACES 4

static char ids[] = "[1,2,3]";

typedef struct view {
    request_record *records;
    measure figures;
    uint64_t stall_start_ns, stall_end_ns;
    size_t due, seen; /* requests due in the pause; those whose latency reaches to its end */
    size_t over_1s_send, over_1s_sched;
} view;

static double
ms_between(uint64_t from, uint64_t to)
{
    return (double)(to - from) / (double)NS_PER_MS;
}

static view
measure_with_stall(uint64_t gap_ns, uint32_t concurrency_max)
{
    const stub_answer script[] = {STUB_TOKENS};
    stub_server *s = stub_server_start(script, 1);
    stub_server_set_stall(s, STALL_AT, STALL_NS);
    char url[128];
    snprintf(url, sizeof url, "%s/v1/completions", stub_server_url(s));
    static prompt prompts[COUNT];
    static uint64_t at_ns[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        prompts[i] = (prompt){.json = ids, .token_count = 3, .max_tokens = 3};
        at_ns[i] = i * gap_ns;
    }
    const client_config config = {.url = url, .model = "stub", .concurrency_max = concurrency_max};
    const measure_config measuring = {.percentiles = {90, 99.9}, .percentile_count = 2};
    view v = {.records = record_array_create(COUNT)};
    errbuf eb;
    cr_assert_eq(client_run(&config, prompts, at_ns, COUNT, v.records, &eb), MOE_OK);
    cr_assert_eq(measure_run(&measuring, prompts, v.records, COUNT, &v.figures, &eb), MOE_OK);
    cr_assert_eq(v.figures.completed, COUNT);
    stub_server_get_stall(s, &v.stall_start_ns, &v.stall_end_ns);
    stub_server_stop(s);

    for (size_t i = 0; i < COUNT; i++) {
        const request_record *r = &v.records[i];
        const double sched = measure_request_ms(r, METRIC_SCHED_TTFT);
        v.over_1s_send += measure_request_ms(r, METRIC_TTFT) > 1000;
        v.over_1s_sched += sched > 1000;
        if (r->scheduled_ns <= v.stall_start_ns || r->scheduled_ns >= v.stall_end_ns) continue;
        v.due++;
        v.seen += sched >= ms_between(r->scheduled_ns, v.stall_end_ns);
    }
    return v;
}

/* A closed loop has no schedule, and so only the one view. */
static void
print_view(const char *name, const view *v, bool scheduled)
{
    const measure_stat *send = &v->figures.stats[METRIC_TTFT];
    const measure_stat *sched = &v->figures.stats[METRIC_SCHED_TTFT];
    fprintf(stderr,
            "%s\n  from the sending:  %3zu requests over 1 s, TTFT mean %6.1f, p90 %6.1f ms\n",
            name, v->over_1s_send, send->mean, send->percentiles[0]);
    if (scheduled)
        fprintf(stderr,
                "  from the schedule: %3zu requests over 1 s, TTFT mean %6.1f, p90 %6.1f ms\n",
                v->over_1s_sched, sched->mean, sched->percentiles[0]);
}

Test(stall, latency_from_the_schedule_shows_a_pause_in_every_request_due_in_it)
{
    view open = measure_with_stall(GAP_NS, 0);
    print_view("open loop", &open, true);
    cr_expect_geq(open.due, 1);
    cr_expect_eq(open.seen, open.due);
    /* Due one after another, so about half of the pause's requests wait more than half of it. */
    cr_expect_geq(open.over_1s_sched, STALL_NS / GAP_NS / 2 - 2);
    record_array_free(open.records, COUNT);
}

Test(stall, a_full_client_hides_it_from_the_sending_but_not_from_the_schedule)
{
    view full = measure_with_stall(GAP_NS, PLACES);
    print_view("open loop, 4 places in the client", &full, true);
    cr_expect_eq(full.seen, full.due);
    /* Only what was in flight when it began can have been sent a second before its end. */
    size_t sent_before = 0;
    for (size_t i = 0; i < COUNT; i++) {
        sent_before += full.records[i].send_ns + NS_PER_S < full.stall_end_ns &&
                       full.records[i].chunk_ns[0] >= full.stall_end_ns;
    }
    cr_expect_leq(sent_before, PLACES);
    cr_expect_gt(full.over_1s_sched, sent_before);
    record_array_free(full.records, COUNT);
}

Test(stall, a_closed_loop_sees_it_in_no_more_requests_than_it_has_places)
{
    view closed = measure_with_stall(0, 1);
    print_view("closed loop of 1", &closed, false);
    size_t waiting = 0;
    for (size_t i = 0; i < COUNT; i++) {
        const request_record *r = &closed.records[i];
        waiting += r->send_ns < closed.stall_end_ns && r->chunk_ns[0] >= closed.stall_end_ns;
    }
    cr_expect_eq(waiting, 1);
    /* 199 of 200 requests don't know of it, so a percentile up to 99 does not either. */
    cr_expect_lt(closed.figures.stats[METRIC_TTFT].percentiles[0], 1000);
    record_array_free(closed.records, COUNT);
}
