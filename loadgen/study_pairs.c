/* Which cells of a study are compared with which. */
#include <ctype.h>
#include <math.h>
#include <stdbool.h>
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
    return (axis == STUDY_BY_MODE || same(a, b, "conclave.mode")) &&
           (axis == STUDY_BY_EPLB || same(a, b, "Model-executor.expert_parallel.eplb")) &&
           (axis == STUDY_BY_LOAD || same(a, b, "conclave.load")) &&
           (axis == STUDY_BY_SEQS || a->seqs == b->seqs) &&
           (axis == STUDY_BY_TOKENS || a->tokens == b->tokens) &&
           same(a, b, "workload.model.precision") && same(a, b, "conclave.options");
}

/* Is b's mode the one that a's is compared with? */
static bool
modes_match(const study_cell *a, const study_cell *b)
{
    const char *x = study_get(a, "conclave.mode"), *y = study_get(b, "conclave.mode");
    if (strncmp(x, "tp", 2) == 0 && strncmp(y, "ep", 2) == 0) return strcmp(x + 2, y + 2) == 0;
    const size_t n = strlen(x);
    return strncmp(x, "ep", 2) == 0 && strncmp(x, y, n) == 0 && y[n] == 'r';
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
    default: return false;
    }
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
                double x[STUDY_RUNS_MAX], y[STUDY_RUNS_MAX];
                const size_t n = study_values(a, (study_metric)m, x);
                pair->of[m] = compare_values(x, n, y, study_values(b, (study_metric)m, y));
            }
        }
    }
    return count;
}

void
study_describe(const study_cell *cell, char *out, size_t size)
{
    char mode[32];
    snprintf(mode, sizeof mode, "%s", study_get(cell, "conclave.mode"));
    for (size_t i = 0; mode[i] != '\0'; i++) {
        if (mode[i] != 'r') mode[i] = (char)toupper((unsigned char)mode[i]);
    }
    const char *load = study_get(cell, "conclave.load"),
               *options = study_get(cell, "conclave.options");
    const bool eplb = strcmp(study_get(cell, "Model-executor.expert_parallel.eplb"), "on") == 0;
    const bool more = strcmp(options, "none") != 0;
    snprintf(out, size, "%s, %u / %u%s%s%s%s%s", mode, cell->seqs, cell->tokens,
             strcmp(load, "mixed") ? ", " : "", strcmp(load, "mixed") ? load : "",
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
