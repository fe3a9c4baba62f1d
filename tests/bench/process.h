/* process: children of the benchmark: started, waited for, ended.
 *
 * A child gets SIGTERM when the benchmark dies, so that it ends in its own orderly way.
 *
 * Threads: the main thread.
 */
#ifndef MOE_TESTS_BENCH_PROCESS_H
#define MOE_TESTS_BENCH_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define PROCESS_ARGS_MAX 64

typedef struct process {
    pid_t pid; /* 0: not running */
    char name[32];
} process;

/* A growing command line; its words are owned by it. */
typedef struct command {
    char *words[PROCESS_ARGS_MAX]; /* NULL-terminated */
    uint32_t count;
    bool full; /* a word was left out */
} command;

void command_add(command *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Each word of a text, separated by spaces; NULL adds nothing. */
void command_add_words(command *c, const char *text);
void command_fini(command *c);

/* Start words[0]; its output goes to the file `log` (appended).
 *   MOE_EIO  can't be started; a program that can't be executed ends with 127 instead  */
moe_err process_start(process *out, const char *name, const command *c, const char *log,
                      errbuf *eb);
bool process_running(process *p);
void process_wait(process *p);
/* SIGTERM, then SIGKILL after patience_ms. */
void process_end(process *p, uint32_t patience_ms);

/* From now on SIGINT, SIGTERM and SIGHUP do not end this process: a process_run() under way ends
 * its child and fails, and process_interrupted() is true, so that what was started is ended in
 * order. */
void process_catch_signals(void);
bool process_interrupted(void);

/* Run to the end.  Standard output is returned in *out (free() it), NULL out: goes to this one's
 * standard error.  *status: exit status, 128 + signal.
 *   MOE_EIO, MOE_ENOMEM
 *   MOE_ECLOSED  interrupted  */
moe_err process_run(const command *c, char **out, int *status, errbuf *eb);

#endif
