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

#define HASH_LANES 8

/* A hash for large blocks, many times as fast as hash_bytes(): eight words at a time, each in a
 * lane of its own.  A word is one bijective step of its lane, so a change of one word never goes
 * unseen. bytes [n], any alignment.  Little-endian words. */
static inline uint64_t
hash_lanes(uint64_t seed, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uint64_t lane[HASH_LANES];
    for (int i = 0; i < HASH_LANES; i++)
        lane[i] = hash_combine(seed, (uint64_t)i);
    size_t left = n;
    for (; left >= sizeof lane; left -= sizeof lane, p += sizeof lane) {
        uint64_t word[HASH_LANES];
        memcpy(word, p, sizeof word);
        for (int i = 0; i < HASH_LANES; i++) {
            const uint64_t x = (lane[i] ^ word[i]) * 0x9e3779b97f4a7c15ull;
            lane[i] = x << 31 | x >> 33;
        }
    }
    return hash_combine(hash_bytes(hash_bytes(seed, lane, sizeof lane), p, left), n);
}

#endif
