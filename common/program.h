/* program: what every process of a fleet does first: options, --help, the run directory, the log.
 *
 * Threads: call once, at start.
 */
#ifndef MOE_COMMON_PROGRAM_H
#define MOE_COMMON_PROGRAM_H

#include "common/flags.h"
#include "common/run_dir.h"

typedef struct program {
    const char *name;    /* "conclave-router" */
    const char *usage;   /* "conclave-router --model DIR --run-dir DIR --workers N" */
    const char *summary; /* one sentence */
    const flag_spec *specs;
    size_t spec_count;
    /* Where the specs put what every process has; read after parsing. */
    const char *const *model;     /* --model, must be given unless *model_optional */
    const bool *model_optional;   /* or NULL */
    const char *const *run_dir;   /* --run-dir */
    const char *const *log_level; /* --log-level */
} program;

#define PROGRAM_GO_ON (-1)

/* Returns PROGRAM_GO_ON with *run open, or the exit status: 0 after --help, 2 after bad options
 * (explained on standard error). flags_fini(f) is the caller's in every case. */
int program_begin(const program *p, flags *f, run_dir *run, int argc, char **argv);

/* Name the process in the log ("worker-3") at the level that was asked for. */
void program_log(const program *p, const char *role);

#endif
