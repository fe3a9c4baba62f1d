/* fleet_events: what can happen to a fleet while it serves, and what its router 0 says of itself.
 *
 * Threads: one.
 */
#ifndef MOE_TESTS_INTEGRATION_FLEET_EVENTS_H
#define MOE_TESTS_INTEGRATION_FLEET_EVENTS_H

#include "tests/integration/fleet.h"

#define FLEET_SAID_BYTES 16384

/* conclave-ctl with these flags: its exit status.  said [FLEET_SAID_BYTES] gets what it wrote. */
int fleet_ctl(fleet *f, const char *flags, char *said);

/* A number of ctl --json, by its key; NAN: router 0 does not answer. */
double fleet_try_stat(fleet *f, const char *key);
/* The same of a router 0 that must answer. */
double fleet_stat(fleet *f, const char *key);
void fleet_wait_stat(fleet *f, const char *key, double at_least);

/* "ready", "absent", ... into state [16]; "" if router 0 does not answer.  Returns what it hosts.
 */
uint32_t fleet_worker_state(fleet *f, uint32_t id, char *state);
/* Until it is ready and hosts something. */
void fleet_wait_hosting(fleet *f, uint32_t id);

/* NULL: was never started. */
fleet_process *fleet_worker(fleet *f, uint32_t id);
/* SIGKILL, and wait for its end. */
void fleet_kill(fleet_process *p);
/* Ask router 0 to let it go, and wait for its end. */
void fleet_drain(fleet *f, uint32_t id);

#endif
