#include "loadgen/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define STRING_BYTES_MAX (128u << 20)
#define PATH_BYTES_MAX 4096

static const char *const metric_keys[METRIC_COUNT] = {"ttft", "tpot",       "itl",
                                                      "e2el", "sched_ttft", "sched_e2el"};

typedef struct writer {
    FILE *to;
    strbuf scratch; /* one escaped string */
    bool first;     /* no key was written yet */
    bool failed;
} writer;

/* How many bytes the UTF-8 character at s [n] has; 0 when it is none. */
static size_t
utf8_length(const unsigned char *s, size_t n)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t len = s[0] < 0x80   ? 1
                       : s[0] < 0xc2 ? 0
                       : s[0] < 0xe0 ? 2
                       : s[0] < 0xf0 ? 3
                       : s[0] < 0xf5 ? 4
                                     : 0;
    if (len < 2) return len;
    if (len > n) return 0;
    uint32_t c = s[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    return c < smallest[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}

/* A server's bytes may be no UTF-8, and then no reader would take the file: U+FFFD stands for
 * every byte that is none. */
static void
put_string(writer *w, const char *text, size_t n)
{
    strbuf clean;
    strbuf_init(&clean, STRING_BYTES_MAX);
    for (size_t i = 0; i < n;) {
        const size_t len = utf8_length((const unsigned char *)text + i, n - i);
        strbuf_append(&clean, len ? text + i : "\xef\xbf\xbd", len ? len : 3);
        i += len ? len : 1;
    }
    strbuf_reset(&w->scratch);
    strbuf_json_string(&w->scratch, strbuf_text(&clean), clean.len);
    if (clean.failed || w->scratch.failed) w->failed = true;
    fputs(strbuf_text(&w->scratch), w->to);
    strbuf_fini(&clean);
}

static void
put_number(writer *w, double v)
{
    char text[40];
    if (!isfinite(v)) {
        fputs("null", w->to);
        return;
    }
    snprintf(text, sizeof text, "%.15g", v);
    if (strtod(text, NULL) != v) snprintf(text, sizeof text, "%.17g", v);
    fputs(text, w->to);
}

static void
key(writer *w, const char *name)
{
    fputs(w->first ? "{\"" : ", \"", w->to);
    w->first = false;
    fputs(name, w->to);
    fputs("\": ", w->to);
}

static void
key_number(writer *w, const char *name, double v)
{
    key(w, name);
    put_number(w, v);
}

static void
key_bool(writer *w, const char *name, bool v)
{
    key(w, name);
    fputs(v ? "true" : "false", w->to);
}

/* text NULL = null */
static void
key_text(writer *w, const char *name, const char *text)
{
    key(w, name);
    if (text == NULL)
        fputs("null", w->to);
    else
        put_string(w, text, strlen(text));
}

/* An array with one element for each request. */
typedef void (*element_fn)(writer *w, const report_run *run, size_t i);

static void
key_array(writer *w, const report_run *run, const char *name, element_fn element)
{
    key(w, name);
    fputc('[', w->to);
    for (size_t i = 0; i < run->count; i++) {
        if (i != 0) fputs(", ", w->to);
        element(w, run, i);
    }
    fputc(']', w->to);
}

static void
put_input_len(writer *w, const report_run *run, size_t i)
{
    put_number(w, (double)measure_input_tokens(&run->prompts[i], &run->records[i]));
}

static void
put_output_len(writer *w, const report_run *run, size_t i)
{
    put_number(w, run->records[i].completed ? (double)run->records[i].output_tokens : 0);
}

static void
put_request_s(writer *w, const report_run *run, size_t i, metric which)
{
    const request_record *r = &run->records[i];
    put_number(w, r->completed ? measure_request_ms(r, which) / 1e3 : NAN);
}

static void
put_ttft(writer *w, const report_run *run, size_t i)
{
    put_request_s(w, run, i, METRIC_TTFT);
}

static void
put_e2el(writer *w, const report_run *run, size_t i)
{
    put_request_s(w, run, i, METRIC_E2EL);
}

static void
put_itls(writer *w, const report_run *run, size_t i)
{
    const request_record *r = &run->records[i];
    fputc('[', w->to);
    for (size_t j = 1; r->completed && j < r->chunk_count; j++) {
        if (j > 1) fputs(", ", w->to);
        put_number(w, (double)(r->chunk_ns[j] - r->chunk_ns[j - 1]) / (double)NS_PER_S);
    }
    fputc(']', w->to);
}

static void
put_text(writer *w, const report_run *run, size_t i)
{
    put_string(w, strbuf_text(&run->records[i].text), run->records[i].text.len);
}

static void
put_error(writer *w, const report_run *run, size_t i)
{
    const char *text = record_error(&run->records[i]);
    put_string(w, text, strlen(text));
}

/* Seconds from the first sending; null for what did not happen. */
static void
put_offset(writer *w, const report_run *run, uint64_t at_ns)
{
    const uint64_t zero = run->figures->first_send_ns;
    if (at_ns == 0 || zero == 0)
        put_number(w, NAN);
    else
        put_number(w, (at_ns >= zero ? (double)(at_ns - zero) : -(double)(zero - at_ns)) /
                          (double)NS_PER_S);
}

static void
put_start(writer *w, const report_run *run, size_t i)
{
    put_offset(w, run, run->records[i].send_ns);
}

static void
put_scheduled(writer *w, const report_run *run, size_t i)
{
    put_offset(w, run, run->records[i].scheduled_ns);
}

static void
put_status(writer *w, const report_run *run, size_t i)
{
    put_number(w, run->records[i].http_status);
}

static void
put_finish_reason(writer *w, const report_run *run, size_t i)
{
    const char *reason = run->records[i].finish_reason;
    put_string(w, reason, strlen(reason));
}

static void
key_stat(writer *w, const char *prefix, metric which, double v)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s_ms", prefix, metric_keys[which]);
    key_number(w, name, v);
}

static void
key_percentiles(writer *w, const report_run *run, metric which)
{
    for (size_t i = 0; i < run->config->percentile_count; i++) {
        char prefix[32];
        if (run->config->percentiles[i] == 99) continue; /* always there, before these */
        snprintf(prefix, sizeof prefix, "p%.10g", run->config->percentiles[i]);
        key_stat(w, prefix, which, run->figures->stats[which].percentiles[i]);
    }
}

static void
key_mean_median_p99(writer *w, const report_run *run, metric which)
{
    const measure_stat *s = &run->figures->stats[which];
    key_stat(w, "mean", which, s->mean);
    key_stat(w, "median", which, s->median);
    key_stat(w, "p99", which, s->p99);
}

static void
write_study_keys(writer *w, const report_run *run)
{
    const measure *m = run->figures;
    key_text(w, "date", run->date);
    key_text(w, "backend", run->backend);
    key_text(w, "model_id", run->model_id);
    key_text(w, "tokenizer_id", run->tokenizer_id);
    key_number(w, "best_of", 1);
    key_bool(w, "use_beam_search", false);
    key_number(w, "num_prompts", (double)run->count);
    key_text(w, "dataset_name", run->dataset_name);
    key_text(w, "dataset_path", run->dataset_path);
    if (isinf(run->request_rate))
        key_text(w, "request_rate", "inf");
    else
        key_number(w, "request_rate", run->request_rate);
    key_number(w, "duration", m->duration_s);
    key_number(w, "completed", (double)m->completed);
    key_number(w, "total_input_tokens", (double)m->input_tokens);
    key_number(w, "total_output_tokens", (double)m->output_tokens);
    key_number(w, "request_throughput", m->request_throughput);
    key_number(w, "input_throughput", m->input_throughput);
    key_number(w, "output_throughput", m->output_throughput);
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
write_vllm_keys(writer *w, const report_run *run)
{
    const measure *m = run->figures;
    key_text(w, "endpoint_type", run->endpoint_type);
    key_text(w, "label", run->label);
    if (isinf(run->burstiness))
        key_text(w, "burstiness", "inf");
    else
        key_number(w, "burstiness", run->burstiness);
    key_number(w, "max_concurrency", run->concurrency_max ? run->concurrency_max : (double)NAN);
    key_number(w, "failed", (double)m->failed);
    key_number(w, "request_goodput", m->goodput);
    key_number(w, "total_token_throughput", m->total_throughput);
    for (metric which = METRIC_TTFT; which <= METRIC_E2EL; which++) {
        if (which == METRIC_E2EL) key_mean_median_p99(w, run, which);
        key_stat(w, "std", which, m->stats[which].std);
        key_percentiles(w, run, which);
    }
    key_array(w, run, "start_times", put_start);
    key_number(w, "max_output_tokens_per_s", m->peak_output_throughput);
    key_number(w, "max_concurrent_requests", (double)m->peak_concurrency);
}

static void
write_own_keys(writer *w, const report_run *run)
{
    key_number(w, "rejected", (double)run->figures->rejected);
    for (metric which = METRIC_SCHED_TTFT; which <= METRIC_SCHED_E2EL; which++) {
        key_mean_median_p99(w, run, which);
        key_stat(w, "std", which, run->figures->stats[which].std);
        key_percentiles(w, run, which);
    }
    key_array(w, run, "scheduled_times", put_scheduled);
    key_array(w, run, "e2els", put_e2el);
    key_array(w, run, "http_statuses", put_status);
    key_array(w, run, "finish_reasons", put_finish_reason);
    key_number(w, "seed", (double)run->seed);
    key_number(w, "temperature", run->temperature);
    key_bool(w, "ignore_eos", run->ignore_eos);
    key_number(w, "num_warmups", (double)run->warmup_count);
    key_number(w, "repeated_prompts", (double)run->repeated_count);
    key_text(w, "loadgen_version", CONCLAVE_VERSION);
    key(w, "server");
    fputs(run->server_json ? run->server_json : "null", w->to);
    for (size_t i = 0; i < run->metadata_count; i++) {
        strbuf_reset(&w->scratch);
        fputs(", ", w->to);
        put_string(w, run->metadata[i].key, strlen(run->metadata[i].key));
        fputs(": ", w->to);
        put_string(w, run->metadata[i].value, strlen(run->metadata[i].value));
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
                                        "server"};
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
    writer w = {.to = to, .first = true};
    strbuf_init(&w.scratch, STRING_BYTES_MAX);
    write_study_keys(&w, run);
    write_vllm_keys(&w, run);
    write_own_keys(&w, run);
    fputs("}\n", to);
    strbuf_fini(&w.scratch);
    if (fflush(to) != 0 || ferror(to)) return err_set(eb, MOE_EIO, "result: %s", strerror(errno));
    return w.failed ? err_set(eb, MOE_ENOMEM, "result: out of memory") : MOE_OK;
}

/* Every folder that this file's path names. */
static moe_err
make_folders(const char *file, errbuf *eb)
{
    char path[PATH_BYTES_MAX];
    snprintf(path, sizeof path, "%s", file);
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0777) != 0 && errno != EEXIST)
            return err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
        *slash = '/';
    }
    return MOE_OK;
}

moe_err
report_save(const report_run *run, const char *dir, const char *filename, char *path, size_t size,
            errbuf *eb)
{
    char partial[PATH_BYTES_MAX];
    const int n = snprintf(path, size, "%s/%s", dir, filename);
    if (n < 0 || (size_t)n >= size || (size_t)n + 32 > sizeof partial)
        return err_set(eb, MOE_ERANGE, "%s: the path is too long", dir);
    snprintf(partial, sizeof partial, "%s.%ld.partial", path, (long)getpid());
    moe_err err = make_folders(path, eb);
    if (err) return err;

    FILE *to = fopen(partial, "w");
    if (to == NULL) return err_set(eb, MOE_EIO, "%s: %s", partial, strerror(errno));
    err = report_write_json(run, to, eb);
    if (fclose(to) != 0 && !err) err = err_set(eb, MOE_EIO, "%s: %s", partial, strerror(errno));
    if (!err && rename(partial, path) != 0)
        err = err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
    if (err) unlink(partial);
    return err;
}
