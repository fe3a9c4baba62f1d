/* study: comparing cells, reading folders, and the page that is made of them. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/strbuf.h"
#include "loadgen/study_report.h"

TestSuite(study, .timeout = 30);

/* ---- comparing ---- */

Test(study, five_against_five_apart_differ)
{
    const double a[] = {10, 11, 12, 13, 14}, b[] = {20, 21, 22, 23, 24};
    const comparison c = compare_values(a, 5, b, 5);
    cr_expect_float_eq(c.p, 2.0 / 252, 1e-12, "the two deals that keep the groups whole");
    cr_expect_float_eq(c.p_min, 2.0 / 252, 1e-12);
    cr_expect_eq(c.verdict, COMPARE_DIFFERENT);
    cr_expect_eq(c.median_a, 12);
    cr_expect_float_eq(c.ratio, 22.0 / 12, 1e-12);
}

/* Worked by hand: sums of two of {1, 2, 3, 4}; |difference of means| is 1 for {1,3}|{2,4}, which
 * {1,2}, {3,4} (2) and {2,4} (1) reach, and {1,4}, {2,3} (0) don't. */
Test(study, p_is_the_share_of_deals_as_far_apart)
{
    const double a[] = {3, 1}, b[] = {2, 4};
    const comparison c = compare_values(a, 2, b, 2);
    cr_expect_float_eq(c.p, 4.0 / 6, 1e-12);
    cr_expect_float_eq(c.p_min, 2.0 / 6, 1e-12);
    cr_expect_eq(c.verdict, COMPARE_TOO_FEW);
}

Test(study, equal_and_mixed_values_are_noise)
{
    const double a[] = {5, 5, 5, 5, 5}, b[] = {1, 2, 3, 4, 5}, d[] = {1.1, 2.1, 2.9, 4.2, 4.9};
    cr_expect_eq(compare_values(a, 5, a, 5).p, 1);
    cr_expect_eq(compare_values(a, 5, a, 5).verdict, COMPARE_NOISE);
    cr_expect_eq(compare_values(b, 5, d, 5).verdict, COMPARE_NOISE);
    cr_expect(isnan(compare_values(a, 0, b, 5).p));
    cr_expect_eq(compare_values(a, 0, b, 5).verdict, COMPARE_TOO_FEW);
}

Test(study, groups_of_unequal_size)
{
    const double a[] = {1},
                 b[30] = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
    cr_expect_float_eq(compare_values(a, 1, b, 19).p, 2.0 / 20, 1e-12, "1 and 20 are as far out");
    cr_expect_float_eq(compare_values(a, 1, b, 19).p_min, 1.0 / 20, 1e-12);
}

/* Too many deals to try them all. */
Test(study, many_values_are_dealt_at_random)
{
    double a[40], b[40];
    for (int i = 0; i < 40; i++) {
        a[i] = i;
        b[i] = i + 0.01;
    }
    cr_expect_gt(compare_values(a, 40, b, 40).p, 0.9);
    for (int i = 0; i < 40; i++) {
        b[i] = i + 30;
    }
    const comparison c = compare_values(a, 40, b, 40);
    cr_expect_lt(c.p, 1e-4);
    cr_expect_gt(c.p, 0);
    cr_expect_eq(c.verdict, COMPARE_DIFFERENT);
}

/* ---- one result ---- */

static const char result_text[] =
    "{\"date\":\"20260101-000000\",\"completed\":4,\"failed\":0,\"median_ttft_ms\":12.5,"
    "\"median_tpot_ms\":2,\"output_throughput\":100,\"request_throughput\":3,\"trimmed\":%s,"
    "\"server_metrics\":{\"before\":{\"conclave:steps_total{m=\\\"x\\\"}\":10,"
    "\"conclave:steps_limited_by_seqs_total\":1,\"conclave:steps_total_other\":7},\"after\":{"
    "\"conclave:steps_total{m=\\\"x\\\"}\":110,\"conclave:steps_limited_by_seqs_total\":26}},"
    "\"client\":{\"late\":true}}";

Test(study, a_result_gives_figures_and_what_bound)
{
    char text[2000];
    study_run run;
    bool bad;
    errbuf eb = {{0}};
    snprintf(text, sizeof text, result_text, "null");
    cr_assert_eq(study_parse_run(text, strlen(text), &run, &bad, &eb), MOE_OK, "%s", eb.text);
    cr_expect(!bad);
    cr_expect_eq(run.values[STUDY_TTFT], 12.5);
    cr_expect_eq(run.values[STUDY_OUTPUT], 100);
    cr_expect_eq(run.steps, 100);
    cr_expect_eq(run.by_seqs, 25);
    cr_expect(isnan(run.by_tokens));
    cr_expect(run.client_late);
    snprintf(text, sizeof text, result_text, "{\"steady_output_throughput\":140}");
    cr_assert_eq(study_parse_run(text, strlen(text), &run, &bad, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(run.values[STUDY_OUTPUT], 140, "that of the window");
    cr_expect(isnan(run.values[STUDY_REQUESTS]));
}

Test(study, failed_requests_make_a_bad_run)
{
    static const struct {
        const char *text;
        moe_err err;
        bool bad;
    } cases[] = {{"{\"completed\":3,\"failed\":1}", MOE_OK, true},
                 {"{\"completed\":0,\"failed\":0}", MOE_OK, true},
                 {"{\"completed\":3,\"failed\":0}", MOE_OK, false},
                 {"{\"failed\":0}", MOE_EINVAL, true},
                 {"{\"completed\":\"3\"}", MOE_EINVAL, true},
                 {"[]", MOE_EINVAL, true},
                 {"{", MOE_EINVAL, true}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        study_run run;
        bool bad = true;
        errbuf eb = {{0}};
        cr_expect_eq(study_parse_run(cases[i].text, strlen(cases[i].text), &run, &bad, &eb),
                     cases[i].err, "%s", cases[i].text);
        if (!cases[i].err) cr_expect_eq(bad, cases[i].bad, "%s", cases[i].text);
    }
}

/* ---- folders ---- */

static char root[] = "/tmp/study-test.XXXXXX";

static void
put_file(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f, "%s", path);
    fputs(text, f);
    fclose(f);
}

/* A cell whose runs have these output throughputs; NULL values: none. */
static void
put_cell(const char *folder, const char *mode, const char *seqs, const char *load,
         const double *values, size_t n)
{
    static study_card card;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, folder);
    cr_assert_eq(mkdir(path, 0700), 0);
    strcat(path, "/results_json");
    cr_assert_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/%s/traces", root, folder);
    cr_assert_eq(mkdir(path, 0700), 0);
    card_init(&card);
    for (int i = 0; i < CARD_FIELDS; i++) {
        if (card_fields[i].usual == NULL)
            strcpy(card.values[i], card_fields[i].type == CARD_TEXT ? "x" : "4");
    }
    card_set(&card, "conclave.mode", mode, NULL);
    card_set(&card, "conclave.load", load, NULL);
    card_set(&card, "workload.data.max-num-seqs", seqs, NULL);
    card_set(&card, "workload.model.model_family", "<b>&model", NULL);
    card_set(&card, "Model-executor.expert_parallel.mode", mode[0] == 't' ? "tp" : "ep", NULL);
    snprintf(path, sizeof path, "%s/%s/card.yaml", root, folder);
    FILE *f = fopen(path, "w");
    cr_assert_eq(card_write(&card, f, NULL), MOE_OK);
    fclose(f);
    for (size_t i = 0; i < n; i++) {
        char name[64], text[256];
        snprintf(name, sizeof name, "results_json/r%zu.json", i + 1);
        snprintf(text, sizeof text,
                 "{\"completed\":4,\"failed\":0,\"output_throughput\":%g,\"median_tpot_ms\":2}",
                 values[i]);
        put_file(folder, name, text);
    }
}

static char *
make_report(study *s)
{
    char *text;
    size_t len;
    errbuf eb = {{0}};
    cr_assert_eq(study_read(root, s, &eb), MOE_OK, "%s", eb.text);
    FILE *to = open_memstream(&text, &len);
    cr_assert_eq(study_write_report(s, to, &eb), MOE_OK, "%s", eb.text);
    fclose(to);
    return text;
}

static void
remove_root(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", root);
    cr_assert_eq(system(command), 0);
}

Test(study, the_page_says_what_differs_and_what_does_not)
{
    static const double low[] = {10, 11, 12, 13, 14}, high[] = {20, 21, 22, 23, 24};
    cr_assert_not_null(mkdtemp(root));
    put_cell("a[32_8]", "tp4", "32", "mixed", low, 5);
    put_cell("b[32_8]", "ep4", "32", "mixed", high, 5);
    put_cell("c[8_8]", "ep4", "8", "mixed", high, 5);
    put_cell("d", "ep4r4", "32", "mixed", NULL, 0);
    put_file("d", "skipped", "this version runs <1> router\n");
    put_file("b[32_8]", "traces/summary.json",
             "{\"median_step_us\":5,\"expert_tokens\":[[1,3],[2,2]],\"timeline_step\":4,"
             "\"timeline\":[{\"process\":0,\"name\":\"wait<\",\"layer\":1,\"start_us\":0,"
             "\"duration_us\":9}],\"balancedness_series\":[{\"seconds\":0,\"balancedness\":1},"
             "{\"seconds\":1,\"balancedness\":0.5}]}");
    study s;
    char *text = make_report(&s);
    cr_expect_eq(s.count, 4);
    static const char *const wanted[] = {
        "Output throughput: <strong>EP4, 32 / 4</strong> 22 tokens/s, TP4, 32 / 4 12",
        "1.83 times (p = 0.0079), better",
        "no difference beyond noise",
        "this version runs &lt;1&gt; router",
        "&lt;b&gt;&amp;model",
        "href=\"b%5B32_8%5D/results_json/r3.json\">22</a>",
        "id=\"max-seqs\"",
        "id=\"heat\"",
        "1.50 of the mean",
        "id=\"balance\"",
        "id=\"timeline\"",
        "wait&lt;, layer 1: 9.0 us",
        "viewport",
        "prefers-color-scheme:dark"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        cr_expect_not_null(strstr(text, wanted[i]), "no %s in %s", wanted[i], text);
    }
    cr_expect_null(strstr(text, "<script"));
    cr_expect_null(strstr(text, "nan"), "a number that is none");
    static const char *const outside[] = {"src=\"http", "href=\"http", "url(", "@import"};
    for (size_t i = 0; i < 4; i++) {
        cr_expect_null(strstr(text, outside[i]), "the page needs %s", outside[i]);
    }
    free(text);
    study_fini(&s);
    remove_root();
}

Test(study, few_runs_prove_nothing)
{
    static const double low[] = {10, 11, 12}, high[] = {200, 210, 220};
    cr_assert_not_null(mkdtemp(root));
    put_cell("a", "tp4", "32", "mixed", low, 3);
    put_cell("b", "ep4", "32", "mixed", high, 3);
    study s;
    char *text = make_report(&s);
    cr_expect_not_null(strstr(text, "too few runs to tell"));
    cr_expect_null(strstr(text, "class=\"l different\""));
    free(text);
    study_fini(&s);
    remove_root();
}

Test(study, pairs_differ_in_one_thing)
{
    static const double runs[] = {1, 2};
    static const struct {
        const char *folder, *mode, *seqs, *load;
    } cells[] = {{"a", "tp4", "8", "mixed"},   {"b", "ep4", "8", "mixed"},
                 {"c", "ep4r4", "8", "mixed"}, {"d", "ep4", "16", "mixed"},
                 {"e", "ep4", "64", "mixed"},  {"f", "ep4", "8", "skewed"},
                 {"g", "ep8", "8", "mixed"},   {"j", "ep4", "8", "balanced"},
                 {"h", "ep4", "8", "prefill"}, {"i", "tp4", "8", "balanced"}};
    static const char *const wanted[] = {"ab0", "bc0", "ij0", "jf2", "be3"};
    cr_assert_not_null(mkdtemp(root));
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        put_cell(cells[i].folder, cells[i].mode, cells[i].seqs, cells[i].load, runs, 2);
    }
    study s;
    errbuf eb = {{0}};
    cr_assert_eq(study_read(root, &s, &eb), MOE_OK, "%s", eb.text);
    study_pair *pairs = calloc(STUDY_PAIRS_MAX, sizeof *pairs);
    cr_expect_eq(study_find_pairs(&s, pairs), 5);
    for (size_t i = 0; i < 5; i++) {
        char got[16];
        snprintf(got, sizeof got, "%.1s%.1s%d", pairs[i].a->folder, pairs[i].b->folder,
                 (int)pairs[i].axis);
        cr_expect_str_eq(got, wanted[i]);
    }
    free(pairs);
    study_fini(&s);
    remove_root();
}

Test(study, a_folder_that_is_wrong_is_named)
{
    study s;
    errbuf eb = {{0}};
    cr_assert_not_null(mkdtemp(root));
    cr_expect_eq(study_read(root, &s, &eb), MOE_ENOTFOUND);
    cr_expect_eq(study_read("/no/such/folder", &s, &eb), MOE_ENOTFOUND);
    put_cell("good", "ep4", "8", "mixed", NULL, 0);
    put_file("good", "results_json/r2.json", "{\"completed\":");
    cr_expect_eq(study_read(root, &s, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "good/results_json/r2.json"), "%s", eb.text);
    put_file("good", "results_json/r2.json", "{\"completed\":1}");
    put_file("good", "card.yaml", "version: [");
    cr_expect_eq(study_read(root, &s, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "good/card.yaml"), "%s", eb.text);
    remove_root();
}
