/* affinity: lists as sysfs writes them, and nodes of machines this one is not. */
#include <criterion/criterion.h>

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
