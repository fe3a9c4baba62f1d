/* study_read: the experiment folders of a study (deploy/study.sh), read for a report.
 *
 *   DIR/<folder>/card.yaml            what the cell is (study_card.h)
 *   DIR/<folder>/results_json/rN.json round N's result (report.h)
 *   DIR/<folder>/traces/summary.json  of conclave-trace summary --json; may be missing
 *   DIR/<folder>/skipped              one line: why the cell could not run; may be missing
 *
 * Folders without a card are not looked at.  A result without a completed request, or with any that
 * failed, is not counted as a run: it is kept, with its reason.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_READ_H
#define MOE_LOADGEN_STUDY_READ_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/json.h"
#include "loadgen/study_card.h"

#define STUDY_CELLS_MAX 1024
#define STUDY_RUNS_MAX 99 /* rounds */
#define STUDY_RESULT_BYTES_MAX (256u << 20)
#define STUDY_NAME_MAX 256

typedef enum study_metric {
    STUDY_TTFT, /* median of the run, ms */
    STUDY_TPOT,
    STUDY_OUTPUT, /* tokens/s; of the window without ramp and tail where the run has one */
    STUDY_REQUESTS,
    STUDY_METRICS
} study_metric;

typedef struct study_metric_info {
    const char *key;   /* of extract: "median_ttft_ms" */
    const char *words; /* "Time to first token" */
    const char *unit;
    bool lower_is_better;
} study_metric_info;
extern const study_metric_info study_metrics[STUDY_METRICS];

typedef struct study_run {
    unsigned round; /* N of rN.json */
    double values[STUDY_METRICS];
    double steps, by_seqs, by_tokens,
        by_blocks;                        /* from the scheduler's counters; NaN = not known */
    double tokens_in, tokens_out;         /* of a request, mean */
    double placements, moved;             /* adopted and moved during the run; NaN = not known */
    double balance_before, balance_after; /* as the server says; NaN = not known */
    double wait_share;                    /* of the router's time; NaN = not known */
    bool client_late;
    char date[24];
} study_run;

typedef struct study_cell {
    char folder[STUDY_NAME_MAX]; /* name only */
    study_card card;
    unsigned seqs, tokens; /* the card's */
    char skipped[512];     /* "" = not */
    study_run runs[STUDY_RUNS_MAX];
    size_t run_count;
    size_t bad_runs; /* with failed requests */
    cJSON *trace;    /* owned; NULL = none */
} study_cell;

typedef struct study {
    study_cell *cells; /* [count], by folder */
    size_t count;
} study;

/*   MOE_ENOTFOUND  no such folder, or no card in it
 *   MOE_EINVAL, MOE_ERANGE, MOE_EIO, MOE_ENOMEM  the text names the file */
moe_err study_read(const char *dir, study *out, errbuf *eb);
/* One experiment folder. */
moe_err study_read_cell(const char *path, study_cell *out, errbuf *eb);
void study_fini(study *s);

/* A value of the cell's card. */
static inline const char *
study_get(const study_cell *cell, const char *path)
{
    return card_get(&cell->card, path);
}

/* The runs' values of a metric, into out [STUDY_RUNS_MAX]; returns how many are numbers. */
size_t study_values(const study_cell *cell, study_metric metric, double *out);

/* A result file's text, into *out.   MOE_EINVAL */
moe_err study_parse_run(const char *text, size_t len, study_run *out, bool *bad, errbuf *eb);

#endif
