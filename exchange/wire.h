/* wire: the header of every data-plane message, and the limits it is checked against.
 *
 * Two kinds of messages travel between a router and a worker, for one layer of one micro-batch:
 *
 *   dispatch  header, expert entries, row slots, [weights], token rows
 *   result    header, result rows
 *
 * The same structures lie in shared memory (exchange/link.h) and, one after the other, in a
 * message on an nng link (exchange/link_msg.h). All fields are little-endian.  A message of an old
 * epoch or incarnation, or with a count that does not fit the limits, is refused, never trusted.
 *
 * Symbols: T tokens in a micro-batch, K top-k, E experts of a layer, H hidden size.
 *
 * Threads: plain data.
 */
#ifndef MOE_EXCHANGE_WIRE_H
#define MOE_EXCHANGE_WIRE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "kernels/packed.h"

#define WIRE_MAGIC 0x43564c43u /* "CLVC" */
#define WIRE_VERSION 1u
#define MICRO_BATCH_MAX 4
#define ROUTER_MAX 64
#define WORKER_MAX 256

enum wire_kind { WIRE_DISPATCH = 1, WIRE_RESULT = 2 };

/* How a worker answers. */
enum wire_mode {
    WIRE_EP = 0, /* one unweighted row per (token, expert), in the order of the row slots */
    WIRE_TP = 1, /* one row per token: the worker's slices of its top-k experts, weighted and added
                    in top-k order */
};

enum wire_status {
    WIRE_STATUS_OK = 0,
    WIRE_STATUS_NOT_HOSTED = 1, /* the dispatch names an expert this worker does not hold */
    WIRE_STATUS_REFUSED = 2,    /* the dispatch broke a limit */
};

typedef struct wire_hdr {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;        /* wire_kind */
    uint64_t incarnation; /* of the router: a number it drew when it started */
    uint64_t epoch;       /* of the placement this step runs under */
    uint64_t step;
    uint64_t send_time_ns; /* sender's monotonic clock: never compared with the receiver's */
    uint32_t router_id;
    uint32_t layer;
    uint32_t micro_batch;  /* 0 .. micro_batch_max-1 */
    uint32_t attempt;      /* resends inside a step count up */
    uint32_t mode;         /* wire_mode */
    uint32_t status;       /* wire_status; results only */
    uint32_t token_count;  /* T: rows are indexed 0 .. T-1 */
    uint32_t row_count;    /* row slots in a dispatch; rows in a result */
    uint32_t expert_count; /* expert entries; 0 in a result */
    uint32_t seq; /* counts the messages of one micro-batch place on one link; a result repeats its
                     dispatch's */
    uint64_t busy_ns;     /* results: the worker's compute time for this message */
    uint64_t reserved[3]; /* zero */
} wire_hdr;
static_assert(sizeof(wire_hdr) == 112, "wire_hdr is part of the wire format");

/* The next row_count row slots belong to this expert. */
typedef struct wire_expert {
    uint32_t expert; /* 0 .. E-1 */
    uint32_t row_count;
} wire_expert;

/* Sizes both ends agree on when a link is made; buffers are allocated for them once. */
typedef struct exchange_limits {
    uint32_t micro_batch_max; /* 1 .. MICRO_BATCH_MAX */
    uint32_t token_max;       /* rows of one micro-batch */
    uint32_t num_layers;
    uint32_t num_experts;
    uint32_t top_k; /* <= num_experts */
    uint32_t hidden;
    moe_dtype dtype; /* of the experts; token rows are its activation rows (packed.h) */
} exchange_limits;

/* The most that limits may ask for: with these no product of theirs overflows a size_t. */
#define EXCHANGE_TOKEN_MAX (1u << 20)
#define EXCHANGE_LAYER_MAX (1u << 12)
#define EXCHANGE_EXPERT_MAX (1u << 16)
#define EXCHANGE_TOP_K_MAX 64u
#define EXCHANGE_HIDDEN_MAX (1u << 17)

/* Are the limits themselves sane (nothing zero, nothing above the limits on limits)?
 *   MOE_ERANGE  the text names the field  */
moe_err exchange_limits_check(const exchange_limits *limits, errbuf *eb);

/* Bytes between token rows, and floats between result rows. */
static inline size_t
exchange_row_bytes(const exchange_limits *l)
{
    return act_row_bytes(l->dtype, l->hidden);
}

static inline size_t
exchange_result_stride(const exchange_limits *l)
{
    return round_up_u32(l->hidden, TILE_N);
}

/* Row slots of a full micro-batch: T * K. */
static inline size_t
exchange_slot_max(const exchange_limits *l)
{
    return (size_t)l->token_max * l->top_k;
}

/* Check a header that came from a peer: magic, version, kind, every count within the limits, and
 * the counts against each other:
 *   dispatch  1 <= T; EP: 1 <= row_count <= T * K; TP: row_count = T * K; status 0
 *   result    status OK: EP as above, TP: row_count = T; any other status: no rows
 * Errors, whose text names the field and both values:
 *   MOE_EMISMATCH  magic or version
 *   MOE_EINVAL     anything else  */
moe_err wire_hdr_check(const wire_hdr *h, enum wire_kind kind, const exchange_limits *limits,
                       errbuf *eb);

/* Check a dispatch's lists against a header that passed wire_hdr_check(): experts < E and rising,
 * none empty, row counts add up to h->row_count, row slots < T * K and rising within one expert.
 * TP must name every row slot once, so that no result row stays unwritten.
 *   seen  scratch of wire_seen_words(limits) words; only for WIRE_TP, else NULL is fine
 *   MOE_EINVAL  the text names the entry  */
moe_err wire_dispatch_check(const wire_hdr *h, const wire_expert *experts,
                            const uint32_t *row_slots, const exchange_limits *limits,
                            uint64_t *seen, errbuf *eb);

/* Words of a bit set of all row slots. */
static inline size_t
wire_seen_words(const exchange_limits *l)
{
    return (exchange_slot_max(l) + 63) / 64;
}

#endif
