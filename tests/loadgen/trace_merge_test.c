/* trace_merge: clocks of three hosts aligned by hand-made messages, and one file out of many. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "loadgen/trace_merge.h"

TestSuite(trace_merge, .timeout = 10);

#define FILES_MAX 4

static char paths[FILES_MAX][64];
static const char *list[FILES_MAX];
static size_t path_count;
static trace_align align;
static errbuf eb;

static void
add_file(const char *text)
{
    char *path = paths[path_count];
    list[path_count++] = path;
    snprintf(path, sizeof paths[0], "/tmp/trace-merge-test.XXXXXX");
    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void
teardown(void)
{
    for (size_t i = 0; i < path_count; i++) {
        unlink(paths[i]);
    }
    path_count = 0;
}

#define HEAD(role, id, host)                                                                       \
    "[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":77,\"args\":{\"name\":\"" role "-" id      \
    "\"}},\n{\"ph\":\"M\",\"name\":\"conclave\",\"pid\":77,\"args\":{\"role\":\"" role             \
    "\",\"id\":" id ",\"host\":\"" host "\"}},\n"
#define RECEIVED(what, router, worker, ts, sent_ns)                                                \
    "{\"ph\":\"f\",\"bp\":\"e\",\"name\":\"" what "\",\"cat\":\"" what                             \
    "\",\"id\":\"x\",\"pid\":77,\"tid\":1,\"ts\":" ts ",\"args\":{\"step\":18446744073709551615,"  \
    "\"layer\":0,\"router\":" router ",\"worker\":" worker ",\"sent_ns\":" sent_ns "}},\n"
#define SPAN(ts)                                                                                   \
    "{\"ph\":\"X\",\"name\":\"gate\",\"pid\":77,\"tid\":1,\"ts\":" ts ",\"dur\":2.5,\"args\":{"    \
    "\"step\":1}},\n"

/* Host b's clock is 1000 us ahead of a's, c's is 500 us behind b's.  The fastest message takes 10
 * us between a and b, 4 us between b and c.  Slower ones must not matter, nor what a shares with c:
 * only one way. */
static void
add_three_hosts(void)
{
    add_file(HEAD("router", "0", "a") SPAN("100.125")
                 RECEIVED("result", "0", "0", "230.000", "1220000") /* 10 us */
             RECEIVED("result", "0", "0", "300.000", "1250000"));
    add_file(HEAD("worker", "0", "b")
                 RECEIVED("dispatch", "0", "0", "1210.000", "200000") /* 10 us */
             RECEIVED("dispatch", "0", "0", "1900.000", "200000")     /* slow */
             RECEIVED("dispatch", "1", "0", "1304.000", "800000")     /* 4 us, of the router on c */
             SPAN("1100.125"));
    add_file(HEAD("router", "1", "c") RECEIVED("result", "1", "0", "904.000", "1400000") /* 4 us */
             RECEIVED("result", "1", "7", "1.000", "1") /* of a worker without a trace */
             SPAN("600.125"));
}

Test(trace_merge, clocks_are_aligned_by_the_fastest_messages, .fini = teardown)
{
    add_three_hosts();
    cr_assert_eq(trace_align_read(&align, list, path_count, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(align.host_count, 3);
    const double offsets[] = {0, 1000, 500}, errors[] = {0, 10, 14};
    for (int i = 0; i < 3; i++) {
        cr_expect(align.hosts[i].aligned);
        cr_expect_float_eq(align.hosts[i].offset_us, offsets[i], 1e-6, "host %d", i);
        cr_expect_float_eq(align.hosts[i].error_us, errors[i], 1e-6, "host %d", i);
    }
}

static cJSON *
merge(char **text)
{
    size_t len;
    cJSON *root;
    FILE *to = open_memstream(text, &len);
    cr_assert_eq(trace_merge(&align, list, path_count, to, &eb), MOE_OK, "%s", eb.text);
    fclose(to);
    cr_assert_eq(json_parse(*text, len, &root, &eb), MOE_OK, "%s\n%s", eb.text, *text);
    return root;
}

Test(trace_merge, one_file_has_every_event_on_one_clock, .fini = teardown)
{
    char *text;
    add_three_hosts();
    cr_assert_eq(trace_align_read(&align, list, path_count, &eb), MOE_OK, "%s", eb.text);
    cJSON *root = merge(&text), *event;
    int spans = 0, heads = 0, messages = 0;
    bool pids[4] = {false};
    cJSON_ArrayForEach(event, root)
    {
        const int pid = cJSON_GetObjectItem(event, "pid")->valueint;
        const char *ph = cJSON_GetObjectItem(event, "ph")->valuestring;
        const char *name = cJSON_GetObjectItem(event, "name")->valuestring;
        cr_assert(pid >= 1 && pid <= 3, "%d", pid);
        pids[pid] = true;
        heads += strcmp(name, "process_name") == 0;
        messages += ph[0] == 'f';
        if (ph[0] != 'X') continue;
        spans++; /* all three began at one moment */
        cr_expect_float_eq(cJSON_GetObjectItem(event, "ts")->valuedouble, 100.125, 1e-6);
        cr_expect_float_eq(cJSON_GetObjectItem(event, "dur")->valuedouble, 2.5, 1e-9);
    }
    cr_expect(pids[1] && pids[2] && pids[3], "each file is a process of its own");
    cr_expect_eq(spans, 3);
    cr_expect_eq(heads, 3);
    cr_expect_eq(messages, 7);
    cr_expect_not_null(strstr(text, "\"step\":18446744073709551615"), "digits were lost");
    cr_expect_not_null(strstr(text, "\"conclave_merge\""));
    cJSON_Delete(root);
    free(text);
}

Test(trace_merge, a_host_without_messages_both_ways_is_said_to_be_unaligned, .fini = teardown)
{
    char *said, *text;
    size_t len;
    add_file(HEAD("router", "0", "a") SPAN("100.125"));
    add_file(HEAD("worker", "0", "b") RECEIVED("dispatch", "0", "0", "1210.000", "200000")
                 SPAN("7.000"));
    cr_assert_eq(trace_align_read(&align, list, path_count, &eb), MOE_OK, "%s", eb.text);
    cr_expect_not(align.hosts[1].aligned);
    cr_expect_eq(align.hosts[1].offset_us, 0);
    cJSON_Delete(merge(&text));
    cr_expect_not_null(strstr(text, "\"ts\":7.000"), "%s", text);
    free(text);
    FILE *to = open_memstream(&said, &len);
    trace_merge_print_hosts(&align, to);
    fclose(to);
    cr_expect_not_null(strstr(said, "host b: no messages both ways"), "%s", said);
    free(said);
}

Test(trace_merge, a_file_that_was_cut_is_merged_as_far_as_it_goes, .fini = teardown)
{
    char *text;
    add_file(HEAD("router", "0", "a") SPAN("1.000") "{\"ph\":\"X\",\"name\":\"ga");
    cr_assert_eq(trace_align_read(&align, list, path_count, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(align.host_count, 1);
    cJSON_Delete(merge(&text));
    free(text);
}

Test(trace_merge, what_is_no_set_of_traces_is_refused, .fini = teardown)
{
    add_file("[\n" SPAN("1.000"));
    cr_expect_eq(trace_align_read(&align, list, 1, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "nothing says which process"), "%s", eb.text);
    add_file(HEAD("router", "0", "a"));
    add_file(HEAD("router", "0", "b"));
    cr_expect_eq(trace_align_read(&align, list + 1, 2, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "a second trace of router 0"), "%s", eb.text);
    list[0] = "/nonexistent";
    cr_expect_eq(trace_align_read(&align, list, 1, &eb), MOE_ENOTFOUND);
    list[0] = paths[0];
}
