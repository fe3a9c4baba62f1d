#include "tests/exchange/fleet.h"

#include <criterion/criterion.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"
#include "tests/support/tsan_nng.h"

#define VIEW_MAX 3 /* small, so that a full take is seen too */
#define WAIT_LIMIT_NS (60 * NS_PER_S)

float
expected_value(const void *row, size_t row_bytes, uint32_t expert, uint32_t j)
{
    const unsigned char *bytes = row;
    return (float)bytes[j * 7 % row_bytes] + 256.0f * (float)(expert + 1) + (float)j / 256;
}

static void
compute_ep(const dispatch_view *v, uint32_t hidden)
{
    uint32_t i = 0;
    for (uint32_t e = 0; e < v->hdr.expert_count; e++) {
        for (uint32_t r = 0; r < v->experts[e].row_count; r++, i++) {
            const char *row = (const char *)v->rows + v->row_slots[i] / v->top_k * v->row_bytes;
            for (uint32_t j = 0; j < hidden; j++) {
                v->results[i * v->result_stride + j] =
                    expected_value(row, v->row_bytes, v->experts[e].expert, j);
            }
        }
    }
}

/* Adds in top-k order: one pass over all rows for each choice. */
static void
compute_tp(const dispatch_view *v, uint32_t hidden)
{
    memset(v->results, 0, v->hdr.token_count * v->result_stride * sizeof v->results[0]);
    for (uint32_t choice = 0; choice < v->top_k; choice++) {
        uint32_t i = 0;
        for (uint32_t e = 0; e < v->hdr.expert_count; e++) {
            for (uint32_t r = 0; r < v->experts[e].row_count; r++, i++) {
                const uint32_t token = v->row_slots[i] / v->top_k;
                if (v->row_slots[i] % v->top_k != choice) continue;
                const char *row = (const char *)v->rows + token * v->row_bytes;
                for (uint32_t j = 0; j < hidden; j++) {
                    v->results[token * v->result_stride + j] +=
                        v->weights[i] * expected_value(row, v->row_bytes, v->experts[e].expert, j);
                }
            }
        }
    }
}

static uint32_t test_hidden; /* of the fleet under test; set before threads start */

uint32_t
worker_serve(worker_end *we)
{
    dispatch_view views[VIEW_MAX];
    const uint32_t count = worker_end_take(we, views, VIEW_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (views[i].hdr.mode == WIRE_TP)
            compute_tp(&views[i], test_hidden);
        else
            compute_ep(&views[i], test_hidden);
        worker_end_reply(we, &views[i], WIRE_STATUS_OK, 1);
    }
    return count;
}

static void *
worker_main(void *arg)
{
    test_worker *w = arg;
    while (worker_end_wait(w->we, 0)) {
        w->served += worker_serve(w->we);
    }
    return NULL;
}

void
fleet_init(fleet *f, const exchange_limits *limits)
{
    memset(f, 0, sizeof *f);
    f->limits = *limits;
    test_hidden = limits->hidden;
    const uint64_t id = hash_combine((uint64_t)getpid(), clock_now_ns());
    snprintf(f->run, sizeof f->run, "%016llx", (unsigned long long)id);
    snprintf(f->folder, sizeof f->folder, "/tmp/conclave-test-XXXXXX");
    cr_assert_not_null(mkdtemp(f->folder));
}

void
fleet_add_workers(fleet *f, uint32_t count, enum link_choice choice)
{
    errbuf eb;
    for (uint32_t i = 0; i < count; i++) {
        char url[128];
        const uint32_t w = f->worker_count++;
        const bool tcp = choice == ALL_TCP || (choice == MIXED && w % 2 == 0);
        snprintf(url, sizeof url, tcp ? "tcp://127.0.0.1:0" : "ipc://%s/worker-%u", f->folder, w);
        moe_err err = worker_end_create(&f->workers[w].we, f->run, w, 100 + w, url, &eb);
        cr_assert_eq(err, MOE_OK, "%s", eb.text);
    }
}

void
fleet_start(fleet *f)
{
    for (uint32_t w = 0; w < f->worker_count; w++) {
        f->workers[w].running = true;
        cr_assert_eq(pthread_create(&f->workers[w].thread, NULL, worker_main, &f->workers[w]), 0);
    }
}

void
fleet_stop(fleet *f)
{
    for (uint32_t w = 0; w < f->worker_count; w++) {
        if (!f->workers[w].running) continue;
        worker_end_stop(f->workers[w].we);
        pthread_join(f->workers[w].thread, NULL);
        f->workers[w].running = false;
    }
}

unsigned
fleet_object_count(const fleet *f)
{
    unsigned count = 0;
    DIR *folder = opendir("/dev/shm");
    cr_assert_not_null(folder);
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        count += strstr(entry->d_name, f->run) != NULL;
    }
    closedir(folder);
    return count;
}

void
fleet_fini(fleet *f)
{
    fleet_stop(f);
    for (uint32_t w = 0; w < f->worker_count; w++) {
        worker_end_free(f->workers[w].we);
    }
    cr_assert_eq(fleet_object_count(f), 0, "objects are left in /dev/shm");
    cr_assert_eq(rmdir(f->folder), 0, "sockets are left in %s", f->folder);
}

router_end *
fleet_router(fleet *f, uint32_t router_id, uint64_t incarnation)
{
    errbuf eb;
    router_end *re;
    moe_err err = router_end_create(&re, &f->limits, f->run, router_id, incarnation, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    return re;
}

void
fleet_connect(fleet *f, router_end *re, uint32_t worker, exchange_backend backend)
{
    errbuf eb;
    attach_offer offer;
    attach_answer answer;
    moe_err err = router_end_prepare(re, worker, 100 + worker, backend, &offer, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = worker_end_attach(f->workers[worker].we, &f->limits, &offer, &answer, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = router_end_complete(re, worker, &answer, 30000, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
}

void
fleet_connect_all(fleet *f, router_end *re, enum link_choice choice)
{
    for (uint32_t w = 0; w < f->worker_count; w++) {
        const bool shm = choice == ALL_SHM || (choice == MIXED && w % 3 == 0);
        fleet_connect(f, re, w, shm ? EXCHANGE_SHM : EXCHANGE_NNG);
    }
}

/* ---- batches ---- */

void
batch_init(test_batch *b, const fleet *f)
{
    memset(b, 0, sizeof *b);
    cr_assert_eq(dispatch_plan_create(&b->plan, &f->limits, FLEET_WORKER_MAX), MOE_OK);
}

void
batch_fini(test_batch *b)
{
    dispatch_plan_free(b->plan);
    b->plan = NULL;
}

void
batch_draw(test_batch *b, const fleet *f, router_end *re, enum wire_mode mode, uint32_t micro_batch,
           uint32_t token_count, uint64_t seed)
{
    const exchange_limits *l = &f->limits;
    b->hdr = (wire_hdr){.epoch = 1,
                        .step = seed,
                        .layer = (uint32_t)(seed % l->num_layers),
                        .micro_batch = micro_batch,
                        .mode = mode,
                        .token_count = token_count};
    for (uint32_t e = 0; e < l->num_experts; e++) {
        b->expert_worker[e] = (uint32_t)(hash_combine(seed, e) % f->worker_count);
    }
    for (uint32_t t = 0; t < token_count; t++) {
        const uint32_t first = (uint32_t)(hash_combine(seed, 1000 + t) % l->num_experts);
        for (uint32_t k = 0; k < l->top_k; k++) { /* distinct experts, as a gate gives */
            b->topk_ids[t * l->top_k + k] = (first + k * k) % l->num_experts;
            b->topk_weights[t * l->top_k + k] = 1.0f / (float)(1 + k + t % 3);
        }
    }
    const size_t row_bytes = exchange_row_bytes(l);
    unsigned char *rows = router_end_rows(re, micro_batch);
    for (size_t i = 0; i < token_count * row_bytes; i++) {
        rows[i] = (unsigned char)hash_combine(seed, 5000 + i);
    }
    moe_err err = dispatch_plan_build(b->plan, mode, b->expert_worker, f->worker_count, b->topk_ids,
                                      b->topk_weights, token_count);
    cr_assert_eq(err, MOE_OK);
}

void
batch_post(test_batch *b, const fleet *f, router_end *re)
{
    for (uint32_t w = 0; w < f->worker_count; w++) {
        const dispatch_list list = dispatch_plan_list(b->plan, w);
        cr_assert_eq(router_end_post(re, w, &b->hdr, &list), MOE_OK);
    }
}

static void
check_ep(const test_batch *b, const fleet *f, router_end *re)
{
    const exchange_limits *l = &f->limits;
    const size_t row_bytes = exchange_row_bytes(l);
    const char *rows = router_end_rows(re, b->hdr.micro_batch);
    for (uint32_t s = 0; s < b->hdr.token_count * l->top_k; s++) {
        uint32_t worker, row;
        dispatch_plan_home(b->plan, s, &worker, &row);
        const float *result = router_end_result(re, worker, b->hdr.micro_batch);
        cr_assert_not_null(result);
        result += row * exchange_result_stride(l);
        for (uint32_t j = 0; j < l->hidden; j++) {
            const float want =
                expected_value(rows + s / l->top_k * row_bytes, row_bytes, b->topk_ids[s], j);
            if (result[j] != want)
                cr_assert_fail("row slot %u column %u: %g, expected %g", s, j, (double)result[j],
                               (double)want);
        }
    }
}

static void
check_tp(const test_batch *b, const fleet *f, router_end *re, uint32_t worker)
{
    const exchange_limits *l = &f->limits;
    const size_t row_bytes = exchange_row_bytes(l);
    const char *rows = router_end_rows(re, b->hdr.micro_batch);
    const float *result = router_end_result(re, worker, b->hdr.micro_batch);
    cr_assert_not_null(result);
    for (uint32_t t = 0; t < b->hdr.token_count; t++) {
        for (uint32_t j = 0; j < l->hidden; j++) {
            float want = 0;
            for (uint32_t s = t * l->top_k; s < (t + 1) * l->top_k; s++) {
                want += b->topk_weights[s] *
                        expected_value(rows + t * row_bytes, row_bytes, b->topk_ids[s], j);
            }
            if (result[t * exchange_result_stride(l) + j] != want)
                cr_assert_fail("worker %u token %u column %u differs", worker, t, j);
        }
    }
}

void
batch_wait_and_check(test_batch *b, const fleet *f, router_end *re)
{
    errbuf eb = {""};
    uint32_t missing;
    const uint32_t mb = b->hdr.micro_batch;
    moe_err err = router_end_wait(re, mb, clock_now_ns() + WAIT_LIMIT_NS, &missing, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    if (b->hdr.mode == WIRE_EP) check_ep(b, f, re);
    for (uint32_t w = 0; w < f->worker_count; w++) {
        if (b->hdr.mode == WIRE_TP) check_tp(b, f, re, w);
        const bool asked = dispatch_plan_list(b->plan, w).row_count > 0;
        const wire_hdr *h = router_end_result_hdr(re, w, mb);
        cr_assert_eq(h != NULL, asked);
        if (asked) cr_assert(h->busy_ns == 1 && h->layer == b->hdr.layer && h->step == b->hdr.step);
    }
}
