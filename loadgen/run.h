/* run: one measured run against a server, from prompts to figures.
 *
 * A target is a server that answers; a plan says what to send it; a run holds all that came of it.
 *
 * Threads: one at a time for each target.  A run may start helper threads (scrape, chaos), which
 * are gone when it returns.
 */
#ifndef MOE_LOADGEN_RUN_H
#define MOE_LOADGEN_RUN_H

#include <signal.h>

#include "loadgen/options.h"
#include "loadgen/report.h"
#include "loadgen/server.h"

typedef struct target {
    const options *o; /* borrowed */
    server *srv;
    char *served_model, *server_json; /* owned; NULL = not asked, or not told */
    const char *model;
    const volatile sig_atomic_t *stop;
} target;

typedef struct run_plan {
    size_t count, warmup_count;
    uint64_t seed; /* of arrivals, prompts and sampling */
    arrivals_config arrivals;
    uint32_t concurrency_max; /* 0 = no limit */
    uint32_t repeat;
    bool check_determinism; /* send all once more, otherwise mixed, and compare the answers */
    bool show_progress;
    const chaos_plan *chaos; /* NULL = none */
} run_plan;

typedef struct run {
    run_plan plan;
    char date[32];
    dataset data; /* the measured prompts, then those of the warm-up */
    uint64_t *arrivals_ns;
    request_record *records; /* [plan.count] */
    size_t sent; /* the first so many; less than plan.count where the load was held for a time */
    measure figures;
    histogram *histograms; /* [METRIC_COUNT] */
    series over_time;
    client_stats client;
    scrape_result scraped;
    chaos_plan chaos;
    determinism same;
} run;

/* Ask the server for what is not given.  Release with target_close(), also after an error. */
moe_err target_open(target *t, const options *o, const volatile sig_atomic_t *stop, errbuf *eb);
void target_close(target *t);

/* The plan that the options ask for, as the repeat-th of several. */
run_plan run_plan_of(const options *o, uint32_t repeat);

/* Make prompts, warm up, load and measure.  Failed requests are no error.  Release *out with
 * run_fini(), also after an error.  Errors are those of dataset.h, arrivals.h, client.h, and
 *   MOE_EINVAL  a request of the warm-up failed */
moe_err run_execute(const target *t, const run_plan *plan, run *out, errbuf *eb);
void run_fini(run *r);

/* Everything that a report says, borrowed from both. */
report_run run_describe(const target *t, const run *r);

/* backend-LOAD-model-date, without slashes of a model's path.  load NULL = the run's rate and
 * limit. out [size]. */
void run_name(const target *t, const run *r, const char *load, char *out, size_t size);

#endif
