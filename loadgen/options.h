/* options: the command line of conclave-loadgen, checked and in the units that the modules take.
 *
 * Names are those of `vllm bench serve` wherever it has the option.
 *
 * Threads: call once, at start.
 */
#ifndef MOE_LOADGEN_OPTIONS_H
#define MOE_LOADGEN_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "common/flags.h"
#include "loadgen/dataset.h"
#include "loadgen/measure.h"
#include "loadgen/report.h"

#define OPTIONS_METADATA_MAX 64
#define OPTIONS_URL_MAX 2048

typedef struct options {
    char base_url[OPTIONS_URL_MAX];        /* without a slash at its end */
    char completions_url[OPTIONS_URL_MAX]; /* base_url and the endpoint */
    const char *model;                     /* NULL = ask the server */
    const char *api_key;                   /* NULL = none */
    const char *backend, *label, *tokenizer, *dataset_name;

    dataset_config data; /* without count_tokens */
    size_t prompt_count, warmup_count;
    double request_rate, burstiness;
    uint32_t concurrency_max; /* 0 = no limit */
    double temperature;
    bool ignore_eos;
    uint64_t seed;
    uint32_t timeout_ms;

    measure_config measuring;
    report_pair metadata[OPTIONS_METADATA_MAX];
    size_t metadata_count;
    bool save_result, show_progress;
    const char *result_dir, *result_filename; /* filename NULL = made from the run */

    bool help;
    flags parsed; /* owns the texts */
    char *metadata_text;
} options;

/*   MOE_EINVAL, MOE_ERANGE, MOE_ENOTFOUND, MOE_EIO, MOE_ENOMEM: the text names the option
 * Release with options_fini(), also after an error. */
moe_err options_parse(options *o, int argc, char **argv, errbuf *eb);
void options_fini(options *o);

void options_print_help(FILE *to);

/* The parts with a syntax of their own.  "50,90,99.9" */
moe_err options_parse_percentiles(const char *text, measure_config *out, errbuf *eb);
/* One limit of --goodput: "ttft:500" (ms); ttft, tpot or e2el. */
moe_err options_parse_slo(const char *text, measure_config *out, errbuf *eb);

#endif
