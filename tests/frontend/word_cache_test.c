/* word_cache: what was put is found, whole or not at all, also while others write. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "frontend/word_cache.h"

TestSuite(word_cache, .timeout = 60);

Test(word_cache, finds_words_of_every_length_and_tells_them_apart)
{
    /* Of one slot: whatever is found must have been compared. */
    word_cache *cache = word_cache_create(1);
    char exact[2][WORD_CACHE_BYTES_MAX]; /* two, so that sanitizers see a byte read too many */
    cr_assert_not_null(cache);
    for (size_t len = 1; len <= WORD_CACHE_BYTES_MAX; len++) {
        for (size_t space = 0; space < 2 && space <= len; space++) {
            char *text = malloc(len - space + 1);
            memset(text, 'a', len - space);
            const word_key key = word_cache_key(space, text, len - space);
            uint32_t ids[WORD_CACHE_IDS_MAX] = {0}, got[WORD_CACHE_IDS_MAX];
            const uint32_t count = 1 + (uint32_t)len % WORD_CACHE_IDS_MAX;
            for (uint32_t i = 0; i < count; i++) {
                ids[i] = (uint32_t)len * 100 + i;
            }
            cr_expect_eq(word_cache_find(cache, &key, got), 0u, "length %zu", len);
            word_cache_put(cache, &key, ids, count);
            cr_expect_eq(word_cache_find(cache, &key, got), count);
            cr_expect_arr_eq(got, ids, count * sizeof ids[0]);

            memset(exact[0], 'a', len); /* the same bytes, written out */
            if (space) exact[0][0] = ' ';
            const word_key same = word_cache_key(false, exact[0], len);
            cr_expect_eq(word_cache_find(cache, &same, got), count, "length %zu", len);
            for (size_t at = 0; at < len; at++) {
                memcpy(exact[1], exact[0], len);
                exact[1][at] = 'b';
                const word_key other = word_cache_key(false, exact[1], len);
                cr_expect_eq(word_cache_find(cache, &other, got), 0u, "byte %zu of %zu", at, len);
            }
            free(text);
        }
    }
    word_cache_free(cache);
}

Test(word_cache, tells_a_nul_from_the_end)
{
    word_cache *cache = word_cache_create(1);
    uint32_t ids[WORD_CACHE_IDS_MAX] = {7};
    const word_key one = word_cache_key(false, "a", 1), two = word_cache_key(false, "a\0", 2);
    word_cache_put(cache, &one, ids, 1);
    cr_expect_eq(word_cache_find(cache, &two, ids), 0u);
    cr_expect_eq(word_cache_find(cache, &one, ids), 1u);
    word_cache_free(cache);
    word_cache_free(NULL);
}

Test(word_cache, remembers_at_most_its_number_of_ids)
{
    word_cache *cache = word_cache_create(2);
    uint32_t ids[WORD_CACHE_IDS_MAX + 1] = {0}, got[WORD_CACHE_IDS_MAX];
    const word_key key = word_cache_key(true, "", 0);
    word_cache_put(cache, &key, ids, 0);
    cr_expect_eq(word_cache_find(cache, &key, got), 0u);
    word_cache_put(cache, &key, ids, WORD_CACHE_IDS_MAX + 1);
    cr_expect_eq(word_cache_find(cache, &key, got), 0u);
    word_cache_put(cache, &key, ids, WORD_CACHE_IDS_MAX);
    cr_expect_eq(word_cache_find(cache, &key, got), WORD_CACHE_IDS_MAX);
    word_cache_free(cache);
}

enum { THREADS = 4, ROUNDS = 200000, WORDS = 16 };

/* Put and look up words that share one slot; a word's ids all follow from its number. */
static void *
hammer(void *arg)
{
    word_cache *cache = arg;
    uint64_t rng = (uintptr_t)&cache;
    for (int i = 0; i < ROUNDS; i++) {
        rng = hash_mix(rng);
        const uint32_t number = (uint32_t)(rng >> 8) % WORDS, count = 1 + number % 8;
        char text[WORD_CACHE_BYTES_MAX];
        uint32_t ids[WORD_CACHE_IDS_MAX];
        memset(text, (int)('a' + number), sizeof text);
        const word_key key = word_cache_key(false, text, sizeof text);
        const uint32_t found = word_cache_find(cache, &key, ids);
        if (found != 0 && found != count) return (void *)"a count of another word";
        for (uint32_t k = 0; k < found; k++) {
            if (ids[k] != number * 1000 + k) return (void *)"ids of another word";
        }
        for (uint32_t k = 0; k < count; k++) {
            ids[k] = number * 1000 + k;
        }
        word_cache_put(cache, &key, ids, count);
    }
    return NULL;
}

Test(word_cache, never_mixes_two_words_while_threads_write_them)
{
    word_cache *cache = word_cache_create(1);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, hammer, cache), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *wrong = NULL;
        pthread_join(threads[i], &wrong);
        cr_expect_null(wrong, "%s", (const char *)wrong);
    }
    word_cache_free(cache);
}
