#include "common/sha256.h"

#include <string.h>

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t
rotate(uint32_t x, unsigned n)
{
    return (x >> n) | (x << (32 - n));
}

static uint32_t
load_be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void
store_be32(unsigned char *p, uint32_t x)
{
    p[0] = (unsigned char)(x >> 24);
    p[1] = (unsigned char)(x >> 16);
    p[2] = (unsigned char)(x >> 8);
    p[3] = (unsigned char)x;
}

/* The letters are those of FIPS 180-4, section 6.2.2. */
static void
compress(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64];
    for (unsigned t = 0; t < 16; t++)
        w[t] = load_be32(block + 4 * t);
    for (unsigned t = 16; t < 64; t++) {
        const uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ (w[t - 15] >> 3);
        const uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ (w[t - 2] >> 10);
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (unsigned t = 0; t < 64; t++) {
        const uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + round_constants[t] + w[t];
        const uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const uint32_t add[8] = {a, b, c, d, e, f, g, h};
    for (unsigned i = 0; i < 8; i++)
        state[i] += add[i];
}

void
sha256_init(sha256 *h)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    *h = (sha256){0};
    memcpy(h->state, start, sizeof start);
}

void
sha256_update(sha256 *h, const void *bytes, size_t len)
{
    const unsigned char *p = bytes;
    while (len != 0) {
        const size_t used = h->len % SHA256_BLOCK_BYTES;
        const size_t n = len < SHA256_BLOCK_BYTES - used ? len : SHA256_BLOCK_BYTES - used;
        memcpy(h->block + used, p, n);
        h->len += n;
        p += n;
        len -= n;
        if (h->len % SHA256_BLOCK_BYTES == 0) compress(h->state, h->block);
    }
}

void
sha256_final(sha256 *h, unsigned char digest[SHA256_BYTES])
{
    static const unsigned char padding[SHA256_BLOCK_BYTES] = {0x80};
    const uint64_t bits = h->len * 8;
    unsigned char tail[8];
    store_be32(tail, (uint32_t)(bits >> 32));
    store_be32(tail + 4, (uint32_t)bits);

    const size_t used = h->len % SHA256_BLOCK_BYTES;
    sha256_update(h, padding, (used < 56 ? 56 : 120) - used);
    sha256_update(h, tail, sizeof tail);
    for (unsigned i = 0; i < 8; i++)
        store_be32(digest + 4 * i, h->state[i]);
}

void
hmac_sha256_init(hmac_sha256 *h, const void *key, size_t key_bytes)
{
    unsigned char block[SHA256_BLOCK_BYTES] = {0};
    if (key_bytes > sizeof block) {
        sha256_init(&h->inner);
        sha256_update(&h->inner, key, key_bytes);
        sha256_final(&h->inner, block);
    } else if (key_bytes != 0) {
        memcpy(block, key, key_bytes);
    }
    for (unsigned i = 0; i < sizeof block; i++)
        block[i] ^= 0x36;
    sha256_init(&h->inner);
    sha256_update(&h->inner, block, sizeof block);
    for (unsigned i = 0; i < sizeof block; i++)
        block[i] ^= 0x36 ^ 0x5c;
    sha256_init(&h->outer);
    sha256_update(&h->outer, block, sizeof block);
    explicit_bzero(block, sizeof block);
}

void
hmac_sha256_update(hmac_sha256 *h, const void *bytes, size_t len)
{
    sha256_update(&h->inner, bytes, len);
}

void
hmac_sha256_final(hmac_sha256 *h, unsigned char digest[SHA256_BYTES])
{
    unsigned char inner[SHA256_BYTES];
    sha256_final(&h->inner, inner);
    sha256_update(&h->outer, inner, sizeof inner);
    sha256_final(&h->outer, digest);
}

bool
bytes_equal_constant_time(const void *a, const void *b, size_t n)
{
    const volatile unsigned char *pa = a, *pb = b;
    unsigned char difference = 0;
    for (size_t i = 0; i < n; i++)
        difference |= pa[i] ^ pb[i];
    return difference == 0;
}
