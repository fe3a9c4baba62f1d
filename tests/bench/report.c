#include "tests/bench/report.h"

#include <stdlib.h>
#include <string.h>

#include "common/strbuf.h"

#define LINE_BYTES_MAX ((size_t)1 << 16)

void
samples_add(samples *s, double value)
{
    if (s->count < SAMPLES_MAX) s->values[s->count++] = value;
}

static int
compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The value at a place of the sorted samples; 0 without samples. */
static double
sorted_at(const samples *s, uint32_t first, uint32_t second)
{
    if (s->count == 0) return 0;
    samples sorted = *s;
    qsort(sorted.values, sorted.count, sizeof sorted.values[0], compare_doubles);
    return (sorted.values[first] + sorted.values[second]) / 2;
}

double
samples_min(const samples *s)
{
    return sorted_at(s, 0, 0);
}

double
samples_max(const samples *s)
{
    return s->count == 0 ? 0 : sorted_at(s, s->count - 1, s->count - 1);
}

double
samples_median(const samples *s)
{
    return s->count == 0 ? 0 : sorted_at(s, (s->count - 1) / 2, s->count / 2);
}

static result_extra *
next_extra(result *r)
{
    return r->extra_count < RESULT_EXTRAS_MAX ? &r->extras[r->extra_count++] : NULL;
}

void
result_number(result *r, const char *key, double number)
{
    result_extra *x = next_extra(r);
    if (x != NULL) *x = (result_extra){.key = key, .number = number};
}

void
result_text(result *r, const char *key, const char *text)
{
    result_extra *x = next_extra(r);
    if (x != NULL) *x = (result_extra){.key = key, .text = text};
}

/* Four digits are what a timing is worth; whole numbers keep all of theirs. */
static void
put_number(strbuf *sb, double v)
{
    if (v > -1e15 && v < 1e15 && v == (double)(int64_t)v)
        strbuf_printf(sb, "%lld", (long long)v);
    else
        strbuf_printf(sb, "%.5g", v);
}

static void
put_json(strbuf *sb, const report *r, const result *x)
{
    strbuf_puts(sb, "{\"bench\": ");
    strbuf_json_string(sb, r->bench, strlen(r->bench));
    strbuf_puts(sb, ", \"test\": ");
    strbuf_json_string(sb, x->test, strlen(x->test));
    strbuf_puts(sb, ", \"unit\": ");
    strbuf_json_string(sb, x->unit, strlen(x->unit));
    strbuf_printf(sb, ", \"better\": \"%s\"", x->lower_is_better ? "lower" : "higher");
    const double numbers[] = {samples_median(&x->values), samples_min(&x->values),
                              samples_median(&x->values), samples_max(&x->values), x->values.count};
    static const char *const names[] = {"value", "min", "median", "max", "n"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        strbuf_printf(sb, ", \"%s\": ", names[i]);
        put_number(sb, numbers[i]);
    }
    strbuf_puts(sb, ", \"values\": [");
    for (uint32_t i = 0; i < x->values.count; i++) {
        if (i > 0) strbuf_puts(sb, ", ");
        put_number(sb, x->values.values[i]);
    }
    strbuf_puts(sb, "]");
    for (uint32_t i = 0; i < x->extra_count; i++) {
        strbuf_printf(sb, ", \"%s\": ", x->extras[i].key);
        if (x->extras[i].text != NULL)
            strbuf_json_string(sb, x->extras[i].text, strlen(x->extras[i].text));
        else
            put_number(sb, x->extras[i].number);
    }
    strbuf_puts(sb, "}\n");
}

static void
put_row(strbuf *sb, const result *x)
{
    strbuf_printf(sb, "%-40s %10.5g %10.5g %10.5g  %-8s", x->test, samples_min(&x->values),
                  samples_median(&x->values), samples_max(&x->values), x->unit);
    for (uint32_t i = 0; i < x->extra_count; i++) {
        if (x->extras[i].text != NULL)
            strbuf_printf(sb, " %s=%s", x->extras[i].key, x->extras[i].text);
        else
            strbuf_printf(sb, " %s=%.4g", x->extras[i].key, x->extras[i].number);
    }
    strbuf_puts(sb, "\n");
}

static void
begin_table(report *r)
{
    if (r->begun || r->json) return;
    r->begun = true;
    fprintf(r->out, "%-40s %10s %10s %10s  %s\n", "test", "min", "median", "max", "unit");
}

void
report_result(report *r, const result *x)
{
    strbuf sb;
    strbuf_init(&sb, LINE_BYTES_MAX);
    begin_table(r);
    if (r->json)
        put_json(&sb, r, x);
    else
        put_row(&sb, x);
    fputs(strbuf_text(&sb), r->out);
    fflush(r->out); /* a long run shows what it has */
    strbuf_fini(&sb);
}

void
report_skip(report *r, const char *test, const char *why)
{
    strbuf sb;
    strbuf_init(&sb, LINE_BYTES_MAX);
    begin_table(r);
    if (r->json) {
        strbuf_puts(&sb, "{\"bench\": ");
        strbuf_json_string(&sb, r->bench, strlen(r->bench));
        strbuf_puts(&sb, ", \"test\": ");
        strbuf_json_string(&sb, test, strlen(test));
        strbuf_puts(&sb, ", \"skipped\": ");
        strbuf_json_string(&sb, why, strlen(why));
        strbuf_puts(&sb, "}\n");
    } else {
        strbuf_printf(&sb, "%-40s skipped: %s\n", test, why);
    }
    fputs(strbuf_text(&sb), r->out);
    fflush(r->out);
    strbuf_fini(&sb);
}

void
report_title(report *r, const char *text)
{
    if (r->json) return;
    fprintf(r->out, "%s%s\n", r->begun ? "\n" : "", text);
    begin_table(r);
}
