/* link_msg: what lies in a place, as one message on an nng link, and back.
 *
 *   dispatch  wire_hdr, wire_expert [expert_count], uint32_t row slots [row_count],
 *             TP: float weights [row_count], then one token row for each token that a row slot
 *             names, tokens rising
 *   result    wire_hdr, float rows [row_count][H]
 *
 * Which tokens travel follows from the row slots, so their indices are not sent.  A message is
 * checked whole, its length to the byte, before a byte of it is stored.
 *
 * Symbols: as in wire.h.  marks is scratch of wire_seen_words() words.
 *
 * Threads: no shared state; the place is the caller's while it reads or stores it.
 */
#ifndef MOE_EXCHANGE_LINK_MSG_H
#define MOE_EXCHANGE_LINK_MSG_H

#include "exchange/link.h"

/* Bytes of the largest message of a kind. */
size_t link_msg_bytes_max(const exchange_limits *limits, enum wire_kind kind);

/* Write the dispatch of a place whose header is `h`, or its result; returns the message's bytes.
 *   out  8-aligned, link_msg_bytes_max() bytes  */
size_t link_msg_write_dispatch(const link_memory *m, const wire_hdr *h, uint64_t *marks, void *out);
size_t link_msg_write_result(const link_memory *m, const wire_hdr *h, void *out);

/* Is it a message that may be stored?  msg: 8-aligned, `bytes` long, starts with the header.
 *   MOE_EINVAL, MOE_EMISMATCH  the text says what is wrong  */
moe_err link_msg_check_dispatch(const void *msg, size_t bytes, const exchange_limits *limits,
                                uint64_t *marks, errbuf *eb);
moe_err link_msg_check_result(const void *msg, size_t bytes, const exchange_limits *limits,
                              errbuf *eb);

/* Copy a checked message into the place and the token rows (dispatch) or result rows (result) it
 * names.  The sequence words are left alone. */
void link_msg_store_dispatch(const link_memory *m, const void *msg, uint64_t *marks);
void link_msg_store_result(const link_memory *m, const void *msg);

#endif
