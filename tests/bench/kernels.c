#include "tests/bench/bench.h"

int
bench_kernels(int argc, char **argv)
{
    (void)argc, (void)argv;
    return bench_fail("kernels", "not built");
}
