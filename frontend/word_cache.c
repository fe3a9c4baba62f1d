#include "frontend/word_cache.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ID_WORDS (WORD_CACHE_IDS_MAX / 2)

/* state is version << 16 | number of ids << 8 | length of the word; 0 in a slot never written. */
#define VERSION_ONE ((uint64_t)1 << 16)

typedef struct slot {
    _Atomic uint64_t state;
    _Atomic uint64_t key[WORD_CACHE_KEY_WORDS];
    _Atomic uint64_t ids[ID_WORDS];
} slot;

static_assert(sizeof(slot) == 64, "a slot is one cache line");

struct word_cache {
    uint32_t mask;
    slot *slots; /* [mask + 1] */
};

word_cache *
word_cache_create(uint32_t slot_count)
{
    assert(slot_count != 0 && (slot_count & (slot_count - 1)) == 0);
    word_cache *cache = malloc(sizeof *cache);
    slot *slots = aligned_alloc(sizeof slots[0], slot_count * sizeof slots[0]);
    if (cache == NULL || slots == NULL) {
        free(cache);
        free(slots);
        return NULL;
    }
    memset(slots, 0, slot_count * sizeof slots[0]);
    *cache = (word_cache){.mask = slot_count - 1, .slots = slots};
    return cache;
}

void
word_cache_free(word_cache *cache)
{
    if (cache == NULL) return;
    free(cache->slots);
    free(cache);
}

/* n bytes, at most 8, as one word; the rest of it is zero.  Never reads past them. */
static uint64_t
load_bytes(const unsigned char *p, size_t n)
{
    if (n >= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        return word;
    }
    if (n >= 4) {
        uint32_t low, high; /* may overlap: both say the same there */
        memcpy(&low, p, 4);
        memcpy(&high, p + n - 4, 4);
        return low | (uint64_t)high << 8 * (n - 4);
    }
    if (n == 0) return 0;
    return p[0] | (uint64_t)p[n / 2] << 8 * (n / 2) | (uint64_t)p[n - 1] << 8 * (n - 1);
}

word_key
word_cache_key(bool space, const char *bytes, size_t len)
{
    const unsigned char *p = (const unsigned char *)bytes;
    const size_t first = space ? 7 : 8; /* bytes of the text in the first word */
    assert(len + space >= 1 && len + space <= WORD_CACHE_BYTES_MAX);
    word_key key = {.len = (uint32_t)(len + space)};
    key.words[0] = load_bytes(p, len < first ? len : first);
    if (space) key.words[0] = key.words[0] << 8 | ' ';
    if (len > first) {
        const size_t rest = len - first;
        key.words[1] = load_bytes(p + first, rest < 8 ? rest : 8);
        if (rest > 8) key.words[2] = load_bytes(p + first + 8, rest - 8);
    }
    return key;
}

static slot *
slot_of(const word_cache *cache, const word_key *key)
{
    uint64_t h = key->words[0] * 0x9e3779b97f4a7c15u;
    h ^= key->words[1] * 0xc2b2ae3d27d4eb4fu;
    h ^= (key->words[2] ^ key->len) * 0xd6e8feb86659fd93u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return &cache->slots[(h >> 40) & cache->mask];
}

/* Loads that acquire, so that none of them comes after the second look at the state. */
uint32_t
word_cache_find(const word_cache *cache, const word_key *key, uint32_t *ids)
{
    slot *s = slot_of(cache, key);
    const uint64_t state = atomic_load_explicit(&s->state, memory_order_acquire);
    if ((state & 0xff) != key->len || (state & VERSION_ONE) != 0) return 0;
    uint64_t differ = 0;
    for (size_t i = 0; i < WORD_CACHE_KEY_WORDS; i++) {
        differ |= atomic_load_explicit(&s->key[i], memory_order_acquire) ^ key->words[i];
    }
    if (differ != 0) return 0;
    for (size_t i = 0; i < ID_WORDS; i++) {
        const uint64_t pair = atomic_load_explicit(&s->ids[i], memory_order_acquire);
        memcpy(ids + 2 * i, &pair, sizeof pair);
    }
    if (atomic_load_explicit(&s->state, memory_order_relaxed) != state) return 0;
    return (uint32_t)(state >> 8) & 0xff;
}

/* Stores that release, so that none of them comes before the version became odd. */
void
word_cache_put(word_cache *cache, const word_key *key, const uint32_t *ids, size_t count)
{
    if (count == 0 || count > WORD_CACHE_IDS_MAX) return;
    slot *s = slot_of(cache, key);
    uint64_t state = atomic_load_explicit(&s->state, memory_order_relaxed);
    const uint64_t version = state & ~(VERSION_ONE - 1);
    if ((version & VERSION_ONE) != 0 ||
        !atomic_compare_exchange_strong_explicit(&s->state, &state, version + VERSION_ONE,
                                                 memory_order_acquire, memory_order_relaxed))
        return;
    uint32_t padded[WORD_CACHE_IDS_MAX] = {0};
    memcpy(padded, ids, count * sizeof ids[0]);
    for (size_t i = 0; i < WORD_CACHE_KEY_WORDS; i++) {
        atomic_store_explicit(&s->key[i], key->words[i], memory_order_release);
    }
    for (size_t i = 0; i < ID_WORDS; i++) {
        uint64_t pair;
        memcpy(&pair, padded + 2 * i, sizeof pair);
        atomic_store_explicit(&s->ids[i], pair, memory_order_release);
    }
    atomic_store_explicit(&s->state, (version + 2 * VERSION_ONE) | (uint64_t)count << 8 | key->len,
                          memory_order_release);
}
