/* conclave-loadgen: options in, load on a server, figures out.  Only wires the modules. */
#include <curl/curl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "loadgen/arrivals.h"
#include "loadgen/client.h"
#include "loadgen/dataset.h"
#include "loadgen/measure.h"
#include "loadgen/options.h"
#include "loadgen/progress.h"
#include "loadgen/report.h"
#include "loadgen/server.h"

enum { EXIT_ALL_COMPLETED = 0, EXIT_SOME_FAILED = 1, EXIT_UNUSABLE = 2 };

static volatile sig_atomic_t stop;

static void
on_signal(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

/* A second signal ends the process as usual: the report may be what hangs. */
static void
catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Every request in flight is a socket. */
static void
raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* What a run holds, in the order it is made. */
typedef struct bench {
    options o;
    server *srv;
    char *served_model, *server_json;
    const char *model;
    dataset data; /* the measured prompts, then those of the warm-up */
    uint64_t *arrivals_ns;
    request_record *records;
    measure figures;
    char date[32];
} bench;

static moe_err
count_tokens(void *ctx, const char *text, int64_t *count, errbuf *eb)
{
    bench *b = ctx;
    return server_count_tokens(b->srv, b->model, text, count, eb);
}

static moe_err
prepare(bench *b, errbuf *eb)
{
    options *o = &b->o;
    moe_err err = server_open(&b->srv, o->base_url, o->api_key, eb);
    if (!err && o->model == NULL) err = server_get_model(b->srv, &b->served_model, eb);
    if (err) return err;
    b->model = o->model ? o->model : b->served_model;
    /* Not every server has it, and the load does not need it. */
    if (server_get_version(b->srv, &b->server_json, NULL)) b->server_json = NULL;

    o->data.count_tokens = count_tokens;
    o->data.count_ctx = b;
    err = dataset_load(&o->data, &b->data, eb);
    if (err) return err;
    if (b->data.repeated)
        fprintf(stderr, "warning: %s has too few usable entries: %zu prompts are repetitions\n",
                o->data.path, b->data.repeated);
    const arrivals_config arrivals = {
        .rate = o->request_rate, .burstiness = o->burstiness, .seed = o->seed};
    return arrivals_build(&arrivals, o->prompt_count, &b->arrivals_ns, eb);
}

static client_config
configure_client(const bench *b, progress *line)
{
    const options *o = &b->o;
    return (client_config){
        .url = o->completions_url,
        .model = b->model,
        .api_key = o->api_key,
        .temperature = o->temperature,
        .ignore_eos = o->ignore_eos,
        .seed = o->seed,
        .concurrency_max = o->concurrency_max,
        .timeout_ms = o->timeout_ms,
        .stop = &stop,
        .on_progress = o->show_progress ? progress_show : NULL,
        .progress_ctx = line,
    };
}

/* Prompts of its own, so that the measured ones don't meet a prefix cache that knows them. */
static moe_err
warm_up(const bench *b, errbuf *eb)
{
    const size_t count = b->o.warmup_count;
    if (count == 0) return MOE_OK;
    request_record *records = record_array_create(count);
    uint64_t *at_once = calloc(count, sizeof *at_once);
    moe_err err = records && at_once ? MOE_OK : err_set(eb, MOE_ENOMEM, "warm-up: out of memory");
    client_config config = configure_client(b, NULL);
    config.on_progress = NULL;
    if (!err)
        err = client_run(&config, b->data.prompts + b->o.prompt_count, at_once, count, records, eb);
    for (size_t i = 0; !err && i < count; i++) {
        if (!records[i].completed)
            err = err_set(eb, MOE_EINVAL, "warm-up request %zu: %s", i, record_error(&records[i]));
    }
    free(at_once);
    record_array_free(records, count);
    return err;
}

static moe_err
run_load(bench *b, errbuf *eb)
{
    const time_t now = time(NULL);
    struct tm local;
    strftime(b->date, sizeof b->date, "%Y%m%d-%H%M%S", localtime_r(&now, &local));

    b->records = record_array_create(b->o.prompt_count);
    if (b->records == NULL) return err_set(eb, MOE_ENOMEM, "records: out of memory");
    progress line;
    progress_init(&line, stderr);
    const client_config config = configure_client(b, &line);
    const moe_err err =
        client_run(&config, b->data.prompts, b->arrivals_ns, b->o.prompt_count, b->records, eb);
    if (err) return err;
    return measure_run(&b->o.measuring, b->data.prompts, b->records, b->o.prompt_count, &b->figures,
                       eb);
}

/* backend-RATEqps-model-date.json, without slashes of a model's path. */
static void
name_result(const bench *b, char *out, size_t size)
{
    const char *slash = strrchr(b->model, '/');
    char rate[32], limit[32] = "";
    snprintf(rate, sizeof rate, "%g", b->o.request_rate);
    if (b->o.concurrency_max) snprintf(limit, sizeof limit, "-concurrency%u", b->o.concurrency_max);
    snprintf(out, size, "%s-%sqps%s-%s-%s.json", b->o.backend, rate, limit,
             slash ? slash + 1 : b->model, b->date);
    for (char *c = out; *c != '\0'; c++) {
        if (*c == '/') *c = '-';
    }
}

static moe_err
publish(const bench *b, errbuf *eb)
{
    const options *o = &b->o;
    const report_run run = {
        .date = b->date,
        .backend = o->backend,
        .endpoint_type = "openai",
        .label = o->label,
        .model_id = b->model,
        .tokenizer_id = o->tokenizer ? o->tokenizer : b->model,
        .dataset_name = o->dataset_name,
        .dataset_path = o->data.path,
        .request_rate = o->request_rate,
        .burstiness = o->burstiness,
        .concurrency_max = o->concurrency_max,
        .seed = o->seed,
        .temperature = o->temperature,
        .ignore_eos = o->ignore_eos,
        .warmup_count = o->warmup_count,
        .repeated_count = b->data.repeated,
        .server_json = b->server_json,
        .metadata = o->metadata,
        .metadata_count = o->metadata_count,
        .config = &o->measuring,
        .figures = &b->figures,
        .prompts = b->data.prompts,
        .records = b->records,
        .count = o->prompt_count,
    };
    report_print_table(&run, stdout);
    fflush(stdout);
    report_print_errors(&run, stderr);
    if (!o->save_result) return MOE_OK;
    char name[512], path[4096];
    name_result(b, name, sizeof name);
    const moe_err err = report_save(
        &run, o->result_dir, o->result_filename ? o->result_filename : name, path, sizeof path, eb);
    if (!err) fprintf(stderr, "result: %s\n", path);
    return err;
}

static void
bench_fini(bench *b)
{
    record_array_free(b->records, b->o.prompt_count);
    free(b->arrivals_ns);
    dataset_fini(&b->data);
    free(b->served_model);
    free(b->server_json);
    server_close(b->srv);
    options_fini(&b->o);
}

int
main(int argc, char **argv)
{
    bench b = {0};
    errbuf eb = {""};
    int status = EXIT_UNUSABLE;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    moe_err err = options_parse(&b.o, argc, argv, &eb);
    if (!err && b.o.help) {
        options_print_help(stdout);
        status = EXIT_ALL_COMPLETED;
        goto done;
    }
    catch_signals();
    raise_file_limit();
    if (!err) err = prepare(&b, &eb);
    if (!err) err = warm_up(&b, &eb);
    if (!err) err = run_load(&b, &eb);
    if (!err) err = publish(&b, &eb);
    if (err)
        fprintf(stderr, "conclave-loadgen: %s\n", eb.text);
    else
        status = b.figures.failed == 0 ? EXIT_ALL_COMPLETED : EXIT_SOME_FAILED;
done:
    bench_fini(&b);
    curl_global_cleanup();
    return status;
}
