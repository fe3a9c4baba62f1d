#include "exchange/link.h"

#define PAGE_BYTES 4096
#define LINE_BYTES 64

static size_t
align_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

void
link_layout_init(link_layout *out, const exchange_limits *l)
{
    const size_t slots = exchange_slot_max(l);
    size_t at = align_up(sizeof(link_place), LINE_BYTES);

    out->experts = at;
    at += align_up(l->num_experts * sizeof(wire_expert), LINE_BYTES);
    out->row_slots = at;
    at += align_up(slots * sizeof(uint32_t), LINE_BYTES);
    out->weights = at;
    at += align_up(slots * sizeof(float), LINE_BYTES);
    out->results = at;
    at += slots * exchange_result_stride(l) * sizeof(float);

    out->place_bytes = align_up(at, PAGE_BYTES);
    out->link_bytes = l->micro_batch_max * out->place_bytes;
    out->row_bytes = exchange_row_bytes(l);
    out->rows_offset = PAGE_BYTES;
    out->rows_bytes =
        PAGE_BYTES +
        align_up((size_t)l->micro_batch_max * l->token_max * out->row_bytes, PAGE_BYTES);
}
