/* arena: alignment, the cap, and reuse. */
#include <criterion/criterion.h>

#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/arena.h"

TestSuite(arena, .timeout = 10);

Test(arena, hands_out_aligned_memory_up_to_its_cap_and_again_after_a_reset)
{
    arena *a;
    cr_assert_eq(arena_create(&a, 5000), MOE_OK);
    for (int round = 0; round < 3; round++) {
        size_t total = 0;
        for (size_t size = 1; size < 40; size++) {
            unsigned char *p = arena_alloc(a, size);
            cr_assert_not_null(p);
            cr_expect_eq((uintptr_t)p % alignof(max_align_t), 0);
            memset(p, 0xab, size);
            arena_release(a, p);
            total += size;
        }
        cr_expect_geq(arena_used_bytes(a), total);
        cr_expect_null(arena_alloc(a, 5000));
        cr_expect_null(arena_alloc(a, SIZE_MAX));
        arena_reset(a);
        void *all = arena_alloc(a, 5000);
        cr_assert_not_null(all);
        memset(all, 1, 5000);
        cr_expect_null(arena_alloc(a, 1));
        arena_reset(a);
        cr_expect_eq(arena_used_bytes(a), 0);
    }
    arena_free(a);
    arena_free(NULL);
}

Test(arena, gives_large_memory_back_and_refuses_impossible_caps)
{
    arena *a;
    cr_assert_eq(arena_create(&a, 4 * ARENA_KEEP_BYTES), MOE_OK);
    unsigned char *p = arena_alloc(a, 4 * ARENA_KEEP_BYTES);
    memset(p, 1, 4 * ARENA_KEEP_BYTES);
    arena_reset(a);
    p = arena_alloc(a, 4 * ARENA_KEEP_BYTES);
    cr_expect_eq(p[0], 1);
    cr_expect_eq(p[4 * ARENA_KEEP_BYTES - 1], 0); /* a fresh page */
    arena_free(a);
    cr_expect_eq(arena_create(&a, 0), MOE_ERANGE);
    cr_expect_eq(arena_create(&a, SIZE_MAX), MOE_ERANGE);
    cr_expect_null(a);
}
