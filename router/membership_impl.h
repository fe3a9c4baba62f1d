/* membership_impl: what the files of membership share.  Functions that end in _locked want the
 * lock.
 *
 * Threads: as membership.h.
 */
#ifndef MOE_ROUTER_MEMBERSHIP_IMPL_H
#define MOE_ROUTER_MEMBERSHIP_IMPL_H

#include <pthread.h>

#include "router/membership.h"

#define CALL_POLL_MS 50 /* how soon a call is left when this router stops or the worker is lost */

typedef enum worker_state { ABSENT, REGISTERED, LOADING, READY, LOST } worker_state;

typedef struct worker {
    worker_state state;
    bool belongs; /* to the cell: counted by health */
    bool draining;
    bool linked; /* the router end has this index in use */
    uint64_t incarnation;
    uint64_t last_seen_ns, lost_ns;
    uint64_t memory_bytes;
    uint32_t pid, experts_hosted;
    uint64_t bytes_hosted; /* WIRE_TP; else experts_hosted count */
    exchange_backend backend;
    rpc_client *watch; /* its connection ends when the worker does; or NULL.  The control thread's,
                          set with the lock */
    rpc_pending *ping; /* config.follows: a question over it that is under way; or NULL */
    uint64_t asked_ns;
    uint32_t unanswered; /* questions, in a row */
    char control_url[RPC_URL_MAX];
    char host_id[HOST_ID_MAX];
} worker;

/* Who has a slice of the experts (WIRE_TP), or is to have it. */
typedef struct slice_owner {
    bool set, lost;        /* lost: its link was given up, whatever its worker is now */
    uint32_t worker, link; /* link: index in the router end */
    uint64_t incarnation;
} slice_owner;

typedef struct slice {
    slice_owner home; /* what steps use; its worker may be lost */
    slice_owner next; /* who is to take it over */
    bool next_linked; /* and can, between two steps */
} slice;

typedef enum link_state { LINK_FREE, LINK_USED, LINK_RETIRED } link_state;

/* A worker that is being brought up, or, one that serves already, gets slices. */
typedef struct bring_up_call {
    membership *m;
    uint32_t id;
    bool serving; /* it was READY before */
    uint64_t begun_ns;
    worker worker; /* what it was when this began, and what it then hosts */
    rpc_client *client;
    rpc_pending *load; /* under way */
    uint32_t *experts; /* [L * E]: worker.experts_hosted that it hosts when it has loaded; owned */
    errbuf eb;
    moe_err err;
} bring_up_call;

/* A router that follows this one. */
typedef struct follower_seen {
    uint64_t incarnation; /* 0: never seen */
    uint64_t fleet_version, seen_ns;
} follower_seen;

struct membership {
    membership_config config;
    size_t id_count;      /* L * E */
    pthread_mutex_t lock; /* guards what follows, but for bells, `stopping` and calls */
    _Atomic uint32_t bell;
    _Atomic uint32_t changes; /* for who plans */
    _Atomic uint32_t left;    /* rung when a step has ended */
    _Atomic bool stopping;
    bool placed;  /* home is the first placement of those that are there */
    bool started; /* all workers that the cell begins with were there once */
    bool ready, closed, in_step;
    bool moving;
    uint64_t steps, epoch, step_waits, losses, shortfall;
    uint64_t moving_losses; /* when the move began */
    uint32_t worker_end;    /* ids that were seen are below */
    /* WIRE_EP, else NULL.  `home` is the placement in force; `fitted`, of equal slots, is that
     * without workers that are not there, and is what steps use: changed between steps, or by the
     * step thread.  `next` is proposed, with its own `next_fitted`. */
    placement *home, *fitted, *next, *next_fitted;
    bool adopted;                                     /* next changed places with home */
    uint64_t next_epoch, next_version, fleet_version; /* config.follows: of next; of home */
    follower_seen followers[ROUTER_MAX];
    bool members[WORKER_MAX]; /* who is in this epoch's placement */
    bool *hosted;             /* WIRE_EP: [WORKER_MAX][L * E] what each worker is known to host */
    /* WIRE_TP: one slice for each worker that the cell begins with. */
    slice slices[WORKER_MAX];
    uint32_t slice_links[WORKER_MAX]; /* what steps use: changed between steps */
    link_state link_states[WORKER_MAX];
    uint32_t told_owners[WORKER_MAX]; /* config.follows: of each slice, worker + 1; 0: nobody */
    bool surplus[WORKER_MAX];         /* the worker may have a slice that another took over */
    uint64_t slices_retry_ns;         /* no slice is given to anyone before */
    worker workers[WORKER_MAX];
    bring_up_call calls[WORKER_MAX]; /* scratch of the control thread */
};

static inline bool
is_ready_locked(const membership *m, uint32_t id)
{
    return m->workers[id].state == READY;
}

static inline bool *
hosted_locked(membership *m, uint32_t id)
{
    return m->hosted + id * m->id_count;
}

/* ---- liveness.c ---- */

/* A heartbeat may be later than now, which was read before the lock was taken. */
bool is_silent_locked(const membership *m, const worker *w, uint64_t now);
/* It sends nothing any more, or its process is gone. */
bool is_gone_locked(const membership *m, const worker *w, uint64_t now);
/* config.follows: take what it answered, and ask it again when it is time to. */
void liveness_ask_locked(membership *m, uint32_t id, uint64_t now);
/* Before its watch is replaced: what was asked over it does not count any more. */
void liveness_forget_locked(worker *w);

/* ---- membership.c ---- */

/* Mark workers that are gone as lost; returns true if there is something to bring up.  Before the
 * start nothing is loaded until everybody is there. */
bool membership_check(membership *m);
/* Until no step can use the link of a worker that is not READY, or a placement of before: one that
 * began when it was. */
void membership_wait_for_step(membership *m);

/* ---- bring_up.c: from the control thread ---- */

void bring_up_registered(membership *m);

/* A worker that serves and has slices that it is to forget. */
void bring_up_trim(membership *m, uint32_t id);

/* ---- slices.c (WIRE_TP) ---- */

bool slices_covered_locked(const membership *m);
/* Slices that the worker has, or is to have, rising; out [WORKER_MAX]; returns how many. */
uint32_t slices_list_locked(const membership *m, uint32_t id, uint32_t *out);
/* Whose link it is; WORKER_MAX: nobody's. */
uint32_t slices_owner_locked(const membership *m, uint32_t link);
void slices_give_up_locked(membership *m, uint32_t id);
/* An index of the router end that nothing uses; false: there is none. */
bool slices_take_link_locked(membership *m, uint32_t *link);
void slices_retire_link_locked(membership *m, uint32_t link);
/* Decide who is to take over what.  Returns whether bring_up_registered() has something to do. */
bool slices_plan(membership *m);
bool slices_concern_locked(const membership *m, uint32_t id); /* does it have to be brought up? */
/* It could not take over what it was to: somebody else may, a little later. */
void slices_failed_locked(membership *m, uint32_t id);
/* Between two steps; returns whether a slice changed hands, or a follower has caught up. */
bool slices_renew_locked(membership *m);
/* A worker that can forget a slice now, or WORKER_MAX. */
uint32_t slices_surplus(membership *m);
void slices_clear(membership *m); /* links that are not used any more; from the control thread */
void slices_fini(membership *m);

/* ---- adoption.c ---- */

/* Space for placements, and the first one as if memory had no limits. */
moe_err adoption_init(membership *m, errbuf *eb);
void adoption_fini(membership *m);
/* The first placement, of those that have registered.  MOE_ENOMEM: memory does not suffice;
 * m->shortfall has the bytes. */
moe_err adoption_start_locked(membership *m, errbuf *eb);

typedef bool there_fn(const membership *m, uint32_t id);
/* Is everything hosted by workers for which `there` says yes? */
bool adoption_is_covered_locked(const membership *m, there_fn *there);
/* Each worker that takes rows has what it hosts of its slots, others have none. */
void adoption_fit_locked(membership *m);
void adoption_judge_locked(membership *m); /* sets ready */
/* Between two steps: what was proposed, if all is there; and the placement of those who are there
 * now.  If it is another, its epoch begins. */
void adoption_renew_locked(membership *m);
/* May a step send rows to it?  One that came back during a step is for the next. */
bool adoption_takes_rows_locked(const membership *m, uint32_t id);

#endif
