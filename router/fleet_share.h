/* fleet_share: what router 0 tells the routers that follow it (router/follower.h), and what it
 * knows of them.
 *
 * A follower asks for the fleet many times a second: which workers there are, and which of them
 * hosts what, of which epoch.  With each question it says what it has adopted.  Workers free what
 * only an older placement used after all followers that are alive have adopted the present one.
 *
 * Threads: any.
 */
#ifndef MOE_ROUTER_FLEET_SHARE_H
#define MOE_ROUTER_FLEET_SHARE_H

#include "conclave.pb-c.h"

#include "router/membership.h"

/* A follower that has not asked for so long is not waited for.  Once it asks again it is told the
 * placement anew; until then workers refuse what it sends for experts that are gone. */
#define FOLLOWER_TIMEOUT_MS 2000

/* A reply and all it points to. */
typedef struct fleet_answer {
    Conclave__FleetReply reply;
    Conclave__FleetWorker *pointers[WORKER_MAX];
    Conclave__FleetWorker workers[WORKER_MAX];
    member members[WORKER_MAX]; /* what the texts are borrowed from */
    uint32_t slot_counts[WORKER_MAX], speeds[WORKER_MAX], slice_workers[WORKER_MAX];
    uint32_t *slots; /* owned */
} fleet_answer;

/* Note what the follower says and answer it; free with fleet_answer_free().
 *   MOE_ERANGE     router_id is 0, or not below ROUTER_MAX
 *   MOE_EMISMATCH  another model, version or numeric class
 *   MOE_ENOMEM  */
moe_err fleet_on_request(membership *m, const Conclave__FleetRequest *request, fleet_answer **out,
                         errbuf *eb);
void fleet_answer_free(fleet_answer *a); /* accepts NULL */

/* A reply of Router.Placement and all it points to. */
typedef struct placement_answer {
    Conclave__PlacementReply reply;
    uint32_t slot_counts[WORKER_MAX];
    uint32_t *slots; /* owned */
} placement_answer;

/* The placement as steps may use it: slots of workers that are not there are empty.  WIRE_TP, and
 * before the fleet has begun: no workers.  Free with placement_answer_free().  MOE_ENOMEM. */
moe_err fleet_tell_placement(membership *m, placement_answer **out, errbuf *eb);
void placement_answer_free(placement_answer *a); /* accepts NULL */

/* Has every follower that is alive adopted the present placement? */
bool fleet_has_adopted(membership *m);
/* Until every follower that is alive has adopted the present placement: true; or timeout_ms have
 * passed.  From the thread that moves experts. */
bool fleet_wait_for_followers(membership *m, uint32_t timeout_ms);

#endif
