/* routing_trace: the load of every step in a file, for replays and plots (--routing-trace FILE).
 *
 * Numbers are little-endian; a varint has 7 bits a byte, lowest first, the high bit set in all but
 * the last.
 *
 *   offset  bytes
 *        0  8  "CLVROUTE"
 *        8  4  version, 1
 *       12  4  L  layers
 *       16  4  E  experts
 *       20  4  K  top-k
 *       24  8  fingerprint of the model, 0 if there is none
 *       32  4  steps summed up in one record, 1 to 4096
 *       36  4  0
 *       40     records until the end of the file:
 *              varint  bytes of the payload
 *              payload
 *                varint  first step, less the first step of the record before (which is less)
 *                varint  steps summed up
 *                L * E counts, experts of a layer side by side: a varint each; a 0 is followed by a
 *                varint that says how many more zeros follow it
 *              4  check: low half of hash_bytes(index of the record, payload)
 *
 * A file whose writer was killed ends inside a record: everything before it can be read.
 *
 * Threads: one owner each.
 */
#ifndef MOE_ROUTER_ROUTING_TRACE_H
#define MOE_ROUTER_ROUTING_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define ROUTING_TRACE_VERSION 1u
#define ROUTING_TRACE_HEADER_BYTES 40u
#define ROUTING_TRACE_STEPS_MAX 4096u /* in one record */

typedef struct routing_trace_header {
    uint32_t num_layers, num_experts, top_k;
    uint64_t fingerprint;
    uint32_t steps_per_record;
} routing_trace_header;

typedef struct routing_trace_writer routing_trace_writer;

/* Create or overwrite the file, mode 0600.  Nothing is allocated afterwards.
 *   MOE_ERANGE  sizes (as routing_trace_open)
 *   MOE_EIO     the file can't be made
 *   MOE_ENOMEM  */
moe_err routing_trace_create(routing_trace_writer **out, const char *path,
                             const routing_trace_header *header, errbuf *eb);

/* One step's rows, counts [L][E].  step numbers rise.  Every steps_per_record calls a record is
 * written.
 *   MOE_EIO  writing failed, now or before: nothing more is written  */
moe_err routing_trace_append(routing_trace_writer *w, uint64_t step, const uint32_t *counts);

/* Write what is left, and close.  Accepts NULL.
 *   MOE_EIO  the file is not complete  */
moe_err routing_trace_close(routing_trace_writer *w);

/* A trace in memory. */
typedef struct routing_trace {
    routing_trace_header header;
    const unsigned char *bytes; /* borrowed */
    size_t len, at;             /* at: the next record */
    uint64_t records;           /* read so far */
    uint64_t last_step;
} routing_trace;

/* Read the header.
 *   MOE_EINVAL     too short, or no trace
 *   MOE_EMISMATCH  another version
 *   MOE_ERANGE     a size is 0 or too large, or K > E  */
moe_err routing_trace_open(routing_trace *out, const void *bytes, size_t len, errbuf *eb);

typedef struct routing_trace_record {
    uint64_t first_step;
    uint32_t step_count;
} routing_trace_record;

/* The next record; counts [L][E].
 *   MOE_ENOTFOUND  the trace is at its end
 *   MOE_ECLOSED    it ends inside a record
 *   MOE_EINVAL     the record is damaged; the text names it  */
moe_err routing_trace_next(routing_trace *t, routing_trace_record *record, uint32_t *counts,
                           errbuf *eb);

#endif
