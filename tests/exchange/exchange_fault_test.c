/* exchange: what it does when the other end is silent, gone, late, old, a stranger, or lies. */
#include <criterion/criterion.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/exchange/fleet.h"

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "exchange/link_msg.h"

static const exchange_limits small = {.micro_batch_max = 2,
                                      .token_max = 16,
                                      .num_layers = 3,
                                      .num_experts = 8,
                                      .top_k = 2,
                                      .hidden = 64,
                                      .dtype = DTYPE_F32};

static fleet f;
static test_batch batch;
static errbuf eb;
static uint32_t missing;

static void
quiet(void)
{
    log_init("test", LOG_LEVEL_ERROR);
}

TestSuite(exchange_fault, .init = quiet, .timeout = 60);

static router_end *
start(uint32_t workers, exchange_backend backend)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, workers, ALL_IPC);
    router_end *re = fleet_router(&f, 0, 7);
    for (uint32_t w = 0; w < workers; w++) {
        fleet_connect(&f, re, w, backend);
    }
    batch_init(&batch, &f);
    return re;
}

static void
finish(router_end *re)
{
    batch_fini(&batch);
    router_end_free(re);
    fleet_fini(&f);
}

static void
post(router_end *re, uint64_t seed)
{
    batch_draw(&batch, &f, re, WIRE_TP, 0, 5, seed); /* TP: every worker is asked */
    batch_post(&batch, &f, re);
}

/* With threads of nng in between: until the worker has something to take. */
static uint32_t
take_one(worker_end *we, dispatch_view *view)
{
    const uint64_t limit = clock_now_ns() + 30 * NS_PER_S;
    while (worker_end_wait(we, limit)) {
        if (worker_end_take(we, view, 1) == 1) return 1;
    }
    return 0;
}

/* ---- silent, gone, late ---- */

Test(exchange_fault, wait_names_the_silent_worker_and_goes_on_without_it)
{
    const exchange_backend backends[] = {EXCHANGE_SHM, EXCHANGE_NNG};
    for (int i = 0; i < 2; i++) {
        router_end *re = start(3, backends[i]);
        dispatch_view view;
        post(re, 1);
        for (uint32_t w = 0; w < 3; w += 2) {
            cr_assert_eq(take_one(f.workers[w].we, &view), 1);
            worker_end_reply(f.workers[w].we, &view, WIRE_STATUS_OK, 1);
        }
        moe_err err;
        do { /* answers over nng take a while; the deadline has always passed */
            err = router_end_wait(re, 0, 1, &missing, &eb);
            cr_assert_eq(err, MOE_ETIMEDOUT);
        } while (missing != 1 || router_end_result(re, 2, 0) == NULL);
        cr_expect(strstr(eb.text, "worker 1") != NULL, "%s", eb.text);
        cr_expect_eq(
            router_end_post(re, 1, &batch.hdr, &(dispatch_list){.row_count = 1, .expert_count = 1}),
            MOE_EBUSY);

        router_end_drop(re, 1);
        cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK);
        cr_expect_not_null(router_end_result(re, 0, 0));
        cr_expect_null(router_end_result(re, 1, 0));
        const dispatch_list list = dispatch_plan_list(batch.plan, 1);
        cr_expect_eq(router_end_post(re, 1, &batch.hdr, &list), MOE_ECLOSED);
        finish(re);
    }
}

Test(exchange_fault, a_worker_that_is_given_up_ends_the_wait)
{
    router_end *re = start(2, EXCHANGE_SHM);
    post(re, 1);
    router_end_give_up(re, 1);
    cr_expect_eq(router_end_wait(re, 0, 1, &missing, &eb), MOE_ECLOSED);
    cr_expect_eq(missing, 1);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_ECLOSED, "until it is dropped");
    router_end_drop(re, 1);
    cr_expect_eq(worker_serve(f.workers[0].we), 1);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK);
    router_end_give_up(re, 1); /* not in use: nothing happens */
    fleet_connect(&f, re, 1, EXCHANGE_SHM);
    post(re, 2);
    worker_serve(f.workers[0].we);
    worker_serve(f.workers[1].we);
    batch_wait_and_check(&batch, &f, re);
    finish(re);
}

static void *
give_up_main(void *arg)
{
    router_end_give_up(arg, 0);
    return NULL;
}

Test(exchange_fault, giving_up_wakes_a_wait_without_deadline)
{
    router_end *re = start(1, EXCHANGE_SHM);
    pthread_t thread;
    post(re, 1);
    cr_assert_eq(pthread_create(&thread, NULL, give_up_main, re), 0);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_ECLOSED);
    pthread_join(thread, NULL);
    finish(re);
}

Test(exchange_fault, a_broken_connection_ends_the_wait)
{
    router_end *re = start(2, EXCHANGE_NNG);
    dispatch_view view;
    post(re, 1);
    cr_assert_eq(take_one(f.workers[1].we, &view), 1);
    worker_end_detach(f.workers[1].we, 0);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_ECLOSED);
    cr_expect_eq(missing, 1);
    const dispatch_list list = dispatch_plan_list(batch.plan, 1);
    batch.hdr.micro_batch = 1;
    cr_expect_eq(router_end_post(re, 1, &batch.hdr, &list), MOE_ECLOSED);

    worker_end_reply(f.workers[1].we, &view, WIRE_STATUS_OK, 1); /* of a detached link */
    router_end_drop(re, 1);
    fleet_connect(&f, re, 1, EXCHANGE_NNG);
    cr_assert_eq(take_one(f.workers[0].we, &view), 1);
    worker_end_reply(f.workers[0].we, &view, WIRE_STATUS_OK, 1);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK);
    fleet_start(&f);
    post(re, 2);
    batch_wait_and_check(&batch, &f, re);
    finish(re);
}

/* What a step that failed leaves behind: one worker is lost, the others' answers are on their way.
 */
Test(exchange_fault, settling_waits_for_the_living_and_forgets_the_lost)
{
    const exchange_backend backends[] = {EXCHANGE_SHM, EXCHANGE_NNG};
    for (int i = 0; i < 2; i++) {
        router_end *re = start(3, backends[i]);
        dispatch_view view;
        post(re, 1);
        router_end_give_up(re, 1);
        cr_assert_eq(take_one(f.workers[0].we, &view), 1);
        worker_end_reply(f.workers[0].we, &view, WIRE_STATUS_NOT_HOSTED, 1);
        do { /* 0's refusal may be on its way; the deadline has always passed */
            cr_assert_eq(router_end_settle(re, 1, &missing), MOE_ETIMEDOUT);
        } while (missing == 0);
        cr_expect_eq(missing, 2);

        cr_assert_eq(take_one(f.workers[2].we, &view), 1);
        worker_end_reply(f.workers[2].we, &view, WIRE_STATUS_OK, 1);
        cr_expect_eq(router_end_settle(re, 0, &missing), MOE_OK);
        cr_expect_eq(router_end_settle(re, 1, &missing), MOE_OK, "nothing is asked any more");

        router_end_drop(re, 1);
        fleet_connect(&f, re, 1, backends[i]);
        fleet_start(&f);
        post(re, 2);
        batch_wait_and_check(&batch, &f, re);
        finish(re);
    }
}

Test(exchange_fault, a_late_answer_goes_nowhere)
{
    const exchange_backend backends[] = {EXCHANGE_SHM, EXCHANGE_NNG};
    for (int i = 0; i < 2; i++) {
        router_end *re = start(1, backends[i]);
        dispatch_view late, view;
        post(re, 1);
        cr_assert_eq(take_one(f.workers[0].we, &late), 1);
        router_end_drop(re, 0);
        cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK, "nothing is asked any more");

        fleet_connect(&f, re, 0, backends[i]); /* replaces the link under the view */
        post(re, 2);
        memset(late.results, 0xff, small.hidden * sizeof(float));
        worker_end_reply(f.workers[0].we, &late, WIRE_STATUS_OK, 1);
        cr_expect_eq(router_end_wait(re, 0, 1, &missing, &eb), MOE_ETIMEDOUT);
        cr_assert_eq(take_one(f.workers[0].we, &view), 1);
        cr_expect_eq(view.hdr.step, 2);
        worker_end_reply(f.workers[0].we, &view, WIRE_STATUS_OK, 1);
        cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK);
        finish(re);
    }
}

Test(exchange_fault, a_new_incarnation_replaces_the_old_router)
{
    router_end *old = start(1, EXCHANGE_SHM);
    post(old, 1);
    router_end *new = fleet_router(&f, 0, 8);
    fleet_connect(&f, new, 0, EXCHANGE_SHM);
    cr_expect_eq(worker_serve(f.workers[0].we), 0, "the old router's dispatch is forgotten");
    post(new, 2);
    cr_expect_eq(worker_serve(f.workers[0].we), 1);
    batch_wait_and_check(&batch, &f, new);
    router_end_free(old);
    finish(new);
}

/* Detached and attached again many times while views are out: memory and slots come back. */
Test(exchange_fault, links_come_and_go_under_a_working_thread)
{
    router_end *re = start(1, EXCHANGE_SHM);
    fleet_start(&f);
    for (uint32_t round = 0; round < 300; round++) {
        post(re, round);
        if (round % 3 != 0) batch_wait_and_check(&batch, &f, re);
        if (round % 2 == 0) worker_end_detach(f.workers[0].we, 0);
        router_end_drop(re, 0);
        fleet_connect(&f, re, 0, round % 50 == 0 ? EXCHANGE_NNG : EXCHANGE_SHM);
    }
    finish(re);
}

Test(exchange_fault, a_refusal_names_the_worker_and_leaves_it_usable)
{
    router_end *re = start(2, EXCHANGE_SHM);
    dispatch_view view;
    post(re, 1);
    cr_assert_eq(take_one(f.workers[0].we, &view), 1);
    worker_end_reply(f.workers[0].we, &view, WIRE_STATUS_NOT_HOSTED, 1);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_EINTERNAL);
    cr_expect_eq(missing, 0);
    cr_expect(strstr(eb.text, "does not host") != NULL, "%s", eb.text);
    cr_expect_null(router_end_result(re, 0, 0));
    cr_expect_eq(router_end_result_hdr(re, 0, 0)->status, WIRE_STATUS_NOT_HOSTED);
    cr_assert_eq(worker_serve(f.workers[1].we), 1);
    cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_OK, "the refusal is reported once");
    post(re, 2);
    worker_serve(f.workers[0].we);
    worker_serve(f.workers[1].we);
    batch_wait_and_check(&batch, &f, re);
    finish(re);
}

/* ---- lies: a peer that writes its own bytes ---- */

/* A router by hand: it owns the shared objects and writes into them what it likes. */
typedef struct raw_router {
    shm_object rows, link, bell;
    link_memory memory;
} raw_router;

static attach_offer
raw_offer(exchange_backend backend)
{
    attach_offer offer = {
        .router_id = 3, .router_incarnation = 9, .backend = backend, .limits = small};
    snprintf(offer.rows_name, sizeof offer.rows_name, "/conclave-%s-r3-9-rows", f.run);
    snprintf(offer.link_name, sizeof offer.link_name, "/conclave-%s-r3-9-link", f.run);
    memset(offer.key, 0x5a, sizeof offer.key);
    return offer;
}

static void
raw_start(raw_router *r)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_IPC);
    attach_offer offer = raw_offer(EXCHANGE_SHM);
    attach_answer answer;
    r->memory.limits = small;
    link_layout_init(&r->memory.layout, &small);
    moe_err err = shm_object_create(&r->rows, offer.rows_name, r->memory.layout.rows_bytes, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = shm_object_create(&r->link, offer.link_name, r->memory.layout.link_bytes, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = worker_end_attach(f.workers[0].we, &small, &offer, &answer, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    err = shm_object_open(&r->bell, answer.bell_name, EXCHANGE_BELL_BYTES, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    r->memory.rows = r->rows.base;
    r->memory.link = r->link.base;
}

static void
raw_finish(raw_router *r)
{
    shm_object_close(&r->rows);
    shm_object_close(&r->link);
    shm_object_close(&r->bell);
    fleet_fini(&f);
}

/* A dispatch that is right: two tokens, experts 1 and 4. */
static void
raw_fill(const link_memory *m, uint32_t seq)
{
    const wire_expert experts[] = {{1, 2}, {4, 2}};
    const uint32_t row_slots[] = {0, 3, 1, 2};
    memcpy(link_experts(m, 0), experts, sizeof experts);
    memcpy(link_row_slots(m, 0), row_slots, sizeof row_slots);
    link_place_at(m, 0)->request = (wire_hdr){.magic = WIRE_MAGIC,
                                              .version = WIRE_VERSION,
                                              .kind = WIRE_DISPATCH,
                                              .incarnation = 9,
                                              .router_id = 3,
                                              .token_count = 2,
                                              .row_count = 4,
                                              .expert_count = 2,
                                              .seq = seq};
}

static uint32_t
raw_ask(raw_router *r, uint32_t seq)
{
    link_place *place = link_place_at(&r->memory, 0);
    atomic_store_explicit(&place->request_seq, seq, memory_order_release);
    futex_bump(&((doorbell *)r->bell.base)->count);
    cr_assert(worker_end_wait(f.workers[0].we, clock_now_ns() + NS_PER_S));
    const uint32_t served = worker_serve(f.workers[0].we);
    cr_assert_eq(atomic_load(&place->result_seq), seq, "every dispatch gets its answer");
    cr_assert_eq(place->result.seq, seq);
    cr_assert_eq(place->result.status, served == 1 ? WIRE_STATUS_OK : WIRE_STATUS_REFUSED);
    return place->result.status;
}

Test(exchange_fault, a_corrupted_dispatch_is_refused_and_the_worker_lives)
{
    raw_router r;
    raw_start(&r);
    wire_hdr *h = &link_place_at(&r.memory, 0)->request;
    uint32_t *slots = link_row_slots(&r.memory, 0);
    wire_expert *experts = link_experts(&r.memory, 0);
    uint32_t seq = 0;
    for (int fault = 0; fault < 14; fault++) {
        raw_fill(&r.memory, ++seq);
        switch (fault) {
        case 0: h->magic = 1; break;
        case 1: h->version = 2; break;
        case 2: h->router_id = 4; break;
        case 3: h->incarnation = 8; break;
        case 4: h->micro_batch = 1; break;
        case 5: h->seq = 0; break;
        case 6: h->row_count = UINT32_MAX; break;
        case 7: h->expert_count = UINT32_MAX; break;
        case 8: h->token_count = UINT32_MAX; break;
        case 9: slots[3] = 4; break;
        case 10: slots[1] = UINT32_MAX; break;
        case 11: experts[1].expert = 8; break;
        case 12: experts[0].row_count = UINT32_MAX; break;
        case 13: experts[0].expert = 4; break;
        }
        cr_expect_eq(raw_ask(&r, seq), WIRE_STATUS_REFUSED, "fault %d", fault);
        raw_fill(&r.memory, ++seq);
        cr_expect_eq(raw_ask(&r, seq), WIRE_STATUS_OK, "after fault %d", fault);
    }
    raw_finish(&r);
}

Test(exchange_fault, a_dispatch_that_changes_while_it_is_computed_changes_nothing_that_was_checked)
{
    raw_router r;
    dispatch_view view, second;
    raw_start(&r);
    raw_fill(&r.memory, 1);
    atomic_store(&link_place_at(&r.memory, 0)->request_seq, 1);
    cr_assert_eq(worker_end_take(f.workers[0].we, &view, 1), 1);
    /* A second dispatch into the same place, right in itself, before the first is answered. */
    link_experts(&r.memory, 0)[1].expert = 7;
    link_row_slots(&r.memory, 0)[3] = 3;
    link_place_at(&r.memory, 0)->request.row_count = 4;
    link_place_at(&r.memory, 0)->request.seq = 2;
    atomic_store(&link_place_at(&r.memory, 0)->request_seq, 2);
    cr_expect_eq(worker_end_take(f.workers[0].we, &second, 1), 0, "the place is being served");
    cr_expect_eq(view.hdr.row_count, 4);
    cr_expect_eq(view.experts[1].expert, 4);
    cr_expect_eq(view.row_slots[3], 2);
    worker_end_reply(f.workers[0].we, &view, WIRE_STATUS_OK, 1);
    raw_finish(&r);
}

/* An answer by hand, into the link of a real router. */
Test(exchange_fault, an_answer_that_does_not_fit_the_question_is_not_accepted)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_IPC);
    router_end *re = fleet_router(&f, 0, 7);
    attach_offer offer;
    attach_answer answer;
    link_memory m = {.limits = small};
    shm_object link;
    link_layout_init(&m.layout, &small);
    cr_assert_eq(router_end_prepare(re, 0, 100, EXCHANGE_SHM, &offer, &eb), MOE_OK);
    cr_assert_eq(worker_end_attach(f.workers[0].we, &small, &offer, &answer, &eb), MOE_OK);
    cr_assert_eq(router_end_complete(re, 0, &answer, 1000, &eb), MOE_OK);
    cr_assert_eq(shm_object_open(&link, offer.link_name, m.layout.link_bytes, &eb), MOE_OK);
    m.link = link.base;
    batch_init(&batch, &f);
    for (int fault = 0; fault < 6; fault++) {
        post(re, 1);
        link_place *place = link_place_at(&m, 0);
        wire_hdr *a = &place->result;
        *a = place->request;
        a->kind = WIRE_RESULT;
        a->expert_count = 0;
        a->row_count = a->token_count;
        switch (fault) {
        case 0: a->magic = 0; break;
        case 1:
            a->token_count = a->row_count = 4; /* fits itself, not the question */
            break;
        case 2: a->seq++; break;
        case 3: a->incarnation++; break;
        case 4: a->status = 77; break;
        case 5:
            a->mode = WIRE_EP;
            a->row_count = 1;
            break;
        }
        atomic_store(&place->result_seq, place->request_seq);
        cr_expect_eq(router_end_wait(re, 0, 0, &missing, &eb), MOE_EINTERNAL, "fault %d", fault);
        cr_expect_null(router_end_result(re, 0, 0));
    }
    shm_object_close(&link);
    finish(re);
}

/* ---- strangers on the socket ---- */

static int
dial_ipc(const char *url)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", url + strlen("ipc://"));
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* The hello of nng_link.c, byte by byte. */
static void
fill_hello(unsigned char hello[64], const attach_offer *offer)
{
    memset(hello, 0, 64);
    memcpy(hello, "CLVH", 4);
    hello[4] = WIRE_VERSION;
    memcpy(hello + 8, &offer->router_id, 4);
    memcpy(hello + 16, &offer->router_incarnation, 8);
    memcpy(hello + 24, offer->key, EXCHANGE_KEY_BYTES);
}

static ssize_t
read_all(int fd, void *buf, size_t n)
{
    size_t got = 0;
    while (got < n) {
        const ssize_t r = read(fd, (char *)buf + got, n - got);
        if (r <= 0) break;
        got += (size_t)r;
    }
    return (ssize_t)got;
}

static void
attach_raw(const attach_offer *offer, attach_answer *answer)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_IPC);
    moe_err err = worker_end_attach(f.workers[0].we, &small, offer, answer, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
}

Test(exchange_fault, a_connection_without_the_key_is_closed_and_the_next_one_is_heard)
{
    const attach_offer offer = raw_offer(EXCHANGE_NNG);
    attach_answer answer;
    unsigned char hello[64], reply[64];
    attach_raw(&offer, &answer);
    for (int fault = 0; fault < 5; fault++) {
        const int fd = dial_ipc(answer.url);
        fill_hello(hello, &offer);
        switch (fault) {
        case 0: memset(hello, 'x', 64); break;
        case 1: hello[24 + EXCHANGE_KEY_BYTES - 1] ^= 1; break;
        case 2: hello[4] = WIRE_VERSION + 1; break;
        case 3: hello[16] ^= 1; break;
        case 4: hello[6] = 1; break;
        }
        cr_assert_eq(write(fd, hello, 64), 64);
        cr_expect_eq(read_all(fd, reply, 64), 0, "fault %d", fault);
        close(fd);
    }
    const int fd = dial_ipc(answer.url);
    fill_hello(hello, &offer);
    cr_assert_eq(write(fd, hello, 64), 64);
    cr_expect_eq(read_all(fd, reply, 64), 64);
    close(fd);
    fleet_fini(&f);
}

Test(exchange_fault, a_router_with_another_key_is_told)
{
    attach_offer offer;
    attach_answer answer;
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_IPC);
    router_end *re = fleet_router(&f, 0, 7);
    cr_assert_eq(router_end_prepare(re, 0, 100, EXCHANGE_NNG, &offer, &eb), MOE_OK);
    offer.key[5] ^= 0x80;
    cr_assert_eq(worker_end_attach(f.workers[0].we, &small, &offer, &answer, &eb), MOE_OK);
    cr_expect_eq(router_end_complete(re, 0, &answer, 30000, &eb), MOE_EPERM, "%s", eb.text);
    cr_expect_eq(router_end_prepare(re, 0, 100, EXCHANGE_NNG, &offer, &eb), MOE_EBUSY);
    router_end_drop(re, 0);
    fleet_connect(&f, re, 0, EXCHANGE_NNG);
    batch_init(&batch, &f);
    fleet_start(&f);
    post(re, 1);
    batch_wait_and_check(&batch, &f, re);
    finish(re);
}

/* A router by hand on an nng link: after the hello it sends what it likes. */
static int
raw_nng_start(void)
{
    const attach_offer offer = raw_offer(EXCHANGE_NNG);
    attach_answer answer;
    unsigned char hello[64];
    attach_raw(&offer, &answer);
    const int fd = dial_ipc(answer.url);
    fill_hello(hello, &offer);
    cr_assert_eq(write(fd, hello, 64), 64);
    cr_assert_eq(read_all(fd, hello, 64), 64);
    return fd;
}

/* A dispatch message of two tokens; returns its bytes, length in front. */
static size_t
raw_message(char *out, uint32_t seq)
{
    static uint64_t marks[1];
    shm_object rows, link;
    link_memory m = {.limits = small};
    link_layout_init(&m.layout, &small);
    cr_assert_eq(shm_object_private(&rows, m.layout.rows_bytes, &eb), MOE_OK);
    cr_assert_eq(shm_object_private(&link, m.layout.link_bytes, &eb), MOE_OK);
    m.rows = rows.base;
    m.link = link.base;
    raw_fill(&m, seq);
    const uint64_t bytes =
        link_msg_write_dispatch(&m, &link_place_at(&m, 0)->request, marks, out + sizeof bytes);
    memcpy(out, &bytes, sizeof bytes);
    shm_object_close(&rows);
    shm_object_close(&link);
    return sizeof bytes + bytes;
}

Test(exchange_fault, a_message_that_breaks_a_rule_is_refused_over_nng_too)
{
    _Alignas(8) static char message[16384];
    const int fd = raw_nng_start();
    worker_end *we = f.workers[0].we;
    uint32_t seq = 0;
    for (int fault = 0; fault < 6; fault++) {
        for (int good = 0; good < 2; good++) {
            size_t bytes = raw_message(message, ++seq);
            wire_hdr *h = (wire_hdr *)(void *)(message + 8);
            uint64_t length;
            memcpy(&length, message, 8);
            if (!good) {
                switch (fault) {
                case 0: h->magic = 1; break;
                case 1: h->row_count = 3; break;
                case 2: h->mode = WIRE_TP; break;
                case 3: h->token_count = 1; break;
                case 4: length += 1, bytes += 1; break;
                case 5: length -= 256, bytes -= 256; break;
                }
                memcpy(message, &length, 8);
            }
            cr_assert_eq(write(fd, message, bytes), (ssize_t)bytes);
            cr_assert(worker_end_wait(we, clock_now_ns() + 30 * NS_PER_S));
            cr_expect_eq(worker_serve(we), good, "fault %d", fault);

            wire_hdr answer;
            cr_assert_eq(read_all(fd, &length, 8), 8);
            cr_assert_eq(read_all(fd, &answer, sizeof answer), (ssize_t)sizeof answer);
            cr_expect_eq(answer.status, good ? WIRE_STATUS_OK : WIRE_STATUS_REFUSED);
            cr_expect_eq(answer.seq, seq);
            cr_assert_leq(length, sizeof message);
            const size_t left = length - sizeof answer;
            cr_assert_eq(read_all(fd, message, left), (ssize_t)left);
        }
    }
    close(fd);
    fleet_fini(&f);
}

Test(exchange_fault, a_peer_that_breaks_the_framing_loses_its_connection)
{
    _Alignas(8) static char message[16384];
    for (int fault = 0; fault < 6; fault++) {
        const int fd = raw_nng_start();
        size_t bytes = raw_message(message, 1);
        wire_hdr *h = (wire_hdr *)(void *)(message + 8);
        switch (fault) {
        case 0: memset(message, 0xff, 8); break; /* a length of 2^64 - 1 */
        case 1: memset(message, 0, 8); break;
        case 2: h->incarnation = 1; break;
        case 3: h->micro_batch = UINT32_MAX; break;
        case 4: h->seq = 0; break;
        case 5: bytes += raw_message(message + bytes, 2); break; /* the place is taken */
        }
        cr_assert_eq(write(fd, message, bytes), (ssize_t)bytes);
        char byte;
        cr_expect_leq(read(fd, &byte, 1), 0, "fault %d", fault); /* end, or reset */
        close(fd);
        fleet_fini(&f);
    }
}

Test(exchange_fault, ipc_sockets_are_their_users_alone_and_go_away_once_connected)
{
    const attach_offer offer = raw_offer(EXCHANGE_NNG);
    attach_answer answer;
    struct stat st;
    attach_raw(&offer, &answer);
    cr_assert_eq(stat(answer.url + strlen("ipc://"), &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    fleet_fini(&f); /* asserts that the folder is empty */
}

/* ---- offers ---- */

Test(exchange_fault, an_offer_that_does_not_fit_is_refused_by_name)
{
    fleet_init(&f, &small);
    fleet_add_workers(&f, 1, ALL_IPC);
    attach_answer answer;
    const struct {
        moe_err err;
        const char *text;
    } want[] = {
        {MOE_EMISMATCH, "num_layers"}, {MOE_EMISMATCH, "num_experts"}, {MOE_EMISMATCH, "top_k"},
        {MOE_EMISMATCH, "hidden"},     {MOE_EMISMATCH, "dtype"},       {MOE_ERANGE, "token_max"},
        {MOE_EINVAL, "router id"},     {MOE_EINVAL, "backend"},        {MOE_EINVAL, "run"},
        {MOE_EINVAL, "run"},           {MOE_ENOTFOUND, "link"},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        attach_offer offer = raw_offer(EXCHANGE_SHM);
        switch (i) {
        case 0: offer.limits.num_layers++; break;
        case 1: offer.limits.num_experts++; break;
        case 2: offer.limits.top_k++; break;
        case 3: offer.limits.hidden++; break;
        case 4: offer.limits.dtype = DTYPE_INT8; break;
        case 5: offer.limits.token_max = UINT32_MAX; break;
        case 6: offer.router_id = ROUTER_MAX; break;
        case 7: offer.backend = (exchange_backend)2; break;
        case 8: memset(offer.link_name, 'x', sizeof offer.link_name); break;
        case 9: snprintf(offer.rows_name, sizeof offer.rows_name, "/somebody-else"); break;
        }
        const moe_err err = worker_end_attach(f.workers[0].we, &small, &offer, &answer, &eb);
        cr_expect_eq(err, want[i].err, "case %zu: %s", i, eb.text);
        cr_expect(strstr(eb.text, want[i].text) != NULL, "case %zu: %s", i, eb.text);
    }
    fleet_fini(&f);
}

Test(exchange_fault, an_answer_of_another_run_is_refused)
{
    attach_offer offer;
    attach_answer answer = {0};
    fleet_init(&f, &small);
    router_end *re = fleet_router(&f, 0, 7);
    cr_expect_eq(router_end_complete(re, 0, &answer, 1, &eb), MOE_EINVAL);
    cr_assert_eq(router_end_prepare(re, 0, 1, EXCHANGE_SHM, &offer, &eb), MOE_OK);
    snprintf(answer.bell_name, sizeof answer.bell_name, "/conclave-0123456789abcdef-w0-1-bell");
    cr_expect_eq(router_end_complete(re, 0, &answer, 1, &eb), MOE_EINVAL);
    snprintf(answer.bell_name, sizeof answer.bell_name, "/conclave-%s-w0-1-bell", f.run);
    cr_expect_eq(router_end_complete(re, 0, &answer, 1, &eb), MOE_ENOTFOUND);
    cr_expect_eq(router_end_prepare(re, WORKER_MAX, 1, EXCHANGE_SHM, &offer, &eb), MOE_ERANGE);
    router_end_free(re);
    fleet_fini(&f);
}

Test(exchange_fault, dialling_nobody_is_an_error_that_names_the_address)
{
    attach_offer offer;
    attach_answer answer = {0};
    fleet_init(&f, &small);
    router_end *re = fleet_router(&f, 0, 7);
    cr_assert_eq(router_end_prepare(re, 0, 1, EXCHANGE_NNG, &offer, &eb), MOE_OK);
    snprintf(answer.url, sizeof answer.url, "ipc://%s/nobody", f.folder);
    cr_expect_eq(router_end_complete(re, 0, &answer, 1000, &eb), MOE_EIO);
    cr_expect(strstr(eb.text, "nobody") != NULL, "%s", eb.text);
    memset(answer.url, 'x', sizeof answer.url);
    cr_expect_eq(router_end_complete(re, 0, &answer, 1000, &eb), MOE_EINVAL);
    router_end_free(re);
    fleet_fini(&f);
}
