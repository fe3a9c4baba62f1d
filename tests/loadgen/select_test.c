/* select, npy_read: arrays as a server sends them, shares worked by hand, and what is chosen. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/rng.h"
#include "loadgen/select.h"

TestSuite(select, .timeout = 10);

static errbuf eb;

/* Base64 of bytes [len]; a plain one, apart from the reader's. */
static char *
encode(const unsigned char *bytes, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *text = calloc(len / 3 + 2, 4);
    for (size_t i = 0, at = 0; i < len; i += 3) {
        uint32_t word = (uint32_t)bytes[i] << 16;
        if (i + 1 < len) word |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < len) word |= bytes[i + 2];
        for (int d = 0; d < 4; d++)
            text[at++] = (size_t)d <= len - i ? digits[word >> (18 - 6 * d) & 63] : '=';
    }
    return text;
}

static moe_err
read_npy(const char *header, const void *data, size_t bytes, routed_ids *out)
{
    unsigned char file[512] = "\x93NUMPY\x01";
    const size_t len = strlen(header);
    file[8] = (unsigned char)len;
    memcpy(file + 10, header, len);
    memcpy(file + 10 + len, data, bytes);
    char *text = encode(file, 10 + len + bytes);
    eb.text[0] = '\0';
    const moe_err err = routed_ids_read(text, strlen(text), out, &eb);
    free(text);
    return err;
}

Test(select, an_array_of_bytes_or_of_words_is_read)
{
    routed_ids ids;
    const unsigned char bytes[] = {1, 2, 3, 4, 5, 6, 7, 255};
    cr_assert_eq(read_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2), }    \n",
                          bytes, 8, &ids),
                 MOE_OK, "%s", eb.text);
    cr_expect(ids.tokens == 2 && ids.layers == 2 && ids.top_k == 2);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(ids.ids[i], bytes[i]);
    routed_ids_fini(&ids);
    cr_assert_eq(read_npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1, 2, 1), }\n",
                          "\x01\x01\x02\x00", 4, &ids),
                 MOE_OK, "%s", eb.text);
    cr_expect(ids.ids[0] == 257 && ids.ids[1] == 2);
    routed_ids_fini(&ids);
    cr_assert_eq(
        read_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 2, 1), }\n", "", 0, &ids),
        MOE_OK, "%s", eb.text);
    cr_expect_null(ids.ids);
}

Test(select, what_is_no_such_array_is_refused)
{
    static const struct {
        const char *header;
        size_t bytes;
        moe_err want;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1), }", 4, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': True, 'shape': (1, 1, 1), }", 1, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1), }", 1, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 1), }", 1, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, 1), }", 1, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 1), }", 1, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1), }", 2, MOE_EINVAL},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1025, 1), }", 1, MOE_ERANGE},
        {"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999, 1, 1), }", 1,
         MOE_ERANGE},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (1, 1, 1), }", 2, MOE_ERANGE},
        {"", 0, MOE_EINVAL},
    };
    const unsigned char data[] = {0xff, 0xff, 0, 0};
    routed_ids ids;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(read_npy(cases[i].header, data, cases[i].bytes, &ids), cases[i].want,
                     "%zu: %s", i, eb.text);
        cr_expect_null(ids.ids);
        cr_expect_neq(eb.text[0], '\0');
    }
    const char *const texts[] = {"", "A", "A===", "====", "AA?A", "k05VTVBZ", "AA=A"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        cr_expect_eq(routed_ids_read(texts[i], strlen(texts[i]), &ids, &eb), MOE_EINVAL, "%s",
                     texts[i]);
}

static void
add(select_uses *u, uint16_t a, uint16_t b)
{
    uint16_t list[] = {a, b}; /* two tokens, one layer, top 1 */
    const routed_ids ids = {.tokens = 2, .layers = 1, .top_k = 1, .ids = list};
    cr_assert_eq(select_uses_add(u, &ids, &eb), MOE_OK, "%s", eb.text);
}

/* Four experts.  Prompts 0 and 3 use expert 0 alone, 1 uses 1 and 2, 2 uses 0 and 3. */
Test(select, the_most_uneven_and_the_most_even_are_chosen_by_hand)
{
    select_uses u;
    uint32_t picks[4];
    cr_assert_eq(select_uses_init(&u, 4, 4, &eb), MOE_OK);
    add(&u, 0, 0);
    add(&u, 1, 2);
    add(&u, 0, 3);
    add(&u, 0, 0);
    cr_expect_float_eq(select_skew(&u, NULL, 4), 4 * 2.5 / 4, 1e-6);
    cr_expect_float_eq(select_skew(&u, &(uint32_t){1}, 1), 2, 1e-6);
    cr_expect_eq(select_pick(&u, 3, false, picks), 3);
    cr_expect(picks[0] == 0 && picks[1] == 3 && picks[2] == 2);
    cr_expect_eq(select_pick(&u, 2, true, picks), 2);
    cr_expect(picks[0] == 1 && picks[1] == 2); /* each expert once */
    cr_expect_float_eq(select_skew(&u, picks, 2), 1, 1e-6);
    cr_expect_eq(select_pick(&u, 9, false, picks), 4);
    select_uses_fini(&u);
}

Test(select, a_choice_is_never_evener_than_all_and_has_no_prompt_twice)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        rng r;
        select_uses u;
        uint32_t picks[40];
        bool seen[40] = {false};
        rng_init(&r, seed, 0);
        cr_assert_eq(select_uses_init(&u, 40, 8, &eb), MOE_OK);
        for (int p = 0; p < 40; p++) {
            uint16_t list[30];
            for (int i = 0; i < 30; i++)
                list[i] = (uint16_t)(rng_below(&r, p % 2 ? 8 : 1 + (uint64_t)p % 8));
            const routed_ids ids = {.tokens = 5, .layers = 3, .top_k = 2, .ids = list};
            cr_assert_eq(select_uses_add(&u, &ids, &eb), MOE_OK, "%s", eb.text);
        }
        cr_expect_eq(select_pick(&u, 10, false, picks), 10);
        for (int i = 0; i < 10; i++) {
            cr_expect_not(seen[picks[i]]);
            seen[picks[i]] = true;
        }
        const double all = select_skew(&u, NULL, 40);
        cr_expect_gt(select_skew(&u, picks, 10), all);
        cr_expect_eq(select_pick(&u, 10, true, picks), 10);
        cr_expect_lt(select_skew(&u, picks, 10), all);
        select_uses_fini(&u);
    }
}

Test(select, what_does_not_fit_together_is_refused)
{
    select_uses u;
    uint16_t list[] = {0, 7};
    cr_expect_eq(select_uses_init(&u, 0, 8, &eb), MOE_ERANGE);
    cr_expect_eq(select_uses_init(&u, 1, 0, &eb), MOE_ERANGE);
    cr_expect_eq(select_uses_init(&u, SELECT_PROMPTS_MAX + 1, 8, &eb), MOE_ERANGE);
    cr_expect_eq(select_uses_init(&u, 1, NPY_EXPERTS_MAX + 1, &eb), MOE_ERANGE);
    cr_assert_eq(select_uses_init(&u, 1, 7, &eb), MOE_OK);
    routed_ids ids = {.tokens = 2, .layers = 1, .top_k = 1, .ids = list};
    cr_expect_eq(select_uses_add(&u, &ids, &eb), MOE_EINVAL); /* expert 7 of 7 */
    ids.tokens = 0;
    cr_expect_eq(select_uses_add(&u, &ids, &eb), MOE_EINVAL);
    ids.tokens = 1;
    cr_expect_eq(select_uses_add(&u, &ids, &eb), MOE_OK);
    cr_expect_eq(select_uses_add(&u, &ids, &eb), MOE_ERANGE);
    select_uses_fini(&u);
}
