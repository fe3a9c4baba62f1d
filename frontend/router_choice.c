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

uint32_t
router_choice(const router_option *options, uint32_t count)
{
    uint32_t least = ROUTER_CHOICE_NONE;
    for (uint32_t i = 0; i < count; i++) {
        if (!options[i].room) continue;
        if (least == ROUTER_CHOICE_NONE || is_less_loaded(&options[i], &options[least])) least = i;
    }
    uint32_t best = least;
    for (uint32_t i = 0; i < count; i++) {
        const router_option *o = &options[i];
        if (!o->room || is_far_above(o, &options[least])) continue;
        const router_option *b = &options[best];
        if (o->cached_tokens > b->cached_tokens ||
            (o->cached_tokens == b->cached_tokens && is_less_loaded(o, b)))
            best = i;
    }
    return best;
}
