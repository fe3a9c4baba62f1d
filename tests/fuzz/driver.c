/* driver: replays a fuzz target's corpus, then mutates it for a bounded time.
 *
 * A small stand-in for libFuzzer that needs no special compiler; the targets have libFuzzer's entry
 * point, so that either can drive them.  Together with the asan-ubsan preset it finds out-of-bounds
 * reads, leaks and overflows.
 *
 * usage: PROGRAM CORPUS_DIR     CONCLAVE_FUZZ_SECONDS (default 2), CONCLAVE_FUZZ_SEED (default 1)
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CORPUS_MAX 512
#define INPUT_BYTES_MAX (1u << 20)
#define MUTATIONS_MAX 8

typedef struct sample {
    char *bytes;
    size_t len;
} sample;

static sample corpus[CORPUS_MAX];
static size_t corpus_count;
static uint64_t rng;

static uint64_t
draw(uint64_t below)
{
    rng = hash_mix(rng);
    return below == 0 ? 0 : rng % below;
}

static void
load_corpus(const char *dir)
{
    DIR *d = opendir(dir);
    if (d == NULL) {
        fprintf(stderr, "%s: no corpus folder\n", dir);
        exit(1);
    }
    struct dirent *entry;
    while ((entry = readdir(d)) != NULL && corpus_count < CORPUS_MAX) {
        char path[1024];
        errbuf eb;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        sample *s = &corpus[corpus_count];
        if (file_read(path, INPUT_BYTES_MAX, &s->bytes, &s->len, &eb) == MOE_OK) corpus_count++;
    }
    closedir(d);
}

static size_t
mutate(uint8_t *buf, size_t len)
{
    static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '[', '\\', '0', '-', ','};
    const uint64_t count = 1 + draw(MUTATIONS_MAX);
    for (uint64_t i = 0; i < count; i++) {
        const size_t at = (size_t)draw(len);
        switch (draw(6)) {
        case 0:
            if (len) buf[at] ^= (uint8_t)(1u << draw(8));
            break;
        case 1:
            if (len) buf[at] = edges[draw(sizeof edges)];
            break;
        case 2:
            if (len) buf[at] = (uint8_t)draw(256);
            break;
        case 3: /* cut */
            if (len) len = at;
            break;
        case 4: { /* repeat a stretch */
            const size_t n = (size_t)draw(len - at < 64 ? len - at + 1 : 64);
            if (len + n > INPUT_BYTES_MAX) break;
            memmove(buf + at + n, buf + at, len - at);
            len += n;
            break;
        }
        default: { /* splice in a stretch of another sample */
            const sample *other = &corpus[draw(corpus_count)];
            const size_t from = (size_t)draw(other->len);
            size_t n = (size_t)draw(other->len - from + 1);
            if (n > 64) n = 64;
            if (at + n > INPUT_BYTES_MAX) break;
            if (n) memcpy(buf + at, other->bytes + from, n);
            if (at + n > len) len = at + n;
        }
        }
    }
    return len;
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS_DIR\n", argv[0]);
        return 2;
    }
    const char *seconds = getenv("CONCLAVE_FUZZ_SECONDS"), *seed = getenv("CONCLAVE_FUZZ_SEED");
    const double limit_s = seconds ? atof(seconds) : 2;
    rng = seed ? strtoull(seed, NULL, 10) : 1;

    load_corpus(argv[1]);
    uint8_t *buf = malloc(INPUT_BYTES_MAX);
    if (buf == NULL || corpus_count == 0) {
        fprintf(stderr, "%s: empty corpus\n", argv[1]);
        return 1;
    }
    for (size_t i = 0; i < corpus_count; i++) {
        /* An exact-size copy, so that AddressSanitizer sees a read past the end. */
        uint8_t *exact = malloc(corpus[i].len + (corpus[i].len == 0));
        if (exact == NULL) return 1;
        memcpy(exact, corpus[i].bytes, corpus[i].len);
        LLVMFuzzerTestOneInput(exact, corpus[i].len);
        free(exact);
    }
    const uint64_t end = clock_now_ns() + (uint64_t)(limit_s * 1e9);
    uint64_t runs = 0;
    for (; clock_now_ns() < end; runs++) {
        const sample *s = &corpus[draw(corpus_count)];
        memcpy(buf, s->bytes, s->len);
        const size_t len = mutate(buf, s->len);
        uint8_t *exact = malloc(len + (len == 0));
        if (exact == NULL) return 1;
        memcpy(exact, buf, len);
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
    }
    printf("%s: %zu corpus inputs, %llu mutations in %.1f s, no finding\n", argv[0], corpus_count,
           (unsigned long long)runs, limit_s);
    for (size_t i = 0; i < corpus_count; i++) {
        free(corpus[i].bytes);
    }
    free(buf);
    return 0;
}
