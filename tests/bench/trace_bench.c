/* trace_bench: what an event of --trace costs the thread that adds it.
 *
 * Prints nanoseconds per entry of a phase: switched off, with --profile, with --trace (one clock
 * reading and one event), and of a message event alone; then the writer's time for an event. Rounds
 * are as far apart as the writer needs, so that the ring never fills: a full ring would be cheaper.
 *
 * usage: build/tests/trace_bench [FILE]   the trace that is written; default /dev/null
 */
#include <stdio.h>
#include <time.h>

#include "common/phases.h"

#define ENTRIES 20000u /* of a round; the ring holds more */
#define ROUNDS 50

static const char *const names[] = {"idle", "work", "more"};

typedef void entry_fn(phases *p, uint32_t i);

static void
enter(phases *p, uint32_t i)
{
    phases_set_place(p, i, 3, 0, 32);
    phase_enter(p, 1 + (i & 1));
}

static void
message(phases *p, uint32_t i)
{
    trace_add(p->traced,
              &(trace_event){.kind = TRACE_DISPATCH_SENT, .at = {.step = i}, .start_ns = i});
}

/* The median round. */
static double
measure(phases *p, entry_fn *fn)
{
    double best[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        const uint64_t start = clock_now_ns();
        for (uint32_t i = 0; i < ENTRIES; i++) {
            fn(p, i);
        }
        const double ns = (double)(clock_now_ns() - start) / ENTRIES;
        int at = r;
        for (; at > 0 && best[at - 1] > ns; at--) {
            best[at] = best[at - 1];
        }
        best[at] = ns;
        if (p->traced != NULL) nanosleep(&(struct timespec){.tv_nsec = 40 * 1000 * 1000}, NULL);
    }
    return best[ROUNDS / 2];
}

static double
cpu_ns(clockid_t which)
{
    struct timespec ts;
    clock_gettime(which, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

int
main(int argc, char **argv)
{
    phases off = {0}, profiled, traced;
    trace *t;
    errbuf eb = {{0}};
    const trace_config config = {.path = argc > 1 ? argv[1] : "/dev/null",
                                 .role = "router",
                                 .thread = "step",
                                 .names = names,
                                 .name_count = 3};
    if (trace_open(&t, &config, &eb) != MOE_OK) {
        fprintf(stderr, "trace_bench: %s\n", eb.text);
        return 1;
    }
    phases_init(&profiled, names, 3, true, NULL);
    phases_init(&traced, names, 3, false, t);
    printf("off      %6.2f ns per entry of a phase\n", measure(&off, enter));
    printf("profile  %6.2f ns\n", measure(&profiled, enter));
    printf("trace    %6.2f ns\n", measure(&traced, enter));
    printf("message  %6.2f ns per event\n", measure(&traced, message));
    printf("lost     %llu events\n", (unsigned long long)trace_lost(t));
    trace_close(t);
    const double writer = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns(CLOCK_THREAD_CPUTIME_ID);
    printf("writer   %6.2f ns per event, of another thread\n", writer / (2.0 * ROUNDS * ENTRIES));
    return 0;
}
