#include "loadgen/report.h"

#include <math.h>
#include <string.h>

#include "loadgen/json_writer.h"

#define ERRORS_SHOWN 5
#define TABLE_WIDTH 50

static void
rule(FILE *to, char fill, const char *title)
{
    const int bare = TABLE_WIDTH - (int)strlen(title);
    for (int i = 0; i < bare / 2; i++) {
        fputc(fill, to);
    }
    fputs(title, to);
    for (int i = bare / 2; i < bare; i++) {
        fputc(fill, to);
    }
    fputc('\n', to);
}

static void
row(FILE *to, const char *name, double v)
{
    if (isnan(v))
        fprintf(to, "%-40s %-10s\n", name, "-");
    else
        fprintf(to, "%-40s %-10.2f\n", name, v);
}

static void
row_count(FILE *to, const char *name, long long v)
{
    fprintf(to, "%-40s %-10lld\n", name, v);
}

static void
print_stat(const report_run *run, FILE *to, metric which, const char *title, const char *name)
{
    const measure_stat *s = &run->figures->stats[which];
    char label[64];
    bool has_p99 = false;
    rule(to, '-', title);
    snprintf(label, sizeof label, "Mean %s (ms):", name);
    row(to, label, s->mean);
    snprintf(label, sizeof label, "Median %s (ms):", name);
    row(to, label, s->median);
    for (size_t i = 0; i < run->config->percentile_count; i++) {
        has_p99 = has_p99 || run->config->percentiles[i] == 99;
        if (run->config->percentiles[i] == 50) continue; /* the median above */
        snprintf(label, sizeof label, "P%.10g %s (ms):", run->config->percentiles[i], name);
        row(to, label, s->percentiles[i]);
    }
    if (has_p99) return;
    snprintf(label, sizeof label, "P99 %s (ms):", name);
    row(to, label, s->p99);
}

void
report_print_table(const report_run *run, FILE *to)
{
    const measure *m = run->figures;
    rule(to, '=', " Serving Benchmark Result ");
    row_count(to, "Successful requests:", (long long)m->completed);
    row_count(to, "Failed requests:", (long long)m->failed);
    if (m->rejected) row_count(to, "Rejected (429) among the failed:", (long long)m->rejected);
    if (run->concurrency_max) row_count(to, "Maximum request concurrency:", run->concurrency_max);
    if (m->trimmed) {
        row(to, "Left out at the start (s):", run->config->trim_start_s);
        row(to, "Left out at the end (s):", run->config->trim_end_s);
        row_count(to, "Requests left out:", (long long)m->excluded);
    }
    if (isfinite(run->request_rate)) row(to, "Request rate configured (RPS):", run->request_rate);
    row(to, "Benchmark duration (s):", m->duration_s);
    row_count(to, "Total input tokens:", (long long)m->input_tokens);
    row_count(to, "Total generated tokens:", (long long)m->output_tokens);
    row(to, "Request throughput (req/s):", m->request_throughput);
    if (!isnan(m->goodput)) row(to, "Request goodput (req/s):", m->goodput);
    row(to, "Output token throughput (tok/s):", m->output_throughput);
    row(to, "Peak output token throughput (tok/s):", m->peak_output_throughput);
    row_count(to, "Peak concurrent requests:", (long long)m->peak_concurrency);
    row(to, "Total Token throughput (tok/s):", m->total_throughput);
    if (m->trimmed) {
        row(to, "Steady request throughput (req/s):", m->steady_request_throughput);
        row(to, "Steady output throughput (tok/s):", m->steady_output_throughput);
    }
    print_stat(run, to, METRIC_TTFT, "Time to First Token", "TTFT");
    print_stat(run, to, METRIC_TPOT, "Time per Output Token (excl. 1st token)", "TPOT");
    print_stat(run, to, METRIC_ITL, "Inter-token Latency", "ITL");
    print_stat(run, to, METRIC_E2EL, "End-to-end Latency", "E2EL");
    print_stat(run, to, METRIC_SCHED_TTFT, "Time to First Token from the scheduled time",
               "scheduled TTFT");
    print_stat(run, to, METRIC_SCHED_E2EL, "End-to-end Latency from the scheduled time",
               "scheduled E2EL");
    rule(to, '-', "Load generator");
    row(to, "P99 lag (ms):", m->stats[METRIC_LAG].p99);
    row(to, "Max lag (ms):", m->stats[METRIC_LAG].max);
    row(to, "CPU share (of one core):", report_cpu_share(run));
    rule(to, '=', "");
}

void
report_print_warnings(const report_run *run, FILE *to)
{
    if (report_client_was_late(run))
        fprintf(to,
                "warning: the load generator was late (p99 lag %.1f ms, max %.1f ms, %.0f %% of a "
                "core): latencies from the sending are understated, and chunks were read late\n",
                run->figures->stats[METRIC_LAG].p99, run->figures->stats[METRIC_LAG].max,
                100 * report_cpu_share(run));
    for (size_t i = 0; run->chaos != NULL && i < run->chaos->count; i++) {
        const chaos_step *s = &run->chaos->steps[i];
        if (s->done_ns == 0)
            fprintf(to, "warning: the run was over before \"%s\"\n", s->text);
        else if (*s->outcome != '\0')
            fprintf(to, "warning: \"%s\" failed: %s\n", s->text, s->outcome);
    }
    const determinism *d = run->determinism;
    if (d != NULL && d->different > 0)
        fprintf(
            to,
            "warning: %zu of %zu answers differ in the second run, the first is request %zu from "
            "byte %zu on\n",
            d->different, d->compared, d->first_different, d->first_byte);
}

void
report_print_errors(const report_run *run, FILE *to)
{
    const char *seen[ERRORS_SHOWN];
    size_t times[ERRORS_SHOWN] = {0}, kinds = 0, others = 0;
    for (size_t i = 0; i < run->count; i++) {
        if (run->records[i].completed) continue;
        const char *text = record_error(&run->records[i]);
        size_t k = 0;
        while (k < kinds && strcmp(seen[k], text) != 0)
            k++;
        if (k == ERRORS_SHOWN) {
            others++;
            continue;
        }
        if (k == kinds) seen[kinds++] = text;
        times[k]++;
    }
    if (kinds == 0) return;
    fprintf(to, "%zu of %zu requests failed:\n", run->figures->failed, run->count);
    for (size_t k = 0; k < kinds; k++) {
        fprintf(to, "  %zu x %s\n", times[k], seen[k]);
    }
    if (others) fprintf(to, "  %zu x other reasons (the result file lists them)\n", others);
}

static void
write_times(json_writer *w, const report_run *run, size_t i)
{
    const request_record *r = &run->records[i];
    const struct {
        const char *name;
        uint64_t at_ns;
    } times[] = {{"scheduled_ns", r->scheduled_ns},
                 {"ready_ns", r->ready_ns},
                 {"send_ns", r->send_ns},
                 {"last_ns", r->last_ns},
                 {"end_ns", r->end_ns}};
    json_open(w, '{');
    for (size_t t = 0; t < sizeof times / sizeof *times; t++) {
        json_key(w, times[t].name);
        json_put_u64(w, times[t].at_ns);
    }
    json_key(w, "chunk_ns");
    json_open(w, '[');
    for (size_t j = 0; j < r->chunk_count; j++) {
        json_put_u64(w, r->chunk_ns[j]);
    }
    json_close(w, ']');
    json_key_number(w, "input_tokens", (double)measure_input_tokens(&run->prompts[i], r));
    json_key_number(w, "output_tokens", (double)r->output_tokens);
    json_key_bool(w, "completed", r->completed);
    json_close(w, '}');
}

moe_err
report_write_times(const report_run *run, FILE *to, errbuf *eb)
{
    for (size_t i = 0; i < run->count; i++) {
        json_writer w;
        json_writer_init(&w, to);
        write_times(&w, run, i);
        const moe_err err = json_writer_fini(&w, eb);
        if (err) return err;
    }
    return MOE_OK;
}
