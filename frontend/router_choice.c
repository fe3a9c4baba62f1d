#include "frontend/router_choice.h"

/* Capacities may differ by a little: loads are compared as parts of them. */
static bool
is_less_loaded(const router_option *a, const router_option *b)
{
    return (uint64_t)a->load * b->capacity < (uint64_t)b->load * a->capacity;
}

static bool
is_far_above(const router_option *a, const router_option *least)
{
    const uint32_t part = a->capacity / ROUTER_CHOICE_FAR_PART;
    return a->load > least->load && a->load - least->load > (part > 1 ? part : 1);
}

/* Is it one of those to choose among? */
static bool
comes_first(const router_option *o, bool with_blocks)
{
    return o->room && (o->blocks || !with_blocks);
}

uint32_t
router_choice(const router_option *options, uint32_t count)
{
    uint32_t rooms = 0, blocks = 0;
    for (uint32_t i = 0; i < count; i++) {
        rooms += options[i].room;
        blocks += options[i].room && options[i].blocks;
    }
    if (rooms > 1 && blocks == 0) return ROUTER_CHOICE_NONE;
    const bool with_blocks = blocks > 0;
    uint32_t least = ROUTER_CHOICE_NONE;
    for (uint32_t i = 0; i < count; i++) {
        if (!comes_first(&options[i], with_blocks)) continue;
        if (least == ROUTER_CHOICE_NONE || is_less_loaded(&options[i], &options[least])) least = i;
    }
    uint32_t best = least;
    for (uint32_t i = 0; i < count; i++) {
        const router_option *o = &options[i];
        if (!comes_first(o, with_blocks) || is_far_above(o, &options[least])) continue;
        const router_option *b = &options[best];
        if (o->cached_tokens > b->cached_tokens ||
            (o->cached_tokens == b->cached_tokens && is_less_loaded(o, b)))
            best = i;
    }
    return best;
}
