/* conclave-trace: reads the files of --trace.  Only options. */
#include <string.h>

#include "loadgen/json_writer.h"
#include "loadgen/trace_summary.h"

static const char usage[] =
    "usage: conclave-trace summary [--json] FILE...   figures of one router's steps\n"
    "\n"
    "FILES are what --trace wrote: router-0.json, worker-0.json, ...; one router's, and any of "
    "its\n"
    "workers'.  --json prints everything that a report needs.  Perfetto and chrome://tracing open "
    "the\n"
    "files themselves.\n";

int
main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    const bool json = argc > 2 && strcmp(argv[2], "--json") == 0;
    const int first = json ? 3 : 2;
    if (argc <= first || strcmp(argv[1], "summary") != 0) {
        fputs(usage, stderr);
        return 2;
    }
    errbuf eb = {{0}};
    trace_summary s;
    moe_err err =
        trace_summarize((const char *const *)argv + first, (size_t)(argc - first), &s, &eb);
    if (!err && json) err = trace_summary_write_json(&s, stdout, &eb);
    if (!err && !json) trace_summary_print(&s, stdout);
    trace_summary_fini(&s);
    if (err) fprintf(stderr, "conclave-trace: %s\n", eb.text);
    return err ? 1 : 0;
}
