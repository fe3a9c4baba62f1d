/* routing_stats, routing_trace, eplb_config, eplb_replay: the window against a plain sum, a trace
 * there and back and with every kind of damage, the configuration's keys, and a replay whose load
 * changes. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"
#include "router/eplb_config.h"
#include "router/eplb_replay.h"
#include "router/routing_stats.h"
#include "router/routing_synth.h"
#include "router/routing_trace.h"

#define CELLS_MAX 64

TestSuite(routing_stats, .timeout = 60);
TestSuite(routing_trace, .timeout = 60);
TestSuite(eplb_config, .timeout = 60);
TestSuite(eplb_replay, .timeout = 60);

static void
draw_counts(uint64_t seed, uint64_t step, uint32_t *counts, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t h = hash_combine(hash_combine(seed, step), i);
        counts[i] = h % 3 ? 0 : (uint32_t)(h >> 32) >> (h % 32);
    }
}

Test(routing_stats, sums_are_those_of_the_last_steps)
{
    const uint32_t sizes[][4] = {/* L E window interval */
                                 {1, 1, 1, 1},
                                 {3, 5, 4, 3},
                                 {2, 16, 7, 10},
                                 {4, 16, 100, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const uint32_t n = sizes[i][0] * sizes[i][1], window = sizes[i][2];
        uint32_t counts[CELLS_MAX];
        uint64_t totals[CELLS_MAX] = {0};
        routing_stats *by_step, *by_total;
        cr_assert_eq(
            routing_stats_create(&by_step, sizes[i][0], sizes[i][1], window, sizes[i][3], NULL),
            MOE_OK);
        cr_assert_eq(
            routing_stats_create(&by_total, sizes[i][0], sizes[i][1], window, sizes[i][3], NULL),
            MOE_OK);
        for (uint32_t step = 0; step < 30; step++) {
            uint64_t want[CELLS_MAX] = {0};
            const uint32_t first = step + 1 > window ? step + 1 - window : 0;
            for (uint32_t s = first; s <= step; s++) {
                draw_counts(i, s, counts, n);
                for (uint32_t c = 0; c < n; c++)
                    want[c] += counts[c];
            }
            for (uint32_t c = 0; c < n; c++)
                totals[c] += counts[c];
            const bool due = (step + 1) % sizes[i][3] == 0;
            cr_assert_eq(routing_stats_add(by_step, counts), due);
            cr_assert_eq(routing_stats_add_totals(by_total, totals), due);
            cr_assert_arr_eq(routing_stats_rows(by_step), want, n * sizeof *want);
            cr_assert_arr_eq(routing_stats_rows(by_total), want, n * sizeof *want);
            cr_assert_arr_eq(routing_stats_last(by_total), counts, n * sizeof *counts);
            cr_assert_eq(routing_stats_window_steps(by_step), step + 1 - first);
            cr_assert_eq(routing_stats_steps(by_step), step + 1);
        }
        routing_stats_free(by_step);
        routing_stats_free(by_total);
    }
}

/* Step s has s + 1 rows. */
static uint64_t
sum_of_steps(uint32_t first, uint32_t count)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += first + i + 1;
    return sum;
}

Test(routing_stats, the_full_parts_of_the_window_are_summed_up_oldest_first)
{
    const uint32_t windows[][3] = {/* window, steps of a part, parts */
                                   {1, 1, 1},
                                   {3, 1, 3},
                                   {8, 1, 8},
                                   {9, 2, 4},
                                   {200, 25, 8}};
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
        const uint32_t length = windows[i][1], most = windows[i][2];
        uint64_t rows[ROUTING_PARTS * 2];
        routing_stats *s;
        cr_assert_eq(routing_stats_create(&s, 1, 2, windows[i][0], 1, NULL), MOE_OK);
        cr_expect_eq(routing_stats_parts(s, rows), 0);
        for (uint32_t step = 0; step < 450; step++) {
            routing_stats_add(s, (uint32_t[]){step + 1, 7});
            const uint32_t full = (step + 1) / length, want = full < most ? full : most;
            cr_assert_eq(routing_stats_parts(s, rows), want, "window %u", windows[i][0]);
            for (uint32_t p = 0; p < want; p++) {
                cr_assert_eq(rows[p * 2], sum_of_steps((full - want + p) * length, length));
                cr_assert_eq(rows[p * 2 + 1], 7 * length);
            }
        }
        routing_stats_free(s);
    }
}

Test(routing_stats, create_refuses_sizes_that_are_none)
{
    routing_stats *s;
    cr_expect_eq(routing_stats_create(&s, 0, 8, 10, 10, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 1, 0, 10, 10, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 1, ROUTING_CELLS_MAX + 1, 1, 10, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 1, 8, 0, 10, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 1, 8, ROUTING_WINDOW_MAX + 1, 10, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 1, 8, 10, 0, NULL), MOE_ERANGE);
    cr_expect_eq(routing_stats_create(&s, 64, 512, ROUTING_WINDOW_MAX, 10, NULL), MOE_ERANGE);
    cr_expect_null(s);
    routing_stats_free(NULL);
}

Test(eplb_config, has_the_keys_and_defaults_that_users_know)
{
    eplb_config c;
    errbuf eb;
    cr_assert_eq(eplb_config_parse("{}", &c, NULL), MOE_OK);
    cr_expect(c.window_size == 1000 && c.step_interval == 3000 && c.num_redundant_experts == 0 &&
              !c.log_balancedness);
    cr_assert_eq(eplb_config_parse("{\"window_size\":10,\"step_interval\":20,"
                                   "\"num_redundant_experts\":8,\"log_balancedness\":true}",
                                   &c, NULL),
                 MOE_OK);
    cr_expect(c.window_size == 10 && c.step_interval == 20 && c.num_redundant_experts == 8 &&
              c.log_balancedness);
    cr_expect_eq(eplb_config_parse("{\"windowsize\":10}", &c, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "--eplb-config: there is no key \"windowsize\"");
    const char *const bad[] = {"",
                               "[]",
                               "{\"window_size\":0}",
                               "{\"window_size\":1.5}",
                               "{\"step_interval\":0}",
                               "{\"num_redundant_experts\":-1}",
                               "{\"log_balancedness\":1}",
                               "{\"window_size\":1} x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_expect_eq(eplb_config_parse(bad[i], &c, &eb), MOE_EINVAL, "%s", bad[i]);
}

/* A file name of this test's own; the file is removed by read_back(). */
static const char *
temp_path(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/routing_trace_test.%ld", (long)getpid());
    return path;
}

static unsigned char *
read_back(size_t *len)
{
    char *bytes;
    cr_assert_eq(file_read(temp_path(), 1u << 28, &bytes, len, NULL), MOE_OK);
    unlink(temp_path());
    return (unsigned char *)bytes;
}

static const routing_trace_header small = {.num_layers = 2,
                                           .num_experts = 5,
                                           .top_k = 2,
                                           .fingerprint = 0xfedcba9876543210,
                                           .steps_per_record = 1};

static unsigned char *
write_small(uint32_t steps, size_t *len)
{
    routing_trace_writer *w;
    uint32_t counts[10];
    cr_assert_eq(routing_trace_create(&w, temp_path(), &small, NULL), MOE_OK);
    for (uint32_t s = 0; s < steps; s++) {
        draw_counts(7, s, counts, 10);
        cr_assert_eq(routing_trace_append(w, 100 + 2 * s, counts), MOE_OK);
    }
    cr_assert_eq(routing_trace_close(w), MOE_OK);
    return read_back(len);
}

Test(routing_trace, gives_back_what_was_written)
{
    size_t len;
    routing_trace t;
    routing_trace_record r;
    uint32_t counts[10], want[10];
    unsigned char *bytes = write_small(50, &len);
    cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
    cr_expect(t.header.num_layers == 2 && t.header.num_experts == 5 && t.header.top_k == 2 &&
              t.header.steps_per_record == 1);
    cr_expect_eq(t.header.fingerprint, small.fingerprint);
    for (uint32_t s = 0; s < 50; s++) {
        cr_assert_eq(routing_trace_next(&t, &r, counts, NULL), MOE_OK);
        draw_counts(7, s, want, 10);
        cr_assert_arr_eq(counts, want, sizeof want);
        cr_assert(r.first_step == 100 + 2 * s && r.step_count == 1);
    }
    cr_expect_eq(routing_trace_next(&t, &r, counts, NULL), MOE_ENOTFOUND);
    free(bytes);
}

Test(routing_trace, sums_up_steps_and_writes_the_rest_at_the_end)
{
    routing_trace_header h = small;
    routing_trace_writer *w;
    routing_trace t;
    routing_trace_record r;
    uint32_t counts[10] = {1, 2, 0, 0, 0, 0, 0, 0, 0, 3};
    size_t len;
    h.steps_per_record = 4;
    cr_assert_eq(routing_trace_create(&w, temp_path(), &h, NULL), MOE_OK);
    for (uint32_t s = 0; s < 6; s++)
        cr_assert_eq(routing_trace_append(w, s, counts), MOE_OK);
    cr_assert_eq(routing_trace_close(w), MOE_OK);
    unsigned char *bytes = read_back(&len);
    cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
    cr_assert_eq(routing_trace_next(&t, &r, counts, NULL), MOE_OK);
    cr_expect(r.first_step == 0 && r.step_count == 4 && counts[1] == 8 && counts[9] == 12);
    cr_assert_eq(routing_trace_next(&t, &r, counts, NULL), MOE_OK);
    cr_expect(r.first_step == 4 && r.step_count == 2 && counts[1] == 4 && counts[9] == 6);
    cr_expect_eq(routing_trace_next(&t, &r, counts, NULL), MOE_ENOTFOUND);
    free(bytes);
}

/* Wherever the writer was killed: whole records can be read, then the end is told. */
Test(routing_trace, what_is_cut_off_can_be_read_up_to_there)
{
    size_t len;
    routing_trace t;
    routing_trace_record r;
    uint32_t counts[10];
    unsigned char *bytes = write_small(5, &len);
    for (size_t cut = 0; cut < len; cut++) {
        unsigned char *part = malloc(cut + 1);
        cr_assert_not_null(part);
        memcpy(part, bytes, cut);
        moe_err err = routing_trace_open(&t, part, cut, NULL);
        cr_assert_eq(err, cut < ROUTING_TRACE_HEADER_BYTES ? MOE_EINVAL : MOE_OK);
        while (err == MOE_OK)
            err = routing_trace_next(&t, &r, counts, NULL);
        if (cut >= ROUTING_TRACE_HEADER_BYTES)
            cr_assert(err == MOE_ECLOSED || err == MOE_ENOTFOUND);
        free(part);
    }
    free(bytes);
}

Test(routing_trace, damage_is_found_and_named)
{
    size_t len;
    routing_trace t;
    routing_trace_record r;
    uint32_t counts[10];
    errbuf eb;
    unsigned char *bytes = write_small(5, &len);
    for (size_t at = 0; at < len; at++) {
        bytes[at] ^= 0x10;
        moe_err err = routing_trace_open(&t, bytes, len, &eb);
        while (err == MOE_OK)
            err = routing_trace_next(&t, &r, counts, &eb);
        /* The fingerprint and the reserved word may be anything; what else changes is seen. */
        const bool free_bytes = (at >= 24 && at < 32) || (at >= 32 && at < 40);
        if (!free_bytes)
            cr_assert(err != MOE_ENOTFOUND || t.header.num_layers != 2 || t.header.top_k != 2,
                      "byte %zu", at);
        bytes[at] ^= 0x10;
    }
    const struct {
        uint32_t at, value;
        moe_err err;
    } headers[] = {{0, 0, MOE_EINVAL},  {8, 2, MOE_EMISMATCH},        {12, 0, MOE_ERANGE},
                   {16, 0, MOE_ERANGE}, {20, 0, MOE_ERANGE},          {20, 6, MOE_ERANGE},
                   {32, 0, MOE_ERANGE}, {12, UINT32_MAX, MOE_ERANGE}, {32, 4097, MOE_ERANGE}};
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        unsigned char header[ROUTING_TRACE_HEADER_BYTES];
        memcpy(header, bytes, sizeof header);
        for (uint32_t b = 0; b < 4; b++)
            header[headers[i].at + b] = (unsigned char)(headers[i].value >> (8 * b));
        cr_expect_eq(routing_trace_open(&t, header, sizeof header, NULL), headers[i].err,
                     "header %zu", i);
    }
    free(bytes);
}

Test(routing_trace, a_file_that_cannot_be_made_or_written_is_an_error)
{
    routing_trace_writer *w;
    errbuf eb;
    uint32_t counts[10] = {0};
    cr_expect_eq(routing_trace_create(&w, "/nowhere/at/all", &small, &eb), MOE_EIO);
    cr_expect_null(w);
    cr_expect_eq(routing_trace_close(NULL), MOE_OK);
    if (access("/dev/full", W_OK) != 0) cr_skip("there is no /dev/full");
    cr_assert_eq(routing_trace_create(&w, "/dev/full", &small, &eb), MOE_OK);
    cr_expect_eq(routing_trace_append(w, 0, counts), MOE_EIO);
    cr_expect_eq(routing_trace_close(w), MOE_EIO);
}

typedef struct seen {
    uint32_t count, adopted;
    double first, last, worst_late, off;
} seen;

static void
on_interval(void *user, const replay_interval *i)
{
    seen *s = user;
    if (s->count == 0) s->first = i->balancedness;
    /* The load changes at step 1000, in the sixth interval: two later all is well again. */
    if (s->count >= 7 && (s->worst_late == 0 || i->balancedness < s->worst_late))
        s->worst_late = i->balancedness;
    s->last = i->balancedness;
    s->off = i->balancedness_off;
    s->adopted += i->adopted;
    s->count++;
}

static unsigned char *
write_synth(const routing_synth_config *c, uint32_t steps, uint32_t tokens, size_t *len)
{
    const routing_trace_header h = {.num_layers = c->num_layers,
                                    .num_experts = c->num_experts,
                                    .top_k = c->top_k,
                                    .steps_per_record = 1};
    routing_synth *gate;
    routing_trace_writer *w;
    uint32_t *counts = malloc((size_t)c->num_layers * c->num_experts * sizeof *counts);
    cr_assert_not_null(counts);
    cr_assert_eq(routing_synth_create(&gate, c, NULL), MOE_OK);
    cr_assert_eq(routing_trace_create(&w, temp_path(), &h, NULL), MOE_OK);
    for (uint32_t s = 0; s < steps; s++) {
        routing_synth_step(gate, tokens, counts);
        uint64_t sum = 0;
        for (uint32_t e = 0; e < c->num_experts; e++)
            sum += counts[e];
        cr_assert_eq(sum, tokens * c->top_k);
        cr_assert_eq(routing_trace_append(w, s, counts), MOE_OK);
    }
    cr_assert_eq(routing_trace_close(w), MOE_OK);
    routing_synth_free(gate);
    free(counts);
    return read_back(len);
}

/* After all ranks change, balancedness is back within two intervals. */
Test(eplb_replay, recovers_when_the_load_changes)
{
    const routing_synth_config c = {.num_layers = 2,
                                    .num_experts = 64,
                                    .top_k = 8,
                                    .exponent = 1,
                                    .seed = 1,
                                    .switch_step = 1000};
    for (int policy = EPLB_CONCLAVE; policy <= EPLB_DEEPSEEK; policy++) {
        replay_config config = {.policy = (eplb_policy)policy,
                                .worker_count = 8,
                                .redundant = 8,
                                .window_size = 200,
                                .step_interval = 200,
                                .num_groups = 1,
                                .num_nodes = 1,
                                .costs = eplb_default_costs()};
        size_t len;
        routing_trace t;
        replay_summary summary;
        seen s = {0};
        unsigned char *bytes = write_synth(&c, 2000, 128, &len);
        config.costs.bytes_per_expert = 1e5;
        cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
        cr_assert_eq(eplb_replay(&t, &config, on_interval, &s, &summary, NULL), MOE_OK);
        cr_expect(summary.steps == 2000 && summary.intervals == 10 && s.count == 10);
        cr_expect_eq(summary.adopted, s.adopted);
        cr_expect_gt(s.adopted, 1);
        cr_expect_gt(s.worst_late, 1 / 1.12, "policy %d: %g", policy, s.worst_late);
        cr_expect_lt(s.off, 1 / 1.12);
        cr_expect_gt(summary.balancedness, summary.balancedness_off);
        cr_expect_not(summary.cut_off);

        cr_assert_eq(routing_trace_open(&t, bytes, len - 1, NULL), MOE_OK);
        cr_assert_eq(eplb_replay(&t, &config, NULL, NULL, &summary, NULL), MOE_OK);
        cr_expect(summary.cut_off && summary.steps == 1999);
        free(bytes);
    }
}

/* Two workers with two experts each; an expert is read in 1 ms, a row takes 0.1 ms. */
Test(eplb_replay, simulates_workers_with_memory_and_cores_of_their_own)
{
    const routing_trace_header h = {
        .num_layers = 2, .num_experts = 4, .top_k = 2, .steps_per_record = 1};
    const replay_config config = {.worker_count = 2,
                                  .window_size = 10,
                                  .step_interval = 10,
                                  .num_groups = 1,
                                  .num_nodes = 1,
                                  .costs = {.row_ns = 1e5, .bytes_per_expert = 1e6},
                                  .read_bytes_per_s = 1e9};
    const uint32_t steps[2][8] = {{4, 0, 2, 0, /* 1 ms */ 1, 1, 0, 0 /* 2 ms */},
                                  {20, 10, 2, 0, /* 3 ms */ 0, 0, 0, 9 /* 1 ms */}};
    routing_trace_writer *w;
    size_t len;
    routing_trace t;
    replay_summary s;
    cr_assert_eq(routing_trace_create(&w, temp_path(), &h, NULL), MOE_OK);
    for (uint32_t i = 0; i < 2; i++)
        cr_assert_eq(routing_trace_append(w, i, steps[i]), MOE_OK);
    cr_assert_eq(routing_trace_close(w), MOE_OK);
    unsigned char *bytes = read_back(&len);
    cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
    cr_assert_eq(eplb_replay(&t, &config, NULL, NULL, &s, NULL), MOE_OK);
    cr_expect_float_eq(s.experts_ns_off, 3.5e6, 1);
    cr_expect_float_eq(s.experts_ns, 3.5e6, 1, "nothing was decided");
    free(bytes);
}

Test(eplb_replay, refuses_what_is_no_fleet)
{
    size_t len;
    routing_trace t;
    replay_summary summary;
    unsigned char *bytes = write_small(2, &len);
    const replay_config good = {.worker_count = 2,
                                .window_size = 1,
                                .step_interval = 1,
                                .num_groups = 1,
                                .num_nodes = 1,
                                .costs = eplb_default_costs()};
    replay_config bad[4] = {good, good, good, good};
    bad[0].worker_count = 0;
    bad[1].window_size = 0;
    bad[2].step_interval = 0;
    bad[3].num_nodes = 0;
    for (size_t i = 0; i < 4; i++) {
        cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
        cr_expect_eq(eplb_replay(&t, &bad[i], NULL, NULL, &summary, NULL), MOE_ERANGE, "%zu", i);
    }
    cr_assert_eq(routing_trace_open(&t, bytes, len, NULL), MOE_OK);
    cr_expect_eq(eplb_replay(&t, &good, NULL, NULL, &summary, NULL), MOE_OK);
    free(bytes);
}
