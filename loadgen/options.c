#include "loadgen/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/repeats.h"

/* Raw values, before they are checked against each other. */
typedef struct raw {
    const char *base_url, *host, *endpoint, *model, *api_key, *backend, *label, *tokenizer;
    const char *dataset_name, *dataset_path, *random_vocab, *percentiles, *goodput, *metadata;
    const char *result_dir, *result_filename, *ramp, *skew, *skew_domains;
    const char *slo, *chaos, *chaos_status, *metrics_url, *times_path;
    int64_t port, prompts, concurrency, warmups, seed, output_len, sharegpt_len, sharegpt_max;
    int64_t input_len, random_output_len, prefix_len;
    int64_t repetition_prefix_len, repetition_suffix_len, repetition_prefixes, repetition_output;
    int64_t turn_max, skew_hot, trace_token_max;
    double rate, burstiness, temperature, timeout_s, range_ratio;
    int64_t repeats, sweep_points, sweep_refine;
    double trim_start_s, trim_end_s, hold_s, metrics_interval_s;
    double sweep_seconds, sweep_growth, sweep_share, sweep_rate_max;
    double ramp_start, ramp_end, think_s, skew_alpha, trace_speed, trace_unit_s;
    bool ignore_eos, disable_shuffle, save, progress, disable_tqdm, check_determinism;
} raw;

#define SPEC_MAX 96

static size_t
list_specs(raw *r, flag_spec *out)
{
    const flag_spec specs[] = {
        {"base-url", NULL, FLAG_STRING, &r->base_url, NULL, 0, 0, NULL, NULL,
         "the server, http://host:port; instead of --host and --port"},
        {"host", NULL, FLAG_STRING, &r->host, "127.0.0.1", 0, 0, NULL, NULL, "the server's host"},
        {"port", NULL, FLAG_INT, &r->port, "8000", 1, 65535, NULL, NULL, "the server's port"},
        {"endpoint", NULL, FLAG_STRING, &r->endpoint, "/v1/completions", 0, 0, NULL, NULL,
         "path of the completions API"},
        {"model", NULL, FLAG_STRING, &r->model, NULL, 0, 0, NULL, NULL,
         "model name (default: the first of /v1/models)"},
        {"api-key", NULL, FLAG_STRING, &r->api_key, NULL, 0, 0, NULL, NULL,
         "sent as Authorization: Bearer; better given as CONCLAVE_API_KEY, which ps does not show"},
        {"backend", NULL, FLAG_STRING, &r->backend, "conclave", 0, 0, NULL, NULL,
         "the result's \"backend\": what is measured"},
        {"label", NULL, FLAG_STRING, &r->label, NULL, 0, 0, NULL, NULL, "the result's \"label\""},
        {"tokenizer", NULL, FLAG_STRING, &r->tokenizer, NULL, 0, 0, NULL, NULL,
         "the result's \"tokenizer_id\" (default: the model); the server counts the tokens"},
        {"dataset-name", NULL, FLAG_CHOICE, &r->dataset_name, "random", 0, 0,
         "random|prefix_repetition|sharegpt|multi-turn|expert-skew|custom|trace", NULL,
         "where prompts come from"},
        {"dataset-path", NULL, FLAG_STRING, &r->dataset_path, NULL, 0, 0, NULL, NULL,
         "file of sharegpt, multi-turn, expert-skew (JSON), custom (JSON Lines), or trace (CSV or "
         "JSON Lines)"},
        {"num-prompts", NULL, FLAG_INT, &r->prompts, "100", 1, DATASET_PROMPTS_MAX / 2, NULL, NULL,
         "requests to send"},
        {"request-rate", NULL, FLAG_NUMBER, &r->rate, "inf", 1e-6, INFINITY, NULL, "requests/s",
         "arrivals; inf = all at once; with multi-turn: of sessions; a trace has its own times"},
        {"burstiness", NULL, FLAG_NUMBER, &r->burstiness, "1", 1e-3, INFINITY, NULL, NULL,
         "shape of the gamma distributed gaps: 1 = Poisson, lower = bursts, inf = equal gaps"},
        {"ramp-up-strategy", NULL, FLAG_CHOICE, &r->ramp, "none", 0, 0, "none|linear|exponential",
         NULL, "let the rate move from --ramp-up-start-rps to --ramp-up-end-rps during the run"},
        {"ramp-up-start-rps", NULL, FLAG_NUMBER, &r->ramp_start, "0", 0, 1e9, NULL, "requests/s",
         "first rate of a ramp"},
        {"ramp-up-end-rps", NULL, FLAG_NUMBER, &r->ramp_end, "0", 0, 1e9, NULL, "requests/s",
         "last rate of a ramp"},
        {"max-concurrency", NULL, FLAG_INT, &r->concurrency, "0", 0, 1e6, NULL, "requests",
         "most in flight at one time; 0 = no limit"},
        {"random-input-len", NULL, FLAG_INT, &r->input_len, "1024", 0, DATASET_TOKENS_MAX, NULL,
         "tokens", "prompts of --dataset-name random"},
        {"random-output-len", NULL, FLAG_INT, &r->random_output_len, "128", 1, DATASET_TOKENS_MAX,
         NULL, "tokens", "max_tokens of --dataset-name random"},
        {"random-range-ratio", NULL, FLAG_NUMBER, &r->range_ratio, "0", 0, 0.999, NULL, NULL,
         "random lengths vary by this share, up and down"},
        {"random-prefix-len", NULL, FLAG_INT, &r->prefix_len, "0", 0, DATASET_TOKENS_MAX, NULL,
         "tokens", "a start that all random prompts share, before their own tokens"},
        {"random-vocab", NULL, FLAG_STRING, &r->random_vocab, "3:1000", 0, 0, NULL, NULL,
         "token ids of random prompts: FIRST:END (END is not used), or END alone with FIRST = 3, "
         "above the control tokens"},
        {"custom-output-len", "output-len", FLAG_INT, &r->output_len, "256", 1, DATASET_TOKENS_MAX,
         NULL, "tokens", "max_tokens of custom prompts that name none"},
        {"sharegpt-output-len", NULL, FLAG_INT, &r->sharegpt_len, "0", 0, DATASET_TOKENS_MAX, NULL,
         "tokens", "max_tokens of sharegpt prompts; 0 = the reference answer's length"},
        {"sharegpt-max-output-len", NULL, FLAG_INT, &r->sharegpt_max, "0", 0, DATASET_TOKENS_MAX,
         NULL, "tokens", "the most of the reference answers' lengths; 0 = no limit"},
        {"prefix-repetition-prefix-len", NULL, FLAG_INT, &r->repetition_prefix_len, "256", 0,
         DATASET_TOKENS_MAX, NULL, "tokens", "shared part of a prefix_repetition prompt"},
        {"prefix-repetition-suffix-len", NULL, FLAG_INT, &r->repetition_suffix_len, "256", 0,
         DATASET_TOKENS_MAX, NULL, "tokens", "its own part"},
        {"prefix-repetition-num-prefixes", NULL, FLAG_INT, &r->repetition_prefixes, "10", 1, 1e6,
         NULL, NULL, "how many different shared parts there are"},
        {"prefix-repetition-output-len", NULL, FLAG_INT, &r->repetition_output, "128", 1,
         DATASET_TOKENS_MAX, NULL, "tokens", "max_tokens of prefix_repetition"},
        {"multi-turn-max-turns", NULL, FLAG_INT, &r->turn_max, "0", 0, 1e6, NULL, "requests",
         "most in one session; 0 = as many as the conversation has"},
        {"multi-turn-think-time", NULL, FLAG_NUMBER, &r->think_s, "0", 0, 1e5, NULL, "s",
         "mean of the exponentially distributed pauses between an answer and the next question"},
        {"skew", NULL, FLAG_CHOICE, &r->skew, "khot", 0, 0, "uniform|khot|zipf", NULL,
         "how often expert-skew takes each domain"},
        {"skew-hot", NULL, FLAG_INT, &r->skew_hot, "1", 1, DATASET_DOMAINS_MAX, NULL, "domains",
         "khot: only the first K domains are used"},
        {"skew-alpha", NULL, FLAG_NUMBER, &r->skew_alpha, "1", 0, 100, NULL, NULL,
         "zipf: the r-th domain has the weight r^-alpha"},
        {"skew-domains", NULL, FLAG_STRING, &r->skew_domains, NULL, 0, 0, NULL, NULL,
         "the order of the domains, a,b,c (default: the file's)"},
        {"trace-speed", NULL, FLAG_NUMBER, &r->trace_speed, "1", 1e-6, 1e6, NULL, NULL,
         "send a trace this many times as fast as it was recorded"},
        {"trace-time-unit", NULL, FLAG_NUMBER, &r->trace_unit_s, "0", 0, 1e6, NULL, "s",
         "of a trace's numeric times; 0 = 1 in CSV, 0.001 in JSON Lines"},
        {"trace-max-tokens", NULL, FLAG_INT, &r->trace_token_max, "0", 0, DATASET_TOKENS_MAX, NULL,
         "tokens", "leave out a trace's requests with more input and output; 0 = keep all"},
        {"disable-shuffle", NULL, FLAG_BOOL, &r->disable_shuffle, "false", 0, 0, NULL, NULL,
         "take a file's entries in their order"},
        {"seed", NULL, FLAG_INT, &r->seed, "0", 0, 9e15, NULL, NULL,
         "of arrivals, random prompts, the order of a file, and sampling"},
        {"temperature", NULL, FLAG_NUMBER, &r->temperature, "0", 0, 100, NULL, NULL,
         "of sampling; 0 = greedy"},
        {"ignore-eos", NULL, FLAG_BOOL, &r->ignore_eos, "false", 0, 0, NULL, NULL,
         "let every answer reach its max_tokens"},
        {"request-timeout", NULL, FLAG_NUMBER, &r->timeout_s, "3600", 0, 4e6, NULL, "s",
         "of one request, from its sending; 0 = none"},
        {"num-warmups", NULL, FLAG_INT, &r->warmups, "0", 0, 100000, NULL, "requests",
         "sent first and not measured; prompts of their own"},
        {"goodput", NULL, FLAG_STRING, &r->goodput, NULL, 0, 0, NULL, NULL,
         "limits in ms that a good request meets: ttft:500 tpot:50 e2el:9000"},
        {"slo", NULL, FLAG_STRING, &r->slo, NULL, 0, 0, NULL, NULL,
         "the same in one word: ttft:500,tpot:50"},
        {"warmup-seconds", NULL, FLAG_NUMBER, &r->trim_start_s, "0", 0, 1e6, NULL, "s",
         "leave requests out of the figures that were sent this soon after the first"},
        {"cooldown-seconds", NULL, FLAG_NUMBER, &r->trim_end_s, "0", 0, 1e6, NULL, "s",
         "and those that were sent this shortly before the last one's end"},
        {"max-seconds", NULL, FLAG_NUMBER, &r->hold_s, "0", 0, 1e6, NULL, "s",
         "send nothing more after this time, let what is under way end, and count only until then; "
         "0 = send all"},
        {"repeats", NULL, FLAG_INT, &r->repeats, "1", 1, REPEATS_MAX, NULL, NULL,
         "run this often, with seeds that follow one another, and report the spread"},
        {"check-determinism", NULL, FLAG_BOOL, &r->check_determinism, "false", 0, 0, NULL, NULL,
         "then send everything again in another mix, and compare the answers"},
        {"chaos", NULL, FLAG_STRING, &r->chaos, NULL, 0, 0, NULL, NULL,
         "what to do to the server meanwhile: \"kill worker 2 at 10s\", \"stop router 0 at 5s for "
         "2s\", \"run COMMAND at 3s\"; several with ';'"},
        {"chaos-status", NULL, FLAG_STRING, &r->chaos_status, "deploy/conclave status --json", 0, 0,
         NULL, NULL, "the command that tells the services' process ids"},
        {"metrics-url", NULL, FLAG_STRING, &r->metrics_url, NULL, 0, 0, NULL, NULL,
         "the server's own figures (default: the base URL's /metrics)"},
        {"metrics-interval", NULL, FLAG_NUMBER, &r->metrics_interval_s, "1", 0, 3600, NULL, "s",
         "how often to read them during the run; 0 = never"},
        {"sweep-seconds", NULL, FLAG_NUMBER, &r->sweep_seconds, "15", 0.1, 1e5, NULL, "s",
         "sweep: how long each rate is held"},
        {"sweep-growth", NULL, FLAG_NUMBER, &r->sweep_growth, "1.6", 1.01, 10, NULL, NULL,
         "sweep: each rate is this many times the one before"},
        {"sweep-good-share", NULL, FLAG_NUMBER, &r->sweep_share, "0.9", 0.01, 1, NULL, NULL,
         "sweep: a rate holds when this share of its requests meets the limits"},
        {"sweep-refine", NULL, FLAG_INT, &r->sweep_refine, "3", 0, 10, NULL, NULL,
         "sweep: rates tried between the last that held and the first that broke"},
        {"sweep-max-points", NULL, FLAG_INT, &r->sweep_points, "24", 2, SWEEP_POINTS_MAX, NULL,
         NULL, "sweep: rates tried at most"},
        {"sweep-max-rate", NULL, FLAG_NUMBER, &r->sweep_rate_max, "10000", 1e-6, 1e6, NULL,
         "requests/s", "sweep: the highest rate to try"},
        {"percentiles", "metric-percentiles", FLAG_STRING, &r->percentiles, "50,90,95,99,99.9", 0,
         0, NULL, NULL, "which ones to report"},
        {"metadata", NULL, FLAG_STRING, &r->metadata, NULL, 0, 0, NULL, NULL,
         "KEY=VALUE ... for the result file"},
        {"save-result", NULL, FLAG_BOOL, &r->save, "false", 0, 0, NULL, NULL,
         "write the result file"},
        {"result-dir", NULL, FLAG_STRING, &r->result_dir, ".", 0, 0, NULL, NULL, "its folder"},
        {"result-filename", NULL, FLAG_STRING, &r->result_filename, NULL, 0, 0, NULL, NULL,
         "its name (default: made from backend, rate, model and date)"},
        {"save-times", NULL, FLAG_STRING, &r->times_path, NULL, 0, 0, NULL, NULL,
         "file for the raw times of every request and chunk (JSON Lines)"},
        {"progress", NULL, FLAG_BOOL, &r->progress, "true", 0, 0, NULL, NULL,
         "show progress on standard error"},
        {"disable-tqdm", NULL, FLAG_BOOL, &r->disable_tqdm, "false", 0, 0, NULL, NULL,
         "the same as --no-progress"},
    };
    _Static_assert(sizeof specs / sizeof *specs <= SPEC_MAX, "SPEC_MAX is too small");
    memcpy(out, specs, sizeof specs);
    return sizeof specs / sizeof *specs;
}

moe_err
options_parse_percentiles(const char *text, measure_config *out, errbuf *eb)
{
    out->percentile_count = 0;
    for (const char *at = text;; at++) {
        char *end;
        const double p = strtod(at, &end);
        if (end == at || !(p >= 0 && p <= 100) || (*end != ',' && *end != '\0'))
            return err_set(eb, MOE_EINVAL,
                           "--percentiles: \"%s\" must be numbers of 0..100 with commas", text);
        bool known = false;
        for (size_t i = 0; i < out->percentile_count; i++) {
            known = known || out->percentiles[i] == p;
        }
        if (!known && out->percentile_count == MEASURE_PERCENTILES_MAX)
            return err_set(eb, MOE_ERANGE, "--percentiles: more than %d", MEASURE_PERCENTILES_MAX);
        if (!known) out->percentiles[out->percentile_count++] = p;
        at = end;
        if (*at == '\0') return MOE_OK;
    }
}

/* One limit of len bytes. */
static bool
parse_limit(const char *text, size_t len, measure_config *out)
{
    static const struct {
        const char *name;
        metric which;
    } known[] = {{"ttft:", METRIC_TTFT}, {"tpot:", METRIC_TPOT}, {"e2el:", METRIC_E2EL}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const size_t name_len = strlen(known[i].name);
        if (strncmp(text, known[i].name, name_len) != 0) continue;
        char *end;
        const double ms = strtod(text + name_len, &end);
        if (end == text + name_len || end != text + len || !(ms > 0 && isfinite(ms))) return false;
        out->slo_ms[known[i].which] = ms;
        return true;
    }
    return false;
}

moe_err
options_parse_slo(const char *text, measure_config *out, errbuf *eb)
{
    for (const char *at = text;;) {
        const size_t len = strcspn(at, ",");
        if (!parse_limit(at, len, out))
            return err_set(eb, MOE_EINVAL, "--goodput: \"%s\" must be ttft:MS, tpot:MS or e2el:MS",
                           text);
        if (at[len] == '\0') return MOE_OK;
        at += len + 1;
    }
}

/* text stays as long as the options; its first '=' becomes a NUL. */
static moe_err
add_metadata(options *o, char *text, errbuf *eb)
{
    char *equals = strchr(text, '=');
    if (equals == NULL || equals == text)
        return err_set(eb, MOE_EINVAL, "--metadata: \"%s\" must be KEY=VALUE", text);
    *equals = '\0';
    if (report_key_is_taken(text))
        return err_set(eb, MOE_EINVAL, "--metadata: the result has a \"%s\" of its own", text);
    for (size_t i = 0; i < o->metadata_count; i++) {
        if (strcmp(o->metadata[i].key, text) == 0)
            return err_set(eb, MOE_EINVAL, "--metadata: \"%s\" twice", text);
    }
    if (o->metadata_count == OPTIONS_METADATA_MAX)
        return err_set(eb, MOE_ERANGE, "--metadata: more than %d pairs", OPTIONS_METADATA_MAX);
    o->metadata[o->metadata_count++] = (report_pair){.key = text, .value = equals + 1};
    return MOE_OK;
}

/* --goodput and --metadata take several words; the first is the option's value and the others
 * are left over.  A pair has '=' and a limit has only ':', so each word says whose it is. */
static moe_err
read_words(options *o, const raw *r, errbuf *eb)
{
    size_t bytes = 1 + (r->metadata ? strlen(r->metadata) + 1 : 0);
    for (size_t i = 0; i < o->parsed.word_count; i++) {
        bytes += strlen(o->parsed.words[i]) + 1;
    }
    char *text = o->metadata_text = malloc(bytes);
    if (text == NULL) return err_set(eb, MOE_ENOMEM, "options: out of memory");

    moe_err err = MOE_OK;
    o->sweep = o->parsed.word_count > 0 && strcmp(o->parsed.words[0], "sweep") == 0;
    if (r->goodput != NULL) err = options_parse_slo(r->goodput, &o->measuring, eb);
    if (!err && r->slo != NULL) err = options_parse_slo(r->slo, &o->measuring, eb);
    for (size_t i = 0; !err && i < o->parsed.word_count + 1; i++) {
        const char *word = i == 0 ? r->metadata : o->parsed.words[i - 1];
        if (i == 1 && o->sweep) continue;
        if (word == NULL) continue;
        if (r->metadata != NULL && (i == 0 || strchr(word, '=') != NULL)) {
            strcpy(text, word);
            err = add_metadata(o, text, eb);
            text += strlen(word) + 1;
        } else if (r->goodput != NULL) {
            err = options_parse_slo(word, &o->measuring, eb);
        } else {
            err = err_set(eb, MOE_EINVAL, "\"%s\" belongs to no option", word);
        }
    }
    return err;
}

static moe_err
read_vocab(const char *text, dataset_config *out, errbuf *eb)
{
    char *end;
    errno = 0;
    long long first = 3, last = strtoll(text, &end, 10);
    bool good = end != text && errno == 0;
    if (good && *end == ':') {
        const char *second = end + 1;
        first = last;
        last = strtoll(second, &end, 10);
        good = end != second && errno == 0;
    }
    if (!good || *end != '\0' || first < 0 || last <= first)
        return err_set(eb, MOE_EINVAL, "--random-vocab: \"%s\" must be END or FIRST:END", text);
    out->vocab_first = first;
    out->vocab_end = last;
    return MOE_OK;
}

static moe_err
read_urls(options *o, const raw *r, errbuf *eb)
{
    int n;
    if (r->base_url != NULL)
        n = snprintf(o->base_url, sizeof o->base_url, "%s", r->base_url);
    else
        n = snprintf(o->base_url, sizeof o->base_url, "http://%s:%lld", r->host,
                     (long long)r->port);
    if (n <= 0 || n >= OPTIONS_URL_MAX) return err_set(eb, MOE_EINVAL, "--base-url: bad length");
    while (n > 0 && o->base_url[n - 1] == '/')
        o->base_url[--n] = '\0';
    n = snprintf(o->completions_url, sizeof o->completions_url, "%s%s%s", o->base_url,
                 *r->endpoint == '/' ? "" : "/", r->endpoint);
    if (n >= OPTIONS_URL_MAX) return err_set(eb, MOE_EINVAL, "--endpoint: too long");
    if (r->metrics_url != NULL)
        n = snprintf(o->metrics_url, sizeof o->metrics_url, "%s", r->metrics_url);
    else
        n = snprintf(o->metrics_url, sizeof o->metrics_url, "%s/metrics", o->base_url);
    if (n >= OPTIONS_URL_MAX) return err_set(eb, MOE_EINVAL, "--metrics-url: too long");
    return MOE_OK;
}

static void
copy_values(options *o, const raw *r)
{
    o->model = r->model;
    o->api_key = r->api_key && *r->api_key ? r->api_key : NULL;
    o->backend = r->backend;
    o->label = r->label;
    o->tokenizer = r->tokenizer;
    o->dataset_name = r->dataset_name;
    o->prompt_count = (size_t)r->prompts;
    o->warmup_count = (size_t)r->warmups;
    o->ramp_name = r->ramp;
    o->concurrency_max = (uint32_t)r->concurrency;
    o->temperature = r->temperature;
    o->ignore_eos = r->ignore_eos;
    o->seed = (uint64_t)r->seed;
    o->timeout_ms = (uint32_t)ceil(r->timeout_s * 1e3);
    o->save_result = r->save || r->result_filename != NULL;
    o->show_progress = r->progress && !r->disable_tqdm;
    o->result_dir = r->result_dir;
    o->result_filename = r->result_filename;
    o->times_path = r->times_path;
    o->repeats = (uint32_t)r->repeats;
    o->check_determinism = r->check_determinism;
    o->chaos_status = r->chaos_status;
    o->metrics_interval_s = r->metrics_interval_s;
    o->measuring.trim_start_s = r->trim_start_s;
    o->measuring.trim_end_s = r->trim_end_s;
    o->measuring.hold_s = r->hold_s;
    o->sweeping = (sweep_config){
        .rate_first = isfinite(r->rate) ? r->rate : 0,
        .rate_max = r->sweep_rate_max,
        .growth = r->sweep_growth,
        .good_share = r->sweep_share,
        .refine = (uint32_t)r->sweep_refine,
        .point_max = (uint32_t)r->sweep_points,
        .seconds = r->sweep_seconds,
    };
}

static dataset_kind
kind_of(const char *name)
{
    static const char *const names[] = {[DATASET_RANDOM] = "random",
                                        [DATASET_PREFIX_REPETITION] = "prefix_repetition",
                                        [DATASET_SHAREGPT] = "sharegpt",
                                        [DATASET_MULTI_TURN] = "multi-turn",
                                        [DATASET_EXPERT_SKEW] = "expert-skew",
                                        [DATASET_CUSTOM] = "custom",
                                        [DATASET_TRACE] = "trace"};
    dataset_kind kind = DATASET_RANDOM;
    while (strcmp(names[kind], name) != 0)
        kind++; /* flags.c refused every other name */
    return kind;
}

static moe_err
read_dataset(options *o, const raw *r, errbuf *eb)
{
    const dataset_kind kind = kind_of(r->dataset_name);
    const bool repetition = kind == DATASET_PREFIX_REPETITION;
    o->data = (dataset_config){
        .kind = kind,
        .count = o->prompt_count + o->warmup_count,
        .seed = o->seed,
        .path = r->dataset_path,
        .shuffle = !r->disable_shuffle,
        .output_len = kind == DATASET_CUSTOM ? r->output_len : r->sharegpt_len,
        .output_max = r->sharegpt_max,
        .input_len = repetition ? r->repetition_suffix_len : r->input_len,
        .random_output_len = repetition ? r->repetition_output : r->random_output_len,
        .prefix_len = repetition ? r->repetition_prefix_len : r->prefix_len,
        .prefix_count = r->repetition_prefixes,
        .range_ratio = r->range_ratio,
        .turn_max = r->turn_max,
        .think_s = r->think_s,
        .skew = strcmp(r->skew, "khot") == 0   ? DATASET_SKEW_KHOT
                : strcmp(r->skew, "zipf") == 0 ? DATASET_SKEW_ZIPF
                                               : DATASET_SKEW_UNIFORM,
        .skew_hot = r->skew_hot,
        .skew_alpha = r->skew_alpha,
        .domains = r->skew_domains,
        .speed = r->trace_speed,
        .time_unit_s = r->trace_unit_s,
        .token_max = r->trace_token_max,
    };
    return read_vocab(r->random_vocab, &o->data, eb);
}

static moe_err
read_arrivals(options *o, const raw *r, errbuf *eb)
{
    o->arrivals = (arrivals_config){
        .rate = r->rate,
        .burstiness = r->burstiness,
        .seed = o->seed,
        .ramp = strcmp(r->ramp, "linear") == 0        ? ARRIVALS_LINEAR
                : strcmp(r->ramp, "exponential") == 0 ? ARRIVALS_EXPONENTIAL
                                                      : ARRIVALS_STEADY,
        .ramp_start = r->ramp_start,
        .ramp_end = r->ramp_end,
    };
    if (o->arrivals.ramp != ARRIVALS_STEADY && isfinite(r->rate))
        return err_set(eb, MOE_EINVAL, "--request-rate and --ramp-up-strategy exclude each other");
    if (o->arrivals.ramp != ARRIVALS_STEADY && !(r->ramp_start > 0 && r->ramp_end > 0))
        return err_set(
            eb, MOE_EINVAL,
            "--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps above 0");
    return MOE_OK;
}

static moe_err
check_together(const options *o, errbuf *eb)
{
    const double *slo = o->measuring.slo_ms;
    if (o->measuring.hold_s > 0 && (o->sweep || o->data.kind == DATASET_MULTI_TURN))
        return err_set(eb, MOE_EINVAL, "--max-seconds is not for sweep and multi-turn");
    if (!o->sweep) return MOE_OK;
    if (!(slo[METRIC_TTFT] > 0 || slo[METRIC_TPOT] > 0 || slo[METRIC_E2EL] > 0))
        return err_set(eb, MOE_EINVAL, "sweep needs --slo, such as --slo ttft:500,tpot:50");
    if (o->data.kind == DATASET_TRACE || o->data.kind == DATASET_MULTI_TURN ||
        o->arrivals.ramp != ARRIVALS_STEADY || o->repeats > 1)
        return err_set(eb, MOE_EINVAL,
                       "sweep sets the rate itself: no trace, multi-turn, ramp or repeats");
    return MOE_OK;
}

moe_err
options_parse(options *o, int argc, char **argv, errbuf *eb)
{
    *o = (options){0};
    raw r = {0};
    flag_spec specs[SPEC_MAX];
    const size_t count = list_specs(&r, specs);
    moe_err err = flags_parse(&o->parsed, specs, count, argc, argv, eb);
    if (!err && o->parsed.help) {
        o->help = true;
        return MOE_OK;
    }
    if (!err) err = options_parse_percentiles(r.percentiles, &o->measuring, eb);
    if (!err) err = read_words(o, &r, eb);
    if (!err) err = read_urls(o, &r, eb);
    if (!err) copy_values(o, &r);
    if (!err) err = read_dataset(o, &r, eb);
    if (!err) err = read_arrivals(o, &r, eb);
    if (!err && r.chaos != NULL) err = chaos_parse(r.chaos, &o->chaos, eb);
    if (!err) err = check_together(o, eb);
    return err;
}

void
options_fini(options *o)
{
    flags_fini(&o->parsed);
    free(o->metadata_text);
    *o = (options){0};
}

void
options_print_help(FILE *to)
{
    raw r;
    flag_spec specs[SPEC_MAX];
    const size_t count = list_specs(&r, specs);
    flags_print_help(to, "conclave-loadgen [sweep] [options]",
                     "Loads an OpenAI-compatible completions server and measures its answers.\n"
                     "sweep: finds the highest rate at which the limits of --slo still hold.\n"
                     "Exit status: 0 if every request completed, 1 if any failed or answers "
                     "differed, 2 for bad options or a server that can't be used.",
                     specs, count);
}
