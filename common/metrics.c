#include "common/metrics.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef enum metric_kind { COUNTER, GAUGE, HISTOGRAM } metric_kind;

struct metric {
    metric_kind kind;
    const char *name, *labels, *help;
    const double *bounds;
    size_t bound_count;
    _Atomic uint64_t value_bits; /* a double: the value, or a histogram's sum */
    _Atomic uint64_t buckets[METRIC_BUCKETS_MAX + 1]; /* last: +Inf; not cumulative */
};

struct metrics {
    size_t count;
    metric all[METRICS_MAX];
};

static double
load(const _Atomic uint64_t *bits)
{
    const uint64_t raw = atomic_load_explicit(bits, memory_order_relaxed);
    double v;
    memcpy(&v, &raw, sizeof v);
    return v;
}

static uint64_t
bits_of(double v)
{
    uint64_t raw;
    memcpy(&raw, &v, sizeof raw);
    return raw;
}

static void
add(_Atomic uint64_t *bits, double value)
{
    uint64_t old = atomic_load_explicit(bits, memory_order_relaxed), next;
    do {
        double v;
        memcpy(&v, &old, sizeof v);
        next = bits_of(v + value);
    } while (!atomic_compare_exchange_weak_explicit(bits, &old, next, memory_order_relaxed,
                                                    memory_order_relaxed));
}

moe_err
metrics_create(metrics **out)
{
    *out = calloc(1, sizeof **out);
    return *out == NULL ? MOE_ENOMEM : MOE_OK;
}

void
metrics_free(metrics *m)
{
    free(m);
}

static metric *
register_metric(metrics *m, metric_kind kind, const char *name, const char *labels,
                const char *help)
{
    if (m == NULL || m->count == METRICS_MAX) return NULL;
    metric *x = &m->all[m->count++];
    x->kind = kind;
    x->name = name;
    x->labels = labels;
    x->help = help;
    return x;
}

metric *
metrics_counter(metrics *m, const char *name, const char *labels, const char *help)
{
    return register_metric(m, COUNTER, name, labels, help);
}

metric *
metrics_gauge(metrics *m, const char *name, const char *labels, const char *help)
{
    return register_metric(m, GAUGE, name, labels, help);
}

metric *
metrics_histogram(metrics *m, const char *name, const char *labels, const char *help,
                  const double *bounds, size_t count)
{
    assert(count <= METRIC_BUCKETS_MAX);
    metric *x = register_metric(m, HISTOGRAM, name, labels, help);
    if (x == NULL) return NULL;
    x->bounds = bounds;
    x->bound_count = count;
    return x;
}

void
metric_add(metric *m, double value)
{
    if (m != NULL) add(&m->value_bits, value);
}

void
metric_set(metric *m, double value)
{
    if (m != NULL) atomic_store_explicit(&m->value_bits, bits_of(value), memory_order_relaxed);
}

void
metric_observe(metric *m, double value)
{
    if (m == NULL) return;
    size_t i = 0;
    while (i < m->bound_count && value > m->bounds[i])
        i++;
    atomic_fetch_add_explicit(&m->buckets[i], 1, memory_order_relaxed);
    add(&m->value_bits, value);
}

double
metric_value(const metric *m)
{
    if (m == NULL) return 0;
    if (m->kind != HISTOGRAM) return load(&m->value_bits);
    uint64_t total = 0;
    for (size_t i = 0; i <= m->bound_count; i++) {
        total += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
    }
    return (double)total;
}

static void
print_histogram(const metric *x, strbuf *out)
{
    const char *labels = x->labels ? x->labels : "", *comma = x->labels ? "," : "";
    uint64_t total = 0;
    for (size_t i = 0; i <= x->bound_count; i++) {
        total += atomic_load_explicit(&x->buckets[i], memory_order_relaxed);
        strbuf_printf(out, "%s_bucket{%s%sle=\"", x->name, labels, comma);
        if (i < x->bound_count)
            strbuf_printf(out, "%.15g", x->bounds[i]);
        else
            strbuf_puts(out, "+Inf");
        strbuf_printf(out, "\"} %llu\n", (unsigned long long)total);
    }
    const char *open = x->labels ? "{" : "", *close = x->labels ? "}" : "";
    strbuf_printf(out, "%s_sum%s%s%s %.17g\n", x->name, open, labels, close, load(&x->value_bits));
    strbuf_printf(out, "%s_count%s%s%s %llu\n", x->name, open, labels, close,
                  (unsigned long long)total);
}

void
metrics_print(const metrics *m, strbuf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    for (size_t i = 0; i < m->count; i++) {
        const metric *x = &m->all[i];
        const bool first = i == 0 || strcmp(m->all[i - 1].name, x->name) != 0;
        if (first)
            strbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", x->name, x->help, x->name,
                          kinds[x->kind]);
        if (x->kind == HISTOGRAM)
            print_histogram(x, out);
        else
            strbuf_printf(out, "%s%s%s%s %.17g\n", x->name, x->labels ? "{" : "",
                          x->labels ? x->labels : "", x->labels ? "}" : "", load(&x->value_bits));
    }
}
