/* trace_merge: the traces of a whole fleet as one file that Perfetto opens, on one clock.
 *
 * Every event is copied.  Its time is moved to the clock of the first file's host (trace_align.h),
 * and each file gets a process number of its own, since hosts may give one number twice.  A line
 * "conclave_merge" names the hosts and how far their clocks were apart.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_TRACE_MERGE_H
#define MOE_LOADGEN_TRACE_MERGE_H

#include <stdio.h>

#include "loadgen/trace_align.h"

#define TRACE_MERGE_FILES_MAX 256

/* align: of the same files.  The result is one JSON array; events are in the order of the files.
 *   MOE_ERANGE  more than TRACE_MERGE_FILES_MAX files
 *   MOE_EIO     writing failed; and what trace_read_file() returns */
moe_err trace_merge(const trace_align *align, const char *const *paths, size_t count, FILE *to,
                    errbuf *eb);

/* The hosts for people; nothing for a single one. */
void trace_merge_print_hosts(const trace_align *align, FILE *to);

#endif
