/* link: the memory between one router and one worker.
 *
 * A link has one place per micro-batch; a place holds one dispatch and its result.  The layout is
 * the same whether both ends map it (shm) or each end has a private copy that an I/O thread keeps
 * in step (nng), so the compute threads see one kind of memory and no transport.
 *
 * Protocol of a place:
 *   router  fills request and lists, stores request_seq = n (release), rings the worker's doorbell
 *   worker  sees request_seq != the last it served (acquire), COPIES header and lists, checks the
 *           copies, computes, fills results and header, stores result_seq = n (release), rings the
 *           router's doorbell
 *   router  accepts the result only when result_seq == n
 * A worker never waits on a link alone: it sleeps on its one doorbell, then looks at all its links.
 *
 * Token rows lie in the router's rows object, one for all links of that router: token t of
 * micro-batch b at rows_offset + (b * token_max + t) * exchange_row_bytes().
 *
 * Shared objects (shm_open, mode 0600); <run> is 16 hex digits of the run directory, so that one
 * fleet's objects are found and removed by prefix:
 *   /conclave-<run>-r<router>-<incarnation>-rows
 *   /conclave-<run>-r<router>-<incarnation>-w<worker>-<incarnation>-link
 *   /conclave-<run>-w<worker>-<incarnation>-bell
 * After a worker is given up its link is unlinked and never reused: a process that wakes up late
 * writes into memory nobody reads.
 *
 * Memory is reserved for the limits and touched only as far as steps use it.
 *
 * Threads: see the protocol; everything in a place is owned by the side whose turn it is.
 */
#ifndef MOE_EXCHANGE_LINK_H
#define MOE_EXCHANGE_LINK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "exchange/wire.h"

#define EXCHANGE_NAME_MAX 96
#define EXCHANGE_BELL_BYTES 4096 /* size of a bell object: the doorbell is at its start */

/* A doorbell: an event count in memory both sides map.  Wait with futex_wait_change(), ring with
 * futex_bump(). */
typedef struct doorbell {
    _Alignas(64) _Atomic uint32_t count;
} doorbell;

/* Start of a place; the offsets of what follows are computed from the limits (link_layout). */
typedef struct link_place {
    _Alignas(64) _Atomic uint32_t request_seq;
    _Alignas(64) _Atomic uint32_t result_seq;
    _Alignas(64) wire_hdr request;
    _Alignas(64) wire_hdr result;
} link_place;

/* Byte offsets, all multiples of 64. */
typedef struct link_layout {
    size_t experts;     /* in a place: wire_expert [num_experts] */
    size_t row_slots;   /* in a place: uint32_t [token_max * top_k] */
    size_t weights;     /* in a place: float [token_max * top_k] */
    size_t results;     /* in a place: float [token_max * top_k][exchange_result_stride()] */
    size_t place_bytes; /* from one place to the next; whole pages */
    size_t link_bytes;  /* micro_batch_max places */
    size_t rows_bytes;  /* the rows object: a page with the router's doorbell, the token rows */
    size_t rows_offset; /* of the first token row in the rows object */
    size_t row_bytes;   /* from one token row to the next */
} link_layout;

/* limits must have passed exchange_limits_check(). */
void link_layout_init(link_layout *out, const exchange_limits *limits);

/* Both areas as one end sees them, however they came to be. */
typedef struct link_memory {
    exchange_limits limits;
    link_layout layout;
    char *link; /* [link_bytes] */
    char *rows; /* [rows_bytes] */
} link_memory;

static inline link_place *
link_place_at(const link_memory *m, uint32_t micro_batch)
{
    return (link_place *)(m->link + (size_t)micro_batch * m->layout.place_bytes);
}

static inline wire_expert *
link_experts(const link_memory *m, uint32_t micro_batch)
{
    return (wire_expert *)((char *)link_place_at(m, micro_batch) + m->layout.experts);
}

static inline uint32_t *
link_row_slots(const link_memory *m, uint32_t micro_batch)
{
    return (uint32_t *)((char *)link_place_at(m, micro_batch) + m->layout.row_slots);
}

static inline float *
link_weights(const link_memory *m, uint32_t micro_batch)
{
    return (float *)((char *)link_place_at(m, micro_batch) + m->layout.weights);
}

static inline float *
link_results(const link_memory *m, uint32_t micro_batch)
{
    return (float *)((char *)link_place_at(m, micro_batch) + m->layout.results);
}

/* The first token row of a micro-batch. */
static inline char *
link_token_rows(const link_memory *m, uint32_t micro_batch)
{
    const size_t first = (size_t)micro_batch * m->limits.token_max;
    return m->rows + m->layout.rows_offset + first * m->layout.row_bytes;
}

/* A mapped object.  fd is closed after mapping; name is "" for private memory. */
typedef struct shm_object {
    void *base;
    size_t bytes;
    char name[EXCHANGE_NAME_MAX];
    bool owner; /* unlinks at close */
} shm_object;

/* Create (O_EXCL, 0600, zeroed) or open an object; private: anonymous memory of this process.
 * Pages are taken when first touched; create() warns in the log when the object could outgrow what
 * /dev/shm has left.  On error *out is zeroed.
 *   MOE_EINVAL     name: longer than EXCHANGE_NAME_MAX - 1, or not "/conclave-..." without a slash
 *   MOE_EIO        the OS refused; the text names object and reason
 *   MOE_ENOTFOUND  open: no such object
 *   MOE_EMISMATCH  open: its size is not `bytes`, its owner is another user, or others may read */
moe_err shm_object_create(shm_object *out, const char *name, size_t bytes, errbuf *eb);
moe_err shm_object_open(shm_object *out, const char *name, size_t bytes, errbuf *eb);
moe_err shm_object_private(shm_object *out, size_t bytes, errbuf *eb);
void shm_object_close(shm_object *o); /* accepts a zeroed object */

/* Remove every object whose name begins with "/conclave-<run>-<part>" ("r0-", "w3-", ""); returns
 * how many.  0 when run is not 16 hex digits. */
unsigned shm_objects_remove(const char *run, const char *part);

/* Is run 16 lower-case hex digits? */
bool shm_run_valid(const char *run);

/* Does name belong to that run: "/conclave-<run>-", no further slash, NUL within the array? */
bool shm_name_of_run(const char name[EXCHANGE_NAME_MAX], const char *run);

#endif
