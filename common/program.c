#include "common/program.h"

#include <signal.h>

#include "common/file.h"
#include "common/log.h"

int
program_begin(const program *p, flags *f, run_dir *run, int argc, char **argv)
{
    errbuf eb = {{0}};
    *f = (flags){0};
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is an error of that write, no death */
    moe_err err = flags_parse(f, p->specs, p->spec_count, argc, argv, &eb);
    if (!err && f->help) {
        flags_print_help(stdout, p->usage, p->summary, p->specs, p->spec_count);
        return 0;
    }
    const bool needs_model = p->model_optional == NULL || !*p->model_optional;
    if (!err && f->word_count > 0)
        err = err_set(&eb, MOE_EINVAL, "\"%s\" is no option (--help lists them)", f->words[0]);
    if (!err && needs_model && *p->model == NULL)
        err = err_set(&eb, MOE_EINVAL, "--model is missing");
    if (!err && needs_model && !file_is_folder(*p->model))
        err = err_set(&eb, MOE_ENOTFOUND, "--model: %s is no folder", *p->model);
    if (!err) err = run_dir_open(run, *p->run_dir, &eb);
    if (!err) return PROGRAM_GO_ON;
    fprintf(stderr, "%s: %s\n", p->name, eb.text);
    return 2;
}

void
program_log(const program *p, const char *role)
{
    log_level level = LOG_LEVEL_INFO;
    log_level_parse(*p->log_level, &level);
    log_init(role, level);
}
