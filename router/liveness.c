/* Who is alive (membership.h).
 *
 * Router 0 hears heartbeats.  A router that follows it asks every worker by itself, over the
 * connection that it watches: so a worker that hangs is found while router 0 is away, and one that
 * this router alone can't reach is found at all.  Two questions in a row must stay unanswered, so
 * that a pause of this process, in which answers wait to be read, is not taken for a death. */
#include "common/clock.h"
#include "proto/methods.h"
#include "router/membership_impl.h"

#define UNANSWERED_MAX 2
#define ASK_MS_MAX 500

bool
is_silent_locked(const membership *m, const worker *w, uint64_t now)
{
    if (m->config.follows) return w->last_seen_ns == 0 || w->unanswered >= UNANSWERED_MAX;
    return now > w->last_seen_ns + m->config.worker_timeout_ms * NS_PER_MS;
}

bool
is_gone_locked(const membership *m, const worker *w, uint64_t now)
{
    if (is_silent_locked(m, w, now)) return true;
    /* Until it is READY the watch is an earlier life's. */
    return w->state == READY && w->watch != NULL && rpc_client_losses(w->watch) != 0;
}

static void
take_answer_locked(worker *w)
{
    ProtobufCMessage *response;
    const moe_err err = rpc_pending_finish(w->ping, &response, NULL, NULL);
    w->ping = NULL;
    rpc_response_free(response);
    w->unanswered = err ? w->unanswered + 1 : 0;
}

void
liveness_ask_locked(membership *m, uint32_t id, uint64_t now)
{
    const Conclave__PingRequest request = CONCLAVE__PING_REQUEST__INIT;
    worker *w = &m->workers[id];
    uint32_t timeout_ms = m->config.worker_timeout_ms / UNANSWERED_MAX;
    if (timeout_ms == 0) timeout_ms = 1;
    if (w->ping != NULL && rpc_pending_done(w->ping)) take_answer_locked(w);
    if (!m->config.follows || w->state != READY || w->watch == NULL || w->ping != NULL) return;
    const uint64_t wait_ms = timeout_ms < ASK_MS_MAX ? timeout_ms : ASK_MS_MAX;
    if (now < w->asked_ns + wait_ms * NS_PER_MS && w->unanswered == 0) return;
    w->asked_ns = now;
    w->ping = rpc_call_begin(w->watch, WORKER_PING, &request.base, timeout_ms, &m->bell);
}

void
liveness_forget_locked(worker *w)
{
    if (w->ping != NULL) take_answer_locked(w);
    w->unanswered = 0;
    w->asked_ns = 0;
}
