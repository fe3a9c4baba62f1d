/* hash: known values, independence of alignment, and sensitivity to every byte. */
#include <criterion/criterion.h>

#include "common/hash.h"

TestSuite(hash, .timeout = 10);

/* The first outputs of splitmix64 with seed 0: its n-th state is n times the golden ratio. */
Test(hash, mixes_as_splitmix64)
{
    cr_expect_eq(hash_mix(0), 0xe220a8397b1dcdafull);
    cr_expect_eq(hash_mix(0x9e3779b97f4a7c15ull), 0x6e789e6aa1b965f4ull);
    cr_expect_eq(hash_mix(2 * 0x9e3779b97f4a7c15ull), 0x06c45d188009454full);
}

Test(hash, combines_a_word_at_a_time_then_the_tail_then_the_length)
{
    const uint64_t word = 0x0807060504030201ull;
    const unsigned char bytes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    cr_expect_eq(hash_bytes(5, NULL, 0), hash_combine(hash_combine(5, 0), 0));
    cr_expect_eq(hash_bytes(5, bytes, 8), hash_combine(hash_combine(hash_combine(5, word), 0), 8));
    cr_expect_eq(hash_bytes(5, bytes, 9), hash_combine(hash_combine(hash_combine(5, word), 9), 9));
    cr_expect_neq(hash_combine(1, 2), hash_combine(2, 1));
}

Test(hash, depends_on_every_byte_the_length_and_the_seed_but_not_on_alignment)
{
    unsigned char buffer[64], copy[80];
    for (size_t i = 0; i < sizeof buffer; i++)
        buffer[i] = (unsigned char)hash_mix(i);
    for (size_t n = 0; n <= 40; n++) {
        const uint64_t want = hash_bytes(1, buffer, n);
        cr_expect_neq(hash_bytes(2, buffer, n), want);
        for (size_t shift = 0; shift < 9; shift++) {
            memcpy(copy + shift, buffer, n);
            cr_expect_eq(hash_bytes(1, copy + shift, n), want);
        }
        for (size_t i = 0; i < n; i++) {
            buffer[i] ^= 0x80;
            cr_expect_neq(hash_bytes(1, buffer, n), want);
            buffer[i] ^= 0x80;
        }
    }
    /* Zeros count too. */
    memset(buffer, 0, sizeof buffer);
    for (size_t a = 0; a < 40; a++) {
        for (size_t b = 0; b < a; b++)
            cr_expect_neq(hash_bytes(0, buffer, a), hash_bytes(0, buffer, b));
    }
}

Test(hash, lanes_depend_on_every_byte_the_length_and_the_seed_but_not_on_alignment)
{
    unsigned char buffer[160], copy[176];
    for (size_t i = 0; i < sizeof buffer; i++)
        buffer[i] = (unsigned char)hash_mix(i);
    for (size_t n = 0; n <= sizeof buffer; n++) {
        const uint64_t want = hash_lanes(1, buffer, n);
        cr_expect_neq(hash_lanes(2, buffer, n), want);
        cr_expect_neq(hash_lanes(1, buffer, n ? n - 1 : 1), want);
        for (size_t shift = 0; shift < 9; shift++) {
            memcpy(copy + shift, buffer, n);
            cr_expect_eq(hash_lanes(1, copy + shift, n), want);
        }
        for (size_t i = 0; i < n; i++) {
            buffer[i] ^= 0x80;
            cr_expect_neq(hash_lanes(1, buffer, n), want, "byte %zu of %zu", i, n);
            buffer[i] ^= 0x80;
        }
    }
}

/* Zeros are what lost pages are replaced by: their number and place must count. */
Test(hash, lanes_tell_zeros_by_their_number_and_words_by_their_order)
{
    static const unsigned char zeros[256];
    unsigned char words[128] = {[0] = 1, [64] = 2}, swapped[128] = {[0] = 2, [64] = 1};
    cr_expect_neq(hash_lanes(0, zeros, 64), hash_lanes(0, zeros, 128));
    cr_expect_neq(hash_lanes(0, zeros, 128), hash_lanes(0, zeros, 256));
    cr_expect_neq(hash_lanes(0, words, 128), hash_lanes(0, swapped, 128));
}
