/* balancer: decides where experts should be, and has it carried out (mover.h), while steps run.
 *
 * Three things make it act:
 *   - The fleet changed: experts are without a host (a worker was lost that had no replicas), a
 *     lost worker has not come back for a while, a new one hosts nothing, one is to be drained.
 *     Then the placement is fitted to those who are there, with as few moves as that takes.  If
 *     their memory does not suffice, health names the bytes, and it tries again when somebody
 *     comes.
 *   - step_interval steps have passed (--eplb on): a policy looks at the load of all routers'
 * windows and may find a better placement (eplb_policy.h).
 *   - Somebody asks for it.
 * Every decision is logged with its reason.
 *
 * It is a thread of low priority; no step waits for it.
 *
 * Threads: start and stop from one; the rest from any.
 */
#ifndef MOE_ROUTER_BALANCER_H
#define MOE_ROUTER_BALANCER_H

#include "router/eplb_policy.h"
#include "router/load_feed.h"
#include "router/load_pool.h"
#include "router/mover.h"
#include "router/stepper.h"

#define BALANCER_RETURN_MS 5000u

typedef struct balancer balancer;

typedef struct balancer_config {
    membership *membership; /* WIRE_EP */
    stepper *stepper;       /* NULL: a step's time is not known */
    load_feed *feed;
    load_pool *pool; /* what routers that follow add to it; NULL: there are none */
    uint32_t num_layers, num_experts;
    uint64_t expert_bytes;
    bool enabled; /* --eplb on */
    eplb_policy policy;
    eplb_config balance;
    uint32_t return_ms;   /* how long a lost worker whose experts all have replicas may take to come
                             back before they get new ones; 0 = BALANCER_RETURN_MS */
    uint32_t spare_slots; /* room that placements leave on each worker, in experts */
    uint64_t move_bytes_per_s; /* for moves that are not urgent; 0 = unlimited */
} balancer_config;

moe_err balancer_start(balancer **out, const balancer_config *config, errbuf *eb);
void balancer_stop(balancer *b); /* accepts NULL */

/* Look at the placement now, and adopt whatever is better at all. */
void balancer_rebalance(balancer *b);

/* With --eplb it looks at the load once in an interval.  After so many without a look something
 * holds it up: a change to the fleet that can't be made, or a move that takes longer than that. */
#define BALANCER_OVERDUE_INTERVALS 2u
/* balancer_report.verdicts: an eplb_verdict, or this: no decision came about. */
#define BALANCER_FAILED EPLB_VERDICTS

typedef struct balancer_report {
    uint64_t decisions; /* with or without a change */
    uint64_t verdicts[EPLB_VERDICTS + 1];
    uint64_t adopted, refused, failed;
    uint64_t experts_moved, bytes_moved, move_ns;
    uint64_t peer_bytes_moved; /* of bytes_moved: copied from other workers, not read from files */
    uint64_t peer_failures;    /* experts that were to be copied and came from files after all */
    uint64_t repairs;          /* times that experts were without a host, and over */
    uint64_t last_recovery_ns, recovery_ns_max, recovery_ns; /* from the loss until all were
                                                                hosted; the last is their sum */
    uint64_t adopted_ns; /* when a placement was last adopted; clock_now_ns() time; 0: never */
    uint64_t idle_steps; /* since it last looked at the load */
    bool overdue;        /* it is enabled, and those are BALANCER_OVERDUE_INTERVALS or more */
    double balancedness; /* of the window, by the placement in force */
    uint64_t last_ns;    /* of the last decision; clock_now_ns() time; 0: none */
    double last_gain_ns, last_bytes;
    char last_verdict[16], last_text[256];
} balancer_report;

void balancer_get_report(balancer *b, balancer_report *out);
/* Balancedness of each layer, out [L], with balancer_report.balancedness. */
void balancer_get_layers(balancer *b, double *out);
uint32_t balancer_step_interval(const balancer *b);

/* The verdict's name: "adopted", ..., "failed". */
const char *balancer_verdict_name(uint32_t verdict);

#endif
