#include "model/pack_plan.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Source bytes of one work item, about. */
#define PIECE_BYTES ((size_t)4 << 20)

typedef struct matrix {
    char *dst;
    moe_dtype dtype;
    const tensor_view *t, *up; /* up: gate and up interleaved by tile; else NULL */
    uint32_t row_begin, row_end, col_begin, col_end;
    uint32_t rows_per_piece; /* whole tiles */
    uint32_t first_piece;
} matrix;

struct pack_plan {
    uint32_t matrix_max, count;
    uint32_t piece_count;
    uint64_t source_bytes;
    matrix matrices[];
};

typedef struct piece {
    const matrix *m;
    uint32_t row_begin, row_end;
} piece;

typedef struct run_job {
    const pack_plan *plan;
    uint32_t threads;
    const _Atomic bool *cancel;
    _Atomic uint32_t failed; /* the first matrix that could not be packed; UINT32_MAX = none */
} run_job;

moe_err
pack_plan_create(pack_plan **out, uint32_t matrix_max)
{
    *out = NULL;
    pack_plan *plan = calloc(1, sizeof *plan + (size_t)matrix_max * sizeof plan->matrices[0]);
    if (plan == NULL) return MOE_ENOMEM;
    plan->matrix_max = matrix_max;
    *out = plan;
    return MOE_OK;
}

void
pack_plan_free(pack_plan *plan)
{
    free(plan);
}

static void
add(pack_plan *plan, matrix m)
{
    assert(plan->count < plan->matrix_max);
    const size_t row_bytes = m.t->bytes / m.t->shape[0] * (m.up != NULL ? 2 : 1);
    const size_t tiles = PIECE_BYTES / (row_bytes * TILE_N);
    const uint32_t rows = m.row_end - m.row_begin;
    m.rows_per_piece = tiles == 0               ? TILE_N
                       : tiles * TILE_N >= rows ? round_up_u32(rows, TILE_N)
                                                : (uint32_t)tiles * TILE_N;
    m.first_piece = plan->piece_count;
    if (rows != 0) plan->piece_count += (rows + m.rows_per_piece - 1) / m.rows_per_piece;
    plan->source_bytes += row_bytes * rows;
    plan->matrices[plan->count++] = m;
}

void
pack_plan_add_matrix(pack_plan *plan, void *dst, moe_dtype dtype, const tensor_view *t,
                     uint32_t row_begin, uint32_t row_end, uint32_t col_begin, uint32_t col_end)
{
    add(plan, (matrix){.dst = dst,
                       .dtype = dtype,
                       .t = t,
                       .row_begin = row_begin,
                       .row_end = row_end,
                       .col_begin = col_begin,
                       .col_end = col_end});
}

void
pack_plan_add_expert(pack_plan *plan, void *slot, const expert_layout *layout, const checkpoint *c,
                     uint32_t layer, uint32_t expert)
{
    add(plan, (matrix){.dst = slot,
                       .dtype = layout->dtype,
                       .t = checkpoint_tensor(c, TENSOR_W1, layer, expert),
                       .up = checkpoint_tensor(c, TENSOR_W3, layer, expert),
                       .row_begin = layout->width_begin,
                       .row_end = layout->width_end,
                       .col_end = layout->hidden});
    pack_plan_add_matrix(plan, (char *)slot + layout->gate_up_bytes, layout->dtype,
                         checkpoint_tensor(c, TENSOR_W2, layer, expert), 0, layout->hidden,
                         layout->width_begin, layout->width_end);
}

/* The matrix that holds the piece: the last one that begins at or before it.  Empty matrices begin
 * where the next one does, and so are passed over. */
static piece
find_piece(const pack_plan *plan, uint32_t index)
{
    uint32_t low = 0, high = plan->count - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low + 1) / 2;
        if (plan->matrices[middle].first_piece <= index)
            low = middle;
        else
            high = middle - 1;
    }
    const matrix *m = &plan->matrices[low];
    piece p = {.m = m, .row_begin = m->row_begin + (index - m->first_piece) * m->rows_per_piece};
    const uint32_t left = m->row_end - p.row_begin;
    p.row_end = p.row_begin + (left < m->rows_per_piece ? left : m->rows_per_piece);
    return p;
}

static moe_err
pack_piece(const piece *p)
{
    const matrix *m = p->m;
    const size_t tile = tile_bytes(m->dtype, m->col_end - m->col_begin);
    const size_t tiles = (p->row_begin - m->row_begin) / TILE_N;
    if (m->up != NULL)
        return pack_gate_up(m->dst + 2 * tiles * tile, m->dtype, m->t, m->up, p->row_begin,
                            p->row_end);
    return pack_matrix(m->dst + tiles * tile, m->dtype, m->t, p->row_begin, p->row_end,
                       m->col_begin, m->col_end);
}

static void
will_read(const pack_plan *plan, uint32_t index)
{
    if (index >= plan->piece_count) return;
    const piece p = find_piece(plan, index);
    tensor_will_read(p.m->t, p.row_begin, p.row_end);
    if (p.m->up != NULL) tensor_will_read(p.m->up, p.row_begin, p.row_end);
}

static void
was_read(const piece *p)
{
    tensor_was_read(p->m->t, p->row_begin, p->row_end);
    if (p->m->up != NULL) tensor_was_read(p->m->up, p->row_begin, p->row_end);
}

static void
note_failure(run_job *job, uint32_t matrix_index)
{
    uint32_t first = atomic_load(&job->failed);
    while (matrix_index < first &&
           !atomic_compare_exchange_weak(&job->failed, &first, matrix_index)) {
    }
}

static void
run_piece(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    run_job *job = arg;
    if (job->cancel != NULL && atomic_load_explicit(job->cancel, memory_order_relaxed)) return;
    /* Pieces are taken in order: the one that follows those now being packed is read meanwhile. */
    if (item < job->threads) will_read(job->plan, item);
    will_read(job->plan, item + job->threads);
    const piece p = find_piece(job->plan, item);
    if (pack_piece(&p)) note_failure(job, (uint32_t)(p.m - job->plan->matrices));
    was_read(&p);
}

static bool
all_finite(const tensor_view *t)
{
    const size_t count = t->bytes / (t->dtype == TENSOR_F32 ? 4 : 2);
    float w[256];
    for (size_t i = 0; i < count; i += 256) {
        const size_t n = count - i < 256 ? count - i : 256;
        tensor_read_f32(t, i, n, w);
        for (size_t k = 0; k < n; k++) {
            if (!isfinite(w[k])) return false;
        }
    }
    return true;
}

/* A gate/up pair has two tensors: name the one that is to blame. */
static moe_err
blame(const matrix *m, errbuf *eb)
{
    const tensor_view *t = m->up != NULL && all_finite(m->t) ? m->up : m->t;
    return err_set(eb, MOE_EINVAL, "%s: tensor %s: a weight is not finite", t->file, t->name);
}

moe_err
pack_plan_run(pack_plan *plan, pool *p, const _Atomic bool *cancel, errbuf *eb)
{
    if (plan->piece_count == 0) return MOE_OK;
    run_job job = {.plan = plan, .threads = pool_size(p), .cancel = cancel, .failed = UINT32_MAX};
    pool_run(p, run_piece, &job, plan->piece_count);
    if (cancel != NULL && atomic_load(cancel))
        return err_set(eb, MOE_ECLOSED, "the load was given up: this process is stopping");
    const uint32_t failed = atomic_load(&job.failed);
    return failed == UINT32_MAX ? MOE_OK : blame(&plan->matrices[failed], eb);
}

uint64_t
pack_plan_source_bytes(const pack_plan *plan)
{
    return plan->source_bytes;
}
