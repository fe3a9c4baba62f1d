/* eplb_layer: one layer's placement while it is being improved.
 *
 * Holds what each slot has and how the rows of every expert are split over its slots. Replicas are
 * never on the same worker. eplb_layer_settle() splits the rows so that the slowest worker is as
 * fast as the hosts allow; eplb_search.h changes the hosts.
 *
 *   E experts   W workers   S slots
 *   a worker's time is its rows divided by its speed
 *
 * Source: splitting an expert's rows is water-filling; repeated over all experts it minimizes the
 * sum of rows^2 / speed, whose minimum also has the smallest maximum time.
 *
 * Threads: plain data; one owner.
 */
#ifndef MOE_ROUTER_EPLB_LAYER_H
#define MOE_ROUTER_EPLB_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "router/placement.h"

#define EPLB_NO_SLOT UINT32_MAX

/* What all layers share; borrowed. */
typedef struct eplb_fleet {
    uint32_t num_experts, worker_count, slot_count; /* E W S */
    const uint32_t *slot_first;                     /* [W + 1] slots of each worker */
    const double *speeds;                           /* [W] > 0 where there are slots */
} eplb_fleet;

/* One allocation; made by eplb_layer_create(). */
typedef struct eplb_layer {
    const eplb_fleet *fleet;
    const double *loads; /* [E] rows of each expert; set by eplb_layer_reset() */
    double ideal;        /* time of every worker if rows could be spread at will */
    double *parts;       /* [S] rows of its expert that go to this slot */
    double *rows;        /* [W] */
    uint32_t *slots;     /* [S] expert or PLACEMENT_EMPTY */
    uint32_t *owners;    /* [S] worker */
    uint32_t *nexts;     /* [S] next slot of the same expert, or EPLB_NO_SLOT */
    uint32_t *heads;     /* [E] first slot of each expert, or EPLB_NO_SLOT */
    uint32_t *spares;    /* [W] empty slots */
    size_t bytes;        /* of the arrays from parts on: one block */
} eplb_layer;

/* NULL: out of memory.  free() it. */
eplb_layer *eplb_layer_create(const eplb_fleet *fleet);

/* Empty all slots, for these loads (borrowed). */
void eplb_layer_reset(eplb_layer *l, const double *loads);
/* Both of the same fleet. */
void eplb_layer_copy(eplb_layer *to, const eplb_layer *from);

/* Slot of the expert on that worker, or EPLB_NO_SLOT. */
uint32_t eplb_layer_find(const eplb_layer *l, uint32_t expert, uint32_t worker);

/* Put the expert into an empty slot of the worker, which must have one and not host it yet; without
 * rows. Returns the slot. */
uint32_t eplb_layer_add(eplb_layer *l, uint32_t expert, uint32_t worker);
/* Empty a slot; its rows are given to no one: settle or refill the expert. */
void eplb_layer_remove(eplb_layer *l, uint32_t slot);

/* Split one expert's rows anew over its hosts, others as they are; returns how many rows moved. */
double eplb_layer_refill(eplb_layer *l, uint32_t expert);
/* Refill all experts until nothing moves any more.  Never raises the maximum time if every expert's
 * rows were given to its hosts before. */
void eplb_layer_settle(eplb_layer *l);

/* Put an expert without a host where it is done soonest, if need be in a replica's place.  S >= E.
 * Returns the slot. */
uint32_t eplb_layer_place(eplb_layer *l, uint32_t expert);

static inline double
eplb_layer_time(const eplb_layer *l, uint32_t worker)
{
    return l->rows[worker] > 0 ? l->rows[worker] / l->fleet->speeds[worker] : 0;
}
/* Largest time, and the first worker that has it. */
double eplb_layer_slowest(const eplb_layer *l, uint32_t *worker);

/* Rows of the worker that another host could take over: those of experts with replicas. */
double eplb_layer_loose(const eplb_layer *l, uint32_t worker);

/* Time of the slowest worker if each has reach * sqrt(its rows) more than expected, and can shed
 * what is loose: what single steps are like, whose rows vary while placements stay. */
double eplb_layer_unlucky(const eplb_layer *l, double reach);

/* Start from a layer of a placement (NULL: from nothing) whose workers may be fewer, more, or have
 * other slots: keep what fits, then give experts without a host the room there is, if need be that
 * of replicas. Settled. S >= E.  Returns whether everything the placement hosts could stay, and
 * nothing had to be added. */
bool eplb_layer_start(eplb_layer *l, const double *loads, const placement *from, uint32_t layer);

/* Experts on workers that do not host them in the placement: what has to be loaded. */
uint32_t eplb_layer_moves(const eplb_layer *l, const placement *from, uint32_t layer);

/* Write slots and shares into a layer of a placement of the same fleet; what `from` hosts on the
 * same worker keeps its slot.  Indexes the layer. */
void eplb_layer_store(const eplb_layer *l, const placement *from, placement *to, uint32_t layer);

#endif
