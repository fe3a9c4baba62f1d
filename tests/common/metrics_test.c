/* metrics: values, the printed text, and adding from several threads. */
#include <criterion/criterion.h>

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "common/metrics.h"

static metrics *set;
static strbuf text;

static void
setup(void)
{
    cr_assert_eq(metrics_create(&set), MOE_OK);
    strbuf_init(&text, 1 << 20);
}

static void
teardown(void)
{
    metrics_free(set);
    strbuf_fini(&text);
    set = NULL;
}

TestSuite(metrics, .init = setup, .fini = teardown, .timeout = 20);

Test(metrics, prints_counters_gauges_and_histograms)
{
    static const double bounds[] = {0.1, 1, 1048576};
    metric *requests = metrics_counter(set, "vllm:requests", "code=\"200\"", "Requests.");
    metric *refused = metrics_counter(set, "vllm:requests", "code=\"429\"", "Requests.");
    metric *queue = metrics_gauge(set, "conclave:queue", NULL, "Length of the queue.");
    metric *wait = metrics_histogram(set, "t", "m=\"x\"", "Waits.", bounds, 3);
    metric *none = metrics_histogram(set, "u", NULL, "No bounds.", NULL, 0);
    metric_add(requests, 2);
    metric_add(requests, 0.5);
    metric_add(refused, 1);
    metric_set(queue, 7);
    metric_add(queue, -8);
    metric_observe(wait, 0.1); /* a bound is part of its own bucket */
    metric_observe(wait, 0.5);
    metric_observe(wait, 2);
    metric_observe(wait, 1048577);
    metric_observe(none, 3);
    cr_expect_eq(metric_value(requests), 2.5);
    cr_expect_eq(metric_value(queue), -1);
    cr_expect_eq(metric_value(wait), 4);
    metrics_print(set, &text);
    cr_expect_str_eq(strbuf_text(&text), "# HELP vllm:requests Requests.\n"
                                         "# TYPE vllm:requests counter\n"
                                         "vllm:requests{code=\"200\"} 2.5\n"
                                         "vllm:requests{code=\"429\"} 1\n"
                                         "# HELP conclave:queue Length of the queue.\n"
                                         "# TYPE conclave:queue gauge\n"
                                         "conclave:queue -1\n"
                                         "# HELP t Waits.\n"
                                         "# TYPE t histogram\n"
                                         "t_bucket{m=\"x\",le=\"0.1\"} 1\n"
                                         "t_bucket{m=\"x\",le=\"1\"} 2\n"
                                         "t_bucket{m=\"x\",le=\"1048576\"} 3\n"
                                         "t_bucket{m=\"x\",le=\"+Inf\"} 4\n"
                                         "t_sum{m=\"x\"} 1048579.6000000001\n"
                                         "t_count{m=\"x\"} 4\n"
                                         "# HELP u No bounds.\n"
                                         "# TYPE u histogram\n"
                                         "u_bucket{le=\"+Inf\"} 1\n"
                                         "u_sum 3\n"
                                         "u_count 1\n");
}

Test(metrics, takes_no_more_than_its_limits)
{
    static double bounds[METRIC_BUCKETS_MAX];
    for (int i = 0; i < METRIC_BUCKETS_MAX; i++)
        bounds[i] = i;
    metric *h = metrics_histogram(set, "h", NULL, "Full.", bounds, METRIC_BUCKETS_MAX);
    for (int i = 0; i <= METRIC_BUCKETS_MAX; i++)
        metric_observe(h, i);
    metric_observe(h, INFINITY);
    cr_expect_eq(metric_value(h), METRIC_BUCKETS_MAX + 2);
    for (int i = 1; i < METRICS_MAX; i++)
        cr_assert_not_null(metrics_counter(set, "c", NULL, "Many."));
    cr_expect_null(metrics_counter(set, "c", NULL, "One more."));
    cr_expect_null(metrics_gauge(set, "c", NULL, "One more."));
    cr_expect_null(metrics_histogram(set, "c", NULL, "One more.", bounds, 1));
    metrics_print(set, &text);
    cr_expect_null(strstr(strbuf_text(&text), "One more."));
}

Test(metrics, does_nothing_without_a_set)
{
    static const double bounds[] = {1};
    cr_expect_null(metrics_counter(NULL, "a", NULL, "x"));
    cr_expect_null(metrics_gauge(NULL, "a", NULL, "x"));
    cr_expect_null(metrics_histogram(NULL, "a", NULL, "x", bounds, 1));
    metric_add(NULL, 1);
    metric_set(NULL, 1);
    metric_observe(NULL, 1);
    cr_expect_eq(metric_value(NULL), 0);
    metrics_free(NULL);
}

#define THREADS 4
#define ADDS 5000

typedef struct pair {
    metric *counter, *histogram;
} pair;

static void *
add_many(void *arg)
{
    const pair *p = arg;
    for (int i = 0; i < ADDS; i++) {
        metric_add(p->counter, 2);
        metric_observe(p->histogram, i % 3);
    }
    return NULL;
}

Test(metrics, loses_nothing_when_threads_add_at_one_time)
{
    static const double bounds[] = {0, 1};
    pair p = {metrics_counter(set, "c", NULL, "x"),
              metrics_histogram(set, "h", NULL, "x", bounds, 2)};
    pthread_t threads[THREADS];
    for (int t = 0; t < THREADS; t++)
        cr_assert_eq(pthread_create(&threads[t], NULL, add_many, &p), 0);
    for (int t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
    cr_expect_eq(metric_value(p.counter), 2.0 * THREADS * ADDS);
    cr_expect_eq(metric_value(p.histogram), 1.0 * THREADS * ADDS);
    metrics_print(set, &text);
    cr_expect_not_null(strstr(strbuf_text(&text), "h_bucket{le=\"0\"} 6668\n"));
    cr_expect_not_null(strstr(strbuf_text(&text), "h_sum 19996\n"));
}
