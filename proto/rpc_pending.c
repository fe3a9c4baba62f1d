/* Calls that are under way and may be left: built on rpc_call_async(). */
#include <stdatomic.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/futex.h"
#include "proto/rpc.h"

/* Shared by the caller and the callback, which may come after the caller has left: the last one
 * frees it. */
struct rpc_pending {
    const rpc_client *client;
    _Atomic uint32_t owners;
    _Atomic uint32_t done;
    _Atomic uint32_t *bell;
    rpc_status status;
    ProtobufCMessage *response;
    errbuf error;
};

static void
pending_release(rpc_pending *p)
{
    if (atomic_fetch_sub(&p->owners, 1) != 1) return;
    rpc_response_free(p->response);
    free(p);
}

static void
on_pending_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    rpc_pending *p = arg;
    p->status = status;
    p->response = response;
    err_set(&p->error, MOE_OK, "%s", error);
    futex_bump(&p->done);
    if (p->bell != NULL) futex_bump(p->bell);
    pending_release(p);
}

rpc_pending *
rpc_call_begin(rpc_client *c, unsigned method, const ProtobufCMessage *request, uint32_t timeout_ms,
               _Atomic uint32_t *bell)
{
    rpc_pending *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->client = c;
    p->bell = bell;
    atomic_store(&p->owners, 2);
    rpc_call_async(c, method, request, timeout_ms, on_pending_done, p);
    return p;
}

bool
rpc_pending_done(const rpc_pending *p)
{
    return atomic_load(&p->done) != 0;
}

bool
rpc_pending_wait(rpc_pending *p, uint64_t deadline_ns)
{
    return futex_sleep_change(&p->done, 0, deadline_ns);
}

moe_err
rpc_pending_finish(rpc_pending *p, ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    rpc_status result = RPC_CANCELLED;
    *response = NULL;
    if (rpc_pending_done(p)) {
        result = p->status;
        *response = p->response;
        p->response = NULL;
        if (result != RPC_OK) err_set(eb, MOE_OK, "%s", p->error.text);
    } else {
        err_set(eb, MOE_OK, "%s: the wait for an answer was given up", rpc_client_url(p->client));
    }
    pending_release(p);
    if (status != NULL) *status = result;
    return result == RPC_OK ? MOE_OK : rpc_status_to_err(result);
}

moe_err
rpc_call_watched(rpc_client *c, unsigned method, const ProtobufCMessage *request,
                 uint32_t timeout_ms, bool (*gone)(void *arg), void *arg, uint32_t poll_ms,
                 ProtobufCMessage **response, rpc_status *status, errbuf *eb)
{
    *response = NULL;
    if (status != NULL) *status = RPC_RESOURCE_EXHAUSTED;
    rpc_pending *p = rpc_call_begin(c, method, request, timeout_ms, NULL);
    if (p == NULL) return err_set(eb, MOE_ENOMEM, "%s: out of memory", rpc_client_url(c));
    while (!rpc_pending_wait(p, clock_now_ns() + poll_ms * NS_PER_MS) && !gone(arg)) {
    }
    return rpc_pending_finish(p, response, status, eb);
}
