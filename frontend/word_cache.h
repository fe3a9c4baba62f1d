/* word_cache: a bounded, lock-free memory of how short words were encoded.
 *
 * Texts repeat their words, and a word's ids depend on nothing but the word, so that looking them
 * up is as exact as computing them.  A word has one place: a newer one replaces what was there.
 *
 * A slot is one cache line of atomic words under a version that is odd while it is being written;
 * a reader that sees the version change reads nothing, a writer that finds the slot being written
 * leaves it.
 *
 * Source: the sequence lock (Lameter, "Effective synchronization on Linux/NUMA systems", 2005).
 *
 * Threads: find and put from any thread, at the same time; create and free as any object.
 */
#ifndef MOE_FRONTEND_WORD_CACHE_H
#define MOE_FRONTEND_WORD_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORD_CACHE_KEY_WORDS 3
#define WORD_CACHE_BYTES_MAX ((size_t)8 * WORD_CACHE_KEY_WORDS) /* of one word */
#define WORD_CACHE_IDS_MAX 8u                                   /* of one word */

typedef struct word_cache word_cache;

typedef struct word_key {
    uint64_t words[WORD_CACHE_KEY_WORDS]; /* the bytes, then zeros */
    uint32_t len;                         /* 1 .. WORD_CACHE_BYTES_MAX */
} word_key;

/* Room for slot_count words, a power of two; 64 bytes each.  NULL: out of memory. */
word_cache *word_cache_create(uint32_t slot_count);
/* Accepts NULL. */
void word_cache_free(word_cache *cache);

/* The key of a space, if `space`, and len bytes after it; both together are at least 1 and at most
 * WORD_CACHE_BYTES_MAX. */
word_key word_cache_key(bool space, const char *bytes, size_t len);

/* Write the word's ids to ids, which has room for WORD_CACHE_IDS_MAX whatever their number, and
 * return how many there are; 0 if the word is not known. */
uint32_t word_cache_find(const word_cache *cache, const word_key *key, uint32_t *ids);

/* Remember ids [count]; does nothing if there are none, or more than WORD_CACHE_IDS_MAX. */
void word_cache_put(word_cache *cache, const word_key *key, const uint32_t *ids, size_t count);

#endif
