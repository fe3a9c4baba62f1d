/* conclave-bench: measures the machine, the kernels, the engine and the whole stack. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/bench.h"

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"hw", "peaks of this machine: arithmetic, memory, hand-overs", bench_hw},
    {"kernels", "each kernel of each tier, beside those peaks", bench_kernels},
    {"engine", "router and workers without HTTP: prefill and decode", bench_engine},
    {"serve", "the whole stack under conclave-loadgen", bench_serve},
};

static void
print_usage(FILE *to)
{
    fprintf(to, "usage: conclave-bench SUBCOMMAND [options]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(to, "\nconclave-bench SUBCOMMAND --help lists its options.\n"
                "Exit status: 0, 1 when measuring failed, 2 for bad options.\n");
}

int
main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") == 0 || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(name, commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    }
    if (argc > 1) fprintf(stderr, "conclave-bench: no subcommand is called \"%s\"\n", name);
    print_usage(stderr);
    return 2;
}
