/* bench: the subcommands of conclave-bench, and what they share.
 *
 * Each gets the command line from its own name on, prints its results on standard output and
 * returns the exit status: 0, 1 when something failed while measuring, 2 for bad options.
 *
 * Threads: the main thread.
 */
#ifndef MOE_TESTS_BENCH_BENCH_H
#define MOE_TESTS_BENCH_BENCH_H

#include "common/flags.h"
#include "tests/bench/report.h"

int bench_hw(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_engine(int argc, char **argv);
int bench_serve(int argc, char **argv);

/* What every subcommand takes. */
typedef struct bench_options {
    bool json;
    int64_t repeat, rounds;
    const char *compare; /* a build folder, or NULL */
} bench_options;

#define BENCH_COMPARE_SPECS(o)                                                                     \
    {"compare",   NULL,                                                                            \
     FLAG_STRING, &(o).compare,                                                                    \
     NULL,        0,                                                                               \
     0,           NULL,                                                                            \
     "BUILD_DIR", "also run BUILD_DIR's binaries, alternating with these, and print the ratios"},  \
    {                                                                                              \
        "rounds", NULL, FLAG_INT, &(o).rounds, "3", 3, SAMPLES_MAX, NULL, NULL,                    \
            "of --compare: how often each build runs"                                              \
    }

#define BENCH_SPECS(o, repeat_default)                                                             \
    {"json", NULL, FLAG_BOOL, &(o).json, "false",                                                  \
     0,      0,    NULL,      NULL,      "JSON lines instead of a table"},                         \
    {                                                                                              \
        "repeat", NULL, FLAG_INT, &(o).repeat, repeat_default, 1, SAMPLES_MAX, NULL, NULL,         \
            "how often each quantity is measured"                                                  \
    }

#define BENCH_GO_ON (-1)

/* Parse the options of a subcommand; BENCH_GO_ON, or the exit status. */
int bench_parse(flags *f, const char *name, const char *summary, const flag_spec *specs,
                size_t count, int argc, char **argv);

/* Say on standard error what was wrong; returns 1. */
int bench_fail(const char *name, const char *text);

/* Folder of this program, or of the binaries that --bin-dir names. */
void bench_bin_dir(char *out, size_t size);

/* Run the subcommand by this build and by o->compare's, alternating, without --compare, and print
 * the ratio of each test. */
int bench_compare(const char *name, const bench_options *o, int argc, char **argv);

#endif
