/* conclave-trace: reads the files of --trace.  Only options. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/trace_merge.h"
#include "loadgen/trace_summary.h"

static const char usage[] =
    "usage: conclave-trace summary [--json] FILE...   figures of one router's steps\n"
    "       conclave-trace merge OUT FILE...          one file of all, on one clock\n"
    "\n"
    "FILES are what --trace wrote: router-0.json, worker-0.json, ...; for a summary one router's, "
    "and\n"
    "any of its workers'.  --json prints everything that a report needs.  Perfetto and\n"
    "chrome://tracing open the files themselves, and what merge makes of them: clocks of several\n"
    "hosts are aligned by the times at which messages were sent and received.\n";

static moe_err
summarize(const char *const *paths, size_t count, bool json, errbuf *eb)
{
    trace_summary s;
    moe_err err = trace_summarize(paths, count, &s, eb);
    if (!err && json) err = trace_summary_write_json(&s, stdout, eb);
    if (!err && !json) trace_summary_print(&s, stdout);
    trace_summary_fini(&s);
    return err;
}

static moe_err
merge(const char *out, const char *const *paths, size_t count, errbuf *eb)
{
    trace_align *align = malloc(sizeof *align);
    if (align == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = trace_align_read(align, paths, count, eb);
    FILE *to = err ? NULL : fopen(out, "we");
    if (!err && to == NULL) err = err_set(eb, MOE_EIO, "%s: %s", out, strerror(errno));
    if (!err) err = trace_merge(align, paths, count, to, eb);
    if (to != NULL && fclose(to) != 0 && !err)
        err = err_set(eb, MOE_EIO, "%s: %s", out, strerror(errno));
    if (!err) trace_merge_print_hosts(align, stdout);
    free(align);
    return err;
}

int
main(int argc, char **argv)
{
    const char *const *words = (const char *const *)argv;
    errbuf eb = {{0}};
    moe_err err;
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    const bool json = argc > 2 && strcmp(argv[2], "--json") == 0;
    if (argc > 2 + json && strcmp(argv[1], "summary") == 0) {
        err = summarize(words + 2 + json, (size_t)(argc - 2 - json), json, &eb);
    } else if (argc > 3 && strcmp(argv[1], "merge") == 0) {
        err = merge(argv[2], words + 3, (size_t)(argc - 3), &eb);
    } else {
        fputs(usage, stderr);
        return 2;
    }
    if (err) fprintf(stderr, "conclave-trace: %s\n", eb.text);
    return err ? 1 : 0;
}
