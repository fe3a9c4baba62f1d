/* chaos: do something to the server at a given time of the run.
 *
 * A plan is one or more steps, with ';' between them:
 *
 *     kill worker 2 at 10s          SIGKILL; also: stop, cont, term (the signals of those names)
 *     stop router 0 at 5s for 2s    and SIGCONT after 2 s
 *     kill pid 1234 at 10s
 *     run systemctl restart x at 3s a command for /bin/sh
 *
 * Times are from the start of the measured run: 10s, 1.5s, 250ms.  A service's process is found by
 * a command that prints what `deploy/conclave status --json` prints, run shortly before the step is
 * due, and again then when that process is gone: it may have been replaced.
 *
 * Threads: chaos_start() makes one thread, which runs the steps; chaos_stop() ends it.  The steps
 * may be read after that.
 */
#ifndef MOE_LOADGEN_CHAOS_H
#define MOE_LOADGEN_CHAOS_H

#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define CHAOS_STEPS_MAX 64
#define CHAOS_COMMAND_MAX 1024

typedef enum chaos_action {
    CHAOS_KILL,
    CHAOS_TERM,
    CHAOS_STOP,
    CHAOS_CONT,
    CHAOS_RUN
} chaos_action;
typedef enum chaos_role { CHAOS_FRONTEND, CHAOS_ROUTER, CHAOS_WORKER, CHAOS_PID } chaos_role;

typedef struct chaos_step {
    chaos_action action;
    chaos_role role;
    int64_t id; /* of the router or worker; the pid itself */
    uint64_t at_ns, for_ns;
    char text[CHAOS_COMMAND_MAX]; /* the step as it was given, without its times */
    /* What came of it. */
    uint64_t done_ns; /* from the start of the run; 0 = never came to be due */
    pid_t pid;
    char outcome[MOE_ERR_TEXT_MAX]; /* "" = as wanted */
} chaos_step;

typedef struct chaos_plan {
    chaos_step steps[CHAOS_STEPS_MAX];
    size_t count;
} chaos_plan;

/* In the order of their times, also the SIGCONT of a "for".
 *   MOE_EINVAL  the text breaks the grammar above
 *   MOE_ERANGE  more than CHAOS_STEPS_MAX steps */
moe_err chaos_parse(const char *text, chaos_plan *out, errbuf *eb);

typedef struct chaos chaos;

/* plan is written to until chaos_stop(); status_command may be NULL when no step names a service.
 *   MOE_ENOMEM, MOE_EIO (no thread) */
moe_err chaos_start(chaos **out, chaos_plan *plan, const char *status_command, errbuf *eb);
/* Steps whose time has not come are not done; but a process that a step stopped is continued.
 * Accepts NULL. */
void chaos_stop(chaos *c);

#endif
