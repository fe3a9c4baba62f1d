#include "tests/bench/bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
bench_parse(flags *f, const char *name, const char *summary, const flag_spec *specs, size_t count,
            int argc, char **argv)
{
    errbuf eb = {{0}};
    *f = (flags){0};
    moe_err err = flags_parse(f, specs, count, argc, argv, &eb);
    if (!err && f->help) {
        char usage[64];
        snprintf(usage, sizeof usage, "conclave-bench %s [options]", name);
        flags_print_help(stdout, usage, summary, specs, count);
        return 0;
    }
    if (!err && f->word_count > 0)
        err = err_set(&eb, MOE_EINVAL, "\"%s\" belongs to no option", f->words[0]);
    if (!err) return BENCH_GO_ON;
    fprintf(stderr, "conclave-bench %s: %s\n", name, eb.text);
    return 2;
}

int
bench_fail(const char *name, const char *text)
{
    fprintf(stderr, "conclave-bench %s: %s\n", name, text);
    return 1;
}

void
bench_bin_dir(char *out, size_t size)
{
    const ssize_t n = readlink("/proc/self/exe", out, size - 1);
    out[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(out, '/');
    if (slash != NULL)
        *slash = '\0';
    else
        snprintf(out, size, ".");
}
