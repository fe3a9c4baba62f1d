/* trace: what one thread does, event by event, as a file that Perfetto and chrome://tracing open
 * (--trace).
 *
 * The traced thread puts events of a fixed size into a ring; a thread of the trace's own, of low
 * priority, writes them.  Adding an event allocates nothing and makes no system call.  When the
 * writer falls behind by TRACE_RING_EVENTS, or the file has TRACE_FILE_BYTES_MAX, events are lost
 * and counted.
 *
 * The file is Chrome's JSON array with one event a line, so that what a killed process leaves can
 * be read: ts and dur are CLOCK_MONOTONIC in microseconds, equal for all processes of a host.
 *   "X"       a span: a phase of the thread
 *   "s", "f"  a message was sent, was received; both ends have the same id (the viewer draws an
 *             arrow), and the receiver's args.sent_ns is the time on the sender's clock, from which
 *             hosts can be aligned
 *   "M"       who wrote this (first), how many events were lost and a router's tokens per expert
 *             (last)
 *
 * Threads: add from one thread; open, put_counts and close from another.
 */
#ifndef MOE_COMMON_TRACE_H
#define MOE_COMMON_TRACE_H

#include <stdint.h>

#include "common/err.h"

#define TRACE_RING_EVENTS (1u << 16) /* 4 MiB; about 0.3 s of a busy router */
#define TRACE_FILE_BYTES_MAX (512ull << 20)
#define TRACE_NO_LAYER UINT16_MAX

typedef struct trace trace;

/* What an event is about. */
typedef struct trace_place {
    uint64_t step;
    uint32_t rows;
    uint16_t layer; /* or TRACE_NO_LAYER */
    uint8_t micro_batch, attempt;
} trace_place;

enum trace_kind {
    TRACE_SPAN,
    TRACE_DISPATCH_SENT,
    TRACE_DISPATCH_RECEIVED,
    TRACE_RESULT_SENT,
    TRACE_RESULT_RECEIVED
};

typedef struct trace_event {
    trace_place at;
    uint64_t start_ns; /* of a message: when this process sent or had it */
    uint64_t end_ns;   /* spans */
    uint64_t sent_ns;  /* received messages: by the sender's clock */
    uint64_t bytes;    /* messages: of the rows */
    uint64_t busy_ns;  /* results: the worker's time for it */
    uint8_t kind;      /* trace_kind */
    uint8_t name;      /* spans: an index into names */
    uint16_t peer;     /* messages: the id of the other end */
} trace_event;
_Static_assert(sizeof(trace_event) == 64, "a cache line");

typedef struct trace_config {
    const char *path;         /* created, or emptied */
    const char *role;         /* "router" or "worker"; borrowed, like names */
    uint32_t id;              /* of that role */
    const char *thread;       /* "step" */
    const char *const *names; /* of spans */
    uint32_t name_count;
} trace_config;

/*   MOE_EIO  the file can't be made, or there is no thread;  MOE_ENOMEM */
moe_err trace_open(trace **out, const trace_config *config, errbuf *eb);
/* Write what is left and the closing lines.  Accepts NULL. */
void trace_close(trace *t);

void trace_add(trace *t, const trace_event *event);

/* counts [layers * columns], copied; written at close as the tokens of each expert.  After the
 * traced thread has ended.  Does nothing for a NULL trace. */
void trace_put_counts(trace *t, const uint64_t *counts, uint32_t layers, uint32_t columns);

/* Events that were lost so far. */
uint64_t trace_lost(const trace *t);

#endif
