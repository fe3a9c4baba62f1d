/* mover: carries out a change of placement while the fleet serves.
 *
 * What workers lack of the new placement they are told to host, all at once and within a rate; they
 * answer with hashes, which must be those of the copies that are there already.  When all have
 * answered the placement is adopted between two steps, and what it does not name any more is
 * released.  Where a worker's memory can't hold old and new side by side, the change is made in
 * stages, some layers at a time, each adopted before the next is loaded.
 *
 * Each worker is also told whom it may copy an expert from instead of its files (move_source.h),
 * and the hash to expect; it decides by cost.
 *
 * Threads: one.
 */
#ifndef MOE_ROUTER_MOVER_H
#define MOE_ROUTER_MOVER_H

#include "router/membership.h"
#include "router/worker_speed.h"

typedef struct mover mover;

typedef struct mover_config {
    membership *membership;
    uint32_t num_layers, num_experts;
    uint64_t expert_bytes; /* 0: memory is not looked at */
    /* Asked often: should what is under way be given up?  NULL: never. */
    bool (*give_up)(void *arg);
    void *arg;
} mover_config;

typedef struct move_report {
    uint64_t experts, bytes; /* loaded */
    uint64_t peer_bytes;     /* of them, copied from other workers */
    uint64_t peer_failures;  /* experts that another worker was to give and that came from files */
    uint32_t stages;
    uint64_t ns;
} move_report;

moe_err mover_create(mover **out, const mover_config *config, errbuf *eb);
void mover_free(mover *mv); /* accepts NULL */

/* Make `target` the placement.  It stays the caller's.
 *   bytes_per_s  what all workers together may read; 0 = unlimited
 *   MOE_ECLOSED    a worker was lost, or it was given up; the placement is one of the stages
 *   MOE_ENOMEM     a worker's memory holds no stage; the text names the bytes
 *   MOE_EMISMATCH  a worker's copy of an expert is another one
 *   others         as a worker answered  */
moe_err mover_run(mover *mv, const placement *target, uint64_t bytes_per_s, move_report *report,
                  errbuf *eb);

/* Release everything that is hosted but not in the placement.  False: another router's steps may
 * still use it, nothing was released; try again. */
bool mover_release_surplus(mover *mv);

/* Tell a worker that hosts nothing more to end. */
moe_err mover_end_worker(mover *mv, const member *worker, errbuf *eb);

/* What a worker measured. */
moe_err mover_ask_work(mover *mv, const member *worker, worker_work *out, errbuf *eb);

#endif
