#include "loadgen/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Raw values, before they are checked against each other. */
typedef struct raw {
    const char *base_url, *host, *endpoint, *model, *api_key, *backend, *label, *tokenizer;
    const char *dataset_name, *dataset_path, *random_vocab, *percentiles, *goodput, *metadata;
    const char *result_dir, *result_filename;
    int64_t port, prompts, concurrency, warmups, seed, output_len, sharegpt_len;
    int64_t input_len, random_output_len, prefix_len;
    double rate, burstiness, temperature, timeout_s, range_ratio;
    bool ignore_eos, disable_shuffle, save, progress, disable_tqdm;
} raw;

#define SPEC_MAX 48

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
         "random|sharegpt|custom", NULL, "where prompts come from"},
        {"dataset-path", NULL, FLAG_STRING, &r->dataset_path, NULL, 0, 0, NULL, NULL,
         "file of sharegpt (JSON) or custom (JSON Lines)"},
        {"num-prompts", NULL, FLAG_INT, &r->prompts, "100", 1, DATASET_PROMPTS_MAX / 2, NULL, NULL,
         "requests to send"},
        {"request-rate", NULL, FLAG_NUMBER, &r->rate, "inf", 1e-6, INFINITY, NULL, "requests/s",
         "arrivals; inf = all at once"},
        {"burstiness", NULL, FLAG_NUMBER, &r->burstiness, "1", 1e-3, INFINITY, NULL, NULL,
         "shape of the gamma distributed gaps: 1 = Poisson, lower = bursts, inf = equal gaps"},
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
        {"percentiles", "metric-percentiles", FLAG_STRING, &r->percentiles, "50,90,95,99", 0, 0,
         NULL, NULL, "which ones to report"},
        {"metadata", NULL, FLAG_STRING, &r->metadata, NULL, 0, 0, NULL, NULL,
         "KEY=VALUE ... for the result file"},
        {"save-result", NULL, FLAG_BOOL, &r->save, "false", 0, 0, NULL, NULL,
         "write the result file"},
        {"result-dir", NULL, FLAG_STRING, &r->result_dir, ".", 0, 0, NULL, NULL, "its folder"},
        {"result-filename", NULL, FLAG_STRING, &r->result_filename, NULL, 0, 0, NULL, NULL,
         "its name (default: made from backend, rate, model and date)"},
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

moe_err
options_parse_slo(const char *text, measure_config *out, errbuf *eb)
{
    static const struct {
        const char *name;
        metric which;
    } known[] = {{"ttft", METRIC_TTFT}, {"tpot", METRIC_TPOT}, {"e2el", METRIC_E2EL}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const size_t len = strlen(known[i].name);
        if (strncmp(text, known[i].name, len) != 0 || text[len] != ':') continue;
        char *end;
        const double ms = strtod(text + len + 1, &end);
        if (end == text + len + 1 || *end != '\0' || !(ms > 0 && isfinite(ms))) break;
        out->slo_ms[known[i].which] = ms;
        return MOE_OK;
    }
    return err_set(eb, MOE_EINVAL, "--goodput: \"%s\" must be ttft:MS, tpot:MS or e2el:MS", text);
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
    if (r->goodput != NULL) err = options_parse_slo(r->goodput, &o->measuring, eb);
    for (size_t i = 0; !err && i < o->parsed.word_count + 1; i++) {
        const char *word = i == 0 ? r->metadata : o->parsed.words[i - 1];
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
    o->request_rate = r->rate;
    o->burstiness = r->burstiness;
    o->concurrency_max = (uint32_t)r->concurrency;
    o->temperature = r->temperature;
    o->ignore_eos = r->ignore_eos;
    o->seed = (uint64_t)r->seed;
    o->timeout_ms = (uint32_t)ceil(r->timeout_s * 1e3);
    o->save_result = r->save || r->result_filename != NULL;
    o->show_progress = r->progress && !r->disable_tqdm;
    o->result_dir = r->result_dir;
    o->result_filename = r->result_filename;
}

static moe_err
read_dataset(options *o, const raw *r, errbuf *eb)
{
    const bool sharegpt = strcmp(r->dataset_name, "sharegpt") == 0;
    const bool custom = strcmp(r->dataset_name, "custom") == 0;
    o->data = (dataset_config){
        .kind = sharegpt ? DATASET_SHAREGPT
                : custom ? DATASET_CUSTOM
                         : DATASET_RANDOM,
        .count = o->prompt_count + o->warmup_count,
        .seed = o->seed,
        .path = r->dataset_path,
        .shuffle = !r->disable_shuffle,
        .output_len = sharegpt ? r->sharegpt_len : r->output_len,
        .input_len = r->input_len,
        .random_output_len = r->random_output_len,
        .prefix_len = r->prefix_len,
        .range_ratio = r->range_ratio,
    };
    return read_vocab(r->random_vocab, &o->data, eb);
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
    flags_print_help(to, "conclave-loadgen [options]",
                     "Loads an OpenAI-compatible completions server and measures its answers.\n"
                     "Exit status: 0 if every request completed, 1 if any failed, 2 for bad "
                     "options or a server that can't be used.",
                     specs, count);
}
