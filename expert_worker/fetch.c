#include "expert_worker/fetch.h"

#include <string.h>

#include "exchange/wire.h"

void
fetch_describe(Conclave__FetchRequest *out, const expert_layout *layout, uint64_t fingerprint)
{
    conclave__fetch_request__init(out);
    out->fingerprint = fingerprint;
    out->dtype = (char *)(uintptr_t)dtype_name(layout->dtype);
    out->pack_version = PACKED_PACK_VERSION;
    out->width_begin = layout->width_begin;
    out->width_end = layout->width_end;
    out->slot_bytes = layout->slot_bytes;
}

moe_err
fetch_check(const Conclave__FetchRequest *r, const expert_layout *layout, uint64_t fingerprint,
            errbuf *eb)
{
    const struct {
        const char *name;
        uint64_t got, want;
    } fields[] = {{"model", r->fingerprint, fingerprint},
                  {"pack_version", r->pack_version, PACKED_PACK_VERSION},
                  {"width_begin", r->width_begin, layout->width_begin},
                  {"width_end", r->width_end, layout->width_end},
                  {"slot_bytes", r->slot_bytes, layout->slot_bytes}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].got != fields[i].want)
            return err_set(eb, MOE_EMISMATCH, "fetch: %s is %llu there, %llu here", fields[i].name,
                           (unsigned long long)fields[i].got, (unsigned long long)fields[i].want);
    }
    if (strcmp(r->dtype, dtype_name(layout->dtype)) != 0)
        return err_set(eb, MOE_EMISMATCH, "fetch: dtype is %.16s there, %s here", r->dtype,
                       dtype_name(layout->dtype));
    if (r->bytes == 0 || r->bytes > FETCH_BLOCK_BYTES || r->offset > r->slot_bytes ||
        r->bytes > r->slot_bytes - r->offset)
        return err_set(eb, MOE_EINVAL, "fetch: %u bytes at %llu of an expert of %llu", r->bytes,
                       (unsigned long long)r->offset, (unsigned long long)r->slot_bytes);
    return MOE_OK;
}

uint32_t
fetch_serve(expert_store *s, uint64_t fingerprint, const Conclave__FetchRequest *r, void *block,
            rpc_call *call)
{
    errbuf eb = {{0}};
    const moe_err err = fetch_check(r, expert_store_layout(s), fingerprint, &eb);
    if (err) {
        rpc_fail_err(call, err, &eb);
        return 0;
    }
    if (!expert_store_read(s, r->expert, r->offset, r->bytes, block)) {
        rpc_fail(call, RPC_NOT_FOUND, "expert %u is not hosted", r->expert);
        return 0;
    }
    const uint32_t bytes = r->bytes; /* the request ends with the call */
    Conclave__FetchReply reply = CONCLAVE__FETCH_REPLY__INIT;
    reply.data = (ProtobufCBinaryData){bytes, block};
    rpc_reply(call, &reply.base);
    return bytes;
}

moe_err
fetch_check_reply(const Conclave__FetchReply *reply, size_t bytes, errbuf *eb)
{
    if (reply->data.len == bytes) return MOE_OK;
    return err_set(eb, MOE_EINVAL, "a block of %zu bytes, not %zu", reply->data.len, bytes);
}

moe_err
fetch_check_peers(const Conclave__HostRequest *r, errbuf *eb)
{
    if (r->n_peers > WORKER_MAX) return err_set(eb, MOE_EINVAL, "%zu peers", r->n_peers);
    for (size_t i = 0; i < r->n_peers; i++) {
        if (strlen(r->peers[i]) >= RPC_URL_MAX)
            return err_set(eb, MOE_EINVAL, "the URL of peer %zu is longer than %d bytes", i,
                           RPC_URL_MAX - 1);
    }
    if (r->n_peer_of == 0 && r->n_hashes == 0) return MOE_OK;
    if (r->n_peer_of != r->n_experts || r->n_hashes != r->n_experts)
        return err_set(eb, MOE_EINVAL, "peers of %zu experts and hashes of %zu, but %zu are named",
                       r->n_peer_of, r->n_hashes, r->n_experts);
    for (size_t i = 0; i < r->n_peer_of; i++) {
        if (r->peer_of[i] > r->n_peers)
            return err_set(eb, MOE_EINVAL, "expert %u is with peer %u of %zu", r->experts[i],
                           r->peer_of[i], r->n_peers);
    }
    return MOE_OK;
}
