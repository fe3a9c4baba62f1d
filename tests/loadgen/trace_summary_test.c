/* trace_summary: figures of a trace worked out by hand, and of files that are cut or wrong. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "loadgen/trace_summary.h"

TestSuite(trace_summary, .timeout = 10);

#define HEAD(role, id, host)                                                                       \
    "[\n{\"ph\":\"M\",\"name\":\"conclave\",\"pid\":1,\"args\":{\"role\":\"" role "\",\"id\":" id  \
    ",\"host\":\"" host "\"}},\n"
#define SPAN(name, ts, dur, args)                                                                  \
    "{\"ph\":\"X\",\"name\":\"" name "\",\"ts\":" ts ",\"dur\":" dur ",\"args\":{\"step\":1" args  \
    "}},\n"
#define ANSWER(worker, rows, ts, sent_ns, busy_ns)                                                 \
    "{\"ph\":\"f\",\"name\":\"result\",\"ts\":" ts ",\"args\":{\"step\":1,\"layer\":0,\"mb\":0,"   \
    "\"router\":0,\"worker\":" worker ",\"rows\":" rows ",\"bytes\":100,\"sent_ns\":" sent_ns      \
    ",\"busy_ns\":" busy_ns "}},\n"
#define END "{\"ph\":\"M\",\"name\":\"conclave_end\",\"args\":{\"events\":9,\"lost\":2}}\n]\n"

/* 100 us in all.  The router waits from 1050 to 1080; worker 1 answers last, at 1078, after 40 us
 * of computing: 28 of them within the wait, 12 before it.  Worker 0 answered at 1060. */
static const char step_text[] = HEAD("router", "0", "a") SPAN("prepare", "1000", "5", "")
    SPAN("attention", "1005", "25", ",\"layer\":0") SPAN("gate", "1030", "10", ",\"layer\":0")
        SPAN("dispatch", "1040", "10", ",\"layer\":0") ANSWER("0", "3", "1080", "1060000", "15000")
            ANSWER("1", "9", "1080", "1078000", "40000") SPAN("wait", "1050", "30", ",\"layer\":0")
                SPAN("combine", "1080", "5", ",\"layer\":0") SPAN("head", "1085", "10", "")
                    SPAN("reply", "1095", "5", "") "{\"ph\":\"M\",\"name\":\"experts\",\"args\":{"
                                                   "\"layer\":0,\"tokens\":[5,7]}},\n" END;

static char paths[4][64];
static size_t path_count;

static void
add_file(const char *text, size_t len)
{
    char *path = paths[path_count++];
    snprintf(path, sizeof paths[0], "/tmp/trace-summary-test.XXXXXX");
    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, len), (ssize_t)len);
    close(fd);
}

static moe_err
summarize(trace_summary *s, errbuf *eb)
{
    const char *list[4];
    for (size_t i = 0; i < path_count; i++) {
        list[i] = paths[i];
    }
    const moe_err err = trace_summarize(list, path_count, s, eb);
    for (size_t i = 0; i < path_count; i++) {
        unlink(paths[i]);
    }
    path_count = 0;
    return err;
}

static cJSON *
to_json(const trace_summary *s)
{
    char *text;
    size_t len;
    errbuf eb = {{0}};
    cJSON *root;
    FILE *to = open_memstream(&text, &len);
    cr_assert_eq(trace_summary_write_json(s, to, &eb), MOE_OK);
    fclose(to);
    cr_assert_eq(json_parse(text, len, &root, &eb), MOE_OK, "%s", eb.text);
    free(text);
    return root;
}

static double
number(const cJSON *root, const char *key)
{
    return cJSON_GetObjectItem(root, key)->valuedouble;
}

Test(trace_summary, figures_of_a_step_worked_by_hand)
{
    trace_summary s;
    errbuf eb = {{0}};
    add_file(step_text, sizeof step_text - 1);
    cr_assert_eq(summarize(&s, &eb), MOE_OK, "%s", eb.text);
    cJSON *root = to_json(&s);
    cr_expect_eq(number(root, "steps"), 1);
    cr_expect_float_eq(number(root, "mean_step_us"), 100, 1e-9);
    cr_expect_float_eq(number(root, "attention_fraction"), 25.0 / 100, 1e-9);
    cr_expect_float_eq(number(root, "moe_fraction"), 55.0 / 100, 1e-9);
    cr_expect_float_eq(number(root, "expert_fraction"), 28.0 / 100, 1e-9);
    cr_expect_float_eq(number(root, "communication_fraction"), 12.0 / 100, 1e-9);
    cr_expect_float_eq(number(root, "overlap"), 12.0 / 40, 1e-9);
    cr_expect_float_eq(number(root, "straggler_fraction"), 9.0 / 100, 1e-9);
    cr_expect_float_eq(number(root, "balancedness"), 6.0 / 9, 1e-9);
    cr_expect_eq(number(root, "lost"), 2);
    cr_expect(!cJSON_IsTrue(cJSON_GetObjectItem(root, "cut")));
    cr_expect_eq(s.last_count[0], 0);
    cr_expect_eq(s.last_count[1], 1);
    cr_expect_eq(s.expert_tokens[1], 7);
    cr_expect_eq(s.timeline_count, 8);
    cJSON_Delete(root);
    trace_summary_fini(&s);
}

/* The same step, seen by a worker whose clock is 5 s ahead: it had the dispatch 2 us after it was
 * sent, and its answer took 2 us. */
Test(trace_summary, clocks_of_other_hosts_are_aligned_by_messages)
{
    static const char worker[] =
        HEAD("worker", "1", "b") SPAN("gate_up", "5001050", "20", ",\"layer\":0")
            SPAN("down", "5001150", "20", "") "{\"ph\":\"f\",\"name\":\"dispatch\",\"ts\":"
                                              "5001043,\"args\":{\"step\":1,\"layer\":0,"
                                              "\"worker\":1,\"sent_ns\":1041000}},\n" END;
    static const char *const ahead = "5001078000";
    char router[sizeof step_text + 16];
    const char *at = strstr(step_text, "1078000");
    snprintf(router, sizeof router, "%.*s%s%s", (int)(at - step_text), step_text, ahead, at + 7);
    trace_summary s;
    errbuf eb = {{0}};
    add_file(worker, sizeof worker - 1);
    add_file(router, strlen(router));
    cr_assert_eq(summarize(&s, &eb), MOE_OK, "%s", eb.text);
    cr_expect_float_eq(s.offset_us[1], 5000000, 1e-3);
    cr_expect_eq(s.last_count[1], 1);
    cr_expect_float_eq(s.steps[0].expert_us, 28, 1e-3);
    size_t seen = 0; /* "down" is of another router's step with this number */
    for (size_t i = 0; i < s.timeline_count; i++) {
        if (s.timeline[i].process != 2) continue;
        seen++;
        cr_expect_float_eq(s.timeline[i].start_us, 50, 1e-3);
    }
    cr_expect_eq(seen, 1);
    trace_summary_fini(&s);
}

/* A process may be killed at any byte. */
Test(trace_summary, a_file_may_be_cut_anywhere)
{
    size_t whole = 0;
    for (size_t len = 0; len < sizeof step_text; len += 7) {
        trace_summary s;
        errbuf eb = {{0}};
        add_file(step_text, len);
        if (summarize(&s, &eb) == MOE_OK) {
            whole++;
            cr_expect_eq(s.step_count, 1);
            cr_expect(s.cut || len + 7 >= sizeof step_text);
        } else {
            cr_expect_neq(eb.text[0], '\0');
        }
        trace_summary_fini(&s);
    }
    cr_expect_gt(whole, 10);
}

Test(trace_summary, what_is_no_trace_is_refused_and_the_line_named)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"[\n{\"ph\":\"X\",\"name\":\"wait\",\"args\":{}},\n", "line 2: the first event"},
        {HEAD("router", "0", "a") "{nonsense\n", "line 3: not JSON"},
        {HEAD("router", "0", "a") "{\"ph\":\"X\",\"name\":\"wait\"}\n", "line 3: no event"},
        {HEAD("router", "0", "a") SPAN("wait", "-1", "5", ""), "line 3: ts must be"},
        {HEAD("router", "0", "a") SPAN("wait", "1", "5", ",\"layer\":99999"), "line 3: layer must"},
        {HEAD("router", "0", "a") ANSWER("5000", "1", "1", "1", "1"), "line 3: worker must be"},
        {HEAD("frontend", "0", "a"), "line 2: unknown role"},
        {HEAD("worker", "0", "a") END, "no router's trace"},
        {HEAD("router", "0", "a") END, "no whole step"},
        {HEAD("router", "0", "a") "{\"ph\":\"M\",\"name\":\"experts\",\"args\":{\"layer\":1,"
                                  "\"tokens\":[1]}},\n",
         "line 3: layers of experts"},
        {HEAD("router", "0", "a") "{\"ph\":\"M\",\"name\":\"experts\",\"args\":{\"layer\":0,"
                                  "\"tokens\":[-1]}},\n",
         "line 3: tokens of an expert"},
        {"", "an empty trace"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        trace_summary s;
        errbuf eb = {{0}};
        add_file(cases[i].text, strlen(cases[i].text));
        cr_expect_neq(summarize(&s, &eb), MOE_OK, "case %zu", i);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "case %zu: %s", i, eb.text);
        cr_expect_null(s.steps);
    }
    trace_summary s;
    errbuf eb = {{0}};
    add_file(step_text, sizeof step_text - 1);
    add_file(step_text, sizeof step_text - 1);
    cr_expect_eq(summarize(&s, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "second router"), "%s", eb.text);
}
