#include "expert_worker/store.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLOT_NONE UINT32_MAX

struct expert_store {
    expert_layout layout;
    uint32_t num_experts; /* of a layer */
    uint32_t id_count;    /* layers * experts */
    uint32_t count;
    char *slots; /* [count][layout.slot_bytes], mapped */
    size_t mapped_bytes;
    uint32_t *slot_of; /* [id_count] */
};

typedef struct pack_job {
    expert_store *store;
    const checkpoint *checkpoint;
    const uint32_t *experts;
    const _Atomic bool *cancel;
    _Atomic uint32_t failed; /* 1 + index of an expert that could not be packed */
} pack_job;

static void
pack_one(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    pack_job *job = arg;
    expert_store *s = job->store;
    if (job->cancel != NULL && atomic_load_explicit(job->cancel, memory_order_relaxed)) return;
    const uint32_t id = job->experts[item];
    char *slot = s->slots + (size_t)item * s->layout.slot_bytes;
    if (pack_expert(slot, &s->layout, job->checkpoint, id / s->num_experts, id % s->num_experts))
        atomic_store(&job->failed, item + 1);
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

moe_err
expert_store_create(expert_store **out, const checkpoint *c, const expert_layout *layout,
                    const uint32_t *experts, uint32_t count, pool *p, const _Atomic bool *cancel,
                    errbuf *eb)
{
    *out = NULL;
    const model_config *config = checkpoint_config(c);
    moe_err err;
    expert_store *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->layout = *layout;
    s->num_experts = config->num_experts;
    s->id_count = config->num_layers * config->num_experts;
    s->count = count;
    s->slot_of = malloc(s->id_count * sizeof *s->slot_of);
    if (s->slot_of == NULL) {
        err = err_set(eb, MOE_ENOMEM, "out of memory");
        goto fail;
    }
    err = index_slots(s, experts, count, eb);
    if (err) goto fail;

    s->mapped_bytes = layout->slot_bytes * count;
    if (s->mapped_bytes != 0) {
        void *map =
            mmap(NULL, s->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            err = err_set(eb, MOE_ENOMEM, "no memory for %u experts of %zu bytes", count,
                          layout->slot_bytes);
            s->mapped_bytes = 0;
            goto fail;
        }
        madvise(map, s->mapped_bytes, MADV_HUGEPAGE);
        s->slots = map;
        pack_job job = {.store = s, .checkpoint = c, .experts = experts, .cancel = cancel};
        pool_run(p, pack_one, &job, count);
        const uint32_t failed = atomic_load(&job.failed);
        if (failed != 0) {
            const uint32_t id = experts[failed - 1];
            err = err_set(eb, MOE_EINVAL, "layer %u expert %u: a weight is not finite",
                          id / s->num_experts, id % s->num_experts);
            goto fail;
        }
        if (cancel != NULL && atomic_load(cancel)) {
            err = err_set(eb, MOE_ECLOSED, "the load was given up: this worker is stopping");
            goto fail;
        }
    }
    *out = s;
    return MOE_OK;

fail:
    expert_store_free(s);
    return err;
}

void
expert_store_free(expert_store *s)
{
    if (s == NULL) return;
    if (s->slots != NULL) munmap(s->slots, s->mapped_bytes);
    free(s->slot_of);
    free(s);
}

const char *
expert_store_slot(const expert_store *s, uint32_t layer, uint32_t expert)
{
    const uint64_t id = (uint64_t)layer * s->num_experts + expert;
    if (expert >= s->num_experts || id >= s->id_count || s->slot_of[id] == SLOT_NONE) return NULL;
    /* An empty tensor-parallel slice has no bytes, but is hosted: any non-NULL address will do. */
    if (s->slots == NULL) return (const char *)s;
    return s->slots + (size_t)s->slot_of[id] * s->layout.slot_bytes;
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
    return s->mapped_bytes;
}
