/* link: the memory between one router and one worker.
 *
 * A link has one place per micro-batch; a place holds one dispatch and its result.  The layout is
 * the same whether both ends map it (shm) or each end has a private copy that an I/O thread keeps
 * in step (nng), so the compute threads see one kind of memory and no transport.
 *
 * Protocol of a place:
 *   router  fills request and lists, stores request_seq = n (release), bumps the worker's doorbell
 *   worker  sees request_seq != the last it served (acquire), COPIES the header, checks it and the
 * lists, computes, fills results and header, stores result_seq = n (release), bumps the router's
 * doorbell router  accepts the result only when result_seq == n A worker never waits on a link
 * alone: it sleeps on its one doorbell and then looks at all its links.
 *
 * Token rows lie in the router's rows object, one for all links of that router: token t of
 * micro-batch b at rows + (b * token_max + t) * exchange_row_bytes().
 *
 * Shared objects (shm_open, mode 0600) are named  /conclave-<run>-r<router>-<incarnation>-rows,
 * -w<worker>-<incarnation>-bell and -link: <run> is 16 hex digits of the run directory, so that one
 * fleet's objects are found and removed by prefix. After a worker is given up its link is unlinked
 * and never reused: a process that wakes up late writes into memory nobody reads.
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

/* Byte offsets within a place, all multiples of 64. */
typedef struct link_layout {
    size_t experts;     /* wire_expert [num_experts] */
    size_t row_slots;   /* uint32_t [token_max * top_k] */
    size_t weights;     /* float [token_max * top_k] */
    size_t results;     /* float [token_max * top_k][exchange_result_stride()] */
    size_t place_bytes; /* from one place to the next; whole pages */
    size_t link_bytes;  /* micro_batch_max places */
    size_t
        rows_bytes; /* the rows object: one page with the router's doorbell, then the token rows */
    size_t rows_offset; /* of the first token row in the rows object */
} link_layout;

void link_layout_init(link_layout *out, const exchange_limits *limits);

static inline link_place *
link_place_at(void *link, const link_layout *layout, uint32_t micro_batch)
{
    return (link_place *)((char *)link + (size_t)micro_batch * layout->place_bytes);
}

/* A mapped object.  fd is closed after mapping; name is "" for private memory. */
typedef struct shm_object {
    void *base;
    size_t bytes;
    char name[EXCHANGE_NAME_MAX];
    bool owner; /* unlinks at close */
} shm_object;

/* Create (O_EXCL, 0600, zeroed) or open an object; private: anonymous memory of this process.
 *   MOE_EIO        the OS refused, text names object and reason (for ENOSPC: how many bytes of
 * /dev/shm are asked) MOE_EMISMATCH  open: its size is not `bytes`, or its owner is another user */
moe_err shm_object_create(shm_object *out, const char *name, size_t bytes, errbuf *eb);
moe_err shm_object_open(shm_object *out, const char *name, size_t bytes, errbuf *eb);
moe_err shm_object_private(shm_object *out, size_t bytes, errbuf *eb);
void shm_object_close(shm_object *o); /* accepts a zeroed object */

/* Remove every object of this run whose name begins with "/conclave-<run>-<part>"; returns how
 * many. */
unsigned shm_objects_remove(const char *run, const char *part);

#endif
