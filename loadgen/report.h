/* report: a run's figures for people (a table) and for programs (a JSON file).
 *
 * The JSON has three parts in a fixed order: the 32 keys of the published study's result files,
 * then what today's `vllm bench serve` adds to them, then our own.  Tools for either kind read it.
 * Where a figure does not exist (no request completed; the TTFT of a failed request) the value is
 * null, never 0.  Arrays per request have one element for each request, failed ones included.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_REPORT_H
#define MOE_LOADGEN_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "loadgen/chaos.h"
#include "loadgen/client.h"
#include "loadgen/dataset.h"
#include "loadgen/determinism.h"
#include "loadgen/measure.h"
#include "loadgen/record.h"
#include "loadgen/scrape.h"
#include "loadgen/series.h"

typedef struct report_pair {
    const char *key, *value;
} report_pair;

/* One finished run.  Everything is borrowed. */
typedef struct report_run {
    const char *date; /* "YYYYMMDD-HHMMSS" */
    const char *backend, *endpoint_type, *label /* or NULL */;
    const char *model_id, *tokenizer_id;
    const char *dataset_name, *dataset_path /* or NULL */;
    double request_rate, burstiness; /* requests/s or INFINITY; NaN = a trace's own times */
    const char *ramp;                /* "linear", "exponential" or NULL */
    double ramp_start, ramp_end;
    const char *const *domains; /* [domain_count], of prompts' domain; 0 = they have none */
    size_t domain_count;
    uint32_t concurrency_max; /* 0 = no limit */
    uint64_t seed;
    double temperature;
    bool ignore_eos;
    size_t warmup_count, repeated_count;
    const char *server_json; /* the server's own description, JSON text, or NULL */
    const report_pair *metadata;
    size_t metadata_count;

    const measure_config *config;
    const measure *figures;
    const prompt *prompts;         /* [count] */
    const request_record *records; /* [count] */
    size_t count;

    /* Each may be NULL. */
    const histogram *histograms; /* [METRIC_COUNT] */
    const series *over_time;
    const client_stats *client;
    const scrape_result *scraped;
    const chaos_plan *chaos;
    const determinism *determinism;
    uint32_t repeat; /* which one of several runs, from 0 */
} report_run;

/* Was the generator itself too slow for what it measured?  That is, its lag's p99 is above 10 ms or
 * its thread ran more than 80 % of the time. */
bool report_client_was_late(const report_run *run);
/* The share of the run's time in which the client's thread ran; NaN when not known. */
double report_cpu_share(const report_run *run);

/* May not be used as a metadata key, because the report writes one of that name? */
bool report_key_is_taken(const char *key);

/*   MOE_EIO  writing failed
 *   MOE_ENOMEM  */
moe_err report_write_json(const report_run *run, FILE *to, errbuf *eb);

/* The same to a file, which appears whole or not at all; missing folders are made.
 * path [size] receives the file's path. */
moe_err report_save(const report_run *run, const char *dir, const char *filename, char *path,
                    size_t size, errbuf *eb);

void report_print_table(const report_run *run, FILE *to);

/* The raw times of a run, one JSON object a line for each request: what every figure can be
 * computed from again.   MOE_EIO, MOE_ENOMEM */
moe_err report_write_times(const report_run *run, FILE *to, errbuf *eb);

/* Warnings about the measurement itself: a late client, failed steps of chaos, unequal answers. */
void report_print_warnings(const report_run *run, FILE *to);

/* The first few distinct errors, with how often each occurred; nothing when none failed. */
void report_print_errors(const report_run *run, FILE *to);

#endif
