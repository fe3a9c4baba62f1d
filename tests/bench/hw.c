/* hw: what this machine reaches at best: arithmetic, memory, hand-overs between threads and
 * processes.  Every other figure is a share of these. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "tests/bench/bench.h"
#include "tests/bench/machine.h"
#include "tests/bench/roundtrip.h"

typedef struct hw {
    machine m;
    report out;
    uint32_t repeat;
    uint64_t for_ns;
    uint32_t trips;
} hw;

static void
peaks_at(hw *h, pool *p)
{
    for (uint32_t i = 0; i < peak_count; i++) {
        const peak *run = &peak_list[i];
        result x = {.unit = "GOP/s"};
        snprintf(x.test, sizeof x.test, "peak.%s.t%u", run->name, pool_size(p));
        if ((run->flags & h->m.flags) != run->flags) {
            char why[64];
            snprintf(why, sizeof why, "no %s", run->missing);
            report_skip(&h->out, x.test, why);
            continue;
        }
        machine_peak(p, run, h->for_ns);
        const cpu_watch watch = cpu_watch_begin();
        for (uint32_t r = 0; r < h->repeat; r++)
            samples_add(&x.values, machine_peak(p, run, h->for_ns) / 1e9);
        result_number(&x, "cpu", cpu_watch_share(&watch, pool_size(p)));
        result_text(&x, "how", run->how);
        report_result(&h->out, &x);
    }
}

static void
read_own(hw *h, pool *p, const char *level, const read_ring *ring, size_t each)
{
    result x = {.unit = "GB/s"};
    snprintf(x.test, sizeof x.test, "read.%s.t%u", level, pool_size(p));
    each = each / 4096 * 4096;
    const cpu_watch watch = cpu_watch_begin();
    for (uint32_t r = 0; r < h->repeat; r++)
        samples_add(&x.values, machine_read_own(p, ring, each, h->for_ns) / 1e9);
    result_number(&x, "cpu", cpu_watch_share(&watch, pool_size(p)));
    result_number(&x, "kib_each", (double)each / 1024);
    report_result(&h->out, &x);
}

static int
reads_at(hw *h, pool *p)
{
    const size_t bytes = machine_beyond_cache(&h->m, 64u << 20);
    char *memory = machine_memory(bytes);
    if (memory == NULL) return bench_fail("hw", "no memory to read");
    read_ring ring = {.base = memory, .bytes = bytes, .read = peak_reader(h->m.flags)};
    read_own(h, p, "l2", &ring, h->m.l2_bytes / 2);
    /* Too large for a core's L2, small enough for all to lie in L3. */
    size_t each = h->m.l3_bytes / 2 / pool_size(p);
    if (each > 4 * h->m.l2_bytes) each = 4 * h->m.l2_bytes;
    read_own(h, p, "l3", &ring, each);

    result x = {.unit = "GB/s"};
    snprintf(x.test, sizeof x.test, "read.dram.t%u", pool_size(p));
    machine_read(p, &ring, h->for_ns);
    const cpu_watch watch = cpu_watch_begin();
    for (uint32_t r = 0; r < h->repeat; r++)
        samples_add(&x.values, machine_read(p, &ring, h->for_ns) / 1e9);
    result_number(&x, "cpu", cpu_watch_share(&watch, pool_size(p)));
    result_number(&x, "mib", (double)bytes / (1u << 20));
    report_result(&h->out, &x);
    machine_release(memory, bytes);
    return 0;
}

static int
round_trips(hw *h)
{
    static const struct {
        const char *test;
        double (*run)(uint32_t trips, errbuf *eb);
    } list[] = {
        {"roundtrip.futex.spin", roundtrip_futex_spin},
        {"roundtrip.futex.sleep", roundtrip_futex_sleep},
        {"roundtrip.exchange.shm", roundtrip_exchange},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        result x = {.unit = "us", .lower_is_better = true};
        errbuf eb = {{0}};
        snprintf(x.test, sizeof x.test, "%s", list[i].test);
        for (uint32_t r = 0; r < h->repeat; r++) {
            const double ns = list[i].run(h->trips, &eb);
            if (ns < 0) return bench_fail("hw", eb.text);
            samples_add(&x.values, ns / 1e3);
        }
        report_result(&h->out, &x);
    }
    return 0;
}

static int
measure(hw *h)
{
    char title[192];
    snprintf(title, sizeof title, "%s, %u threads, L2 %zu KiB, L3 %zu KiB", h->m.model,
             h->m.threads, h->m.l2_bytes / 1024, h->m.l3_bytes / 1024);
    report_title(&h->out, title);
    /* First, while this process has one thread: one of them forks. */
    int rc = round_trips(h);
    const uint32_t counts[] = {1, h->m.threads};
    for (uint32_t i = 0; i < (h->m.threads > 1 ? 2u : 1u) && rc == 0; i++) {
        pool *p;
        if (pool_create(&p, counts[i]) != MOE_OK) return bench_fail("hw", "can't start threads");
        peaks_at(h, p);
        rc = reads_at(h, p);
        pool_free(p);
    }
    return rc;
}

int
bench_hw(int argc, char **argv)
{
    bench_options o = {0};
    int64_t ms, trips;
    const flag_spec specs[] = {
        BENCH_SPECS(o, "5"),
        {"ms", NULL, FLAG_INT, &ms, "100", 1, 10000, NULL, "ms", "length of one measurement"},
        {"trips", NULL, FLAG_INT, &trips, "5000", 1, 1000000, NULL, NULL,
         "round trips of one measurement"},
    };
    flags f;
    int rc = bench_parse(&f, "hw", "Measures this machine: arithmetic, memory, hand-overs.", specs,
                         sizeof specs / sizeof specs[0], argc, argv);
    if (rc == BENCH_GO_ON) {
        hw h = {.out = {.out = stdout, .bench = "hw", .json = o.json},
                .repeat = (uint32_t)o.repeat,
                .for_ns = (uint64_t)ms * NS_PER_MS,
                .trips = (uint32_t)trips};
        machine_look(&h.m);
        rc = measure(&h);
    }
    flags_fini(&f);
    return rc;
}
