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
#include "loadgen/arrivals.h"
#include "loadgen/chaos.h"
#include "loadgen/dataset.h"
#include "loadgen/measure.h"
#include "loadgen/report.h"
#include "loadgen/sweep.h"

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
    arrivals_config arrivals;
    const char *ramp_name;    /* "none", "linear", "exponential" */
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
    const char *times_path;                   /* NULL = raw times are not saved */

    uint32_t repeats;
    bool check_determinism;
    chaos_plan chaos;
    const char *chaos_status;          /* a command, or NULL */
    char metrics_url[OPTIONS_URL_MAX]; /* of the server's /metrics */
    double metrics_interval_s;         /* 0 = don't look */

    bool sweep;
    sweep_config sweeping;

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
/* Limits of --goodput or --slo: "ttft:500" or "ttft:500,tpot:50" (ms); ttft, tpot or e2el. */
moe_err options_parse_slo(const char *text, measure_config *out, errbuf *eb);

#endif
