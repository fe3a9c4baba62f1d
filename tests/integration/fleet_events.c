#include "tests/integration/fleet_events.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int
fleet_ctl(fleet *f, const char *flags, char *said)
{
    char all[1024];
    snprintf(all, sizeof all, "%s %s", f->options.ctl_flags == NULL ? "" : f->options.ctl_flags,
             flags);
    return fleet_run(f, "ctl", all, said, FLEET_SAID_BYTES);
}

double
fleet_try_stat(fleet *f, const char *key)
{
    char said[FLEET_SAID_BYTES], quoted[64];
    if (fleet_ctl(f, "--json", said) != 0) return NAN;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(said, quoted);
    cr_assert_not_null(at, "no %s in %s", key, said);
    return strtod(at + strlen(quoted), NULL);
}

double
fleet_stat(fleet *f, const char *key)
{
    const double value = fleet_try_stat(f, key);
    cr_assert(!isnan(value), "%s: router 0 does not answer", key);
    return value;
}

void
fleet_wait_stat(fleet *f, const char *key, double at_least)
{
    for (uint64_t since = 0; !(fleet_try_stat(f, key) >= at_least);)
        fleet_pause(&since, key);
}

uint32_t
fleet_worker_state(fleet *f, uint32_t id, char *state)
{
    char said[FLEET_SAID_BYTES], text[32];
    state[0] = '\0';
    if (fleet_ctl(f, "--json", said) != 0) return 0;
    snprintf(text, sizeof text, "{\"id\":%u,", id);
    snprintf(state, 16, "absent");
    const char *at = strstr(said, text);
    if (at == NULL) return 0;
    cr_assert_eq(sscanf(strstr(at, "\"state\":\""), "\"state\":\"%15[a-z]", state), 1);
    return (uint32_t)strtoul(strstr(at, "\"experts_hosted\":") + 17, NULL, 10);
}

void
fleet_wait_hosting(fleet *f, uint32_t id)
{
    char state[16];
    for (uint64_t since = 0; fleet_worker_state(f, id, state) == 0 || strcmp(state, "ready") != 0;)
        fleet_pause(&since, "a worker to host experts");
}

fleet_process *
fleet_worker(fleet *f, uint32_t id)
{
    char name[16];
    snprintf(name, sizeof name, "worker-%u", id);
    return fleet_find(f, name);
}

void
fleet_kill(fleet_process *p)
{
    kill(p->pid, SIGKILL);
    cr_expect_eq(fleet_wait_exit(p), 128 + SIGKILL, "%s", p->name);
}

void
fleet_drain(fleet *f, uint32_t id)
{
    char said[FLEET_SAID_BYTES], flags[32];
    snprintf(flags, sizeof flags, "--drain=%u", id);
    cr_assert_eq(fleet_ctl(f, flags, said), 0, "%s", said);
    cr_expect_eq(fleet_wait_exit(fleet_worker(f, id)), 0);
}
