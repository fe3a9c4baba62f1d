#include "loadgen/report.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/report_impl.h"

/* An array with one element for each request. */
typedef void (*element_fn)(json_writer *w, const report_run *run, size_t i);

static void
key_array(json_writer *w, const report_run *run, const char *name, element_fn element)
{
    json_key(w, name);
    json_open(w, '[');
    for (size_t i = 0; i < run->count; i++) {
        element(w, run, i);
    }
    json_close(w, ']');
}

static void
put_input_len(json_writer *w, const report_run *run, size_t i)
{
    json_put_number(w, (double)measure_input_tokens(&run->prompts[i], &run->records[i]));
}

static void
put_output_len(json_writer *w, const report_run *run, size_t i)
{
    json_put_number(w, run->records[i].completed ? (double)run->records[i].output_tokens : 0);
}

static void
put_request_s(json_writer *w, const report_run *run, size_t i, metric which)
{
    const request_record *r = &run->records[i];
    json_put_number(w, r->completed ? measure_request_ms(r, which) / 1e3 : NAN);
}

static void
put_ttft(json_writer *w, const report_run *run, size_t i)
{
    put_request_s(w, run, i, METRIC_TTFT);
}

static void
put_e2el(json_writer *w, const report_run *run, size_t i)
{
    put_request_s(w, run, i, METRIC_E2EL);
}

static void
put_itls(json_writer *w, const report_run *run, size_t i)
{
    const request_record *r = &run->records[i];
    json_open(w, '[');
    for (size_t j = 1; r->completed && j < r->chunk_count; j++) {
        json_put_number(w, (double)(r->chunk_ns[j] - r->chunk_ns[j - 1]) / (double)NS_PER_S);
    }
    json_close(w, ']');
}

static void
put_text(json_writer *w, const report_run *run, size_t i)
{
    json_put_string(w, strbuf_text(&run->records[i].text), run->records[i].text.len);
}

static void
put_error(json_writer *w, const report_run *run, size_t i)
{
    const char *text = record_error(&run->records[i]);
    json_put_string(w, text, strlen(text));
}

/* Seconds from the first sending; null for what did not happen. */
static void
put_offset(json_writer *w, const report_run *run, uint64_t at_ns)
{
    const uint64_t zero = run->figures->first_send_ns;
    if (at_ns == 0 || zero == 0)
        json_put_number(w, NAN);
    else
        json_put_number(w, (at_ns >= zero ? (double)(at_ns - zero) : -(double)(zero - at_ns)) /
                               (double)NS_PER_S);
}

static void
put_start(json_writer *w, const report_run *run, size_t i)
{
    put_offset(w, run, run->records[i].send_ns);
}

static void
put_scheduled(json_writer *w, const report_run *run, size_t i)
{
    put_offset(w, run, run->records[i].scheduled_ns);
}

static void
put_status(json_writer *w, const report_run *run, size_t i)
{
    json_put_number(w, run->records[i].http_status);
}

static void
put_finish_reason(json_writer *w, const report_run *run, size_t i)
{
    const char *reason = run->records[i].finish_reason;
    json_put_string(w, reason, strlen(reason));
}

static void
key_stat(json_writer *w, const char *prefix, metric which, double v)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s_ms", prefix, report_metric_key(which));
    json_key_number(w, name, v);
}

static void
key_percentiles(json_writer *w, const report_run *run, metric which)
{
    for (size_t i = 0; i < run->config->percentile_count; i++) {
        char prefix[32];
        if (run->config->percentiles[i] == 99) continue; /* always there, before these */
        snprintf(prefix, sizeof prefix, "p%.10g", run->config->percentiles[i]);
        key_stat(w, prefix, which, run->figures->stats[which].percentiles[i]);
    }
}

static void
key_mean_median_p99(json_writer *w, const report_run *run, metric which)
{
    const measure_stat *s = &run->figures->stats[which];
    key_stat(w, "mean", which, s->mean);
    key_stat(w, "median", which, s->median);
    key_stat(w, "p99", which, s->p99);
}

static void
write_study_keys(json_writer *w, const report_run *run)
{
    const measure *m = run->figures;
    json_key_text(w, "date", run->date);
    json_key_text(w, "backend", run->backend);
    json_key_text(w, "model_id", run->model_id);
    json_key_text(w, "tokenizer_id", run->tokenizer_id);
    json_key_number(w, "best_of", 1);
    json_key_bool(w, "use_beam_search", false);
    json_key_number(w, "num_prompts", (double)run->count);
    json_key_text(w, "dataset_name", run->dataset_name);
    json_key_text(w, "dataset_path", run->dataset_path);
    if (isinf(run->request_rate))
        json_key_text(w, "request_rate", "inf");
    else
        json_key_number(w, "request_rate", run->request_rate);
    json_key_number(w, "duration", m->duration_s);
    json_key_number(w, "completed", (double)m->completed);
    json_key_number(w, "total_input_tokens", (double)m->input_tokens);
    json_key_number(w, "total_output_tokens", (double)m->output_tokens);
    json_key_number(w, "request_throughput", m->request_throughput);
    json_key_number(w, "input_throughput", m->input_throughput);
    json_key_number(w, "output_throughput", m->output_throughput);
    key_mean_median_p99(w, run, METRIC_TTFT);
    key_mean_median_p99(w, run, METRIC_TPOT);
    key_mean_median_p99(w, run, METRIC_ITL);
    key_array(w, run, "input_lens", put_input_len);
    key_array(w, run, "output_lens", put_output_len);
    key_array(w, run, "ttfts", put_ttft);
    key_array(w, run, "itls", put_itls);
    key_array(w, run, "generated_texts", put_text);
    key_array(w, run, "errors", put_error);
}

static void
write_vllm_keys(json_writer *w, const report_run *run)
{
    const measure *m = run->figures;
    json_key_text(w, "endpoint_type", run->endpoint_type);
    json_key_text(w, "label", run->label);
    if (isinf(run->burstiness))
        json_key_text(w, "burstiness", "inf");
    else
        json_key_number(w, "burstiness", run->burstiness);
    json_key_number(w, "max_concurrency",
                    run->concurrency_max ? run->concurrency_max : (double)NAN);
    json_key_number(w, "failed", (double)m->failed);
    json_key_number(w, "request_goodput", m->goodput);
    json_key_number(w, "total_token_throughput", m->total_throughput);
    for (metric which = METRIC_TTFT; which <= METRIC_E2EL; which++) {
        if (which == METRIC_E2EL) key_mean_median_p99(w, run, which);
        key_stat(w, "std", which, m->stats[which].std);
        key_percentiles(w, run, which);
    }
    key_array(w, run, "start_times", put_start);
    json_key_number(w, "max_output_tokens_per_s", m->peak_output_throughput);
    json_key_number(w, "max_concurrent_requests", (double)m->peak_concurrency);
}

static void
write_own_keys(json_writer *w, const report_run *run)
{
    json_key_number(w, "rejected", (double)run->figures->rejected);
    for (metric which = METRIC_SCHED_TTFT; which <= METRIC_SCHED_E2EL; which++) {
        key_mean_median_p99(w, run, which);
        key_stat(w, "std", which, run->figures->stats[which].std);
        key_percentiles(w, run, which);
    }
    key_array(w, run, "scheduled_times", put_scheduled);
    key_array(w, run, "e2els", put_e2el);
    key_array(w, run, "http_statuses", put_status);
    key_array(w, run, "finish_reasons", put_finish_reason);
    json_key_number(w, "seed", (double)run->seed);
    json_key_number(w, "temperature", run->temperature);
    json_key_bool(w, "ignore_eos", run->ignore_eos);
    json_key_number(w, "num_warmups", (double)run->warmup_count);
    json_key_number(w, "repeated_prompts", (double)run->repeated_count);
    json_key_text(w, "loadgen_version", CONCLAVE_VERSION);
    json_key(w, "server");
    json_put_json(w, run->server_json);
    report_write_details(w, run);
    for (size_t i = 0; i < run->metadata_count; i++) {
        json_key_text(w, run->metadata[i].key, run->metadata[i].value);
    }
}

bool
report_key_is_taken(const char *name)
{
    static const char *const names[] = {"date",
                                        "backend",
                                        "model_id",
                                        "tokenizer_id",
                                        "best_of",
                                        "use_beam_search",
                                        "num_prompts",
                                        "dataset_name",
                                        "dataset_path",
                                        "request_rate",
                                        "duration",
                                        "completed",
                                        "total_input_tokens",
                                        "total_output_tokens",
                                        "request_throughput",
                                        "input_throughput",
                                        "output_throughput",
                                        "input_lens",
                                        "output_lens",
                                        "ttfts",
                                        "itls",
                                        "generated_texts",
                                        "errors",
                                        "endpoint_type",
                                        "label",
                                        "burstiness",
                                        "max_concurrency",
                                        "failed",
                                        "request_goodput",
                                        "total_token_throughput",
                                        "start_times",
                                        "max_output_tokens_per_s",
                                        "max_concurrent_requests",
                                        "rejected",
                                        "scheduled_times",
                                        "e2els",
                                        "http_statuses",
                                        "finish_reasons",
                                        "seed",
                                        "temperature",
                                        "ignore_eos",
                                        "num_warmups",
                                        "repeated_prompts",
                                        "loadgen_version",
                                        "server",
                                        "turns",
                                        "domains",
                                        "ramp_up_strategy",
                                        "ramp_up_start_rps",
                                        "ramp_up_end_rps",
                                        "goodput_limits",
                                        "trimmed",
                                        "client",
                                        "histograms",
                                        "time_series",
                                        "server_metrics",
                                        "chaos",
                                        "determinism",
                                        "repeat"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) return true;
    }
    /* The distributions: mean_ttft_ms and so on. */
    const size_t len = strlen(name);
    return len > 3 && strcmp(name + len - 3, "_ms") == 0;
}

moe_err
report_write_json(const report_run *run, FILE *to, errbuf *eb)
{
    json_writer w;
    json_writer_init(&w, to);
    json_open(&w, '{');
    write_study_keys(&w, run);
    write_vllm_keys(&w, run);
    write_own_keys(&w, run);
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}

static moe_err
write_run(const void *run, FILE *to, errbuf *eb)
{
    return report_write_json(run, to, eb);
}

moe_err
report_save(const report_run *run, const char *dir, const char *filename, char *path, size_t size,
            errbuf *eb)
{
    return json_save(dir, filename, write_run, run, path, size, eb);
}
