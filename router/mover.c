#include "router/mover.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/methods.h"
#include "router/fleet_share.h"
#include "router/move_source.h"
#include "router/move_stage.h"

#define MOVE_TIMEOUT_MS (3600u * 1000)
#define CALL_TIMEOUT_MS 10000
#define CANCEL_TIMEOUT_MS 100
#define CANCEL_TRIES 10
#define STATS_TIMEOUT_MS 500
/* A release is only left when its worker is lost: else, who knows what was released? */
#define RELEASE_TIMEOUT_MS 2000
#define FOLLOWERS_TIMEOUT_MS 5000
#define POLL_MS 20
#define MESSAGE_BYTES (16u << 20)

/* What one worker has to load. */
typedef struct share {
    uint32_t *ids; /* [count], rising */
    size_t count;
    rpc_client *client;
    rpc_pending *call;
    Conclave__HostReply *reply;
} share;

/* An expert's hash, from the first copy that told it. */
typedef struct known_hash {
    bool known;
    uint64_t hash;
    uint32_t worker;
} known_hash;

struct mover {
    mover_config config;
    size_t id_count;
    uint64_t moves; /* numbers that were given */
    uint32_t *ids;  /* [id_count] scratch */
    known_hash *hashes;
    uint64_t *share_hashes;      /* [id_count] scratch: of one share */
    uint32_t chosen[WORKER_MAX]; /* experts that each worker is to give others in this stage */
    fleet_view view;
    share shares[WORKER_MAX];
};

moe_err
mover_create(mover **out, const mover_config *config, errbuf *eb)
{
    *out = NULL;
    mover *mv = calloc(1, sizeof *mv);
    if (mv == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    mv->config = *config;
    mv->id_count = (size_t)config->num_layers * config->num_experts;
    mv->ids = malloc((mv->id_count + 1) * sizeof *mv->ids);
    mv->hashes = calloc(mv->id_count, sizeof *mv->hashes);
    mv->share_hashes = malloc((mv->id_count + 1) * sizeof *mv->share_hashes);
    if (mv->ids == NULL || mv->hashes == NULL || mv->share_hashes == NULL) {
        mover_free(mv);
        return err_set(eb, MOE_ENOMEM, "out of memory");
    }
    *out = mv;
    return MOE_OK;
}

void
mover_free(mover *mv)
{
    if (mv == NULL) return;
    free(mv->ids);
    free(mv->hashes);
    free(mv->share_hashes);
    free(mv);
}

static bool
is_vain(mover *mv)
{
    return mv->config.give_up != NULL && mv->config.give_up(mv->config.arg);
}

static bool
call_is_vain(void *arg)
{
    return is_vain(arg);
}

static moe_err
open_worker(rpc_client **out, const member *w, errbuf *eb)
{
    return rpc_client_open(out,
                           &(rpc_client_options){.url = w->control_url,
                                                 .service = &conclave__worker__descriptor,
                                                 .message_bytes_max = MESSAGE_BYTES},
                           eb);
}

/* One call on a connection of its own.  *response is to be freed, also after an error. */
static moe_err
call_worker(const member *w, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
            bool (*vain)(void *arg), void *arg, ProtobufCMessage **response, errbuf *eb)
{
    rpc_client *client;
    *response = NULL;
    moe_err err = open_worker(&client, w, eb);
    if (err) return err;
    err = rpc_call_watched(client, method, request, timeout_ms, vain, arg, POLL_MS, response, NULL,
                           eb);
    rpc_client_close(client);
    return err;
}

/* ---- what is to be loaded ---- */

static moe_err
list_share(mover *mv, const placement *to, uint32_t w, errbuf *eb)
{
    share *s = &mv->shares[w];
    size_t count = 0;
    for (uint32_t i = 0; i < mv->id_count; i++) {
        if (placement_is_host(to, i / to->num_experts, i % to->num_experts, w) &&
            !fleet_view_hosts(&mv->view, w, i))
            mv->ids[count++] = i;
    }
    s->count = count;
    if (count == 0) return MOE_OK;
    if (!mv->view.members[w].ready)
        return err_set(eb, MOE_ECLOSED, "worker %u, which is to host experts, is not ready", w);
    s->ids = malloc(count * sizeof *s->ids);
    if (s->ids == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    memcpy(s->ids, mv->ids, count * sizeof *s->ids);
    return MOE_OK;
}

static void
drop_shares(mover *mv)
{
    for (uint32_t w = 0; w < WORKER_MAX; w++) {
        share *s = &mv->shares[w];
        ProtobufCMessage *late = NULL;
        if (s->call != NULL) (void)rpc_pending_finish(s->call, &late, NULL, NULL);
        rpc_response_free(late);
        if (s->reply != NULL) rpc_response_free(&s->reply->base);
        rpc_client_close(s->client);
        free(s->ids);
        *s = (share){0};
    }
}

/* ---- hashes ---- */

static moe_err
check_hash(mover *mv, uint32_t id, uint64_t hash, uint32_t w, errbuf *eb)
{
    known_hash *k = &mv->hashes[id];
    if (!k->known) *k = (known_hash){.known = true, .hash = hash, .worker = w};
    if (k->hash == hash) return MOE_OK;
    return err_set(eb, MOE_EMISMATCH, "layer %u expert %u is not the same on workers %u and %u",
                   id / mv->config.num_experts, id % mv->config.num_experts, k->worker, w);
}

static moe_err
check_hashes(mover *mv, uint32_t w, const uint32_t *ids, size_t count,
             const Conclave__HostReply *reply, errbuf *eb)
{
    if (reply->n_hashes != count)
        return err_set(eb, MOE_EINVAL, "worker %u told %zu hashes of %zu experts", w,
                       reply->n_hashes, count);
    moe_err err = MOE_OK;
    for (size_t i = 0; i < count && !err; i++)
        err = check_hash(mv, ids[i], reply->hashes[i], w, eb);
    return err;
}

static int
compare_ids(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Is anyone to load it, and nobody's hash known yet? */
static bool
wants_hash(const mover *mv, uint32_t id)
{
    if (mv->hashes[id].known) return false;
    for (uint32_t w = 0; w < mv->view.worker_end; w++) {
        const share *s = &mv->shares[w];
        if (s->count != 0 && bsearch(&id, s->ids, s->count, sizeof id, compare_ids) != NULL)
            return true;
    }
    return false;
}

/* Of experts that will be copied: of one copy that is there, if there is one. */
static moe_err
ask_hashes(mover *mv, uint32_t w, errbuf *eb)
{
    Conclave__HashRequest request = CONCLAVE__HASH_REQUEST__INIT;
    for (uint32_t i = 0; i < mv->id_count; i++) {
        if (fleet_view_hosts(&mv->view, w, i) && wants_hash(mv, i))
            mv->ids[request.n_experts++] = i;
    }
    if (request.n_experts == 0) return MOE_OK;
    request.experts = mv->ids;
    ProtobufCMessage *response;
    moe_err err = call_worker(&mv->view.members[w], WORKER_HASH, &request.base, MOVE_TIMEOUT_MS,
                              call_is_vain, mv, &response, eb);
    if (!err) err = check_hashes(mv, w, mv->ids, request.n_experts, (const void *)response, eb);
    rpc_response_free(response);
    return err;
}

/* ---- loading ---- */

/* Returns when it has ended, so that what it has loaded can be released; or when the worker does
 * not answer.  The call to cancel may overtake the other: it is made again. */
static void
cancel_share(mover *mv, share *s)
{
    Conclave__CancelHostRequest request = CONCLAVE__CANCEL_HOST_REQUEST__INIT;
    ProtobufCMessage *response;
    request.move = mv->moves;
    for (uint32_t i = 0; i < CANCEL_TRIES && !rpc_pending_done(s->call); i++) {
        (void)rpc_call_sync(s->client, WORKER_CANCEL_HOST, &request.base, CANCEL_TIMEOUT_MS,
                            &response, NULL, NULL);
        rpc_response_free(response);
        (void)rpc_pending_wait(s->call, clock_now_ns() + CANCEL_TIMEOUT_MS * NS_PER_MS);
    }
}

/* Peers of experts whose hash is known: what comes from them can be checked. */
static moe_err
begin_host(mover *mv, share *s, const move_offer *offer, uint64_t bytes_per_s, errbuf *eb)
{
    Conclave__HostRequest request = CONCLAVE__HOST_REQUEST__INIT;
    request.move = mv->moves;
    request.bytes_per_s = bytes_per_s;
    request.n_experts = s->count;
    request.experts = s->ids;
    if (offer->url_count != 0) {
        for (size_t i = 0; i < s->count; i++) {
            const known_hash *k = &mv->hashes[s->ids[i]];
            mv->share_hashes[i] = k->hash;
            if (!k->known) offer->peer_of[i] = 0;
        }
        request.n_peers = offer->url_count;
        request.peers = (char **)(uintptr_t)offer->urls;
        request.n_peer_of = request.n_hashes = s->count;
        request.peer_of = offer->peer_of;
        request.hashes = mv->share_hashes;
    }
    s->call = rpc_call_begin(s->client, WORKER_HOST, &request.base, MOVE_TIMEOUT_MS, NULL);
    return s->call != NULL ? MOE_OK : err_set(eb, MOE_ENOMEM, "out of memory");
}

static moe_err
begin_share(mover *mv, uint32_t w, uint64_t bytes_per_s, errbuf *eb)
{
    share *s = &mv->shares[w];
    move_offer offer;
    moe_err err = open_worker(&s->client, &mv->view.members[w], eb);
    if (err) return err;
    err = move_offer_init(&offer, &mv->view, w, s->ids, s->count, mv->chosen, eb);
    if (!err) err = begin_host(mv, s, &offer, bytes_per_s, eb);
    move_offer_fini(&offer);
    return err;
}

static bool
is_lost(mover *mv, uint32_t w)
{
    return membership_worker(mv->config.membership, w).lost;
}

/* It may have loaded them all the same: what the placement does not name counts as hosted, so that
 * it is released with the rest of the surplus. */
static void
give_up_share(mover *mv, uint32_t w)
{
    const share *s = &mv->shares[w];
    size_t count = 0;
    for (size_t i = 0; i < s->count; i++) {
        const uint32_t id = s->ids[i], experts = mv->config.num_experts;
        if (!placement_is_host(mv->view.home, id / experts, id % experts, w)) mv->ids[count++] = id;
    }
    membership_set_hosted(mv->config.membership, w, mv->view.members[w].incarnation, mv->ids, count,
                          true);
}

static moe_err
end_share(mover *mv, uint32_t w, errbuf *eb)
{
    share *s = &mv->shares[w];
    ProtobufCMessage *response;
    while (!rpc_pending_wait(s->call, clock_now_ns() + POLL_MS * NS_PER_MS)) {
        if (is_lost(mv, w)) break;
        if (!is_vain(mv)) continue;
        cancel_share(mv, s);
        break;
    }
    moe_err err = rpc_pending_finish(s->call, &response, NULL, eb);
    s->call = NULL;
    s->reply = (void *)response;
    if (!err) err = check_hashes(mv, w, s->ids, s->count, s->reply, eb);
    if (err)
        give_up_share(mv, w);
    else
        membership_set_hosted(mv->config.membership, w, mv->view.members[w].incarnation, s->ids,
                              s->count, true);
    return err;
}

/* All workers load side by side.  What one has loaded before another failed stays until surplus is
 * released. */
static moe_err
host_experts(mover *mv, uint64_t bytes_per_s, move_report *report, errbuf *eb)
{
    uint32_t loading = 0;
    moe_err err = MOE_OK;
    mv->moves++;
    memset(mv->hashes, 0, mv->id_count * sizeof *mv->hashes);
    memset(mv->chosen, 0, sizeof mv->chosen);
    for (uint32_t w = 0; w < mv->view.worker_end; w++) {
        if (mv->shares[w].count != 0) loading++;
    }
    for (uint32_t w = 0; w < mv->view.worker_end && !err && loading != 0; w++) {
        if (mv->view.members[w].ready) err = ask_hashes(mv, w, eb);
    }
    for (uint32_t w = 0; w < mv->view.worker_end && !err; w++) {
        if (mv->shares[w].count != 0)
            err = begin_share(mv, w, bytes_per_s == 0 ? 0 : bytes_per_s / loading + 1, eb);
    }
    for (uint32_t w = 0; w < mv->view.worker_end; w++) {
        share *s = &mv->shares[w];
        if (s->call == NULL) continue;
        if (err) {
            if (!is_lost(mv, w)) cancel_share(mv, s);
            give_up_share(mv, w);
            continue; /* drop_shares() leaves the call */
        }
        err = end_share(mv, w, eb);
        if (err) continue;
        report->experts += s->count;
        report->bytes += s->reply->bytes;
        report->peer_bytes += s->reply->peer_bytes;
        report->peer_failures += s->reply->peer_failures;
    }
    return err;
}

static moe_err
run_stage(mover *mv, const placement *target, uint64_t bytes_per_s, move_report *report, bool *last,
          errbuf *eb)
{
    membership *m = mv->config.membership;
    placement *stage = NULL;
    moe_err err = membership_look(m, &mv->view, eb);
    if (!err) err = move_stage_make(&stage, &mv->view, target, mv->config.expert_bytes, last, eb);
    for (uint32_t w = 0; !err && w < stage->worker_count; w++)
        err = list_share(mv, stage, w, eb);
    if (!err) err = host_experts(mv, bytes_per_s, report, eb);
    drop_shares(mv);
    if (err)
        placement_free(stage);
    else
        err = membership_propose(m, stage, eb);
    fleet_view_fini(&mv->view);
    mover_release_surplus(mv);
    report->stages++;
    return err;
}

moe_err
mover_run(mover *mv, const placement *target, uint64_t bytes_per_s, move_report *report, errbuf *eb)
{
    *report = (move_report){0};
    const uint64_t start = clock_now_ns();
    moe_err err = MOE_OK;
    for (bool last = false; !last && !err;) {
        err = run_stage(mv, target, bytes_per_s, report, &last, eb);
        if (!err && !last && is_vain(mv)) err = err_set(eb, MOE_ECLOSED, "given up");
    }
    report->ns = clock_now_ns() - start;
    return err;
}

/* ---- the rest ---- */

typedef struct lost_question {
    mover *mv;
    uint32_t w;
} lost_question;

static bool
worker_is_lost(void *arg)
{
    const lost_question *q = arg;
    return is_lost(q->mv, q->w);
}

static void
release(mover *mv, uint32_t w, size_t count, uint64_t epoch)
{
    const member *to = &mv->view.members[w];
    Conclave__ReleaseRequest request = CONCLAVE__RELEASE_REQUEST__INIT;
    ProtobufCMessage *response;
    errbuf eb = {{0}};
    request.epoch = epoch;
    request.n_experts = count;
    request.experts = mv->ids;
    /* First, so that no placement counts on them any more. */
    membership_set_hosted(mv->config.membership, w, to->incarnation, mv->ids, count, false);
    const moe_err err = call_worker(to, WORKER_RELEASE, &request.base, RELEASE_TIMEOUT_MS,
                                    worker_is_lost, &(lost_question){mv, w}, &response, &eb);
    if (err)
        LOG_WARN("mover", "worker %u keeps %zu experts that it could release: %s", w, count,
                 eb.text);
    rpc_response_free(response);
}

bool
mover_release_surplus(mover *mv)
{
    errbuf eb;
    if (!fleet_wait_for_followers(mv->config.membership, FOLLOWERS_TIMEOUT_MS)) return false;
    if (membership_look(mv->config.membership, &mv->view, &eb)) return false;
    for (uint32_t w = 0; w < mv->view.worker_end; w++) {
        if (!mv->view.members[w].ready) continue;
        const size_t count = membership_surplus(mv->config.membership, w, mv->ids);
        if (count != 0) release(mv, w, count, mv->view.epoch);
    }
    fleet_view_fini(&mv->view);
    return true;
}

moe_err
mover_end_worker(mover *mv, const member *worker, errbuf *eb)
{
    const Conclave__DrainRequest request = CONCLAVE__DRAIN_REQUEST__INIT;
    ProtobufCMessage *response;
    const moe_err err = call_worker(worker, WORKER_DRAIN, &request.base, CALL_TIMEOUT_MS,
                                    call_is_vain, mv, &response, eb);
    rpc_response_free(response);
    return err;
}

moe_err
mover_ask_work(mover *mv, const member *worker, worker_work *out, errbuf *eb)
{
    const Conclave__StatsRequest request = CONCLAVE__STATS_REQUEST__INIT;
    ProtobufCMessage *response;
    *out = (worker_work){.incarnation = worker->incarnation};
    const moe_err err = call_worker(worker, WORKER_STATS, &request.base, STATS_TIMEOUT_MS,
                                    call_is_vain, mv, &response, eb);
    if (!err) {
        const Conclave__WorkerStats *s = (const void *)response;
        out->rows = s->rows;
        out->reads = s->reads;
        out->busy_ns = s->busy_ns;
    }
    rpc_response_free(response);
    return err;
}
