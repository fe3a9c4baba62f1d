#include "exchange/router_end.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/futex.h"
#include "exchange/nng_link.h"

#define SET_WORDS (WORKER_MAX / 64)

typedef enum slot_state { SLOT_FREE, SLOT_PREPARED, SLOT_LIVE } slot_state;
typedef enum outcome { NOTHING_ASKED, IN_FLIGHT, ANSWERED, REFUSED } outcome;

/* What was asked of a worker in one place, and the answer; the step thread's. */
typedef struct place_state {
    outcome outcome;
    uint32_t seq;       /* of the last dispatch */
    uint32_t row_count; /* that an OK answer must have */
    uint32_t mode;
    uint64_t answered_ns; /* when the answer was found */
    wire_hdr answer;      /* private copy */
} place_state;

typedef struct worker_slot {
    _Atomic slot_state state;
    _Atomic bool lost; /* by give_up(), or by the nng link */
    exchange_backend backend;
    link_memory memory;
    shm_object link; /* shared (shm) or private (nng) */
    shm_object bell; /* shm: the worker's */
    nng_link *nng;
    unsigned char key[EXCHANGE_KEY_BYTES];
    doorbell send_bell;     /* nng: wakes the link's sender */
    _Atomic uint32_t *ring; /* what post() rings */
    place_state places[MICRO_BATCH_MAX];
} worker_slot;

struct router_end {
    exchange_limits limits;
    link_layout layout;
    char run[17];
    uint32_t router_id;
    uint64_t incarnation;
    shm_object rows;
    doorbell *bell; /* in rows */
    /* Workers whose answer is awaited.  Atomic only because drop() may clear a bit of one worker
     * while the step thread sets another's. */
    _Atomic uint64_t in_flight[MICRO_BATCH_MAX][SET_WORDS];
    worker_slot slots[WORKER_MAX];
};

moe_err
router_end_create(router_end **out, const exchange_limits *limits, const char *run,
                  uint32_t router_id, uint64_t incarnation, errbuf *eb)
{
    *out = NULL;
    moe_err err = exchange_limits_check(limits, eb);
    if (err != MOE_OK) return err;
    if (router_id >= ROUTER_MAX)
        return err_set(eb, MOE_ERANGE, "router id %" PRIu32 ", allowed below %d", router_id,
                       ROUTER_MAX);
    if (!shm_run_valid(run)) return err_set(eb, MOE_EINVAL, "run: not 16 hex digits: %.32s", run);

    router_end *re = aligned_alloc(64, sizeof *re);
    if (re == NULL) return err_set(eb, MOE_ENOMEM, "exchange: out of memory");
    memset(re, 0, sizeof *re);
    re->limits = *limits;
    link_layout_init(&re->layout, limits);
    snprintf(re->run, sizeof re->run, "%s", run);
    re->router_id = router_id;
    re->incarnation = incarnation;

    char name[EXCHANGE_NAME_MAX];
    snprintf(name, sizeof name, "/conclave-%s-r%" PRIu32 "-%016" PRIx64 "-rows", run, router_id,
             incarnation);
    err = shm_object_create(&re->rows, name, re->layout.rows_bytes, eb);
    if (err != MOE_OK) {
        free(re);
        return err;
    }
    re->bell = re->rows.base;
    *out = re;
    return MOE_OK;
}

void
router_end_free(router_end *re)
{
    if (re == NULL) return;
    for (uint32_t w = 0; w < WORKER_MAX; w++) {
        router_end_drop(re, w);
    }
    shm_object_close(&re->rows);
    free(re);
}

/* ---- making and giving up links ---- */

static moe_err
prepare_shm(router_end *re, worker_slot *slot, uint32_t worker, uint64_t worker_incarnation,
            errbuf *eb)
{
    char name[EXCHANGE_NAME_MAX];
    snprintf(name, sizeof name,
             "/conclave-%s-r%" PRIu32 "-%016" PRIx64 "-w%" PRIu32 "-%016" PRIx64 "-link", re->run,
             re->router_id, re->incarnation, worker, worker_incarnation);
    return shm_object_create(&slot->link, name, re->layout.link_bytes, eb);
}

static moe_err
prepare_nng(router_end *re, worker_slot *slot, errbuf *eb)
{
    if (getrandom(slot->key, sizeof slot->key, 0) != (ssize_t)sizeof slot->key)
        return err_set(eb, MOE_EIO, "drawing a key: %s", strerror(errno));
    return shm_object_private(&slot->link, re->layout.link_bytes, eb);
}

moe_err
router_end_prepare(router_end *re, uint32_t worker, uint64_t worker_incarnation,
                   exchange_backend backend, attach_offer *out, errbuf *eb)
{
    if (worker >= WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "worker index %" PRIu32 ", allowed below %d", worker,
                       WORKER_MAX);
    worker_slot *slot = &re->slots[worker];
    if (atomic_load(&slot->state) != SLOT_FREE)
        return err_set(eb, MOE_EBUSY, "worker index %" PRIu32 " is in use", worker);

    memset(slot->places, 0, sizeof slot->places);
    atomic_store(&slot->lost, false);
    slot->backend = backend;
    moe_err err = backend == EXCHANGE_SHM ? prepare_shm(re, slot, worker, worker_incarnation, eb)
                                          : prepare_nng(re, slot, eb);
    if (err != MOE_OK) return err;
    slot->memory = (link_memory){
        .limits = re->limits, .layout = re->layout, .link = slot->link.base, .rows = re->rows.base};
    *out = (attach_offer){.router_id = re->router_id,
                          .router_incarnation = re->incarnation,
                          .backend = backend,
                          .limits = re->limits};
    if (backend == EXCHANGE_SHM) {
        snprintf(out->rows_name, sizeof out->rows_name, "%s", re->rows.name);
        snprintf(out->link_name, sizeof out->link_name, "%s", slot->link.name);
    }
    memcpy(out->key, slot->key, sizeof out->key);
    atomic_store(&slot->state, SLOT_PREPARED);
    return MOE_OK;
}

static moe_err
complete_shm(router_end *re, worker_slot *slot, const attach_answer *answer, errbuf *eb)
{
    if (!shm_name_of_run(answer->bell_name, re->run))
        return err_set(eb, MOE_EINVAL, "the worker's bell is not an object of run %s", re->run);
    moe_err err = shm_object_open(&slot->bell, answer->bell_name, EXCHANGE_BELL_BYTES, eb);
    if (err == MOE_OK) slot->ring = &((doorbell *)slot->bell.base)->count;
    return err;
}

static moe_err
complete_nng(router_end *re, worker_slot *slot, const attach_answer *answer, uint32_t timeout_ms,
             errbuf *eb)
{
    if (memchr(answer->url, '\0', sizeof answer->url) == NULL)
        return err_set(eb, MOE_EINVAL, "the worker's URL is not terminated");
    nng_link_config config = {.memory = &slot->memory,
                              .router_id = re->router_id,
                              .incarnation = re->incarnation,
                              .send_bell = &slot->send_bell.count,
                              .arrived = &re->bell->count,
                              .broken = &slot->lost};
    memcpy(config.key, slot->key, sizeof config.key);
    slot->ring = &slot->send_bell.count;
    return nng_link_dial(&slot->nng, &config, answer->url, timeout_ms, eb);
}

moe_err
router_end_complete(router_end *re, uint32_t worker, const attach_answer *answer,
                    uint32_t timeout_ms, errbuf *eb)
{
    if (worker >= WORKER_MAX || atomic_load(&re->slots[worker].state) != SLOT_PREPARED)
        return err_set(eb, MOE_EINVAL, "worker index %" PRIu32 " is not prepared", worker);
    worker_slot *slot = &re->slots[worker];
    moe_err err = slot->backend == EXCHANGE_SHM ? complete_shm(re, slot, answer, eb)
                                                : complete_nng(re, slot, answer, timeout_ms, eb);
    if (err != MOE_OK) return err_wrap(eb, err, "worker %" PRIu32, worker);
    atomic_store(&slot->state, SLOT_LIVE);
    return MOE_OK;
}

void
router_end_give_up(router_end *re, uint32_t worker)
{
    if (worker >= WORKER_MAX || atomic_load(&re->slots[worker].state) != SLOT_LIVE) return;
    atomic_store(&re->slots[worker].lost, true);
    futex_bump(&re->bell->count);
}

static void
set_in_flight(router_end *re, uint32_t micro_batch, uint32_t worker, bool on)
{
    _Atomic uint64_t *word = &re->in_flight[micro_batch][worker / 64];
    const uint64_t bit = 1ull << (worker % 64);
    if (on)
        atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
    else
        atomic_fetch_and_explicit(word, ~bit, memory_order_relaxed);
}

/* This worker's answer is no longer awaited. */
static void
forget(router_end *re, uint32_t micro_batch, uint32_t worker)
{
    re->slots[worker].places[micro_batch].outcome = NOTHING_ASKED;
    set_in_flight(re, micro_batch, worker, false);
}

void
router_end_drop(router_end *re, uint32_t worker)
{
    if (worker >= WORKER_MAX || atomic_load(&re->slots[worker].state) == SLOT_FREE) return;
    worker_slot *slot = &re->slots[worker];
    for (uint32_t mb = 0; mb < MICRO_BATCH_MAX; mb++) {
        forget(re, mb, worker);
    }
    nng_link_close(slot->nng);
    slot->nng = NULL;
    shm_object_close(&slot->link);
    shm_object_close(&slot->bell);
    atomic_store(&slot->state, SLOT_FREE);
}

/* ---- a step ---- */

void *
router_end_rows(router_end *re, uint32_t micro_batch)
{
    assert(micro_batch < re->limits.micro_batch_max);
    const link_memory m = {
        .limits = re->limits, .layout = re->layout, .rows = re->rows.base, .link = NULL};
    return link_token_rows(&m, micro_batch);
}

static wire_hdr
request_header(const router_end *re, const wire_hdr *h, const dispatch_list *list, uint32_t seq)
{
    return (wire_hdr){.magic = WIRE_MAGIC,
                      .version = WIRE_VERSION,
                      .kind = WIRE_DISPATCH,
                      .incarnation = re->incarnation,
                      .epoch = h->epoch,
                      .step = h->step,
                      .send_time_ns = clock_now_ns(),
                      .router_id = re->router_id,
                      .layer = h->layer,
                      .micro_batch = h->micro_batch,
                      .attempt = h->attempt,
                      .mode = h->mode,
                      .token_count = h->token_count,
                      .row_count = list->row_count,
                      .expert_count = list->expert_count,
                      .seq = seq};
}

moe_err
router_end_post(router_end *re, uint32_t worker, const wire_hdr *h, const dispatch_list *list)
{
    assert(worker < WORKER_MAX && h->micro_batch < re->limits.micro_batch_max);
    assert(h->token_count <= re->limits.token_max);
    assert(list->row_count <= exchange_slot_max(&re->limits));
    assert(list->expert_count <= re->limits.num_experts);

    worker_slot *slot = &re->slots[worker];
    if (atomic_load_explicit(&slot->state, memory_order_acquire) != SLOT_LIVE) return MOE_ECLOSED;
    place_state *ps = &slot->places[h->micro_batch];
    if (ps->outcome == IN_FLIGHT) return MOE_EBUSY;
    ps->outcome = NOTHING_ASKED;
    if (atomic_load_explicit(&slot->lost, memory_order_acquire)) return MOE_ECLOSED;
    if (list->row_count == 0) return MOE_OK;

    ps->seq++;
    ps->mode = h->mode;
    ps->row_count = h->mode == WIRE_TP ? h->token_count : list->row_count;
    ps->outcome = IN_FLIGHT;
    set_in_flight(re, h->micro_batch, worker, true);

    const link_memory *m = &slot->memory;
    const uint32_t mb = h->micro_batch;
    link_place *place = link_place_at(m, mb);
    memcpy(link_experts(m, mb), list->experts, list->expert_count * sizeof list->experts[0]);
    memcpy(link_row_slots(m, mb), list->row_slots, list->row_count * sizeof list->row_slots[0]);
    if (h->mode == WIRE_TP)
        memcpy(link_weights(m, mb), list->weights, list->row_count * sizeof list->weights[0]);
    place->request = request_header(re, h, list, ps->seq);
    atomic_store_explicit(&place->request_seq, ps->seq, memory_order_release);
    futex_bump(slot->ring);
    return MOE_OK;
}

static const char *
status_text(uint32_t status)
{
    return status == WIRE_STATUS_NOT_HOSTED ? "it does not host an expert it was asked for"
                                            : "it refused the dispatch";
}

/* An answer is there: take its header and see whether it fits the question. */
static moe_err
accept_answer(router_end *re, uint32_t worker, uint32_t micro_batch, errbuf *eb)
{
    worker_slot *slot = &re->slots[worker];
    place_state *ps = &slot->places[micro_batch];
    ps->answer = link_place_at(&slot->memory, micro_batch)->result;
    ps->answered_ns = clock_now_ns();
    ps->outcome = REFUSED;
    set_in_flight(re, micro_batch, worker, false);

    const wire_hdr *a = &ps->answer;
    moe_err err = wire_hdr_check(a, WIRE_RESULT, &re->limits, eb);
    if (err != MOE_OK) {
        err_wrap(eb, err, "worker %" PRIu32 " answered nonsense", worker);
        return MOE_EINTERNAL;
    }
    if (a->status != WIRE_STATUS_OK)
        return err_set(eb, MOE_EINTERNAL, "worker %" PRIu32 ": %s (status %" PRIu32 ")", worker,
                       status_text(a->status), a->status);
    if (a->incarnation != re->incarnation || a->router_id != re->router_id || a->seq != ps->seq ||
        a->micro_batch != micro_batch || a->mode != ps->mode || a->row_count != ps->row_count)
        return err_set(eb, MOE_EINTERNAL,
                       "worker %" PRIu32 " answered %" PRIu32 " rows to dispatch %" PRIu32
                       ", asked were %" PRIu32 " rows in dispatch %" PRIu32,
                       worker, a->row_count, a->seq, ps->row_count, ps->seq);
    ps->outcome = ANSWERED;
    return MOE_OK;
}

static bool
has_answered(worker_slot *slot, uint32_t micro_batch)
{
    link_place *place = link_place_at(&slot->memory, micro_batch);
    return atomic_load_explicit(&place->result_seq, memory_order_acquire) ==
           slot->places[micro_batch].seq;
}

/* Take what has arrived.  *missing: the lowest worker that has not answered, or WORKER_MAX; on an
 * error, the worker it is about. */
static moe_err
collect(router_end *re, uint32_t micro_batch, uint32_t *missing, errbuf *eb)
{
    *missing = WORKER_MAX;
    for (uint32_t i = 0; i < SET_WORDS; i++) {
        uint64_t left = atomic_load_explicit(&re->in_flight[micro_batch][i], memory_order_relaxed);
        for (; left != 0; left &= left - 1) {
            const uint32_t worker = i * 64 + (uint32_t)__builtin_ctzll(left);
            worker_slot *slot = &re->slots[worker];
            moe_err err = MOE_OK;
            if (has_answered(slot, micro_batch))
                err = accept_answer(re, worker, micro_batch, eb);
            else if (atomic_load_explicit(&slot->lost, memory_order_acquire))
                err = err_set(eb, MOE_ECLOSED, "worker %" PRIu32 ": the link is lost", worker);
            else if (*missing == WORKER_MAX)
                *missing = worker;
            if (err != MOE_OK) {
                *missing = worker;
                return err;
            }
        }
    }
    return MOE_OK;
}

moe_err
router_end_wait(router_end *re, uint32_t micro_batch, uint64_t deadline_ns, uint32_t *missing,
                errbuf *eb)
{
    assert(micro_batch < re->limits.micro_batch_max);
    for (;;) {
        /* Read before looking: a ring that comes after the look ends the wait below. */
        const uint32_t seen = atomic_load_explicit(&re->bell->count, memory_order_acquire);
        moe_err err = collect(re, micro_batch, missing, eb);
        if (err != MOE_OK || *missing == WORKER_MAX) return err;
        /* The clock, not the futex, decides: other workers' rings must not put the deadline off. */
        if (deadline_ns != 0 && clock_now_ns() >= deadline_ns)
            return err_set(eb, MOE_ETIMEDOUT, "worker %" PRIu32 " has not answered in time",
                           *missing);
        futex_wait_change(&re->bell->count, seen, deadline_ns);
    }
}

moe_err
router_end_settle(router_end *re, uint64_t deadline_ns, uint32_t *missing)
{
    for (uint32_t mb = 0; mb < re->limits.micro_batch_max;) {
        const moe_err err = router_end_wait(re, mb, deadline_ns, missing, NULL);
        if (err == MOE_ETIMEDOUT) return err;
        if (err)
            forget(re, mb, *missing); /* lost, or it answered nonsense */
        else
            mb++;
    }
    return MOE_OK;
}

const float *
router_end_result(router_end *re, uint32_t worker, uint32_t micro_batch)
{
    assert(worker < WORKER_MAX && micro_batch < re->limits.micro_batch_max);
    const worker_slot *slot = &re->slots[worker];
    if (slot->places[micro_batch].outcome != ANSWERED) return NULL;
    return link_results(&slot->memory, micro_batch);
}

const wire_hdr *
router_end_result_hdr(router_end *re, uint32_t worker, uint32_t micro_batch)
{
    assert(worker < WORKER_MAX && micro_batch < re->limits.micro_batch_max);
    const place_state *ps = &re->slots[worker].places[micro_batch];
    return ps->outcome == ANSWERED || ps->outcome == REFUSED ? &ps->answer : NULL;
}

uint64_t
router_end_result_ns(const router_end *re, uint32_t worker, uint32_t micro_batch)
{
    assert(worker < WORKER_MAX && micro_batch < re->limits.micro_batch_max);
    return re->slots[worker].places[micro_batch].answered_ns;
}
