/* wire_fuzz: bytes from a peer, as the receiver of a link treats them.
 *
 * The first byte picks dispatch or result; the rest is the message.  What passes the checks is
 * stored and walked as a worker would, so that a check that lets too much through shows as an
 * access out of bounds.
 */
#include <stdlib.h>
#include <string.h>

#include "exchange/link_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const exchange_limits limits = {.micro_batch_max = 2,
                                       .token_max = 5,
                                       .num_layers = 3,
                                       .num_experts = 6,
                                       .top_k = 2,
                                       .hidden = 3,
                                       .dtype = DTYPE_INT8};

/* Exact sizes from the heap, so that AddressSanitizer knows every end. */
typedef struct end {
    link_memory m;
    uint64_t *marks;
} end;

static void
walk_dispatch(const end *e, uint32_t mb)
{
    const wire_hdr *h = &link_place_at(&e->m, mb)->request;
    const float *weights = link_weights(&e->m, mb);
    float *results = link_results(&e->m, mb);
    uint32_t written[64] = {0}, i = 0;
    volatile char sum = 0;
    for (uint32_t x = 0; x < h->expert_count; x++) {
        for (uint32_t r = 0; r < link_experts(&e->m, mb)[x].row_count; r++, i++) {
            const uint32_t slot = link_row_slots(&e->m, mb)[i];
            const char *row =
                link_token_rows(&e->m, mb) + slot / limits.top_k * e->m.layout.row_bytes;
            sum = (char)(sum + row[0] + row[e->m.layout.row_bytes - 1]);
            const uint32_t to = h->mode == WIRE_TP ? slot / limits.top_k : i;
            results[to * exchange_result_stride(&limits)] = weights[i];
            written[slot]++;
        }
    }
    if (i != h->row_count) abort();
    for (uint32_t s = 0; h->mode == WIRE_TP && s < h->token_count * limits.top_k; s++) {
        if (written[s] != 1) abort(); /* a result row would stay unwritten */
    }
}

static void
one_dispatch(const end *e, const void *msg, size_t bytes)
{
    errbuf eb;
    if (link_msg_check_dispatch(msg, bytes, &limits, e->marks, &eb) != MOE_OK) {
        if (memchr(eb.text, '\0', sizeof eb.text) == NULL) abort();
        return;
    }
    const uint32_t mb = ((const wire_hdr *)msg)->micro_batch;
    link_msg_store_dispatch(&e->m, msg, e->marks);
    walk_dispatch(e, mb);

    /* What was stored makes the same message again. */
    char *again = malloc(link_msg_bytes_max(&limits, WIRE_DISPATCH));
    const wire_hdr *h = &link_place_at(&e->m, mb)->request;
    if (link_msg_write_dispatch(&e->m, h, e->marks, again) != bytes) abort();
    if (memcmp(again, msg, bytes) != 0) abort();
    free(again);
}

static void
one_result(const end *e, const void *msg, size_t bytes)
{
    errbuf eb;
    if (link_msg_check_result(msg, bytes, &limits, &eb) == MOE_OK)
        link_msg_store_result(&e->m, msg);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    end e = {.m = {.limits = limits}};
    link_layout_init(&e.m.layout, &limits);
    e.m.link = aligned_alloc(4096, e.m.layout.link_bytes);
    e.m.rows = aligned_alloc(4096, e.m.layout.rows_bytes);
    e.marks = malloc(wire_seen_words(&limits) * sizeof *e.marks);
    char *msg = malloc(size); /* aligned, and of the exact size but for the first byte */
    if (e.m.link == NULL || e.m.rows == NULL || e.marks == NULL || msg == NULL) abort();
    memset(e.m.link, 0, e.m.layout.link_bytes);
    memset(e.m.rows, 0, e.m.layout.rows_bytes);
    memcpy(msg, data + 1, size - 1);
    if (data[0] % 2 == 0)
        one_dispatch(&e, msg, size - 1);
    else
        one_result(&e, msg, size - 1);
    free(msg);
    free(e.marks);
    free(e.m.rows);
    free(e.m.link);
    return 0;
}
