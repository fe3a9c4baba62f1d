/* select: which of many prompts load experts unevenly, or evenly, by what a server measured.
 *
 * Symbols: L layers, E experts, P prompts.  A prompt's use is the share of its rows that each
 * expert of each layer got, so that long prompts weigh as much as short ones.  The skew of a set of
 * prompts is the mean over layers of (the hottest expert's share of the set's use) x E: 1 is even,
 * E is one expert for all.
 *
 * Greedy: the first prompt is the one with the largest skew of its own (smallest for an even set),
 * then always the one that leaves the set's skew largest (smallest).  Equal prompts in equal order
 * give an equal choice.
 *
 * Threads: one at a time for each object.
 */
#ifndef MOE_LOADGEN_SELECT_H
#define MOE_LOADGEN_SELECT_H

#include <stdbool.h>

#include "loadgen/npy_read.h"

#define SELECT_PROMPTS_MAX 65536

typedef struct select_uses {
    uint32_t layers; /* 0 before the first add */
    uint32_t experts;
    uint32_t capacity, count; /* prompts */
    float *share;             /* [capacity, layers, experts], owned */
} select_uses;

/* experts: of the model; ids must be below it.
 *   MOE_ERANGE  prompts or experts outside 1..SELECT_PROMPTS_MAX, 1..NPY_EXPERTS_MAX */
moe_err select_uses_init(select_uses *u, uint32_t prompts, uint32_t experts, errbuf *eb);
void select_uses_fini(select_uses *u);

/* The next prompt's.
 *   MOE_EINVAL  another number of layers than before, no tokens, or an id too large
 *   MOE_ERANGE  all prompts are there already;  MOE_ENOMEM */
moe_err select_uses_add(select_uses *u, const routed_ids *ids, errbuf *eb);

/* Of the prompts whose indices are given [count]; all of them when picks is NULL. */
double select_skew(const select_uses *u, const uint32_t *picks, size_t count);

/* Indices into picks [wanted], in the order of choice; returns how many: wanted or all.  0 when
 * memory runs out. */
size_t select_pick(const select_uses *u, size_t wanted, bool even, uint32_t *picks);

#endif
