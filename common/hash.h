/* hash: 64-bit mixing for fingerprints, prefix-cache keys and sampling noise.
 *
 * Not cryptographic: whoever relies on a key being unique compares the contents too.
 * Source: the finalizer is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
 * Generators, OOPSLA 2014).
 */
#ifndef MOE_COMMON_HASH_H
#define MOE_COMMON_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t
hash_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Chain: the hash of what came before, and one more word. */
static inline uint64_t
hash_combine(uint64_t seed, uint64_t word)
{
    return hash_mix(seed ^ hash_mix(word));
}

/* bytes [n], any alignment.  Little-endian words, the length last. */
static inline uint64_t
hash_bytes(uint64_t seed, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    size_t left = n;
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        seed = hash_combine(seed, word);
    }
    uint64_t tail = 0;
    if (left != 0) memcpy(&tail, p, left);
    return hash_combine(hash_combine(seed, tail), n);
}

#endif
