#include "tests/bench/roundtrip.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "common/run_dir.h"
#include "exchange/router_end.h"
#include "exchange/worker_end.h"

#define SPIN_DEFAULT_NS 1000000 /* common/futex.h */
#define WAIT_NS (10 * NS_PER_S)

/* ---- threads ---- */

typedef struct ping_pong {
    _Alignas(64) _Atomic uint32_t ping;
    _Alignas(64) _Atomic uint32_t pong;
    uint32_t trips;
} ping_pong;

static void *
answer_main(void *arg)
{
    ping_pong *pp = arg;
    for (uint32_t i = 0; i < pp->trips; i++) {
        while (atomic_load_explicit(&pp->ping, memory_order_acquire) == i)
            futex_wait_change(&pp->ping, i, 0);
        futex_bump(&pp->pong);
    }
    return NULL;
}

static double
between_threads(uint32_t trips, errbuf *eb)
{
    ping_pong pp = {.trips = trips};
    pthread_t other;
    if (pthread_create(&other, NULL, answer_main, &pp) != 0)
        return err_set(eb, MOE_EIO, "can't start a thread"), -1;
    const uint64_t start = clock_now_ns();
    for (uint32_t i = 0; i < trips; i++) {
        futex_bump(&pp.ping);
        while (atomic_load_explicit(&pp.pong, memory_order_acquire) == i)
            futex_wait_change(&pp.pong, i, 0);
    }
    const uint64_t ns = clock_now_ns() - start;
    pthread_join(other, NULL);
    return (double)ns / trips;
}

double
roundtrip_futex_spin(uint32_t trips, errbuf *eb)
{
    return between_threads(trips, eb);
}

double
roundtrip_futex_sleep(uint32_t trips, errbuf *eb)
{
    futex_set_spin(0);
    const double ns = between_threads(trips, eb);
    futex_set_spin(SPIN_DEFAULT_NS);
    return ns;
}

/* ---- processes ---- */

static const exchange_limits limits = {.micro_batch_max = 1,
                                       .token_max = 8,
                                       .num_layers = 1,
                                       .num_experts = 8,
                                       .top_k = 2,
                                       .hidden = 1024,
                                       .dtype = DTYPE_BF16};

static bool
send_all(int to, const void *bytes, size_t n)
{
    return write(to, bytes, n) == (ssize_t)n; /* below PIPE_BUF: whole or not at all */
}

static bool
receive_all(int from, void *bytes, size_t n)
{
    size_t got = 0;
    while (got < n) {
        const ssize_t r = read(from, (char *)bytes + got, n - got);
        if (r <= 0) return false;
        got += (size_t)r;
    }
    return true;
}

/* The worker's process: answers `trips` dispatches. */
static int
serve(const char *run, int from, int to, uint32_t trips)
{
    worker_end *we;
    attach_offer offer;
    attach_answer answer = {{0}, {0}};
    if (worker_end_create(&we, run, 0, 1, NULL, NULL) != MOE_OK) return 1;
    int rc = 1;
    if (receive_all(from, &offer, sizeof offer) &&
        worker_end_attach(we, &limits, &offer, &answer, NULL) == MOE_OK &&
        send_all(to, &answer, sizeof answer)) {
        dispatch_view view;
        uint32_t served = 0;
        while (served < trips && worker_end_wait(we, clock_now_ns() + WAIT_NS)) {
            if (worker_end_take(we, &view, 1) == 0) continue;
            worker_end_reply(we, &view, WIRE_STATUS_OK, 0);
            served++;
        }
        rc = served == trips ? 0 : 1;
    }
    char end;
    receive_all(from, &end, 1); /* the other end still reads the last result */
    worker_end_free(we);
    return rc;
}

static moe_err
connect_worker(router_end *re, int from, int to, errbuf *eb)
{
    attach_offer offer;
    attach_answer answer;
    const moe_err err = router_end_prepare(re, 0, 1, EXCHANGE_SHM, &offer, eb);
    if (err) return err;
    if (!send_all(to, &offer, sizeof offer) || !receive_all(from, &answer, sizeof answer))
        return err_set(eb, MOE_EIO, "the other process ended");
    return router_end_complete(re, 0, &answer, 10000, eb);
}

static double
post_and_wait(router_end *re, uint32_t trips, errbuf *eb)
{
    const wire_expert experts[2] = {{1, 1}, {5, 1}};
    const uint32_t slots[2] = {0, 1};
    const dispatch_list list = {
        .experts = experts, .expert_count = 2, .row_slots = slots, .row_count = 2};
    const uint64_t start = clock_now_ns();
    for (uint32_t i = 0; i < trips; i++) {
        const wire_hdr h = {.epoch = 1, .step = i + 1, .token_count = 1, .mode = WIRE_EP};
        uint32_t missing;
        moe_err err = router_end_post(re, 0, &h, &list);
        if (err) return err_set(eb, err, "a dispatch was not taken (%s)", moe_err_name(err)), -1;
        err = router_end_wait(re, 0, clock_now_ns() + WAIT_NS, &missing, eb);
        if (err) return err_wrap(eb, err, "the exchange"), -1;
    }
    return (double)(clock_now_ns() - start) / trips;
}

double
roundtrip_exchange(uint32_t trips, errbuf *eb)
{
    char dir[] = "/tmp/conclave-bench-XXXXXX";
    run_dir run;
    router_end *re = NULL;
    int down[2], up[2];
    if (mkdtemp(dir) == NULL) return err_set(eb, MOE_EIO, "can't make a folder in /tmp"), -1;
    if (run_dir_open(&run, dir, eb) != MOE_OK) return -1;
    if (pipe(down) != 0 || pipe(up) != 0) return err_set(eb, MOE_EIO, "no pipe"), -1;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(down[1]);
        close(up[0]);
        _exit(serve(run.id, down[0], up[1], trips));
    }
    close(down[0]);
    close(up[1]);
    double ns = -1;
    if (child < 0)
        err_set(eb, MOE_EIO, "can't fork");
    else if (router_end_create(&re, &limits, run.id, 0, 1, eb) == MOE_OK &&
             connect_worker(re, up[0], down[1], eb) == MOE_OK)
        ns = post_and_wait(re, trips, eb);
    close(down[1]); /* the worker ends */
    close(up[0]);
    if (child > 0) waitpid(child, NULL, 0);
    router_end_free(re);
    rmdir(dir);
    return ns;
}
