#include "tests/bench/bench.h"

int
bench_serve(int argc, char **argv)
{
    (void)argc, (void)argv;
    return bench_fail("serve", "not built");
}
