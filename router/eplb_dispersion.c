#include "router/eplb_dispersion.h"

#include <stdlib.h>
#include <string.h>

/* One layer's table of rows, and its margins. */
typedef struct table {
    uint32_t runs, workers;
    double *rows;      /* [runs][workers] */
    double *by_run;    /* [runs] */
    double *by_worker; /* [workers] */
} table;

/* Chi-square and its degrees of freedom, over all layers. */
typedef struct evidence {
    double square, freedom;
} evidence;

static uint32_t
count_used(const double *margin, uint32_t n)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < n; i++)
        used += margin[i] > 0;
    return used;
}

static void
add_layer(evidence *e, const table *t)
{
    double sum = 0;
    memset(t->by_run, 0, t->runs * sizeof *t->by_run);
    memset(t->by_worker, 0, t->workers * sizeof *t->by_worker);
    for (uint32_t r = 0; r < t->runs; r++) {
        for (uint32_t w = 0; w < t->workers; w++) {
            const double rows = t->rows[(size_t)r * t->workers + w];
            t->by_run[r] += rows;
            t->by_worker[w] += rows;
            sum += rows;
        }
    }
    const uint32_t runs = count_used(t->by_run, t->runs);
    const uint32_t workers = count_used(t->by_worker, t->workers);
    if (runs < 2 || workers < 2) return;
    for (uint32_t r = 0; r < t->runs; r++) {
        for (uint32_t w = 0; w < t->workers; w++) {
            const double expected = t->by_run[r] * t->by_worker[w] / sum;
            const double off = t->rows[(size_t)r * t->workers + w] - expected;
            if (expected > 0) e->square += off * off / expected;
        }
    }
    e->freedom += (runs - 1.0) * (workers - 1.0);
}

/* Rows of the newest parts, `length` of them a run; what is left over are the oldest. */
static void
fill_layer(const table *t, const placement *p, uint32_t layer, const uint64_t *part_rows,
           uint32_t part_count, uint32_t length, double *scratch)
{
    const size_t experts = p->num_experts, cells = p->num_layers * experts;
    const uint32_t first = part_count - t->runs * length;
    memset(t->rows, 0, (size_t)t->runs * t->workers * sizeof *t->rows);
    for (uint32_t i = first; i < part_count; i++) {
        double *run = t->rows + (size_t)((i - first) / length) * t->workers;
        placement_worker_rows(p, layer, part_rows + i * cells + layer * experts, scratch);
        for (uint32_t w = 0; w < t->workers; w++)
            run[w] += scratch[w];
    }
}

double
eplb_dispersion(const placement *p, const uint64_t *part_rows, uint32_t part_count)
{
    const size_t cells = (size_t)(part_count + 2) * p->worker_count + part_count;
    double *block = part_count < 2 ? NULL : malloc(cells * sizeof *block);
    double most = 1;
    if (block == NULL) return most;
    table t = {
        .workers = p->worker_count, .by_worker = block, .by_run = block + 2 * p->worker_count};
    t.rows = t.by_run + part_count;
    for (uint32_t length = 1; part_count / length >= 2; length *= 2) {
        evidence e = {0};
        t.runs = part_count / length;
        for (uint32_t l = 0; l < p->num_layers; l++) {
            fill_layer(&t, p, l, part_rows, part_count, length, block + p->worker_count);
            add_layer(&e, &t);
        }
        if (e.freedom > 0 && e.square / e.freedom > most) most = e.square / e.freedom;
    }
    free(block);
    return most;
}
