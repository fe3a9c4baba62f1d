#include "loadgen/study_read.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"

#define PATH_BYTES 4096

const study_metric_info study_metrics[STUDY_METRICS] = {
    {"median_ttft_ms", "Time to first token", "ms", true},
    {"median_tpot_ms", "Time per output token", "ms", true},
    {"output_throughput", "Output throughput", "tokens/s", false},
    {"request_throughput", "Request throughput", "requests/s", false},
};

/* ---- one result ---- */

/* The sum over labels of the series NAME{...}; NaN without one. */
static double
counter(const cJSON *scrape, const char *name)
{
    const size_t len = strlen(name);
    const cJSON *item;
    double sum = 0;
    bool any = false;
    cJSON_ArrayForEach(item, scrape)
    {
        if (!cJSON_IsNumber(item) || strncmp(item->string, name, len) != 0 ||
            (item->string[len] != '\0' && item->string[len] != '{'))
            continue;
        sum += item->valuedouble;
        any = true;
    }
    return any ? sum : NAN;
}

static double
grown(const cJSON *metrics, const char *name)
{
    return counter(cJSON_GetObjectItemCaseSensitive(metrics, "after"), name) -
           counter(cJSON_GetObjectItemCaseSensitive(metrics, "before"), name);
}

static double
number_or_nan(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static void
read_counters(const cJSON *root, study_run *out)
{
    static const char balance[] = "conclave:balancedness";
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(root, "server_metrics");
    out->steps = grown(m, "conclave:steps_total");
    out->by_seqs = grown(m, "conclave:steps_limited_by_seqs_total");
    out->by_tokens = grown(m, "conclave:steps_limited_by_tokens_total");
    out->by_blocks = grown(m, "conclave:steps_limited_by_blocks_total");
    out->placements = grown(m, "conclave:placements_adopted_total");
    out->moved = grown(m, "conclave:experts_moved_total");
    out->balance_before = counter(cJSON_GetObjectItemCaseSensitive(m, "before"), balance);
    out->balance_after = counter(cJSON_GetObjectItemCaseSensitive(m, "after"), balance);
    out->wait_share = grown(m, "conclave:expert_wait_seconds_total") /
                      grown(m, "conclave:router_step_seconds_total");
}

moe_err
study_parse_run(const char *text, size_t len, study_run *out, bool *bad, errbuf *eb)
{
    cJSON *root;
    moe_err err = json_parse(text, len, &root, eb);
    if (err) return err;
    *out = (study_run){0};
    int64_t completed = -1, failed = 0;
    const char *date = "";
    if (!cJSON_IsObject(root)) err = err_set(eb, MOE_EINVAL, "no result");
    if (!err) err = json_get_i64(root, "completed", 0, INT32_MAX, &completed, eb);
    if (!err) err = json_get_i64(root, "failed", 0, INT32_MAX, &failed, eb);
    if (!err) err = json_get_string(root, "date", &date, eb);
    if (!err && completed < 0) err = err_set(eb, MOE_EINVAL, "no result: \"completed\" is missing");
    for (int m = 0; m < STUDY_METRICS; m++) {
        out->values[m] = number_or_nan(root, study_metrics[m].key);
    }
    out->tokens_in = number_or_nan(root, "total_input_tokens") / (double)completed;
    out->tokens_out = number_or_nan(root, "total_output_tokens") / (double)completed;
    const cJSON *trimmed = cJSON_GetObjectItemCaseSensitive(root, "trimmed");
    if (cJSON_IsObject(trimmed)) {
        out->values[STUDY_OUTPUT] = number_or_nan(trimmed, "steady_output_throughput");
        out->values[STUDY_REQUESTS] = number_or_nan(trimmed, "steady_request_throughput");
    }
    read_counters(root, out);
    const cJSON *client = cJSON_GetObjectItemCaseSensitive(root, "client");
    out->client_late = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(client, "late"));
    snprintf(out->date, sizeof out->date, "%s", date);
    *bad = completed == 0 || failed > 0;
    cJSON_Delete(root);
    return err;
}

/* ---- folders ---- */

static moe_err
join(char out[PATH_BYTES], const char *dir, const char *name, errbuf *eb)
{
    const int n = snprintf(out, PATH_BYTES, "%s/%s", dir, name);
    return n < PATH_BYTES ? MOE_OK : err_set(eb, MOE_ERANGE, "%s: the path is too long", dir);
}

static moe_err
read_runs(const char *path, study_cell *cell, errbuf *eb)
{
    for (unsigned round = 1; round <= STUDY_RUNS_MAX; round++) {
        char name[40], file[PATH_BYTES], *text;
        size_t len;
        bool bad;
        snprintf(name, sizeof name, "results_json/r%u.json", round);
        moe_err err = join(file, path, name, eb);
        if (!err) err = file_read(file, STUDY_RESULT_BYTES_MAX, &text, &len, eb);
        if (err == MOE_ENOTFOUND) continue; /* not measured yet */
        if (err) return err;
        study_run *run = &cell->runs[cell->run_count];
        err = study_parse_run(text, len, run, &bad, eb);
        free(text);
        if (err) return err_wrap(eb, err, "%s", file);
        run->round = round;
        if (bad)
            cell->bad_runs++;
        else
            cell->run_count++;
    }
    return MOE_OK;
}

/* Files that may be missing; *out NULL then. */
static moe_err
read_optional(const char *path, const char *name, size_t max, char **out, size_t *len, errbuf *eb)
{
    char file[PATH_BYTES];
    *out = NULL;
    moe_err err = join(file, path, name, eb);
    if (!err) err = file_read(file, max, out, len, eb);
    return err == MOE_ENOTFOUND ? MOE_OK : err;
}

moe_err
study_read_cell(const char *path, study_cell *out, errbuf *eb)
{
    char file[PATH_BYTES], *text;
    size_t len;
    memset(out, 0, sizeof *out);
    const char *slash = strrchr(path, '/');
    if (snprintf(out->folder, sizeof out->folder, "%s", slash ? slash + 1 : path) >= STUDY_NAME_MAX)
        return err_set(eb, MOE_ERANGE, "%s: the name is too long", path);
    moe_err err = join(file, path, "card.yaml", eb);
    if (!err) err = card_read(file, &out->card, eb);
    if (err) return err;
    out->seqs = (unsigned)strtoul(card_get(&out->card, "workload.data.max-num-seqs"), NULL, 10);
    out->tokens =
        (unsigned)strtoul(card_get(&out->card, "workload.data.max-num-batched-tokens"), NULL, 10);
    err = read_optional(path, "skipped", 1u << 16, &text, &len, eb);
    if (err) return err;
    if (text != NULL) {
        text[strcspn(text, "\n")] = '\0';
        snprintf(out->skipped, sizeof out->skipped, "%s", *text ? text : "no reason given");
        free(text);
    }
    err = read_runs(path, out, eb);
    if (err) return err;
    err = read_optional(path, "traces/summary.json", STUDY_RESULT_BYTES_MAX, &text, &len, eb);
    if (err || text == NULL) return err;
    err = json_parse(text, len, &out->trace, eb);
    free(text);
    if (!err && !cJSON_IsObject(out->trace)) err = err_set(eb, MOE_EINVAL, "no summary");
    return err ? err_wrap(eb, err, "%s/traces/summary.json", path) : MOE_OK;
}

static int
by_folder(const void *a, const void *b)
{
    return strcmp(((const study_cell *)a)->folder, ((const study_cell *)b)->folder);
}

static moe_err
add_folder(const char *dir, const char *name, study *out, errbuf *eb)
{
    char path[PATH_BYTES], card[PATH_BYTES];
    struct stat st;
    moe_err err = join(path, dir, name, eb);
    if (!err) err = join(card, path, "card.yaml", eb);
    if (err) return err;
    if (stat(card, &st) != 0) return MOE_OK;
    if (out->count == STUDY_CELLS_MAX)
        return err_set(eb, MOE_ERANGE, "%s: more than %d cells", dir, STUDY_CELLS_MAX);
    study_cell *grown_cells = realloc(out->cells, (out->count + 1) * sizeof *grown_cells);
    if (grown_cells == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    out->cells = grown_cells;
    return study_read_cell(path, &out->cells[out->count++], eb);
}

moe_err
study_read(const char *dir, study *out, errbuf *eb)
{
    *out = (study){0};
    DIR *d = opendir(dir);
    if (d == NULL) return err_set(eb, MOE_ENOTFOUND, "%s: no such folder", dir);
    moe_err err = MOE_OK;
    for (const struct dirent *e; !err && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] != '.') err = add_folder(dir, e->d_name, out, eb);
    }
    closedir(d);
    if (!err && out->count == 0)
        err = err_set(eb, MOE_ENOTFOUND, "%s: no experiment folder (card.yaml) in it", dir);
    if (err) {
        study_fini(out);
        return err;
    }
    qsort(out->cells, out->count, sizeof *out->cells, by_folder);
    return MOE_OK;
}

void
study_fini(study *s)
{
    for (size_t i = 0; i < s->count; i++) {
        cJSON_Delete(s->cells[i].trace);
    }
    free(s->cells);
    *s = (study){0};
}

size_t
study_values(const study_cell *cell, study_metric metric, double *out)
{
    size_t n = 0;
    for (size_t i = 0; i < cell->run_count; i++) {
        if (isfinite(cell->runs[i].values[metric])) out[n++] = cell->runs[i].values[metric];
    }
    return n;
}
