#include "expert_worker/fetcher.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/methods.h"

#define POLL_MS 20

typedef struct peer {
    const char *url;    /* the request's */
    rpc_client *client; /* NULL until it is asked for something */
    bool failed;
} peer;

struct fetcher {
    fetcher_config config;
    uint64_t start_ns; /* of the first block */
    uint64_t bytes;    /* that came, for the rate: also those of experts that were no use */
    uint64_t good_bytes;
    uint32_t failures;
    uint32_t peer_count;
    peer peers[];
};

expert_source
expert_source_parse(const char *name)
{
    if (strcmp(name, "disk") == 0) return EXPERT_SOURCE_DISK;
    return strcmp(name, "peer") == 0 ? EXPERT_SOURCE_PEER : EXPERT_SOURCE_AUTO;
}

moe_err
fetcher_create(fetcher **out, const fetcher_config *config, errbuf *eb)
{
    *out = NULL;
    const Conclave__HostRequest *r = config->request;
    const moe_err err = fetch_check_peers(r, eb);
    if (err) return err;
    fetcher *f = calloc(1, sizeof *f + r->n_peers * sizeof f->peers[0]);
    if (f == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    f->config = *config;
    if (f->config.block_bytes == 0) f->config.block_bytes = FETCH_BLOCK_BYTES;
    f->peer_count = (uint32_t)r->n_peers;
    for (uint32_t i = 0; i < f->peer_count; i++)
        f->peers[i].url = r->peers[i];
    *out = f;
    return MOE_OK;
}

void
fetcher_free(fetcher *f)
{
    if (f == NULL) return;
    for (uint32_t i = 0; i < f->peer_count; i++)
        rpc_client_close(f->peers[i].client);
    free(f);
}

void
fetcher_get_report(const fetcher *f, uint64_t *bytes, uint32_t *failures)
{
    *bytes = f->good_bytes;
    *failures = f->failures;
}

static bool
is_cancelled(const fetcher *f)
{
    return f->config.cancel != NULL && atomic_load(f->config.cancel);
}

/* ---- one block ---- */

static size_t
block_size(const fetcher *f, uint64_t offset)
{
    const uint64_t left = f->config.layout.slot_bytes - offset, most = f->config.block_bytes;
    return (size_t)(left < most ? left : most);
}

static rpc_pending *
ask_block(fetcher *f, peer *p, uint32_t id, uint64_t offset)
{
    Conclave__FetchRequest r;
    fetch_describe(&r, &f->config.layout, f->config.fingerprint);
    r.expert = id;
    r.offset = offset;
    r.bytes = (uint32_t)block_size(f, offset);
    return rpc_call_begin(p->client, WORKER_FETCH, &r.base, FETCH_TIMEOUT_MS, NULL);
}

/* Until what came since the beginning is no more than the rate allows. */
static void
pace(fetcher *f)
{
    const uint64_t rate = f->config.request->bytes_per_s;
    if (rate == 0) return;
    const double ns = (double)f->bytes / (double)rate * (double)NS_PER_S;
    const uint64_t due = f->start_ns + (uint64_t)ns;
    for (uint64_t now = clock_now_ns(); now < due && !is_cancelled(f); now = clock_now_ns()) {
        const uint64_t left = due - now, poll = POLL_MS * NS_PER_MS;
        nanosleep(&(struct timespec){.tv_nsec = (long)(left < poll ? left : poll)}, NULL);
    }
}

static moe_err
take_block(fetcher *f, rpc_pending *call, char *to, size_t bytes, errbuf *eb)
{
    ProtobufCMessage *response;
    if (call == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    while (!rpc_pending_wait(call, clock_now_ns() + POLL_MS * NS_PER_MS) && !is_cancelled(f)) {
    }
    moe_err err = rpc_pending_finish(call, &response, NULL, eb);
    if (err) return err;
    const Conclave__FetchReply *reply = (const void *)response;
    err = fetch_check_reply(reply, bytes, eb);
    if (!err) memcpy(to, reply->data.data, bytes);
    rpc_response_free(response);
    f->bytes += bytes;
    if (!err) pace(f);
    return err;
}

/* ---- one expert ---- */

static moe_err
open_peer(peer *p, errbuf *eb)
{
    if (p->client != NULL) return MOE_OK;
    LOG_INFO("fetch", "experts are copied from another worker peer=%s", p->url);
    return rpc_client_open(&p->client,
                           &(rpc_client_options){.url = p->url,
                                                 .service = &conclave__worker__descriptor,
                                                 .message_bytes_max = FETCH_MESSAGE_BYTES,
                                                 .concurrency = FETCH_IN_FLIGHT},
                           eb);
}

static moe_err
copy_slot(fetcher *f, peer *p, uint32_t id, char *to, errbuf *eb)
{
    rpc_pending *calls[FETCH_IN_FLIGHT] = {NULL};
    const uint64_t all = f->config.layout.slot_bytes, block = f->config.block_bytes;
    uint64_t asked = 0;
    moe_err err = MOE_OK;
    for (uint64_t got = 0; got < all && !err; got += block) {
        for (; asked < all && asked < got + FETCH_IN_FLIGHT * block; asked += block)
            calls[asked / block % FETCH_IN_FLIGHT] = ask_block(f, p, id, asked);
        rpc_pending **call = &calls[got / block % FETCH_IN_FLIGHT];
        err = take_block(f, *call, to + got, block_size(f, got), eb);
        *call = NULL;
    }
    for (uint32_t i = 0; i < FETCH_IN_FLIGHT; i++) {
        ProtobufCMessage *late = NULL;
        if (calls[i] != NULL) (void)rpc_pending_finish(calls[i], &late, NULL, NULL);
        rpc_response_free(late);
    }
    return err;
}

static moe_err
check_hash(const fetcher *f, const char *bytes, uint64_t want, errbuf *eb)
{
    const uint64_t hash = packed_slot_hash(bytes, f->config.layout.slot_bytes);
    if (hash == want) return MOE_OK;
    return err_set(eb, MOE_EMISMATCH, "its hash is %016llx, not %016llx", (unsigned long long)hash,
                   (unsigned long long)want);
}

static int
compare_ids(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* True: the slot holds the expert.  False: its bytes are zero. */
static bool
fill_slot(fetcher *f, const packed_slot *slot)
{
    const Conclave__HostRequest *r = f->config.request;
    const uint32_t *at =
        bsearch(&slot->slot, r->experts, r->n_experts, sizeof *r->experts, compare_ids);
    const uint32_t index = at == NULL || r->n_peer_of == 0 ? 0 : r->peer_of[at - r->experts];
    if (index == 0) return false;
    peer *p = &f->peers[index - 1];
    if (f->config.far_only && strncmp(p->url, "ipc:", 4) == 0) return false;
    errbuf eb = {{0}};
    moe_err err = p->failed ? MOE_ECLOSED : open_peer(p, &eb);
    if (!err) {
        err = copy_slot(f, p, slot->slot, slot->bytes, &eb);
        if (!err) err = check_hash(f, slot->bytes, r->hashes[at - r->experts], &eb);
        if (err) memset(slot->bytes, 0, f->config.layout.slot_bytes);
    }
    if (!err) {
        f->good_bytes += f->config.layout.slot_bytes;
        return true;
    }
    if (is_cancelled(f)) return false;
    f->failures++;
    if (!p->failed)
        LOG_WARN("fetch", "peer not used any more, experts come from files peer=%s expert=%u: %s",
                 p->url, slot->slot, eb.text);
    p->failed = true;
    return false;
}

void
fetcher_fill(void *arg, const packed_slot *slots, uint32_t count, bool *done)
{
    fetcher *f = arg;
    if (f->start_ns == 0) f->start_ns = clock_now_ns();
    for (uint32_t i = 0; i < count && !is_cancelled(f); i++) {
        if (!done[i]) done[i] = fill_slot(f, &slots[i]);
    }
}
