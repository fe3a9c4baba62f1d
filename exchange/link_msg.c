#include "exchange/link_msg.h"

#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are memory, little-endian");

/* Where the parts of a dispatch lie in its message. */
typedef struct parts {
    size_t row_slots, weights, rows; /* byte offsets; experts follow the header */
} parts;

static parts
parts_of(const wire_hdr *h)
{
    const size_t slots_bytes = (size_t)h->row_count * sizeof(uint32_t);
    parts p = {.row_slots = sizeof(wire_hdr) + (size_t)h->expert_count * sizeof(wire_expert)};
    p.weights = p.row_slots + slots_bytes;
    p.rows = p.weights + (h->mode == WIRE_TP ? slots_bytes : 0);
    return p;
}

/* Mark the tokens that row slots name, in a bit set; returns how many. */
static uint32_t
mark_tokens(const uint32_t *row_slots, const wire_hdr *h, uint32_t top_k, uint64_t *marks)
{
    uint32_t count = 0;
    memset(marks, 0, ((size_t)h->token_count + 63) / 64 * sizeof marks[0]);
    for (uint32_t i = 0; i < h->row_count; i++) {
        const uint32_t token = row_slots[i] / top_k;
        const uint64_t bit = 1ull << (token % 64);
        count += (marks[token / 64] & bit) == 0;
        marks[token / 64] |= bit;
    }
    return count;
}

/* Copy the marked rows between the sparse area (a row at its token's place) and a dense one. */
static void
copy_rows(char *sparse, char *dense, size_t row_bytes, const uint64_t *marks, uint32_t token_count,
          bool gather)
{
    for (uint32_t word = 0; word * 64 < token_count; word++) {
        for (uint64_t left = marks[word]; left != 0; left &= left - 1) {
            const uint32_t token = word * 64 + (uint32_t)__builtin_ctzll(left);
            char *row = sparse + token * row_bytes;
            if (gather)
                memcpy(dense, row, row_bytes);
            else
                memcpy(row, dense, row_bytes);
            dense += row_bytes;
        }
    }
}

size_t
link_msg_bytes_max(const exchange_limits *l, enum wire_kind kind)
{
    const size_t slots = exchange_slot_max(l);
    if (kind == WIRE_RESULT) return sizeof(wire_hdr) + slots * l->hidden * sizeof(float);
    return sizeof(wire_hdr) + l->num_experts * sizeof(wire_expert) +
           slots * (sizeof(uint32_t) + sizeof(float)) + l->token_max * exchange_row_bytes(l);
}

size_t
link_msg_write_dispatch(const link_memory *m, const wire_hdr *h, uint64_t *marks, void *out)
{
    const parts p = parts_of(h);
    const uint32_t mb = h->micro_batch;
    char *to = out;
    memcpy(to, h, sizeof *h);
    memcpy(to + sizeof *h, link_experts(m, mb), p.row_slots - sizeof *h);
    memcpy(to + p.row_slots, link_row_slots(m, mb), p.weights - p.row_slots);
    memcpy(to + p.weights, link_weights(m, mb), p.rows - p.weights);

    const uint32_t tokens = mark_tokens(link_row_slots(m, mb), h, m->limits.top_k, marks);
    copy_rows(link_token_rows(m, mb), to + p.rows, m->layout.row_bytes, marks, h->token_count,
              true);
    return p.rows + tokens * m->layout.row_bytes;
}

moe_err
link_msg_check_dispatch(const void *msg, size_t bytes, const exchange_limits *l, uint64_t *marks,
                        errbuf *eb)
{
    const wire_hdr *h = msg;
    if (bytes < sizeof *h)
        return err_set(eb, MOE_EINVAL, "dispatch message: %zu bytes, a header has %zu", bytes,
                       sizeof *h);
    moe_err err = wire_hdr_check(h, WIRE_DISPATCH, l, eb);
    if (err != MOE_OK) return err;

    const parts p = parts_of(h);
    if (bytes < p.rows)
        return err_set(eb, MOE_EINVAL, "dispatch message: %zu bytes, its lists take %zu", bytes,
                       p.rows);
    const char *from = msg;
    const uint32_t *row_slots = (const uint32_t *)(const void *)(from + p.row_slots);
    err = wire_dispatch_check(h, (const wire_expert *)(h + 1), row_slots, l, marks, eb);
    if (err != MOE_OK) return err;

    const size_t expected =
        p.rows + mark_tokens(row_slots, h, l->top_k, marks) * exchange_row_bytes(l);
    if (bytes != expected)
        return err_set(eb, MOE_EINVAL, "dispatch message: %zu bytes, its row slots ask for %zu",
                       bytes, expected);
    return MOE_OK;
}

void
link_msg_store_dispatch(const link_memory *m, const void *msg, uint64_t *marks)
{
    const wire_hdr *h = msg;
    const parts p = parts_of(h);
    const uint32_t mb = h->micro_batch;
    char *from = (char *)(uintptr_t)msg; /* only read: copy_rows goes both ways */
    const uint32_t *row_slots = (const uint32_t *)(const void *)(from + p.row_slots);

    link_place_at(m, mb)->request = *h;
    memcpy(link_experts(m, mb), h + 1, p.row_slots - sizeof *h);
    memcpy(link_row_slots(m, mb), row_slots, p.weights - p.row_slots);
    memcpy(link_weights(m, mb), from + p.weights, p.rows - p.weights);
    mark_tokens(row_slots, h, m->limits.top_k, marks);
    copy_rows(link_token_rows(m, mb), from + p.rows, m->layout.row_bytes, marks, h->token_count,
              false);
}

size_t
link_msg_write_result(const link_memory *m, const wire_hdr *h, void *out)
{
    const size_t row_bytes = m->limits.hidden * sizeof(float);
    const size_t stride = exchange_result_stride(&m->limits);
    const float *from = link_results(m, h->micro_batch);
    char *to = out;
    memcpy(to, h, sizeof *h);
    for (size_t r = 0; r < h->row_count; r++) {
        memcpy(to + sizeof *h + r * row_bytes, from + r * stride, row_bytes);
    }
    return sizeof *h + h->row_count * row_bytes;
}

moe_err
link_msg_check_result(const void *msg, size_t bytes, const exchange_limits *l, errbuf *eb)
{
    const wire_hdr *h = msg;
    if (bytes < sizeof *h)
        return err_set(eb, MOE_EINVAL, "result message: %zu bytes, a header has %zu", bytes,
                       sizeof *h);
    moe_err err = wire_hdr_check(h, WIRE_RESULT, l, eb);
    if (err != MOE_OK) return err;
    const size_t expected = sizeof *h + (size_t)h->row_count * l->hidden * sizeof(float);
    if (bytes != expected)
        return err_set(eb, MOE_EINVAL, "result message: %zu bytes, its rows ask for %zu", bytes,
                       expected);
    return MOE_OK;
}

void
link_msg_store_result(const link_memory *m, const void *msg)
{
    const wire_hdr *h = msg;
    const size_t row_bytes = m->limits.hidden * sizeof(float);
    const size_t stride = exchange_result_stride(&m->limits);
    const char *from = (const char *)(h + 1);
    float *to = link_results(m, h->micro_batch);
    link_place_at(m, h->micro_batch)->result = *h;
    for (size_t r = 0; r < h->row_count; r++) {
        memcpy(to + r * stride, from + r * row_bytes, row_bytes);
    }
}
