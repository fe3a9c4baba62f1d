/* conclave-loadgen: options in, load on a server, figures out.  Only wires the modules. */
#include <curl/curl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "loadgen/json_writer.h"
#include "loadgen/options.h"
#include "loadgen/report.h"
#include "loadgen/run.h"
#include "loadgen/summary.h"
#include "loadgen/sweep.h"

enum { EXIT_ALL_COMPLETED = 0, EXIT_SOME_FAILED = 1, EXIT_UNUSABLE = 2 };

#define NAME_MAX_BYTES 1024
#define SWEEP_IDLE_REQUESTS 8
#define SWEEP_REQUESTS_MIN 10

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

/* The name that was given, without its .json, or one made from the run. */
static void
name_result(const target *t, const run *r, const char *load, char *out, size_t size)
{
    const char *given = t->o->result_filename;
    if (given == NULL) {
        run_name(t, r, load, out, size);
        return;
    }
    size_t len = strlen(given);
    if (len > 5 && strcmp(given + len - 5, ".json") == 0) len -= 5;
    snprintf(out, size, "%.*s", (int)len, given);
}

static moe_err
save(const options *o, const char *name, moe_err (*write)(const void *ctx, FILE *to, errbuf *eb),
     const void *ctx, errbuf *eb)
{
    char path[4096];
    const moe_err err = json_save(o->result_dir, name, write, ctx, path, sizeof path, eb);
    if (!err) fprintf(stderr, "result: %s\n", path);
    return err;
}

/* ---- a run, or several ---- */

static moe_err
write_run(const void *ctx, FILE *to, errbuf *eb)
{
    return report_write_json(ctx, to, eb);
}

static moe_err
write_times(const void *ctx, FILE *to, errbuf *eb)
{
    return report_write_times(ctx, to, eb);
}

static moe_err
publish(const target *t, const run *r, errbuf *eb)
{
    const options *o = t->o;
    const report_run described = run_describe(t, r);
    report_print_table(&described, stdout);
    fflush(stdout);
    report_print_errors(&described, stderr);
    report_print_warnings(&described, stderr);
    char name[NAME_MAX_BYTES], suffix[32] = "", path[4096];
    if (o->repeats > 1) snprintf(suffix, sizeof suffix, "-r%u", r->plan.repeat);
    moe_err err = MOE_OK;
    if (o->times_path != NULL) {
        snprintf(name, sizeof name, "%s%s", o->times_path, suffix);
        err = json_save(*name == '/' ? "" : ".", name + (*name == '/'), write_times, &described,
                        path, sizeof path, eb);
    }
    if (err || !o->save_result) return err;
    name_result(t, r, NULL, name, sizeof name - 64);
    strcat(strcat(name, suffix), ".json");
    return save(o, name, write_run, &described, eb);
}

static moe_err
write_summary(const void *ctx, FILE *to, errbuf *eb)
{
    return summary_write_json(ctx, to, eb);
}

static moe_err
run_once(const target *t, uint32_t repeat, summary *all, char *name, bool *bad, errbuf *eb)
{
    run r;
    const run_plan plan = run_plan_of(t->o, repeat);
    if (t->o->repeats > 1) fprintf(stderr, "run %u of %u\n", repeat + 1, t->o->repeats);
    moe_err err = run_execute(t, &plan, &r, eb);
    if (!err) err = publish(t, &r, eb);
    if (!err) {
        summary_add(all, &r.figures, r.histograms);
        *bad = *bad || r.figures.failed > 0 || r.same.different > 0;
        if (repeat == 0) name_result(t, &r, NULL, name, NAME_MAX_BYTES - 64);
    }
    run_fini(&r);
    return err;
}

static moe_err
run_all(const target *t, bool *bad, errbuf *eb)
{
    char name[NAME_MAX_BYTES] = "";
    summary all = {0};
    moe_err err = summary_init(&all, t->o->repeats, eb);
    for (uint32_t i = 0; !err && i < t->o->repeats && (i == 0 || !stop); i++) {
        err = run_once(t, i, &all, name, bad, eb);
    }
    if (!err && t->o->repeats > 1) {
        summary_print(&all, stdout);
        if (t->o->save_result)
            err = save(t->o, strcat(name, "-repeats.json"), write_summary, &all, eb);
    }
    summary_fini(&all);
    return err;
}

/* ---- sweep ---- */

typedef struct sweeping {
    const target *t;
    char name[NAME_MAX_BYTES], date[32];
} sweeping;

/* Each step has prompts of its own: no step profits from what the one before left in a cache. */
static moe_err
measure_step(void *ctx, double rate, uint32_t step, sweep_point *out, errbuf *eb)
{
    sweeping *s = ctx;
    const options *o = s->t->o;
    run r;
    run_plan plan = run_plan_of(o, step);
    const double wanted = ceil(rate * o->sweeping.seconds);
    plan.count =
        rate == 0 ? SWEEP_IDLE_REQUESTS : (size_t)fmin(fmax(wanted, SWEEP_REQUESTS_MIN), 1e6);
    plan.warmup_count = step == 0 ? o->warmup_count : 0;
    plan.arrivals.rate = rate == 0 ? INFINITY : rate;
    plan.concurrency_max = rate == 0 ? 1 : o->concurrency_max;
    plan.check_determinism = plan.show_progress = false;
    plan.chaos = NULL;
    moe_err err = stop ? err_set(eb, MOE_ECLOSED, "interrupted") : MOE_OK;
    r = (run){0};
    if (!err) err = run_execute(s->t, &plan, &r, eb);
    if (!err) {
        const report_run described = run_describe(s->t, &r);
        *out = sweep_point_of(&o->measuring, &r.figures, r.records, plan.count, rate);
        out->client_late = rate > 0 && report_client_was_late(&described);
        if (step == 0) {
            name_result(s->t, &r, "sweep", s->name, sizeof s->name - 64);
            snprintf(s->date, sizeof s->date, "%s", r.date);
        }
        if (o->show_progress)
            fprintf(stderr, "%s %.3f req/s: %zu of %zu requests within the limits\n",
                    rate == 0 ? "idle:" : "rate", rate, out->good, out->sent);
        if (stop) err = err_set(eb, MOE_ECLOSED, "interrupted");
    }
    run_fini(&r);
    return err;
}

typedef struct swept {
    sweep_about about;
    sweep_result result;
} swept;

static moe_err
write_sweep(const void *ctx, FILE *to, errbuf *eb)
{
    const swept *s = ctx;
    return sweep_write_json(&s->about, &s->result, to, eb);
}

static moe_err
write_plot(const void *ctx, FILE *to, errbuf *eb)
{
    const swept *s = ctx;
    return sweep_write_svg(&s->about, &s->result, to, eb);
}

static moe_err
sweep(const target *t, errbuf *eb)
{
    const options *o = t->o;
    sweeping s = {.t = t};
    swept all = {.about = {.date = s.date,
                           .backend = o->backend,
                           .model_id = t->model,
                           .dataset_name = o->dataset_name,
                           .server_json = t->server_json,
                           .seed = o->seed,
                           .limits = &o->measuring,
                           .config = &o->sweeping}};
    moe_err err = sweep_run(&o->sweeping, measure_step, &s, &all.result, eb);
    if (all.result.idle.sent > 0) sweep_print(&all.result, stdout);
    if (err) return err;
    char file[NAME_MAX_BYTES];
    snprintf(file, sizeof file, "%s.json", s.name);
    err = save(o, file, write_sweep, &all, eb);
    memcpy(file + strlen(file) - 5, ".svg", 5);
    return err ? err : save(o, file, write_plot, &all, eb);
}

int
main(int argc, char **argv)
{
    options o;
    target t = {0};
    errbuf eb = {""};
    bool bad = false;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    moe_err err = options_parse(&o, argc, argv, &eb);
    if (!err && o.help) {
        options_print_help(stdout);
    } else {
        catch_signals();
        raise_file_limit();
        if (!err) err = target_open(&t, &o, &stop, &eb);
        if (!err) err = o.sweep ? sweep(&t, &eb) : run_all(&t, &bad, &eb);
    }
    if (err) fprintf(stderr, "conclave-loadgen: %s\n", eb.text);
    target_close(&t);
    options_fini(&o);
    curl_global_cleanup();
    return err ? EXIT_UNUSABLE : bad ? EXIT_SOME_FAILED : EXIT_ALL_COMPLETED;
}
