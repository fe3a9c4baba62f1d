/* report: results of measurements, as a table for people or as JSON lines for programs.
 *
 * One result is one quantity, measured several times.  `test` names it: within one run of a
 * subcommand it is unique, so that two builds' runs can be matched by it.  A JSON line holds
 *
 *   {"bench": "hw", "test": "dram.read.t2", "unit": "GB/s", "better": "higher", "value": MEDIAN,
 *    "min": .., "median": .., "max": .., "n": REPEATS, "values": [..], and the result's extras}
 *
 * or {"bench": .., "test": .., "skipped": "no AVX-512 VNNI"}.
 *
 * Threads: one at a time.
 */
#ifndef MOE_TESTS_BENCH_REPORT_H
#define MOE_TESTS_BENCH_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define SAMPLES_MAX 128
#define RESULT_EXTRAS_MAX 8
#define RESULT_TEST_MAX 96

typedef struct samples {
    double values[SAMPLES_MAX]; /* in the order of measuring */
    uint32_t count;
} samples;

/* Values past SAMPLES_MAX are dropped. */
void samples_add(samples *s, double value);
double samples_min(const samples *s);
double samples_max(const samples *s);
double samples_median(const samples *s); /* the mean of the middle two when count is even */

/* Something beside the value: a number, or a text when it is not NULL. */
typedef struct result_extra {
    const char *key;
    double number;
    const char *text;
} result_extra;

typedef struct result {
    char test[RESULT_TEST_MAX];
    const char *unit; /* "GB/s" */
    bool lower_is_better;
    samples values;
    result_extra extras[RESULT_EXTRAS_MAX];
    uint32_t extra_count;
} result;

void result_number(result *r, const char *key, double number);
void result_text(result *r, const char *key, const char *text); /* borrowed until reported */

typedef struct report {
    FILE *out;
    const char *bench; /* the subcommand */
    bool json;
    bool begun;
} report;

void report_result(report *r, const result *x);
void report_skip(report *r, const char *test, const char *why);
/* A heading of the table; nothing in JSON. */
void report_title(report *r, const char *text);

#endif
