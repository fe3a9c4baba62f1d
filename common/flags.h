/* flags: command-line options, each also from the environment and from a JSON config file.
 *
 * A program lists its options in one table.  A value comes from the first of
 *   1. the command line        --max-num-seqs 64, or --max-num-seqs=64
 *   2. the environment         CONCLAVE_MAX_NUM_SEQS=64
 *   3. the file of --config    {"max-num-seqs": 64}   (also "max_num_seqs")
 *   4. the default in the table
 * Names are vLLM's wherever vLLM has the option.  Two options are always there: --help and --config
 * FILE.
 *
 * Threads: call once, at start.
 */
#ifndef MOE_COMMON_FLAGS_H
#define MOE_COMMON_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"

typedef enum flag_kind {
    FLAG_STRING, /* out: const char **  */
    FLAG_INT,    /* out: int64_t *      min..max */
    FLAG_NUMBER, /* out: double *       min..max; "inf" is a number */
    FLAG_BOOL,   /* out: bool *         --x, --x=true|false|on|off|1|0, --no-x */
    FLAG_CHOICE, /* out: const char **  one of `choices` */
} flag_kind;

typedef struct flag_spec {
    const char *name;  /* without the dashes */
    const char *alias; /* another spelling, or NULL */
    flag_kind kind;
    void *out;
    const char *fallback; /* the default as text; NULL = leave *out as it is */
    double min, max;      /* FLAG_INT, FLAG_NUMBER; both 0 = no limit */
    const char *choices;  /* FLAG_CHOICE: "ep|tp" */
    const char *unit;     /* for --help: "tokens", "ms", ...; or NULL */
    const char *help;
} flag_spec;

/* Parsed texts live as long as this; zero-initialise it. */
typedef struct flags {
    char **owned;
    size_t owned_count;
    bool help; /* --help was given: print it and exit 0 */
    /* Words that are no options (not starting with --), in order; borrowed from argv. */
    const char **words;
    size_t word_count;
} flags;

/* Fill every spec's *out.
 *   MOE_EINVAL  unknown option or config key, missing or malformed value, value outside its limits:
 * the text names the option and where the value came from MOE_ENOTFOUND, MOE_EIO  the config file
 * can't be read MOE_ENOMEM Release with flags_fini() when the texts are no longer needed, also
 * after an error. */
moe_err flags_parse(flags *f, const flag_spec *specs, size_t count, int argc, char **argv,
                    errbuf *eb);
void flags_fini(flags *f);

/* usage: "conclave-router [options]"; summary: one sentence. */
void flags_print_help(FILE *to, const char *usage, const char *summary, const flag_spec *specs,
                      size_t count);

#endif
