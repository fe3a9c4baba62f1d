/* membership: which workers this router has, and where the experts are.
 *
 * Workers register themselves.  When as many as the cell begins with are there, the first placement
 * is computed (linear: experts in equal runs over the workers, and replicas in the slots beyond
 * them), each worker is told to load its part, a link is made to it, and the fleet is ready.  More
 * may register later, under any id: they are brought up with nothing to host.
 *
 * The placement changes while the fleet serves: somebody (the balancer) has workers host what a new
 * one needs, says so (membership_set_hosted()), and proposes it; it is adopted between two steps if
 * all that it names is there, and its epoch begins.  No step waits for that.
 *
 * A worker whose connection ends or whose heartbeats stop is given up.  With replicas (EP) a loss
 * need not be felt: while every expert has a host left, the fleet stays ready, steps use the
 * others, and a step that is under way goes on with them.  Else the fleet is not ready until the
 * experts are hosted again, by a worker that registers in its place, or by others.
 *
 * Threads: update() and free from the control thread; propose, set_hosted, dismiss from one other
 * thread; what enter() gives is for the step thread, until leave(); the rest from any.  No step
 * waits for update() or propose(): they touch only links of workers that no step can use.
 *
 * With tensor parallelism there is no placement: each worker has a slice of all experts, and what
 * changes hands are slices (slices.c).
 *
 * Files: membership.c who is there, and steps; liveness.c who is alive; bring_up.c what a worker
 * needs before steps may use it; adoption.c which placement steps use; slices.c who has which
 * slice.
 */
#ifndef MOE_ROUTER_MEMBERSHIP_H
#define MOE_ROUTER_MEMBERSHIP_H

#include <stdbool.h>

#include "proto/identity.h"
#include "proto/rpc.h"
#include "router/transformer.h"

typedef struct membership membership;

typedef enum exchange_choice {
    EXCHANGE_AUTO,
    EXCHANGE_ONLY_SHM,
    EXCHANGE_ONLY_NNG
} exchange_choice;

typedef struct membership_config {
    uint32_t worker_count; /* the cell begins when ids 0 .. worker_count-1 are there; WIRE_TP: as
                              many as that, and so many slices there are */
    enum wire_mode mode;
    uint32_t num_redundant_experts; /* WIRE_EP: slots of a layer beyond its experts */
    uint64_t expert_bytes;          /* of one expert's packed weights; 0: memory is not looked at */
    uint64_t slice_bytes;           /* WIRE_TP: of the largest slice; 0: memory is not looked at */
    uint32_t spare_slots; /* WIRE_EP: room that placements leave on each worker, experts */
    exchange_choice exchange;
    uint32_t worker_timeout_ms; /* without a heartbeat */
    uint32_t load_timeout_ms;
    const identity *identity;
    exchange_limits limits;
    router_end *router_end; /* borrowed */
    uint32_t router_id;
    uint64_t router_incarnation;
    bool follows; /* router 0 decides (router/follower.h): workers are not told to load anything,
                     one is lost when membership_forsake() says so, it does not answer within the
                     timeout, or its connection ends, and
                     placements and epochs come with membership_follow() */
    bool shared;  /* other routers follow this one */
} membership_config;

moe_err membership_create(membership **out, const membership_config *config, errbuf *eb);
void membership_free(membership *m); /* accepts NULL */

/*   MOE_EMISMATCH  another model, version or numeric class
 *   MOE_ERANGE     worker_id is not below WORKER_MAX
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
/* A step found the worker of this link lost; from the step thread, between enter and leave. */
void membership_lost(membership *m, uint32_t link);

typedef struct membership_status {
    bool ready;
    uint32_t workers, workers_ready; /* of the cell now */
    uint64_t epoch;
    char detail[240];
} membership_status;

void membership_get_status(membership *m, membership_status *out);

/* One worker, for statistics.  Texts are static. */
typedef struct worker_status {
    bool known;                          /* else it never registered, or was let go */
    bool lost;                           /* given up, and not back */
    uint32_t pid, experts_hosted, slots; /* slots: of one layer, in the placement */
    uint64_t bytes_hosted, memory_bytes;
    const char *state, *backend;
} worker_status;
worker_status membership_worker(membership *m, uint32_t worker_id);
uint32_t membership_worker_end(membership *m); /* one more than the highest id that ever was */

/* ---- changing the placement while serving (WIRE_EP) ---- */

/* What one worker is, for who plans. */
typedef struct member {
    bool ready, draining;
    bool missing; /* not there, but the placement counts on it */
    uint64_t incarnation, memory_bytes;
    uint64_t lost_ns; /* when it was given up; clock_now_ns() time */
    uint32_t experts_hosted;
    char control_url[RPC_URL_MAX];
    char host_id[HOST_ID_MAX];
} member;

/* The fleet at one moment: what another router would have to know to send rows to it. */
typedef struct fleet_view {
    bool started;
    bool covered;  /* every expert has a host that is ready */
    bool proposed; /* a placement waits for the end of a step */
    uint64_t epoch;
    uint32_t worker_end; /* members[worker_end] */
    placement *home;     /* the placement in force, whole; owned */
    bool *hosted;        /* [worker_end][L * E] what each hosts; owned */
    member members[WORKER_MAX];
} fleet_view;

/*   MOE_ENOMEM  */
moe_err membership_look(membership *m, fleet_view *out, errbuf *eb);
void fleet_view_fini(fleet_view *v);

static inline bool
fleet_view_hosts(const fleet_view *v, uint32_t worker_id, uint32_t expert_id)
{
    const size_t experts = (size_t)v->home->num_layers * v->home->num_experts;
    return worker_id < v->worker_end && v->hosted[worker_id * experts + expert_id];
}

/* Rises when there may be something to plan: workers come, go or are to be drained. */
_Atomic uint32_t *membership_changes(membership *m);

/* This life of a worker hosts experts `ids` (layer * E + expert) now, or no more.  Nothing happens
 * when that life is over. */
void membership_set_hosted(membership *m, uint32_t worker, uint64_t incarnation,
                           const uint32_t *ids, size_t count, bool hosted);
/* Experts that it hosts and the placement does not name; out [L * E]; returns how many. */
size_t membership_surplus(membership *m, uint32_t worker, uint32_t *out);

/* Use this placement (owned from here on, also after errors) from the next step on.  Returns when
 * no step uses the one before any more.
 *   MOE_ECLOSED  one of its hosts is not ready or does not host what it names: the placement stays
 *   MOE_ENOMEM  */
moe_err membership_propose(membership *m, placement *next, errbuf *eb);

/* A change that is not a repair is under way: a step that finds the fleet not ready meanwhile,
 * though no worker was lost, counts as one that waited for it. */
void membership_set_moving(membership *m, bool moving);
uint64_t membership_step_waits(membership *m);
uint64_t membership_losses(membership *m); /* workers that were given up since create */

/* Bytes of memory that are missing for all experts to be hosted; 0 = none.  Health tells. */
void membership_set_shortfall(membership *m, uint64_t bytes);

/* These workers are to go, as soon as others host what they do.
 *   MOE_ENOTFOUND     one is not there
 *   MOE_EUNSUPPORTED  WIRE_TP
 *   MOE_ENOMEM        the others' memory does not suffice; the text names the bytes  */
moe_err membership_drain(membership *m, const uint32_t *ids, size_t count, errbuf *eb);
/* One that is being drained, and hosts nothing more, has been told to end: forget it. */
void membership_dismiss(membership *m, uint32_t worker, uint64_t incarnation);

/* ---- of a router that follows router 0 (config.follows); from the control thread ---- */

/* Of these workers [worker_end] router 0 says nothing any more: they are given up at the next
 * update(). */
void membership_forsake(membership *m, const bool *forsaken, uint32_t worker_end);

/* Use this placement (owned from here on, also after errors) as soon as no step is under way and
 * all that it names is ready; workers host what it names.  Another call replaces one that is not
 * used yet.  Does not wait.
 *   MOE_ENOMEM  */
moe_err membership_follow(membership *m, uint64_t epoch, uint64_t fleet_version, placement *next,
                          errbuf *eb);
/* WIRE_TP: the same for the owners of slices: worker + 1, 0: nobody.
 *   MOE_EINVAL  there are not as many slices, or a worker is out of range  */
moe_err membership_follow_slices(membership *m, uint64_t epoch, uint64_t fleet_version,
                                 const uint32_t *owners, size_t count, errbuf *eb);
/* Of the placement that steps use; 0 = none yet. */
void membership_followed(membership *m, uint64_t *epoch, uint64_t *fleet_version);

#endif
