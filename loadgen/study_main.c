/* conclave-study: cards, figures and the report of a study's folders (deploy/study.sh). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/json_writer.h"
#include "loadgen/study_engine.h"
#include "loadgen/study_report.h"

static const char usage[] =
    "usage: conclave-study report DIR                  write DIR/report.html from the folders in "
    "DIR\n"
    "       conclave-study extract FOLDER METRIC       the median of one metric over the runs\n"
    "       conclave-study card FILE KEY=VALUE...      write a workload card (YAML), checked\n"
    "       conclave-study check FILE...               are these cards right?\n"
    "       conclave-study engine-result FILE          a result from the JSON lines of "
    "conclave-bench engine\n"
    "       conclave-study version\n"
    "\n"
    "METRIC: median_ttft_ms, median_tpot_ms, output_throughput or request_throughput.\n"
    "KEY: a path in the card, workload.data.max-num-seqs for example.\n";

static moe_err
write_report(const void *ctx, FILE *to, errbuf *eb)
{
    return study_write_report(ctx, to, eb);
}

static moe_err
report(const char *dir, errbuf *eb)
{
    study s;
    char path[4096];
    moe_err err = study_read(dir, &s, eb);
    if (err) return err;
    err = json_save(dir, "report.html", write_report, &s, path, sizeof path, eb);
    study_fini(&s);
    return err;
}

static moe_err
extract(const char *folder, const char *key, errbuf *eb)
{
    int metric = 0;
    while (metric < STUDY_METRICS && strcmp(study_metrics[metric].key, key) != 0) {
        metric++;
    }
    if (metric == STUDY_METRICS) return err_set(eb, MOE_ENOTFOUND, "unknown metric \"%s\"", key);
    study_cell *cell = malloc(sizeof *cell);
    if (cell == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    double values[STUDY_RUNS_MAX];
    moe_err err = study_read_cell(folder, cell, eb);
    const size_t n = err ? 0 : study_values(cell, (study_metric)metric, values);
    if (!err && n == 0) err = err_set(eb, MOE_ENOTFOUND, "%s: no run has %s", folder, key);
    if (!err) printf("%.6g\n", compare_median(values, n));
    cJSON_Delete(cell->trace);
    free(cell);
    return err;
}

static moe_err
write_card(const void *ctx, FILE *to, errbuf *eb)
{
    return card_write(ctx, to, eb);
}

/* json_save() for a whole path. */
static moe_err
save(const char *path, moe_err (*write)(const void *ctx, FILE *to, errbuf *eb), const void *ctx,
     errbuf *eb)
{
    char saved[4096];
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
    if (dir == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    const moe_err err =
        json_save(dir, slash ? slash + 1 : path, write, ctx, saved, sizeof saved, eb);
    free(dir);
    return err;
}

/* Written, then read again: what a reader would refuse must not be left behind unnoticed. */
static moe_err
make_card(const char *path, char **pairs, int count, errbuf *eb)
{
    study_card *card = malloc(2 * sizeof *card);
    if (card == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = MOE_OK;
    card_init(card);
    for (int i = 0; i < count && !err; i++) {
        char *equals = strchr(pairs[i], '=');
        if (equals == NULL) {
            err = err_set(eb, MOE_EINVAL, "\"%s\" is no KEY=VALUE", pairs[i]);
            break;
        }
        *equals = '\0';
        err = card_set(card, pairs[i], equals + 1, eb);
    }
    if (!err) err = card_check(card, eb);
    if (!err) err = save(path, write_card, card, eb);
    if (!err) err = card_read(path, card + 1, eb);
    if (!err && memcmp(card, card + 1, sizeof *card) != 0) {
        for (int i = 0; i < CARD_FIELDS; i++) {
            if (strcmp(card->values[i], card[1].values[i]) != 0)
                err = err_set(eb, MOE_EINVAL, "%s: %s does not survive being written", path,
                              card_fields[i].path);
        }
    }
    free(card);
    return err;
}

static moe_err
write_engine(const void *ctx, FILE *to, errbuf *eb)
{
    return study_engine_write(ctx, to, eb);
}

/* Of standard input. */
static moe_err
make_engine_result(const char *path, errbuf *eb)
{
    study_engine_result result;
    char *lines = malloc(STUDY_ENGINE_BYTES_MAX + 1);
    if (lines == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    const size_t len = fread(lines, 1, STUDY_ENGINE_BYTES_MAX + 1, stdin);
    moe_err err = MOE_OK;
    if (len > STUDY_ENGINE_BYTES_MAX)
        err = err_set(eb, MOE_ERANGE, "standard input: more than %u bytes", STUDY_ENGINE_BYTES_MAX);
    if (!err) {
        err = study_engine_parse(lines, len, &result, eb);
        if (err) err_wrap(eb, err, "standard input");
    }
    if (!err) err = save(path, write_engine, &result, eb);
    free(lines);
    return err;
}

static moe_err
check_cards(char **paths, int count, errbuf *eb)
{
    study_card *card = malloc(sizeof *card);
    if (card == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    moe_err err = MOE_OK;
    for (int i = 0; i < count && !err; i++) {
        err = card_read(paths[i], card, eb);
    }
    free(card);
    return err;
}

int
main(int argc, char **argv)
{
    errbuf eb = {{0}};
    moe_err err = MOE_OK;
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "--help") == 0)
        fputs(usage, stdout);
    else if (strcmp(command, "version") == 0 && argc == 2)
        puts(CONCLAVE_VERSION);
    else if (strcmp(command, "report") == 0 && argc == 3)
        err = report(argv[2], &eb);
    else if (strcmp(command, "extract") == 0 && argc == 4)
        err = extract(argv[2], argv[3], &eb);
    else if (strcmp(command, "card") == 0 && argc > 3)
        err = make_card(argv[2], argv + 3, argc - 3, &eb);
    else if (strcmp(command, "engine-result") == 0 && argc == 3)
        err = make_engine_result(argv[2], &eb);
    else if (strcmp(command, "check") == 0 && argc > 2)
        err = check_cards(argv + 2, argc - 2, &eb);
    else {
        fputs(usage, stderr);
        return 2;
    }
    if (err) fprintf(stderr, "conclave-study: %s\n", eb.text);
    return err ? 1 : 0;
}
