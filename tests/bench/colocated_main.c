/* conclave-bench-colocated: `conclave-bench engine --workers 0`: the engine in one process. */
#include "tests/bench/bench.h"

int
main(int argc, char **argv)
{
    return bench_engine(argc, argv);
}
