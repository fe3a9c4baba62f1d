/* scrape: the server's own figures (GET /metrics, Prometheus text) before, during and after a run.
 *
 * Every sample of the text is kept under its name and labels as they stand there, but for the
 * buckets of histograms.  At most SCRAPE_SERIES_MAX series and SCRAPE_SAMPLES_MAX moments are held;
 * when a run lasts longer, every second moment is dropped and the interval doubled.
 *
 * A server without /metrics is no error: there is nothing to report then.
 *
 * Threads: scrape_start() makes one thread, which asks the server; scrape_stop() ends it.  The
 * results may be read after that.
 */
#ifndef MOE_LOADGEN_SCRAPE_H
#define MOE_LOADGEN_SCRAPE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define SCRAPE_SERIES_MAX 1024
#define SCRAPE_SAMPLES_MAX 512
#define SCRAPE_NAME_MAX 512

typedef struct scrape_series {
    char *name;     /* with its labels; owned */
    double *values; /* [SCRAPE_SAMPLES_MAX], owned; NaN = it was not there at that moment */
} scrape_series;

typedef struct scrape_result {
    scrape_series *series; /* [series_count], owned */
    size_t series_count;
    uint64_t at_ns[SCRAPE_SAMPLES_MAX]; /* [sample_count]; the first is before the run, the last
                                         * after it */
    size_t sample_count;
    size_t failed;                /* moments at which the server did not answer */
    char error[MOE_ERR_TEXT_MAX]; /* why, the last time */
} scrape_result;

/* Enter one answer as the sample number `sample`; lines that are no samples are read over.  New
 * names become new series while there is room.
 *   MOE_ENOMEM  */
moe_err scrape_parse(const char *text, size_t len, size_t sample, scrape_result *out);

/* Keep the moments 0, 2, 4, ... */
void scrape_halve(scrape_result *r);

void scrape_result_fini(scrape_result *r);

typedef struct scrape scrape;

/* Takes the first sample before it returns.  url: of the metrics; api_key: NULL = none.
 *   MOE_ENOMEM, MOE_EIO (no thread) */
moe_err scrape_start(scrape **out, const char *url, const char *api_key, uint64_t interval_ns,
                     errbuf *eb);
/* Takes the last sample and hands the results over: release with scrape_result_fini().  Accepts
 * NULL, and then *out is empty. */
void scrape_stop(scrape *s, scrape_result *out);

#endif
