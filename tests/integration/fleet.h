/* fleet: whole fleets for tests: router, workers and frontend as processes of their own.
 *
 * Each fleet has a run directory and a port of its own.  fleet_stop() checks what every fleet
 * promises: all processes end with 0 when asked to, nothing of theirs stays in the run directory or
 * in /dev/shm, and no sanitizer had anything to say.  A test that fails before it gets there leaves
 * the rest to fleet_clean_up() (the suite's .fini), which shows the logs and ends everything.
 *
 * The model is models/demo, the binaries those in CONCLAVE_BIN_DIR.
 *
 * Threads: one, but for fleet_metric() and what only reads url.
 */
#ifndef MOE_TESTS_INTEGRATION_FLEET_H
#define MOE_TESTS_INTEGRATION_FLEET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/support/openai_pattern.h"

#define FLEET_WORKERS_MAX 8
#define FLEET_ROUTERS_MAX 4
#define FLEET_PROCESSES_MAX (FLEET_WORKERS_MAX + FLEET_ROUTERS_MAX + 1)
#define FLEET_MODEL "demo"

/* Less work where every step costs ten times as much. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLEET_QUICK true
#else
#define FLEET_QUICK fleet_asked_quick()
#endif

/* Flags are separated by single spaces; NULL: none. */
typedef struct fleet_options {
    uint32_t workers;       /* 0: 2 */
    uint32_t routers;       /* 0: 1 */
    const char *cell_flags; /* of the router and of every worker */
    const char *router_flags, *worker_flags, *frontend_flags;
    const char *ctl_flags; /* of conclave-ctl (fleet_events.h) */
    /* Workers with this id and above run in the network namespace, with flags of their own instead
     * of worker_flags; far_netns 0: none does. */
    uint32_t far_from;
    int far_netns;
    const char *far_worker_flags;
    const char *model;                           /* NULL: models/demo */
    const char *router_mask;                     /* CONCLAVE_CPU_MASK of the router; NULL: none */
    const char *worker_masks[FLEET_WORKERS_MAX]; /* of each worker */
    bool errors_expected;                        /* error lines in the logs are part of the test */
} fleet_options;

typedef struct fleet_process {
    char name[16]; /* "router-0", "worker-3", "frontend" */
    pid_t pid;     /* 0: was waited for */
} fleet_process;

/* In static storage, so that fleet_clean_up() finds it after a test has left its function. */
typedef struct fleet {
    fleet_options options;
    char dir[64], run_id[17], url[64], model[512];
    fleet_process processes[FLEET_PROCESSES_MAX];
    uint32_t process_count;
} fleet;

bool fleet_asked_quick(void); /* CONCLAVE_TEST_QUICK=1 */

/* Open, start all processes, wait until the fleet serves. */
void fleet_start(fleet *f, const fleet_options *options);
/* Ask all to end, frontend first, and check what they leave. */
void fleet_stop(fleet *f);
/* End what a failed test left running, after showing its logs. */
void fleet_clean_up(void);

/* The steps of fleet_start(), for tests that take another order. */
void fleet_open(fleet *f, const fleet_options *options);
fleet_process *fleet_start_router(fleet *f); /* router 0 */
fleet_process *fleet_start_router_id(fleet *f, uint32_t id);
fleet_process *fleet_start_worker(fleet *f, uint32_t id);
fleet_process *fleet_start_frontend(fleet *f); /* url is set when it listens */
void fleet_wait_ready(fleet *f);

/* Wait for a process that is expected to end; its exit status, or 128 + signal. */
int fleet_wait_exit(fleet_process *p);
bool fleet_is_running(const fleet_process *p);
fleet_process *fleet_find(fleet *f, const char *name);
/* Wait until a process's log holds text. */
void fleet_wait_log(fleet *f, const char *name, const char *text);
/* The log so far; free() it. */
char *fleet_log(const fleet *f, const char *name);

/* How often its log holds text so far. */
uint32_t fleet_count_log(const fleet *f, const char *name, const char *text);
uint32_t fleet_count_fds(fleet *f, const char *name); /* that it has open */
uint32_t fleet_count_shm(const fleet *f);             /* shared memory objects of the fleet */

/* Run a program of CONCLAVE_BIN_DIR to its end.  flags as above, without --run-dir, which is the
 * fleet's; out [size] gets what it wrote. */
int fleet_run(fleet *f, const char *program, const char *flags, char *out, size_t size);

/* A sample of /metrics, by its name (labels are not looked at); NAN if there is none. */
double fleet_metric(const fleet *f, const char *name);
/* The same, of one router. */
double fleet_router_metric(const fleet *f, const char *name, uint32_t router);
/* Wait until that router serves. */
void fleet_wait_router(const fleet *f, uint32_t id);
/* Wait until it has the value. */
void fleet_wait_metric(const fleet *f, const char *name, double value);

/* Let some time pass between two looks at a condition; fails the test when `since` (0 at first) is
 * too long ago. */
void fleet_pause(uint64_t *since, const char *what);

#endif
