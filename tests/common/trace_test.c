/* trace: what is added can be read in the file, line by line; what finds no room is counted. */
#include <criterion/criterion.h>

#include "common/file.h"
#include "common/json.h"
#include "common/phases.h"
#include "temp_dir.h"

TestSuite(trace, .timeout = 30);

static const char *const names[] = {"idle", "work", "more"};

static trace *
open_trace(const temp_dir *d, char path[128], const char *role, uint32_t id)
{
    trace *t;
    errbuf eb = {{0}};
    temp_file(d, path, "t.json", NULL, 0);
    const trace_config c = {
        .path = path, .role = role, .id = id, .thread = "step", .names = names, .name_count = 3};
    cr_assert_eq(trace_open(&t, &c, &eb), MOE_OK, "%s", eb.text);
    return t;
}

static cJSON *
read_trace(const char *path)
{
    char *text;
    size_t len;
    errbuf eb = {{0}};
    cJSON *root;
    cr_assert_eq(file_read(path, 64 << 20, &text, &len, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(json_parse(text, len, &root, &eb), MOE_OK, "%s", eb.text);
    free(text);
    cr_assert(cJSON_IsArray(root));
    return root;
}

static const cJSON *
find(const cJSON *root, const char *ph, const char *name)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, root)
    {
        if (strcmp(cJSON_GetObjectItem(e, "ph")->valuestring, ph) == 0 &&
            strcmp(cJSON_GetObjectItem(e, "name")->valuestring, name) == 0)
            return e;
    }
    cr_assert_fail("no %s %s", ph, name);
    return NULL;
}

static double
arg(const cJSON *event, const char *key)
{
    const cJSON *args = cJSON_GetObjectItem(event, "args");
    cr_assert_not_null(cJSON_GetObjectItem(args, key), "no %s", key);
    return cJSON_GetObjectItem(args, key)->valuedouble;
}

Test(trace, phases_become_spans_that_say_what_they_are_about)
{
    const temp_dir d = temp_dir_make();
    char path[128];
    trace *t = open_trace(&d, path, "router", 3);
    phases p;
    phases_init(&p, names, 3, false, t);
    phases_set_place(&p, 7, TRACE_NO_LAYER, 0, 0);
    phase_enter(&p, 1);
    phases_set_place(&p, 7, 5, 2, 40);
    phase_enter(&p, 2);
    phases_end_round(&p, "test", 1);
    const uint64_t ends_ns = p.since_ns;
    trace_close(t);

    cJSON *root = read_trace(path);
    const cJSON *first = find(root, "X", "work"), *second = find(root, "X", "more");
    cr_expect_eq(arg(first, "step"), 7);
    cr_expect_null(cJSON_GetObjectItem(cJSON_GetObjectItem(first, "args"), "layer"),
                   "a place is that of the phases after it");
    cr_expect_eq(arg(second, "layer"), 5);
    cr_expect_eq(arg(second, "mb"), 2);
    cr_expect_eq(arg(second, "rows"), 40);
    const double start = cJSON_GetObjectItem(second, "ts")->valuedouble;
    const double length = cJSON_GetObjectItem(second, "dur")->valuedouble;
    cr_expect_float_eq(start + length, (double)ends_ns / 1e3, 0.002);
    const cJSON *head = find(root, "M", "conclave"), *end = find(root, "M", "conclave_end");
    cr_expect_eq(arg(head, "id"), 3);
    cr_expect_eq(arg(end, "events"), 2, "waiting for work is no span");
    cr_expect_eq(arg(end, "lost"), 0);
    cJSON_Delete(root);
}

Test(trace, both_ends_of_a_message_have_one_id)
{
    const temp_dir d = temp_dir_make();
    char path[128], id[2][64];
    const trace_place at = {.step = 9, .layer = 4, .micro_batch = 1, .attempt = 2, .rows = 6};
    for (int end = 0; end < 2; end++) {
        trace *t = open_trace(&d, path, end == 0 ? "router" : "worker", end == 0 ? 1 : 8);
        trace_add(t,
                  &(trace_event){.kind = end == 0 ? TRACE_DISPATCH_SENT : TRACE_DISPATCH_RECEIVED,
                                 .at = at,
                                 .start_ns = 1234567,
                                 .sent_ns = UINT64_MAX, /* a peer may send anything */
                                 .bytes = 6144,
                                 .peer = end == 0 ? 8 : 1});
        trace_close(t);
        cJSON *root = read_trace(path);
        const cJSON *e = find(root, end == 0 ? "s" : "f", "dispatch");
        snprintf(id[end], sizeof id[end], "%s", cJSON_GetObjectItem(e, "id")->valuestring);
        cr_expect_eq(arg(e, "router"), 1);
        cr_expect_eq(arg(e, "worker"), 8);
        cr_expect_eq(arg(e, "bytes"), 6144);
        cr_expect_float_eq(cJSON_GetObjectItem(e, "ts")->valuedouble, 1234.567, 1e-9);
        cJSON_Delete(root);
    }
    cr_expect_str_eq(id[0], id[1]);
}

Test(trace, counts_are_written_at_the_end)
{
    const temp_dir d = temp_dir_make();
    char path[128];
    static const uint64_t counts[] = {1, 2, 3, 4, 5, 6};
    trace *t = open_trace(&d, path, "router", 0);
    trace_put_counts(t, counts, 2, 3);
    trace_put_counts(t, counts, 2, 3);
    trace_close(t);
    cJSON *root = read_trace(path);
    const cJSON *e = find(root, "M", "experts");
    cr_expect_eq(arg(e, "layer"), 0);
    const cJSON *tokens = cJSON_GetObjectItem(cJSON_GetObjectItem(e, "args"), "tokens");
    cr_expect_eq(cJSON_GetArraySize(tokens), 3);
    cr_expect_eq(cJSON_GetArrayItem(tokens, 2)->valuedouble, 3);
    cJSON_Delete(root);
    trace_put_counts(NULL, counts, 2, 3);
    trace_close(NULL);
}

Test(trace, a_file_that_can_not_be_made_is_an_error)
{
    trace *t = (trace *)1;
    errbuf eb = {{0}};
    const trace_config c = {.path = "/no/such/folder/t.json", .role = "worker", .thread = "step"};
    cr_expect_eq(trace_open(&t, &c, &eb), MOE_EIO);
    cr_expect_null(t);
    cr_expect_not_null(strstr(eb.text, "/no/such/folder"));
}

/* Far more than the ring holds, as fast as can be: every event is either written or counted. */
Test(trace, events_that_find_no_room_are_counted)
{
    const temp_dir d = temp_dir_make();
    char path[128];
    trace *t = open_trace(&d, path, "worker", 0);
    const uint64_t all = 3 * TRACE_RING_EVENTS;
    for (uint64_t i = 0; i < all; i++) {
        trace_add(
            t, &(trace_event){
                   .kind = TRACE_SPAN, .name = 1, .at = {.step = i}, .start_ns = i, .end_ns = i});
    }
    const uint64_t lost = trace_lost(t);
    trace_close(t);
    cJSON *root = read_trace(path);
    const cJSON *end = find(root, "M", "conclave_end"), *e;
    cr_expect_eq(arg(end, "lost"), (double)lost);
    cr_expect_eq(arg(end, "events") + arg(end, "lost"), (double)all);
    double seen = 0, last = -1;
    cJSON_ArrayForEach(e, root)
    {
        if (cJSON_GetObjectItem(e, "ph")->valuestring[0] != 'X') continue;
        cr_assert_gt(arg(e, "step"), last, "in order, none twice");
        last = arg(e, "step");
        seen++;
    }
    cr_expect_eq(seen, arg(end, "events"));
    cJSON_Delete(root);
}
