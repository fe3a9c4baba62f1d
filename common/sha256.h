/* sha256: SHA-256 and HMAC-SHA-256, for proofs of a shared secret and fingerprints of files.
 *
 * Source: FIPS 180-4 and RFC 2104.  Tested with the vectors of RFC 4231.
 *
 * Threads: no shared state.
 */
#ifndef MOE_COMMON_SHA256_H
#define MOE_COMMON_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32
#define SHA256_BLOCK_BYTES 64

typedef struct sha256 {
    uint32_t state[8];
    uint64_t len; /* bytes hashed so far */
    unsigned char block[SHA256_BLOCK_BYTES];
} sha256;

void sha256_init(sha256 *h);
void sha256_update(sha256 *h, const void *bytes, size_t len);
void sha256_final(sha256 *h, unsigned char digest[SHA256_BYTES]);

typedef struct hmac_sha256 {
    sha256 inner;
    sha256 outer;
} hmac_sha256;

/* key: any length, borrowed for the call. */
void hmac_sha256_init(hmac_sha256 *h, const void *key, size_t key_bytes);
void hmac_sha256_update(hmac_sha256 *h, const void *bytes, size_t len);
void hmac_sha256_final(hmac_sha256 *h, unsigned char digest[SHA256_BYTES]);

/* Are n bytes equal?  Takes the same time wherever they differ. */
bool bytes_equal_constant_time(const void *a, const void *b, size_t n);

#endif
