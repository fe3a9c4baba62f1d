/* Rows to the workers and back, and what happens when one is lost on the way. */
#include <string.h>

#include "common/clock.h"
#include "exchange/message_trace.h"
#include "router/transformer_impl.h"

static uint32_t
link_of(const expert_fleet *fleet, uint32_t worker)
{
    return fleet->links != NULL ? fleet->links[worker] : worker;
}

/* Which worker gets which rows: with EP, of an expert's replicas those that make all workers finish
 * together. */
static moe_err
plan_rows(transformer *tf, const expert_fleet *fleet, const micro_batch *mb, uint32_t layer)
{
    const size_t first = (size_t)mb->first * tf->config.top_k;
    const uint32_t *ids = tf->topk_ids + first;
    if (fleet->mode == WIRE_TP)
        return dispatch_plan_build(mb->plan, WIRE_TP, NULL, fleet->worker_count, ids,
                                   tf->topk_weights + first, mb->count);
    const moe_err err = dispatch_plan_count(mb->plan, ids, mb->count, tf->expert_rows);
    if (err) return err;
    memset(tf->worker_rows, 0, fleet->worker_count * sizeof *tf->worker_rows);
    const dispatch_split split =
        replica_choice_run(tf->choice, fleet->placement, layer, tf->expert_rows,
                           fleet->placement->speeds, tf->worker_rows);
    return dispatch_plan_build_split(mb->plan, &split, fleet->worker_count, ids, mb->count);
}

moe_err
expert_dispatch(transformer *tf, const expert_fleet *fleet, uint32_t m, uint64_t step,
                uint32_t *lost, errbuf *eb)
{
    micro_batch *mb = &tf->batches[m];
    moe_err err = plan_rows(tf, fleet, mb, mb->layer);
    if (err)
        return err_set(eb, err, "layer %u: no dispatch plan (%s)", mb->layer, moe_err_name(err));
    const wire_hdr hdr = {.epoch = fleet->epoch,
                          .step = step,
                          .layer = mb->layer,
                          .micro_batch = m,
                          .attempt = mb->attempt,
                          .mode = fleet->mode,
                          .token_count = mb->count};
    mb->pending = true;
    const exchange_limits limits = transformer_exchange_limits(tf);
    for (uint32_t worker = 0; worker < fleet->worker_count; worker++) {
        const dispatch_list list = dispatch_plan_list(mb->plan, worker);
        if (list.row_count == 0) continue; /* it may be lost */
        if (tf->phases->on) {
            wire_hdr sent = hdr;
            sent.row_count = list.row_count;
            message_trace(tf->phases, TRACE_DISPATCH_SENT, &sent, worker,
                          exchange_row_bytes(&limits), clock_now_ns());
        }
        err = router_end_post(fleet->exchange, link_of(fleet, worker), &hdr, &list);
        if (err) {
            *lost = link_of(fleet, worker);
            return err_set(eb, err, "worker %u: can't send layer %u (%s)", worker, mb->layer,
                           moe_err_name(err));
        }
    }
    return MOE_OK;
}

void
expert_settle(const expert_fleet *fleet)
{
    const uint64_t deadline = clock_now_ns() + fleet->timeout_ms * NS_PER_MS;
    uint32_t silent;
    while (router_end_settle(fleet->exchange, deadline, &silent) != MOE_OK) {
        router_end_give_up(fleet->exchange, silent);
    }
}

moe_err
expert_resend(transformer *tf, const expert_fleet *fleet, uint64_t step, moe_err err,
              step_times *times, uint32_t *lost, errbuf *eb)
{
    for (uint32_t tries = 0; err != MOE_OK && tries < fleet->worker_count; tries++) {
        const bool is_loss = err == MOE_ETIMEDOUT || err == MOE_ECLOSED || err == MOE_EINTERNAL;
        if (!is_loss || fleet->on_lost == NULL) return err;
        /* One that was too late is not waited for a second time. */
        router_end_give_up(fleet->exchange, *lost);
        if (!fleet->on_lost(fleet->user, *lost)) return err;
        expert_settle(fleet);
        times->resends++;
        err = MOE_OK;
        for (uint32_t m = 0; m < tf->batch_count && !err; m++) {
            if (!tf->batches[m].pending) continue;
            tf->batches[m].attempt++;
            err = expert_dispatch(tf, fleet, m, step, lost, eb);
        }
    }
    return err;
}

/* EP: x += the weighted sum of the experts' rows, in top-k order. */
static void
combine_ep_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const expert_fleet *fleet = tf->job.fleet;
    const micro_batch *mb = &tf->batches[tf->job.micro_batch];
    const uint32_t k = tf->config.top_k, h = tf->config.hidden_size;
    const size_t stride = round_up_u32(h, TILE_N);
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const float *rows[MODEL_TOPK_MAX];
        for (uint32_t j = 0; j < k; j++) {
            uint32_t worker, row;
            dispatch_plan_home(mb->plan, (t - mb->first) * k + j, &worker, &row);
            rows[j] =
                router_end_result(fleet->exchange, worker, tf->job.micro_batch) + row * stride;
        }
        tf->kernels->combine(tf->x + (size_t)t * h, rows, tf->topk_weights + (size_t)t * k, k, h);
    }
}

/* TP: x += the slices' partial rows, added in their order, whoever has them. */
static void
combine_tp_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    transformer *tf = arg;
    const expert_fleet *fleet = tf->job.fleet;
    const micro_batch *mb = &tf->batches[tf->job.micro_batch];
    const uint32_t h = tf->config.hidden_size;
    const size_t stride = round_up_u32(h, TILE_N);
    uint32_t begin, end;
    transformer_job_rows(tf, item, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *sum = tf->proj + t * tf->hidden_stride;
        for (uint32_t w = 0; w < fleet->worker_count; w++) {
            const float *part =
                router_end_result(fleet->exchange, link_of(fleet, w), tf->job.micro_batch) +
                (t - mb->first) * stride;
            if (w == 0)
                memcpy(sum, part, h * sizeof *sum);
            else
                tf->kernels->row_add(sum, part, h);
        }
        tf->kernels->row_add(tf->x + (size_t)t * h, sum, h);
    }
}

static void
probe_rows(const transformer *tf, const micro_batch *mb, uint32_t layer)
{
    const transformer_probe *p = tf->job.probe;
    const uint32_t k = tf->config.top_k, h = tf->config.hidden_size;
    if (p == NULL) return;
    for (uint32_t t = mb->first; t < mb->first + mb->count; t++) {
        const size_t row = (size_t)layer * tf->job.step_rows + tf->row_index[t];
        if (p->gate_ids)
            memcpy(p->gate_ids + row * k, tf->topk_ids + (size_t)t * k, k * sizeof(uint32_t));
        if (p->gate_weights)
            memcpy(p->gate_weights + row * k, tf->topk_weights + (size_t)t * k, k * sizeof(float));
        if (p->hidden) memcpy(p->hidden + row * h, tf->x + (size_t)t * h, h * sizeof(float));
    }
}

static void
trace_results(transformer *tf, const expert_fleet *fleet, uint32_t m, uint64_t now)
{
    if (!tf->phases->on) return;
    const exchange_limits limits = transformer_exchange_limits(tf);
    for (uint32_t worker = 0; worker < fleet->worker_count; worker++) {
        const dispatch_list list = dispatch_plan_list(tf->batches[m].plan, worker);
        const wire_hdr *h = list.row_count
                                ? router_end_result_hdr(fleet->exchange, link_of(fleet, worker), m)
                                : NULL;
        if (h != NULL)
            message_trace(tf->phases, TRACE_RESULT_RECEIVED, h, worker,
                          exchange_result_stride(&limits) * sizeof(float), now);
    }
}

static void
add_to(_Atomic uint64_t *count, uint64_t more)
{
    const uint64_t now = atomic_load_explicit(count, memory_order_relaxed); /* nobody else adds */
    atomic_store_explicit(count, now + more, memory_order_relaxed);
}

/* All results are there; the step had waited for them since start_ns. */
static void
count_results(transformer *tf, const expert_fleet *fleet, uint32_t m, uint64_t start_ns)
{
    for (uint32_t worker = 0; worker < fleet->worker_count; worker++) {
        const uint32_t rows = dispatch_plan_list(tf->batches[m].plan, worker).row_count;
        const wire_hdr *h = rows ? router_end_result_hdr(fleet->exchange, worker, m) : NULL;
        if (h == NULL) continue;
        const uint64_t at = router_end_result_ns(fleet->exchange, worker, m);
        add_to(&tf->loads[worker].rows, rows);
        add_to(&tf->loads[worker].busy_ns, h->busy_ns);
        if (at > start_ns) add_to(&tf->loads[worker].wait_ns, at - start_ns);
    }
}

worker_load
transformer_worker_load(const transformer *tf, uint32_t worker)
{
    const load_counts *c = &tf->loads[worker];
    return (worker_load){atomic_load_explicit(&c->rows, memory_order_relaxed),
                         atomic_load_explicit(&c->busy_ns, memory_order_relaxed),
                         atomic_load_explicit(&c->wait_ns, memory_order_relaxed)};
}

moe_err
expert_combine(transformer *tf, const expert_fleet *fleet, uint32_t m, uint32_t layer,
               uint64_t step, step_times *times, uint32_t *lost, errbuf *eb)
{
    micro_batch *mb = &tf->batches[m];
    if (mb->count == 0) return MOE_OK;
    phases_set_place(tf->phases, step, layer, m, mb->count);
    phase_enter(tf->phases, PHASE_WAIT);
    const uint64_t start = clock_now_ns();
    for (uint64_t since = start;; since = clock_now_ns()) {
        moe_err err =
            router_end_wait(fleet->exchange, m, since + fleet->timeout_ms * NS_PER_MS, lost, eb);
        if (err == MOE_OK) break;
        err_wrap(eb, err, "worker %u, layer %u", *lost, layer);
        err = expert_resend(tf, fleet, step, err, times, lost, eb);
        if (err) return err;
    }
    const uint64_t end = clock_now_ns();
    times->expert_wait_ns += end - start;
    mb->pending = false;
    count_results(tf, fleet, m, start);
    trace_results(tf, fleet, m, end);

    phase_enter(tf->phases, PHASE_COMBINE);
    tf->job.micro_batch = m;
    tf->job.fleet = fleet;
    transformer_run_rows(tf, fleet->mode == WIRE_EP ? combine_ep_item : combine_tp_item, mb->first,
                         mb->count, 4u * tf->config.top_k * tf->config.hidden_size);
    probe_rows(tf, mb, layer);
    return MOE_OK;
}
