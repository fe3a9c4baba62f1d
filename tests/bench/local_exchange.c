#include "tests/bench/local_exchange.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct router_end {
    exchange_limits limits;
    const expert_store *store;
    ffn *ffn;
    char *rows;
    float *results;
    size_t rows_bytes, results_bytes;
    dispatch_view view;
    wire_hdr answer;
    bool posted, answered;
};

static void *
map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

moe_err
local_exchange_create(router_end **out, const exchange_limits *limits, const expert_store *store,
                      ffn *f, errbuf *eb)
{
    *out = NULL;
    if (limits->micro_batch_max != 1)
        return err_set(eb, MOE_EUNSUPPORTED, "one process works on one micro-batch");
    router_end *re = calloc(1, sizeof *re);
    if (re == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    re->limits = *limits;
    re->store = store;
    re->ffn = f;
    re->rows_bytes = limits->token_max * exchange_row_bytes(limits);
    re->results_bytes = exchange_slot_max(limits) * exchange_result_stride(limits) * sizeof(float);
    re->rows = map(re->rows_bytes);
    re->results = map(re->results_bytes);
    if (re->rows == NULL || re->results == NULL) {
        router_end_free(re);
        return err_set(eb, MOE_ENOMEM, "no memory for the rows of a step");
    }
    *out = re;
    return MOE_OK;
}

void
router_end_free(router_end *re)
{
    if (re == NULL) return;
    if (re->rows != NULL) munmap(re->rows, re->rows_bytes);
    if (re->results != NULL) munmap(re->results, re->results_bytes);
    free(re);
}

void *
router_end_rows(router_end *re, uint32_t micro_batch)
{
    (void)micro_batch;
    return re->rows;
}

moe_err
router_end_post(router_end *re, uint32_t worker, const wire_hdr *h, const dispatch_list *list)
{
    (void)worker;
    re->answered = false;
    re->posted = list->row_count > 0;
    re->view = (dispatch_view){.hdr = *h,
                               .experts = list->experts,
                               .row_slots = list->row_slots,
                               .weights = list->weights,
                               .rows = re->rows,
                               .row_bytes = exchange_row_bytes(&re->limits),
                               .results = re->results,
                               .result_stride = exchange_result_stride(&re->limits),
                               .top_k = re->limits.top_k};
    re->view.hdr.row_count = list->row_count;
    re->view.hdr.expert_count = list->expert_count;
    return MOE_OK;
}

/* The work is done here, where the router waits for its workers, so that the time counts as that.
 */
moe_err
router_end_wait(router_end *re, uint32_t micro_batch, uint64_t deadline_ns, uint32_t *missing,
                errbuf *eb)
{
    (void)micro_batch, (void)deadline_ns;
    *missing = 0;
    if (!re->posted) return MOE_OK;
    re->posted = false;
    const uint32_t status = ffn_run(re->ffn, re->store, &re->view, 1);
    if (status != WIRE_STATUS_OK)
        return err_set(eb, MOE_EINTERNAL, "the experts refused a dispatch (status %u)", status);
    re->answer = re->view.hdr;
    re->answered = true;
    return MOE_OK;
}

const float *
router_end_result(router_end *re, uint32_t worker, uint32_t micro_batch)
{
    (void)worker, (void)micro_batch;
    return re->answered ? re->results : NULL;
}

const wire_hdr *
router_end_result_hdr(router_end *re, uint32_t worker, uint32_t micro_batch)
{
    (void)worker, (void)micro_batch;
    return re->answered ? &re->answer : NULL;
}

uint64_t
router_end_result_ns(const router_end *re, uint32_t worker, uint32_t micro_batch)
{
    (void)re, (void)worker, (void)micro_batch;
    return 0;
}

/* ---- what a single process has no use for ---- */

moe_err
router_end_settle(router_end *re, uint64_t deadline_ns, uint32_t *missing)
{
    (void)deadline_ns, (void)missing;
    re->posted = false;
    return MOE_OK;
}

moe_err
router_end_create(router_end **out, const exchange_limits *limits, const char *run,
                  uint32_t router_id, uint64_t incarnation, errbuf *eb)
{
    (void)limits, (void)run, (void)router_id, (void)incarnation;
    *out = NULL;
    return err_set(eb, MOE_EUNSUPPORTED, "this program has no exchange");
}

moe_err
router_end_prepare(router_end *re, uint32_t worker, uint64_t worker_incarnation,
                   exchange_backend backend, attach_offer *out, errbuf *eb)
{
    (void)re, (void)worker, (void)worker_incarnation, (void)backend;
    memset(out, 0, sizeof *out);
    return err_set(eb, MOE_EUNSUPPORTED, "this program has no exchange");
}

moe_err
router_end_complete(router_end *re, uint32_t worker, const attach_answer *answer,
                    uint32_t timeout_ms, errbuf *eb)
{
    (void)re, (void)worker, (void)answer, (void)timeout_ms;
    return err_set(eb, MOE_EUNSUPPORTED, "this program has no exchange");
}

void
router_end_give_up(router_end *re, uint32_t worker)
{
    (void)re, (void)worker;
}

void
router_end_drop(router_end *re, uint32_t worker)
{
    (void)re, (void)worker;
}
