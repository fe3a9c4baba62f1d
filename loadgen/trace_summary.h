/* trace_summary: what traces of one fleet say about its steps.
 *
 * Of one router and its workers, over the steps that the trace holds whole:
 *   step            the spans from "prepare" to "reply", added up
 *   attention       norm, qkv, rope_store, attention, pack, project
 *   moe             ffn_norm, gate, dispatch, wait, combine
 *   expert compute  the part of "wait" in which the worker that answered last was computing
 *   communication   dispatch, and what is left of "wait": messages on their way, threads not awake
 *   overlap         the share of that last worker's computing that passed before the router began
 * to wait; without micro-batches about 0 straggler       the last answer of a layer - the mean of
 * all answers of it, over the step balancedness    (sum of mean rows per worker) / (sum of most
 * rows of a worker), sums over the layers of steps; 1 is even.  imbalance is its inverse offset
 * worker's clock - router's clock, from the fastest messages of either way; taken as 0 on one host
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_TRACE_SUMMARY_H
#define MOE_LOADGEN_TRACE_SUMMARY_H

#include <stdio.h>

#include "common/err.h"
#include "loadgen/trace_read.h"

#define TRACE_FILES_MAX 256
#define TRACE_STEPS_MAX (1u << 22)
#define TRACE_TIMELINE_MAX 4096 /* spans */
#define TRACE_BINS 60

typedef enum trace_part {
    TRACE_PART_ATTENTION,
    TRACE_PART_GATE, /* with ffn_norm */
    TRACE_PART_DISPATCH,
    TRACE_PART_WAIT,
    TRACE_PART_COMBINE,
    TRACE_PART_OTHER, /* embedding, head, sampling, request and reply */
    TRACE_PARTS
} trace_part;

typedef struct trace_step {
    double number, start_us, end_us;
    double parts_us[TRACE_PARTS];
    double expert_us; /* expert compute within wait */
    double hidden_us; /* of the last workers, before wait */
    double straggler_us;
    double rows_max, rows_all; /* summed over layers */
    double bytes, events;
} trace_step;

typedef struct trace_span {
    uint32_t process; /* 0 = the router, 1 + w = worker w */
    int32_t layer;
    char name[TRACE_NAME_MAX];
    double start_us, duration_us; /* from the step's start, router's clock */
} trace_span;

typedef struct trace_summary {
    uint32_t worker_count;
    double lost;
    bool cut;          /* a file ends early */
    trace_step *steps; /* [step_count] */
    size_t step_count, step_capacity;
    double last_count[TRACE_ID_MAX]; /* how often a worker answered last */
    double worker_us[TRACE_ID_MAX];  /* its busy time, as it says */
    double offset_us[TRACE_ID_MAX];  /* NaN = not known */
    uint32_t layer_count, expert_count;
    double *expert_tokens; /* [layer_count * expert_count]; NULL when the router was killed */
    trace_span *timeline;  /* [timeline_count] of one step of median length */
    size_t timeline_count;
    double timeline_step;
} trace_summary;

/* The files of one router and any of its workers.
 *   MOE_EINVAL  not one router among the files, no whole step; or as trace_read.h
 *   MOE_ERANGE, MOE_ENOTFOUND, MOE_EIO, MOE_ENOMEM */
moe_err trace_summarize(const char *const *paths, size_t count, trace_summary *out, errbuf *eb);
void trace_summary_fini(trace_summary *s);

/* All parts of a step; the median of all steps.  NaN when memory runs out. */
double trace_step_us(const trace_step *step);
double trace_median_step_us(const trace_summary *s);

/* The figures for people. */
void trace_summary_print(const trace_summary *s, FILE *to);
/* Everything, for the report.   MOE_EIO, MOE_ENOMEM */
moe_err trace_summary_write_json(const trace_summary *s, FILE *to, errbuf *eb);

#endif
