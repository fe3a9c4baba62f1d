#include "router/replica_choice.h"

#include <assert.h>
#include <stdlib.h>

#define REFILLS 2

/* One allocation. */
struct replica_choice {
    uint32_t num_experts, worker_max, slot_max, run_min;
    uint32_t *run_first; /* [E + 1] */
    dispatch_run *runs;  /* [S] */
    uint32_t *split;     /* [E] experts that have rows and several hosts */
    uint32_t *active;    /* [W] runs of the expert being filled that take rows */
};

/* What is the same for all experts of one call. */
typedef struct fill {
    dispatch_run *runs; /* of one expert */
    uint32_t count;
    const uint32_t *speeds; /* or NULL */
    uint64_t *worker_rows;
    uint32_t *active;
} fill;

moe_err
replica_choice_create(replica_choice **out, uint32_t num_experts, uint32_t worker_max,
                      uint32_t slot_max, uint32_t run_min)
{
    *out = NULL;
    if (num_experts == 0 || worker_max == 0 || slot_max == 0 || run_min == 0) return MOE_ERANGE;
    if (num_experts > PLACEMENT_EXPERT_MAX || worker_max > PLACEMENT_WORKER_MAX ||
        slot_max > PLACEMENT_SLOT_MAX)
        return MOE_ERANGE;
    const size_t words = 2 * (size_t)num_experts + 1 + worker_max;
    replica_choice *c =
        calloc(1, sizeof *c + slot_max * sizeof(dispatch_run) + words * sizeof(uint32_t));
    if (c == NULL) return MOE_ENOMEM;
    c->num_experts = num_experts;
    c->worker_max = worker_max;
    c->slot_max = slot_max;
    c->run_min = run_min;
    c->runs = (dispatch_run *)(c + 1);
    c->run_first = (uint32_t *)(c->runs + slot_max);
    c->split = c->run_first + num_experts + 1;
    c->active = c->split + num_experts;
    *out = c;
    return MOE_OK;
}

void
replica_choice_free(replica_choice *c)
{
    free(c);
}

static uint64_t
speed_of(const fill *f, uint32_t worker)
{
    return f->speeds ? f->speeds[worker] : 1;
}

/* Leave only the active runs whose workers stay below the level that all of them reach together
 * when they take the rows; the others take none.  *rows and *speed are the sums over what is left:
 * the level is their quotient. */
static uint32_t
find_level(fill *f, uint32_t active, uint32_t row_count, uint64_t *rows, uint64_t *speed)
{
    *rows = row_count;
    *speed = 0;
    for (uint32_t i = 0; i < active; i++) {
        *rows += f->worker_rows[f->runs[f->active[i]].worker];
        *speed += speed_of(f, f->runs[f->active[i]].worker);
    }
    for (;;) {
        uint32_t kept = 0;
        uint64_t rows_left = *rows, speed_left = *speed;
        for (uint32_t i = 0; i < active; i++) {
            const uint32_t worker = f->runs[f->active[i]].worker;
            const uint64_t has = f->worker_rows[worker], v = speed_of(f, worker);
            if (has * *speed >= *rows * v) {
                rows_left -= has;
                speed_left -= v;
            } else {
                f->active[kept++] = f->active[i];
            }
        }
        if (kept == active || kept == 0) return active;
        active = kept;
        *rows = rows_left;
        *speed = speed_left;
    }
}

/* Split the rows over the active runs. */
static void
pour(fill *f, uint32_t active, uint32_t row_count)
{
    uint64_t rows, speed;
    for (uint32_t i = 0; i < f->count; i++)
        f->runs[i].row_count = 0;
    active = find_level(f, active, row_count, &rows, &speed);
    uint32_t left = row_count;
    for (uint32_t i = 0; i < active; i++) {
        dispatch_run *run = &f->runs[f->active[i]];
        const uint64_t has = f->worker_rows[run->worker];
        const uint64_t level = rows * speed_of(f, run->worker) / speed;
        run->row_count = level > has ? (uint32_t)(level - has) : 0;
        left -= run->row_count;
    }
    for (uint32_t i = 0; left > 0; i = i + 1 < active ? i + 1 : 0, left--)
        f->runs[f->active[i]].row_count++; /* less than one each: what division dropped */
}

/* Index of the shortest run that is too short, the last of equals; count if there is none. */
static uint32_t
too_short(const fill *f, uint32_t run_min)
{
    uint32_t found = f->count;
    for (uint32_t i = 0; i < f->count; i++) {
        const uint32_t rows = f->runs[i].row_count;
        if (rows == 0 || rows >= run_min) continue;
        if (found == f->count || rows <= f->runs[found].row_count) found = i;
    }
    return found;
}

/* Fill, and while a run is too short, fill without it. */
static void
fill_expert(fill *f, uint32_t row_count, uint32_t run_min)
{
    uint32_t active = f->count;
    for (uint32_t i = 0; i < active; i++)
        f->active[i] = i;
    for (;;) {
        pour(f, active, row_count);
        const uint32_t out = too_short(f, run_min);
        uint32_t used = 0;
        for (uint32_t i = 0; i < f->count; i++)
            if (f->runs[i].row_count != 0 && i != out) f->active[used++] = i;
        if (out == f->count || used == 0) break;
        active = used;
    }
    for (uint32_t i = 0; i < f->count; i++)
        f->worker_rows[f->runs[i].worker] += f->runs[i].row_count;
}

/* The runs of every expert, empty; experts with one host are done at once.  Returns how many have
 * to be split. */
static uint32_t
list_runs(replica_choice *c, const placement *p, uint32_t layer, const uint32_t *row_counts,
          uint64_t *worker_rows)
{
    uint32_t splits = 0, runs = 0;
    for (uint32_t e = 0; e < p->num_experts; e++) {
        uint32_t count;
        const uint32_t *hosts = placement_hosts(p, layer, e, &count);
        c->run_first[e] = runs;
        if (row_counts[e] == 0 || count == 0) continue;
        for (uint32_t i = 0; i < count; i++)
            c->runs[runs + i] = (dispatch_run){.worker = hosts[i]};
        if (count == 1) {
            c->runs[runs].row_count = row_counts[e];
            worker_rows[hosts[0]] += row_counts[e];
        } else {
            c->split[splits++] = e;
        }
        runs += count;
    }
    c->run_first[p->num_experts] = runs;
    return splits;
}

dispatch_split
replica_choice_run(replica_choice *c, const placement *p, uint32_t layer,
                   const uint32_t *row_counts, const uint32_t *speeds, uint64_t *worker_rows)
{
    assert(p->num_experts <= c->num_experts && p->worker_count <= c->worker_max &&
           p->slot_count <= c->slot_max);
    fill f = {.speeds = speeds, .worker_rows = worker_rows, .active = c->active};
    const uint32_t splits = list_runs(c, p, layer, row_counts, worker_rows);
    for (uint32_t pass = 0; pass <= REFILLS; pass++) {
        for (uint32_t i = 0; i < splits; i++) {
            const uint32_t e = c->split[i];
            f.runs = c->runs + c->run_first[e];
            f.count = c->run_first[e + 1] - c->run_first[e];
            for (uint32_t r = 0; r < f.count; r++)
                worker_rows[f.runs[r].worker] -= f.runs[r].row_count;
            fill_expert(&f, row_counts[e], c->run_min);
        }
    }
    return (dispatch_split){.run_first = c->run_first, .runs = c->runs};
}
