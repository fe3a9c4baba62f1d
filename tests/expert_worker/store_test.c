/* store: experts that come and go beside others: what is hosted has the bytes of a fresh load, what
 * fails or is given up leaves nothing, and memory is bounded and reused. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "expert_worker/store.h"
#include "tests/support/paths.h"

static checkpoint *ckpt;
static const model_config *model;
static pool *threads;
static expert_layout layout;
static expert_store *store, *all; /* the one under test, and one that hosts everything */
static store_growth growth;
static uint32_t quiesced;
static errbuf eb;

static void
setup(void)
{
    char path[512];
    golden_path(path, sizeof path, "models/base");
    cr_assert_eq(checkpoint_open(&ckpt, path, &eb), MOE_OK, "%s", eb.text);
    model = checkpoint_config(ckpt);
    cr_assert_eq(pool_create(&threads, 1), MOE_OK);
    expert_layout_init(&layout, DTYPE_F32, model, 0, model->intermediate_size);
    growth = (store_growth){.checkpoint = ckpt, .pool = threads};
    static const uint32_t every[] = {0, 1, 2, 3, 4, 5, 6, 7}, first[] = {0, 3};
    cr_assert_eq(expert_store_create(&all, ckpt, &layout, every, 8, threads, NULL, &eb), MOE_OK);
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, first, 2, threads, NULL, &eb), MOE_OK);
    quiesced = 0;
}

static void
teardown(void)
{
    expert_store_free(store);
    expert_store_free(all);
    pool_free(threads);
    checkpoint_close(ckpt);
    store = all = NULL;
    threads = NULL;
    ckpt = NULL;
}

TestSuite(store, .init = setup, .fini = teardown, .timeout = 30);

static const char *
slot(const expert_store *s, uint32_t id)
{
    return expert_store_slot(s, id / model->num_experts, id % model->num_experts);
}

/* Exactly the experts of the bit set are hosted, each with its own bytes. */
static void
expect_hosts(uint32_t set)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < 8; id++) {
        const char *bytes = slot(store, id);
        uint64_t hash, want;
        if ((set >> id & 1) == 0) {
            cr_expect_null(bytes, "expert %u", id);
            cr_expect_not(expert_store_hash(store, id, &hash));
            continue;
        }
        count++;
        cr_assert_not_null(bytes, "expert %u", id);
        cr_expect_eq(memcmp(bytes, slot(all, id), layout.slot_bytes), 0, "expert %u", id);
        cr_expect(expert_store_hash(store, id, &hash) && expert_store_hash(all, id, &want));
        cr_expect_eq(hash, want);
    }
    cr_expect_eq(expert_store_count(store), count);
    cr_expect_eq(expert_store_bytes(store), count * layout.slot_bytes);
}

static void
quiesce(void *arg)
{
    cr_expect_eq(arg, &quiesced);
    quiesced++;
}

static moe_err
host(const uint32_t *experts, uint32_t count)
{
    eb.text[0] = '\0';
    return expert_store_host(store, &growth, experts, count, &eb);
}

static void
release(const uint32_t *experts, uint32_t count)
{
    expert_store_release(store, experts, count, quiesce, &quiesced);
}

Test(store, hosts_more_and_releases_some)
{
    expect_hosts(0x09);
    cr_expect_eq(host((uint32_t[]){1, 3, 6}, 3), MOE_OK, "%s", eb.text);
    expect_hosts(0x4b);
    release((uint32_t[]){0, 3, 7, 8, UINT32_MAX}, 5);
    cr_expect_eq(quiesced, 1);
    expect_hosts(0x42);
    release((uint32_t[]){0}, 1);
    cr_expect_eq(quiesced, 1, "there was nothing to wait for");
    cr_expect_eq(host((uint32_t[]){0, 2, 4, 5, 7}, 5), MOE_OK, "%s", eb.text);
    expect_hosts(0xf7);
    release((uint32_t[]){0, 1, 2, 3, 4, 5, 6, 7}, 8);
    expect_hosts(0);
    cr_expect_eq(host((uint32_t[]){7}, 1), MOE_OK, "%s", eb.text);
    expect_hosts(0x80);
}

Test(store, stays_as_it_is_when_asked_for_nonsense)
{
    cr_expect_eq(host((uint32_t[]){1, 8}, 2), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "expert 8"), "%s", eb.text);
    cr_expect_eq(host((uint32_t[]){2, 2}, 2), MOE_EINVAL);
    cr_expect_eq(host(NULL, 0), MOE_OK);
    expect_hosts(0x09);
}

Test(store, keeps_to_its_memory_and_names_what_is_short)
{
    char text[64];
    growth.memory_bytes = 4 * layout.slot_bytes;
    cr_expect_eq(host((uint32_t[]){1, 2, 4}, 3), MOE_ENOMEM);
    snprintf(text, sizeof text, "%zu bytes more", layout.slot_bytes);
    cr_expect_not_null(strstr(eb.text, text), "%s", eb.text);
    expect_hosts(0x09);
    cr_expect_eq(host((uint32_t[]){0, 1, 2, 3}, 4), MOE_OK, "two of them are there: %s", eb.text);
    release((uint32_t[]){0}, 1);
    cr_expect_eq(host((uint32_t[]){7}, 1), MOE_OK, "%s", eb.text);
    expect_hosts(0x8e);
}

Test(store, hosts_nothing_of_a_load_that_was_given_up)
{
    _Atomic bool cancel = true;
    growth.cancel = &cancel;
    cr_expect_eq(host((uint32_t[]){1, 2}, 2), MOE_ECLOSED);
    expect_hosts(0x09);
    cancel = false;
    cr_expect_eq(host((uint32_t[]){1, 2}, 2), MOE_OK, "%s", eb.text);
    expect_hosts(0x0f);
}

Test(store, reads_no_faster_than_it_is_told)
{
    growth.bytes_per_s = 20 * layout.slot_bytes; /* one after the other, 50 ms each */
    const uint64_t start = clock_now_ns();
    cr_expect_eq(host((uint32_t[]){1, 2, 4}, 3), MOE_OK, "%s", eb.text);
    cr_expect_geq(clock_now_ns() - start, 150 * NS_PER_MS);
    expect_hosts(0x1f);
}
