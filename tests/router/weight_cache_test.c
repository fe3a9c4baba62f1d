/* weights of worker and router with a cache: the same bytes as without, taken from the cache where
 * it has them and from the checkpoint where not, and never from the cache of another checkpoint. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "expert_worker/store.h"
#include "router/weights.h"
#include "tests/model/support.h"
#include "tests/support/paths.h"

#define FILE_NAME "model.safetensors"

static char model[PATH_BYTES], cache_dir[PATH_BYTES];
static checkpoint *original, *ckpt; /* the golden one, and our copy of it */
static const model_config *config;
static pool *threads;
static weight_cache cache;

static checkpoint *
open_dir(const char *dir)
{
    checkpoint *c;
    errbuf eb = {{0}};
    cr_assert_eq(checkpoint_open(&c, dir, &eb), MOE_OK, "%s", eb.text);
    return c;
}

static void
setup(void)
{
    char golden[PATH_BYTES];
    golden_path(golden, sizeof golden, "models/base");
    temp_create(model);
    temp_create(cache_dir);
    temp_copy_all(model, golden);
    original = open_dir(golden);
    ckpt = open_dir(model);
    config = checkpoint_config(ckpt);
    cache = (weight_cache){cache_dir, checkpoint_fingerprint(ckpt)};
    cr_assert_eq(pool_create(&threads, 3), MOE_OK);
}

static void
teardown(void)
{
    pool_free(threads);
    checkpoint_close(ckpt);
    checkpoint_close(original);
    threads = NULL;
    ckpt = original = NULL;
    temp_remove(model);
    temp_remove(cache_dir);
}

TestSuite(weight_cache, .init = setup, .fini = teardown, .timeout = 60);

/* Change one weight in our copy, so that what is packed from it differs; with quiet, the file looks
 * as if nobody had written to it. */
static void
change_weight(const tensor_view *t, bool quiet)
{
    char path[PATH_BYTES];
    struct stat st;
    snprintf(path, sizeof path, "%.400s/" FILE_NAME, model);
    cr_assert_eq(stat(path, &st), 0);
    /* Where the tensor lies in the file: the first place with its bytes. */
    FILE *f = fopen(path, "r+b");
    cr_assert_not_null(f);
    char *bytes = malloc((size_t)st.st_size);
    cr_assert_eq(fread(bytes, 1, (size_t)st.st_size, f), (size_t)st.st_size);
    const char *at = memmem(bytes, (size_t)st.st_size, t->data, t->bytes);
    cr_assert_not_null(at);
    cr_assert_eq(fseek(f, at - bytes + 1, SEEK_SET), 0);
    fputc(at[1] ^ 1, f); /* an exponent's or a high mantissa bit of the first value */
    cr_assert_eq(fclose(f), 0);
    free(bytes);
    const struct timespec old[2] = {st.st_atim, st.st_mtim};
    const struct timespec later[2] = {st.st_atim, {st.st_mtim.tv_sec + 5, 0}};
    cr_assert_eq(utimensat(AT_FDCWD, path, quiet ? old : later, 0), 0);
}

static expert_store *
load_experts(const checkpoint *c, weight_cache from, const expert_layout *layout,
             const uint32_t *ids, uint32_t count)
{
    expert_store *s;
    errbuf eb = {{0}};
    cr_assert_eq(expert_store_load(&s, c, from, layout, ids, count, threads, NULL, &eb), MOE_OK,
                 "%s", eb.text);
    expert_store_wait_cached(s);
    return s;
}

static bool
same_slot(const expert_store *a, const expert_store *b, uint32_t id)
{
    const uint32_t l = id / config->num_experts, e = id % config->num_experts;
    return memcmp(expert_store_slot(a, l, e), expert_store_slot(b, l, e),
                  expert_store_layout(a)->slot_bytes) == 0;
}

Test(weight_cache, experts_come_from_the_cache_as_far_as_it_has_them)
{
    static const moe_dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_INT8};
    static const uint32_t first[] = {1, 2}, all[] = {0, 1, 2, 3};
    const tensor_view *w1_of_2 = checkpoint_tensor(ckpt, TENSOR_W1, 0, 2);
    expert_layout layouts[3];
    expert_store *want[3];
    for (size_t d = 0; d < 3; d++) {
        expert_layout_init(&layouts[d], dtypes[d], config, 0, config->intermediate_size);
        want[d] = load_experts(original, (weight_cache){0}, &layouts[d], all, 4);
        expert_store_free(load_experts(ckpt, cache, &layouts[d], first, 2));
    }
    /* Only the cache still has expert 2 as it was. */
    change_weight(w1_of_2, true);
    for (size_t d = 0; d < 3; d++) {
        expert_store *changed = load_experts(ckpt, (weight_cache){0}, &layouts[d], all, 4);
        cr_expect_not(same_slot(changed, want[d], 2), "the change is to be seen without a cache");
        expert_store *got = load_experts(ckpt, cache, &layouts[d], all, 4);
        for (uint32_t i = 0; i < 4; i++) {
            cr_expect(same_slot(got, want[d], i), "%s expert %u", dtype_name(dtypes[d]), i);
        }
        expert_store_free(got);
        expert_store_free(changed);
        expert_store_free(want[d]);
    }
}

Test(weight_cache, a_slice_has_a_cache_of_its_own)
{
    static const uint32_t ids[] = {0, 3};
    for (uint32_t rank = 0; rank < 2; rank++) {
        uint32_t begin, end;
        expert_layout layout;
        tp_slice(config->intermediate_size, rank, 2, &begin, &end);
        expert_layout_init(&layout, DTYPE_INT8, config, begin, end);
        expert_store *want = load_experts(original, (weight_cache){0}, &layout, ids, 2);
        for (int start = 0; start < 2; start++) {
            expert_store *got = load_experts(ckpt, cache, &layout, ids, 2);
            cr_expect(expert_store_bytes(got) == 0 ||
                          (same_slot(got, want, 0) && same_slot(got, want, 3)),
                      "rank %u start %d", rank, start);
            expert_store_free(got);
        }
        expert_store_free(want);
    }
}

Test(weight_cache, a_checkpoint_that_was_written_to_is_packed_again)
{
    static const uint32_t ids[] = {2};
    expert_layout layout;
    expert_layout_init(&layout, DTYPE_BF16, config, 0, config->intermediate_size);
    expert_store *old = load_experts(ckpt, cache, &layout, ids, 1);
    change_weight(checkpoint_tensor(ckpt, TENSOR_W1, 0, 2), false);
    expert_store *got = load_experts(ckpt, cache, &layout, ids, 1);
    cr_expect_not(same_slot(old, got, 2));
    expert_store_free(old);
    expert_store_free(got);
}

static router_weights
load_router(const checkpoint *c, weight_cache from)
{
    router_weights w;
    errbuf eb = {{0}};
    cr_assert_eq(router_weights_load(&w, c, DTYPE_INT8, from, threads, &eb), MOE_OK, "%s", eb.text);
    if (w.fill != NULL) packed_fill_wait(w.fill);
    return w;
}

static bool
same_memory(const router_weights *a, const router_weights *b)
{
    return a->memory.size == b->memory.size &&
           memcmp(a->memory.bytes, b->memory.bytes, a->memory.size) == 0;
}

/* The one file of the cache. */
static void
damage_cache(long offset)
{
    packed_cache *c;
    errbuf eb = {{0}};
    packed_key key = {.role = PACKED_ROUTER,
                      .dtype = DTYPE_INT8,
                      .fingerprint = cache.fingerprint,
                      .num_layers = config->num_layers,
                      .num_experts = config->num_experts,
                      .slot_count = 1,
                      .slot_bytes = 4 << 20};
    cr_assert_eq(checkpoint_stamp(ckpt, &key.stamp, &eb), MOE_OK);
    cr_assert_eq(packed_cache_open(&c, cache_dir, &key, &eb), MOE_OK, "%s", eb.text);
    cr_assert(packed_cache_holds(c, 0));
    temp_flip(cache_dir, strrchr(packed_cache_path(c), '/') + 1, offset);
    packed_cache_close(c);
}

Test(weight_cache, the_router_takes_all_of_its_weights_from_the_cache_or_none)
{
    router_weights want = load_router(original, (weight_cache){0});
    router_weights got = load_router(ckpt, cache);
    cr_expect(same_memory(&got, &want));
    router_weights_unload(&got);

    /* The last bytes of the slot are padding that packing never writes. */
    static const long places[] = {8192 + 100, 8192 + (4 << 20) - 1};
    for (size_t i = 0; i < 2; i++) {
        damage_cache(places[i]);
        got = load_router(ckpt, cache);
        cr_expect(same_memory(&got, &want), "damaged at %ld", places[i]);
        router_weights_unload(&got);
    }

    change_weight(checkpoint_tensor(ckpt, TENSOR_Q, 0, 0), true);
    got = load_router(ckpt, (weight_cache){0});
    cr_expect_not(same_memory(&got, &want), "the change is to be seen without a cache");
    router_weights_unload(&got);
    got = load_router(ckpt, cache);
    cr_expect(same_memory(&got, &want));
    router_weights_unload(&got);
    router_weights_unload(&want);
}

Test(weight_cache, a_folder_that_can_not_be_used_costs_nothing_but_time)
{
    static const uint32_t ids[] = {0};
    expert_layout layout;
    expert_layout_init(&layout, DTYPE_INT8, config, 0, config->intermediate_size);
    expert_store *want = load_experts(original, (weight_cache){0}, &layout, ids, 1);
    static const char *const bad[] = {"", "/dev/null/x", "/proc/no/such"};
    for (size_t i = 0; i < 3; i++) {
        expert_store *got = load_experts(ckpt, (weight_cache){bad[i], 1}, &layout, ids, 1);
        cr_expect(same_slot(got, want, 0));
        expert_store_free(got);
    }
    expert_store_free(want);
}

/* A cache outlives the program that wrote it.  If this fails, packing makes other bytes of the same
 * weights: raise PACKED_PACK_VERSION, and write down the new hashes with it. */
Test(weight_cache, packing_makes_the_bytes_that_this_pack_version_stands_for)
{
    static const struct {
        moe_dtype dtype;
        uint64_t expert, router;
    } pinned[] = {
        {DTYPE_F32, 0x8baf6137dd716fc5ull, 0x59ad2a1274adf708ull},
        {DTYPE_BF16, 0x2ccb16befcd992b3ull, 0x37bf07a9001b7d0ull},
        {DTYPE_INT8, 0x5a309a1a6d33e81eull, 0x994f3ed591a7734bull},
    };
    char path[PATH_BYTES];
    static const uint32_t ids[] = {9};
    checkpoint *demo = open_dir(test_path(path, sizeof path, "models/demo"));
    const model_config *m = checkpoint_config(demo);
    cr_assert_eq(PACKED_PACK_VERSION, 2);
    for (size_t i = 0; i < sizeof pinned / sizeof pinned[0]; i++) {
        const moe_dtype dtype = pinned[i].dtype;
        expert_layout layout;
        expert_layout_init(&layout, dtype, m, 0, m->intermediate_size);
        expert_store *s = load_experts(demo, (weight_cache){0}, &layout, ids, 1);
        const char *slot = expert_store_slot(s, 9 / m->num_experts, 9 % m->num_experts);
        const uint64_t expert = packed_slot_hash(slot, layout.slot_bytes);
        router_weights w;
        errbuf eb = {{0}};
        cr_assert_eq(router_weights_load(&w, demo, dtype, (weight_cache){0}, threads, &eb), MOE_OK);
        const uint64_t router = packed_slot_hash(w.memory.bytes, w.memory.size);
        cr_expect_eq(expert, pinned[i].expert, "%s expert %#llx", dtype_name(dtype),
                     (unsigned long long)expert);
        cr_expect_eq(router, pinned[i].router, "%s router %#llx", dtype_name(dtype),
                     (unsigned long long)router);
        router_weights_unload(&w);
        expert_store_free(s);
    }
    checkpoint_close(demo);
}
