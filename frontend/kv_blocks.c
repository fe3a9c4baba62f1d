#include "frontend/kv_blocks.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/kv_blocks_internal.h"

/* Design notes.
 *
 * A registered block has a name: a number for "these token ids after that prefix", given once and
 * never again.  It remembers the name of the block before it, so comparing that name and its own
 * token ids compares the whole prefix.  A block number would not do in the name's place: the
 * number of an evicted block is soon that of other content, and its old children would match
 * behind it.  Children of a name that nobody has any more are simply never found.
 *
 * Two sequences that compute one prefix at the same time hold equal blocks.  Both are registered,
 * under one name, so that the prefix outlives either; once one of the two is unused it is plain
 * free memory. */

#define NAME_NONE 0
#define NAME_ROOT 1 /* "before" the first block of a sequence */
#define NAME_FIRST 2

typedef struct block {
    uint64_t name;   /* NAME_NONE: not registered */
    uint64_t parent; /* name of the block before; these four only if registered */
    uint64_t hash;
    uint32_t bucket_next; /* KV_BLOCK_NONE ends */
    uint32_t refs;
    uint32_t prev, next; /* in the free list while refs == 0 */
} block;

struct kv_blocks {
    uint32_t block_count, block_tokens;
    uint32_t free_count;
    uint32_t bucket_mask;
    bool prefix_caching;
    uint64_t name_next;
    kv_block_hash *hash;
    block *blocks;       /* [block_count + 1]; the last is the free list's anchor: what follows it
                            is reused first */
    uint32_t *buckets;   /* [bucket_mask + 1] heads of chains */
    uint32_t *token_ids; /* [block_count][block_tokens], of registered blocks */
};

static uint64_t
hash_block(uint64_t parent, const uint32_t *tokens, uint32_t count)
{
    return hash_bytes(parent, tokens, (size_t)count * sizeof tokens[0]);
}

moe_err
kv_blocks_create(kv_blocks **out, uint32_t block_count, uint32_t block_tokens, bool prefix_caching)
{
    *out = NULL;
    if (block_count == 0 || block_tokens == 0) return MOE_ERANGE;
    if (block_count > (UINT32_MAX - 1) / block_tokens || block_count > UINT32_MAX / 2)
        return MOE_ERANGE;

    kv_blocks *kv = calloc(1, sizeof *kv);
    if (kv == NULL) return MOE_ENOMEM;
    size_t bucket_count = 1;
    while (bucket_count < block_count)
        bucket_count *= 2;
    *kv = (kv_blocks){.block_count = block_count,
                      .block_tokens = block_tokens,
                      .free_count = block_count,
                      .bucket_mask = (uint32_t)(bucket_count - 1),
                      .prefix_caching = prefix_caching,
                      .name_next = NAME_FIRST,
                      .hash = hash_block};

    kv->blocks = calloc((size_t)block_count + 1, sizeof kv->blocks[0]);
    if (kv->blocks == NULL) goto fail;
    for (uint32_t b = 0; b <= block_count; b++) {
        kv->blocks[b].prev = b == 0 ? block_count : b - 1;
        kv->blocks[b].next = b == block_count ? 0 : b + 1;
    }
    if (prefix_caching) {
        kv->buckets = malloc(bucket_count * sizeof kv->buckets[0]);
        kv->token_ids = calloc((size_t)block_count * block_tokens, sizeof kv->token_ids[0]);
        if (kv->buckets == NULL || kv->token_ids == NULL) goto fail;
        memset(kv->buckets, 0xff, bucket_count * sizeof kv->buckets[0]); /* KV_BLOCK_NONE */
    }
    *out = kv;
    return MOE_OK;

fail:
    kv_blocks_free(kv);
    return MOE_ENOMEM;
}

void
kv_blocks_free(kv_blocks *kv)
{
    if (kv == NULL) return;
    free(kv->blocks);
    free(kv->buckets);
    free(kv->token_ids);
    free(kv);
}

void
kv_blocks_set_hash(kv_blocks *kv, kv_block_hash *hash)
{
    assert(kv->name_next == NAME_FIRST);
    kv->hash = hash;
}

uint32_t
kv_blocks_total(const kv_blocks *kv)
{
    return kv->block_count;
}

uint32_t
kv_blocks_available(const kv_blocks *kv)
{
    return kv->free_count;
}

uint32_t
kv_blocks_tokens(const kv_blocks *kv)
{
    return kv->block_tokens;
}

static void
free_list_remove(kv_blocks *kv, uint32_t b)
{
    kv->blocks[kv->blocks[b].prev].next = kv->blocks[b].next;
    kv->blocks[kv->blocks[b].next].prev = kv->blocks[b].prev;
    kv->free_count--;
}

static void
free_list_insert_after(kv_blocks *kv, uint32_t place, uint32_t b)
{
    const uint32_t next = kv->blocks[place].next;
    kv->blocks[b].prev = place;
    kv->blocks[b].next = next;
    kv->blocks[place].next = b;
    kv->blocks[next].prev = b;
    kv->free_count++;
}

static void
free_list_push_first(kv_blocks *kv, uint32_t b)
{
    free_list_insert_after(kv, kv->block_count, b);
}

static void
free_list_push_last(kv_blocks *kv, uint32_t b)
{
    free_list_insert_after(kv, kv->blocks[kv->block_count].prev, b);
}

static uint32_t *
bucket_of(const kv_blocks *kv, uint64_t hash)
{
    return &kv->buckets[hash & kv->bucket_mask];
}

static uint32_t *
token_ids_of(const kv_blocks *kv, uint32_t b)
{
    return &kv->token_ids[(size_t)b * kv->block_tokens];
}

/* The registered block of these tokens after that prefix, or KV_BLOCK_NONE. */
static uint32_t
find(const kv_blocks *kv, uint64_t parent, const uint32_t *tokens, uint64_t hash)
{
    const size_t bytes = (size_t)kv->block_tokens * sizeof tokens[0];
    uint32_t b = *bucket_of(kv, hash);
    for (; b != KV_BLOCK_NONE; b = kv->blocks[b].bucket_next) {
        const block *it = &kv->blocks[b];
        if (it->hash == hash && it->parent == parent &&
            memcmp(token_ids_of(kv, b), tokens, bytes) == 0)
            break;
    }
    return b;
}

/* Another block of the same name, or KV_BLOCK_NONE. */
static uint32_t
find_twin(kv_blocks *kv, uint32_t b)
{
    uint32_t other = *bucket_of(kv, kv->blocks[b].hash);
    while (other != KV_BLOCK_NONE && (other == b || kv->blocks[other].name != kv->blocks[b].name))
        other = kv->blocks[other].bucket_next;
    return other;
}

static void
unregister(kv_blocks *kv, uint32_t b)
{
    uint32_t *link = bucket_of(kv, kv->blocks[b].hash);
    while (*link != b)
        link = &kv->blocks[*link].bucket_next;
    *link = kv->blocks[b].bucket_next;
    kv->blocks[b].name = NAME_NONE;
}

uint32_t
kv_blocks_take(kv_blocks *kv)
{
    if (kv->free_count == 0) return KV_BLOCK_NONE;
    const uint32_t b = kv->blocks[kv->block_count].next;
    free_list_remove(kv, b);
    if (kv->blocks[b].name != NAME_NONE) unregister(kv, b);
    kv->blocks[b].refs = 1;
    return b;
}

void
kv_blocks_release(kv_blocks *kv, uint32_t b)
{
    assert(b < kv->block_count && kv->blocks[b].refs > 0);
    if (--kv->blocks[b].refs > 0) return;
    if (kv->blocks[b].name == NAME_NONE) {
        free_list_push_first(kv, b);
        return;
    }
    const uint32_t twin = find_twin(kv, b);
    if (twin == KV_BLOCK_NONE) {
        free_list_push_last(kv, b);
        return;
    }
    unregister(kv, b);
    free_list_push_first(kv, b);
    if (kv->blocks[twin].refs > 0) return;
    /* The twin was used just now, in a way: it must outlast this sequence's later blocks. */
    free_list_remove(kv, twin);
    free_list_push_last(kv, twin);
}

/* The next block of a chain: of tokens [block_tokens] after the block named *parent, which becomes
 * its name. */
static uint32_t
find_next(const kv_blocks *kv, uint64_t *parent, const uint32_t *tokens)
{
    const uint64_t hash = kv->hash(*parent, tokens, kv->block_tokens);
    const uint32_t b = find(kv, *parent, tokens, hash);
    if (b != KV_BLOCK_NONE) *parent = kv->blocks[b].name;
    return b;
}

static uint32_t
whole_blocks(const kv_blocks *kv, uint32_t count, uint32_t max_tokens)
{
    if (!kv->prefix_caching) return 0;
    return (count < max_tokens ? count : max_tokens) / kv->block_tokens;
}

uint32_t
kv_blocks_match(kv_blocks *kv, const uint32_t *tokens, uint32_t count, uint32_t max_tokens,
                uint32_t *out)
{
    const uint32_t limit = whole_blocks(kv, count, max_tokens);
    uint64_t parent = NAME_ROOT;
    uint32_t found = 0;
    for (; found < limit; found++, tokens += kv->block_tokens) {
        const uint32_t b = find_next(kv, &parent, tokens);
        if (b == KV_BLOCK_NONE) break;
        if (kv->blocks[b].refs++ == 0) free_list_remove(kv, b);
        out[found] = b;
    }
    return found;
}

uint32_t
kv_blocks_find(const kv_blocks *kv, const uint32_t *tokens, uint32_t count, uint32_t max_tokens)
{
    const uint32_t limit = whole_blocks(kv, count, max_tokens);
    uint64_t parent = NAME_ROOT;
    uint32_t found = 0;
    while (found < limit && find_next(kv, &parent, tokens) != KV_BLOCK_NONE) {
        found++;
        tokens += kv->block_tokens;
    }
    return found;
}

void
kv_blocks_register(kv_blocks *kv, const uint32_t *tokens, const uint32_t *table, uint32_t index)
{
    if (!kv->prefix_caching) return;
    block *b = &kv->blocks[table[index]];
    assert(b->refs > 0);
    const uint64_t parent = index == 0 ? NAME_ROOT : kv->blocks[table[index - 1]].name;
    if (b->name != NAME_NONE || parent == NAME_NONE) return;

    tokens += (size_t)index * kv->block_tokens;
    const uint64_t hash = kv->hash(parent, tokens, kv->block_tokens);
    const uint32_t twin = find(kv, parent, tokens, hash);
    b->name = twin == KV_BLOCK_NONE ? kv->name_next++ : kv->blocks[twin].name;
    b->parent = parent;
    b->hash = hash;
    memcpy(token_ids_of(kv, table[index]), tokens, (size_t)kv->block_tokens * sizeof tokens[0]);
    b->bucket_next = *bucket_of(kv, hash);
    *bucket_of(kv, hash) = table[index];
}

void
kv_blocks_reset_cache(kv_blocks *kv)
{
    if (!kv->prefix_caching) return;
    for (uint32_t b = 0; b < kv->block_count; b++)
        kv->blocks[b].name = NAME_NONE;
    memset(kv->buckets, 0xff, ((size_t)kv->bucket_mask + 1) * sizeof kv->buckets[0]);
}
