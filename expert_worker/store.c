#include "expert_worker/store.h"

#include <stdlib.h>

#include "common/region.h"

#define SLOT_NONE UINT32_MAX

struct expert_store {
    expert_layout layout;
    uint32_t num_experts; /* of a layer */
    uint32_t id_count;    /* layers * experts */
    uint32_t count;
    region slots;                 /* [count][layout.slot_bytes] */
    packed_slot *list;            /* [count]: expert and place of each slot */
    uint32_t *slot_of;            /* [id_count] */
    packed_fill *fill;            /* writes the slots to the cache; or NULL */
    const checkpoint *checkpoint; /* while it is loaded */
};

/* weight_plan_fn: the experts that are not done. */
static moe_err
plan_experts(void *arg, pack_plan **out, const bool *done, errbuf *eb)
{
    const expert_store *s = arg;
    if (pack_plan_create(out, 2 * s->count))
        return err_set(eb, MOE_ENOMEM, "no memory for a plan of %u experts", s->count);
    for (uint32_t i = 0; i < s->count; i++) {
        const uint32_t id = s->list[i].slot;
        if (!done[i])
            pack_plan_add_expert(*out, s->list[i].bytes, &s->layout, s->checkpoint,
                                 id / s->num_experts, id % s->num_experts);
    }
    return MOE_OK;
}

static moe_err
index_slots(expert_store *s, const uint32_t *experts, uint32_t count, errbuf *eb)
{
    for (uint32_t i = 0; i < s->id_count; i++) {
        s->slot_of[i] = SLOT_NONE;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (experts[i] >= s->id_count || s->slot_of[experts[i]] != SLOT_NONE)
            return err_set(eb, MOE_EINVAL, "expert %u (entry %u) is out of range or named twice",
                           experts[i], i);
        s->slot_of[experts[i]] = i;
    }
    return MOE_OK;
}

static moe_err
load_slots(expert_store *s, const checkpoint *c, weight_cache cache, pool *p,
           const _Atomic bool *cancel, errbuf *eb)
{
    const model_config *config = checkpoint_config(c);
    if (s->layout.slot_bytes == 0 || s->count == 0) return MOE_OK;
    s->checkpoint = c;
    const weight_load load = {.what = "experts",
                              .checkpoint = c,
                              .cache = cache,
                              .key = {.role = PACKED_EXPERTS,
                                      .dtype = s->layout.dtype,
                                      .num_layers = config->num_layers,
                                      .num_experts = config->num_experts,
                                      .width_begin = s->layout.width_begin,
                                      .width_end = s->layout.width_end,
                                      .slot_count = s->id_count,
                                      .slot_bytes = s->layout.slot_bytes},
                              .slots = s->list,
                              .count = s->count,
                              .plan = plan_experts,
                              .arg = s,
                              .pool = p,
                              .cancel = cancel};
    return weight_load_run(&load, &s->fill, eb);
}

moe_err
expert_store_load(expert_store **out, const checkpoint *c, weight_cache cache,
                  const expert_layout *layout, const uint32_t *experts, uint32_t count, pool *p,
                  const _Atomic bool *cancel, errbuf *eb)
{
    *out = NULL;
    const model_config *config = checkpoint_config(c);
    moe_err err;
    expert_store *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->layout = *layout;
    s->num_experts = config->num_experts;
    s->id_count = config->num_layers * config->num_experts;
    s->slot_of = malloc(s->id_count * sizeof *s->slot_of);
    s->list = calloc(count + (size_t)1, sizeof *s->list);
    if (s->slot_of == NULL || s->list == NULL)
        err = err_set(eb, MOE_ENOMEM, "out of memory");
    else
        err = index_slots(s, experts, count, eb);
    if (!err) {
        s->count = count;
        err = region_create(&s->slots, layout->slot_bytes * count, p, eb);
        if (err) err_wrap(eb, err, "%u experts of %zu bytes", count, layout->slot_bytes);
    }
    if (!err) {
        for (uint32_t i = 0; i < count && s->slots.bytes != NULL; i++) {
            s->list[i] =
                (packed_slot){.slot = experts[i], .bytes = s->slots.bytes + i * layout->slot_bytes};
        }
        err = load_slots(s, c, cache, p, cancel, eb);
    }
    if (err)
        expert_store_free(s);
    else
        *out = s;
    return err;
}

moe_err
expert_store_create(expert_store **out, const checkpoint *c, const expert_layout *layout,
                    const uint32_t *experts, uint32_t count, pool *p, const _Atomic bool *cancel,
                    errbuf *eb)
{
    return expert_store_load(out, c, (weight_cache){0}, layout, experts, count, p, cancel, eb);
}

void
expert_store_free(expert_store *s)
{
    if (s == NULL) return;
    packed_fill_stop(s->fill);
    region_free(&s->slots);
    free(s->list);
    free(s->slot_of);
    free(s);
}

const char *
expert_store_slot(const expert_store *s, uint32_t layer, uint32_t expert)
{
    const uint64_t id = (uint64_t)layer * s->num_experts + expert;
    if (expert >= s->num_experts || id >= s->id_count || s->slot_of[id] == SLOT_NONE) return NULL;
    /* An empty tensor-parallel slice has no bytes, but is hosted: any non-NULL address will do. */
    if (s->slots.bytes == NULL) return (const char *)s;
    return s->list[s->slot_of[id]].bytes;
}

const expert_layout *
expert_store_layout(const expert_store *s)
{
    return &s->layout;
}

uint32_t
expert_store_count(const expert_store *s)
{
    return s->count;
}

uint64_t
expert_store_bytes(const expert_store *s)
{
    return s->slots.size;
}

void
expert_store_wait_cached(expert_store *s)
{
    if (s->fill != NULL) packed_fill_wait(s->fill);
}
