/* affinity: lists as sysfs writes them, and nodes of machines this one is not. */
#include <criterion/criterion.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/affinity.h"

static errbuf eb;
static char nodes[] = "/tmp/affinity-test-XXXXXX";

static cpu_set_t
set_of(const char *list)
{
    cpu_set_t s;
    cr_assert_eq(affinity_parse(list, &s, &eb), MOE_OK, "%s: %s", list, eb.text);
    return s;
}

static void
expect_set(const cpu_set_t *got, const char *want)
{
    const cpu_set_t w = set_of(want);
    cr_expect(CPU_EQUAL(got, &w), "not %s", want);
}

Test(affinity, reads_lists_of_cpus)
{
    cpu_set_t s = set_of("0-2,5,7-7");
    cr_expect_eq(CPU_COUNT(&s), 5);
    cr_expect(CPU_ISSET(0, &s) && CPU_ISSET(2, &s) && CPU_ISSET(5, &s) && CPU_ISSET(7, &s));
    cr_expect_not(CPU_ISSET(3, &s));
    static const char *const bad[] = {"",    ",",  "1,",   "x",     "1-",  "3-1",
                                      "1 2", "-1", "1,,2", "99999", "0-x", "1-2-3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_expect_eq(affinity_parse(bad[i], &s, &eb), MOE_EINVAL, "\"%s\"", bad[i]);
        cr_expect_not_null(strstr(eb.text, "CPU list"), "%s", eb.text);
    }
}

static void
make_node(uint32_t n, const char *list)
{
    char path[128];
    snprintf(path, sizeof path, "%s/node%u", nodes, n);
    cr_assert_eq(mkdir(path, 0700), 0);
    strcat(path, "/cpulist");
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fprintf(f, "%s\n", list);
    fclose(f);
}

static void
remove_node(uint32_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/node%u/cpulist", nodes, n);
    unlink(path);
    *strrchr(path, '/') = '\0';
    rmdir(path);
}

Test(affinity, auto_spreads_processes_over_nodes_that_they_may_use)
{
    const cpu_set_t all = set_of("0-11"), some = set_of("0-5");
    cpu_set_t s;
    cr_assert_not_null(mkdtemp(nodes));
    cr_expect_eq(affinity_choose("auto", 3, &all, nodes, &s, &eb), MOE_OK);
    expect_set(&s, "0-11"); /* no nodes known */
    make_node(0, "0-3");
    cr_expect_eq(affinity_choose("auto", 1, &all, nodes, &s, &eb), MOE_OK);
    expect_set(&s, "0-11"); /* one node */
    make_node(2, "4-7");    /* a gap */
    make_node(3, "8-11");
    static const char *const want[] = {"0-3", "4-7", "8-11", "0-3"};
    for (uint32_t i = 0; i < 4; i++) {
        cr_expect_eq(affinity_choose("auto", i, &all, nodes, &s, &eb), MOE_OK);
        expect_set(&s, want[i]);
    }
    cr_expect_eq(affinity_choose("auto", 1, &some, nodes, &s, &eb), MOE_OK);
    expect_set(&s, "4-5");
    cr_expect_eq(affinity_choose("auto", 2, &some, nodes, &s, &eb), MOE_OK);
    expect_set(&s, "0-3"); /* node 3 is not ours */
    remove_node(0);
    remove_node(2);
    remove_node(3);
    rmdir(nodes);
}

Test(affinity, a_list_or_none_is_taken_as_it_is)
{
    const cpu_set_t allowed = set_of("0-3");
    cpu_set_t s;
    cr_expect_eq(affinity_choose("none", 9, &allowed, "/nowhere", &s, &eb), MOE_OK);
    expect_set(&s, "0-3");
    cr_expect_eq(affinity_choose("1,3,9", 9, &allowed, "/nowhere", &s, &eb), MOE_OK);
    expect_set(&s, "1,3");
    cr_expect_eq(affinity_choose("9", 0, &allowed, "/nowhere", &s, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "none of them"), "%s", eb.text);
    cr_expect_eq(affinity_choose("some", 0, &allowed, "/nowhere", &s, &eb), MOE_EINVAL);
}

Test(affinity, pools_lie_side_by_side_or_begin_a_cpu_further_each)
{
    static const struct {
        uint32_t index, threads, cpus, first;
    } cases[] = {{0, 2, 8, 0}, {1, 2, 8, 2}, {3, 2, 8, 6}, {4, 2, 8, 0}, {1, 8, 8, 1},
                 {9, 8, 8, 1}, {1, 3, 8, 3}, {3, 3, 8, 1}, {5, 1, 1, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(affinity_first(cases[i].index, cases[i].threads, cases[i].cpus),
                     cases[i].first, "case %zu", i);
    }
}

/* Every thread runs items until all have run one. */
typedef struct meeting {
    uint32_t threads;
    _Atomic uint32_t seen;
    cpu_set_t masks[4];
} meeting;

static void
meet(void *arg, uint32_t item, uint32_t thread)
{
    meeting *m = arg;
    (void)item;
    sched_getaffinity(0, sizeof m->masks[thread], &m->masks[thread]);
    atomic_fetch_or(&m->seen, 1u << thread);
    while (atomic_load(&m->seen) != (1u << m->threads) - 1)
        sched_yield();
}

Test(affinity, each_thread_of_a_bound_pool_keeps_to_one_cpu, .timeout = 20)
{
    cpu_set_t allowed;
    cr_assert_eq(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    if (CPU_COUNT(&allowed) < 2) cr_skip("one CPU: nothing to tell apart");
    pool *p;
    cr_assert_eq(pool_create(&p, 2), MOE_OK);
    affinity_bind_pool("none", p, 0);
    pool_bind_caller(p);
    meeting free_ones = {.threads = 2}, bound = {.threads = 2};
    pool_run(p, meet, &free_ones, 2);
    cr_expect(CPU_EQUAL(&free_ones.masks[0], &allowed) && CPU_EQUAL(&free_ones.masks[1], &allowed));
    affinity_bind_pool("auto", p, 0);
    pool_bind_caller(p);
    pool_run(p, meet, &bound, 2);
    cr_expect_eq(CPU_COUNT(&bound.masks[0]), 1);
    cr_expect_eq(CPU_COUNT(&bound.masks[1]), 1);
    cr_expect(!CPU_EQUAL(&bound.masks[0], &bound.masks[1]), "both on one CPU");
    pool_free(p);
}
