/* router_choice: which router gets the next sequence.
 *
 * Routers that have KV blocks for it come first: elsewhere it would wait for them.  If several have
 * room but none has blocks, nobody is chosen yet: who frees blocks first gets it.
 *
 * Among those that come into question the longest cached prefix wins, since what is cached need not
 * be computed; but not at a router whose load is far above the least, where the sequence would wait
 * for what it saves.  Among equal
 * prefixes the least loaded router wins, among equal loads the lowest index.  The same options give
 * the same choice; the tokens are the same whatever is chosen.
 *
 * Threads: pure function.
 */
#ifndef MOE_FRONTEND_ROUTER_CHOICE_H
#define MOE_FRONTEND_ROUTER_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

#define ROUTER_CHOICE_NONE UINT32_MAX

/* A load is far above another when it is above it by more than this part of the router's capacity,
 * and by more than one sequence. */
#define ROUTER_CHOICE_FAR_PART 4

typedef struct router_option {
    bool room;              /* it serves, and has a place for the sequence; else not looked at */
    bool blocks;            /* the KV blocks that it needs to start are free there */
    uint32_t cached_tokens; /* of the sequence, in its prefix cache */
    uint32_t load;          /* sequences that run or wait there */
    uint32_t capacity;      /* sequences that can run there; >= 1 where there is room */
} router_option;

/* options [count]; the index of one with room, or ROUTER_CHOICE_NONE: there is none, or several of
 * them and no blocks. */
uint32_t router_choice(const router_option *options, uint32_t count);

#endif
