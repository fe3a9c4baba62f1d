#include "loadgen/study_engine.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/json.h"
#include "loadgen/entries.h"
#include "loadgen/json_writer.h"

#define COUNT_MAX 1e9

/* "pp512" and the prefix "pp" give 512; 0 = it is no such name. */
static double
size_of_test(const char *name, const char *prefix)
{
    const size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0 || !isdigit((unsigned char)name[n])) return 0;
    return strtod(name + n, NULL);
}

static moe_err
read_line(const cJSON *line, study_engine_result *out, errbuf *eb)
{
    const char *test = "";
    double value = 0, step_ms = 0;
    if (!cJSON_IsObject(line)) return err_set(eb, MOE_EINVAL, "no object");
    moe_err err = json_get_string(line, "test", &test, eb);
    if (!err) err = json_get_double(line, "value", 0, COUNT_MAX, &value, eb);
    if (!err) err = json_get_double(line, "step_ms", 0, COUNT_MAX, &step_ms, eb);
    if (err || !(value > 0)) return err;
    if (out->prompt_tokens == 0 && size_of_test(test, "pp") > 0) {
        out->prompt_tokens = size_of_test(test, "pp");
        out->prompt_rate = value;
    } else if (out->batch == 0 && size_of_test(test, "b") > 0) {
        out->batch = size_of_test(test, "b");
        out->batch_rate = value;
        out->step_ms = step_ms;
    }
    return MOE_OK;
}

moe_err
study_engine_parse(const char *lines, size_t len, study_engine_result *out, errbuf *eb)
{
    entries list = {0};
    *out = (study_engine_result){.lines = lines, .len = len};
    moe_err err = entries_from_lines(lines, len, &list, eb);
    for (size_t i = 0; i < list.count && !err; i++) {
        cJSON *line;
        err = json_parse(list.at[i].text, list.at[i].len, &line, eb);
        if (!err) {
            err = read_line(line, out, eb);
            cJSON_Delete(line);
        }
        if (err) err_wrap(eb, err, "line %zu", list.at[i].number);
    }
    entries_fini(&list);
    if (!err && (out->prompt_tokens == 0 || out->batch == 0))
        err = err_set(eb, MOE_EINVAL, "the bench measured no prompt, or no batch");
    return err;
}

static void
put_lines(json_writer *w, const study_engine_result *r)
{
    json_key(w, "engine");
    json_open(w, '[');
    for (size_t at = 0; at < r->len;) {
        const char *end = memchr(r->lines + at, '\n', r->len - at);
        const size_t n = end ? (size_t)(end - r->lines) - at : r->len - at;
        char *line = strndup(r->lines + at, n);
        if (line == NULL) w->failed = true;
        if (line != NULL && line[strspn(line, " \t\r")] != '\0') json_put_json(w, line);
        free(line);
        at += n + 1;
    }
    json_close(w, ']');
}

moe_err
study_engine_write(const study_engine_result *r, FILE *to, errbuf *eb)
{
    char date[32];
    const time_t now = time(NULL);
    struct tm local;
    strftime(date, sizeof date, "%Y%m%d-%H%M%S", localtime_r(&now, &local));
    json_writer w;
    json_writer_init(&w, to);
    json_open(&w, '{');
    json_key_text(&w, "date", date);
    json_key_text(&w, "backend", "conclave-bench engine");
    json_key_number(&w, "num_prompts", r->batch);
    json_key_number(&w, "completed", r->batch);
    json_key_number(&w, "failed", 0);
    json_key_number(&w, "request_throughput", NAN);
    json_key_number(&w, "input_throughput", r->prompt_rate);
    json_key_number(&w, "output_throughput", r->batch_rate);
    json_key_number(&w, "median_ttft_ms", 1e3 * r->prompt_tokens / r->prompt_rate);
    json_key_number(&w, "median_tpot_ms", r->step_ms);
    put_lines(&w, r);
    json_close(&w, '}');
    return json_writer_fini(&w, eb);
}
