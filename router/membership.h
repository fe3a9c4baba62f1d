/* membership: which workers this router has, and where the experts are.
 *
 * Workers register themselves.  When as many as the cell is to have are there, the placement is
 * computed (linear: experts in equal runs over the workers, and replicas in the slots beyond them),
 * each worker is told to load its part, a link is made to it, and the fleet is ready.  A worker
 * whose heartbeats stop is given up; where it alone hosts an expert, the fleet is not ready until
 * one registers in its place.
 *
 * With replicas (EP) a loss need not be felt: while every expert has a host left, the fleet stays
 * ready, steps use the others, and a step that is under way goes on with them.  The epoch rises
 * between two steps, whenever other workers take part than before.
 *
 * Threads: on_register, on_heartbeat and the getters from any thread; update() from the control
 * thread; what enter() gives is for the step thread, until leave().  No step waits for update():
 * it touches only links of workers that no step can use.
 */
#ifndef MOE_ROUTER_MEMBERSHIP_H
#define MOE_ROUTER_MEMBERSHIP_H

#include <stdbool.h>

#include "proto/identity.h"
#include "router/transformer.h"

typedef struct membership membership;

typedef enum exchange_choice {
    EXCHANGE_AUTO,
    EXCHANGE_ONLY_SHM,
    EXCHANGE_ONLY_NNG
} exchange_choice;

typedef struct membership_config {
    uint32_t worker_count; /* the cell's size: ids 0 .. worker_count-1 */
    enum wire_mode mode;
    uint32_t num_redundant_experts; /* WIRE_EP: slots of a layer beyond its experts */
    exchange_choice exchange;
    uint32_t worker_timeout_ms; /* without a heartbeat */
    uint32_t load_timeout_ms;
    const identity *identity;
    exchange_limits limits;
    router_end *router_end; /* borrowed */
    uint32_t router_id;
    uint64_t router_incarnation;
} membership_config;

moe_err membership_create(membership **out, const membership_config *config, errbuf *eb);
void membership_free(membership *m); /* accepts NULL */

/*   MOE_EMISMATCH  another model, version or numeric class
 *   MOE_ERANGE     worker_id is not below worker_count
 *   MOE_EINVAL     it does not say what it serves, or its control_url is too long
 *   MOE_EBUSY      a worker with this id is alive: try again  */
moe_err membership_on_register(membership *m, const Conclave__RegisterRequest *request, errbuf *eb);
/* false: unknown, or given up; register again. */
bool membership_on_heartbeat(membership *m, uint32_t worker_id, uint64_t incarnation);

/* Bring up workers that are new, give up those that are silent; waits up to wait_ms for something
 * to do. */
void membership_update(membership *m, uint32_t wait_ms);
void membership_stop(membership *m); /* makes update() return soon; async-signal-safe */
/* After the last update(): gives up every link, so that a step that waits for a worker ends now,
 * and no other begins.  Accepts NULL. */
void membership_close(membership *m);

/* Between enter and leave links and placement stay as they are, but for what out->on_lost changes.
 * enter returns false (and needs no leave) when the fleet is not ready. */
bool membership_enter(membership *m, expert_fleet *out);
void membership_leave(membership *m);
/* A step found this worker lost; from the step thread, between enter and leave. */
void membership_lost(membership *m, uint32_t worker_id);

typedef struct membership_status {
    bool ready;
    uint32_t workers_ready;
    uint64_t epoch;
    char detail[160];
} membership_status;

void membership_get_status(membership *m, membership_status *out);

/* One worker, for statistics.  Texts are static. */
typedef struct worker_status {
    uint32_t pid, experts_hosted;
    uint64_t bytes_hosted;
    const char *state, *backend;
} worker_status;
worker_status membership_worker(membership *m, uint32_t worker_id);

#endif
