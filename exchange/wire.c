#include "exchange/wire.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

moe_err
exchange_limits_check(const exchange_limits *l, errbuf *eb)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } fields[] = {
        {"micro_batch_max", l->micro_batch_max, MICRO_BATCH_MAX},
        {"token_max", l->token_max, EXCHANGE_TOKEN_MAX},
        {"num_layers", l->num_layers, EXCHANGE_LAYER_MAX},
        {"num_experts", l->num_experts, EXCHANGE_EXPERT_MAX},
        {"top_k", l->top_k,
         l->num_experts < EXCHANGE_TOP_K_MAX ? l->num_experts : EXCHANGE_TOP_K_MAX},
        {"hidden", l->hidden, EXCHANGE_HIDDEN_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].value == 0 || fields[i].value > fields[i].max)
            return err_set(eb, MOE_ERANGE,
                           "exchange limits: %s is %" PRIu32 ", allowed 1..%" PRIu32,
                           fields[i].name, fields[i].value, fields[i].max);
    }
    if ((unsigned)l->dtype >= DTYPE_COUNT)
        return err_set(eb, MOE_ERANGE, "exchange limits: dtype %u is unknown", (unsigned)l->dtype);
    return MOE_OK;
}

/* A field of a header and what it should be; `max` bounds it, `min` too. */
static moe_err
field_within(const char *name, uint64_t value, uint64_t min, uint64_t max, errbuf *eb)
{
    if (value >= min && value <= max) return MOE_OK;
    return err_set(eb, MOE_EINVAL, "wire header: %s is %" PRIu64 ", allowed %" PRIu64 "..%" PRIu64,
                   name, value, min, max);
}

static moe_err
counts_check(const wire_hdr *h, enum wire_kind kind, const exchange_limits *l, errbuf *eb)
{
    moe_err err;
    const bool with_rows = kind == WIRE_DISPATCH || h->status == WIRE_STATUS_OK;
    if ((err = field_within("token_count", h->token_count, with_rows ? 1 : 0, l->token_max, eb)))
        return err;

    const uint64_t slots = (uint64_t)h->token_count * l->top_k;
    uint64_t min = 1, max = slots;
    if (!with_rows)
        min = max = 0;
    else if (h->mode == WIRE_TP)
        min = max = kind == WIRE_DISPATCH ? slots : h->token_count;
    if ((err = field_within("row_count", h->row_count, min, max, eb))) return err;

    const bool lists = kind == WIRE_DISPATCH;
    const uint32_t expert_max = l->num_experts < h->row_count ? l->num_experts : h->row_count;
    return field_within("expert_count", h->expert_count, lists ? 1 : 0, lists ? expert_max : 0, eb);
}

moe_err
wire_hdr_check(const wire_hdr *h, enum wire_kind kind, const exchange_limits *l, errbuf *eb)
{
    if (h->magic != WIRE_MAGIC)
        return err_set(eb, MOE_EMISMATCH, "wire header: magic is 0x%08" PRIx32 ", expected 0x%08x",
                       h->magic, WIRE_MAGIC);
    if (h->version != WIRE_VERSION)
        return err_set(eb, MOE_EMISMATCH, "wire header: version is %u, this build speaks %u",
                       h->version, WIRE_VERSION);
    moe_err err;
    const uint32_t status_max = kind == WIRE_RESULT ? WIRE_STATUS_REFUSED : 0;
    if ((err = field_within("kind", h->kind, kind, kind, eb))) return err;
    if ((err = field_within("layer", h->layer, 0, l->num_layers - 1, eb))) return err;
    if ((err = field_within("micro_batch", h->micro_batch, 0, l->micro_batch_max - 1, eb)))
        return err;
    if ((err = field_within("router_id", h->router_id, 0, ROUTER_MAX - 1, eb))) return err;
    if ((err = field_within("mode", h->mode, 0, WIRE_TP, eb))) return err;
    if ((err = field_within("status", h->status, 0, status_max, eb))) return err;
    for (size_t i = 0; i < sizeof h->reserved / sizeof h->reserved[0]; i++) {
        if ((err = field_within("reserved", h->reserved[i], 0, 0, eb))) return err;
    }
    return counts_check(h, kind, l, eb);
}

/* The row slots of one expert. */
static moe_err
slots_check(const uint32_t *row_slots, uint32_t first, uint32_t count, uint32_t slot_count,
            errbuf *eb)
{
    for (uint32_t i = first; i < first + count; i++) {
        if (row_slots[i] >= slot_count)
            return err_set(eb, MOE_EINVAL,
                           "dispatch: row slot [%" PRIu32 "] is %" PRIu32
                           ", allowed below %" PRIu32,
                           i, row_slots[i], slot_count);
        if (i > first && row_slots[i] <= row_slots[i - 1])
            return err_set(eb, MOE_EINVAL,
                           "dispatch: row slot [%" PRIu32 "] is %" PRIu32 " after %" PRIu32
                           " of the same expert",
                           i, row_slots[i], row_slots[i - 1]);
    }
    return MOE_OK;
}

/* count values below count, none twice: then each is there. */
static moe_err
slots_distinct(const uint32_t *row_slots, uint32_t count, uint64_t *seen, errbuf *eb)
{
    memset(seen, 0, ((size_t)count + 63) / 64 * sizeof seen[0]);
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t bit = 1ull << (row_slots[i] % 64);
        uint64_t *word = &seen[row_slots[i] / 64];
        if (*word & bit)
            return err_set(eb, MOE_EINVAL, "dispatch: row slot [%" PRIu32 "] repeats %" PRIu32, i,
                           row_slots[i]);
        *word |= bit;
    }
    return MOE_OK;
}

moe_err
wire_dispatch_check(const wire_hdr *h, const wire_expert *experts, const uint32_t *row_slots,
                    const exchange_limits *l, uint64_t *seen, errbuf *eb)
{
    const uint32_t slot_count = h->token_count * l->top_k;
    uint32_t first = 0;
    for (uint32_t i = 0; i < h->expert_count; i++) {
        const wire_expert e = experts[i];
        if (e.expert >= l->num_experts || (i > 0 && e.expert <= experts[i - 1].expert))
            return err_set(eb, MOE_EINVAL,
                           "dispatch: expert entry [%" PRIu32 "] names %" PRIu32
                           ", experts must rise and be below %" PRIu32,
                           i, e.expert, l->num_experts);
        if (e.row_count == 0 || e.row_count > h->row_count - first)
            return err_set(eb, MOE_EINVAL,
                           "dispatch: expert entry [%" PRIu32 "] has %" PRIu32 " rows, %" PRIu32
                           " of %" PRIu32 " are left",
                           i, e.row_count, h->row_count - first, h->row_count);
        moe_err err = slots_check(row_slots, first, e.row_count, slot_count, eb);
        if (err != MOE_OK) return err;
        first += e.row_count;
    }
    if (first != h->row_count)
        return err_set(eb, MOE_EINVAL,
                       "dispatch: expert entries add up to %" PRIu32
                       " rows, the header says %" PRIu32,
                       first, h->row_count);
    return h->mode == WIRE_TP ? slots_distinct(row_slots, h->row_count, seen, eb) : MOE_OK;
}
