/* compute: what a worker's compute thread answers: dispatches before and after a load, of older
 * placements, too large ones.  A router's end of the exchange asks, over shared memory. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cpu.h"
#include "common/run_dir.h"
#include "exchange/router_end.h"
#include "expert_worker/compute.h"
#include "tests/support/paths.h"

static checkpoint *ckpt;
static const model_config *model;
static kernel_table kernels;
static pool *threads;
static worker_end *exchange;
static router_end *router;
static compute *comp;
static exchange_limits limits;
static run_dir run;
static errbuf eb;

static void
setup(void)
{
    char path[512], dir[64] = "/tmp/conclave-compute-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    golden_path(path, sizeof path, "models/base");
    cr_assert_eq(checkpoint_open(&ckpt, path, &eb), MOE_OK, "%s", eb.text);
    model = checkpoint_config(ckpt);
    kernel_table_init(&kernels, cpu_flags());
    limits = (exchange_limits){.micro_batch_max = 2,
                               .token_max = 8,
                               .num_layers = model->num_layers,
                               .num_experts = model->num_experts,
                               .top_k = model->top_k,
                               .hidden = model->hidden_size,
                               .dtype = DTYPE_F32};
    cr_assert_eq(pool_create(&threads, 1), MOE_OK);
    cr_assert_eq(router_end_create(&router, &limits, run.id, 0, 7, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(worker_end_create(&exchange, run.id, 0, 100, NULL, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(compute_start(&comp, exchange, &kernels, threads, false, NULL, &eb), MOE_OK, "%s",
                 eb.text);
    attach_offer offer;
    attach_answer answer;
    cr_assert_eq(router_end_prepare(router, 0, 100, EXCHANGE_SHM, &offer, &eb), MOE_OK);
    cr_assert_eq(worker_end_attach(exchange, &limits, &offer, &answer, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_complete(router, 0, &answer, 0, &eb), MOE_OK, "%s", eb.text);
}

static void
teardown(void)
{
    router_end_free(router);
    compute_stop(comp);
    worker_end_free(exchange);
    pool_free(threads);
    checkpoint_close(ckpt);
    cr_expect_eq(rmdir(run.path), 0);
}

TestSuite(compute, .init = setup, .fini = teardown, .timeout = 30);

static void
load(const uint32_t *experts, uint32_t count, uint64_t epoch, uint32_t row_max)
{
    expert_layout layout;
    expert_store *store;
    expert_layout_init(&layout, DTYPE_F32, model, 0, model->intermediate_size);
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, experts, count, threads, NULL, &eb),
                 MOE_OK, "%s", eb.text);
    cr_assert_eq(compute_load(comp, 0, store, epoch, model->num_experts, row_max, &eb), MOE_OK,
                 "%s", eb.text);
}

/* `rows` tokens for one expert of layer 0; returns the status that came back. */
static uint32_t
ask(uint64_t epoch, uint32_t expert, uint32_t rows)
{
    uint32_t slots[8], missing;
    const wire_expert list_expert = {expert, rows};
    const dispatch_list list = {
        .experts = &list_expert, .expert_count = 1, .row_slots = slots, .row_count = rows};
    const wire_hdr hdr = {.epoch = epoch, .token_count = rows};
    float *x = router_end_rows(router, 0);
    for (uint32_t t = 0; t < rows; t++) {
        slots[t] = t * limits.top_k;
        for (uint32_t j = 0; j < limits.hidden; j++) {
            x[t * exchange_row_bytes(&limits) / sizeof *x + j] = 0.01f * (float)(j % 7) - 0.02f;
        }
    }
    cr_assert_eq(router_end_post(router, 0, &hdr, &list), MOE_OK);
    (void)router_end_wait(router, 0, 0, &missing, NULL);
    const wire_hdr *answer = router_end_result_hdr(router, 0, 0);
    cr_assert_not_null(answer);
    return answer->status;
}

static const uint32_t expert_0_and_1[] = {0, 1};

/* ---- two routers ---- */

static router_end *
add_router(uint32_t router_id)
{
    router_end *re;
    attach_offer offer;
    attach_answer answer;
    cr_assert_eq(router_end_create(&re, &limits, run.id, router_id, 7, &eb), MOE_OK);
    cr_assert_eq(router_end_prepare(re, 0, 100, EXCHANGE_SHM, &offer, &eb), MOE_OK);
    cr_assert_eq(worker_end_attach(exchange, &limits, &offer, &answer, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(router_end_complete(re, 0, &answer, 0, &eb), MOE_OK, "%s", eb.text);
    return re;
}

/* One row of its own for expert 0 of a layer. */
static void
post(router_end *re, uint32_t micro_batch, uint32_t layer, float value)
{
    const uint32_t slot = 0;
    const wire_expert expert = {0, 1};
    const dispatch_list list = {
        .experts = &expert, .expert_count = 1, .row_slots = &slot, .row_count = 1};
    const wire_hdr hdr = {.epoch = 1, .token_count = 1, .layer = layer, .micro_batch = micro_batch};
    float *x = router_end_rows(re, micro_batch);
    for (uint32_t j = 0; j < limits.hidden; j++)
        x[j] = value * (float)(j % 5 + 1);
    cr_assert_eq(router_end_post(re, 0, &hdr, &list), MOE_OK);
}

static void
take(router_end *re, uint32_t micro_batch, float out[16])
{
    uint32_t missing;
    cr_assert_eq(router_end_wait(re, micro_batch, 0, &missing, &eb), MOE_OK, "%s", eb.text);
    memcpy(out, router_end_result(re, 0, micro_batch), 16 * sizeof out[0]);
}

Test(compute, dispatches_are_put_in_the_order_of_layers_and_arrival)
{
    static const uint32_t layers[] = {3, 0, 3, 1, 0, 3, 2, 0}, order[] = {1, 4, 7, 3, 6, 0, 2, 5};
    dispatch_view views[8];
    for (uint32_t i = 0; i < 8; i++)
        views[i] = (dispatch_view){.hdr = {.layer = layers[i]}, .link_index = i};
    compute_sort(views, 8);
    for (uint32_t i = 0; i < 8; i++)
        cr_expect_eq(views[i].link_index, order[i], "place %u", i);
    compute_sort(views, 0);
}

/* What each gets alone it gets beside the other's rows, bit for bit; and the two share products:
 * fewer groups than dispatches.  Dispatches of another layer in between do not part them. */
Test(compute, rows_of_two_routers_share_one_product)
{
    const uint32_t experts[] = {0, model->num_experts}; /* expert 0 of layers 0 and 1 */
    load(experts, 2, 1, 16);
    router_end *second = add_router(1), *third = add_router(2);
    float want[3][16], got[16];
    post(router, 0, 0, 0.01f);
    take(router, 0, want[0]);
    post(second, 0, 1, 0.02f); /* the other layer: it lies between the two in the queue */
    take(second, 0, want[1]);
    post(third, 0, 0, 0.03f);
    take(third, 0, want[2]);
    compute_stats stats;
    do { /* or the test's time runs out: they must meet in the queue */
        post(router, 0, 0, 0.01f);
        post(second, 0, 1, 0.02f);
        post(third, 0, 0, 0.03f);
        take(router, 0, got);
        cr_assert_eq(memcmp(got, want[0], sizeof got), 0);
        take(second, 0, got);
        cr_assert_eq(memcmp(got, want[1], sizeof got), 0);
        take(third, 0, got);
        cr_assert_eq(memcmp(got, want[2], sizeof got), 0);
        compute_get_stats(comp, &stats);
        cr_assert_eq(stats.rows, stats.dispatches);
    } while (stats.groups >= stats.dispatches);
    router_end_free(second);
    router_end_free(third);
}

Test(compute, hosts_nothing_before_a_load)
{
    cr_expect_eq(ask(1, 0, 1), WIRE_STATUS_NOT_HOSTED);
    compute_stats stats;
    compute_get_stats(comp, &stats);
    cr_expect_eq(stats.experts_hosted, 0);
}

Test(compute, serves_what_was_loaded_and_counts_it)
{
    load(expert_0_and_1, 2, 1, 16);
    cr_expect_eq(ask(1, 0, 3), WIRE_STATUS_OK);
    const float *row = router_end_result(router, 0, 0);
    cr_assert_not_null(row);
    float sum = 0;
    for (uint32_t j = 0; j < limits.hidden; j++) {
        sum += row[j] * row[j];
    }
    cr_expect_gt(sum, 0);
    cr_expect_eq(ask(1, 1, 5), WIRE_STATUS_OK);
    cr_expect_eq(ask(1, 2, 1), WIRE_STATUS_NOT_HOSTED, "expert 2 was not loaded");
    compute_stats stats;
    compute_get_stats(comp, &stats);
    cr_expect_eq(stats.dispatches, 3);
    cr_expect_eq(stats.rows, 9);
    cr_expect_eq(stats.experts_hosted, 2);
    cr_expect_gt(stats.bytes_hosted, 0);
}

Test(compute, refuses_dispatches_of_an_older_placement)
{
    load(expert_0_and_1, 2, 5, 16);
    cr_expect_eq(ask(4, 0, 1), WIRE_STATUS_REFUSED);
    cr_expect_eq(ask(0, 0, 1), WIRE_STATUS_REFUSED);
    cr_expect_eq(ask(5, 0, 1), WIRE_STATUS_OK);
    cr_expect_eq(ask(6, 0, 1), WIRE_STATUS_OK, "a newer placement may have left this worker alone");
    load(expert_0_and_1 + 1, 1, 6, 16); /* expert 0 is gone */
    cr_expect_eq(ask(5, 1, 1), WIRE_STATUS_REFUSED);
    cr_expect_eq(ask(6, 0, 1), WIRE_STATUS_NOT_HOSTED);
    cr_expect_eq(ask(6, 1, 1), WIRE_STATUS_OK);
}

Test(compute, refuses_a_dispatch_larger_than_was_agreed_at_the_load)
{
    load(expert_0_and_1, 2, 1, 4);
    cr_expect_eq(ask(1, 0, 4), WIRE_STATUS_OK);
    cr_expect_eq(ask(1, 0, 5), WIRE_STATUS_REFUSED);
    cr_expect_eq(ask(1, 0, 4), WIRE_STATUS_OK);
}

typedef struct traffic {
    _Atomic bool stop;
    uint32_t rounds;
} traffic;

static void
quiesce(void *arg)
{
    compute_quiesce(arg);
}

/* Expert 1 comes and goes. */
static void *
traffic_main(void *arg)
{
    traffic *t = arg;
    pool *p;
    errbuf text;
    cr_assert_eq(pool_create(&p, 1), MOE_OK);
    const store_growth growth = {.checkpoint = ckpt, .pool = p};
    while (!atomic_load(&t->stop) || t->rounds < 20) {
        expert_store *s = compute_store(comp, 0);
        cr_assert_eq(expert_store_host(s, &growth, expert_0_and_1 + 1, 1, &text), MOE_OK);
        expert_store_release(s, expert_0_and_1 + 1, 1, quiesce, comp);
        t->rounds++;
    }
    pool_free(p);
    return NULL;
}

Test(compute, serves_while_experts_come_and_go)
{
    load(expert_0_and_1, 1, 1, 16);
    cr_assert_eq(ask(1, 0, 3), WIRE_STATUS_OK);
    float want[16], got[16];
    memcpy(want, router_end_result(router, 0, 0), sizeof want);
    traffic t = {0};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, traffic_main, &t), 0);
    for (uint32_t i = 0; i < 300; i++) {
        cr_assert_eq(ask(1, 0, 3), WIRE_STATUS_OK);
        memcpy(got, router_end_result(router, 0, 0), sizeof got);
        cr_assert_eq(memcmp(got, want, sizeof want), 0);
        /* Whether it is there or not, it never is half there. */
        if (ask(1, 1, 3) != WIRE_STATUS_OK) continue;
        memcpy(got, router_end_result(router, 0, 0), sizeof got);
        float sum = 0;
        for (uint32_t j = 0; j < 16; j++)
            sum += got[j] * got[j];
        cr_assert_gt(sum, 0);
    }
    atomic_store(&t.stop, true);
    pthread_join(thread, NULL);
    compute_stats stats;
    compute_get_stats(comp, &stats);
    cr_expect_eq(stats.experts_hosted, 1);
}

Test(compute, refuses_old_placements_once_told_of_a_newer_one)
{
    load(expert_0_and_1, 2, 5, 16);
    compute_set_epoch(comp, 7);
    compute_set_epoch(comp, 6);
    cr_expect_eq(ask(6, 0, 1), WIRE_STATUS_REFUSED);
    cr_expect_eq(ask(7, 0, 1), WIRE_STATUS_OK);
}

Test(compute, may_host_nothing)
{
    load(NULL, 0, 1, 16);
    cr_expect_eq(ask(1, 0, 1), WIRE_STATUS_NOT_HOSTED);
}

Test(compute, is_not_reached_by_a_load_that_was_cancelled)
{
    load(expert_0_and_1, 2, 1, 16);
    const _Atomic bool cancel = true;
    expert_layout layout;
    expert_store *store;
    expert_layout_init(&layout, DTYPE_F32, model, 0, model->intermediate_size);
    cr_expect_eq(
        expert_store_create(&store, ckpt, &layout, expert_0_and_1, 2, threads, &cancel, &eb),
        MOE_ECLOSED);
    cr_expect_null(store);
    cr_expect_eq(ask(1, 0, 1), WIRE_STATUS_OK);
}

Test(compute, stops_whether_or_not_it_has_loaded)
{
    load(expert_0_and_1, 2, 1, 16);
    cr_expect_eq(ask(1, 0, 8), WIRE_STATUS_OK);
    compute_stop(comp); /* else the test's time runs out */
    comp = NULL;
    compute_stop(NULL);
}
