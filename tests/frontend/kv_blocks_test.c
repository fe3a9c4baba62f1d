/* kv_blocks: who holds which block, and which prefixes are found again.  Worked by hand, with
 * hashes that all collide, and against a plain model on random operations. */
#include <criterion/criterion.h>

#include <string.h>

#include "common/hash.h"
#include "frontend/kv_blocks.h"
#include "frontend/kv_blocks_internal.h"

#define BLOCK_TOKENS 4

TestSuite(kv_blocks, .timeout = 30);

static kv_blocks *
new_blocks(uint32_t block_count)
{
    kv_blocks *kv = NULL;
    cr_assert_eq(kv_blocks_create(&kv, block_count, BLOCK_TOKENS, true), MOE_OK);
    return kv;
}

/* Take blocks for `count` blocks of tokens and register them all. */
static void
fill(kv_blocks *kv, const uint32_t *tokens, uint32_t count, uint32_t *table)
{
    for (uint32_t i = 0; i < count; i++) {
        table[i] = kv_blocks_take(kv);
        cr_assert_neq(table[i], KV_BLOCK_NONE);
        kv_blocks_register(kv, tokens, table, i);
    }
}

static void
release_all(kv_blocks *kv, const uint32_t *table, uint32_t count)
{
    while (count > 0)
        kv_blocks_release(kv, table[--count]);
}

static uint32_t
match_and_release(kv_blocks *kv, const uint32_t *tokens, uint32_t count)
{
    uint32_t table[64];
    const uint32_t found = kv_blocks_match(kv, tokens, count, count, table);
    release_all(kv, table, found);
    return found;
}

Test(kv_blocks, refuses_sizes_that_are_zero_or_overflow)
{
    const uint32_t bad[][2] = {{0, 16},
                               {16, 0},
                               {UINT32_MAX, 1},
                               {1u << 31, 1},
                               {1u << 16, 1u << 16},
                               {UINT32_MAX, UINT32_MAX},
                               {1, UINT32_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        kv_blocks *kv = (kv_blocks *)&kv;
        cr_expect_eq(kv_blocks_create(&kv, bad[i][0], bad[i][1], true), MOE_ERANGE);
        cr_expect_null(kv);
    }
    kv_blocks_free(NULL);
}

Test(kv_blocks, hands_out_every_block_once_and_then_none)
{
    kv_blocks *kv = new_blocks(5);
    cr_expect_eq(kv_blocks_total(kv), 5);
    cr_expect_eq(kv_blocks_tokens(kv), BLOCK_TOKENS);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 5; i++) {
        cr_expect_eq(kv_blocks_available(kv), 5 - i);
        seen |= 1u << kv_blocks_take(kv);
    }
    cr_expect_eq(seen, 31);
    cr_expect_eq(kv_blocks_take(kv), KV_BLOCK_NONE);
    kv_blocks_release(kv, 3);
    cr_expect_eq(kv_blocks_take(kv), 3);
    kv_blocks_free(kv);
}

Test(kv_blocks, finds_the_longest_registered_prefix_in_whole_blocks)
{
    kv_blocks *kv = new_blocks(8);
    const uint32_t tokens[13] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
    uint32_t table[3], got[4];
    fill(kv, tokens, 3, table);
    release_all(kv, table, 3);
    cr_expect_eq(kv_blocks_available(kv), 8, "cached blocks count as free");

    const struct {
        uint32_t count, max_tokens, want;
    } cases[] = {{13, 13, 3}, {13, 12, 3}, {13, 11, 2}, {12, 99, 3}, {11, 99, 2},
                 {4, 4, 1},   {4, 3, 0},   {3, 3, 0},   {0, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint32_t found =
            kv_blocks_match(kv, tokens, cases[i].count, cases[i].max_tokens, got);
        cr_expect_eq(found, cases[i].want, "case %zu", i);
        cr_expect_eq(memcmp(got, table, found * sizeof got[0]), 0);
        cr_expect_eq(kv_blocks_available(kv), 8 - found, "the match holds them");
        release_all(kv, got, found);
    }
    uint32_t other[12];
    for (uint32_t i = 0; i < 12; i++) {
        memcpy(other, tokens, sizeof other);
        other[i] = 99;
        cr_expect_eq(match_and_release(kv, other, 12), i / BLOCK_TOKENS, "token %u differs", i);
    }
    kv_blocks_free(kv);
}

Test(kv_blocks, shared_block_stays_taken_until_the_last_release)
{
    kv_blocks *kv = new_blocks(2);
    const uint32_t tokens[4] = {1, 2, 3, 4};
    uint32_t table[1], again[1];
    fill(kv, tokens, 1, table);
    cr_assert_eq(kv_blocks_match(kv, tokens, 4, 4, again), 1);
    cr_expect_eq(again[0], table[0]);
    kv_blocks_release(kv, table[0]);
    cr_expect_eq(kv_blocks_available(kv), 1);
    cr_expect_neq(kv_blocks_take(kv), table[0]);
    cr_expect_eq(kv_blocks_take(kv), KV_BLOCK_NONE);
    kv_blocks_release(kv, table[0]);
    cr_expect_eq(kv_blocks_available(kv), 1);
    kv_blocks_free(kv);
}

Test(kv_blocks, evicts_empty_blocks_first_then_the_end_of_the_least_recently_used_prefix)
{
    kv_blocks *kv = new_blocks(6);
    const uint32_t a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b[8] = {9, 9, 9, 9, 8, 8, 8, 8};
    uint32_t ta[2], tb[2];
    fill(kv, a, 2, ta);
    fill(kv, b, 2, tb);
    release_all(kv, ta, 2);
    release_all(kv, tb, 2);
    cr_expect_eq(match_and_release(kv, a, 8), 2); /* now b is the older one */

    for (int i = 0; i < 2; i++)
        kv_blocks_take(kv); /* the two that never held anything */
    cr_expect_eq(match_and_release(kv, b, 8), 2);
    cr_expect_eq(match_and_release(kv, a, 8), 2);

    cr_expect_eq(kv_blocks_take(kv), tb[1]);
    cr_expect_eq(match_and_release(kv, b, 8), 1); /* and b is the younger one again */
    cr_expect_eq(kv_blocks_take(kv), ta[1]);
    cr_expect_eq(match_and_release(kv, a, 8), 1);
    cr_expect_eq(kv_blocks_take(kv), tb[0]);
    cr_expect_eq(kv_blocks_take(kv), ta[0]);
    cr_expect_eq(kv_blocks_take(kv), KV_BLOCK_NONE);
    cr_expect_eq(match_and_release(kv, a, 8), 0);
    kv_blocks_free(kv);
}

static uint64_t
same_hash(uint64_t parent, const uint32_t *tokens, uint32_t count)
{
    (void)parent, (void)tokens, (void)count;
    return 42;
}

Test(kv_blocks, colliding_hashes_never_match_other_tokens)
{
    kv_blocks *kv = new_blocks(8);
    kv_blocks_set_hash(kv, same_hash);
    /* Equal second blocks behind different first ones, and one block swapped with the other. */
    const uint32_t a[8] = {1, 1, 1, 1, 7, 7, 7, 7}, b[8] = {2, 2, 2, 2, 7, 7, 7, 7};
    const uint32_t swapped[8] = {7, 7, 7, 7, 1, 1, 1, 1}, c[8] = {3, 3, 3, 3, 7, 7, 7, 7};
    uint32_t ta[2], tb[2], got[2];
    fill(kv, a, 2, ta);
    fill(kv, b, 2, tb);
    cr_expect_eq(kv_blocks_match(kv, a, 8, 8, got), 2);
    cr_expect_arr_eq(got, ta, sizeof ta);
    cr_expect_eq(kv_blocks_match(kv, b, 8, 8, got), 2);
    cr_expect_arr_eq(got, tb, sizeof tb);
    cr_expect_eq(match_and_release(kv, swapped, 8), 0);
    cr_expect_eq(match_and_release(kv, c, 8), 0);
    kv_blocks_free(kv);
}

/* The dangerous case: block P (prefix A) is evicted while its child C stays cached, and the same
 * block number becomes prefix B.  C must not be found behind B, with any hash. */
Test(kv_blocks, child_of_an_evicted_block_is_not_found_behind_its_successor)
{
    for (int collide = 0; collide < 2; collide++) {
        kv_blocks *kv = new_blocks(2);
        if (collide) kv_blocks_set_hash(kv, same_hash);
        const uint32_t a[8] = {1, 1, 1, 1, 7, 7, 7, 7}, b[8] = {2, 2, 2, 2, 7, 7, 7, 7};
        uint32_t ta[2], tb[1];
        fill(kv, a, 2, ta);
        kv_blocks_release(kv, ta[0]); /* the wrong order, on purpose: the parent goes first */
        kv_blocks_release(kv, ta[1]);
        fill(kv, b, 1, tb);
        cr_assert_eq(tb[0], ta[0], "the number is used again");
        cr_expect_eq(match_and_release(kv, b, 8), 1);
        cr_expect_eq(match_and_release(kv, a, 8), 0);

        kv_blocks_release(kv, tb[0]);
        cr_expect_eq(kv_blocks_available(kv), 2);
        kv_blocks_free(kv);
    }
}

Test(kv_blocks, equal_blocks_are_findable_until_the_last_of_them_is_evicted)
{
    kv_blocks *kv = new_blocks(4);
    const uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint32_t ta[1], tb[2], got[2];
    fill(kv, tokens, 1, ta);
    fill(kv, tokens, 1, tb); /* computed at the same time */
    cr_expect_neq(ta[0], tb[0]);
    tb[1] = kv_blocks_take(kv);
    kv_blocks_register(kv, tokens, tb, 1); /* behind the copy */

    kv_blocks_release(kv, ta[0]);
    cr_expect_eq(kv_blocks_take(kv), ta[0], "an unused copy is plain free memory");
    cr_expect_eq(kv_blocks_match(kv, tokens, 8, 8, got), 2);
    cr_expect_arr_eq(got, tb, sizeof tb);
    release_all(kv, got, 2);
    release_all(kv, tb, 2);
    cr_expect_eq(match_and_release(kv, tokens, 8), 2);
    kv_blocks_free(kv);
}

Test(kv_blocks, cached_copy_outlives_the_later_blocks_of_the_one_who_recomputed_it)
{
    kv_blocks *kv = new_blocks(4);
    const uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint32_t ta[1], tb[2];
    fill(kv, tokens, 1, ta);
    kv_blocks_release(kv, ta[0]); /* cached and older than all of b */
    fill(kv, tokens, 2, tb);
    release_all(kv, tb, 2); /* b's copy of block 0 becomes plain, a's must move up */
    cr_expect_eq(kv_blocks_take(kv), tb[0]);
    kv_blocks_take(kv);
    cr_expect_eq(kv_blocks_take(kv), tb[1], "the later block goes first");
    cr_expect_eq(match_and_release(kv, tokens, 8), 1);
    kv_blocks_free(kv);
}

Test(kv_blocks, reset_forgets_unused_blocks_and_hides_those_in_use)
{
    kv_blocks *kv = new_blocks(6);
    const uint32_t a[4] = {1, 1, 1, 1}, b[8] = {2, 2, 2, 2, 3, 3, 3, 3};
    uint32_t ta[1], tb[2];
    fill(kv, a, 1, ta);
    kv_blocks_release(kv, ta[0]);
    fill(kv, b, 1, tb);
    kv_blocks_reset_cache(kv);
    cr_expect_eq(match_and_release(kv, a, 4), 0);
    cr_expect_eq(match_and_release(kv, b, 8), 0);

    tb[1] = kv_blocks_take(kv);
    kv_blocks_register(kv, b, tb, 1); /* its prefix is unknown now */
    cr_expect_eq(match_and_release(kv, b, 8), 0);
    release_all(kv, tb, 2);
    cr_expect_eq(kv_blocks_available(kv), 6);
    fill(kv, b, 2, tb);
    cr_expect_eq(match_and_release(kv, b, 8), 2);
    kv_blocks_free(kv);
}

Test(kv_blocks, without_prefix_caching_nothing_is_found)
{
    kv_blocks *kv = NULL;
    cr_assert_eq(kv_blocks_create(&kv, 2, BLOCK_TOKENS, false), MOE_OK);
    const uint32_t tokens[4] = {1, 2, 3, 4};
    uint32_t table[1];
    fill(kv, tokens, 1, table);
    cr_expect_eq(match_and_release(kv, tokens, 4), 0);
    kv_blocks_reset_cache(kv);
    kv_blocks_release(kv, table[0]);
    cr_expect_eq(kv_blocks_available(kv), 2);
    kv_blocks_free(kv);
}

/* ---------------------------------------------------------------- random operations */

#define MODEL_BLOCKS 24
#define MODEL_SEQS 6
#define MODEL_DEPTH 5

typedef struct model {
    kv_blocks *kv;
    uint64_t rng;
    uint64_t content[MODEL_BLOCKS]; /* what was last computed into each block */
    uint32_t users[MODEL_BLOCKS];
    struct {
        uint32_t tokens[MODEL_DEPTH * BLOCK_TOKENS];
        uint32_t table[MODEL_DEPTH];
        uint32_t count;
    } seqs[MODEL_SEQS];
} model;

static uint32_t
draw(model *m, uint32_t below)
{
    return (uint32_t)((m->rng = hash_mix(m->rng)) % below);
}

static uint64_t
prefix_content(const uint32_t *tokens, uint32_t blocks)
{
    return hash_bytes(1, tokens, (size_t)blocks * BLOCK_TOKENS * sizeof tokens[0]);
}

static void
model_begin(model *m, uint32_t who)
{
    for (uint32_t i = 0; i < MODEL_DEPTH * BLOCK_TOKENS; i++)
        m->seqs[who].tokens[i] = i % BLOCK_TOKENS == 0 ? draw(m, 3) : 5;
    m->seqs[who].count = kv_blocks_match(m->kv, m->seqs[who].tokens, MODEL_DEPTH * BLOCK_TOKENS,
                                         MODEL_DEPTH * BLOCK_TOKENS, m->seqs[who].table);
    for (uint32_t i = 0; i < m->seqs[who].count; i++) {
        const uint32_t b = m->seqs[who].table[i];
        m->users[b]++;
        cr_assert_eq(m->content[b], prefix_content(m->seqs[who].tokens, i + 1));
    }
}

static void
model_grow(model *m, uint32_t who)
{
    const uint32_t i = m->seqs[who].count;
    if (i == MODEL_DEPTH) return;
    const uint32_t b = kv_blocks_take(m->kv);
    if (b == KV_BLOCK_NONE) return;
    cr_assert_eq(m->users[b], 0, "a block in use was handed out");
    m->users[b] = 1;
    m->content[b] = prefix_content(m->seqs[who].tokens, i + 1);
    m->seqs[who].table[i] = b;
    m->seqs[who].count++;
    kv_blocks_register(m->kv, m->seqs[who].tokens, m->seqs[who].table, i);
}

static void
model_end(model *m, uint32_t who)
{
    const bool reversed = draw(m, 4) != 0; /* now and then in the wrong order: still correct */
    const uint32_t count = m->seqs[who].count;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t b = m->seqs[who].table[reversed ? count - 1 - i : i];
        m->users[b]--;
        kv_blocks_release(m->kv, b);
    }
    m->seqs[who].count = 0;
}

static uint64_t
weak_hash(uint64_t parent, const uint32_t *tokens, uint32_t count)
{
    (void)parent, (void)count;
    return tokens[0] & 1;
}

Test(kv_blocks, random_sharing_and_eviction_never_returns_stale_content)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        model m = {.kv = new_blocks(MODEL_BLOCKS), .rng = seed};
        if (seed % 3 == 1) kv_blocks_set_hash(m.kv, same_hash);
        if (seed % 3 == 2) kv_blocks_set_hash(m.kv, weak_hash);
        for (int op = 0; op < 600; op++) {
            const uint32_t who = draw(&m, MODEL_SEQS);
            if (m.seqs[who].count == 0) model_begin(&m, who);
            if (draw(&m, 4) != 0)
                model_grow(&m, who);
            else
                model_end(&m, who);
            if (draw(&m, 100) == 0) kv_blocks_reset_cache(m.kv);

            uint32_t used = 0;
            for (uint32_t b = 0; b < MODEL_BLOCKS; b++)
                used += m.users[b] > 0;
            cr_assert_eq(kv_blocks_available(m.kv), MODEL_BLOCKS - used);
        }
        for (uint32_t who = 0; who < MODEL_SEQS; who++)
            model_end(&m, who);
        cr_assert_eq(kv_blocks_available(m.kv), MODEL_BLOCKS);
        kv_blocks_free(m.kv);
    }
}
