#include "loadgen/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "loadgen/client.h"
#include "loadgen/progress.h"

moe_err
target_open(target *t, const options *o, const volatile sig_atomic_t *stop, errbuf *eb)
{
    *t = (target){.o = o, .stop = stop};
    moe_err err = server_open(&t->srv, o->base_url, o->api_key, eb);
    if (!err && o->model == NULL) err = server_get_model(t->srv, &t->served_model, eb);
    if (err) return err;
    t->model = o->model ? o->model : t->served_model;
    /* Not every server has it, and the load does not need it. */
    if (server_get_version(t->srv, &t->server_json, NULL)) t->server_json = NULL;
    return MOE_OK;
}

void
target_close(target *t)
{
    server_close(t->srv);
    free(t->served_model);
    free(t->server_json);
    *t = (target){0};
}

run_plan
run_plan_of(const options *o, uint32_t repeat)
{
    run_plan plan = {
        .count = o->prompt_count,
        .warmup_count = o->warmup_count,
        .seed = o->seed + repeat,
        .arrivals = o->arrivals,
        .concurrency_max = o->concurrency_max,
        .repeat = repeat,
        .check_determinism = o->check_determinism,
        .show_progress = o->show_progress,
        .chaos = o->chaos.count > 0 ? &o->chaos : NULL,
    };
    plan.arrivals.seed = plan.seed;
    return plan;
}

/* ---- before ---- */

static moe_err
count_tokens(void *ctx, const char *text, int64_t *count, errbuf *eb)
{
    const target *t = ctx;
    return server_count_tokens(t->srv, t->model, text, count, eb);
}

static moe_err
load_prompts(const target *t, run *r, errbuf *eb)
{
    target copy = *t;
    dataset_config config = t->o->data;
    config.count = r->plan.count + r->plan.warmup_count;
    config.seed = r->plan.seed;
    config.count_tokens = count_tokens;
    config.count_ctx = &copy;
    const moe_err err = dataset_load(&config, &r->data, eb);
    if (!err && r->data.repeated && r->plan.repeat == 0)
        fprintf(stderr, "warning: %s has too few usable entries: %zu prompts are repetitions\n",
                config.path, r->data.repeated);
    return err;
}

/* Sessions arrive, not requests: a later turn has no arrival of its own. */
static moe_err
plan_arrivals(run *r, errbuf *eb)
{
    const prompt *prompts = r->data.prompts;
    const size_t count = r->plan.count;
    size_t roots = 0;
    for (size_t i = 0; i < count; i++) {
        roots += i == 0 || prompts[i].turn == 0;
    }
    uint64_t *at_ns = NULL;
    if (!r->data.timed) {
        const moe_err err = arrivals_build(&r->plan.arrivals, roots, &at_ns, eb);
        if (err) return err;
        if (roots == count) {
            r->arrivals_ns = at_ns;
            return MOE_OK;
        }
    }
    r->arrivals_ns = calloc(count + 1, sizeof *r->arrivals_ns);
    for (size_t i = 0, root = 0; r->arrivals_ns != NULL && i < count; i++) {
        if (r->data.timed)
            r->arrivals_ns[i] = prompts[i].arrival_ns;
        else if (i == 0 || prompts[i].turn == 0)
            r->arrivals_ns[i] = at_ns[root++];
    }
    free(at_ns);
    return r->arrivals_ns ? MOE_OK : err_set(eb, MOE_ENOMEM, "schedule: out of memory");
}

static client_config
configure_client(const target *t, const run *r)
{
    const options *o = t->o;
    return (client_config){
        .url = o->completions_url,
        .model = t->model,
        .api_key = o->api_key,
        .temperature = o->temperature,
        .ignore_eos = o->ignore_eos,
        .seed = r->plan.seed,
        .concurrency_max = r->plan.concurrency_max,
        .timeout_ms = o->timeout_ms,
        .hold_ns = (uint64_t)(o->measuring.hold_s * (double)NS_PER_S),
        .stop = t->stop,
    };
}

/* Prompts of its own, so that the measured ones don't meet a prefix cache that knows them. */
static moe_err
warm_up(const target *t, const run *r, errbuf *eb)
{
    const size_t count = r->plan.warmup_count;
    if (count == 0) return MOE_OK;
    request_record *records = record_array_create(count);
    uint64_t *at_once = calloc(count, sizeof *at_once);
    moe_err err = records && at_once ? MOE_OK : err_set(eb, MOE_ENOMEM, "warm-up: out of memory");
    client_config config = configure_client(t, r);
    config.hold_ns = 0;
    if (!err)
        err = client_run(&config, r->data.prompts + r->plan.count, at_once, count, records, eb);
    for (size_t i = 0; !err && i < count; i++) {
        if (!records[i].completed)
            err = err_set(eb, MOE_EINVAL, "warm-up request %zu: %s", i, record_error(&records[i]));
    }
    free(at_once);
    record_array_free(records, count);
    return err;
}

/* ---- the load ---- */

static moe_err
send_load(const target *t, run *r, errbuf *eb)
{
    const options *o = t->o;
    const time_t now = time(NULL);
    struct tm local;
    strftime(r->date, sizeof r->date, "%Y%m%d-%H%M%S", localtime_r(&now, &local));

    progress line;
    progress_init(&line, stderr);
    client_config config = configure_client(t, r);
    config.on_progress = r->plan.show_progress ? progress_show : NULL;
    config.progress_ctx = &line;
    config.stats = &r->client;

    scrape *metrics = NULL;
    chaos *trouble = NULL;
    moe_err err = MOE_OK;
    if (o->metrics_interval_s > 0)
        err = scrape_start(&metrics, o->metrics_url, o->api_key,
                           (uint64_t)(o->metrics_interval_s * 1e9), eb);
    if (!err && r->chaos.count > 0) err = chaos_start(&trouble, &r->chaos, o->chaos_status, eb);
    if (!err)
        err = client_run(&config, r->data.prompts, r->arrivals_ns, r->plan.count, r->records, eb);
    r->sent = r->client.sent;
    chaos_stop(trouble);
    scrape_stop(metrics, &r->scraped);
    return err;
}

/* All at once, but with fewer in flight: other requests share a batch than in the first run. */
static moe_err
compare_answers(const target *t, run *r, errbuf *eb)
{
    const size_t count = r->sent;
    request_record *again = record_array_create(count);
    uint64_t *at_once = calloc(count + 1, sizeof *at_once);
    moe_err err = again && at_once ? MOE_OK : err_set(eb, MOE_ENOMEM, "second run: out of memory");
    client_config config = configure_client(t, r);
    const size_t before = config.concurrency_max ? config.concurrency_max : count;
    config.concurrency_max = (uint32_t)(before / 2 + 1);
    config.hold_ns = 0;
    if (!err) err = client_run(&config, r->data.prompts, at_once, count, again, eb);
    if (!err) r->same = determinism_compare(r->records, again, count);
    record_array_free(again, count);
    free(at_once);
    return err;
}

static moe_err
evaluate(const target *t, run *r, errbuf *eb)
{
    moe_err err =
        measure_run(&t->o->measuring, r->data.prompts, r->records, r->sent, &r->figures, eb);
    if (!err) err = series_build(r->records, r->sent, &r->over_time, eb);
    if (err) return err;
    r->histograms = calloc(METRIC_COUNT, sizeof *r->histograms);
    if (r->histograms == NULL) return err_set(eb, MOE_ENOMEM, "histograms: out of memory");
    measure_fill_histograms(&r->figures, r->records, r->sent, r->histograms);
    return MOE_OK;
}

moe_err
run_execute(const target *t, const run_plan *plan, run *out, errbuf *eb)
{
    *out = (run){.plan = *plan};
    if (plan->chaos != NULL) out->chaos = *plan->chaos;
    moe_err err = load_prompts(t, out, eb);
    if (!err) err = plan_arrivals(out, eb);
    if (!err) err = warm_up(t, out, eb);
    if (!err && (out->records = record_array_create(plan->count)) == NULL)
        err = err_set(eb, MOE_ENOMEM, "records: out of memory");
    if (!err) err = send_load(t, out, eb);
    const bool stopped = t->stop != NULL && *t->stop;
    if (!err && plan->check_determinism && !stopped) err = compare_answers(t, out, eb);
    if (!err) err = evaluate(t, out, eb);
    return err;
}

void
run_fini(run *r)
{
    record_array_free(r->records, r->plan.count);
    free(r->arrivals_ns);
    free(r->histograms);
    series_fini(&r->over_time);
    scrape_result_fini(&r->scraped);
    dataset_fini(&r->data);
    *r = (run){0};
}

/* ---- after ---- */

report_run
run_describe(const target *t, const run *r)
{
    const options *o = t->o;
    const bool ramp = r->plan.arrivals.ramp != ARRIVALS_STEADY;
    return (report_run){
        .date = r->date,
        .backend = o->backend,
        .endpoint_type = "openai",
        .label = o->label,
        .model_id = t->model,
        .tokenizer_id = o->tokenizer ? o->tokenizer : t->model,
        .dataset_name = o->dataset_name,
        .dataset_path = o->data.path,
        .request_rate = r->data.timed ? (double)NAN : r->plan.arrivals.rate,
        .burstiness = r->plan.arrivals.burstiness,
        .ramp = ramp ? o->ramp_name : NULL,
        .ramp_start = r->plan.arrivals.ramp_start,
        .ramp_end = r->plan.arrivals.ramp_end,
        .domains = (const char *const *)r->data.domains,
        .domain_count = r->data.domain_count,
        .concurrency_max = r->plan.concurrency_max,
        .seed = r->plan.seed,
        .temperature = o->temperature,
        .ignore_eos = o->ignore_eos,
        .warmup_count = r->plan.warmup_count,
        .repeated_count = r->data.repeated,
        .server_json = t->server_json,
        .metadata = o->metadata,
        .metadata_count = o->metadata_count,
        .config = &o->measuring,
        .figures = &r->figures,
        .prompts = r->data.prompts,
        .records = r->records,
        .count = r->sent,
        .histograms = r->histograms,
        .over_time = &r->over_time,
        .client = &r->client,
        .scraped = &r->scraped,
        .chaos = &r->chaos,
        .determinism = r->plan.check_determinism ? &r->same : NULL,
        .repeat = r->plan.repeat,
    };
}

static void
name_load(const run *r, char *out, size_t size)
{
    const arrivals_config *a = &r->plan.arrivals;
    char limit[32] = "";
    if (r->plan.concurrency_max)
        snprintf(limit, sizeof limit, "-concurrency%u", r->plan.concurrency_max);
    if (r->data.timed)
        snprintf(out, size, "trace%s", limit);
    else if (a->ramp != ARRIVALS_STEADY)
        snprintf(out, size, "%g-%gqps%s", a->ramp_start, a->ramp_end, limit);
    else
        snprintf(out, size, "%gqps%s", a->rate, limit);
}

void
run_name(const target *t, const run *r, const char *load, char *out, size_t size)
{
    const char *slash = strrchr(t->model, '/');
    char made[96];
    name_load(r, made, sizeof made);
    snprintf(out, size, "%s-%s-%s-%s", t->o->backend, load ? load : made,
             slash ? slash + 1 : t->model, r->date);
    for (char *c = out; *c != '\0'; c++) {
        if (*c == '/') *c = '-';
    }
}
