/* Two builds side by side: they take turns, and ratios are taken within a round, because machines
 * drift by more than builds differ. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "tests/bench/bench.h"
#include "tests/bench/process.h"

#define TESTS_MAX 2048

typedef struct pair {
    char test[RESULT_TEST_MAX];
    char unit[16];
    bool lower_is_better;
    double last[2]; /* of this round; 0 = not measured */
    samples mine, theirs, ratios;
} pair;

typedef struct comparison {
    pair *pairs; /* [TESTS_MAX] */
    uint32_t count;
} comparison;

static pair *
find_pair(comparison *c, const char *test)
{
    for (uint32_t i = 0; i < c->count; i++) {
        if (strcmp(c->pairs[i].test, test) == 0) return &c->pairs[i];
    }
    if (c->count == TESTS_MAX) return NULL;
    pair *p = &c->pairs[c->count++];
    *p = (pair){0};
    snprintf(p->test, sizeof p->test, "%s", test);
    return p;
}

static void
take_line(comparison *c, uint32_t side, const char *line, size_t len)
{
    cJSON *j = NULL;
    const char *test = NULL, *unit = "", *better = "";
    double value = 0;
    if (json_parse(line, len, &j, NULL) == MOE_OK &&
        json_get_string(j, "test", &test, NULL) == MOE_OK && test != NULL &&
        json_get_string(j, "unit", &unit, NULL) == MOE_OK &&
        json_get_string(j, "better", &better, NULL) == MOE_OK &&
        json_get_double(j, "value", 0, 1e300, &value, NULL) == MOE_OK && value > 0) {
        pair *p = find_pair(c, test);
        if (p != NULL) {
            p->last[side] = value;
            p->lower_is_better = strcmp(better, "lower") == 0;
            snprintf(p->unit, sizeof p->unit, "%s", unit);
        }
    }
    cJSON_Delete(j);
}

static void
take_output(comparison *c, uint32_t side, const char *text)
{
    while (*text != '\0') {
        const size_t n = strcspn(text, "\n");
        if (*text == '{') take_line(c, side, text, n);
        text += n + (text[n] == '\n');
    }
}

/* Is argv[i] the option `name` (also "--name=value")?  *words: how many words it takes. */
static bool
is_option(char **argv, int i, const char *name, bool has_value, int *words)
{
    const size_t n = strlen(name);
    if (strncmp(argv[i], "--", 2) != 0 || strncmp(argv[i] + 2, name, n) != 0) return false;
    *words = has_value && argv[i][2 + n] == '\0' ? 2 : 1;
    return argv[i][2 + n] == '\0' || argv[i][2 + n] == '=';
}

/* The command of one side: the same options, without those of the comparison. */
static void
side_command(command *out, const char *bench, const char *bin_dir, const char *name, int argc,
             char **argv)
{
    command_add(out, "%s", bench);
    command_add(out, "%s", name);
    for (int i = 1, words = 1; i < argc; i += words) {
        words = 1;
        if (is_option(argv, i, "compare", true, &words) ||
            is_option(argv, i, "rounds", true, &words) || is_option(argv, i, "json", false, &words))
            continue;
        command_add(out, "%s", argv[i]);
        words = 1;
    }
    command_add(out, "--json");
    if (bin_dir != NULL) command_add(out, "--bin-dir=%s", bin_dir);
}

static moe_err
run_side(comparison *c, uint32_t side, const command *words, errbuf *eb)
{
    char *text = NULL;
    int status = 0;
    moe_err err = process_run(words, &text, &status, eb);
    if (!err && status != 0)
        err = err_set(eb, MOE_EIO, "%s %s ended with status %d", words->words[0], words->words[1],
                      status);
    if (!err) take_output(c, side, text);
    free(text);
    return err;
}

static void
end_round(comparison *c)
{
    for (uint32_t i = 0; i < c->count; i++) {
        pair *p = &c->pairs[i];
        const double mine = p->last[0], theirs = p->last[1];
        p->last[0] = p->last[1] = 0;
        if (mine <= 0 || theirs <= 0) continue;
        samples_add(&p->mine, mine);
        samples_add(&p->theirs, theirs);
        samples_add(&p->ratios, p->lower_is_better ? theirs / mine : mine / theirs);
    }
}

static void
report_pairs(const comparison *c, const char *name, bool json)
{
    report out = {.out = stdout, .bench = name, .json = json};
    report_title(&out, "ratio of this build to the other; above 1: this one is better");
    for (uint32_t i = 0; i < c->count; i++) {
        const pair *p = &c->pairs[i];
        if (p->ratios.count == 0) {
            report_skip(&out, p->test, "only one of the builds measures it");
            continue;
        }
        result x = {.unit = "ratio", .values = p->ratios};
        snprintf(x.test, sizeof x.test, "%s", p->test);
        result_number(&x, "this", samples_median(&p->mine));
        result_number(&x, "other", samples_median(&p->theirs));
        result_text(&x, "of", p->unit);
        report_result(&out, &x);
    }
}

int
bench_compare(const char *name, const bench_options *o, int argc, char **argv)
{
    char own[4096], other[4200], other_bin[4200];
    bench_bin_dir(own, sizeof own);
    snprintf(other_bin, sizeof other_bin, "%s/bin", o->compare);
    snprintf(other, sizeof other, "%s/conclave-bench", other_bin);
    char mine[4200];
    snprintf(mine, sizeof mine, "%s/conclave-bench", own);

    /* A build without this benchmark can still lend its router and workers to this one's. */
    const bool lends = access(other, X_OK) != 0;
    if (lends && (strcmp(name, "kernels") == 0 || access(other_bin, X_OK) != 0)) {
        fprintf(stderr, "conclave-bench %s: --compare: there is no %s\n", name, other);
        return 2;
    }
    process_catch_signals();
    unsetenv("CONCLAVE_COMPARE"); /* or the children would compare too */
    comparison c = {.pairs = calloc(TESTS_MAX, sizeof(pair))};
    if (c.pairs == NULL) return bench_fail(name, "out of memory");
    command sides[2];
    memset(sides, 0, sizeof sides);
    side_command(&sides[0], mine, NULL, name, argc, argv);
    side_command(&sides[1], lends ? mine : other, lends ? other_bin : NULL, name, argc, argv);

    errbuf eb = {{0}};
    moe_err err = MOE_OK;
    for (int64_t r = 0; r < o->rounds && !err; r++) {
        err = run_side(&c, r % 2 == 0 ? 0 : 1, &sides[r % 2 == 0 ? 0 : 1], &eb);
        if (!err) err = run_side(&c, r % 2 == 0 ? 1 : 0, &sides[r % 2 == 0 ? 1 : 0], &eb);
        end_round(&c);
        fprintf(stderr, "round %lld of %lld\n", (long long)r + 1, (long long)o->rounds);
    }
    if (!err) report_pairs(&c, name, o->json);
    free(c.pairs);
    command_fini(&sides[0]);
    command_fini(&sides[1]);
    return err ? bench_fail(name, eb.text) : 0;
}
