/* link: the layout of places, shared objects, and messages made of places. */
#include <criterion/criterion.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "exchange/dispatch_plan.h"
#include "exchange/link_msg.h"

static errbuf eb;

TestSuite(link, .timeout = 30);

static exchange_limits
draw_limits(uint64_t seed)
{
    exchange_limits l = {.micro_batch_max = 1 + (uint32_t)(hash_combine(seed, 1) % MICRO_BATCH_MAX),
                         .token_max = 1 + (uint32_t)(hash_combine(seed, 2) % 300),
                         .num_layers = 1,
                         .num_experts = 1 + (uint32_t)(hash_combine(seed, 3) % 100),
                         .top_k = 1,
                         .hidden = 1 + (uint32_t)(hash_combine(seed, 4) % 500),
                         .dtype = (moe_dtype)(hash_combine(seed, 5) % DTYPE_COUNT)};
    l.top_k += (uint32_t)(hash_combine(seed, 6) % (l.num_experts < 8 ? l.num_experts : 8));
    return l;
}

/* ---- layout ---- */

static void
check_layout(const exchange_limits *l)
{
    link_layout y;
    link_layout_init(&y, l);
    const size_t slots = exchange_slot_max(l);
    const struct {
        size_t at, bytes;
    } parts[] = {
        {0, sizeof(link_place)},
        {y.experts, l->num_experts * sizeof(wire_expert)},
        {y.row_slots, slots * sizeof(uint32_t)},
        {y.weights, slots * sizeof(float)},
        {y.results, slots * exchange_result_stride(l) * sizeof(float)},
        {y.place_bytes, 0},
    };
    for (size_t i = 0; i + 1 < sizeof parts / sizeof parts[0]; i++) {
        cr_assert_eq(parts[i].at % 64, 0);
        cr_assert_leq(parts[i].at + parts[i].bytes, parts[i + 1].at, "part %zu overlaps", i);
    }
    cr_assert_eq(y.place_bytes % 4096, 0);
    cr_assert_eq(y.link_bytes, l->micro_batch_max * y.place_bytes);
    cr_assert_eq(y.row_bytes % 64, 0);
    cr_assert_geq(y.rows_offset, sizeof(doorbell));
    cr_assert_geq(y.rows_bytes,
                  y.rows_offset + (size_t)l->micro_batch_max * l->token_max * y.row_bytes);
}

Test(link, parts_of_a_place_are_aligned_and_do_not_overlap)
{
    for (uint64_t seed = 0; seed < 500; seed++) {
        const exchange_limits l = draw_limits(seed);
        cr_assert_eq(exchange_limits_check(&l, &eb), MOE_OK, "%s", eb.text);
        check_layout(&l);
    }
    const exchange_limits most = {.micro_batch_max = MICRO_BATCH_MAX,
                                  .token_max = EXCHANGE_TOKEN_MAX,
                                  .num_layers = EXCHANGE_LAYER_MAX,
                                  .num_experts = EXCHANGE_EXPERT_MAX,
                                  .top_k = EXCHANGE_TOP_K_MAX,
                                  .hidden = EXCHANGE_HIDDEN_MAX,
                                  .dtype = DTYPE_F32};
    check_layout(&most); /* no product overflows */
}

/* ---- shared objects ---- */

static void
draw_run(char run[17])
{
    snprintf(run, 17, "%016llx",
             (unsigned long long)hash_combine((uint64_t)getpid(), clock_now_ns()));
}

Test(link, an_object_is_shared_by_name_zeroed_private_to_its_user_and_unlinked_by_its_owner)
{
    char run[17], name[EXCHANGE_NAME_MAX], path[EXCHANGE_NAME_MAX + 16];
    shm_object a, b;
    struct stat st;
    draw_run(run);
    snprintf(name, sizeof name, "/conclave-%s-r0-1-rows", run);
    snprintf(path, sizeof path, "/dev/shm%s", name);
    umask(0);
    cr_assert_eq(shm_object_create(&a, name, 8192, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    cr_expect_eq(st.st_size, 8192);
    cr_expect_eq(((char *)a.base)[8191], 0);

    cr_assert_eq(shm_object_open(&b, name, 8192, &eb), MOE_OK, "%s", eb.text);
    ((char *)a.base)[8191] = 42;
    cr_expect_eq(((char *)b.base)[8191], 42);
    shm_object_close(&b);
    cr_expect_eq(access(path, F_OK), 0, "only the owner unlinks");
    shm_object_close(&a);
    cr_expect_neq(access(path, F_OK), 0);
    shm_object_close(&a); /* zeroed by now */
}

Test(link, objects_that_are_not_what_was_agreed_are_refused)
{
    char run[17], name[EXCHANGE_NAME_MAX], path[EXCHANGE_NAME_MAX + 16];
    shm_object a, b;
    draw_run(run);
    snprintf(name, sizeof name, "/conclave-%s-r0-1-rows", run);
    snprintf(path, sizeof path, "/dev/shm%s", name);
    cr_expect_eq(shm_object_open(&b, name, 4096, &eb), MOE_ENOTFOUND);
    cr_assert_eq(shm_object_create(&a, name, 4096, &eb), MOE_OK);
    cr_expect_eq(shm_object_create(&b, name, 4096, &eb), MOE_EIO, "the name is taken");
    cr_expect(strstr(eb.text, name) != NULL, "%s", eb.text);
    cr_expect_null(b.base);
    cr_expect_eq(shm_object_open(&b, name, 8192, &eb), MOE_EMISMATCH);
    cr_expect_eq(shm_object_open(&b, name, 64, &eb), MOE_EMISMATCH);
    cr_assert_eq(chmod(path, 0644), 0);
    cr_expect_eq(shm_object_open(&b, name, 4096, &eb), MOE_EMISMATCH, "others may read it");
    shm_object_close(&a);

    char long_name[200];
    memset(long_name, 'a', sizeof long_name);
    memcpy(long_name, "/conclave-", 10);
    long_name[sizeof long_name - 1] = '\0';
    const char *bad[] = {"", "conclave-x", "/other", "/conclave-/../x", long_name};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_expect_eq(shm_object_create(&b, bad[i], 4096, &eb), MOE_EINVAL, "%s", bad[i]);
        cr_expect_eq(shm_object_open(&b, bad[i], 4096, &eb), MOE_EINVAL, "%s", bad[i]);
    }
}

Test(link, a_fleets_objects_are_removed_by_prefix_and_nobody_elses)
{
    char run[17], name[EXCHANGE_NAME_MAX];
    const char *parts[] = {"r0-1-rows", "r0-1-w1-2-link", "r01-1-rows", "w1-2-bell"};
    shm_object objects[4];
    draw_run(run);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "/conclave-%s-%s", run, parts[i]);
        cr_assert_eq(shm_object_create(&objects[i], name, 4096, &eb), MOE_OK, "%s", eb.text);
    }
    cr_expect_eq(shm_objects_remove("", ""), 0);
    cr_expect_eq(shm_objects_remove("0123456789ABCDEF", ""), 0);
    cr_expect_eq(shm_objects_remove(run, "r7-"), 0);
    cr_expect_eq(shm_objects_remove(run, "r0-"), 2);
    cr_expect_eq(shm_objects_remove(run, ""), 2);
    cr_expect_eq(shm_objects_remove(run, ""), 0);
    for (int i = 0; i < 4; i++) {
        shm_object_close(&objects[i]);
    }
}

/* ---- messages ---- */

typedef struct memory {
    shm_object link, rows;
    link_memory m;
} memory;

static void
memory_init(memory *a, const exchange_limits *l)
{
    a->m.limits = *l;
    link_layout_init(&a->m.layout, l);
    cr_assert_eq(shm_object_private(&a->link, a->m.layout.link_bytes, &eb), MOE_OK);
    cr_assert_eq(shm_object_private(&a->rows, a->m.layout.rows_bytes, &eb), MOE_OK);
    a->m.link = a->link.base;
    a->m.rows = a->rows.base;
}

static void
memory_fini(memory *a)
{
    shm_object_close(&a->link);
    shm_object_close(&a->rows);
}

static void
fill(void *at, size_t bytes, uint64_t seed)
{
    unsigned char *p = at;
    for (size_t i = 0; i < bytes; i++) {
        p[i] = (unsigned char)hash_combine(seed, i);
    }
}

/* A random dispatch in one of the places, as a plan for two workers makes it. */
static wire_hdr
draw_dispatch(memory *a, uint64_t seed)
{
    const exchange_limits *l = &a->m.limits;
    const uint32_t mb = (uint32_t)(hash_combine(seed, 7) % l->micro_batch_max);
    const uint32_t tokens = 1 + (uint32_t)(hash_combine(seed, 8) % l->token_max);
    const size_t slots = exchange_slot_max(l);
    uint32_t *ids = malloc(slots * sizeof *ids), *workers = malloc(l->num_experts * sizeof *ids);
    float *weights = malloc(slots * sizeof *weights);
    dispatch_plan *plan;
    cr_assert_eq(dispatch_plan_create(&plan, l, 2), MOE_OK);
    for (size_t i = 0; i < slots; i++) {
        ids[i] = (uint32_t)(hash_combine(seed, 1000 + i) % l->num_experts);
        weights[i] = (float)i;
    }
    for (uint32_t e = 0; e < l->num_experts; e++) {
        workers[e] = ids[0] == e ? 0 : (uint32_t)(hash_combine(seed, 100 + e) % 2);
    }
    const enum wire_mode mode = seed % 2 ? WIRE_TP : WIRE_EP;
    cr_assert_eq(dispatch_plan_build(plan, mode, workers, 2, ids, weights, tokens), MOE_OK);
    const dispatch_list list = dispatch_plan_list(plan, 0);
    memcpy(link_experts(&a->m, mb), list.experts, list.expert_count * sizeof list.experts[0]);
    memcpy(link_row_slots(&a->m, mb), list.row_slots, list.row_count * sizeof list.row_slots[0]);
    if (mode == WIRE_TP)
        memcpy(link_weights(&a->m, mb), list.weights, list.row_count * sizeof list.weights[0]);
    fill(link_token_rows(&a->m, mb), tokens * a->m.layout.row_bytes, seed);
    dispatch_plan_free(plan);
    free(ids);
    free(workers);
    free(weights);
    return (wire_hdr){.magic = WIRE_MAGIC,
                      .version = WIRE_VERSION,
                      .kind = WIRE_DISPATCH,
                      .micro_batch = mb,
                      .mode = mode,
                      .token_count = tokens,
                      .row_count = list.row_count,
                      .expert_count = list.expert_count};
}

static void
check_dispatch_stored(const memory *a, const memory *b, const wire_hdr *h)
{
    const uint32_t mb = h->micro_batch;
    const size_t row_bytes = a->m.layout.row_bytes;
    cr_assert_eq(memcmp(&link_place_at(&b->m, mb)->request, h, sizeof *h), 0);
    cr_assert_eq(memcmp(link_experts(&a->m, mb), link_experts(&b->m, mb),
                        h->expert_count * sizeof(wire_expert)),
                 0);
    cr_assert_eq(memcmp(link_row_slots(&a->m, mb), link_row_slots(&b->m, mb), h->row_count * 4), 0);
    cr_assert_eq(memcmp(link_weights(&a->m, mb), link_weights(&b->m, mb), h->row_count * 4), 0);
    for (uint32_t i = 0; i < h->row_count; i++) {
        const size_t token = link_row_slots(&a->m, mb)[i] / a->m.limits.top_k;
        cr_assert_eq(memcmp(link_token_rows(&a->m, mb) + token * row_bytes,
                            link_token_rows(&b->m, mb) + token * row_bytes, row_bytes),
                     0);
    }
}

Test(link, a_dispatch_and_its_result_survive_the_message)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        const exchange_limits l = draw_limits(seed);
        memory a, b;
        memory_init(&a, &l);
        memory_init(&b, &l);
        uint64_t *marks = calloc(wire_seen_words(&l), sizeof *marks);
        char *message =
            malloc(link_msg_bytes_max(&l, WIRE_DISPATCH) + link_msg_bytes_max(&l, WIRE_RESULT));
        wire_hdr h = draw_dispatch(&a, seed);
        size_t bytes = link_msg_write_dispatch(&a.m, &h, marks, message);
        cr_assert_leq(bytes, link_msg_bytes_max(&l, WIRE_DISPATCH));
        moe_err err = link_msg_check_dispatch(message, bytes, &l, marks, &eb);
        cr_assert_eq(err, MOE_OK, "%s", eb.text);
        cr_assert_eq(link_msg_check_dispatch(message, bytes - 1, &l, marks, &eb), MOE_EINVAL);
        cr_assert_eq(link_msg_check_dispatch(message, bytes + 1, &l, marks, &eb), MOE_EINVAL);
        cr_assert_eq(link_msg_check_dispatch(message, sizeof h, &l, marks, &eb), MOE_EINVAL);
        cr_assert_eq(link_msg_check_dispatch(message, 8, &l, marks, &eb), MOE_EINVAL);
        link_msg_store_dispatch(&b.m, message, marks);
        check_dispatch_stored(&a, &b, &h);

        h.kind = WIRE_RESULT;
        h.expert_count = 0;
        if (h.mode == WIRE_TP) h.row_count = h.token_count;
        const size_t stride = exchange_result_stride(&l);
        float *from = link_results(&b.m, h.micro_batch), *to = link_results(&a.m, h.micro_batch);
        fill(from, h.row_count * stride * sizeof *from, seed);
        bytes = link_msg_write_result(&b.m, &h, message);
        cr_assert_eq(link_msg_check_result(message, bytes, &l, &eb), MOE_OK, "%s", eb.text);
        cr_assert_eq(link_msg_check_result(message, bytes - 4, &l, &eb), MOE_EINVAL);
        cr_assert_eq(link_msg_check_result(message, 8, &l, &eb), MOE_EINVAL);
        link_msg_store_result(&a.m, message);
        for (uint32_t r = 0; r < h.row_count; r++) {
            cr_assert_eq(memcmp(from + r * stride, to + r * stride, l.hidden * sizeof *to), 0);
        }
        cr_assert_eq(memcmp(&link_place_at(&a.m, h.micro_batch)->result, &h, sizeof h), 0);
        free(message);
        free(marks);
        memory_fini(&a);
        memory_fini(&b);
    }
}
