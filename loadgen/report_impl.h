/* report_impl: what the parts of a result file share.  Only for loadgen/report*.c.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_REPORT_IMPL_H
#define MOE_LOADGEN_REPORT_IMPL_H

#include "loadgen/json_writer.h"
#include "loadgen/report.h"

/* "ttft" and so on, as in the names of keys. */
const char *report_metric_key(metric which);

/* The keys that are objects: trimmed, client, histograms, time_series, server_metrics, chaos,
 * determinism, repeat. */
void report_write_details(json_writer *w, const report_run *run);

#endif
