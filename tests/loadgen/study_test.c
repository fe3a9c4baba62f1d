/* study: reading folders, and the page that is made of them. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/strbuf.h"
#include "loadgen/study_report.h"

TestSuite(study, .timeout = 30);

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
        "<strong>EP4 instead of TP4: 32 / 4</strong>: Output throughput &times; 1.84 (95 % 1.71 to "
        "1.99), better, q = 0.032",
        "id=\"effects\"",
        "p 0.0079, q 0.032",
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
