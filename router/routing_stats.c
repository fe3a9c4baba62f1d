#include "router/routing_stats.h"

#include <stdlib.h>
#include <string.h>

#define CELL_ALIGN 16u                /* the loops below run over whole vectors */
#define PART_RING (ROUTING_PARTS + 1) /* full ones, and the one that grows */

/* One allocation; a ring row is padded to whole vectors, the padding stays 0. */
struct routing_stats {
    size_t cells, stride; /* L * E, and that with padding */
    uint32_t window_size, step_interval;
    uint32_t next, filled; /* ring rows */
    uint64_t steps;
    uint64_t *sums;                  /* [stride] */
    uint64_t *seen;                  /* [stride] totals of the last add_totals() */
    uint64_t *parts;                 /* [PART_RING][stride] */
    uint32_t part_steps, part_max;   /* steps of a part; full ones at most */
    uint32_t part_next, part_filled; /* the one that grows; full ones now */
    uint32_t *fresh;                 /* [stride] */
    uint32_t *ring;                  /* [window_size][stride] */
};

moe_err
routing_stats_create(routing_stats **out, uint32_t num_layers, uint32_t num_experts,
                     uint32_t window_size, uint32_t step_interval, errbuf *eb)
{
    *out = NULL;
    const uint64_t cells = (uint64_t)num_layers * num_experts;
    if (cells == 0 || cells > ROUTING_CELLS_MAX)
        return err_set(eb, MOE_ERANGE, "statistics of %u layers with %u experts", num_layers,
                       num_experts);
    if (window_size == 0 || window_size > ROUTING_WINDOW_MAX || step_interval == 0)
        return err_set(eb, MOE_ERANGE, "a window of %u steps, an interval of %u", window_size,
                       step_interval);
    const size_t stride = (cells + CELL_ALIGN - 1) / CELL_ALIGN * CELL_ALIGN;
    const uint64_t ring_bytes = (uint64_t)window_size * stride * sizeof(uint32_t);
    if (ring_bytes > ROUTING_RING_BYTES_MAX)
        return err_set(eb, MOE_ERANGE, "a window of %u steps takes %llu bytes", window_size,
                       (unsigned long long)ring_bytes);
    const size_t bytes = sizeof(routing_stats) +
                         stride * ((2 + PART_RING) * sizeof(uint64_t) + sizeof(uint32_t)) +
                         ring_bytes;
    routing_stats *s = calloc(1, bytes);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "statistics: no %zu bytes", bytes);
    s->cells = cells;
    s->stride = stride;
    s->window_size = window_size;
    s->step_interval = step_interval;
    s->sums = (uint64_t *)(s + 1);
    s->seen = s->sums + stride;
    s->parts = s->seen + stride;
    s->part_steps = (window_size + ROUTING_PARTS - 1) / ROUTING_PARTS;
    s->part_max = window_size / s->part_steps;
    s->fresh = (uint32_t *)(s->parts + PART_RING * stride);
    s->ring = s->fresh + stride;
    *out = s;
    return MOE_OK;
}

void
routing_stats_free(routing_stats *s)
{
    free(s);
}

/* What is in the ring row leaves the window, and the new counts take its place.  A row that was
 * never filled is 0. */
static void
replace(uint64_t *restrict sums, uint64_t *restrict part, uint32_t *restrict row,
        const uint32_t *restrict fresh, size_t n)
{
    for (size_t i = 0; i < n; i += CELL_ALIGN) {
        for (size_t j = i; j < i + CELL_ALIGN; j++) {
            sums[j] += (uint64_t)fresh[j] - row[j];
            part[j] += fresh[j];
            row[j] = fresh[j];
        }
    }
}

static void
begin_part(routing_stats *s)
{
    s->part_next = s->part_next + 1 == PART_RING ? 0 : s->part_next + 1;
    if (s->part_filled < s->part_max) s->part_filled++;
    memset(s->parts + s->part_next * s->stride, 0, s->stride * sizeof *s->parts);
}

static bool
advance(routing_stats *s)
{
    replace(s->sums, s->parts + s->part_next * s->stride, s->ring + s->next * s->stride, s->fresh,
            s->stride);
    s->next = s->next + 1 == s->window_size ? 0 : s->next + 1;
    if (s->filled < s->window_size) s->filled++;
    s->steps++;
    if (s->steps % s->part_steps == 0) begin_part(s);
    return s->steps % s->step_interval == 0;
}

bool
routing_stats_add(routing_stats *s, const uint32_t *counts)
{
    memcpy(s->fresh, counts, s->cells * sizeof *counts);
    return advance(s);
}

bool
routing_stats_add_totals(routing_stats *s, const uint64_t *totals)
{
    for (size_t i = 0; i < s->cells; i++) {
        s->fresh[i] = (uint32_t)(totals[i] - s->seen[i]);
        s->seen[i] = totals[i];
    }
    return advance(s);
}

const uint32_t *
routing_stats_last(const routing_stats *s)
{
    return s->fresh;
}

const uint64_t *
routing_stats_rows(const routing_stats *s)
{
    return s->sums;
}

uint32_t
routing_stats_window_steps(const routing_stats *s)
{
    return s->filled;
}

uint32_t
routing_stats_parts(const routing_stats *s, uint64_t *rows)
{
    for (uint32_t p = 0; p < s->part_filled; p++) {
        const uint32_t at = (s->part_next + PART_RING - s->part_filled + p) % PART_RING;
        memcpy(rows + p * s->cells, s->parts + at * s->stride, s->cells * sizeof *rows);
    }
    return s->part_filled;
}

uint64_t
routing_stats_steps(const routing_stats *s)
{
    return s->steps;
}
