/* message_trace: enter the messages of the exchange into a trace (common/trace.h).
 *
 * Bytes are those of the rows that a message carries or points to: row_count rows, or in TP as many
 * as there are tokens.
 *
 * Threads: the owner of the phases.
 */
#ifndef MOE_EXCHANGE_MESSAGE_TRACE_H
#define MOE_EXCHANGE_MESSAGE_TRACE_H

#include "common/phases.h"
#include "exchange/worker_end.h"

static inline uint32_t
message_rows(const wire_hdr *h)
{
    return h->mode == WIRE_TP ? h->token_count : h->row_count;
}

/* h: of the message; peer: who is at its other end; own_ns: when this process sent or had it. */
static inline void
message_trace(const phases *p, enum trace_kind kind, const wire_hdr *h, uint32_t peer,
              size_t row_bytes, uint64_t own_ns)
{
    if (p->traced == NULL) return;
    const uint32_t rows = message_rows(h);
    trace_add(p->traced, &(trace_event){.kind = (uint8_t)kind,
                                        .at = {.step = h->step,
                                               .rows = rows,
                                               .layer = (uint16_t)h->layer,
                                               .micro_batch = (uint8_t)h->micro_batch,
                                               .attempt = (uint8_t)h->attempt},
                                        .start_ns = own_ns,
                                        .sent_ns = h->send_time_ns,
                                        .bytes = rows * row_bytes,
                                        .busy_ns = h->busy_ns,
                                        .peer = (uint16_t)peer});
}

/* A worker is about to answer a dispatch that it had at received_ns. */
static inline void
message_trace_served(const phases *p, const dispatch_view *view, uint64_t received_ns,
                     uint64_t busy_ns)
{
    if (p->traced == NULL) return;
    wire_hdr answer = view->hdr;
    answer.busy_ns = busy_ns;
    message_trace(p, TRACE_DISPATCH_RECEIVED, &view->hdr, view->hdr.router_id, view->row_bytes,
                  received_ns);
    message_trace(p, TRACE_RESULT_SENT, &answer, view->hdr.router_id,
                  view->result_stride * sizeof(float), clock_now_ns());
}

#endif
