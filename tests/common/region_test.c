/* region: memory of every size is zero, aligned, whole, and given back. */
#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

#include "common/region.h"

TestSuite(region, .timeout = 30);

Test(region, is_zero_aligned_and_usable_to_its_last_byte)
{
    static const size_t sizes[] = {1, 4096, REGION_PAGE_BYTES, REGION_PAGE_BYTES + 1,
                                   5 * REGION_PAGE_BYTES - 7};
    pool *p;
    cr_assert_eq(pool_create(&p, 2), MOE_OK);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        region r;
        errbuf eb = {{0}};
        cr_assert_eq(region_create(&r, sizes[i], p, &eb), MOE_OK, "%s", eb.text);
        cr_expect_eq((uintptr_t)r.bytes % REGION_PAGE_BYTES, 0);
        cr_expect_eq(r.size, sizes[i]);
        for (size_t b = 0; b < r.size; b++) {
            cr_assert_eq(r.bytes[b], 0);
        }
        memset(r.bytes, 0x5a, r.size);
        region_free(&r);
        cr_expect_null(r.bytes);
        region_free(&r);
    }
    pool_free(p);
}

Test(region, of_nothing_is_empty_and_of_too_much_is_an_error)
{
    pool *p;
    region r;
    errbuf eb = {{0}};
    cr_assert_eq(pool_create(&p, 1), MOE_OK);
    cr_expect_eq(region_create(&r, 0, p, &eb), MOE_OK);
    cr_expect_null(r.bytes);
    region_free(&r);
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 4, (size_t)1 << 60};
    for (size_t i = 0; i < 3; i++) {
        cr_expect_eq(region_create(&r, sizes[i], p, &eb), MOE_ENOMEM);
        cr_expect_null(r.bytes);
        cr_expect_not_null(strstr(eb.text, "no memory for"), "%s", eb.text);
    }
    pool_free(p);
}
