#include "expert_worker/ffn.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One item's tiles: 64 features, so that a later fused quantization has whole groups. */
#define PAIRS_PER_ITEM (GROUP_K / TILE_N)
/* Of a phase: the more, the less a thread waits for the others at its end. */
#define ITEMS_PER_THREAD 16
/* Below this many multiply-adds a phase is not worth waking other threads for. */
#define PARALLEL_MIN 500000u

/* The rows of one expert in one view. */
typedef struct span {
    const dispatch_view *view;
    const char *slot;
    uint32_t expert;
    uint32_t first; /* of the view's row slots */
    uint32_t count;
    uint32_t scratch_row; /* where its rows begin in the scratch */
} span;

struct ffn {
    const kernel_table *kernels;
    pool *pool;
    expert_layout layout;
    uint32_t width; /* I' */
    uint32_t row_max, view_max, num_experts;
    size_t hidden_stride; /* floats between rows of `hidden` */
    size_t act_stride;    /* bytes between rows of `act` */
    size_t down_stride;   /* floats between rows of `down` */
    float *hidden;        /* [row_max][hidden_stride]: silu(gate) * up; padding stays zero */
    char *act;            /* [row_max][act_stride]: the same, as activation rows; int8 only */
    float *down;          /* [row_max][down_stride]: TP only, rows before they are weighted */
    uint32_t *tokens;     /* [row_max]: token of each scratch row */
    uint32_t *place_of;   /* [row_max]: TP: scratch row of each row slot of a view */
    span *spans;          /* [view_max * num_experts] */
    uint32_t span_count;
    uint32_t row_count;
    uint32_t chunks; /* of tiles, in the phase being run */
    phases *phases;
};

const char *const ffn_phase_names[FFN_PHASES] = {"idle", "group",  "gate_up", "pack",
                                                 "down", "reduce", "reply"};

static void *
aligned_zero(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (p != NULL) memset(p, 0, (bytes + 63) / 64 * 64 + 64);
    return p;
}

moe_err
ffn_create(ffn **out, const kernel_table *kernels, pool *p, const expert_layout *layout,
           uint32_t row_max, uint32_t view_max, uint32_t num_experts)
{
    *out = NULL;
    ffn *f = calloc(1, sizeof *f);
    if (f == NULL) return MOE_ENOMEM;
    *f = (ffn){.kernels = kernels,
               .pool = p,
               .layout = *layout,
               .width = layout->width_end - layout->width_begin,
               .row_max = row_max,
               .view_max = view_max,
               .num_experts = num_experts};
    f->phases = &phases_off;
    f->hidden_stride = pad_k(f->width);
    f->act_stride = act_row_bytes(layout->dtype, f->width);
    f->down_stride = round_up_u32(layout->hidden, TILE_N);
    f->hidden = aligned_zero(row_max * f->hidden_stride * sizeof(float));
    f->act = aligned_zero(act_is_int8(layout->dtype) ? row_max * f->act_stride : 0);
    f->down = aligned_zero(row_max * f->down_stride * sizeof(float));
    f->tokens = malloc(row_max * sizeof *f->tokens);
    f->place_of = malloc(row_max * sizeof *f->place_of);
    f->spans = malloc((size_t)view_max * num_experts * sizeof *f->spans);
    if (!f->hidden || !f->act || !f->down || !f->tokens || !f->place_of || !f->spans) {
        ffn_free(f);
        return MOE_ENOMEM;
    }
    *out = f;
    return MOE_OK;
}

void
ffn_free(ffn *f)
{
    if (f == NULL) return;
    free(f->hidden);
    free(f->act);
    free(f->down);
    free(f->tokens);
    free(f->place_of);
    free(f->spans);
    free(f);
}

void
ffn_set_phases(ffn *f, phases *p)
{
    f->phases = p != NULL ? p : &phases_off;
}

uint32_t
ffn_group(const ffn *f, const dispatch_view *views, uint32_t count)
{
    uint32_t n = 1;
    uint64_t rows = views[0].hdr.row_count;
    while (n < count && n < f->view_max && views[n].hdr.layer == views[0].hdr.layer &&
           views[n].part == views[0].part && rows + views[n].hdr.row_count <= f->row_max) {
        rows += views[n++].hdr.row_count;
    }
    return n;
}

/* An expert's rows from several dispatches side by side: its weights are still in the cache. */
static int
compare_spans(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->expert != y->expert) return x->expert < y->expert ? -1 : 1;
    return x->scratch_row < y->scratch_row ? -1 : x->scratch_row > y->scratch_row;
}

static uint32_t
collect_spans(ffn *f, const expert_store *store, const dispatch_view *views, uint32_t count)
{
    f->span_count = f->row_count = 0;
    for (uint32_t v = 0; v < count; v++) {
        const dispatch_view *view = &views[v];
        uint32_t first = 0;
        for (uint32_t e = 0; e < view->hdr.expert_count; e++) {
            const wire_expert *x = &view->experts[e];
            const char *slot = expert_store_slot(store, view->hdr.layer, x->expert);
            if (slot == NULL) return WIRE_STATUS_NOT_HOSTED;
            f->spans[f->span_count++] = (span){.view = view,
                                               .slot = slot,
                                               .expert = x->expert,
                                               .first = first,
                                               .count = x->row_count,
                                               .scratch_row = f->row_count + first};
            first += x->row_count;
        }
        for (uint32_t r = 0; r < view->hdr.row_count; r++) {
            f->tokens[f->row_count + r] = view->row_slots[r] / view->top_k;
        }
        f->row_count += view->hdr.row_count;
    }
    qsort(f->spans, f->span_count, sizeof *f->spans, compare_spans);
    return WIRE_STATUS_OK;
}

static void
gate_up_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    ffn *f = arg;
    const span *s = &f->spans[item / f->chunks];
    const uint32_t pairs = tile_count(f->width), per = (pairs + f->chunks - 1) / f->chunks;
    const uint32_t begin = item % f->chunks * per, end = begin + per < pairs ? begin + per : pairs;
    if (begin >= end) return;
    const gemm_args args = {.w = s->slot,
                            .k = f->layout.hidden,
                            .tile_begin = 2 * begin,
                            .tile_end = 2 * end,
                            .a = s->view->rows,
                            .a_stride = s->view->row_bytes,
                            .rows = f->tokens + s->scratch_row,
                            .m = s->count,
                            .out = f->hidden + s->scratch_row * f->hidden_stride,
                            .out_stride = f->hidden_stride};
    f->kernels->gemm_silu[f->layout.dtype](&args);
}

static void
pack_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    ffn *f = arg;
    f->kernels->act_pack(f->layout.dtype, f->hidden + item * f->hidden_stride, f->width,
                         f->act + item * f->act_stride);
}

static void
down_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    ffn *f = arg;
    const span *s = &f->spans[item / f->chunks];
    const uint32_t tiles = tile_count(f->layout.hidden), per = (tiles + f->chunks - 1) / f->chunks;
    const uint32_t begin = item % f->chunks * per, end = begin + per < tiles ? begin + per : tiles;
    if (begin >= end) return;
    const bool int8 = act_is_int8(f->layout.dtype);
    const bool ep = s->view->hdr.mode == WIRE_EP;
    const gemm_args args = {
        .w = s->slot + f->layout.gate_up_bytes,
        .k = f->width,
        .tile_begin = begin,
        .tile_end = end,
        .a = int8 ? (const void *)(f->act + s->scratch_row * f->act_stride)
                  : (const void *)(f->hidden + s->scratch_row * f->hidden_stride),
        .a_stride = int8 ? f->act_stride : f->hidden_stride * sizeof(float),
        .m = s->count,
        .out = ep ? s->view->results + s->first * s->view->result_stride
                  : f->down + s->scratch_row * f->down_stride,
        .out_stride = ep ? s->view->result_stride : f->down_stride};
    f->kernels->gemm[f->layout.dtype](&args);
}

/* TP: one row per token: this worker's partial rows, weighted and added in top-k order. */
static void
reduce_view(ffn *f, const dispatch_view *view, uint32_t first_row)
{
    const uint32_t k = view->top_k, hidden = f->layout.hidden;
    for (uint32_t r = 0; r < view->hdr.row_count; r++) {
        f->place_of[view->row_slots[r]] = r;
    }
    for (uint32_t t = 0; t < view->hdr.token_count; t++) {
        const float *rows[MODEL_TOPK_MAX];
        float weights[MODEL_TOPK_MAX];
        for (uint32_t j = 0; j < k; j++) {
            const uint32_t r = f->place_of[t * k + j];
            rows[j] = f->down + (first_row + r) * f->down_stride;
            weights[j] = view->weights[r];
        }
        float *out = view->results + t * view->result_stride;
        memset(out, 0, hidden * sizeof *out);
        f->kernels->combine(out, rows, weights, k, hidden);
    }
}

/* Tile ranges per expert: enough items for all threads to end together, few enough that rows are
 * staged for many tiles at once (gemm_blocks.h), none thinner than PAIRS_PER_ITEM tiles. */
static uint32_t
choose_chunks(const ffn *f, uint32_t tiles)
{
    const uint64_t work = (uint64_t)f->row_count * f->layout.hidden * f->width;
    const uint32_t threads = pool_size(f->pool);
    if (work < PARALLEL_MIN || threads == 1) return 1;
    const uint32_t most = (tiles + PAIRS_PER_ITEM - 1) / PAIRS_PER_ITEM;
    const uint32_t want = (ITEMS_PER_THREAD * threads + f->span_count - 1) / f->span_count;
    return most < want ? most : want;
}

static void
run_phase(ffn *f, pool_fn *fn, uint32_t items, bool parallel)
{
    if (parallel) {
        pool_run(f->pool, fn, f, items);
    } else {
        for (uint32_t i = 0; i < items; i++) {
            fn(f, i, 0);
        }
    }
}

uint32_t
ffn_run(ffn *f, const expert_store *store, const dispatch_view *views, uint32_t count)
{
    phase_enter(f->phases, FFN_GROUP);
    const uint32_t status = collect_spans(f, store, views, count);
    if (status != WIRE_STATUS_OK) return status;
    assert(f->row_count <= f->row_max);

    if (f->width == 0) { /* an empty slice adds nothing */
        for (uint32_t v = 0; v < count; v++) {
            memset(views[v].results, 0,
                   views[v].hdr.token_count * views[v].result_stride * sizeof(float));
        }
        return WIRE_STATUS_OK;
    }
    f->chunks = choose_chunks(f, tile_count(f->width));
    const bool parallel =
        f->chunks > 1 || (uint64_t)f->row_count * f->layout.hidden * f->width >= PARALLEL_MIN;
    phase_enter(f->phases, FFN_GATE_UP);
    run_phase(f, gate_up_item, f->span_count * f->chunks, parallel);
    phase_enter(f->phases, FFN_PACK);
    if (act_is_int8(f->layout.dtype)) run_phase(f, pack_item, f->row_count, parallel);
    phase_enter(f->phases, FFN_DOWN);
    f->chunks = choose_chunks(f, tile_count(f->layout.hidden));
    run_phase(f, down_item, f->span_count * f->chunks, parallel);

    phase_enter(f->phases, FFN_REDUCE);
    uint32_t first_row = 0;
    for (uint32_t v = 0; v < count; v++) {
        if (views[v].hdr.mode == WIRE_TP) reduce_view(f, &views[v], first_row);
        first_row += views[v].hdr.row_count;
    }
    return WIRE_STATUS_OK;
}
