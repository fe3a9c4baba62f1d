/* sha256: published vectors, and that the split of the input does not matter. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "common/sha256.h"

TestSuite(sha256, .timeout = 10);

static void
expect_hex(const unsigned char *digest, const char *want)
{
    char hex[2 * SHA256_BYTES + 1];
    for (unsigned i = 0; i < SHA256_BYTES; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    cr_expect_str_eq(hex, want);
}

Test(sha256, gives_the_digests_of_fips_180)
{
    static const struct {
        const char *text;
        const char *want;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    unsigned char digest[SHA256_BYTES];
    sha256 h;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sha256_init(&h);
        sha256_update(&h, cases[i].text, strlen(cases[i].text));
        sha256_final(&h, digest);
        expect_hex(digest, cases[i].want);
    }
    static char million[1000000];
    memset(million, 'a', sizeof million);
    for (size_t step = 1; step < 4000; step = step * 3 + 1) {
        sha256_init(&h);
        for (size_t at = 0; at < sizeof million; at += step)
            sha256_update(&h, million + at,
                          sizeof million - at < step ? sizeof million - at : step);
        sha256_final(&h, digest);
        expect_hex(digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

Test(sha256, gives_the_hmacs_of_rfc_4231)
{
    char key[131], data[50];
    static const char large_key[] = "Test Using Larger Than Block-Size Key - Hash Key First";
    static const char want_something[] = "what do ya want for nothing?";
    const struct {
        int key_byte; /* -1: "Jefe" */
        size_t key_bytes;
        const char *text; /* NULL: 50 bytes of 0xdd */
        const char *want;
    } cases[] = {
        {0x0b, 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {-1, 4, want_something, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
        {0xaa, 20, NULL, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
        {0xaa, 131, large_key, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
    };
    memset(data, 0xdd, sizeof data);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char digest[SHA256_BYTES];
        hmac_sha256 h;
        memset(key, cases[i].key_byte, sizeof key);
        if (cases[i].key_byte < 0) memcpy(key, "Jefe", 4);
        hmac_sha256_init(&h, key, cases[i].key_bytes);
        hmac_sha256_update(&h, cases[i].text != NULL ? cases[i].text : data,
                           cases[i].text != NULL ? strlen(cases[i].text) : sizeof data);
        hmac_sha256_final(&h, digest);
        expect_hex(digest, cases[i].want);
    }
}

Test(sha256, compares_every_byte)
{
    unsigned char a[40] = {0}, b[40] = {0};
    cr_expect(bytes_equal_constant_time(a, b, sizeof a));
    for (size_t i = 0; i < sizeof a; i++) {
        b[i] = 0x80;
        cr_expect_not(bytes_equal_constant_time(a, b, sizeof a));
        cr_expect(bytes_equal_constant_time(a, b, i));
        b[i] = 0;
    }
}
