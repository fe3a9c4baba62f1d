#include "frontend/fleet_tally.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exchange/wire.h"

#define NS_PER_S_F 1e9
#define VERDICTS_MAX 16
#define VERDICT_BYTES 24

enum { ROWS, BUSY_NS, WAIT_NS, WORKER_COUNTS };

typedef struct worker_figures {
    bool known; /* by router 0, now */
    uint32_t slots;
    uint64_t hosted_bytes;
    uint64_t counts[WORKER_COUNTS]; /* of all routers, since the start */
} worker_figures;

typedef uint64_t last_counts[WORKER_MAX][WORKER_COUNTS];

struct fleet_tally {
    const char *labels;
    uint32_t router_count;
    last_counts *last; /* [router_count] what each router said last */
    worker_figures workers[WORKER_MAX];
    double *layers; /* [layer_count] balancedness */
    size_t layer_count;
    struct {
        char name[VERDICT_BYTES];
        uint64_t last, count;
    } verdicts[VERDICTS_MAX];
    size_t verdict_count;
};

moe_err
fleet_tally_create(fleet_tally **out, uint32_t router_count, const char *labels, errbuf *eb)
{
    *out = NULL;
    fleet_tally *t = calloc(1, sizeof *t);
    if (t != NULL) t->last = calloc(router_count, sizeof *t->last);
    if (t != NULL) t->layers = calloc(FLEET_TALLY_LAYERS_MAX, sizeof *t->layers);
    if (t == NULL || t->last == NULL || t->layers == NULL) {
        fleet_tally_free(t);
        return err_set(eb, MOE_ENOMEM, "out of memory");
    }
    t->labels = labels != NULL ? labels : "";
    t->router_count = router_count;
    *out = t;
    return MOE_OK;
}

void
fleet_tally_free(fleet_tally *t)
{
    if (t == NULL) return;
    free(t->last);
    free(t->layers);
    free(t);
}

/* ---- taking in ---- */

/* What a counter grew by; one that fell begins anew. */
static uint64_t
growth(uint64_t *last, uint64_t now)
{
    const uint64_t by = now >= *last ? now - *last : now;
    *last = now;
    return by;
}

static void
take_worker(fleet_tally *t, uint32_t router, const Conclave__WorkerStatus *w)
{
    const uint64_t now[WORKER_COUNTS] = {
        [ROWS] = w->rows, [BUSY_NS] = w->busy_ns, [WAIT_NS] = w->wait_ns};
    worker_figures *f = &t->workers[w->worker_id];
    for (int i = 0; i < WORKER_COUNTS; i++)
        f->counts[i] += growth(&t->last[router][w->worker_id][i], now[i]);
    if (router != 0) return;
    f->known = true;
    f->slots = w->slots;
    f->hosted_bytes = w->bytes_hosted;
}

static void
take_verdict(fleet_tally *t, const Conclave__VerdictCount *v)
{
    size_t i = 0;
    while (i < t->verdict_count && strcmp(t->verdicts[i].name, v->verdict) != 0)
        i++;
    if (i == VERDICTS_MAX || strlen(v->verdict) >= VERDICT_BYTES ||
        strspn(v->verdict, "abcdefghijklmnopqrstuvwxyz_") != strlen(v->verdict))
        return;
    if (i == t->verdict_count) {
        snprintf(t->verdicts[i].name, VERDICT_BYTES, "%s", v->verdict);
        t->verdict_count++;
    }
    t->verdicts[i].count += growth(&t->verdicts[i].last, v->count);
}

void
fleet_tally_take(fleet_tally *t, uint32_t router, const Conclave__RouterStats *s)
{
    for (uint32_t w = 0; w < WORKER_MAX && router == 0; w++)
        t->workers[w].known = false;
    for (size_t i = 0; i < s->n_workers; i++) {
        if (s->workers[i]->worker_id < WORKER_MAX) take_worker(t, router, s->workers[i]);
    }
    const Conclave__BalanceStats *b = s->balance;
    if (router != 0 || b == NULL) return;
    for (size_t i = 0; i < b->n_verdicts; i++)
        take_verdict(t, b->verdicts[i]);
    const size_t n = b->n_layer_balancedness;
    t->layer_count = n < FLEET_TALLY_LAYERS_MAX ? n : FLEET_TALLY_LAYERS_MAX;
    if (n != 0) memcpy(t->layers, b->layer_balancedness, t->layer_count * sizeof *t->layers);
}

/* ---- printing ---- */

static void
print_family(strbuf *out, const char *name, const char *type, const char *help)
{
    strbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void
print_sample(const fleet_tally *t, strbuf *out, const char *name, const char *label,
             const char *value_of, double value)
{
    strbuf_printf(out, "%s{%s%s%s=\"%s\"} %.17g\n", name, t->labels, t->labels[0] ? "," : "", label,
                  value_of, value);
}

static double
worker_value(const worker_figures *w, int figure)
{
    switch (figure) {
    case ROWS: return (double)w->counts[ROWS];
    case BUSY_NS:
    case WAIT_NS: return (double)w->counts[figure] / NS_PER_S_F;
    case WORKER_COUNTS: return w->slots;
    default: return (double)w->hosted_bytes;
    }
}

static void
print_workers(const fleet_tally *t, strbuf *out)
{
    static const char *const families[][3] = {
        [ROWS] = {"conclave:worker_rows_total", "counter", "Rows that a worker computed"},
        [BUSY_NS] = {"conclave:worker_busy_seconds_total", "counter",
                     "Time in which it computed them"},
        [WAIT_NS] = {"conclave:worker_wait_seconds_total", "counter",
                     "Time in which a router had nothing else to do until this worker's results "
                     "were there; workers are waited for side by side"},
        [WORKER_COUNTS] = {"conclave:worker_slots", "gauge",
                           "Slots of each layer, in the placement in force"},
        [WORKER_COUNTS + 1] = {"conclave:worker_hosted_bytes", "gauge",
                               "Packed weights of the experts that it hosts"},
    };
    for (int f = 0; f < WORKER_COUNTS + 2; f++) {
        print_family(out, families[f][0], families[f][1], families[f][2]);
        for (uint32_t w = 0; w < WORKER_MAX; w++) {
            char id[12];
            if (!t->workers[w].known) continue;
            snprintf(id, sizeof id, "%u", w);
            print_sample(t, out, families[f][0], "worker", id, worker_value(&t->workers[w], f));
        }
    }
}

void
fleet_tally_print(const fleet_tally *t, strbuf *out)
{
    print_workers(t, out);
    if (t->layer_count != 0)
        print_family(out, "conclave:layer_balancedness", "gauge",
                     "Mean rows of a worker over the most, by the window's load, of one layer");
    for (size_t l = 0; l < t->layer_count; l++) {
        char id[24];
        snprintf(id, sizeof id, "%zu", l);
        print_sample(t, out, "conclave:layer_balancedness", "layer", id, t->layers[l]);
    }
    if (t->verdict_count != 0)
        print_family(out, "conclave:placement_decisions_total", "counter",
                     "Looks at the placement, by what came of them");
    for (size_t v = 0; v < t->verdict_count; v++)
        print_sample(t, out, "conclave:placement_decisions_total", "verdict", t->verdicts[v].name,
                     (double)t->verdicts[v].count);
}
