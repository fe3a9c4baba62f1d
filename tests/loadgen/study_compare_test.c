/* study: what is compared with what, and when a difference counts. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/study_engine.h"
#include "loadgen/study_report.h"

TestSuite(study_compare, .timeout = 30);

/* ---- two groups of values ---- */

/* With the verdict that it has when nothing else is judged. */
static comparison
judged(const double *a, size_t n, const double *b, size_t m)
{
    comparison c = compare_values(a, n, b, m), *all[] = {&c};
    cr_assert_eq(compare_judge(all, 1), MOE_OK);
    return c;
}

Test(study_compare, five_against_five_apart_differ)
{
    const double a[] = {10, 11, 12, 13, 14}, b[] = {20, 21, 22, 23, 24};
    const comparison c = judged(a, 5, b, 5);
    cr_expect_float_eq(c.p, 2.0 / 252, 1e-12, "the two deals that keep the groups whole");
    cr_expect_float_eq(c.p_min, 2.0 / 252, 1e-12);
    cr_expect_eq(c.verdict, COMPARE_DIFFERENT);
    cr_expect_eq(c.median_a, 12);
    cr_expect_float_eq(c.ratio, 22.0 / 12, 1e-12);
}

/* Worked by hand: sums of two of {1, 2, 3, 4}; |difference of means| is 1 for {1,3}|{2,4}, which
 * {1,2}, {3,4} (2) and {2,4} (1) reach, and {1,4}, {2,3} (0) don't. */
Test(study_compare, p_is_the_share_of_deals_as_far_apart)
{
    const double a[] = {3, 1}, b[] = {2, 4};
    const comparison c = judged(a, 2, b, 2);
    cr_expect_float_eq(c.p, 4.0 / 6, 1e-12);
    cr_expect_float_eq(c.p_min, 2.0 / 6, 1e-12);
    cr_expect_eq(c.verdict, COMPARE_TOO_FEW);
}

Test(study_compare, equal_and_mixed_values_are_noise)
{
    const double a[] = {5, 5, 5, 5, 5}, b[] = {1, 2, 3, 4, 5}, d[] = {1.1, 2.1, 2.9, 4.2, 4.9};
    cr_expect_eq(compare_values(a, 5, a, 5).p, 1);
    cr_expect_eq(judged(a, 5, a, 5).verdict, COMPARE_NOISE);
    cr_expect_eq(judged(b, 5, d, 5).verdict, COMPARE_NOISE);
    cr_expect(isnan(compare_values(a, 0, b, 5).p));
    cr_expect_eq(judged(a, 0, b, 5).verdict, COMPARE_TOO_FEW);
}

Test(study_compare, groups_of_unequal_size)
{
    const double a[] = {1},
                 b[30] = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
    cr_expect_float_eq(compare_values(a, 1, b, 19).p, 2.0 / 20, 1e-12, "1 and 20 are as far out");
    cr_expect_float_eq(compare_values(a, 1, b, 19).p_min, 1.0 / 20, 1e-12);
}

/* Too many deals to try them all. */
Test(study_compare, many_values_are_dealt_at_random)
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
    const comparison c = judged(a, 40, b, 40);
    cr_expect_lt(c.p, 1e-4);
    cr_expect_gt(c.p, 0);
    cr_expect_eq(c.verdict, COMPARE_DIFFERENT);
}

/* ---- rounds ---- */

Test(study_compare, from_six_rounds_on_runs_are_swapped_within_rounds)
{
    /* A drift of ten times from round to round, and 2 % that no dealing of runs could see. */
    double a[6], b[6], logs[6];
    for (int i = 0; i < 6; i++) {
        a[i] = 10 * (i + 1);
        b[i] = a[i] * (1.02 + 0.001 * i);
        logs[i] = log(b[i] / a[i]);
    }
    comparison c = compare_values(a, 6, b, 6);
    cr_expect_gt(c.p, 0.5);
    compare_by_round(&c, logs, 5);
    cr_expect(!c.by_round && c.p > 0.5 && c.rounds == 5);
    compare_by_round(&c, logs, 6);
    cr_expect(c.by_round);
    cr_expect_float_eq(c.p, 2.0 / 64, 1e-12, "all as they are, or all swapped");
    cr_expect_float_eq(c.p_min, 2.0 / 64, 1e-12);
    cr_expect_float_eq(c.effect, 1.0225, 1e-4);
    cr_expect(c.low > 1.02 && c.low < c.effect && c.effect < c.high && c.high < 1.025);
}

/* Worked by hand: of {3, 1, 2, ...}: the sum of the six is 4; sums of +-1 +-1 +-1 +-1 +-1 +-1 are
 * at least 4 away from 0 in (1 + 6) * 2 of 64 swaps. */
Test(study_compare, p_is_the_share_of_swaps_as_far_from_0)
{
    const double logs[] = {1, 1, 1, -1, 1, 1};
    comparison c = {.p = NAN};
    compare_by_round(&c, logs, 6);
    cr_expect_float_eq(c.p, 14.0 / 64, 1e-12);
    compare_by_round(&c, logs, 1);
    cr_expect(isnan(c.low) && isnan(c.high));
    cr_expect_float_eq(c.effect, exp(1), 1e-12);
    compare_by_round(&c, logs, 0);
    cr_expect(isnan(c.effect));
}

Test(study_compare, many_rounds_are_swapped_at_random)
{
    double logs[100];
    comparison c = {.p = NAN};
    for (int i = 0; i < 100; i++) {
        logs[i] = i % 2 ? 0.1 : -0.1;
    }
    compare_by_round(&c, logs, 100);
    cr_expect_eq(c.p, 1);
    for (int i = 0; i < 100; i++) {
        logs[i] = i % 4 ? 0.1 : -0.1;
    }
    compare_by_round(&c, logs, 100);
    cr_expect(c.p > 0 && c.p < 1e-3, "%g", c.p);
}

/* ---- many comparisons ---- */

/* Benjamini and Hochberg by hand: p * count / rank, and never more than a later one's. */
Test(study_compare, many_comparisons_are_adjusted_together)
{
    static const double p[] = {0.04, 0.004, 0.9, 0.012, 0.001},
                        q[] = {0.05, 0.01, 0.9, 0.02, 0.005};
    comparison c[7] = {{0}}, *all[7];
    for (size_t i = 0; i < 7; i++) {
        c[i].p = i < 5 ? p[i] : i == 5 ? 0.01 : NAN;
        c[i].p_min = i == 5 ? 0.1 : 0.001; /* the sixth has too few runs for its p */
        all[i] = &c[i];
    }
    cr_assert_eq(compare_judge(all, 7), MOE_OK);
    for (size_t i = 0; i < 5; i++) {
        cr_expect_float_eq(c[i].q, q[i], 1e-12, "%zu: %g", i, c[i].q);
        cr_expect_eq(c[i].verdict, i == 2 ? COMPARE_NOISE : COMPARE_DIFFERENT);
    }
    cr_expect(c[5].verdict == COMPARE_TOO_FEW && isnan(c[5].q));
    cr_expect(c[6].verdict == COMPARE_TOO_FEW && isnan(c[6].q));
    c[0].p = 0.051;
    cr_assert_eq(compare_judge(all, 1), MOE_OK);
    cr_expect_eq(c[0].verdict, COMPARE_NOISE);
    cr_assert_eq(compare_judge(all, 0), MOE_OK);
}

/* ---- which cells ---- */

typedef struct setting {
    const char *name, *mode, *seqs, *tokens, *load, *options;
    double values[3]; /* TPOT of the rounds */
} setting;

/* In memory, without folders. */
static study
make_study(const setting *settings, size_t count)
{
    study s = {.cells = calloc(count, sizeof(study_cell)), .count = count};
    cr_assert_not_null(s.cells);
    for (size_t i = 0; i < count; i++) {
        const setting *from = &settings[i];
        study_cell *c = &s.cells[i];
        const char *options = from->options ? from->options : "none";
        card_init(&c->card);
        snprintf(c->folder, sizeof c->folder, "%s", from->name);
        card_set(&c->card, "conclave.mode", from->mode, NULL);
        card_set(&c->card, "conclave.load", from->load, NULL);
        card_set(&c->card, "conclave.options", options, NULL);
        card_set(&c->card, "workload.model.precision",
                 strncmp(options, "dtype=", 6) == 0 ? options + 6 : "bf16", NULL);
        c->seqs = (unsigned)atoi(from->seqs);
        c->tokens = (unsigned)atoi(from->tokens);
        for (unsigned r = 0; r < 3; r++) {
            c->runs[r].round = r + 1;
            c->runs[r].steps = 100;
            for (int m = 0; m < STUDY_METRICS; m++) {
                c->runs[r].values[m] = m == STUDY_TPOT ? from->values[r] : 1;
            }
        }
        c->run_count = from->values[0] > 0 ? 3 : 0;
    }
    return s;
}

Test(study_compare, pairs_differ_in_one_thing)
{
#define RUNS                                                                                       \
    {                                                                                              \
        1, 2, 3                                                                                    \
    }
    static const setting cells[] = {
        {"a", "tp4", "8", "2", "mixed", NULL, RUNS},
        {"b", "ep4", "8", "2", "mixed", NULL, RUNS},
        {"c", "ep4r4", "8", "2", "mixed", NULL, RUNS},
        {"d", "ep4", "16", "2", "mixed", NULL, RUNS},
        {"e", "ep4", "64", "2", "mixed", NULL, RUNS},
        {"f", "ep4", "8", "2", "skewed", NULL, RUNS},
        {"g", "ep8", "8", "2", "mixed", NULL, RUNS},
        {"j", "ep4", "8", "2", "balanced", NULL, RUNS},
        {"h", "ep4", "8", "2", "prefill", NULL, RUNS},
        {"i", "tp4", "8", "2", "balanced", NULL, RUNS},
        {"k", "ep4", "8", "2", "mixed", "micro-batches=2", RUNS},
        {"l", "ep4", "8", "2", "mixed", "dtype=int8", RUNS},
        {"m", "colocated", "8", "2", "engine", NULL, RUNS},
        {"n", "ep1", "8", "2", "engine", NULL, RUNS},
        {"o", "ep2", "8", "2", "engine", NULL, RUNS},
        {"p", "ep2", "8", "2", "mixed", NULL, RUNS},
        {"q", "tp2", "8", "2", "mixed", NULL, {0}}, /* not measured */
    };
    static const char *const wanted[] = {"ab0", "bc0", "ij0", "mn0", "mo0", "jf2",
                                         "be3", "no5", "pb5", "pg5", "bk6", "bl6"};
    const size_t count = sizeof wanted / sizeof wanted[0];
    study s = make_study(cells, sizeof cells / sizeof cells[0]);
    study_pair *pairs = calloc(STUDY_PAIRS_MAX, sizeof *pairs);
    cr_assert_eq(study_find_pairs(&s, pairs), count);
    for (size_t i = 0; i < count; i++) {
        char got[16];
        snprintf(got, sizeof got, "%.1s%.1s%d", pairs[i].a->folder, pairs[i].b->folder,
                 (int)pairs[i].axis);
        cr_expect_str_eq(got, wanted[i]);
    }
    free(pairs);
    study_fini(&s);
}

/* Six settings with three runs each: no pair of them can be told apart, all of them can. */
Test(study_compare, settings_are_judged_together)
{
    static const char *const seqs[] = {"8", "16", "32"}, *const tokens[] = {"2", "4"};
    setting cells[12];
    char names[12][4];
    for (size_t i = 0; i < 12; i++) {
        const double base = 10 * (double)(i / 2 + 1) * (i % 2 ? 1.1 : 1);
        snprintf(names[i], sizeof names[i], "%c", (char)('a' + i));
        cells[i] = (setting){.name = names[i],
                             .mode = i % 2 ? "ep4" : "tp4",
                             .seqs = seqs[i / 4],
                             .tokens = tokens[i / 2 % 2],
                             .load = "mixed",
                             .values = {base, base * 1.01, base * 0.99}};
    }
    study s = make_study(cells, 12);
    study_pair *pairs = calloc(STUDY_PAIRS_MAX, sizeof *pairs);
    study_group *groups = calloc(STUDY_GROUPS_MAX, sizeof *groups);
    const size_t count = study_find_pairs(&s, pairs),
                 group_count = study_find_groups(pairs, count, groups);
    errbuf eb;
    cr_assert_eq(study_judge(pairs, count, groups, group_count, &eb), MOE_OK);
    cr_assert_eq(group_count, 3, "mode, MAX_SEQS, BATCH_TOKENS");
    const comparison *c = &groups[0].of[STUDY_TPOT];
    cr_expect_str_eq(groups[0].from, "TP4");
    cr_expect_str_eq(groups[0].to, "EP4");
    cr_expect_eq(groups[0].pairs, 6);
    cr_expect_float_eq(c->effect, 1.1, 1e-9);
    cr_expect_float_eq(c->p, 2.0 / 64, 1e-12);
    cr_expect_float_eq(groups[0].least[STUDY_TPOT], 1.1, 1e-9);
    cr_expect_eq(c->verdict, COMPARE_NOISE, "one of four that could be tested: q = 4 p");
    cr_expect_float_eq(c->q, 8.0 / 64, 1e-12);
    cr_expect_eq(pairs[0].of[STUDY_TPOT].verdict, COMPARE_TOO_FEW);
    cr_expect_str_eq(groups[1].from, "8");
    cr_expect_str_eq(groups[1].to, "32");
    cr_expect_eq(groups[1].pairs, 4);
    cr_expect_eq(groups[1].of[STUDY_TPOT].verdict, COMPARE_TOO_FEW);

    /* BATCH_TOKENS never bound: 2 and 4 ran the same schedule, and i, k lie 20 % apart, a, c 100 %.
     */
    const study_floor noise = study_noise_floor(&s, STUDY_TPOT);
    cr_expect_eq(noise.pairs, 6);
    cr_expect_float_eq(noise.most, 2, 1e-9);
    s.cells[0].runs[1].by_tokens = 1; /* now it did in a */
    cr_expect_eq(study_noise_floor(&s, STUDY_TPOT).pairs, 5);
    free(pairs);
    free(groups);
    study_fini(&s);
}

/* ---- the bench's lines as a result ---- */

Test(study_compare, a_bench_of_the_engine_becomes_a_result)
{
    static const char lines[] =
        "{\"bench\":\"engine\",\"test\":\"pp512\",\"value\":2048,\"step_ms\":1}\n\n"
        "{\"test\":\"b32\",\"value\":1600,\"step_ms\":20.5}\n{\"test\":\"b64\",\"value\":1}";
    study_engine_result r;
    errbuf eb = {{0}};
    cr_assert_eq(study_engine_parse(lines, sizeof lines - 1, &r, &eb), MOE_OK, "%s", eb.text);
    cr_expect(r.prompt_tokens == 512 && r.batch == 32);
    char *text;
    size_t len;
    FILE *to = open_memstream(&text, &len);
    cr_assert_eq(study_engine_write(&r, to, &eb), MOE_OK);
    fclose(to);
    study_run run;
    bool bad = true;
    cr_assert_eq(study_parse_run(text, len, &run, &bad, &eb), MOE_OK, "%s in %s", eb.text, text);
    cr_expect(!bad);
    cr_expect_eq(run.values[STUDY_OUTPUT], 1600);
    cr_expect_eq(run.values[STUDY_TPOT], 20.5);
    cr_expect_eq(run.values[STUDY_TTFT], 250);
    cr_expect(isnan(run.values[STUDY_REQUESTS]) && isnan(run.steps) && isnan(run.tokens_in));
    cr_expect_not_null(strstr(text, "\"test\":\"b64\""), "the lines are kept: %s", text);
    free(text);

    static const char *const refused[] = {"",        "{\"test\":\"b32\",\"value\":1}",   "[]", "{",
                                          "pp512 9", "{\"test\":\"pp512\",\"value\":-1}"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        cr_expect_eq(study_engine_parse(refused[i], strlen(refused[i]), &r, &eb), MOE_EINVAL, "%s",
                     refused[i]);
    }
}
