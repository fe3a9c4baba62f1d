#include "exchange/worker_end.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/log.h"
#include "exchange/nng_link.h"

/* Twice as many as live links can be: a retired one keeps its slot until its views are replied. */
#define SLOT_COUNT (2 * ROUTER_MAX)
#define LOG_INTERVAL_NS NS_PER_S
#define ANY_PART UINT32_MAX

typedef enum slot_state { SLOT_FREE, SLOT_SETUP, SLOT_LIVE, SLOT_RETIRED } slot_state;

/* One place of a link, the compute thread's: the checked, private copies of its lists. */
typedef struct place_copy {
    uint32_t served; /* sequence number of the last dispatch taken */
    bool out;        /* a view of it awaits its reply */
    wire_expert *experts;
    uint32_t *row_slots;
} place_copy;

typedef struct link_slot {
    slot_state state; /* with pins: guarded by worker_end.lock */
    uint32_t pins;    /* views and scans that may touch the memory */
    uint32_t router_id;
    uint32_t part;
    uint64_t incarnation; /* of the router */
    link_memory memory;
    shm_object link, rows, copies;
    nng_link *nng;
    doorbell send_bell; /* nng: wakes the link's sender */
    _Atomic bool broken;
    _Atomic uint32_t *ring; /* what a reply rings */
    place_copy places[MICRO_BATCH_MAX];
    uint64_t *seen; /* scratch of the list check */
} link_slot;

struct worker_end {
    char run[17];
    uint32_t worker_id;
    char nng_listen[EXCHANGE_URL_MAX]; /* "": none */
    uint32_t url_serial;               /* control thread: makes ipc paths unique */
    shm_object bell_object;
    doorbell *bell;
    _Atomic bool stopped;

    /* The compute thread's. */
    uint32_t bell_seen; /* at the last take */
    bool more;          /* the last take left something */
    uint32_t next_scan; /* slot to look at first: every router gets its turn */
    uint64_t last_log_ns;

    pthread_mutex_t lock; /* slots[].state and .pins; never held while waiting or computing */
    link_slot slots[SLOT_COUNT];
};

moe_err
worker_end_create(worker_end **out, const char *run, uint32_t worker_id, uint64_t incarnation,
                  const char *nng_listen, errbuf *eb)
{
    *out = NULL;
    if (worker_id >= WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "worker id %" PRIu32 ", allowed below %d", worker_id,
                       WORKER_MAX);
    if (!shm_run_valid(run)) return err_set(eb, MOE_EINVAL, "run: not 16 hex digits: %.32s", run);
    if (nng_listen != NULL && strlen(nng_listen) >= EXCHANGE_URL_MAX)
        return err_set(eb, MOE_EINVAL, "listen URL: longer than %d bytes", EXCHANGE_URL_MAX - 1);

    worker_end *we = aligned_alloc(64, sizeof *we);
    if (we == NULL) return err_set(eb, MOE_ENOMEM, "exchange: out of memory");
    memset(we, 0, sizeof *we);
    snprintf(we->run, sizeof we->run, "%s", run);
    snprintf(we->nng_listen, sizeof we->nng_listen, "%s", nng_listen ? nng_listen : "");
    we->worker_id = worker_id;

    char name[EXCHANGE_NAME_MAX];
    snprintf(name, sizeof name, "/conclave-%s-w%" PRIu32 "-%016" PRIx64 "-bell", run, worker_id,
             incarnation);
    moe_err err = shm_object_create(&we->bell_object, name, EXCHANGE_BELL_BYTES, eb);
    if (err != MOE_OK) {
        free(we);
        return err;
    }
    we->bell = we->bell_object.base;
    pthread_mutex_init(&we->lock, NULL);
    *out = we;
    return MOE_OK;
}

static void
slot_unmap(link_slot *slot)
{
    shm_object_close(&slot->link);
    shm_object_close(&slot->rows);
    shm_object_close(&slot->copies);
}

void
worker_end_free(worker_end *we)
{
    if (we == NULL) return;
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        nng_link_close(we->slots[i].nng);
        slot_unmap(&we->slots[i]);
    }
    shm_object_close(&we->bell_object);
    pthread_mutex_destroy(&we->lock);
    free(we);
}

/* ---- links come and go ---- */

static void
unpin_locked(link_slot *slot, uint32_t count)
{
    assert(slot->pins >= count);
    slot->pins -= count;
    if (slot->state != SLOT_RETIRED || slot->pins != 0) return;
    slot_unmap(slot);
    slot->state = SLOT_FREE;
}

static moe_err
offer_check(const worker_end *we, const exchange_limits *want, const attach_offer *offer,
            errbuf *eb)
{
    const exchange_limits *got = &offer->limits;
    moe_err err = exchange_limits_check(got, eb);
    if (err != MOE_OK) return err;
    const struct {
        const char *name;
        uint32_t got, want;
    } fields[] = {
        {"num_layers", got->num_layers, want->num_layers},
        {"num_experts", got->num_experts, want->num_experts},
        {"top_k", got->top_k, want->top_k},
        {"hidden", got->hidden, want->hidden},
        {"dtype", got->dtype, want->dtype},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].got != fields[i].want)
            return err_set(eb, MOE_EMISMATCH,
                           "router's %s is %" PRIu32 ", this worker's is %" PRIu32, fields[i].name,
                           fields[i].got, fields[i].want);
    }
    if (offer->router_id >= ROUTER_MAX)
        return err_set(eb, MOE_EINVAL, "router id %" PRIu32 ", allowed below %d", offer->router_id,
                       ROUTER_MAX);
    if (offer->backend == EXCHANGE_SHM) {
        if (!shm_name_of_run(offer->rows_name, we->run) ||
            !shm_name_of_run(offer->link_name, we->run))
            return err_set(eb, MOE_EINVAL, "the offer names no objects of run %s", we->run);
    } else if (offer->backend != EXCHANGE_NNG) {
        return err_set(eb, MOE_EINVAL, "backend %u is unknown", (unsigned)offer->backend);
    } else if (we->nng_listen[0] == '\0') {
        return err_set(eb, MOE_EUNSUPPORTED, "this worker has no address for nng links");
    }
    return MOE_OK;
}

/* Private copies of each place's lists, and the scratch that checks them. */
static moe_err
map_copies(link_slot *slot, errbuf *eb)
{
    const exchange_limits *l = &slot->memory.limits;
    const size_t expert_bytes = (l->num_experts * sizeof(wire_expert) + 63) / 64 * 64;
    const size_t slot_bytes = (exchange_slot_max(l) * sizeof(uint32_t) + 63) / 64 * 64;
    const size_t seen_bytes = wire_seen_words(l) * sizeof(uint64_t);
    moe_err err = shm_object_private(
        &slot->copies, l->micro_batch_max * (expert_bytes + slot_bytes) + seen_bytes, eb);
    if (err != MOE_OK) return err;
    char *at = slot->copies.base;
    for (uint32_t mb = 0; mb < l->micro_batch_max; mb++) {
        slot->places[mb].experts = (wire_expert *)(void *)at;
        slot->places[mb].row_slots = (uint32_t *)(void *)(at + expert_bytes);
        at += expert_bytes + slot_bytes;
    }
    slot->seen = (uint64_t *)(void *)at;
    return MOE_OK;
}

static moe_err
setup_shm(worker_end *we, link_slot *slot, const attach_offer *offer, attach_answer *answer,
          errbuf *eb)
{
    const link_layout *layout = &slot->memory.layout;
    moe_err err = shm_object_open(&slot->link, offer->link_name, layout->link_bytes, eb);
    if (err == MOE_OK) err = shm_object_open(&slot->rows, offer->rows_name, layout->rows_bytes, eb);
    if (err != MOE_OK) return err;
    /* Ring the router's doorbell, but only read its rows. */
    if (mprotect((char *)slot->rows.base + layout->rows_offset,
                 layout->rows_bytes - layout->rows_offset, PROT_READ) != 0)
        return err_set(eb, MOE_EIO, "%s: %s", offer->rows_name, strerror(errno));
    slot->ring = &((doorbell *)slot->rows.base)->count;
    snprintf(answer->bell_name, sizeof answer->bell_name, "%s", we->bell_object.name);
    return MOE_OK;
}

static moe_err
setup_nng(worker_end *we, link_slot *slot, const attach_offer *offer, attach_answer *answer,
          errbuf *eb)
{
    const link_layout *layout = &slot->memory.layout;
    moe_err err = shm_object_private(&slot->link, layout->link_bytes, eb);
    if (err == MOE_OK) err = shm_object_private(&slot->rows, layout->rows_bytes, eb);
    if (err != MOE_OK) return err;
    slot->memory.link = slot->link.base; /* the link's threads start now */
    slot->memory.rows = slot->rows.base;
    slot->ring = &slot->send_bell.count;

    char url[EXCHANGE_URL_MAX];
    int n = snprintf(url, sizeof url, "%s", we->nng_listen);
    if (strncmp(url, "ipc://", 6) == 0)
        n = snprintf(url, sizeof url, "%s-r%" PRIu32 "-%" PRIu32, we->nng_listen, offer->router_id,
                     we->url_serial++);
    if ((size_t)n >= sizeof url)
        return err_set(eb, MOE_EIO, "%s: too long for a socket's address", we->nng_listen);

    nng_link_config config = {.memory = &slot->memory,
                              .router_id = offer->router_id,
                              .incarnation = offer->router_incarnation,
                              .send_bell = &slot->send_bell.count,
                              .arrived = &we->bell->count,
                              .broken = &slot->broken};
    memcpy(config.key, offer->key, sizeof config.key);
    return nng_link_listen(&slot->nng, &config, url, answer->url, eb);
}

static link_slot *
claim_free_slot(worker_end *we)
{
    link_slot *slot = NULL;
    pthread_mutex_lock(&we->lock);
    for (uint32_t i = 0; i < SLOT_COUNT && slot == NULL; i++) {
        if (we->slots[i].state != SLOT_FREE) continue;
        slot = &we->slots[i];
        memset(slot, 0, sizeof *slot);
        slot->state = SLOT_SETUP;
    }
    pthread_mutex_unlock(&we->lock);
    return slot;
}

static moe_err
setup(worker_end *we, link_slot *slot, const attach_offer *offer, attach_answer *answer, errbuf *eb)
{
    slot->router_id = offer->router_id;
    slot->part = offer->part;
    slot->incarnation = offer->router_incarnation;
    slot->memory.limits = offer->limits;
    link_layout_init(&slot->memory.layout, &offer->limits);
    moe_err err = map_copies(slot, eb);
    if (err != MOE_OK) return err;
    err = offer->backend == EXCHANGE_SHM ? setup_shm(we, slot, offer, answer, eb)
                                         : setup_nng(we, slot, offer, answer, eb);
    slot->memory.link = slot->link.base;
    slot->memory.rows = slot->rows.base;
    return err;
}

/* One link of this router (ROUTER_MAX: of any) for this part (ANY_PART: for any), if there is one.
 */
static bool
detach(worker_end *we, uint32_t router_id, uint32_t part)
{
    link_slot *slot = NULL;
    pthread_mutex_lock(&we->lock);
    for (uint32_t i = 0; i < SLOT_COUNT && slot == NULL; i++) {
        link_slot *at = &we->slots[i];
        if (at->state == SLOT_LIVE && (router_id == ROUTER_MAX || at->router_id == router_id) &&
            (part == ANY_PART || at->part == part))
            slot = at;
    }
    if (slot != NULL) {
        slot->state = SLOT_RETIRED;
        slot->pins++; /* until the link's threads are gone */
    }
    pthread_mutex_unlock(&we->lock);
    if (slot == NULL) return false;

    nng_link_close(slot->nng);
    slot->nng = NULL;
    pthread_mutex_lock(&we->lock);
    unpin_locked(slot, 1);
    pthread_mutex_unlock(&we->lock);
    return true;
}

void
worker_end_detach(worker_end *we, uint32_t router_id)
{
    while (detach(we, router_id, ANY_PART)) {
    }
}

void
worker_end_detach_part(worker_end *we, uint32_t part)
{
    while (detach(we, ROUTER_MAX, part)) {
    }
}

moe_err
worker_end_attach(worker_end *we, const exchange_limits *expected, const attach_offer *offer,
                  attach_answer *answer, errbuf *eb)
{
    *answer = (attach_answer){0};
    moe_err err = offer_check(we, expected, offer, eb);
    if (err != MOE_OK) return err;
    link_slot *slot = claim_free_slot(we);
    if (slot == NULL) return err_set(eb, MOE_EBUSY, "all %d links are in use", SLOT_COUNT);

    err = setup(we, slot, offer, answer, eb);
    if (err == MOE_OK) detach(we, offer->router_id, offer->part);

    pthread_mutex_lock(&we->lock);
    if (err != MOE_OK) slot_unmap(slot);
    slot->state = err == MOE_OK ? SLOT_LIVE : SLOT_FREE;
    pthread_mutex_unlock(&we->lock);
    return err;
}

/* ---- the compute loop ---- */

bool
worker_end_wait(worker_end *we, uint64_t deadline_ns)
{
    if (atomic_load_explicit(&we->stopped, memory_order_acquire)) return false;
    if (we->more) return true;
    const bool rung = futex_wait_change(&we->bell->count, we->bell_seen, deadline_ns);
    return rung && !atomic_load_explicit(&we->stopped, memory_order_acquire);
}

void
worker_end_stop(worker_end *we)
{
    const int saved = errno; /* this may run in a signal handler */
    atomic_store_explicit(&we->stopped, true, memory_order_release);
    futex_bump(&we->bell->count);
    errno = saved;
}

static void
publish(link_slot *slot, uint32_t micro_batch, const wire_hdr *result)
{
    link_place *place = link_place_at(&slot->memory, micro_batch);
    place->result = *result;
    atomic_store_explicit(&place->result_seq, result->seq, memory_order_release);
    futex_bump(slot->ring);
}

static void
refuse(worker_end *we, link_slot *slot, uint32_t micro_batch, uint32_t seq, const errbuf *eb)
{
    const uint64_t now = clock_now_ns();
    if (we->last_log_ns == 0 || now - we->last_log_ns >= LOG_INTERVAL_NS) {
        we->last_log_ns = now;
        LOG_WARN("exchange", "dispatch refused: %s router=%" PRIu32, eb->text, slot->router_id);
    }
    const wire_hdr result = {.magic = WIRE_MAGIC,
                             .version = WIRE_VERSION,
                             .kind = WIRE_RESULT,
                             .incarnation = slot->incarnation,
                             .send_time_ns = now,
                             .router_id = slot->router_id,
                             .micro_batch = micro_batch,
                             .status = WIRE_STATUS_REFUSED,
                             .seq = seq};
    publish(slot, micro_batch, &result);
}

static moe_err
identity_check(const link_slot *slot, const wire_hdr *h, uint32_t micro_batch, uint32_t seq,
               errbuf *eb)
{
    if (h->router_id == slot->router_id && h->incarnation == slot->incarnation &&
        h->micro_batch == micro_batch && h->seq == seq)
        return MOE_OK;
    return err_set(eb, MOE_EINVAL,
                   "dispatch %" PRIu32 " of router %" PRIu32 ", micro-batch %" PRIu32
                   " in the place of dispatch %" PRIu32 " of router %" PRIu32
                   ", micro-batch %" PRIu32,
                   h->seq, h->router_id, h->micro_batch, seq, slot->router_id, micro_batch);
}

/* Copy first, then check the copy: the peer may change its memory at any time. */
static moe_err
copy_dispatch(link_slot *slot, uint32_t micro_batch, uint32_t seq, wire_hdr *hdr, errbuf *eb)
{
    const link_memory *m = &slot->memory;
    const place_copy *copy = &slot->places[micro_batch];
    memcpy(hdr, &link_place_at(m, micro_batch)->request, sizeof *hdr);
    moe_err err = wire_hdr_check(hdr, WIRE_DISPATCH, &m->limits, eb);
    if (err == MOE_OK) err = identity_check(slot, hdr, micro_batch, seq, eb);
    if (err != MOE_OK) return err;
    memcpy(copy->experts, link_experts(m, micro_batch),
           hdr->expert_count * sizeof copy->experts[0]);
    memcpy(copy->row_slots, link_row_slots(m, micro_batch),
           hdr->row_count * sizeof copy->row_slots[0]);
    return wire_dispatch_check(hdr, copy->experts, copy->row_slots, &m->limits, slot->seen, eb);
}

/* Is there a dispatch to serve?  Fills *out, or answers that it is refused (false). */
static bool
take_place(worker_end *we, link_slot *slot, uint32_t micro_batch, dispatch_view *out)
{
    const link_memory *m = &slot->memory;
    place_copy *copy = &slot->places[micro_batch];
    const uint32_t seq =
        atomic_load_explicit(&link_place_at(m, micro_batch)->request_seq, memory_order_acquire);
    if (seq == copy->served || copy->out) return false;

    errbuf eb;
    copy->served = seq;
    if (copy_dispatch(slot, micro_batch, seq, &out->hdr, &eb) != MOE_OK) {
        refuse(we, slot, micro_batch, seq, &eb);
        return false;
    }
    copy->out = true;
    out->experts = copy->experts;
    out->row_slots = copy->row_slots;
    out->weights = out->hdr.mode == WIRE_TP ? link_weights(m, micro_batch) : NULL;
    out->rows = link_token_rows(m, micro_batch);
    out->row_bytes = m->layout.row_bytes;
    out->results = link_results(m, micro_batch);
    out->result_stride = exchange_result_stride(&m->limits);
    out->link_index = (uint32_t)(slot - we->slots);
    out->top_k = m->limits.top_k;
    out->part = slot->part;
    return true;
}

/* Pin the live links, so that none is unmapped under our hands; returns how many. */
static uint32_t
pin_live(worker_end *we, uint32_t live[SLOT_COUNT])
{
    uint32_t count = 0;
    pthread_mutex_lock(&we->lock);
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        const uint32_t index = (we->next_scan + i) % SLOT_COUNT;
        if (we->slots[index].state != SLOT_LIVE) continue;
        we->slots[index].pins++;
        live[count++] = index;
    }
    pthread_mutex_unlock(&we->lock);
    return count;
}

uint32_t
worker_end_take(worker_end *we, dispatch_view *out, uint32_t max)
{
    uint32_t live[SLOT_COUNT], taken[SLOT_COUNT] = {0}, count = 0;
    /* Read before looking: a ring that comes after the look ends the next wait at once. */
    we->bell_seen = atomic_load_explicit(&we->bell->count, memory_order_acquire);
    we->more = false;
    const uint32_t live_count = pin_live(we, live);
    for (uint32_t i = 0; i < live_count && !we->more; i++) {
        link_slot *slot = &we->slots[live[i]];
        for (uint32_t mb = 0; mb < slot->memory.limits.micro_batch_max; mb++) {
            if (count == max) {
                we->more = true; /* perhaps: the next take will see */
                we->next_scan = live[i];
                break;
            }
            if (take_place(we, slot, mb, &out[count])) {
                count++;
                taken[i]++;
            }
        }
    }
    pthread_mutex_lock(&we->lock);
    for (uint32_t i = 0; i < live_count; i++) {
        link_slot *slot = &we->slots[live[i]];
        slot->pins += taken[i]; /* until the replies */
        unpin_locked(slot, 1);
    }
    pthread_mutex_unlock(&we->lock);
    return count;
}

void
worker_end_reply(worker_end *we, const dispatch_view *view, uint32_t status, uint64_t busy_ns)
{
    assert(view->link_index < SLOT_COUNT);
    link_slot *slot = &we->slots[view->link_index];
    wire_hdr result = view->hdr;
    result.kind = WIRE_RESULT;
    result.status = status;
    result.expert_count = 0;
    result.send_time_ns = clock_now_ns();
    result.busy_ns = busy_ns;
    if (status != WIRE_STATUS_OK)
        result.row_count = 0;
    else if (result.mode == WIRE_TP)
        result.row_count = result.token_count;

    slot->places[result.micro_batch].out = false;
    publish(slot, result.micro_batch, &result);
    pthread_mutex_lock(&we->lock);
    unpin_locked(slot, 1);
    pthread_mutex_unlock(&we->lock);
}
