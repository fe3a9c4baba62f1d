#include "expert_worker/store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/region.h"

#define SLOT_FREE UINT32_MAX
/* How many loads the cache is filled from at a time; an older one is given up. */
#define FILLS_MAX 4
/* A load with a limited rate goes on in pieces of this part of a second. */
#define PACE_HZ 20
#define PACE_POLL_NS (2 * NS_PER_MS)

/* The memory of the slots of one load. */
typedef struct chunk {
    region memory;
    uint32_t slot_count, free_count;
    uint32_t *ids; /* [slot_count] whose it is, or SLOT_FREE */
} chunk;

struct expert_store {
    expert_layout layout;
    uint32_t num_experts;   /* of a layer */
    uint32_t id_count;      /* layers * experts */
    _Atomic uint32_t count; /* hosted */
    chunk *chunks;
    uint32_t chunk_count;
    char *_Atomic *places; /* [id_count] what is hosted; NULL: it is not */
    packed_fill *fills[FILLS_MAX];
    uint32_t fill_count;
    pthread_mutex_t
        reading; /* held while a part of a slot is copied, and while slots are taken back
                    that were to be seen before.  The compute thread never takes it */
};

/* ---- slots ---- */

static char *
slot_bytes_at(const expert_store *s, const chunk *c, uint32_t slot)
{
    /* An empty tensor-parallel slice has no bytes, but is hosted: any non-NULL address will do. */
    return c->memory.bytes == NULL ? (char *)(uintptr_t)s
                                   : c->memory.bytes + slot * s->layout.slot_bytes;
}

static moe_err
add_chunk(expert_store *s, uint32_t slot_count, pool *p, errbuf *eb)
{
    chunk *chunks = realloc(s->chunks, (s->chunk_count + 1u) * sizeof *chunks);
    if (chunks == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->chunks = chunks;
    chunk *c = &chunks[s->chunk_count];
    *c = (chunk){.slot_count = slot_count, .free_count = slot_count};
    c->ids = malloc(slot_count * sizeof *c->ids);
    if (c->ids == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    memset(c->ids, 0xff, slot_count * sizeof *c->ids);
    const moe_err err = region_create(&c->memory, s->layout.slot_bytes * slot_count, p, eb);
    if (err) {
        free(c->ids);
        return err_wrap(eb, err, "%u experts of %zu bytes", slot_count, s->layout.slot_bytes);
    }
    s->chunk_count++;
    return MOE_OK;
}

static void
drop_chunk(expert_store *s, uint32_t at)
{
    region_free(&s->chunks[at].memory);
    free(s->chunks[at].ids);
    s->chunks[at] = s->chunks[--s->chunk_count];
}

static uint32_t
free_slots(const expert_store *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->chunk_count; i++)
        n += s->chunks[i].free_count;
    return n;
}

/* There is a free slot. */
static char *
take_slot(expert_store *s, uint32_t id)
{
    chunk *c = s->chunks;
    while (c->free_count == 0)
        c++;
    uint32_t slot = c->slot_count - c->free_count; /* right when none was given back */
    for (; c->ids[slot % c->slot_count] != SLOT_FREE; slot++) {
    }
    slot %= c->slot_count;
    c->ids[slot] = id;
    c->free_count--;
    return slot_bytes_at(s, c, slot);
}

/* Give back the slots of experts that are not published. */
static void
reclaim(expert_store *s)
{
    for (uint32_t i = s->chunk_count; i-- > 0;) {
        chunk *c = &s->chunks[i];
        for (uint32_t slot = 0; slot < c->slot_count; slot++) {
            if (c->ids[slot] == SLOT_FREE || atomic_load(&s->places[c->ids[slot]]) != NULL)
                continue;
            c->ids[slot] = SLOT_FREE;
            c->free_count++;
            /* Packing counts on zeros where it writes nothing. */
            if (c->memory.bytes != NULL) memset(slot_bytes_at(s, c, slot), 0, s->layout.slot_bytes);
        }
        if (c->free_count == c->slot_count) drop_chunk(s, i);
    }
}

/* ---- loading ---- */

/* One load, or a piece of it. */
typedef struct piece {
    const expert_store *store;
    const checkpoint *checkpoint;
    const packed_slot *slots;
    uint32_t count;
} piece;

/* weight_plan_fn: the experts that are not done. */
static moe_err
plan_experts(void *arg, pack_plan **out, const bool *done, errbuf *eb)
{
    const piece *p = arg;
    if (pack_plan_create(out, 2 * p->count))
        return err_set(eb, MOE_ENOMEM, "no memory for a plan of %u experts", p->count);
    for (uint32_t i = 0; i < p->count; i++) {
        const uint32_t id = p->slots[i].slot;
        if (!done[i])
            pack_plan_add_expert(*out, p->slots[i].bytes, &p->store->layout, p->checkpoint,
                                 id / p->store->num_experts, id % p->store->num_experts);
    }
    return MOE_OK;
}

static void
keep_fill(expert_store *s, packed_fill *fill)
{
    if (fill == NULL) return;
    if (s->fill_count == FILLS_MAX) {
        packed_fill_stop(s->fills[0]);
        s->fill_count--;
        memmove(s->fills, s->fills + 1, s->fill_count * sizeof s->fills[0]);
    }
    s->fills[s->fill_count++] = fill;
}

static void
stop_fills(expert_store *s)
{
    for (uint32_t i = 0; i < s->fill_count; i++)
        packed_fill_stop(s->fills[i]);
    s->fill_count = 0;
}

static moe_err
load_slots(expert_store *s, const store_growth *g, const packed_slot *slots, uint32_t count,
           errbuf *eb)
{
    const model_config *config = checkpoint_config(g->checkpoint);
    piece p = {.store = s, .checkpoint = g->checkpoint, .slots = slots, .count = count};
    if (s->layout.slot_bytes == 0 || count == 0) return MOE_OK;
    const weight_load load = {.what = "experts",
                              .checkpoint = g->checkpoint,
                              .cache = g->cache,
                              .key = {.role = PACKED_EXPERTS,
                                      .dtype = s->layout.dtype,
                                      .num_layers = config->num_layers,
                                      .num_experts = config->num_experts,
                                      .width_begin = s->layout.width_begin,
                                      .width_end = s->layout.width_end,
                                      .slot_count = s->id_count,
                                      .slot_bytes = s->layout.slot_bytes},
                              .slots = slots,
                              .count = count,
                              .source = g->source,
                              .plan = plan_experts,
                              .arg = &p,
                              .pool = g->pool,
                              .cancel = g->cancel};
    packed_fill *fill;
    const moe_err err = weight_load_run(&load, &fill, eb);
    if (!err) keep_fill(s, fill);
    return err;
}

static bool
is_cancelled(const store_growth *g)
{
    return g->cancel != NULL && atomic_load(g->cancel);
}

/* Until `bytes` since start_ns are no more than the rate allows. */
static void
pace(const store_growth *g, uint64_t start_ns, uint64_t bytes)
{
    const double ns = (double)bytes / (double)g->bytes_per_s * (double)NS_PER_S;
    const uint64_t due = start_ns + (uint64_t)ns;
    while (!is_cancelled(g) && clock_now_ns() < due)
        nanosleep(&(struct timespec){.tv_nsec = (long)PACE_POLL_NS}, NULL);
}

/* All of it at once, or in pieces, as the rate allows. */
static moe_err
load_paced(expert_store *s, const store_growth *g, const packed_slot *slots, uint32_t count,
           errbuf *eb)
{
    uint64_t per_piece = count;
    if (g->bytes_per_s != 0 && s->layout.slot_bytes != 0)
        per_piece = g->bytes_per_s / PACE_HZ / s->layout.slot_bytes;
    if (per_piece == 0) per_piece = 1;
    const uint64_t start = clock_now_ns();
    moe_err err = MOE_OK;
    for (uint32_t done = 0, n; done < count && !err; done += n) {
        n = count - done < per_piece ? count - done : (uint32_t)per_piece;
        err = load_slots(s, g, slots + done, n, eb);
        if (!err && g->bytes_per_s != 0)
            pace(g, start, (uint64_t)(done + n) * s->layout.slot_bytes);
    }
    if (!err && is_cancelled(g)) err = err_set(eb, MOE_ECLOSED, "cancelled");
    return err;
}

/* Those of experts that are not hosted, as a list without memory yet; *out is the caller's. */
static moe_err
list_missing(const expert_store *s, const uint32_t *experts, uint32_t count, packed_slot **out,
             uint32_t *missing, errbuf *eb)
{
    *missing = 0;
    *out = calloc(count + (size_t)1, sizeof **out);
    if (*out == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        if (experts[i] >= s->id_count || (i > 0 && experts[i] <= experts[i - 1]))
            return err_set(eb, MOE_EINVAL, "expert %u (entry %u) is out of range or named twice",
                           experts[i], i);
        if (atomic_load(&s->places[experts[i]]) == NULL) (*out)[(*missing)++].slot = experts[i];
    }
    return MOE_OK;
}

static moe_err
find_memory(expert_store *s, const store_growth *g, uint32_t count, errbuf *eb)
{
    const uint64_t bytes = s->layout.slot_bytes;
    const uint64_t want = (expert_store_count(s) + (uint64_t)count) * bytes;
    if (g->memory_bytes != 0 && want > g->memory_bytes)
        return err_set(eb, MOE_ENOMEM, "%u experts more need %llu bytes more than --expert-memory",
                       count, (unsigned long long)(want - g->memory_bytes));
    const uint32_t have = free_slots(s);
    return have >= count ? MOE_OK : add_chunk(s, count - have, g->pool, eb);
}

moe_err
expert_store_host(expert_store *s, const store_growth *growth, const uint32_t *experts,
                  uint32_t count, errbuf *eb)
{
    packed_slot *slots;
    uint32_t missing;
    moe_err err = list_missing(s, experts, count, &slots, &missing, eb);
    if (!err && missing != 0) err = find_memory(s, growth, missing, eb);
    if (!err) {
        for (uint32_t i = 0; i < missing; i++)
            slots[i].bytes = take_slot(s, slots[i].slot);
        err = load_paced(s, growth, slots, missing, eb);
        if (err) stop_fills(s); /* of pieces that were loaded */
        /* Release order: who sees the place sees the weights. */
        for (uint32_t i = 0; i < missing && !err; i++)
            atomic_store(&s->places[slots[i].slot], (char *)slots[i].bytes);
        if (!err) atomic_fetch_add(&s->count, missing);
    }
    if (err) reclaim(s);
    free(slots);
    return err;
}

void
expert_store_release(expert_store *s, const uint32_t *experts, uint32_t count,
                     void (*quiesce)(void *arg), void *arg)
{
    uint32_t hidden = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (experts[i] < s->id_count && atomic_exchange(&s->places[experts[i]], NULL) != NULL)
            hidden++;
    }
    if (hidden == 0) return;
    atomic_fetch_sub(&s->count, hidden);
    quiesce(arg);
    stop_fills(s);
    pthread_mutex_lock(&s->reading);
    reclaim(s);
    pthread_mutex_unlock(&s->reading);
}

bool
expert_store_read(expert_store *s, uint32_t id, uint64_t offset, size_t bytes, void *out)
{
    if (id >= s->id_count || offset > s->layout.slot_bytes || bytes > s->layout.slot_bytes - offset)
        return false;
    pthread_mutex_lock(&s->reading);
    const char *from = atomic_load(&s->places[id]);
    if (from != NULL) memcpy(out, from + offset, bytes);
    pthread_mutex_unlock(&s->reading);
    return from != NULL;
}

bool
expert_store_hash(const expert_store *s, uint32_t id, uint64_t *hash)
{
    const char *bytes = id < s->id_count ? atomic_load(&s->places[id]) : NULL;
    if (bytes == NULL) return false;
    *hash = s->layout.slot_bytes == 0 ? 0 : packed_slot_hash(bytes, s->layout.slot_bytes);
    return true;
}

/* ---- the whole store ---- */

moe_err
expert_store_load(expert_store **out, const checkpoint *c, weight_cache cache,
                  const expert_layout *layout, const uint32_t *experts, uint32_t count, pool *p,
                  const _Atomic bool *cancel, errbuf *eb)
{
    *out = NULL;
    const model_config *config = checkpoint_config(c);
    expert_store *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    pthread_mutex_init(&s->reading, NULL);
    s->layout = *layout;
    s->num_experts = config->num_experts;
    s->id_count = config->num_layers * config->num_experts;
    s->places = calloc(s->id_count, sizeof *s->places);
    const store_growth growth = {.checkpoint = c, .cache = cache, .pool = p, .cancel = cancel};
    const moe_err err = s->places == NULL ? err_set(eb, MOE_ENOMEM, "out of memory")
                                          : expert_store_host(s, &growth, experts, count, eb);
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
    stop_fills(s);
    while (s->chunk_count > 0)
        drop_chunk(s, s->chunk_count - 1);
    free(s->chunks);
    free(s->places);
    pthread_mutex_destroy(&s->reading);
    free(s);
}

const char *
expert_store_slot(const expert_store *s, uint32_t layer, uint32_t expert)
{
    const uint64_t id = (uint64_t)layer * s->num_experts + expert;
    if (expert >= s->num_experts || id >= s->id_count) return NULL;
    return atomic_load(&s->places[id]);
}

const expert_layout *
expert_store_layout(const expert_store *s)
{
    return &s->layout;
}

uint32_t
expert_store_count(const expert_store *s)
{
    return atomic_load(&s->count);
}

uint64_t
expert_store_bytes(const expert_store *s)
{
    return (uint64_t)expert_store_count(s) * s->layout.slot_bytes;
}

void
expert_store_wait_cached(expert_store *s)
{
    for (uint32_t i = 0; i < s->fill_count; i++)
        packed_fill_wait(s->fills[i]);
}
