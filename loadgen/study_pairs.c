/* Which cells of a study are compared with which. */
#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/study_report.h"

static bool
same(const study_cell *a, const study_cell *b, const char *path)
{
    return strcmp(study_get(a, path), study_get(b, path)) == 0;
}

/* Are the two equal in all but this axis? */
static bool
differ_only_by(const study_cell *a, const study_cell *b, study_axis axis)
{
    return (axis == STUDY_BY_MODE || axis == STUDY_BY_WORKERS || same(a, b, "conclave.mode")) &&
           (axis == STUDY_BY_EPLB || same(a, b, "Model-executor.expert_parallel.eplb")) &&
           (axis == STUDY_BY_LOAD || same(a, b, "conclave.load")) &&
           (axis == STUDY_BY_SEQS || a->seqs == b->seqs) &&
           (axis == STUDY_BY_TOKENS || a->tokens == b->tokens) &&
           (axis == STUDY_BY_OPTIONS ||
            (same(a, b, "workload.model.precision") && same(a, b, "conclave.options")));
}

/* "ep4r2" is {"ep", 4, "r2"}; "colocated" has no workers. */
typedef struct mode_parts {
    char kind[32];
    unsigned workers;
    const char *rest;
} mode_parts;

static mode_parts
split_mode(const study_cell *c)
{
    const char *mode = study_get(c, "conclave.mode");
    const size_t n = strcspn(mode, "0123456789");
    mode_parts parts = {.workers = 0};
    char *end;
    snprintf(parts.kind, sizeof parts.kind, "%.*s", (int)n, mode);
    parts.workers = (unsigned)strtoul(mode + n, &end, 10);
    parts.rest = end;
    return parts;
}

/* Is b's mode the one that a's is compared with? */
static bool
modes_match(const study_cell *a, const study_cell *b)
{
    const mode_parts x = split_mode(a), y = split_mode(b);
    const bool x_alone = *x.rest == '\0', y_alone = *y.rest == '\0';
    if (strcmp(y.kind, "ep") != 0) return false;
    if (strcmp(x.kind, "colocated") == 0) return y_alone;
    if (x.workers != y.workers || !x_alone) return false;
    return strcmp(x.kind, "tp") == 0 ? y_alone : strcmp(x.kind, "ep") == 0 && *y.rest == 'r';
}

/* The fewest workers of this kind of mode, and another number of them. */
static bool
workers_match(const study *s, const study_cell *a, const study_cell *b)
{
    const mode_parts x = split_mode(a), y = split_mode(b);
    if (strcmp(x.kind, y.kind) != 0 || *x.rest != '\0' || *y.rest != '\0') return false;
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        if (c->run_count == 0 || !differ_only_by(a, c, STUDY_BY_WORKERS)) continue;
        const mode_parts z = split_mode(c);
        if (strcmp(x.kind, z.kind) == 0 && *z.rest == '\0' && z.workers < x.workers) return false;
    }
    return x.workers < y.workers;
}

/* The plain cell, and one with an option. */
static bool
options_match(const study_cell *a, const study_cell *b)
{
    const char *options = study_get(b, "conclave.options");
    return strcmp(study_get(a, "conclave.options"), "none") == 0 && strcmp(options, "none") != 0 &&
           (strncmp(options, "dtype=", 6) == 0 || same(a, b, "workload.model.precision"));
}

/* Does any other cell lie outside of a's and b's value? */
static bool
is_widest(const study *s, const study_cell *a, const study_cell *b, study_axis axis)
{
    for (size_t i = 0; i < s->count; i++) {
        const study_cell *c = &s->cells[i];
        if (c->run_count == 0 || !differ_only_by(a, c, axis)) continue;
        const unsigned v = axis == STUDY_BY_SEQS ? c->seqs : c->tokens;
        if (v < (axis == STUDY_BY_SEQS ? a->seqs : a->tokens) ||
            v > (axis == STUDY_BY_SEQS ? b->seqs : b->tokens))
            return false;
    }
    return true;
}

static bool
is_pair(const study *s, const study_cell *a, const study_cell *b, study_axis axis)
{
    if (a == b || a->run_count == 0 || b->run_count == 0 || !differ_only_by(a, b, axis))
        return false;
    const char *load = study_get(a, "conclave.load");
    switch (axis) {
    case STUDY_BY_MODE: return modes_match(a, b);
    case STUDY_BY_EPLB:
        return strcmp(study_get(a, "Model-executor.expert_parallel.eplb"), "off") == 0 &&
               strcmp(study_get(b, "Model-executor.expert_parallel.eplb"), "on") == 0;
    case STUDY_BY_LOAD:
        return strcmp(load, "balanced") == 0 &&
               strcmp(study_get(b, "conclave.load"), "skewed") == 0;
    case STUDY_BY_SEQS: return a->seqs < b->seqs && is_widest(s, a, b, axis);
    case STUDY_BY_TOKENS: return a->tokens < b->tokens && is_widest(s, a, b, axis);
    case STUDY_BY_WORKERS: return workers_match(s, a, b);
    case STUDY_BY_OPTIONS: return options_match(a, b);
    default: return false;
    }
}

/* log(b / a) of the rounds that both have, into out [STUDY_RUNS_MAX]; returns how many. */
static size_t
logs_by_round(const study_cell *a, const study_cell *b, study_metric metric, double *out)
{
    size_t n = 0;
    for (size_t i = 0; i < a->run_count; i++) {
        for (size_t j = 0; j < b->run_count; j++) {
            const double log_ratio = log(b->runs[j].values[metric] / a->runs[i].values[metric]);
            if (a->runs[i].round == b->runs[j].round && isfinite(log_ratio)) out[n++] = log_ratio;
        }
    }
    return n;
}

static comparison
compare_cells(const study_cell *a, const study_cell *b, study_metric metric)
{
    double x[STUDY_RUNS_MAX], y[STUDY_RUNS_MAX], logs[STUDY_RUNS_MAX];
    const size_t n = study_values(a, metric, x), m = study_values(b, metric, y);
    comparison c = compare_values(x, n, y, m);
    compare_by_round(&c, logs, logs_by_round(a, b, metric, logs));
    return c;
}

size_t
study_find_pairs(const study *s, study_pair *out)
{
    size_t count = 0;
    for (int axis = 0; axis < STUDY_AXES; axis++) {
        for (size_t i = 0; i < s->count * s->count && count < STUDY_PAIRS_MAX; i++) {
            const study_cell *a = &s->cells[i / s->count], *b = &s->cells[i % s->count];
            if (!is_pair(s, a, b, (study_axis)axis)) continue;
            study_pair *pair = &out[count++];
            *pair = (study_pair){.axis = (study_axis)axis, .a = a, .b = b};
            for (int m = 0; m < STUDY_METRICS; m++) {
                pair->of[m] = compare_cells(a, b, (study_metric)m);
            }
        }
    }
    return count;
}

bool
study_differ_by_tokens(const study_cell *a, const study_cell *b)
{
    return differ_only_by(a, b, STUDY_BY_TOKENS);
}

study_name
study_mode_name(const study_cell *cell)
{
    study_name name;
    const char *mode = study_get(cell, "conclave.mode");
    snprintf(name.text, sizeof name.text, "%s", mode);
    const size_t capitals = strcmp(mode, "colocated") == 0 ? 1 : strlen(name.text);
    for (size_t i = 0; i < capitals; i++) {
        name.text[i] = (char)toupper((unsigned char)name.text[i]);
    }
    return name;
}

void
study_describe(const study_cell *cell, char *out, size_t size)
{
    const char *load = study_get(cell, "conclave.load"),
               *options = study_get(cell, "conclave.options");
    const bool eplb = strcmp(study_get(cell, "Model-executor.expert_parallel.eplb"), "on") == 0;
    const bool more = strcmp(options, "none") != 0;
    snprintf(out, size, "%s, %u / %u%s%s%s%s%s", study_mode_name(cell).text, cell->seqs,
             cell->tokens, strcmp(load, "mixed") ? ", " : "", strcmp(load, "mixed") ? load : "",
             eplb ? ", EPLB on" : "", more ? ", " : "", more ? options : "");
}

double
study_bound_seqs(const study_run *run)
{
    return run->by_seqs;
}

double
study_bound_tokens(const study_run *run)
{
    return run->by_tokens;
}

double
study_bound_share(const study_cell *cell, double (*count)(const study_run *run))
{
    double bound = 0, steps = 0;
    for (size_t i = 0; i < cell->run_count; i++) {
        bound += count(&cell->runs[i]);
        steps += cell->runs[i].steps;
    }
    return steps > 0 ? bound / steps : NAN;
}
